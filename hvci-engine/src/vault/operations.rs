//! What credentials are used for. No answer has a key in it, nor a hash that stands for one.

use alloc::{collections::BTreeSet, sync::Arc};

use aes_gcm_siv::{
    Aes256GcmSiv, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use ed25519_dalek::Signer;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{
    Caller, Inner, Vault,
    error::VaultError,
    kerberos::{Etype, Instant, Principal, authenticator, encrypted_timestamp, kdc_reply, request_body, usage},
    ntlm::{self, Challenge, MAX_TARGET_INFO},
    sealed,
    secret::{Key, Record},
    table::{Credential, CredentialKind, Handle, NT_HASH, Table, etype_bit, etype_place},
    use_policy::{Meter, Operation},
};
use crate::{digest::Digest, time::UnixTime};

/// Bytes of a nonce, before what was encrypted.
const NONCE: usize = 12;
/// The longest message that is encrypted, decrypted or signed.
pub(super) const MAX_MESSAGE: usize = 1 << 16;

/// A credential, as far as its owner is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its handle.
    pub handle: Handle,
    /// What it is.
    pub kind: CredentialKind,
    /// The user, or the name of a key.
    pub user: Arc<str>,
    /// The domain or realm.
    pub domain: Arc<str>,
    /// Whether it is kept when the machine is off.
    pub persistent: bool,
    /// Whether it is out in a blob.
    pub out: bool,
    /// How often it was used.
    pub uses: u64,
}

impl Listed {
    pub(super) fn new(handle: Handle, credential: &Credential) -> Self {
        Self {
            handle,
            kind: credential.kind,
            user: Arc::clone(&credential.user),
            domain: Arc::clone(&credential.domain),
            persistent: credential.persistent,
            out: credential.out.is_some(),
            uses: credential.meter.uses,
        }
    }
}

/// Characters of a service's name in an event.
const MAX_TOLD: usize = 256;

/// What the authenticator of an AP-REQ is for.
#[derive(Clone, Copy, Debug)]
pub enum Authenticator<'a> {
    /// A request to the KDC with a ticket-granting ticket: its KDC-REQ-BODY.
    Tgs(&'a [u8]),
    /// A service: the channel's binding, or zeros, and the flags of GSS-API (RFC 4121 §4.1.1).
    Service([u8; 16], u32),
}

/// GSS_C_DELEG_FLAG: the client's ticket goes with the request.
const GSS_DELEGATION: u32 = 1;
/// Checksum type of an authenticator that goes to a service by GSS-API (RFC 4121 §4.1.1).
const GSS_CHECKSUM: u32 = 0x8003;

impl Vault {
    /// `NtlmIumLm20GetNtlm3ChallengeResponse`: the NtChallengeResponse for a server's challenge, bound to the service and channel that are
    /// said. The session's key stays here, under the handle, if one is wanted: a real isolated LSA gives it out.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn ntlm_response(
        &self,
        caller: &Caller,
        handle: Handle,
        challenge: &Challenge<'_>,
        session: bool,
    ) -> Result<(Option<Handle>, Vec<u8>), VaultError> {
        let (operation, target) = (Operation::Ntlm, challenge.target);
        self.perform(caller, "ntlm-response", Some(handle), |inner, module| {
            if challenge.target_info.len() > MAX_TARGET_INFO || target.is_empty() || target.len() > MAX_TARGET_INFO {
                return Err(VaultError::Request("the target's information or name is missing or too long"));
            }
            let credential = inner.usable(module, handle)?;
            inner.has(handle, CredentialKind::Logon, NT_HASH)?;
            if (self.policy.channel_binding || credential.policy.channel_binding) && challenge.channel_binding == [0; 16] {
                inner.told(target);
                return Err(VaultError::ChannelBinding);
            }
            self.used(inner, module, (handle, operation, Some(target)), caller.time)?;
            let credential = inner.table.get(handle).ok_or(VaultError::NotFound)?;
            let hash = inner.key_of(handle, CredentialKind::Logon, NT_HASH, (0, 16))?;
            let client = inner.random.bytes::<8>();
            let (user, domain) = (&*credential.user, &*credential.domain);
            let answer = ntlm::respond(&hash, user, domain, challenge, client, filetime(caller.time));
            let (response, key) = answer.ok_or(VaultError::Request("the target information is no list of AV_PAIRs"))?;
            let session = session.then(|| inner.session(handle, CredentialKind::NtlmSession, target.to_owned(), &key)).transpose()?;
            Ok((session, response))
        })
    }

    /// `NtlmIumCalculateNtResponse`, and what is like it: refused. A DES or RC4 response gives the hash away to whoever searches long
    /// enough.
    ///
    /// # Errors
    /// [`VaultError::Legacy`], always.
    pub fn legacy(&self, caller: &Caller, handle: Option<Handle>, protocol: &'static str) -> Result<(), VaultError> {
        self.perform(caller, protocol, handle, |_, _| Err(VaultError::Legacy(protocol)))
    }

    /// The integrity code of NEGOTIATE, CHALLENGE and AUTHENTICATE messages of an NTLM session.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn ntlm_integrity(&self, caller: &Caller, session: Handle, messages: [&[u8]; 3]) -> Result<[u8; 16], VaultError> {
        self.with_session(caller, session, "ntlm-integrity", |key| ntlm::message_integrity(key, &messages))
    }

    /// The signature of a message of an NTLM session, of the client's or the server's side.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn ntlm_signature(
        &self,
        caller: &Caller,
        session: Handle,
        by_client: bool,
        sequence: u32,
        message: &[u8],
    ) -> Result<[u8; 16], VaultError> {
        self.with_session(caller, session, "ntlm-signature", |key| ntlm::signature(key, by_client, sequence, message))
    }

    /// Messages of a session that was allowed are as many as its protocol has: they are not counted.
    fn with_session<T>(&self, caller: &Caller, session: Handle, what: &'static str, run: impl FnOnce(&Key) -> T) -> Result<T, VaultError> {
        self.perform(caller, what, Some(session), |inner, module| {
            let credential = inner.usable(module, session)?;
            self.policy.allow(Operation::Ntlm, None).and_then(|()| credential.policy.allow(Operation::Ntlm, None))?;
            Ok(run(&inner.key_of(session, CredentialKind::NtlmSession, 0, (0, 16))?))
        })
    }

    /// `NtlmIumCompareCredentials`: whether two users' secrets are the same, looked at in constant time.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn compare(&self, caller: &Caller, one: Handle, other: Handle) -> Result<bool, VaultError> {
        self.perform(caller, "compare", Some(one), |inner, module| {
            let mut hashes = Vec::with_capacity(2);
            for handle in [one, other] {
                inner.usable(module, handle)?;
                inner.has(handle, CredentialKind::Logon, NT_HASH)?;
            }
            for handle in [one, other] {
                self.used(inner, module, (handle, Operation::Compare, None), caller.time)?;
                hashes.push(inner.key_of(handle, CredentialKind::Logon, NT_HASH, (0, 16))?);
            }
            let [one, other] = &*hashes else { return Err(VaultError::NotFound) };
            Ok(one.as_bytes().ct_eq(other.as_bytes()).into())
        })
    }

    /// The cipher of PA-ENC-TIMESTAMP, the pre-authentication of an AS-REQ (RFC 4120 §5.2.7.2). The time is the host's, so none can be had
    /// in advance.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn kerberos_timestamp(&self, caller: &Caller, handle: Handle, etype: Etype) -> Result<Vec<u8>, VaultError> {
        self.perform(caller, "kerberos-timestamp", Some(handle), |inner, module| {
            inner.usable(module, handle)?;
            inner.has(handle, CredentialKind::Logon, etype_bit(etype))?;
            self.used(inner, module, (handle, Operation::Kerberos, None), caller.time)?;
            let key = inner.key_of(handle, CredentialKind::Logon, etype_bit(etype), (etype_place(etype), etype.key_len()))?;
            let plain = encrypted_timestamp(inner.instant(caller.time));
            Ok(etype.encrypt(&key, &usage::AS_REQ_TIMESTAMP, &inner.random.bytes(), &plain))
        })
    }

    /// Decrypts the encrypted part of a KDC's reply, and keeps the session's key: of an AS-REP with a user's key, of a TGS-REP with that of
    /// the session with the KDC. Answers the session and the part, with zeros where the key was.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn kerberos_reply(&self, caller: &Caller, handle: Handle, etype: Etype, cipher: &[u8]) -> Result<(Handle, Vec<u8>), VaultError> {
        self.perform(caller, "kerberos-reply", Some(handle), |inner, module| {
            if cipher.len() > MAX_MESSAGE {
                return Err(VaultError::Request("the reply is too long"));
            }
            let credential = inner.usable(module, handle)?;
            match credential.kind {
                CredentialKind::Session(own) if own == etype && credential.is_with_kdc() => {}
                _ => inner.has(handle, CredentialKind::Logon, etype_bit(etype))?,
            }
            self.used(inner, module, (handle, Operation::Kerberos, None), caller.time)?;
            let credential = inner.table.get(handle).ok_or(VaultError::NotFound)?;
            let (key, usage) = match credential.kind {
                CredentialKind::Session(own) if own == etype && credential.is_with_kdc() => {
                    (inner.key_of(handle, credential.kind, 0, (0, etype.key_len()))?, &usage::TGS_REP)
                }
                _ => {
                    let place = (etype_place(etype), etype.key_len());
                    (inner.key_of(handle, CredentialKind::Logon, etype_bit(etype), place)?, &usage::AS_REP)
                }
            };
            let plain = etype.decrypt(&key, usage, cipher).ok_or(VaultError::Authentic)?;
            let reply = kdc_reply(&plain).ok_or(VaultError::Request("the reply is no EncKDCRepPart with a key of AES"))?;
            let session = inner.session(handle, CredentialKind::Session(reply.etype), reply.service, &reply.key)?;
            Ok((session, reply.redacted))
        })
    }

    /// `KerbIumCreateApReqAuthenticator`: the cipher of the authenticator of an AP-REQ (RFC 4120 §5.5.1), to whom the session is with.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn kerberos_authenticator(
        &self,
        caller: &Caller,
        session: Handle,
        purpose: Authenticator<'_>,
        sequence: Option<u32>,
    ) -> Result<Vec<u8>, VaultError> {
        self.perform(caller, "kerberos-authenticator", Some(session), |inner, module| {
            let credential = inner.usable(module, session)?;
            let CredentialKind::Session(etype) = credential.kind else { return Err(VaultError::Kind) };
            let (with_kdc, service) = (credential.is_with_kdc(), credential.service.clone().unwrap_or_default());
            let target = match purpose {
                Authenticator::Tgs(body) if with_kdc => inner.wanted(body)?,
                Authenticator::Service(_, flags) if !with_kdc && flags & GSS_DELEGATION != 0 => {
                    inner.told(&service);
                    return Err(VaultError::Delegation);
                }
                Authenticator::Service(..) if !with_kdc => service,
                _ => return Err(VaultError::Kind),
            };
            self.used(inner, module, (session, Operation::Kerberos, Some(&target)), caller.time)?;
            let (now, confounder) = (inner.instant(caller.time), inner.random.bytes());
            let credential = inner.table.get(session).ok_or(VaultError::NotFound)?;
            let key = inner.key_of(session, credential.kind, 0, (0, etype.key_len()))?;
            let client = Principal { realm: &credential.domain, name: &credential.user };
            let (plain, usage) = match purpose {
                Authenticator::Tgs(body) => {
                    let checksum = etype.checksum_of(&key, &usage::TGS_REQ_CHECKSUM, body);
                    (authenticator(client, (u32::from(etype.checksum().0), &checksum), now, sequence), &usage::TGS_REQ_AUTHENTICATOR)
                }
                Authenticator::Service(binding, flags) => {
                    let checksum = [&16_u32.to_le_bytes()[..], &binding, &flags.to_le_bytes()].concat();
                    (authenticator(client, (GSS_CHECKSUM, &checksum), now, sequence), &usage::AP_REQ_AUTHENTICATOR)
                }
            };
            Ok(etype.encrypt(&key, usage, &confounder, &plain))
        })
    }

    /// `KerbIumComputeTgsChecksum`: the checksum of a KDC-REQ-BODY under the session with the KDC.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn kerberos_checksum(&self, caller: &Caller, session: Handle, body: &[u8]) -> Result<Vec<u8>, VaultError> {
        self.perform(caller, "kerberos-checksum", Some(session), |inner, module| {
            let credential = inner.usable(module, session)?;
            let CredentialKind::Session(etype) = credential.kind else { return Err(VaultError::Kind) };
            if !credential.is_with_kdc() {
                return Err(VaultError::Kind);
            }
            let target = inner.wanted(body)?;
            self.used(inner, module, (session, Operation::Kerberos, Some(&target)), caller.time)?;
            let credential = inner.table.get(session).ok_or(VaultError::NotFound)?;
            let key = inner.key_of(session, credential.kind, 0, (0, etype.key_len()))?;
            Ok(etype.checksum_of(&key, &usage::TGS_REQ_CHECKSUM, body))
        })
    }

    /// `NtlmIumProtectCredential`: has a credential be out in a blob, which VTL0 keeps. It is of use in this boot, once, and for this
    /// credential alone; there is no other copy of the secret then.
    ///
    /// # Errors
    /// [`VaultError`]; [`VaultError::Operation`] for one that is kept when the machine is off.
    pub fn protect(&self, caller: &Caller, handle: Handle) -> Result<Vec<u8>, VaultError> {
        self.perform(caller, "protect", Some(handle), |inner, module| {
            if inner.owned(module, handle)?.persistent {
                return Err(VaultError::Operation);
            }
            self.used(inner, module, (handle, Operation::Protect, None), caller.time)?;
            let record = inner.pages.read(Table::place(handle))?;
            let number = inner.blobs.checked_add(1).ok_or(VaultError::Full)?;
            let key = inner.blob_key()?;
            let credential = inner.table.get(handle).ok_or(VaultError::NotFound)?;
            let blob = sealed::blob(&key, &self.identity, handle, credential, number, &record)?;
            inner.pages.wipe(Table::place(handle))?;
            inner.blobs = number;
            if let Some(credential) = inner.table.get_mut(handle) {
                credential.out = Some(number);
            }
            Ok(blob)
        })
    }

    /// Takes a credential back from its blob; its handle is what it was.
    ///
    /// # Errors
    /// [`VaultError::Blob`] for any but the latest blob of a credential of this caller's that is out.
    pub fn unprotect(&self, caller: &Caller, blob: &[u8]) -> Result<Handle, VaultError> {
        let claimed = sealed::blob_handle(blob);
        self.perform(caller, "unprotect", claimed, |inner, module| {
            let handle = claimed.ok_or(VaultError::Blob)?;
            let credential = inner.owned(module, handle).map_err(|_| VaultError::Blob)?;
            let number = credential.out.ok_or(VaultError::Blob)?;
            let record = sealed::open_blob(&inner.blob_key()?, &self.identity, handle, credential, number, blob).ok_or(VaultError::Blob)?;
            inner.pages.write(Table::place(handle), &record)?;
            if let Some(credential) = inner.table.get_mut(handle) {
                credential.out = None;
            }
            Ok(handle)
        })
    }

    /// Takes back a session that nobody was told of.
    pub(super) fn forget(&self, session: Handle) -> Result<(), VaultError> {
        self.lock().remove_all(vec![session])
    }

    /// Encrypts with AES-256-GCM-SIV; the nonce stands before the text.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn encrypt(&self, caller: &Caller, handle: Handle, message: &[u8], associated: &[u8]) -> Result<Vec<u8>, VaultError> {
        self.perform(caller, "encrypt", Some(handle), |inner, module| {
            let cipher = self.cipher(inner, module, handle, message.len(), caller.time)?;
            let nonce = inner.random.bytes::<NONCE>();
            let text = cipher.encrypt(&Nonce::from(nonce), Payload { msg: message, aad: associated });
            Ok([&nonce[..], &text.map_err(|_| VaultError::Request("the message is too long"))?].concat())
        })
    }

    /// Decrypts what [`encrypt`](Self::encrypt) made. What was encrypted is the caller's own, and no secret of the vault.
    ///
    /// # Errors
    /// [`VaultError`]; [`VaultError::Authentic`] for what was changed.
    pub fn decrypt(&self, caller: &Caller, handle: Handle, text: &[u8], associated: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        self.perform(caller, "decrypt", Some(handle), |inner, module| {
            let cipher = self.cipher(inner, module, handle, text.len().saturating_sub(28), caller.time)?;
            let (nonce, text) = text.split_first_chunk::<NONCE>().ok_or(VaultError::Authentic)?;
            let plain = cipher.decrypt(&Nonce::from(*nonce), Payload { msg: text, aad: associated });
            plain.map(Zeroizing::new).map_err(|_| VaultError::Authentic)
        })
    }

    fn cipher(&self, inner: &mut Inner, module: &Digest, handle: Handle, len: usize, now: UnixTime) -> Result<Aes256GcmSiv, VaultError> {
        if len > MAX_MESSAGE {
            return Err(VaultError::Request("the message is too long"));
        }
        inner.usable(module, handle)?;
        inner.has(handle, CredentialKind::Aead, 0)?;
        self.used(inner, module, (handle, Operation::Aead, None), now)?;
        let key = inner.key_of(handle, CredentialKind::Aead, 0, (0, 32))?;
        Aes256GcmSiv::new_from_slice(key.as_bytes()).map_err(|_| VaultError::Kind)
    }

    /// Signs a message that begins as was said when the key was made: Ed25519 (RFC 8032), or ECDSA on P-256 with SHA-256 in the form of
    /// IEEE P1363.
    ///
    /// # Errors
    /// [`VaultError`]; [`VaultError::Target`] for a message that begins otherwise.
    pub fn sign(&self, caller: &Caller, handle: Handle, message: &[u8]) -> Result<[u8; 64], VaultError> {
        self.perform(caller, "sign", Some(handle), |inner, module| {
            if message.len() > MAX_MESSAGE {
                return Err(VaultError::Request("the message is too long"));
            }
            let credential = inner.usable(module, handle)?;
            if !matches!(credential.kind, CredentialKind::Ed25519 | CredentialKind::P256) {
                return Err(VaultError::Kind);
            }
            if credential.prefix.is_empty() || !message.starts_with(&credential.prefix) {
                return Err(VaultError::Target("a message that does not begin as this key's do".to_owned()));
            }
            self.used(inner, module, (handle, Operation::Sign, None), caller.time)?;
            let credential = inner.table.get(handle).ok_or(VaultError::NotFound)?;
            let key = inner.key_of(handle, credential.kind, 0, (0, 32))?;
            Ok(match signing_key(credential.kind, &key)? {
                SigningKey::Ed25519(key) => key.sign(message).to_bytes(),
                SigningKey::P256(key) => {
                    let signature: p256::ecdsa::Signature = key.sign(message);
                    signature.to_bytes().into()
                }
            })
        })
    }

    /// The public half of a signing key: 32 bytes of Ed25519, or an uncompressed point of P-256.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn public_key(&self, caller: &Caller, handle: Handle) -> Result<Vec<u8>, VaultError> {
        self.perform(caller, "public-key", Some(handle), |inner, module| {
            let credential = inner.usable(module, handle)?;
            let key = inner.key_of(handle, credential.kind, 0, (0, 32))?;
            Ok(match signing_key(credential.kind, &key)? {
                SigningKey::Ed25519(key) => key.verifying_key().to_bytes().to_vec(),
                SigningKey::P256(key) => key.verifying_key().to_encoded_point(false).as_bytes().to_vec(),
            })
        })
    }

    /// Whether this module may use a credential so now; the use is counted.
    fn used(
        &self,
        inner: &mut Inner,
        module: &Digest,
        (handle, operation, target): (Handle, Operation, Option<&str>),
        now: UnixTime,
    ) -> Result<(), VaultError> {
        if let Some(target) = target {
            inner.told(target);
        }
        let credential = inner.usable(module, handle)?;
        // a session is a use of what it came of: otherwise each would have the whole budget again
        let root = credential.parent.unwrap_or(handle);
        let metered = inner.table.get(root).ok_or(VaultError::NotFound)?;
        for (policy, meter) in [(&self.policy, &metered.meter), (&*credential.policy, &metered.own_meter)] {
            policy.allow(operation, target)?;
            policy.allow_again(meter, now)?;
        }
        let metered = inner.table.get_mut(root).ok_or(VaultError::NotFound)?;
        metered.meter.count(self.policy.rate, now);
        metered.own_meter.count(metered.policy.rate, now);
        if metered.persistent && (self.policy.budget.is_some() || metered.policy.budget.is_some()) {
            // before there is an answer: a crash gives nothing of the budget back
            inner.commit(&self.identity)?;
        }
        Ok(())
    }
}

enum SigningKey {
    Ed25519(Box<ed25519_dalek::SigningKey>),
    P256(Box<p256::ecdsa::SigningKey>),
}

fn signing_key(kind: CredentialKind, key: &Key) -> Result<SigningKey, VaultError> {
    let bytes = key.as_bytes().first_chunk::<32>().ok_or(VaultError::Kind)?;
    match kind {
        CredentialKind::Ed25519 => Ok(SigningKey::Ed25519(Box::new(ed25519_dalek::SigningKey::from_bytes(bytes)))),
        CredentialKind::P256 => {
            let key = p256::ecdsa::SigningKey::from_slice(bytes).map_err(|_| VaultError::Kind)?;
            Ok(SigningKey::P256(Box::new(key)))
        }
        _ => Err(VaultError::Kind),
    }
}

impl Inner {
    /// A credential that is here, and this module's or one that its policy names.
    fn usable(&self, module: &Digest, handle: Handle) -> Result<&Credential, VaultError> {
        let credential = self.table.get(handle).ok_or(VaultError::NotFound)?;
        if credential.owner != *module && !credential.policy.allows_caller(module, false) {
            // whether there is one is not a stranger's to know
            return Err(VaultError::NotFound);
        }
        if credential.out.is_some() { Err(VaultError::Out) } else { Ok(credential) }
    }

    /// Whether a credential is of this kind; of a logon, whether it has these keys.
    fn has(&self, handle: Handle, kind: CredentialKind, bit: u8) -> Result<(), VaultError> {
        let credential = self.table.get(handle).ok_or(VaultError::NotFound)?;
        if credential.kind == kind && credential.keys & bit == bit { Ok(()) } else { Err(VaultError::Kind) }
    }

    /// The key at a place of a credential of this kind; of a logon, if it has that one.
    fn key_of(&self, handle: Handle, kind: CredentialKind, bit: u8, (at, len): (usize, usize)) -> Result<Key, VaultError> {
        self.has(handle, kind, bit)?;
        self.pages.key(Table::place(handle), at, len)
    }

    /// Keeps a session's key: the session is whose the logon is that it came of, and goes with it.
    fn session(&mut self, parent: Handle, kind: CredentialKind, service: String, key: &Key) -> Result<Handle, VaultError> {
        let of = self.table.get(parent).ok_or(VaultError::NotFound)?;
        let root = of.parent.unwrap_or(parent);
        let session = Credential {
            kind,
            owner: of.owner,
            user: Arc::clone(&of.user),
            domain: Arc::clone(&of.domain),
            prefix: Vec::new(),
            service: Some(service),
            keys: 0,
            policy: Arc::clone(&of.policy),
            meter: Meter::default(),
            own_meter: Meter::default(),
            persistent: false,
            out: None,
            parent: Some(root),
            sessions: BTreeSet::new(),
        };
        let handle = self.insert(session, &Record::of(key))?;
        if let Some(of) = self.table.get_mut(root) {
            of.sessions.insert(handle);
        }
        Ok(handle)
    }

    /// For which service it is, in the event.
    fn told(&mut self, target: &str) {
        self.target = Some(target.chars().take(MAX_TOLD).collect());
    }

    /// Which service a request to the KDC is for; nobody may get a ticket for somebody else.
    fn wanted(&mut self, body: &[u8]) -> Result<String, VaultError> {
        let body = request_body(body).ok_or(VaultError::Request("this is no KDC-REQ-BODY in DER"))?;
        if body.delegates {
            self.told(&body.service);
            return Err(VaultError::Delegation);
        }
        Ok(body.service)
    }

    /// Now. The host's time is in seconds; two authenticators of one second differ all the same.
    fn instant(&mut self, time: UnixTime) -> Instant {
        let random = u32::from_le_bytes(self.random.bytes());
        Instant { time, microseconds: random.checked_rem(1_000_000).unwrap_or(0) }
    }
}

/// Tenths of microseconds since 1601.
fn filetime(time: UnixTime) -> u64 {
    u64::try_from(time.0.saturating_add(11_644_473_600)).unwrap_or(0).saturating_mul(10_000_000)
}
