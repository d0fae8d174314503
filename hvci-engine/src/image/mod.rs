//! Images as containers: headers, sections, permissions, hash ranges, and what is odd about them. No certificate is read here.
//!
//! [`elf`] reads Linux modules, [`unpack`] the compressed files that they are shipped as, `lz4` the one format of kernel payloads that
//! no crate of the workspace reads. What has no valid header is an [`ImageError`]; what has one, but is odd, is a list of notes.

pub mod elf;
mod lz4;
pub mod pe;
pub mod unpack;
mod xz;

use crate::{
    bytes::Span,
    finding::{Code, Note},
};

/// Why a file cannot be read as the image that it claims to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", code.title())]
pub struct ImageError {
    /// The finding that this is.
    pub code: Code,
    /// Which bytes are to blame, where bytes are.
    pub span: Option<Span>,
    /// What was seen: values, not advice.
    pub detail: String,
}

impl ImageError {
    /// An error about the whole file.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, span: None, detail: detail.into() }
    }

    /// With the bytes that are to blame.
    #[must_use]
    pub fn at(mut self, span: Span) -> Self {
        self.span = Some(span);
        self
    }

    /// The error as a finding.
    pub fn note(&self) -> Note {
        Note { code: self.code, span: self.span, subject: None, detail: self.detail.clone() }
    }
}
