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

use super::{Folder, Host, Profile, VmError, tpm, tpm::Device};
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
    pub(super) fn of(host: &Host, folder: &Arc<Folder>, endorsement_key: &[u8]) -> Result<Self, VmError> {
        let secret = Zeroizing::new(host.key(tpm::random)?);
        Ok(Self { host: host.clone(), folder: Arc::clone(folder), endorsement_key: endorsement_key.to_vec(), secret })
    }

    /// A secret of the host's for one purpose and this machine.
    fn derived(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let parts: [&[u8]; 4] = [&*self.secret, purpose.as_bytes(), &[0], self.folder.name().as_bytes()];
        Zeroizing::new(array(crypto::digest(DigestAlg::Sha256, &parts).as_bytes(), 0).unwrap_or_default())
    }

    /// Which machine it is, in its vault: its name and its TPM.
    fn id(&self) -> [u8; 16] {
        let digest = crypto::digest(DigestAlg::Sha256, &[b"hvci-sim vm ", self.folder.name().as_bytes(), &[0], &self.endorsement_key]);
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
        return Ok(Released { sealed, key });
    }
    let sealing = Sealing::of(machine)?;
    let pcrs = approval::pcrs_of(&EventLog::read(log).map_err(|e| VmError::Known(e.to_string()))?);
    let released = device.ask(|client| {
        let values = sealing.prepare(client, platform_auth, &pcrs)?;
        let key = sealing.unseal(client, machine, &sealed, (&pcrs, &values));
        Ok((key, values, sealing.approval_that_holds(client)?))
    })?;
    let Some((key, values, number)) = released else {
        let gone = || KeeperError::NotReleased("the TPM does not answer".to_owned());
        return Ok(Released { key: (!sealed.is_empty()).then(|| Err(gone())), sealed });
    };
    let refused = matches!(key, Some(Err(KeeperError::NotReleased(_))));
    approval::remember(machine, refused.then_some((&pcrs[..], &values[..])))?;
    if matches!(key, None | Some(Err(KeeperError::Lost(_)))) {
        // a new vault: how the machine starts now is how it shall start
        sealing.approve(machine, (&pcrs, &values), Some(number))?;
    }
    Ok(Released { sealed, key })
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
    let done = run(&mut lsa).map_err(VmError::Program)?;
    lsa.vault().commit()?;
    Ok(done)
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
