//! What a machine is made with: a TOML file, `vm.toml`, the same as the options of `vm create`.

use hvci_engine::vault::UsePolicy;
use serde::{Deserialize, Serialize};

use crate::{
    attest::{self, Features},
    firmware::store::VariableStore,
    vtpm::Backend,
};

/// A machine's profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profile {
    /// Which generation of virtual hardware. Only the second has UEFI.
    #[serde(default = "second")]
    pub generation: u8,
    /// Whether it is a Trusted Launch machine, which is decided when it is made.
    #[serde(default)]
    pub security_type: SecurityType,
    /// Firmware and boot loaders start only what is signed and not revoked.
    pub secure_boot: bool,
    /// It has a TPM of its own.
    pub vtpm: bool,
    /// Nothing executes in its kernel that the engine did not verify.
    pub hvci: bool,
    /// Its credentials are kept in VTL1.
    pub credential_guard: bool,
    /// What kind of guest it is, which says what the PCRs from 8 on mean.
    #[serde(default)]
    pub guest: Guest,
    /// Whose rules its firmware and shim decide by.
    #[serde(default)]
    pub behaviour: Rules,
    /// Which TPM it has.
    #[serde(default)]
    pub tpm: Backend,
    /// What is allowed of its credentials.
    #[serde(default, skip_serializing_if = "is_default")]
    pub vault: UsePolicy,
}

fn is_default(policy: &UsePolicy) -> bool {
    *policy == UsePolicy::default()
}

fn second() -> u8 {
    2
}

/// Whether a machine can have what Trusted Launch gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecurityType {
    /// It can.
    #[default]
    TrustedLaunch,
    /// It was made without, and cannot get it later: what happened before would not have been measured.
    Standard,
}

/// Kind of guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Guest {
    #[default]
    Linux,
    Windows,
}

impl From<Guest> for attest::Profile {
    fn from(guest: Guest) -> Self {
        match guest {
            Guest::Linux => Self::Linux,
            Guest::Windows => Self::Windows,
        }
    }
}

/// Whose rules decide about images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rules {
    /// The specification's.
    #[default]
    Strict,
    /// Those of edk2 and shim as they are.
    Edk2Compat,
}

/// Why a machine cannot be made like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// A generation without UEFI.
    #[error("generation {0} is not simulated: Secure Boot, the vTPM and all that builds on them need UEFI, which generation 2 has")]
    Generation(u8),
    /// A standard machine with something of Trusted Launch.
    #[error(
        "{0} is part of Trusted Launch, which is chosen when a machine is made: a standard machine has run without being measured, so nothing \
         could vouch for what is on its disk now; make a new machine with --security-type trusted-launch"
    )]
    Standard(&'static str),
    /// A standard machine that is to become another.
    #[error(
        "Trusted Launch is chosen when a machine is made: a standard machine has run without being measured, so nothing could vouch for what is \
         on its disk now; make a new machine with --security-type trusted-launch"
    )]
    Later,
    /// Credential Guard without Secure Boot.
    #[error(
        "Credential Guard needs Secure Boot: without it anything can start before the secure kernel, and ask its TPM for the credentials' key"
    )]
    CredentialGuard,
}

impl Profile {
    /// Whether the machine can be like this.
    ///
    /// # Errors
    /// [`ProfileError`], the first.
    pub fn check(&self) -> Result<(), ProfileError> {
        if self.generation != 2 {
            return Err(ProfileError::Generation(self.generation));
        }
        let parts =
            [(self.secure_boot, "Secure Boot"), (self.vtpm, "the vTPM"), (self.hvci, "HVCI"), (self.credential_guard, "Credential Guard")];
        if self.security_type == SecurityType::Standard
            && let Some((_, part)) = parts.iter().find(|(on, _)| *on)
        {
            return Err(ProfileError::Standard(part));
        }
        if self.credential_guard && !self.secure_boot {
            return Err(ProfileError::CredentialGuard);
        }
        Ok(())
    }

    /// Whether a machine that is like `self` can become like `other`.
    ///
    /// # Errors
    /// [`ProfileError`].
    pub fn change_to(&self, other: &Self) -> Result<(), ProfileError> {
        other.check()?;
        let later = self.security_type == SecurityType::Standard && other.security_type != SecurityType::Standard;
        if later { Err(ProfileError::Later) } else { Ok(()) }
    }

    /// What it is made with, as it says of itself to a verifier.
    pub fn features(&self) -> Features {
        Features { secure_boot: self.secure_boot, vtpm: self.vtpm, hvci: self.hvci, credential_guard: self.credential_guard }
    }

    /// The variables of a machine with this profile: Secure Boot as it says.
    pub fn variables(&self, store: VariableStore) -> VariableStore {
        store.with_secure_boot(self.secure_boot)
    }
}
