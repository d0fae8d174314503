//! What the host approves: with which PCRs the vault's key is released, until it approves others.
//!
//! The approver's key is the host's, derived from what it keeps for itself; the machine's TPM knows its public half by the sealed object's
//! policy. An approval that is newer than the TPM's counter moves the counter, and so revokes every one before it.

use hvci_engine::{
    bytes::array,
    crypto,
    digest::{Digest, DigestAlg},
    vault::{KeeperError, Key},
};
use p256::ecdsa::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use tpm2_protocol::data::TpmCc;
use zeroize::Zeroizing;

use super::{Folder, Host, Machine, VmError, differing};
use crate::{
    measure::EventLog,
    vm::read_known,
    vtpm::client::{Approval, Client, ClientError, CounterIndex, Sealed, counter_name, static_policy},
};
use std::sync::Arc;

const APPROVAL: &str = "vault.approval";
const PENDING: &str = "vault.pending";
/// Counters of the platform's: how often the vault was kept; which approval holds.
pub(super) const GENERATION: u32 = 0x0140_0010;
const APPROVALS: u32 = 0x0140_0011;
/// How far an approval may be ahead of the TPM: it moves one at a time.
const MOST_AHEAD: u64 = 1000;

/// How a machine starts that was refused its key.
#[derive(Debug, Serialize, Deserialize)]
struct Pending {
    pcrs: Vec<u32>,
    values: Vec<Digest>,
}

/// The host's half of sealing.
pub(super) struct Sealing {
    approver: SigningKey,
    password: Zeroizing<[u8; 32]>,
}

impl Sealing {
    pub(super) fn of(machine: &Machine) -> Result<Self, VmError> {
        // of 2²⁵⁶ numbers 2³² are no scalars
        let approver = SigningKey::from_slice(&*machine.derived("vault approver"));
        let approver = approver.map_err(|_| VmError::VaultFile("host.key", "no key of an approver comes of it".to_owned()))?;
        Ok(Self { approver, password: machine.derived("vault counters") })
    }

    pub(super) fn counter(&self, index: u32) -> CounterIndex<'_> {
        CounterIndex { index, password: &self.password }
    }

    fn approver(&self) -> &VerifyingKey {
        self.approver.verifying_key()
    }

    /// What an approval is for: this role, and this counter.
    fn reference(&self) -> [u8; 32] {
        let name = counter_name(self.counter(APPROVALS)).unwrap_or_default();
        array(crypto::digest(DigestAlg::Sha256, &[b"hvci-sim vault key ", &name]).as_bytes(), 0).unwrap_or_default()
    }

    /// Makes the counters if they are not there, and reads the PCRs.
    pub(super) fn prepare(&self, client: &mut Client<'_>, platform_auth: &[u8; 32], pcrs: &[u32]) -> Result<Vec<Digest>, ClientError> {
        for index in [GENERATION, APPROVALS] {
            if client.counter(self.counter(index))?.is_none() {
                client.define_counter(self.counter(index), platform_auth)?;
            }
        }
        client.pcr_values(DigestAlg::Sha256, pcrs)
    }

    /// Seals a key.
    pub(super) fn seal(&self, client: &mut Client<'_>, key: &Key) -> Result<Vec<u8>, ClientError> {
        let policy = static_policy(self.approver(), &self.reference()).ok_or(ClientError::TooLong(TpmCc::Create))?;
        Ok(client.seal(key.as_bytes(), &policy)?.0)
    }

    /// Asks the TPM for the key, if one was sealed.
    pub(super) fn unseal(
        &self,
        client: &mut Client<'_>,
        machine: &Machine,
        sealed: &[u8],
        (pcrs, values): (&[u32], &[Digest]),
    ) -> Option<Result<Key, KeeperError>> {
        if sealed.is_empty() {
            return None;
        }
        let not = |why: String| Err(KeeperError::NotReleased(why));
        let approval = match read::<Approval>(machine, APPROVAL) {
            Ok(Some(approval)) => approval,
            Ok(None) => return Some(not(format!("nothing is approved ({APPROVAL} is not there)"))),
            Err(error) => return Some(not(error.to_string())),
        };
        let moved = self.move_to(client, approval.number);
        let unsealed = moved
            .and_then(|()| client.unseal(&Sealed(sealed.to_vec()), self.approver(), &self.reference(), self.counter(APPROVALS), &approval));
        Some(match unsealed {
            Ok(secret) => Key::new(&secret).ok_or_else(|| KeeperError::Lost("what was sealed is no key".to_owned())),
            Err(ClientError::Refused { command: TpmCc::Load, .. }) => {
                Err(KeeperError::Lost("it was sealed by another TPM, or before this one was cleared".to_owned()))
            }
            Err(ClientError::Refused { command: TpmCc::PolicyNv, .. }) => {
                not("what was approved is revoked by a newer approval".to_owned())
            }
            Err(ClientError::Refused { command: TpmCc::VerifySignature, .. }) => {
                not("what is approved is not signed by this host".to_owned())
            }
            Err(ClientError::Refused { .. }) if approval.pcrs != pcrs || approval.values != values => {
                let differ = differing(pcrs, &approval.values, values);
                not(format!("the machine did not start as it was approved (PCR {differ}); if it is meant, approve it: hvci-sim vm approve"))
            }
            Err(error) => not(error.to_string()),
        })
    }

    /// The number of an approval that holds until there is a newer one.
    pub(super) fn approval_that_holds(&self, client: &mut Client<'_>) -> Result<u64, ClientError> {
        Ok(client.counter(self.counter(APPROVALS))?.unwrap_or_default())
    }

    /// Moves the counter to an approval, which revokes those before it.
    fn move_to(&self, client: &mut Client<'_>, number: u64) -> Result<(), ClientError> {
        let reached = client.counter(self.counter(APPROVALS))?.unwrap_or_default();
        for _ in 0..number.saturating_sub(reached).min(MOST_AHEAD) {
            client.increment(self.counter(APPROVALS))?;
        }
        Ok(())
    }

    /// Approves how a machine starts, instead of what was approved before. The number is the one after that, or the one that is said.
    pub(super) fn approve(&self, machine: &Machine, (pcrs, values): (&[u32], &[Digest]), number: Option<u64>) -> Result<(), VmError> {
        let before = read::<Approval>(machine, APPROVAL)?.map_or(0, |approval| approval.number);
        let number = number.unwrap_or_else(|| before.saturating_add(1));
        let approval = Approval::sign(&self.approver, &self.reference(), self.counter(APPROVALS), (pcrs, values), number);
        let approval = approval.ok_or_else(|| VmError::VaultFile(APPROVAL, "it cannot be signed".to_owned()))?;
        write(machine, APPROVAL, &approval)
    }
}

/// The PCRs that the key is sealed to: Secure Boot, what was started (by unified kernels PCR 11), settings, shim's lists.
pub(super) fn pcrs_of(log: &EventLog<'_>) -> Vec<u32> {
    let unified = log.events.iter().any(|event| event.pcr == 11 && event.is_extended());
    if unified { vec![7, 11, 12, 14] } else { vec![4, 7, 12, 14] }
}

/// Remembers how a machine started that was refused its key, or that it was not.
pub(super) fn remember(machine: &Machine, refused: Option<(&[u32], &[Digest])>) -> Result<(), VmError> {
    match refused {
        Some((pcrs, values)) => write(machine, PENDING, &Pending { pcrs: pcrs.to_vec(), values: values.to_vec() }),
        None => match std::fs::remove_file(machine.folder.path(PENDING)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        },
    }
}

/// Approves how a machine started last, when its vault's key was not released. What was approved before is revoked at its next start.
///
/// # Errors
/// [`VmError::NothingToApprove`]; [`VmError`].
pub fn approve(host: &Host, name: &str) -> Result<Vec<(u32, Digest)>, VmError> {
    let folder: Arc<Folder> = Arc::new(host.open(name)?);
    let known = read_known(&folder)?;
    let machine = Machine::of(host, &folder, &known.endorsement_key)?;
    let Pending { pcrs, values } = read(&machine, PENDING)?.ok_or(VmError::NothingToApprove)?;
    Sealing::of(&machine)?.approve(&machine, (&pcrs, &values), None)?;
    remember(&machine, None)?;
    Ok(pcrs.into_iter().zip(values).collect())
}

fn read<T: for<'de> Deserialize<'de>>(machine: &Machine, file: &'static str) -> Result<Option<T>, VmError> {
    let Some(bytes) = machine.folder.read(file)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| VmError::VaultFile(file, error.to_string()))
}

fn write(machine: &Machine, file: &'static str, content: &impl Serialize) -> Result<(), VmError> {
    let text = serde_json::to_vec_pretty(content).map_err(|error| VmError::VaultFile(file, error.to_string()))?;
    Ok(machine.folder.write(file, &text)?)
}
