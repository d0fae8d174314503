//! Which credentials there are: everything about them but what is secret.

use alloc::{collections::BTreeSet, sync::Arc};

use super::{
    error::VaultError,
    kerberos::Etype,
    use_policy::{Meter, UsePolicy},
};
use crate::digest::Digest;

/// Names a credential: the slot of its secret below, a number that no other credential of that slot had above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// What a credential is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// A user's: an NT hash and Kerberos keys, as many as came of what was given.
    Logon,
    /// The key of a Kerberos session, with the KDC or a service.
    Session(Etype),
    /// The base key of an NTLM session.
    NtlmSession,
    /// AES-256-GCM-SIV.
    Aead,
    /// Ed25519.
    Ed25519,
    /// ECDSA on P-256 with SHA-256.
    P256,
}

impl CredentialKind {
    /// Its number at the service and in what is kept.
    pub const fn number(self) -> u8 {
        match self {
            Self::Aead => 1,
            Self::Ed25519 => 2,
            Self::P256 => 3,
            Self::Logon => 4,
            Self::NtlmSession => 5,
            Self::Session(etype) => etype.number(),
        }
    }

    /// The one with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        let fixed = [Self::Aead, Self::Ed25519, Self::P256, Self::Logon, Self::NtlmSession];
        let fixed = fixed.into_iter().find(|kind| u64::from(kind.number()) == number);
        fixed.or_else(|| Etype::from_number(number).map(Self::Session))
    }
}

/// Which keys of a logon there are, a bit each: the NT hash, then encryption types 17 to 20.
pub(super) const NT_HASH: u8 = 1;

pub(super) const fn etype_bit(etype: Etype) -> u8 {
    match etype {
        Etype::Aes128Sha1 => 2,
        Etype::Aes256Sha1 => 4,
        Etype::Aes128Sha2 => 8,
        Etype::Aes256Sha2 => 16,
    }
}

/// Where a logon's key for an encryption type is in its record.
pub(super) const fn etype_place(etype: Etype) -> usize {
    match etype {
        Etype::Aes128Sha1 => 16,
        Etype::Aes256Sha1 => 32,
        Etype::Aes128Sha2 => 64,
        Etype::Aes256Sha2 => 80,
    }
}

/// A credential, without its secret.
#[derive(Clone, Debug)]
pub(super) struct Credential {
    pub(super) kind: CredentialKind,
    /// Which module added it.
    pub(super) owner: Digest,
    /// The user, or the name of a key.
    pub(super) user: Arc<str>,
    /// The domain or realm.
    pub(super) domain: Arc<str>,
    /// What every message begins with that a key signs.
    pub(super) prefix: Vec<u8>,
    /// Of a session: with whom.
    pub(super) service: Option<String>,
    /// Of a logon: which keys.
    pub(super) keys: u8,
    /// Its own policy, beside the machine's.
    pub(super) policy: Arc<UsePolicy>,
    /// How often it was used, for the machine's policy, and for its own.
    pub(super) meter: Meter,
    pub(super) own_meter: Meter,
    /// Whether it is kept when the machine is off.
    pub(super) persistent: bool,
    /// The number of the blob that it is out in.
    pub(super) out: Option<u64>,
    /// Of a session: what it came of.
    pub(super) parent: Option<Handle>,
    /// Sessions that came of it; they go with it.
    pub(super) sessions: BTreeSet<Handle>,
}

impl Credential {
    /// Whether it is a session with a KDC, by the name of the service that the KDC said.
    pub(super) fn is_with_kdc(&self) -> bool {
        self.service.as_ref().is_some_and(|service| service.starts_with("krbtgt/"))
    }
}

struct Slot {
    number: u32,
    credential: Option<Credential>,
}

/// All of them.
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Of the next credential.
    pub(super) next: u32,
    capacity: usize,
}

impl Table {
    /// For as many as there are places for, the first of which is the vault's own.
    pub(super) fn new(places: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), next: 1, capacity: places.saturating_sub(1).min(1 << 24) }
    }

    /// The place of a credential's record.
    pub(super) fn place(handle: Handle) -> usize {
        usize::try_from(handle.0 & 0xFFFF_FFFF).unwrap_or(usize::MAX).saturating_add(1)
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&Credential> {
        let slot = self.slots.get(Self::place(handle).checked_sub(1)?)?;
        slot.credential.as_ref().filter(|_| u64::from(slot.number) == handle.0 >> 32)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Credential> {
        let slot = self.slots.get_mut(Self::place(handle).checked_sub(1)?)?;
        slot.credential.as_mut().filter(|_| u64::from(slot.number) == handle.0 >> 32)
    }

    /// A handle for a credential that is to be [put](Self::put); `Full` if there is no place.
    pub(super) fn reserve(&mut self) -> Result<Handle, VaultError> {
        let number = self.next;
        let next = number.checked_add(1).ok_or(VaultError::Full)?;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < self.capacity => {
                self.slots.push(Slot { number: 0, credential: None });
                u32::try_from(self.slots.len().saturating_sub(1)).map_err(|_| VaultError::Full)?
            }
            None => return Err(VaultError::Full),
        };
        self.next = next;
        Ok(Handle(u64::from(number) << 32 | u64::from(slot)))
    }

    /// Puts a credential at its handle.
    pub(super) fn put(&mut self, handle: Handle, credential: Credential) {
        if let Some(slot) = Self::place(handle).checked_sub(1).and_then(|at| self.slots.get_mut(at)) {
            slot.number = u32::try_from(handle.0 >> 32).unwrap_or(0);
            slot.credential = Some(credential);
        }
    }

    /// Puts one back that was kept, until all [are](Self::restored). `Full` for a place that there is not.
    pub(super) fn restore(&mut self, handle: Handle, credential: Credential) -> Result<(), VaultError> {
        let at = Self::place(handle).checked_sub(1).filter(|at| *at < self.capacity).ok_or(VaultError::Full)?;
        while self.slots.len() <= at {
            self.slots.push(Slot { number: 0, credential: None });
        }
        self.put(handle, credential);
        Ok(())
    }

    /// All are put back that were kept, and the next gets this number: what is between them is free.
    pub(super) fn restored(&mut self, next: u32) {
        let free = (0..).zip(&self.slots).filter(|(_, slot)| slot.credential.is_none());
        self.free = free.map(|(at, _)| at).collect();
        self.next = next;
    }

    /// Takes one out; its place may have another from now on.
    pub(super) fn remove(&mut self, handle: Handle) -> Option<Credential> {
        self.get(handle)?;
        let at = Self::place(handle).checked_sub(1)?;
        let credential = self.slots.get_mut(at)?.credential.take();
        self.free.extend(u32::try_from(at));
        credential
    }

    /// Gives a reserved place back that nothing was put at.
    pub(super) fn release(&mut self, handle: Handle) {
        self.free.extend(u32::try_from(handle.0 & 0xFFFF_FFFF));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Handle, &Credential)> {
        (0_u64..).zip(&self.slots).filter_map(|(at, slot)| Some((Handle(u64::from(slot.number) << 32 | at), slot.credential.as_ref()?)))
    }
}
