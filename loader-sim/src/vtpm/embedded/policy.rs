//! Policy commands (Part 3, 23): each extends a session's policy digest, and all but a trial session's only if what it asserts holds.

use super::commands::{Call, Reply, find};
use super::crypt::{Hash, same};
use super::hierarchy::{NULL, put_ticket, read_hierarchy};
use super::pcr::Selection;
use super::public::MAX_DIGEST;
use super::rc;
use super::session::Session;
use super::state::State;
use super::wire::{Params, Put, Reader, Result, read_tag};

const POLICY_NV: u32 = 0x149;
const POLICY_SECRET: u32 = 0x151;
const POLICY_AUTHORIZE: u32 = 0x16a;
const POLICY_AUTH_VALUE: u32 = 0x16b;
const POLICY_COMMAND_CODE: u32 = 0x16c;
const POLICY_OR: u32 = 0x171;
const POLICY_PCR: u32 = 0x17f;

/// TPM_ST of tickets.
pub(super) const ST_VERIFIED: u16 = 0x8022;
const ST_AUTH_SECRET: u16 = 0x8023;

/// Most bytes of a name that are taken: an algorithm and a digest, and two that the reference TPM's structure has besides.
pub(super) const MAX_NAME: usize = 4 + MAX_DIGEST;

impl Session {
    /// The digest after a command: over the one before, the code, and the command's own.
    fn extend(&mut self, code: u32, parts: &[&[u8]]) {
        let code = code.to_be_bytes();
        let all: Vec<&[u8]> = [&self.policy.digest[..], &code].into_iter().chain(parts.iter().copied()).collect();
        self.policy.digest = self.hash.digest(&all);
    }

    /// With a name and a reference, which are hashed in turn.
    fn extend_named(&mut self, code: u32, name: &[u8], reference: &[u8]) {
        self.extend(code, &[name]);
        self.policy.digest = self.hash.digest(&[&self.policy.digest, reference]);
    }
}

/// TPM2_PolicyRestart.
pub(super) fn restart(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    tpm.policy_session(call.handle(0))?.restart_policy();
    Ok(Reply::default())
}

/// TPM2_PolicyGetDigest.
pub(super) fn get_digest(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    let mut reply = Reply::default();
    reply.body.sized(&tpm.policy_session(call.handle(0))?.policy.digest);
    Ok(reply)
}

/// TPM2_PolicyPCR.
pub(super) fn pcr(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let given = p.next(|r| r.sized(MAX_DIGEST))?;
    let selection = p.next(Selection::read)?;
    p.end()?;
    let counter = tpm.reset.pcr_counter;
    let hash = tpm.policy_session(call.handle(0))?.hash;
    let mut digest = selection.digest(hash, &tpm.pcrs);
    let session = tpm.policy_session(call.handle(0))?;
    if session.is_trial {
        if !given.is_empty() {
            digest = given.to_vec();
        }
    } else {
        if session.policy.pcr_counter != 0 && session.policy.pcr_counter != counter {
            return Err(rc::PCR_CHANGED);
        }
        if !given.is_empty() && !same(given, &digest) {
            return Err(rc::VALUE.parameter(1));
        }
        session.policy.pcr_counter = counter;
    }
    let mut pcrs = Vec::new();
    selection.put(&mut pcrs);
    session.extend(POLICY_PCR, &[&pcrs, &digest]);
    Ok(Reply::default())
}

/// TPM2_PolicyNV.
pub(super) fn nv(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let operand = p.next(|r| r.sized(MAX_DIGEST))?;
    let offset = p.next(|r| r.u16())?;
    let operation = p.next(|r| {
        let operation = r.u16()?;
        if operation <= 0x0b { Ok(operation) } else { Err(rc::VALUE) }
    })?;
    p.end()?;
    let (auth, handle, policy) = (call.handle(0), call.handle(1), call.handle(2));
    if !tpm.policy_session(policy)?.is_trial {
        let index = tpm.index(handle)?;
        index.check_read(auth)?;
        if usize::from(offset) > index.len() {
            return Err(rc::VALUE.parameter(2));
        }
        let data = index.slice(offset, operand.len()).ok_or_else(|| rc::SIZE.parameter(1))?;
        if !holds(operation, data, operand) {
            return Err(rc::POLICY);
        }
    }
    let name = tpm.entity_name(handle);
    let session = tpm.policy_session(policy)?;
    let arguments = session.hash.digest(&[operand, &offset.to_be_bytes(), &operation.to_be_bytes()]);
    session.extend(POLICY_NV, &[&arguments, &name]);
    Ok(Reply::default())
}

/// TPM_EO: compares numbers of one length. Signed comparison is that of Part 2; 0.9 of the reference TPM gets it wrong.
fn holds(operation: u16, a: &[u8], b: &[u8]) -> bool {
    let signed = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        if let Some(first) = bytes.first_mut() {
            *first ^= 0x80;
        }
        bytes
    };
    match operation {
        0 => a == b,
        1 => a != b,
        2 => signed(a) > signed(b),
        3 => a > b,
        4 => signed(a) < signed(b),
        5 => a < b,
        6 => signed(a) >= signed(b),
        7 => a >= b,
        8 => signed(a) <= signed(b),
        9 => a <= b,
        10 => a.iter().zip(b).all(|(a, b)| a & b == *b),
        _ => a.iter().zip(b).all(|(a, b)| a & b == 0),
    }
}

/// TPM2_PolicyOR.
pub(super) fn or(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let branches = p.next(|r| {
        let count = r.u32()?;
        if !(2..=8).contains(&count) {
            return Err(rc::SIZE);
        }
        (0..count).map(|_| r.sized(MAX_DIGEST)).collect::<Result<Vec<_>>>()
    })?;
    p.end()?;
    let session = tpm.policy_session(call.handle(0))?;
    if !session.is_trial && !branches.iter().any(|branch| same(branch, &session.policy.digest)) {
        return Err(rc::VALUE.parameter(1));
    }
    session.policy.digest = vec![0; session.hash.size()];
    session.extend(POLICY_OR, &branches);
    Ok(Reply::default())
}

/// TPM2_PolicyAuthorize.
pub(super) fn authorize(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let approved = p.next(|r| r.sized(MAX_DIGEST))?;
    let reference = p.next(|r| r.sized(MAX_DIGEST))?;
    let key = p.next(|r| r.sized(MAX_NAME))?;
    let (hierarchy, ticket) = p.next(read_verified)?;
    p.end()?;
    let hash = Reader(key).u16().ok().and_then(Hash::from_id).ok_or_else(|| rc::HASH.parameter(3))?;
    if key.len() != 2 + hash.size() {
        return Err(rc::SIZE.parameter(3));
    }
    if !tpm.policy_session(call.handle(0))?.is_trial {
        if !same(&tpm.policy_session(call.handle(0))?.policy.digest, approved) {
            return Err(rc::VALUE.parameter(1));
        }
        let signed = hash.digest(&[approved, reference]);
        if !same(&tpm.ticket(hierarchy, ST_VERIFIED, &[&signed, key]), ticket) {
            return Err(rc::VALUE.parameter(4));
        }
    }
    let session = tpm.policy_session(call.handle(0))?;
    session.policy.digest = vec![0; session.hash.size()];
    session.extend_named(POLICY_AUTHORIZE, key, reference);
    Ok(Reply::default())
}

/// TPMT_TK_VERIFIED.
fn read_verified<'a>(r: &mut Reader<'a>) -> Result<(u32, &'a [u8])> {
    if read_tag(r)? != ST_VERIFIED {
        return Err(rc::TAG);
    }
    Ok((read_hierarchy(r)?, r.sized(MAX_DIGEST)?))
}

/// TPM2_PolicyAuthValue.
pub(super) fn auth_value(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    needs_value(tpm, call, p, false)
}

/// TPM2_PolicyPassword, which gives the same digest.
pub(super) fn password(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    needs_value(tpm, call, p, true)
}

fn needs_value(tpm: &mut State, call: &Call, p: Params<'_>, password: bool) -> Result<Reply> {
    p.end()?;
    let session = tpm.policy_session(call.handle(0))?;
    session.extend(POLICY_AUTH_VALUE, &[]);
    session.policy.password = password;
    session.policy.auth_value = !password;
    Ok(Reply::default())
}

/// TPM2_PolicyCommandCode.
pub(super) fn command_code(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let code = p.next(|r| r.u32())?;
    p.end()?;
    let session = tpm.policy_session(call.handle(0))?;
    if session.policy.command != 0 && session.policy.command != code {
        return Err(rc::VALUE.parameter(1));
    }
    if find(code).is_none() {
        return Err(rc::POLICY_CC.parameter(1));
    }
    session.extend(POLICY_COMMAND_CODE, &[&code.to_be_bytes()]);
    session.policy.command = code;
    Ok(Reply::default())
}

/// TPM2_PolicySecret. The tickets that it gives have no command here that takes them.
pub(super) fn secret(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    /// Of a ticket's time: it ends with the TPM's next reset.
    const UNTIL_RESET: u64 = 1 << 63;
    let nonce = p.next(|r| r.sized(MAX_DIGEST))?;
    let cp_hash = p.next(|r| r.sized(MAX_DIGEST))?;
    let reference = p.next(|r| r.sized(MAX_DIGEST))?;
    let expiration = p.next(|r| r.u32())?.cast_signed();
    p.end()?;
    let (entity, policy) = (call.handle(0), call.handle(1));
    let (time, epoch) = (tpm.time, tpm.epoch);
    let name = tpm.entity_name(entity);
    let session = tpm.policy_session(policy)?;
    let is_trial = session.is_trial;
    let mut timeout = 0;
    if !is_trial {
        if expiration != 0 {
            let milliseconds = u64::from(expiration.unsigned_abs()) * 1000;
            timeout = milliseconds + if nonce.is_empty() { time % 1000 } else { session.start_time };
        }
        if !nonce.is_empty() && !same(nonce, &session.nonce) {
            return Err(rc::NONCE.parameter(1));
        }
        if timeout != 0 && (timeout < time || session.epoch != epoch) {
            return Err(rc::EXPIRED.parameter(4));
        }
        if !cp_hash.is_empty() {
            if cp_hash.len() != session.hash.size() {
                return Err(rc::SIZE.parameter(2));
            }
            if !session.policy.cp_hash.is_empty() && !same(cp_hash, &session.policy.cp_hash) {
                return Err(rc::CPHASH);
            }
        }
    }
    session.extend_named(POLICY_SECRET, &name, reference);
    if !cp_hash.is_empty() {
        session.policy.cp_hash = cp_hash.to_vec();
    }
    if timeout != 0 && (session.policy.timeout == 0 || session.policy.timeout > timeout) {
        session.policy.timeout = timeout;
    }
    let mut reply = Reply::default();
    if expiration < 0 && !is_trial && !tpm.nv.is_pin_pass(entity) {
        let hierarchy = tpm.entity_hierarchy(entity);
        let end = if nonce.is_empty() { timeout | UNTIL_RESET } else { timeout };
        let digest = tpm.ticket(hierarchy, ST_AUTH_SECRET, &[cp_hash, reference, &name, &end.to_be_bytes()]);
        reply.body.sized(&end.to_be_bytes());
        put_ticket(&mut reply.body, ST_AUTH_SECRET, hierarchy, &digest);
    } else {
        reply.body.sized(&[]);
        put_ticket(&mut reply.body, ST_AUTH_SECRET, NULL, &[]);
    }
    Ok(reply)
}
