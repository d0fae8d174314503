//! What a guest's firmware keeps: UEFI variables, who may change them, and the flash file of OVMF that they are in.
//!
//! ```text
//! *_VARS*.fd ─flash─► VariableStore ◄─set(name, attributes, data)─ authenticated (descriptor, PKCS#7) ◄─ hvci_engine::signature
//! ```
//!
//! Follows edk2's `AuthVariableLib` (UEFI 2.10 §8.2): what OVMF refuses is refused. Firmware trusts the keys in PK and KEK, and no date.
//! **Invariant:** a refused write changes nothing.

pub mod authenticated;
pub mod flash;
pub mod store;
pub mod variable;

use std::fmt;

/// Why the firmware refuses, by the name that UEFI 2.10 appendix D has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// EFI_INVALID_PARAMETER
    InvalidParameter,
    /// EFI_UNSUPPORTED
    Unsupported,
    /// EFI_WRITE_PROTECTED
    WriteProtected,
    /// EFI_OUT_OF_RESOURCES
    OutOfResources,
    /// EFI_NOT_FOUND
    NotFound,
    /// EFI_SECURITY_VIOLATION
    SecurityViolation,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidParameter => "EFI_INVALID_PARAMETER",
            Self::Unsupported => "EFI_UNSUPPORTED",
            Self::WriteProtected => "EFI_WRITE_PROTECTED",
            Self::OutOfResources => "EFI_OUT_OF_RESOURCES",
            Self::NotFound => "EFI_NOT_FOUND",
            Self::SecurityViolation => "EFI_SECURITY_VIOLATION",
        })
    }
}

/// A write that the firmware refuses: what SetVariable returns, and what was wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {reason}")]
pub struct Refused {
    /// What SetVariable returns.
    pub status: Status,
    /// What was wrong, for a person.
    pub reason: String,
}

impl Refused {
    fn new(status: Status, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into() }
    }
}
