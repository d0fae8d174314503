//! Trusted Launch machines: made with a profile, started from their own disk, measured, attested.
//!
//! ```text
//! create   profile + image + variables ─► folder, a new TPM, its keys, reference values of the start that is predicted
//! start    TPM from its seal ─► boot ─► drivers ─► measured ─► quote ─► evidence ─► Verifier (host's knowledge, reference) ─► health, alerts
//! ```
//!
//! The guest's parts ([`boot`](crate::boot), the TPM behind its commands) and the verifier share nothing but the evidence, a nonce, and what the
//! host knows by itself. **Invariant:** whatever happens, the machine on disk is as before a start or as after it.

mod attested;
mod drivers;
mod folder;
mod known;
mod profile;
mod refused;
mod start;
mod tpm;
mod vault;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use hvci_engine::time::UnixTime;

pub use attested::quoted;
pub use folder::{Folder, FolderError, Host};
pub use known::reference;
pub use profile::{Guest, Profile, ProfileError, Rules, SecurityType};
pub use start::{Options, Running, Started, start};
pub use vault::{KeyState, approve};

use crate::{
    attest::{
        Baseline, Machine, ReferenceError,
        evidence::EvidenceError,
        quote::{AttestationKey, KeyProblem},
    },
    boot::{Disk, Fault, boot},
    firmware::{
        Refused,
        flash::{Flash, FlashError},
    },
    measure::EventLog,
    vtpm::{
        TpmFailed,
        client::{Client, ClientError, KeyUse},
        ledger::LedgerError,
        manufacture,
        sealed_state::SealedStateError,
    },
};
use known::Known;

/// Why something cannot be done with a machine.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Its folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// Its disk, or another file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its variables.
    #[error("its variables")]
    Flash(#[from] FlashError),
    /// Its variables cannot be written.
    #[error("its variables")]
    Variables(#[from] Refused),
    /// Its boot could not be told to its end.
    #[error(transparent)]
    Boot(#[from] Fault),
    /// Its TPM.
    #[error(transparent)]
    Tpm(#[from] TpmFailed),
    /// Its TPM, asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its TPM's key is none that attests.
    #[error("its TPM's attestation key")]
    Key(#[from] KeyProblem),
    /// Its TPM's state.
    #[error("its TPM's state")]
    Sealed(#[from] SealedStateError),
    /// Its TPM's state is not the one that it was last saved with.
    #[error("its TPM is not started")]
    Ledger(#[from] LedgerError),
    /// Its TPM's state is gone.
    #[error("its TPM's state is not in its folder: a new one would have other keys; make the machine again")]
    NoTpm,
    /// What the host knows of it cannot be read.
    #[error("host.json: {0}")]
    Known(String),
    /// Its reference values.
    #[error("reference.toml")]
    Reference(#[from] ReferenceError),
    /// Its evidence.
    #[error("its evidence")]
    Evidence(#[from] EvidenceError),
    /// Whoever challenges it does not.
    #[error("no challenge: {0}")]
    Challenge(String),
    /// Its credentials.
    #[error("its credentials")]
    Vault(#[from] hvci_engine::vault::VaultError),
    /// It has no credentials that are guarded.
    #[error("it keeps no credentials: it has no Credential Guard, or did not start")]
    NoVault,
    /// There is nothing to approve.
    #[error("there is nothing to approve: its vault's key was released when it last started, or it was never asked for")]
    NothingToApprove,
    /// What is beside its vault cannot be read.
    #[error("{0}: {1}")]
    VaultFile(&'static str, String),
    /// The program that uses credentials.
    #[error("{0:#}")]
    Program(anyhow::Error),
    /// Its simulated guest.
    #[error("its guest: {0}")]
    Guest(String),
}

/// What a machine is made from.
#[derive(Clone, Debug)]
pub struct Sources<'s> {
    /// A folder with a system partition, or with Debian's packages.
    pub image: &'s Path,
    /// OVMF's variables.
    pub variables: Vec<u8>,
    /// Drivers that its operating system loads.
    pub drivers: &'s [PathBuf],
    /// This program, which a worker is started from.
    pub program: &'s Path,
}

/// Makes a machine.
///
/// # Errors
/// [`VmError`]; there is then no such machine.
pub fn create(host: &Host, name: &str, profile: &Profile, sources: &Sources<'_>) -> Result<(), VmError> {
    profile.check()?;
    let mut disk = Disk::of_folder(sources.image)?;
    for driver in sources.drivers {
        let file = driver.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        disk.insert(&format!("/drivers/{file}"), fs::read(driver)?);
    }
    let flash = Flash::read(sources.variables.clone())?;
    let mut variables = profile.variables(flash.variables().clone());
    host.create(name, profile, |folder| {
        disk.write_to(&folder.path("disk"))?;
        folder.write("vars.fd", &flash.with(&variables)?)?;
        // as it will be: the owner's own files are what he wants to see started
        let predicted = boot(start::machine(profile, &disk, &mut variables, &start::BANKS), &mut ())?;
        let log = EventLog::read(&predicted.log).map_err(|e| VmError::Known(e.to_string()))?;
        folder.write("reference.toml", reference(&predicted, &log).as_bytes())?;
        let id = hex::encode(tpm::random::<16>());
        let mut known = Known { ak_name: Vec::new(), endorsement_key: Vec::new(), id, baseline: Baseline::of(&log) };
        if profile.vtpm {
            let mut tpm = manufacture(profile.tpm, sources.program)?;
            let mut client = Client::new(tpm.as_mut());
            client.startup()?;
            let endorsement = client.create_primary(KeyUse::Endorsement)?;
            client.flush(endorsement.handle)?;
            let attestation = client.create_primary(KeyUse::Attestation)?;
            client.flush(attestation.handle)?;
            known.ak_name = AttestationKey::read(&attestation.public)?.name().to_vec();
            known.endorsement_key = endorsement.public;
            // of a machine of this name that was cut off while it was made or deleted
            forget(host, name)?;
            tpm::keep(host, folder, tpm.as_mut(), &known.endorsement_key)?;
        }
        let text = serde_json::to_vec_pretty(&known).map_err(|e| VmError::Known(e.to_string()))?;
        Ok::<_, VmError>(folder.write("host.json", &text)?)
    })?;
    Ok(())
}

/// Changes what a machine is made with.
///
/// # Errors
/// [`VmError`]: among them that Trusted Launch cannot be had later, and that a TPM is made with the machine alone.
pub fn change(host: &Host, name: &str, change: impl FnOnce(&mut Profile)) -> Result<Profile, VmError> {
    let folder = host.open(name)?;
    let old = folder.profile()?;
    let mut profile = old.clone();
    change(&mut profile);
    old.change_to(&profile)?;
    // what was made with one still has it
    if profile.vtpm && !old.vtpm && !folder.path("tpm.sealed").exists() {
        return Err(VmError::NoTpm);
    }
    // its variables, and what a verifier is told, follow at its next start
    folder.write_profile(&profile)?;
    Ok(profile)
}

/// What a verifier must be told of a machine before it starts the next time.
///
/// # Errors
/// [`VmError`].
pub fn next_start(host: &Host, name: &str) -> Result<Machine, VmError> {
    let folder = host.open(name)?;
    let last = host.ledger(|ledger| Ok::<_, VmError>(ledger.newest(name)))?.map_or(0, |entry| entry.reset_count);
    Ok(read_known(&folder)?.machine(&folder.profile()?, last.saturating_add(1)))
}

/// Removes a machine, and its TPM from the ledger.
///
/// # Errors
/// [`VmError`].
pub fn delete(host: &Host, name: &str) -> Result<(), VmError> {
    host.delete(name)?;
    forget(host, name)
}

/// Takes a machine that is not there out of the ledger.
fn forget(host: &Host, name: &str) -> Result<(), VmError> {
    host.ledger(|ledger| {
        // one without a TPM is not in it
        drop(ledger.remove(name));
        Ok::<_, VmError>(())
    })?;
    vault::forget(host, name)
}

fn read_flash(folder: &Folder) -> Result<Flash, VmError> {
    Ok(Flash::read(folder.read("vars.fd")?.unwrap_or_default())?)
}

fn read_known(folder: &Folder) -> Result<Known, VmError> {
    let bytes = folder.read("host.json")?.unwrap_or_default();
    serde_json::from_slice(&bytes).map_err(|e| VmError::Known(e.to_string()))
}

/// The time by the host's clock.
///
/// # Errors
/// It stands before 1970.
pub fn now() -> Result<UnixTime, VmError> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = since.map_err(|_| VmError::Known("the clock stands before 1970".to_owned()))?.as_secs();
    Ok(UnixTime(i64::try_from(seconds).unwrap_or(i64::MAX)))
}
