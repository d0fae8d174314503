//! Saved contexts (Part 1, 30): objects and sessions outside the TPM, encrypted and authenticated with a hierarchy's proof. TPM2_FlushContext.

use super::commands::{Call, HandleType, Reply};
use super::crypt::{Hash, Secret, cfb, same};
use super::entity::{handle_type, is_hmac_session, is_policy_session};
use super::hierarchy::{NULL, read_hierarchy};
use super::object::{Object, TRANSIENT};
use super::public::MAX_DIGEST;
use super::rc;
use super::session::Session;
use super::state::State;
use super::stored::Stored;
use super::wire::{Params, Put, Reader, Result};

/// savedHandle of an object, and of one that the next TPM2_Startup(CLEAR) ends.
const OBJECT: u32 = TRANSIENT;
const ST_CLEAR_OBJECT: u32 = TRANSIENT + 2;
/// Most bytes of a context that the reference TPM takes.
const MAX_CONTEXT: usize = 2674;

/// TPMS_CONTEXT, but for its blob.
struct Head {
    sequence: u64,
    handle: u32,
    hierarchy: u32,
}

impl State {
    /// Of the encrypted part. A context ends with the boot, and with the start for an object that does so.
    fn context_integrity(&self, head: &Head, encrypted: &[u8]) -> Vec<u8> {
        let clear_count = if head.handle == ST_CLEAR_OBJECT { self.reset.clear_count } else { 0 };
        Hash::Sha512.hmac(
            &self.proof(head.hierarchy).0,
            &[
                &self.total_reset_count.to_be_bytes(),
                &clear_count.to_be_bytes(),
                &head.sequence.to_be_bytes(),
                &head.handle.to_be_bytes(),
                encrypted,
            ],
        )
    }

    fn context_cfb(&self, encrypt: bool, head: &Head, data: &mut [u8]) -> Result<()> {
        const KEY: usize = 32;
        let proof = &self.proof(head.hierarchy).0;
        let derived = Hash::Sha512.kdfa(proof, "CONTEXT", &head.sequence.to_be_bytes(), &head.handle.to_be_bytes(), KEY + 16);
        let (key, iv) = derived.0.split_at_checked(KEY).ok_or(rc::FAILURE)?;
        cfb(encrypt, key, iv.try_into().map_err(|_| rc::FAILURE)?, data)
    }
}

/// TPM2_ContextSave.
pub(super) fn save(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    let handle = call.handle(0);
    let mut data = Secret::default();
    let head = if handle_type(handle) == handle_type(TRANSIENT) {
        let object = tpm.object(handle)?;
        object.store(&mut data.0);
        let saved = if object.st_clear { ST_CLEAR_OBJECT } else { OBJECT };
        let hierarchy = object.hierarchy;
        tpm.reset.object_context += 1;
        Head { sequence: tpm.reset.object_context, handle: saved, hierarchy }
    } else {
        let (sequence, session) = tpm.save_session(handle)?;
        session.store(&mut data.0);
        Head { sequence, handle, hierarchy: NULL }
    };
    tpm.context_cfb(true, &head, &mut data.0)?;
    let mut blob = Vec::with_capacity(data.0.len() + 66);
    blob.sized(&tpm.context_integrity(&head, &data.0));
    blob.bytes(&data.0);
    tpm.disorder = true;
    let mut reply = Reply::default();
    reply.body.u64(head.sequence);
    reply.body.u32(head.handle);
    reply.body.u32(head.hierarchy);
    reply.body.sized(&blob);
    Ok(reply)
}

/// TPM2_ContextLoad.
pub(super) fn load(tpm: &mut State, _: &Call, mut p: Params<'_>) -> Result<Reply> {
    let (mut head, blob) = p.next(|r| {
        let sequence = r.u64()?;
        let handle = r.u32()?;
        if !matches!(handle, OBJECT..=ST_CLEAR_OBJECT) && !is_hmac_session(handle) && !is_policy_session(handle) {
            return Err(rc::VALUE);
        }
        Ok((Head { sequence, handle, hierarchy: read_hierarchy(r)? }, r.sized(MAX_CONTEXT)?))
    })?;
    p.end()?;
    let mut r = Reader(blob);
    let integrity = r.sized(MAX_DIGEST)?;
    if integrity.len() != MAX_DIGEST || r.0.len() < 8 {
        return Err(rc::SIZE.parameter(1));
    }
    if !same(integrity, &tpm.context_integrity(&head, r.0)) {
        return Err(rc::INTEGRITY.parameter(1));
    }
    let mut data = Secret(r.0.to_vec());
    tpm.context_cfb(false, &head, &mut data.0)?;
    let mut r = Reader(&data.0);
    if handle_type(head.handle) == handle_type(TRANSIENT) {
        if !tpm.is_enabled(head.hierarchy) {
            return Err(rc::HIERARCHY.parameter(1));
        }
        let object = Object::restore(&mut r).ok_or(rc::FAILURE)?;
        head.handle = tpm.objects.add(object)?;
    } else {
        if !tpm.is_current_context(head.handle, head.sequence) {
            return Err(rc::HANDLE.parameter(1));
        }
        let session = Session::restore(&mut r).ok_or(rc::FAILURE)?;
        tpm.load_session(head.handle, session)?;
        tpm.disorder = true;
    }
    Ok(Reply { handle: Some(head.handle), body: Vec::new() })
}

/// TPM2_FlushContext. Its handle is a parameter, as it need not be loaded.
pub(super) fn flush(tpm: &mut State, _: &Call, mut p: Params<'_>) -> Result<Reply> {
    let handle = p.next(|r| HandleType::Context.read(r))?;
    p.end()?;
    let is_there = if handle_type(handle) == handle_type(TRANSIENT) {
        tpm.objects.remove(handle).is_some()
    } else {
        let is_there = tpm.session(handle).is_some() || tpm.is_saved_session(handle);
        if is_there {
            tpm.flush_session(handle);
        }
        is_there
    };
    if is_there { Ok(Reply::default()) } else { Err(rc::HANDLE.parameter(1)) }
}
