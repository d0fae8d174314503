//! Images as containers: headers, sections, permissions, hash ranges, and what is odd about them. No certificate is read here.
//!
//! Reading never fails on what is merely odd: that becomes a [`Note`]. [`ImageError`] is for a file that is no image, or whose headers
//! cannot be used at all.

pub mod pe;

use crate::{
    bytes::Span,
    finding::{Code, Note},
};

/// Why a file cannot be read as an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ImageError {
    /// Which finding it is: no image at all, cut short, or of a kind that is not judged.
    pub code: Code,
    /// Which bytes are to blame, where some are.
    pub span: Option<Span>,
    /// What was seen, for a person.
    pub detail: String,
}

impl ImageError {
    /// An error about the file as a whole.
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, span: None, detail: detail.into() }
    }

    /// With the bytes that are to blame.
    pub(crate) fn at(mut self, span: Span) -> Self {
        self.span = Some(span);
        self
    }
}

impl From<ImageError> for Note {
    fn from(error: ImageError) -> Self {
        Self { code: error.code, span: error.span, subject: None, detail: error.detail }
    }
}
