//! Who keeps a machine's vault: its TPM and a file, or the host alone.

use std::{
    fs, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hvci_engine::vault::{Keeper, KeeperError, Key};
use zeroize::Zeroizing;

use super::{Device, GENERATION, Machine, Released, STORE, Sealing, VmError, counter_path};
use crate::{
    vm::{folder::replace, tpm},
    vtpm::{
        client::{Client, ClientError},
        sealed_state,
    },
};

/// With a TPM: the key is sealed to it, and it counts.
pub(super) struct TpmKeeper {
    machine: Machine,
    device: Arc<Mutex<Device>>,
    released: Released,
    sealing: Sealing,
    /// The TPM has counted what is not saved.
    unsaved: bool,
}

impl TpmKeeper {
    pub(super) fn new(machine: Machine, device: Arc<Mutex<Device>>, released: Released, sealing: Sealing) -> Self {
        Self { machine, device, released, sealing, unsaved: false }
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the TPM counted is not forgotten from here on.
    fn save(&mut self) -> Result<(), KeeperError> {
        if self.unsaved {
            let Machine { host, folder, endorsement_key, .. } = &self.machine;
            if let Some(tpm) = self.device().tpm() {
                tpm::save(host, folder, tpm, endorsement_key).map_err(failed)?;
            }
            self.unsaved = false;
        }
        Ok(())
    }

    fn ask<T>(&self, ask: impl FnOnce(&mut Client<'_>) -> Result<T, ClientError>) -> Result<T, KeeperError> {
        let asked = self.device().ask(ask).map_err(failed)?;
        asked.ok_or_else(|| KeeperError::Io("the TPM does not answer".to_owned()))
    }
}

impl Keeper for TpmKeeper {
    fn read(&mut self) -> Result<Option<Vec<u8>>, KeeperError> {
        self.machine.store().map_err(failed)
    }

    fn replace(&mut self, bytes: &[u8]) -> Result<(), KeeperError> {
        replace_store(&self.machine, bytes, &self.released)
    }

    fn counter(&mut self) -> Result<u64, KeeperError> {
        // a count that a crash undoes is none
        self.save()?;
        let reached = self.ask(|client| client.counter(self.sealing.counter(GENERATION)))?;
        reached.ok_or_else(|| KeeperError::Io("the TPM's counter is gone".to_owned()))
    }

    fn advance(&mut self, to: u64) -> Result<(), KeeperError> {
        let moved = self.ask(|client| {
            let reached = client.counter(self.sealing.counter(GENERATION))?.unwrap_or(to);
            // one at a time: a vault is never more than one ahead
            (reached < to).then(|| client.increment(self.sealing.counter(GENERATION))).transpose()
        })?;
        self.unsaved |= moved.is_some();
        self.save()
    }

    fn seal(&mut self, key: &Key) -> Result<Vec<u8>, KeeperError> {
        let pcrs = (&self.released.pcrs[..], &self.released.values[..]);
        let sealed = self.ask(|client| Ok(self.sealing.seal(client, &self.machine, key, pcrs)))?;
        sealed.map_err(failed)
    }

    fn unseal(&mut self, sealed: &[u8]) -> Result<Key, KeeperError> {
        self.released.key_of(sealed)
    }
}

/// Without one: the host's own key seals, and the host counts, beside its machines.
pub(super) struct HostKeeper {
    machine: Machine,
    released: Released,
}

impl HostKeeper {
    pub(super) const fn new(machine: Machine, released: Released) -> Self {
        Self { machine, released }
    }
}

impl Keeper for HostKeeper {
    fn read(&mut self) -> Result<Option<Vec<u8>>, KeeperError> {
        self.machine.store().map_err(failed)
    }

    fn replace(&mut self, bytes: &[u8]) -> Result<(), KeeperError> {
        replace_store(&self.machine, bytes, &self.released)
    }

    fn counter(&mut self) -> Result<u64, KeeperError> {
        let path = counter_path(&self.machine.host, self.machine.folder.name());
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| KeeperError::Io(format!("{}: this is no number", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(KeeperError::Io(format!("{}: {error}", path.display()))),
        }
    }

    fn advance(&mut self, to: u64) -> Result<(), KeeperError> {
        if self.counter()? >= to {
            return Ok(());
        }
        let path = counter_path(&self.machine.host, self.machine.folder.name());
        replace(&path, to.to_string().as_bytes(), 0o600).map_err(|error| KeeperError::Io(error.to_string()))
    }

    fn seal(&mut self, key: &Key) -> Result<Vec<u8>, KeeperError> {
        let name = sealed_name(&self.machine);
        sealed_state::seal(&self.machine.derived("vault key"), &name, 0, key.as_bytes()).map_err(|error| KeeperError::Io(error.to_string()))
    }

    fn unseal(&mut self, sealed: &[u8]) -> Result<Key, KeeperError> {
        self.released.key_of(sealed)
    }
}

/// A key that the host sealed.
pub(super) fn unseal_by_host(machine: &Machine, sealed: &[u8]) -> Result<Key, KeeperError> {
    let opened = sealed_state::open(&machine.derived("vault key"), &sealed_name(machine), sealed);
    let lost = || KeeperError::Lost("the host has another key now, or the TPM that it was sealed to is off".to_owned());
    let state = Zeroizing::new(opened.map_err(|_| lost())?.state);
    Key::new(&state).ok_or_else(lost)
}

fn sealed_name(machine: &Machine) -> String {
    format!("{} vault", machine.folder.name())
}

/// What cannot be opened any more is put aside before another takes its place.
fn replace_store(machine: &Machine, bytes: &[u8], released: &Released) -> Result<(), KeeperError> {
    if matches!(released.key, Some(Err(KeeperError::Lost(_)))) {
        let (from, to) = (machine.folder.path(STORE), machine.folder.path("vault.lost"));
        if !to.exists() {
            fs::copy(from, to).map_err(|error| KeeperError::Io(error.to_string()))?;
        }
    }
    machine.folder.write(STORE, bytes).map_err(failed)
}

fn failed(error: impl Into<VmError>) -> KeeperError {
    KeeperError::Io(error.into().to_string())
}
