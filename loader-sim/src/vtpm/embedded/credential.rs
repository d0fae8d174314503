//! Credentials (Part 1, 24): TPM2_MakeCredential and _ActivateCredential, by which an attestation key is bound to an endorsement key.

use super::commands::{Call, Reply};
use super::crypt::{Point, Secret, ecdh};
use super::object::Object;
use super::policy::MAX_NAME;
use super::public::{Kind, MAX_DIGEST};
use super::rc;
use super::session::MAX_ENCRYPTED_SECRET;
use super::state::State;
use super::wire::{Params, Put, Reader, Result};
use super::wrap::Protector;

const IDENTITY: &str = "IDENTITY";
/// Most bytes of a credential that is wrapped: an HMAC, and a digest with its size.
const MAX_ID_OBJECT: usize = 132;

/// A secret that was encrypted to a key: a point, from which both sides derive it.
pub(super) fn decrypt_secret(key: &Object, label: &str, secret: &[u8]) -> Result<Secret> {
    let Kind::Ecc { unique, .. } = &key.public.kind else { return Err(rc::KEY) };
    let hash = key.public.name_alg.ok_or(rc::FAILURE)?;
    let sensitive = key.sensitive.as_ref().ok_or(rc::FAILURE)?;
    let point = Point::read(&mut Reader(secret))?;
    let public = point.public().ok_or(rc::ECC_POINT)?;
    let z = ecdh(&sensitive.data, &public).ok_or(rc::FAILURE)?;
    Ok(hash.kdfe(&z.0, label, &point.x, &unique.x, hash.size()))
}

/// TPM2_MakeCredential.
pub(super) fn make(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let credential = p.next(|r| r.sized(MAX_DIGEST))?;
    let name = p.next(|r| r.sized(MAX_NAME))?;
    p.end()?;
    let ephemeral = tpm.drbg.p256();
    let key = tpm.object(call.handle(0))?;
    if !key.is_storage_key() {
        return Err(rc::TYPE.handle(1));
    }
    if credential.len() > key.public.digest_size() {
        return Err(rc::SIZE.parameter(1));
    }
    let (Kind::Ecc { unique, .. }, Some(hash)) = (&key.public.kind, key.public.name_alg) else { return Err(rc::FAILURE) };
    let public = unique.public().ok_or(rc::FAILURE)?;
    let point = Point::of_private(&ephemeral).ok_or(rc::FAILURE)?;
    let z = ecdh(&ephemeral, &public).ok_or(rc::FAILURE)?;
    let seed = hash.kdfe(&z.0, IDENTITY, &point.x, &unique.x, hash.size());
    let mut data = Secret::default();
    data.0.sized(credential);
    let wrapped = Protector::key(key, &seed)?.wrap(name, None, data)?;
    let mut secret = Vec::new();
    point.put(&mut secret);
    let mut reply = Reply::default();
    reply.body.sized(&wrapped);
    reply.body.sized(&secret);
    Ok(reply)
}

/// TPM2_ActivateCredential.
pub(super) fn activate(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let wrapped = p.next(|r| r.sized(MAX_ID_OBJECT))?;
    let secret = p.next(|r| r.sized(MAX_ENCRYPTED_SECRET))?;
    p.end()?;
    let name = &tpm.object(call.handle(0))?.name;
    let key = tpm.object(call.handle(1))?;
    if !key.is_storage_key() {
        return Err(rc::TYPE.handle(2));
    }
    let seed = decrypt_secret(key, IDENTITY, secret).map_err(|e| e.parameter(2))?;
    let data = Protector::key(key, &seed)?.unwrap(name, false, wrapped).map_err(|e| e.parameter(1))?;
    let mut r = Reader(&data.0);
    let credential = r.sized(MAX_DIGEST).map_err(|e| e.parameter(1))?;
    if !r.0.is_empty() {
        return Err(rc::SIZE.parameter(1));
    }
    let mut reply = Reply::default();
    reply.body.sized(credential);
    Ok(reply)
}
