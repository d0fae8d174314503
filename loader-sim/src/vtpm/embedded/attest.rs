//! Attestation (Part 1, 31): TPM2_Quote and TPM2_Certify.

use super::capability::FIRMWARE_VERSION;
use super::commands::{Call, Reply};
use super::crypt::{Hash, Secret};
use super::hierarchy::{ENDORSEMENT, NULL, OWNER, PLATFORM};
use super::object::Object;
use super::pcr::Selection;
use super::public::{ALG_ECDSA, ALG_HMAC, ALG_KEYEDHASH, ALG_NULL, Scheme, attribute};
use super::rc;
use super::state::State;
use super::wire::{Params, Put, Reader, Result};

/// TPM_GENERATED_VALUE: no restricted key signs anything else that begins so.
const GENERATED: u32 = 0xff54_4347;
const ST_CERTIFY: u16 = 0x8017;
const ST_QUOTE: u16 = 0x8018;

/// Most bytes of qualifying data: an algorithm and a digest.
pub(super) const MAX_DATA: usize = 66;

/// The scheme that a key signs with: its own, or what was asked for if that is no other.
fn choose_scheme(object: Option<&Object>, asked: Scheme) -> Option<Scheme> {
    let Some(object) = object else { return Some(Scheme::NULL) };
    let own = object.public.scheme();
    if own.algorithm == ALG_NULL {
        (asked.algorithm != ALG_NULL).then_some(asked)
    } else if asked.algorithm == ALG_NULL {
        Some(own)
    } else {
        (own.algorithm == asked.algorithm && own.hash == asked.hash).then_some(asked)
    }
}

impl State {
    fn signing_object(&self, handle: u32) -> Result<Option<&Object>> {
        if handle == NULL {
            return Ok(None);
        }
        self.object(handle).map(Some)
    }

    /// The head of a TPMS_ATTEST.
    fn attest(&self, signer: Option<&Object>, kind: u16, data: &[u8]) -> Vec<u8> {
        let null = NULL.to_be_bytes();
        let name = signer.map_or(&null[..], |object| &object.qualified);
        let mut out = Vec::with_capacity(256);
        out.u32(GENERATED);
        out.u16(kind);
        out.sized(name);
        out.sized(data);
        let (mut reset, mut restart, mut version) = (self.reset_count, self.reset.restart_count, FIRMWARE_VERSION);
        if !signer.is_some_and(|object| matches!(object.hierarchy, ENDORSEMENT | PLATFORM)) {
            // others are not to recognise this TPM by its counts
            let mask = Hash::Sha512.kdfa(&self.proof(OWNER).0, "OBFUSCATE", name, &[], 16);
            let mut r = Reader(&mask.0);
            version = version.wrapping_add(r.u64().unwrap_or(0));
            reset = reset.wrapping_add(r.u32().unwrap_or(0));
            restart = restart.wrapping_add(r.u32().unwrap_or(0));
        }
        out.u64(self.clock);
        out.u32(reset);
        out.u32(restart);
        out.u8(u8::from(self.clock_safe));
        out.u64(version);
        out
    }
}

/// TPMT_SIGNATURE over a message; none without a key.
fn put_signature(out: &mut Vec<u8>, object: Option<&Object>, scheme: Scheme, message: &[u8]) -> Result<()> {
    let (Some(object), Some(hash)) = (object, scheme.hash) else {
        out.u16(ALG_NULL);
        return Ok(());
    };
    let digest = hash.digest(&[message]);
    out.u16(scheme.algorithm);
    out.u16(hash.id());
    if object.public.type_id() == ALG_KEYEDHASH {
        if scheme.algorithm != ALG_HMAC {
            return Err(rc::SCHEME);
        }
        let key = object.sensitive.as_ref().map_or_else(Secret::default, |sensitive| sensitive.data.clone());
        out.bytes(&hash.hmac(&key.0, &[&digest]));
        return Ok(());
    }
    if scheme.algorithm != ALG_ECDSA {
        return Err(rc::SCHEME);
    }
    let (r, s) = object.signer.as_ref().and_then(|signer| signer.sign(hash, &digest)).ok_or(rc::FAILURE)?;
    out.sized(&r);
    out.sized(&s);
    Ok(())
}

fn finish(tpm: &mut State, signer: u32, scheme: Scheme, attest: &[u8]) -> Result<Reply> {
    let mut reply = Reply { handle: None, body: Vec::with_capacity(512) };
    reply.body.sized(attest);
    let object = tpm.signing_object(signer)?;
    let is_signed = object.is_some();
    put_signature(&mut reply.body, object, scheme, attest)?;
    tpm.disorder |= is_signed;
    Ok(reply)
}

fn is_signing(object: Option<&Object>) -> bool {
    object.is_none_or(|object| object.public.has(attribute::SIGN))
}

/// TPM2_Quote.
pub(super) fn quote(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let data = p.next(|r| r.sized(MAX_DATA))?;
    let scheme = p.next(Scheme::read_signing)?;
    let selection = p.next(Selection::read)?;
    p.end()?;
    let object = tpm.signing_object(call.handle(0))?;
    if !is_signing(object) {
        return Err(rc::KEY.handle(1));
    }
    let scheme = choose_scheme(object, scheme).ok_or_else(|| rc::SCHEME.parameter(2))?;
    let hash = scheme.hash.ok_or_else(|| rc::SCHEME.parameter(2))?;
    let mut attest = tpm.attest(object, ST_QUOTE, data);
    selection.put(&mut attest);
    attest.sized(&selection.digest(hash, &tpm.pcrs));
    finish(tpm, call.handle(0), scheme, &attest)
}

/// TPM2_Certify.
pub(super) fn certify(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let data = p.next(|r| r.sized(MAX_DATA))?;
    let scheme = p.next(Scheme::read_signing)?;
    p.end()?;
    let signer = tpm.signing_object(call.handle(1))?;
    if !is_signing(signer) {
        return Err(rc::KEY.handle(2));
    }
    let scheme = choose_scheme(signer, scheme).ok_or_else(|| rc::SCHEME.parameter(2))?;
    let object = tpm.object(call.handle(0))?;
    let mut attest = tpm.attest(signer, ST_CERTIFY, data);
    attest.sized(&object.name);
    attest.sized(&object.qualified);
    finish(tpm, call.handle(1), scheme, &attest)
}
