//! The vault of a machine with Credential Guard: what releases its key, and who keeps it while the machine is off.
//!
//! ```text
//! settings measured ─► key released, if PCRs 7, 4 or 11, 12, 14 are as approved ─► boundary measured: not again in this boot
//! ```
//!
//! With a TPM the key is sealed to it, under what the host approves ([`approval`]); without one the host's own key seals it. The first
//! start of a machine is approved as it is; a later one that differs is not, until its owner [approves](approve) it.

mod approval;
mod keepers;

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use hvci_engine::{
    bytes::array,
    crypto,
    digest::{Digest, DigestAlg},
    time::UnixTime,
    vault::{Keeper, KeeperError, Key, Vault},
};
use zeroize::Zeroizing;

pub use approval::approve;
use approval::{GENERATION, Sealing};
use keepers::{HostKeeper, TpmKeeper};

use super::{Folder, Host, Profile, VmError, known::Known, tpm, tpm::Device};
use crate::{
    lsa::{Lsa, Options},
    measure::EventLog,
};

const STORE: &str = "vault.store";

/// The machine whose vault it is.
#[derive(Clone)]
pub(super) struct Machine {
    host: Host,
    folder: Arc<Folder>,
    endorsement_key: Vec<u8>,
    /// What tells it from an earlier machine of its name.
    made: String,
    /// What the host keeps for itself.
    secret: Zeroizing<[u8; 32]>,
}

/// What came of asking for the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// There is none yet.
    New,
    /// It was released.
    Released,
    /// It was not, and may be later.
    NotReleased(String),
    /// What it opened is lost.
    Lost(String),
}

/// The key as it was released before the boundary, with the form that it was sealed in.
#[derive(Clone)]
pub(super) struct Released {
    sealed: Vec<u8>,
    key: Option<Result<Key, KeeperError>>,
    /// How the machine started: a new key is released when it starts so again.
    pcrs: Vec<u32>,
    values: Vec<Digest>,
}

impl std::fmt::Debug for Released {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Released").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Released {
    pub(super) fn state(&self) -> KeyState {
        match &self.key {
            None => KeyState::New,
            Some(Ok(_)) => KeyState::Released,
            Some(Err(KeeperError::Lost(why))) => KeyState::Lost(why.clone()),
            Some(Err(error)) => KeyState::NotReleased(error.to_string()),
        }
    }

    /// The key for what was sealed so.
    fn key_of(&self, sealed: &[u8]) -> Result<Key, KeeperError> {
        match &self.key {
            Some(released) if self.sealed == sealed => released.clone(),
            _ => Err(KeeperError::NotReleased("it was not asked for when the machine started".to_owned())),
        }
    }
}

impl Machine {
    pub(super) fn of(host: &Host, folder: &Arc<Folder>, known: &Known) -> Result<Self, VmError> {
        let secret = Zeroizing::new(host.key(tpm::random)?);
        let Known { endorsement_key, id, .. } = known;
        Ok(Self { host: host.clone(), folder: Arc::clone(folder), endorsement_key: endorsement_key.clone(), made: id.clone(), secret })
    }

    /// A secret of the host's for one purpose and this machine.
    fn derived(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let parts: [&[u8]; 4] = [&*self.secret, purpose.as_bytes(), &[0], self.folder.name().as_bytes()];
        Zeroizing::new(array(crypto::digest(DigestAlg::Sha256, &parts).as_bytes(), 0).unwrap_or_default())
    }

    /// Which machine it is, in its vault: its name, which of that name, and its TPM.
    fn id(&self) -> [u8; 16] {
        let (name, made) = (self.folder.name().as_bytes(), self.made.as_bytes());
        let digest = crypto::digest(DigestAlg::Sha256, &[b"hvci-sim vm ", name, &[0], made, &[0], &self.endorsement_key]);
        array(digest.as_bytes(), 0).unwrap_or_default()
    }

    fn store(&self) -> Result<Option<Vec<u8>>, VmError> {
        Ok(self.folder.read(STORE)?)
    }
}

/// Asks for the key of a machine's vault, which is released now or not in this boot.
pub(super) fn release(
    machine: &Machine,
    vtpm: bool,
    device: &mut Device,
    platform_auth: &[u8; 32],
    log: &[u8],
) -> Result<Released, VmError> {
    let store = machine.store()?;
    let sealed = store.as_deref().and_then(Vault::sealed_key).unwrap_or_default().to_vec();
    if !vtpm {
        let key = (!sealed.is_empty()).then(|| keepers::unseal_by_host(machine, &sealed));
        return Ok(Released { sealed, key, pcrs: Vec::new(), values: Vec::new() });
    }
    let sealing = Sealing::of(machine)?;
    let pcrs = approval::pcrs_of(&EventLog::read(log).map_err(|e| VmError::Known(e.to_string()))?);
    let prepared = device.ask(|client| Ok((sealing.prepare(client, platform_auth, &pcrs)?, sealing.reached(client)?)))?;
    let not = |why: &str| Some(Err(KeeperError::NotReleased(why.to_owned())));
    let Some((values, reached)) = prepared else {
        let key = if sealed.is_empty() { None } else { not("the TPM does not answer") };
        return Ok(Released { sealed, key, pcrs, values: Vec::new() });
    };
    approval::nothing_pending(machine)?;
    if sealed.is_empty() {
        return Ok(Released { sealed, key: None, pcrs, values });
    }
    let Some(kept) = sealing.kept(&sealed) else {
        let key = not("the sealed key in vault.store is not as this host wrote it");
        return Ok(Released { key, sealed, pcrs, values });
    };
    let key = match sealing.approval_of(machine, &kept) {
        Err(error) => Err(error),
        Ok(approved) => {
            // an older approval is revoked for good before anything comes of the newer one
            if device.ask(|client| sealing.move_to(client, &approved))? == Some(true)
                && let Some(tpm) = device.tpm()
            {
                tpm::save(&machine.host, &machine.folder, tpm, &machine.endorsement_key)?;
            }
            let released = device.ask(|client| Ok(sealing.unseal(client, &kept, &approved, (&pcrs, &values))))?;
            released.unwrap_or_else(|| Err(KeeperError::NotReleased("the TPM does not answer".to_owned())))
        }
    };
    if matches!(key, Err(KeeperError::NotReleased(_))) {
        sealing.remember(machine, &kept, (&pcrs, &values), reached)?;
    }
    Ok(Released { key: Some(key), sealed, pcrs, values })
}

/// Runs the program that uses credentials, with the machine's vault.
pub(super) fn with_credentials<T>(
    machine: &Machine,
    profile: &Profile,
    released: &Released,
    device: &Arc<Mutex<Device>>,
    time: UnixTime,
    run: impl FnOnce(&mut Lsa) -> anyhow::Result<T>,
) -> Result<T, VmError> {
    let released = released.clone();
    let keeper: Box<dyn Keeper> = if profile.vtpm {
        Box::new(TpmKeeper::new(machine.clone(), Arc::clone(device), released, Sealing::of(machine)?))
    } else {
        Box::new(HostKeeper::new(machine.clone(), released))
    };
    let options = Options { vm: machine.id(), policy: profile.vault.clone(), keeper: Some(keeper), time };
    let mut lsa = Lsa::boot(options).map_err(|error| match error.downcast() {
        Ok(refused) => VmError::Vault(refused),
        Err(error) => VmError::Program(error),
    })?;
    let done = run(&mut lsa);
    lsa.vault().commit()?;
    done.map_err(VmError::Program)
}

/// Where the host counts for a machine without a TPM.
fn counter_path(host: &Host, name: &str) -> PathBuf {
    host.root().join(format!("{name}.vault-counter"))
}

/// Forgets what the host counted for a machine that is gone.
pub(super) fn forget(host: &Host, name: &str) -> Result<(), VmError> {
    match fs::remove_file(counter_path(host, name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// What differs from what was approved, for people.
fn differing(pcrs: &[u32], approved: &[Digest], values: &[Digest]) -> String {
    let differ: Vec<String> =
        pcrs.iter().zip(approved.iter().zip(values)).filter(|(_, (a, b))| a != b).map(|(pcr, _)| pcr.to_string()).collect();
    differ.join(", ")
}
