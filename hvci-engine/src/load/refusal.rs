//! Why a module is not loaded.

use crate::{
    finding::{Code, Note},
    status::HvStatus,
};

/// A module is not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", note.code.title(), note.detail)]
pub struct Refusal {
    /// Which finding, where in the file, what was seen.
    pub note: Note,
    /// What the guest is told.
    pub status: HvStatus,
}

impl Refusal {
    /// The file is of a kind that is not loaded.
    pub(super) fn unsupported(detail: impl Into<String>) -> Self {
        Self { note: Note::new(Code::ImageUnsupported, detail), status: HvStatus::FEATURE_UNAVAILABLE }
    }

    /// The file has a layout that is not loaded.
    pub(super) fn layout(detail: impl Into<String>) -> Self {
        Self { note: Note::new(Code::MemLayout, detail), status: HvStatus::ACCESS_DENIED }
    }

    /// What the guest says about addresses cannot be.
    pub(super) fn placement(detail: impl Into<String>) -> Self {
        Self { note: Note::new(Code::MemLayout, detail), status: HvStatus::INVALID_PARAMETER }
    }

    /// The pages are not to be had.
    pub(super) fn claim(status: HvStatus) -> Self {
        Self { note: Note::new(Code::MemClaim, status.to_string()), status }
    }

    /// The image takes more memory than any may.
    pub(super) fn too_large(detail: impl Into<String>) -> Self {
        Self { note: Note::new(Code::MemLayout, detail), status: HvStatus::INSUFFICIENT_MEMORY }
    }

    /// A relocation that must not be.
    pub(super) fn relocation(detail: impl Into<String>) -> Self {
        Self { note: Note::new(Code::MemRelocation, detail), status: HvStatus::ACCESS_DENIED }
    }

    /// A relocation of a kind that is not applied.
    pub(super) fn relocation_kind(detail: impl Into<String>) -> Self {
        Self { note: Note::new(Code::MemRelocation, detail), status: HvStatus::FEATURE_UNAVAILABLE }
    }

    /// Nothing exports what is imported.
    pub(super) fn unresolved(symbol: impl Into<String>) -> Self {
        let symbol = symbol.into();
        Self {
            note: Note::new(Code::MemUnresolved, format!("nothing that is loaded exports {symbol}")).of(symbol),
            status: HvStatus::ACCESS_DENIED,
        }
    }

    /// With the section that is to blame.
    #[must_use]
    pub(super) fn of(mut self, subject: impl Into<String>) -> Self {
        self.note.subject = Some(subject.into());
        self
    }

    /// Refuses the first of `notes` that is of one of these codes.
    pub(super) fn any(notes: &[Note], refused: &[Code]) -> Result<(), Self> {
        match notes.iter().find(|note| refused.contains(&note.code)) {
            Some(note) => Err(Self { note: note.clone(), status: HvStatus::ACCESS_DENIED }),
            None => Ok(()),
        }
    }
}
