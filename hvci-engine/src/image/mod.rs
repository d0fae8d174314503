//! Images as containers: headers, sections, permissions, hash ranges, and what is odd about them. No certificate is read here.
//!
//! [`pe`] reads Windows and EFI images, [`sbat`] what these say of their generations, [`elf`] Linux modules, [`unpack`] the compressed files that modules are shipped as, `lz4` the one
//! format of kernel payloads that no crate of the workspace reads. Reading never fails on what is merely odd: that becomes a [`Note`].
//! [`ImageError`] is for a file that is no image, or whose headers cannot be used at all.

pub mod elf;
mod lz4;
pub mod pe;
pub mod sbat;
mod shown;
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
    /// Which bytes are to blame, where some are.
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
}

impl From<ImageError> for Note {
    fn from(error: ImageError) -> Self {
        Self { code: error.code, span: error.span, subject: None, detail: error.detail }
    }
}
