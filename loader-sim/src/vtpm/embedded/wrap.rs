//! The outer wrap (Part 1, 23): what leaves the TPM is encrypted and authenticated with keys from the seed of what protects it.

use super::crypt::{Hash, Secret, cfb, same};
use super::object::Object;
use super::public::{MAX_DIGEST, Sensitive};
use super::rc;
use super::wire::{Put, Reader, Result};

const BLOCK: usize = 16;

/// What protects: an algorithm, a seed, and the size of a key of AES.
pub(super) struct Protector<'a> {
    hash: Hash,
    seed: &'a Secret,
    key_bytes: usize,
}

impl<'a> Protector<'a> {
    /// A parent, with its own seed.
    pub(super) fn parent(object: &'a Object) -> Result<Self> {
        let seed = &object.sensitive.as_ref().ok_or(rc::FAILURE)?.seed;
        Self::key(object, seed)
    }

    /// A storage key, with a seed that was agreed on.
    pub(super) fn key(object: &Object, seed: &'a Secret) -> Result<Self> {
        let hash = object.public.name_alg.ok_or(rc::FAILURE)?;
        Ok(Self { hash, seed, key_bytes: object.public.symmetric().key_bytes() })
    }

    fn storage_key(&self, name: &[u8]) -> Secret {
        self.hash.kdfa(&self.seed.0, "STORAGE", name, &[], self.key_bytes)
    }

    fn integrity(&self, data: &[u8], name: &[u8]) -> Vec<u8> {
        let key = self.hash.kdfa(&self.seed.0, "INTEGRITY", &[], &[], self.hash.size());
        self.hash.hmac(&key.0, &[data, name])
    }

    /// HMAC, the IV if there is one, and the data encrypted.
    pub(super) fn wrap(&self, name: &[u8], iv: Option<[u8; BLOCK]>, mut data: Secret) -> Result<Vec<u8>> {
        cfb(true, &self.storage_key(name).0, iv.unwrap_or_default(), &mut data.0)?;
        let mut body = Vec::new();
        if let Some(iv) = iv {
            body.sized(&iv);
        }
        body.bytes(&data.0);
        let mut out = Vec::new();
        out.sized(&self.integrity(&body, name));
        out.bytes(&body);
        Ok(out)
    }

    pub(super) fn unwrap(&self, name: &[u8], with_iv: bool, wrapped: &[u8]) -> Result<Secret> {
        let mut r = Reader(wrapped);
        let integrity = r.sized(MAX_DIGEST)?;
        if !same(integrity, &self.integrity(r.0, name)) {
            return Err(rc::INTEGRITY);
        }
        let iv = if with_iv { r.sized(BLOCK)?.try_into().map_err(|_| rc::VALUE)? } else { [0; BLOCK] };
        let mut data = Secret(r.0.to_vec());
        cfb(false, &self.storage_key(name).0, iv, &mut data.0)?;
        Ok(data)
    }
}

/// TPM2B_PRIVATE of a child.
pub(super) fn wrap_sensitive(parent: &Object, name: &[u8], iv: [u8; BLOCK], sensitive: &Sensitive, digest_size: usize) -> Result<Vec<u8>> {
    let mut data = Secret::default();
    data.0.sized(&sensitive.marshal(digest_size).0);
    Protector::parent(parent)?.wrap(name, Some(iv), data)
}

pub(super) fn unwrap_sensitive(parent: &Object, name: &[u8], private: &[u8]) -> Result<Sensitive> {
    let data = Protector::parent(parent)?.unwrap(name, true, private)?;
    let mut r = Reader(&data.0);
    let len = usize::from(r.u16()?);
    if len != r.0.len() {
        return Err(rc::SENSITIVE);
    }
    let sensitive = Sensitive::read(&mut r).map_err(|_| rc::SENSITIVE)?;
    if r.0.is_empty() { Ok(sensitive) } else { Err(rc::SENSITIVE) }
}
