//! What the host approves: with which PCRs the vault's key is released, until it approves others.
//!
//! The approver's key is the host's, derived from what it keeps for itself; the machine's TPM knows its public half by the sealed object's
//! policy. An approval is for one key of one vault: that of a new vault releases no other. One that is newer than the TPM's counter moves the
//! counter, and so revokes every one before it. Files beside the vault are believed when they are the host's by signature or MAC.

use std::sync::Arc;

use hmac::{Hmac, Mac};
use hvci_engine::{
    bytes::array,
    crypto,
    digest::{Digest, DigestAlg},
    vault::{KeeperError, Key},
};
use p256::ecdsa::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tpm2_protocol::data::TpmCc;
use zeroize::Zeroizing;

use super::{Folder, Host, Machine, VmError, differing};
use crate::{
    measure::EventLog,
    vm::{read_known, tpm},
    vtpm::client::{Approval, Client, ClientError, CounterIndex, Sealed, Terms, counter_name, static_policy},
};

const APPROVALS: &str = "vault.approval";
const PENDING: &str = "vault.pending";
/// Counters of the platform's: how often the vault was kept; which approval holds.
pub(super) const GENERATION: u32 = 0x0140_0010;
const APPROVED: u32 = 0x0140_0011;
/// How far an approval may be ahead of the TPM: it moves one at a time.
const MOST_AHEAD: u64 = 1000;
/// Approvals that are remembered: of the key that is kept, and of one that is about to be.
const MOST_APPROVALS: usize = 4;
/// TPM_RC_INTEGRITY, of whichever parameter.
const INTEGRITY: u32 = 0x09F;
const PARAMETER_BITS: u32 = 0xF40;

/// An approval, and of which key.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct OfKey {
    key: String,
    approval: Approval,
}

/// How a machine started that was refused its key, and how far its approvals were.
#[derive(Debug, Serialize, Deserialize)]
struct Pending {
    key: String,
    pcrs: Vec<u32>,
    values: Vec<Digest>,
    counter: u64,
    mac: String,
}

/// A key as it is kept: which one, the host's word for that, and what the TPM made of it.
pub(super) struct KeptKey<'s> {
    id: [u8; 16],
    sealed: &'s [u8],
}

/// PCRs and their values.
pub(super) type Pcrs<'p> = (&'p [u32], &'p [Digest]);

/// The host's half of sealing.
pub(super) struct Sealing {
    approver: SigningKey,
    password: Zeroizing<[u8; 32]>,
    mac: Zeroizing<[u8; 32]>,
    vm: [u8; 16],
}

impl Sealing {
    pub(super) fn of(machine: &Machine) -> Result<Self, VmError> {
        // of 2²⁵⁶ numbers 2³² are no scalars
        let approver = SigningKey::from_slice(&*machine.derived("vault approver"));
        let approver = approver.map_err(|_| VmError::VaultFile("host.key", "no key of an approver comes of it".to_owned()))?;
        let (password, mac) = (machine.derived("vault counters"), machine.derived("vault files"));
        Ok(Self { approver, password, mac, vm: machine.id() })
    }

    pub(super) fn counter(&self, index: u32) -> CounterIndex<'_> {
        CounterIndex { index, password: &self.password }
    }

    fn approver(&self) -> &VerifyingKey {
        self.approver.verifying_key()
    }

    /// What an approval is for: this role, this counter, this key.
    fn reference(&self, key: &[u8; 16]) -> [u8; 32] {
        let name = counter_name(self.counter(APPROVED)).unwrap_or_default();
        array(crypto::digest(DigestAlg::Sha256, &[b"hvci-sim vault key ", &name, key]).as_bytes(), 0).unwrap_or_default()
    }

    fn terms<'t>(&'t self, reference: &'t [u8; 32]) -> Terms<'t> {
        Terms { reference, counter: self.counter(APPROVED) }
    }

    fn mac_of(&self, parts: &[&[u8]]) -> Vec<u8> {
        self.mac(parts).finalize().into_bytes().to_vec()
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        // cannot fail: a key of any length is one
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&*self.mac)
            .unwrap_or_else(|_| <Hmac<Sha256> as hmac::digest::KeyInit>::new(&[0; 64].into()));
        mac.update(&self.vm);
        for part in parts {
            mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            mac.update(part);
        }
        mac
    }

    /// Reads how a key is kept: `None` for what is not as the host wrote it.
    pub(super) fn kept<'s>(&self, bytes: &'s [u8]) -> Option<KeptKey<'s>> {
        let (id, rest) = bytes.split_first_chunk::<16>()?;
        let (mac, sealed) = rest.split_at_checked(32)?;
        self.mac(&[b"key", id, sealed]).verify_slice(mac).ok()?;
        Some(KeptKey { id: *id, sealed })
    }

    /// Makes the counters if they are not there, and reads the PCRs.
    pub(super) fn prepare(&self, client: &mut Client<'_>, platform_auth: &[u8; 32], pcrs: &[u32]) -> Result<Vec<Digest>, ClientError> {
        for index in [GENERATION, APPROVED] {
            if client.counter(self.counter(index))?.is_none() {
                client.define_counter(self.counter(index), platform_auth)?;
            }
        }
        client.pcr_values(DigestAlg::Sha256, pcrs)
    }

    /// Seals a key, which is a new one, and approves that it is released at a start with these PCRs.
    pub(super) fn seal(&self, client: &mut Client<'_>, machine: &Machine, key: &Key, pcrs: Pcrs<'_>) -> Result<Vec<u8>, VmError> {
        let id = tpm::random::<16>();
        let reference = self.reference(&id);
        let policy = static_policy(self.approver(), &reference).ok_or(ClientError::TooLong(TpmCc::Create))?;
        let sealed = client.seal(key.as_bytes(), &policy)?.0;
        let number = client.counter(self.counter(APPROVED))?.unwrap_or_default();
        self.approve(machine, &id, pcrs, number)?;
        let mac = self.mac_of(&[b"key", &id, &sealed]);
        Ok([&id[..], &mac, &sealed].concat())
    }

    /// The approval of a key, if there is one that is the host's.
    pub(super) fn approval_of(&self, machine: &Machine, kept: &KeptKey<'_>) -> Result<Approval, KeeperError> {
        let not = |why: String| KeeperError::NotReleased(why);
        let all = read::<Vec<OfKey>>(machine, APPROVALS).map_err(|error| not(error.to_string()))?.unwrap_or_default();
        let id = hex::encode(kept.id);
        let found = all.into_iter().find(|of| of.key == id).map(|of| of.approval);
        let approval = found.ok_or_else(|| not(format!("nothing is approved for it in {APPROVALS}")))?;
        let reference = self.reference(&kept.id);
        if approval.is_by(self.approver(), self.terms(&reference)) {
            Ok(approval)
        } else {
            Err(not("what is approved is not signed by this host".to_owned()))
        }
    }

    /// Moves the counter to an approval that is the host's, which revokes those before it. Whether it moved.
    pub(super) fn move_to(&self, client: &mut Client<'_>, approval: &Approval) -> Result<bool, ClientError> {
        let reached = client.counter(self.counter(APPROVED))?.unwrap_or_default();
        let behind = approval.number.saturating_sub(reached).min(MOST_AHEAD);
        (0..behind).try_for_each(|_| client.increment(self.counter(APPROVED)))?;
        Ok(behind > 0)
    }

    /// Asks the TPM for a key.
    pub(super) fn unseal(
        &self,
        client: &mut Client<'_>,
        kept: &KeptKey<'_>,
        approval: &Approval,
        (pcrs, values): Pcrs<'_>,
    ) -> Result<Key, KeeperError> {
        let not = |why: String| Err(KeeperError::NotReleased(why));
        let reference = self.reference(&kept.id);
        match client.unseal(&Sealed(kept.sealed.to_vec()), self.approver(), self.terms(&reference), approval) {
            Ok(secret) => Key::new(&secret).ok_or_else(|| KeeperError::Lost("what was sealed is no key".to_owned())),
            Err(ClientError::Refused { command: TpmCc::Load, code }) if code & !PARAMETER_BITS == INTEGRITY => {
                Err(KeeperError::Lost("it was sealed by another TPM, or before this one was cleared".to_owned()))
            }
            Err(ClientError::Refused { command: TpmCc::PolicyNv, .. }) => {
                not("what was approved is revoked by a newer approval".to_owned())
            }
            Err(ClientError::Refused { .. }) if approval.pcrs != pcrs || approval.values != values => {
                let differ = differing(pcrs, &approval.values, values);
                not(format!("the machine did not start as it was approved (PCR {differ}); if it is meant, approve it: hvci-sim vm approve"))
            }
            Err(error) => not(error.to_string()),
        }
    }

    /// How far the approvals are.
    pub(super) fn reached(&self, client: &mut Client<'_>) -> Result<u64, ClientError> {
        Ok(client.counter(self.counter(APPROVED))?.unwrap_or_default())
    }

    /// Approves how a machine starts, for this key, until there is a later approval.
    fn approve(&self, machine: &Machine, key: &[u8; 16], pcrs: Pcrs<'_>, number: u64) -> Result<(), VmError> {
        let (id, reference) = (hex::encode(key), self.reference(key));
        let approval = Approval::sign(&self.approver, self.terms(&reference), pcrs, number);
        let approval = approval.ok_or_else(|| VmError::VaultFile(APPROVALS, "it cannot be signed".to_owned()))?;
        let mut all: Vec<OfKey> = read(machine, APPROVALS)?.unwrap_or_default();
        all.retain(|of| of.key != id);
        all.push(OfKey { key: id, approval });
        let behind = all.len().saturating_sub(MOST_APPROVALS);
        all.drain(..behind);
        write(machine, APPROVALS, &all)
    }

    fn mac_of_pending(&self, Pending { key, pcrs, values, counter, .. }: &Pending) -> String {
        let pcrs: Vec<u8> = pcrs.iter().flat_map(|pcr| pcr.to_le_bytes()).collect();
        let values: Vec<u8> = values.iter().flat_map(|value| value.as_bytes().to_vec()).collect();
        hex::encode(self.mac_of(&[b"pending", key.as_bytes(), &pcrs, &values, &counter.to_le_bytes()]))
    }

    /// Remembers how a machine started that was refused its key.
    pub(super) fn remember(&self, machine: &Machine, kept: &KeptKey<'_>, (pcrs, values): Pcrs<'_>, counter: u64) -> Result<(), VmError> {
        let pending = Pending { key: hex::encode(kept.id), pcrs: pcrs.to_vec(), values: values.to_vec(), counter, mac: String::new() };
        let mac = self.mac_of_pending(&pending);
        write(machine, PENDING, &Pending { mac, ..pending })
    }
}

/// The PCRs that the key is sealed to: Secure Boot, what was started (by unified kernels PCR 11), settings, shim's lists.
pub(super) fn pcrs_of(log: &EventLog<'_>) -> Vec<u32> {
    let unified = log.events.iter().any(|event| event.pcr == 11 && event.is_extended());
    if unified { vec![7, 11, 12, 14] } else { vec![4, 7, 12, 14] }
}

/// Nothing waits to be approved.
pub(super) fn nothing_pending(machine: &Machine) -> Result<(), VmError> {
    match std::fs::remove_file(machine.folder.path(PENDING)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Approves how a machine started last, when its vault's key was not released. What was approved before is revoked from its next start on.
///
/// # Errors
/// [`VmError::NothingToApprove`]; [`VmError`].
pub fn approve(host: &Host, name: &str) -> Result<Vec<(u32, Digest)>, VmError> {
    let folder: Arc<Folder> = Arc::new(host.open(name)?);
    let known = read_known(&folder)?;
    let machine = Machine::of(host, &folder, &known)?;
    let pending: Pending = read(&machine, PENDING)?.ok_or(VmError::NothingToApprove)?;
    let sealing = Sealing::of(&machine)?;
    let id = hex::decode(&pending.key).ok().and_then(|id| id.try_into().ok());
    let Some(id) = id.filter(|_| sealing.mac_of_pending(&pending) == pending.mac) else {
        return Err(VmError::VaultFile(PENDING, "this host did not write it; start the machine again".to_owned()));
    };
    let all: Vec<OfKey> = read(&machine, APPROVALS)?.unwrap_or_default();
    let reference = sealing.reference(&id);
    let is_ours = |of: &&OfKey| of.key == pending.key && of.approval.is_by(sealing.approver(), sealing.terms(&reference));
    let before = all.iter().find(is_ours).map_or(0, |of| of.approval.number);
    let number = before.max(pending.counter).saturating_add(1);
    sealing.approve(&machine, &id, (&pending.pcrs, &pending.values), number)?;
    nothing_pending(&machine)?;
    Ok(pending.pcrs.into_iter().zip(pending.values).collect())
}

fn read<T: for<'de> Deserialize<'de>>(machine: &Machine, file: &'static str) -> Result<Option<T>, VmError> {
    let Some(bytes) = machine.folder.read(file)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| VmError::VaultFile(file, error.to_string()))
}

fn write(machine: &Machine, file: &'static str, content: &impl Serialize) -> Result<(), VmError> {
    let text = serde_json::to_vec_pretty(content).map_err(|error| VmError::VaultFile(file, error.to_string()))?;
    Ok(machine.folder.write(file, &text)?)
}
