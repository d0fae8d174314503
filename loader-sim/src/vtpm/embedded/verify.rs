//! TPM2_VerifySignature: a ticket for a signature that is right, as TPM2_PolicyAuthorize takes it.

use super::commands::{Call, Reply};
use super::crypt::{Hash, same, verify};
use super::hierarchy::{NULL, put_ticket};
use super::object::Object;
use super::policy::ST_VERIFIED;
use super::public::{ALG_ECDSA, ALG_HMAC, Kind, MAX_DIGEST, attribute};
use super::rc;
use super::state::State;
use super::wire::{Params, Reader, Result};

/// TPMT_SIGNATURE.
struct Signature<'a> {
    algorithm: u16,
    hash: Hash,
    first: &'a [u8],
    second: &'a [u8],
}

pub(super) fn verify_signature(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let digest = p.next(|r| r.sized(MAX_DIGEST))?;
    let signature = p.next(read_signature)?;
    p.end()?;
    let object = tpm.object(call.handle(0))?;
    if !object.public.has(attribute::SIGN) {
        return Err(rc::ATTRIBUTES.handle(1));
    }
    check(object, digest, &signature).map_err(|e| e.parameter(2))?;
    let mut reply = Reply::default();
    if object.hierarchy == NULL || object.public.name_alg.is_none() {
        put_ticket(&mut reply.body, ST_VERIFIED, NULL, &[]);
    } else {
        let ticket = tpm.ticket(object.hierarchy, ST_VERIFIED, &[digest, &object.name]);
        put_ticket(&mut reply.body, ST_VERIFIED, object.hierarchy, &ticket);
    }
    Ok(reply)
}

/// Schemes of keys that this TPM has none of are read, and fit no key.
fn read_signature<'a>(r: &mut Reader<'a>) -> Result<Signature<'a>> {
    const MAX_RSA: usize = 384;
    const MAX_ECC: usize = 80;
    let algorithm = r.u16()?;
    let hash = match algorithm {
        ALG_HMAC | 0x14 | 0x16 | ALG_ECDSA..=0x1c if algorithm != 0x19 => Hash::read(r)?,
        _ => return Err(rc::SCHEME),
    };
    let (first, second) = match algorithm {
        ALG_HMAC => (r.take(hash.size())?, &[][..]),
        0x14 | 0x16 => (r.sized(MAX_RSA)?, &[][..]),
        _ => (r.sized(MAX_ECC)?, r.sized(MAX_ECC)?),
    };
    Ok(Signature { algorithm, hash, first, second })
}

fn check(object: &Object, digest: &[u8], signature: &Signature<'_>) -> Result<()> {
    let right = match &object.public.kind {
        Kind::Ecc { unique, .. } => {
            if signature.algorithm != ALG_ECDSA {
                return Err(rc::SCHEME);
            }
            unique.public().is_some_and(|public| verify(&public, digest, signature.first, signature.second))
        }
        Kind::KeyedHash { scheme, .. } => {
            let sensitive = object.sensitive.as_ref().ok_or(rc::HANDLE)?;
            if signature.algorithm != ALG_HMAC || scheme.hash.is_some_and(|hash| hash != signature.hash) {
                return Err(rc::SIGNATURE);
            }
            same(&signature.hash.hmac(&sensitive.data.0, &[digest]), signature.first)
        }
    };
    if right { Ok(()) } else { Err(rc::SIGNATURE) }
}
