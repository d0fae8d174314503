//! Adding, replacing, listing and removing credentials.

use alloc::{collections::BTreeSet, sync::Arc};

use zeroize::Zeroizing;

use super::{
    Caller, Handle, Inner, Vault,
    error::VaultError,
    kerberos::Etype,
    ntlm,
    operations::Listed,
    secret::{Key, Record},
    table::{Credential, CredentialKind, NT_HASH, Table, etype_bit, etype_place},
    use_policy::{Meter, UsePolicy},
};
use crate::digest::Digest;

/// The longest name, of a user, a domain or a key.
pub(super) const MAX_NAME: usize = 255;

/// What a credential is made of.
#[derive(Clone, Copy)]
pub enum Secret<'s> {
    /// A user's password, and the salt of its Kerberos keys: empty for the realm and the user's name (RFC 4120 §4).
    Password(&'s str, &'s [u8]),
    /// A user's NT hash.
    NtHash(&'s [u8; 16]),
    /// A user's Kerberos key of one encryption type.
    KerberosKey(Etype, &'s [u8]),
    /// A key of this kind, made in the vault.
    Made(CredentialKind),
    /// A key of this kind, 32 bytes: AES-256, the seed of Ed25519, the scalar of P-256.
    Given(CredentialKind, &'s [u8]),
}

impl core::fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Password(..) => "Password",
            Self::NtHash(_) => "NtHash",
            Self::KerberosKey(..) => "KerberosKey",
            Self::Made(_) => "Made",
            Self::Given(..) => "Given",
        })
    }
}

/// A credential to be added.
#[derive(Clone, Debug)]
pub struct NewCredential<'c> {
    /// The user, or what a key is called.
    pub user: &'c str,
    /// The domain, as NTLM and Kerberos name it; empty for a key.
    pub domain: &'c str,
    /// Its secret.
    pub secret: Secret<'c>,
    /// Of a signing key: what every message begins with that it signs. It may not be empty.
    pub prefix: &'c [u8],
    /// Its own policy.
    pub policy: UsePolicy,
    /// Whether it is kept when the machine is off.
    pub persistent: bool,
}

impl Vault {
    /// Adds a credential; it is the caller's.
    ///
    /// # Errors
    /// [`VaultError::Caller`], [`VaultError::Full`], [`VaultError::Request`].
    pub fn add(&self, caller: &Caller, new: &NewCredential<'_>) -> Result<Handle, VaultError> {
        // a password's keys take milliseconds: not under the lock
        let made = self.may_ask(caller).map(|_| material(new));
        self.perform(caller, "add", None, |inner, owner| {
            let (kind, keys, record) = made.ok_or(VaultError::Caller)??;
            let record = record.map_or_else(|| inner.made(kind), Ok)?;
            inner.insert(
                Credential {
                    kind,
                    owner: *owner,
                    user: new.user.into(),
                    domain: new.domain.into(),
                    prefix: new.prefix.to_vec(),
                    service: None,
                    keys,
                    policy: Arc::new(new.policy.clone()),
                    meter: Meter::default(),
                    own_meter: Meter::default(),
                    persistent: new.persistent,
                    out: None,
                    parent: None,
                    sessions: BTreeSet::new(),
                },
                &record,
            )
        })
    }

    /// Gives a credential of the caller's a new secret of the same kind, such as a user's new password. What was out in a blob is of no use
    /// any more.
    ///
    /// # Errors
    /// [`VaultError::NotFound`], [`VaultError::Kind`], [`VaultError::Request`].
    pub fn replace(&self, caller: &Caller, handle: Handle, secret: Secret<'_>) -> Result<(), VaultError> {
        let names = |inner: &Inner, owner: &Digest| {
            inner.owned(owner, handle).map(|c| (Arc::clone(&c.user), Arc::clone(&c.domain), c.prefix.clone()))
        };
        // the salt of a password is the account's name
        let known = caller.module.as_ref().and_then(|owner| names(&self.lock(), owner).ok());
        let made = known.map(|(user, domain, prefix)| {
            let (user, domain, policy) = (&*user, &*domain, UsePolicy::default());
            material(&NewCredential { user, domain, secret, prefix: &prefix, policy, persistent: false })
        });
        self.perform(caller, "replace", Some(handle), |inner, owner| {
            let (kind, keys, record) = made.ok_or(VaultError::NotFound)??;
            if inner.owned(owner, handle)?.kind != kind {
                return Err(VaultError::Kind);
            }
            let record = record.map_or_else(|| inner.made(kind), Ok)?;
            // what came of the old secret goes first
            let sessions = inner.table.get(handle).map_or_else(Vec::new, |credential| credential.sessions.iter().copied().collect());
            inner.remove_all(sessions)?;
            inner.pages.write(Table::place(handle), &record)?;
            if let Some(credential) = inner.table.get_mut(handle) {
                (credential.keys, credential.out) = (keys, None);
                inner.dirty |= credential.persistent;
            }
            Ok(())
        })
    }

    /// Removes a credential of the caller's, and the sessions that came of it: what was secret is gone when this returns.
    ///
    /// # Errors
    /// [`VaultError::NotFound`].
    pub fn remove(&self, caller: &Caller, handle: Handle) -> Result<(), VaultError> {
        self.perform(caller, "remove", Some(handle), |inner, owner| {
            inner.owned(owner, handle)?;
            inner.remove_all(vec![handle])
        })
    }

    /// The caller's credentials.
    ///
    /// # Errors
    /// [`VaultError::Caller`].
    pub fn list(&self, caller: &Caller) -> Result<Vec<Listed>, VaultError> {
        self.perform(caller, "list", None, |inner, owner| {
            let own = inner.table.iter().filter(|(_, credential)| credential.owner == *owner);
            Ok(own.map(|(handle, credential)| Listed::new(handle, credential)).collect())
        })
    }
}

impl Inner {
    /// A credential that is this module's.
    pub(super) fn owned(&self, owner: &Digest, handle: Handle) -> Result<&Credential, VaultError> {
        self.table.get(handle).filter(|credential| credential.owner == *owner).ok_or(VaultError::NotFound)
    }

    /// A new secret of this kind.
    fn made(&mut self, kind: CredentialKind) -> Result<Record, VaultError> {
        loop {
            let key = Key::from(self.random.bytes::<32>());
            // of 2²⁵⁶ numbers 2³² are no scalars
            if kind != CredentialKind::P256 || p256::SecretKey::from_slice(key.as_bytes()).is_ok() {
                return Ok(Record::of(&key));
            }
        }
    }

    /// Puts a credential into a frame and into the table.
    pub(super) fn insert(&mut self, credential: Credential, record: &Record) -> Result<Handle, VaultError> {
        let handle = self.table.reserve()?;
        if let Err(error) = self.pages.write(Table::place(handle), record) {
            self.table.release(handle);
            return Err(error);
        }
        self.dirty |= credential.persistent;
        self.added = Some(handle);
        self.table.put(handle, credential);
        Ok(handle)
    }

    /// Removes these and the sessions that came of them, however long the line of descent is.
    pub(super) fn remove_all(&mut self, mut handles: Vec<Handle>) -> Result<(), VaultError> {
        while let Some(handle) = handles.pop() {
            if self.table.get(handle).is_none() {
                continue;
            }
            self.pages.wipe(Table::place(handle))?;
            let Some(removed) = self.table.remove(handle) else { continue };
            self.dirty |= removed.persistent;
            if let Some(parent) = removed.parent.and_then(|parent| self.table.get_mut(parent)) {
                parent.sessions.remove(&handle);
            }
            handles.extend(removed.sessions);
        }
        Ok(())
    }
}

/// What a credential's record holds, and which keys; nothing for one that the vault makes.
fn material(new: &NewCredential<'_>) -> Result<(CredentialKind, u8, Option<Record>), VaultError> {
    if new.user.len() > MAX_NAME || new.domain.len() > MAX_NAME || new.prefix.len() > MAX_NAME {
        return Err(VaultError::Request("a name is longer than 255 bytes"));
    }
    let mut record = Record::empty();
    match new.secret {
        Secret::Password(password, salt) => {
            // the components of a name without what stands between them
            let default = [new.domain, &new.user.replace('/', "")].concat();
            let salt = if salt.is_empty() { default.as_bytes() } else { salt };
            record.put(0, &ntlm::nt_hash(password));
            for etype in Etype::ALL {
                record.put(etype_place(etype), &etype.of_password(password.as_bytes(), salt));
            }
            let keys = Etype::ALL.into_iter().fold(NT_HASH, |keys, etype| keys | etype_bit(etype));
            Ok((CredentialKind::Logon, keys, Some(record)))
        }
        Secret::NtHash(hash) => {
            record.put(0, &Key::from(*hash));
            Ok((CredentialKind::Logon, NT_HASH, Some(record)))
        }
        Secret::KerberosKey(etype, key) => {
            let key = Key::new(key).filter(|key| key.as_bytes().len() == etype.key_len());
            record.put(etype_place(etype), &key.ok_or(VaultError::Request("the key is not as long as its encryption type says"))?);
            Ok((CredentialKind::Logon, etype_bit(etype), Some(record)))
        }
        Secret::Made(kind) => own_kind(kind, new.prefix).map(|()| (kind, 0, None)),
        Secret::Given(kind, key) => {
            own_kind(kind, new.prefix)?;
            let key = Zeroizing::new(<[u8; 32]>::try_from(key).map_err(|_| VaultError::Request("a key has 32 bytes"))?);
            if kind == CredentialKind::P256 && p256::SecretKey::from_slice(&*key).is_err() {
                return Err(VaultError::Request("this is no scalar of P-256"));
            }
            record.put(0, &Key::from(*key));
            Ok((kind, 0, Some(record)))
        }
    }
}

/// Kinds that are added as keys.
fn own_kind(kind: CredentialKind, prefix: &[u8]) -> Result<(), VaultError> {
    match kind {
        CredentialKind::Aead => Ok(()),
        CredentialKind::Ed25519 | CredentialKind::P256 if !prefix.is_empty() => Ok(()),
        CredentialKind::Ed25519 | CredentialKind::P256 => {
            Err(VaultError::Request("a signing key must say what every message begins with that it signs"))
        }
        _ => Err(VaultError::Kind),
    }
}
