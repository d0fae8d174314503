//! The TPM of a machine while it is off: sealed on disk, in the host's ledger; and taken up again when it starts.
//!
//! A save is crash-safe in this order: the sealed state beside the old one, the ledger that knows it, the rename. Whichever step was the last,
//! the state that the ledger knows is there under one of the two names.

use std::{fs, path::Path};

use hvci_engine::digest::Digest;

use super::{
    VmError,
    folder::{Folder, Host},
};
use crate::{
    measure::record::Extend,
    vtpm::{
        Backend, Tpm, TpmFailed,
        client::{Client, ClientError},
        ledger::{Entry, LedgerError},
        manufacture, sealed_state,
    },
};

const SEALED: &str = "tpm.sealed";
const NEXT: &str = "tpm.sealed.next";

/// The TPM of a machine that is on, for as long as it answers. Where it does not, the machine runs on without, as firmware lets it (edk2,
/// `SecurityPkg/Tcg/Tcg2Dxe/Tcg2Dxe.c`), and no other machine is touched.
#[derive(Debug, Default)]
pub(super) struct Device {
    tpm: Option<Box<dyn Tpm>>,
    failure: Option<TpmFailed>,
}

impl Device {
    /// A TPM that is reset and started; nobody but the host is told the platform's password.
    pub(super) fn power_on(tpm: Box<dyn Tpm>, platform_auth: &[u8; 32]) -> Result<Self, VmError> {
        let mut device = Self { tpm: Some(tpm), failure: None };
        device.ask(|client| client.power_on(platform_auth))?;
        Ok(device)
    }

    /// Asks it; `None` where there is none, or none any more.
    pub(super) fn ask<T>(&mut self, ask: impl FnOnce(&mut Client<'_>) -> Result<T, ClientError>) -> Result<Option<T>, VmError> {
        let Some(tpm) = &mut self.tpm else { return Ok(None) };
        let asked = ask(&mut Client::new(tpm.as_mut())).map(Some).map_err(VmError::from);
        self.survives(asked)
    }

    /// What was done with it: that it failed is written down, and no error of the machine.
    pub(super) fn survives<T: Default>(&mut self, done: Result<T, VmError>) -> Result<T, VmError> {
        match done {
            Err(VmError::Tpm(failure) | VmError::Client(ClientError::Failed(failure))) => {
                self.tpm = None;
                self.failure = Some(failure);
                Ok(T::default())
            }
            other => other,
        }
    }

    pub(super) fn tpm(&mut self) -> Option<&mut (dyn Tpm + 'static)> {
        self.tpm.as_deref_mut()
    }

    /// How it failed.
    pub(super) fn failure(&self) -> Option<&TpmFailed> {
        self.failure.as_ref()
    }
}

impl Extend for Device {
    fn extend(&mut self, pcr: u32, digests: &[Digest]) -> Result<(), String> {
        self.ask(|client| client.pcr_extend(pcr, digests)).map(drop).map_err(|e| e.to_string())
    }
}

/// The machine's TPM as it was saved, and which save that is.
pub(super) fn take_up(host: &Host, folder: &Folder, backend: Backend, program: &Path) -> Result<(Box<dyn Tpm>, Entry), VmError> {
    let key = host.key(random)?;
    let ledger = host.ledger(|ledger| Ok::<_, VmError>(ledger.clone()))?;
    let read = |file: &str| -> Result<Option<Saved>, VmError> {
        let Some(sealed) = folder.read(file)? else { return Ok(None) };
        let opened = sealed_state::open(&key, folder.name(), &sealed)?;
        Ok(Some(Saved { entry: ledger.check(folder.name(), &opened.state), state: opened.state.to_vec() }))
    };
    // one that a crash left beside is the last, if the ledger has it
    if let Ok(Some(Saved { state, entry: Ok(entry) })) = read(NEXT) {
        fs::rename(folder.path(NEXT), folder.path(SEALED)).map_err(VmError::Io)?;
        return loaded(backend, program, &state, entry);
    }
    let Saved { state, entry } = read(SEALED)?.ok_or(VmError::NoTpm)?;
    loaded(backend, program, &state, entry?)
}

/// A state that was opened, and what the ledger says of it.
struct Saved {
    state: Vec<u8>,
    entry: Result<Entry, LedgerError>,
}

fn loaded(backend: Backend, program: &Path, state: &[u8], entry: Entry) -> Result<(Box<dyn Tpm>, Entry), VmError> {
    let mut tpm = manufacture(backend, program)?;
    tpm.load(state)?;
    Ok((tpm, entry))
}

/// Stops the machine's TPM in order, and saves it.
pub(super) fn keep(host: &Host, folder: &Folder, tpm: &mut dyn Tpm, endorsement_key: &[u8]) -> Result<(), VmError> {
    let mut client = Client::new(tpm);
    if client.shutdown().is_err() {
        // whoever was served it may have reset it, and not started it again
        client.startup()?;
        client.shutdown()?;
    }
    save(host, folder, tpm, endorsement_key)
}

/// Saves the machine's TPM as it is, while it runs: what it counted is not forgotten if the host stops now.
pub(super) fn save(host: &Host, folder: &Folder, tpm: &mut dyn Tpm, endorsement_key: &[u8]) -> Result<(), VmError> {
    let reset_count = Client::new(tpm).clock()?.reset_count;
    let state = tpm.save()?;
    let key = host.key(random)?;
    host.ledger(|ledger| {
        let entry = ledger.record(folder.name(), endorsement_key, &state, reset_count)?;
        folder.write(NEXT, &sealed_state::seal(&key, folder.name(), entry.sequence, &state)?)?;
        Ok::<_, VmError>(())
    })?;
    fs::rename(folder.path(NEXT), folder.path(SEALED)).map_err(VmError::Io)
}

/// From the host's system.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand_core::RngCore::fill_bytes(&mut rand_core::OsRng, &mut bytes);
    bytes
}
