//! What a boot went through: each image that was to be started, who was asked, and what came of it.

use std::fmt;

use hvci_engine::{
    digest::{Digest, DigestAlg},
    facts::{Facts, SbatComponent},
    policy::{Decision, secure_boot::BootVerdict},
};

use super::program::Program;

/// What an image is to a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum StageKind {
    Shim,
    MokManager,
    Fallback,
    Grub,
    SystemdBoot,
    UnifiedKernel,
    Kernel,
    WindowsBootManager,
    OsLoader,
    NtKernel,
    Application,
}

impl StageKind {
    /// What a program is started as.
    pub fn of(program: Program) -> Self {
        match program {
            Program::Shim => Self::Shim,
            Program::MokManager => Self::MokManager,
            Program::Fallback => Self::Fallback,
            Program::Grub => Self::Grub,
            Program::SystemdBoot => Self::SystemdBoot,
            Program::UnifiedKernel => Self::UnifiedKernel,
            Program::Linux => Self::Kernel,
            Program::WindowsBootManager => Self::WindowsBootManager,
            Program::OsLoader => Self::OsLoader,
            Program::NtKernel => Self::NtKernel,
            Program::Unknown => Self::Application,
        }
    }
}

impl fmt::Display for StageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Shim => "shim",
            Self::MokManager => "MokManager",
            Self::Fallback => "fallback",
            Self::Grub => "GRUB",
            Self::SystemdBoot => "systemd-boot",
            Self::UnifiedKernel => "unified kernel",
            Self::Kernel => "kernel",
            Self::WindowsBootManager => "boot manager",
            Self::OsLoader => "OS loader",
            Self::NtKernel => "NT kernel",
            Self::Application => "application",
        })
    }
}

/// Who decides whether an image starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Asked {
    Firmware,
    Shim,
    BootManager,
    OsLoader,
    /// Secure Boot is off, or shim was told not to verify.
    Nobody,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Firmware => "firmware",
            Self::Shim => "shim",
            Self::BootManager => "boot manager",
            Self::OsLoader => "OS loader",
            Self::Nobody => "nobody",
        })
    }
}

/// One image of a boot.
#[derive(Clone, Debug)]
pub struct Stage {
    /// What it is.
    pub kind: StageKind,
    /// Its path, as the one who starts it says it.
    pub path: String,
    /// Who was asked.
    pub asked: Asked,
    /// Its authentihash, SHA-256.
    pub authentihash: Option<Digest>,
    /// The generations that it says.
    pub sbat: Vec<SbatComponent>,
    /// Signatures that it carries.
    pub signatures: usize,
    /// What the one asked said; `None` where nobody was.
    pub verdict: Option<BootVerdict>,
    /// Numbers of the events of PCR 4 that it was measured with.
    pub events: Vec<usize>,
    /// What else is to be said of it.
    pub notes: Vec<String>,
}

impl Stage {
    pub(super) fn new(kind: StageKind, path: &str, asked: Asked, facts: &Facts, verdict: Option<BootVerdict>) -> Self {
        Self {
            kind,
            path: path.to_owned(),
            asked,
            authentihash: facts.firmware_digest(DigestAlg::Sha256).copied(),
            sbat: facts.image.as_ref().and_then(|image| image.sbat.clone()).unwrap_or_default(),
            signatures: facts.signatures.len(),
            verdict,
            events: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Whether it was not started because of what the one asked said.
    pub fn is_refused(&self) -> bool {
        self.verdict.as_ref().is_some_and(|verdict| verdict.decision != Decision::Accept)
    }
}
