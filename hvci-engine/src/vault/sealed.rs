//! Credentials where the vault does not have them: in a blob that VTL0 keeps for a boot, and in what is kept of the vault while the machine
//! is off.
//!
//! ```text
//! blob    "HVBL" | version u16 | handle u64 | number u64 | secret, encrypted | tag
//! store   "HVST" | version u16 | machine [16] | boot [16] | generation u64 | next u32 | sealed key: length u32, bytes
//!         | credentials: count u32, each: length u32, encrypted, tag | HMAC-SHA-256 of everything before
//! ```
//!
//! Encryption is AES-256-GCM-SIV (RFC 8452): a nonce that repeats, as after a crash or where a machine's memory was restored, says only
//! whether two texts are equal. What a text belongs to is associated data: the machine, the boot, the credential, its owner, its account, a
//! number that only grows.

use alloc::{collections::BTreeSet, sync::Arc};

use aes_gcm_siv::{Aes256GcmSiv, KeyInit, Nonce, Tag, aead::AeadInPlace};
use hmac::Hmac;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{
    error::VaultError,
    kerberos::hmac,
    secret::{Key, RECORD, Record},
    table::{Credential, CredentialKind, Handle},
    use_policy::Meter,
};
use crate::{
    bytes::{array, index, le16, le32, le64, slice, widen},
    digest::{Digest, DigestAlg},
};

const BLOB: &[u8; 4] = b"HVBL";
const STORE: &[u8; 4] = b"HVST";
const VERSION: u16 = 1;
const TAG: usize = 16;
const MAC: usize = 32;

/// Which machine and which boot of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The machine's, for all its life.
    pub vm: [u8; 16],
    /// A new one at each boot, and when the machine's memory is restored.
    pub boot: [u8; 16],
}

/// Encrypts under a key that is derived for one purpose.
struct Sealer {
    cipher: Aes256GcmSiv,
    purpose: [u8; 4],
}

impl Sealer {
    fn new(key: &Key, purpose: &[u8; 4]) -> Self {
        let derived = Zeroizing::new(hmac::<Hmac<Sha256>>(key.as_bytes(), &[b"hvci vault ", purpose]).into());
        let derived: &[u8; 32] = &derived;
        Self { cipher: Aes256GcmSiv::new(derived.into()), purpose: *purpose }
    }

    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = Nonce::default();
        nonce.iter_mut().zip(number.to_le_bytes().into_iter().chain(self.purpose)).for_each(|(to, from)| *to = from);
        nonce
    }

    /// In place; the tag.
    fn seal(&self, number: u64, associated: &[u8], bytes: &mut [u8]) -> Result<[u8; TAG], VaultError> {
        let tag = self.cipher.encrypt_in_place_detached(&self.nonce(number), associated, bytes);
        tag.map(Into::into).map_err(|_| VaultError::Request("too long to be encrypted"))
    }

    /// In place; `None` for what was not sealed so.
    fn open(&self, number: u64, associated: &[u8], bytes: &mut [u8], tag: &[u8; TAG]) -> Option<()> {
        self.cipher.decrypt_in_place_detached(&self.nonce(number), associated, bytes, &Tag::from(*tag)).ok()
    }
}

fn associated(identity: &Identity, handle: Handle, credential: &Credential, number: u64) -> Vec<u8> {
    let kind = [credential.kind.number()];
    let mut bytes = [&identity.vm[..], &identity.boot, &handle.0.to_le_bytes(), &number.to_le_bytes(), &kind].concat();
    for part in [credential.owner.as_bytes(), credential.user.as_bytes(), credential.domain.as_bytes()] {
        put(&mut bytes, part);
    }
    bytes
}

/// The blob of a credential.
pub(super) fn blob(
    key: &Key,
    identity: &Identity,
    handle: Handle,
    credential: &Credential,
    number: u64,
    record: &Record,
) -> Result<Vec<u8>, VaultError> {
    let mut bytes = Vec::with_capacity(RECORD.saturating_add(64));
    bytes.extend_from_slice(BLOB);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(handle.0.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    let mut secret = record.0.clone();
    let tag = Sealer::new(key, b"blob").seal(number, &associated(identity, handle, credential, number), &mut *secret)?;
    bytes.extend_from_slice(&*secret);
    bytes.extend(tag);
    Ok(bytes)
}

/// Which credential a blob claims to be of.
pub(super) fn blob_handle(bytes: &[u8]) -> Option<Handle> {
    let fits = bytes.starts_with(BLOB) && le16(bytes, 4) == Some(VERSION) && bytes.len() == RECORD.checked_add(22 + TAG)?;
    le64(bytes, 6).filter(|_| fits).map(Handle)
}

/// The secret in a blob, if it is the one with this number of this credential.
pub(super) fn open_blob(
    key: &Key,
    identity: &Identity,
    handle: Handle,
    credential: &Credential,
    number: u64,
    bytes: &[u8],
) -> Option<Record> {
    if blob_handle(bytes) != Some(handle) || le64(bytes, 14) != Some(number) {
        return None;
    }
    let mut record = Record::empty();
    record.0.copy_from_slice(slice(bytes, 22, RECORD)?);
    let tag = array(bytes, RECORD.checked_add(22)?)?;
    Sealer::new(key, b"blob").open(number, &associated(identity, handle, credential, number), &mut *record.0, &tag)?;
    Some(record)
}

/// What stands before the credentials of a store, none of it secret, nothing of it believed before the MAC is right.
pub(super) struct Header<'s> {
    pub(super) vm: [u8; 16],
    pub(super) generation: u64,
    pub(super) next: u32,
    pub(super) sealed_key: &'s [u8],
    /// Where the credentials begin.
    body: usize,
}

/// Reads the header.
pub(super) fn header(store: &[u8]) -> Result<Header<'_>, VaultError> {
    let read = || {
        let sealed = index(le32(store, 50)?);
        let header = Header {
            vm: array(store, 6)?,
            generation: le64(store, 38)?,
            next: le32(store, 46)?,
            sealed_key: slice(store, 54, sealed)?,
            body: sealed.checked_add(54)?,
        };
        Some(header).filter(|_| store.starts_with(STORE))
    };
    if le16(store, 4).is_some_and(|version| version != VERSION) && store.starts_with(STORE) {
        return Err(VaultError::Store("it is of a version that is not known"));
    }
    read().ok_or(VaultError::Store("it is no store of a vault"))
}

/// What is kept of a vault with these credentials, each with its secret.
pub(super) fn store<'c>(
    key: &Key,
    identity: &Identity,
    (generation, next, sealed_key): (u64, u32, &[u8]),
    credentials: impl Iterator<Item = (Handle, &'c Credential)>,
    mut secret: impl FnMut(Handle) -> Result<Record, VaultError>,
) -> Result<Vec<u8>, VaultError> {
    let mut bytes =
        [&STORE[..], &VERSION.to_le_bytes(), &identity.vm, &identity.boot, &generation.to_le_bytes(), &next.to_le_bytes()].concat();
    put(&mut bytes, sealed_key);
    let sealer = Sealer::new(key, b"keep");
    let header = bytes.clone();
    let mut body = Vec::new();
    let mut count = 0_u32;
    for (handle, credential) in credentials {
        let mut entry = Zeroizing::new(Vec::with_capacity(RECORD.saturating_mul(3)));
        write(&mut entry, handle, credential);
        entry.extend_from_slice(&*secret(handle)?.0);
        let associated = [&header[..], &count.to_le_bytes()].concat();
        let tag = sealer.seal(nonce_number(generation, count), &associated, &mut entry)?;
        put(&mut body, &entry);
        body.extend(tag);
        count = count.checked_add(1).ok_or(VaultError::Full)?;
    }
    bytes.extend(count.to_le_bytes());
    bytes.extend(body);
    let mac = mac(key, &bytes);
    bytes.extend(mac);
    Ok(bytes)
}

/// Generations below and places in one above do not meet: no store has 2²⁴ credentials.
fn nonce_number(generation: u64, place: u32) -> u64 {
    generation << 24 ^ u64::from(place)
}

fn mac(key: &Key, bytes: &[u8]) -> [u8; MAC] {
    let derived = Zeroizing::new(hmac::<Hmac<Sha256>>(key.as_bytes(), &[b"hvci vault mac"]));
    hmac::<Hmac<Sha256>>(&derived, &[bytes]).into()
}

/// The credentials of a store, each with its secret.
pub(super) fn open_store(
    key: &Key,
    store: &[u8],
    mut each: impl FnMut(Handle, Credential, Record) -> Result<(), VaultError>,
) -> Result<(), VaultError> {
    let header = header(store)?;
    let (bytes, tag) = store.split_at_checked(store.len().saturating_sub(MAC)).ok_or(VaultError::Store("it is cut short"))?;
    if !bool::from(mac(key, bytes).ct_eq(tag)) {
        return Err(VaultError::Store("it was changed, cut short or sealed under another key"));
    }
    // from here on it is what was written, and still nothing is taken for granted
    let malformed = || VaultError::Store("it is malformed");
    let head = bytes.get(..header.body).ok_or_else(malformed)?;
    let count = le32(bytes, header.body).ok_or_else(malformed)?;
    let sealer = Sealer::new(key, b"keep");
    let mut at = header.body.saturating_add(4);
    for place in 0..count {
        let mut read = || {
            let len = index(le32(bytes, at)?);
            let mut entry = Zeroizing::new(slice(bytes, at.checked_add(4)?, len)?.to_vec());
            let tag = array(bytes, at.checked_add(4)?.checked_add(len)?)?;
            at = at.checked_add(len)?.checked_add(4 + TAG)?;
            sealer.open(nonce_number(header.generation, place), &[head, &place.to_le_bytes()].concat(), &mut entry, &tag)?;
            parse(&entry)
        };
        let (handle, credential, record) = read().ok_or_else(malformed)?;
        each(handle, credential, record)?;
    }
    if at == bytes.len() { Ok(()) } else { Err(malformed()) }
}

fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(part);
}

fn write(bytes: &mut Vec<u8>, handle: Handle, credential: &Credential) {
    bytes.extend(handle.0.to_le_bytes());
    bytes.extend([credential.kind.number(), credential.keys]);
    bytes.extend(credential.meter.uses.to_le_bytes());
    // cannot fail: strings and numbers
    let policy = serde_json::to_vec(&*credential.policy).unwrap_or_default();
    let owner = credential.owner.to_string();
    for part in [owner.as_bytes(), credential.user.as_bytes(), credential.domain.as_bytes(), &credential.prefix, &policy] {
        put(bytes, part);
    }
}

fn parse(entry: &[u8]) -> Option<(Handle, Credential, Record)> {
    let (kind, keys, uses) = (*entry.get(8)?, *entry.get(9)?, le64(entry, 10)?);
    let mut at = 18_usize;
    let mut part = || {
        let part = slice(entry, at.checked_add(4)?, index(le32(entry, at)?))?;
        at = at.checked_add(part.len())?.checked_add(4)?;
        Some(part)
    };
    let text = |bytes: &[u8]| core::str::from_utf8(bytes).ok().map(str::to_owned);
    let (owner, user, domain, prefix, policy) = (part()?, part()?, part()?, part()?, part()?);
    let credential = Credential {
        kind: CredentialKind::from_number(u64::from(kind))?,
        owner: Digest::try_from(text(owner)?).ok().filter(|owner| DigestAlg::ALL.contains(&owner.alg()))?,
        user: text(user)?.into(),
        domain: text(domain)?.into(),
        prefix: prefix.to_vec(),
        service: None,
        keys,
        policy: Arc::new(serde_json::from_slice(policy).ok()?),
        meter: Meter::of(uses),
        own_meter: Meter::of(uses),
        persistent: true,
        out: None,
        parent: None,
        sessions: BTreeSet::new(),
    };
    let mut record = Record::empty();
    record.0.copy_from_slice(slice(entry, at, RECORD)?);
    (widen(at).checked_add(widen(RECORD)) == Some(widen(entry.len()))).then_some((Handle(le64(entry, 0)?), credential, record))
}
