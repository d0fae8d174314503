//! NV indices (Part 1, 37): data that outlives power-off, counters, bits, extend indices and PINs, with their locks.

use std::collections::BTreeMap;

use super::commands::{Call, Reply};
use super::crypt::{Hash, Secret};
use super::hierarchy::{OWNER, PLATFORM};
use super::public::MAX_DIGEST;
use super::rc;
use super::state::State;
use super::stored::stored;
use super::wire::{Params, Put, Reader, Result};

pub(super) const FIRST: u32 = 0x0100_0000;

/// TPMA_NV.
const PP_WRITE: u32 = 1;
const OWNER_WRITE: u32 = 1 << 1;
pub(super) const AUTH_WRITE: u32 = 1 << 2;
pub(super) const POLICY_WRITE: u32 = 1 << 3;
const POLICY_DELETE: u32 = 1 << 10;
const WRITE_LOCKED: u32 = 1 << 11;
const WRITE_ALL: u32 = 1 << 12;
const WRITE_DEFINE: u32 = 1 << 13;
const WRITE_ST_CLEAR: u32 = 1 << 14;
const GLOBAL_LOCK: u32 = 1 << 15;
const PP_READ: u32 = 1 << 16;
const OWNER_READ: u32 = 1 << 17;
const AUTH_READ: u32 = 1 << 18;
pub(super) const POLICY_READ: u32 = 1 << 19;
pub(super) const NO_DA: u32 = 1 << 25;
const ORDERLY: u32 = 1 << 26;
const CLEAR_ST_CLEAR: u32 = 1 << 27;
const READ_LOCKED: u32 = 1 << 28;
const WRITTEN: u32 = 1 << 29;
pub(super) const PLATFORM_CREATE: u32 = 1 << 30;
const READ_ST_CLEAR: u32 = 1 << 31;
const RESERVED: u32 = 0x01f0_0300;

/// TPM_NT, in bits 4 to 7.
const ORDINARY: u32 = 0;
const COUNTER: u32 = 1;
const BITS: u32 = 2;
const EXTEND: u32 = 4;
const PIN_FAIL: u32 = 8;
const PIN_PASS: u32 = 9;

/// Most bytes of an index, and of those read or written at once.
const MAX_SIZE: usize = 2048;
pub(super) const MAX_BUFFER: usize = 1024;
/// Most indices, and bytes of all.
const MAX_INDICES: usize = 64;
const MAX_TOTAL: usize = 64 * 1024;
/// An orderly counter is kept whenever these bits are zero.
const ORDERLY_COUNT: u64 = 0xff;

/// An index.
#[derive(Clone, Debug)]
pub(super) struct Index {
    handle: u32,
    pub(super) name_alg: Hash,
    attributes: u32,
    pub(super) policy: Vec<u8>,
    pub(super) auth: Secret,
    data: Secret,
    /// Of an orderly index: attributes and data as they were kept last.
    kept: Option<(u32, Secret)>,
}
stored!(Index { handle name_alg attributes policy auth data kept });

/// All indices, by handle.
#[derive(Clone, Debug, Default)]
pub(super) struct Nv {
    indices: BTreeMap<u32, Index>,
    /// The highest value of a counter that was deleted, or was there at the last start: new ones go on from it.
    max_count: u64,
}
stored!(Nv { indices max_count });

impl Index {
    pub(super) fn has(&self, attribute: u32) -> bool {
        self.attributes & attribute != 0
    }

    fn kind(&self) -> u32 {
        self.attributes >> 4 & 0xf
    }

    fn is_pin(&self) -> bool {
        matches!(self.kind(), PIN_FAIL | PIN_PASS)
    }

    /// TPMS_NV_PUBLIC.
    fn public(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.u32(self.handle);
        out.u16(self.name_alg.id());
        out.u32(self.attributes);
        out.sized(&self.policy);
        out.u16(u16::try_from(self.data.0.len()).unwrap_or(u16::MAX));
        out
    }

    pub(super) fn name(&self) -> Vec<u8> {
        [&self.name_alg.id().to_be_bytes()[..], &self.name_alg.digest(&[&self.public()])].concat()
    }

    /// The data of a counter or bits.
    fn number(&self) -> u64 {
        self.data.0.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }

    /// How often a PIN was used, and may be.
    fn pin(&self) -> (u32, u32) {
        let number = self.number().to_be_bytes();
        let mut r = Reader(&number);
        (r.u32().unwrap_or(0), r.u32().unwrap_or(0))
    }

    pub(super) fn may_read_with_auth(&self) -> bool {
        if self.is_pin() {
            let (count, limit) = self.pin();
            return self.has(WRITTEN) && count < limit;
        }
        self.has(AUTH_READ)
    }

    fn keep(&mut self) {
        if self.has(ORDERLY) {
            self.kept = Some((self.attributes, self.data.clone()));
        }
    }

    fn check_access(&self, auth: u32, locked: u32, owner: u32, platform: u32) -> Result<()> {
        if self.has(locked) {
            return Err(rc::NV_LOCKED);
        }
        let allowed = match auth {
            OWNER => self.has(owner),
            PLATFORM => self.has(platform),
            handle => handle == self.handle,
        };
        if allowed { Ok(()) } else { Err(rc::NV_AUTHORIZATION) }
    }

    fn check_write(&self, auth: u32) -> Result<()> {
        self.check_access(auth, WRITE_LOCKED, OWNER_WRITE, PP_WRITE)
    }

    pub(super) fn check_read(&self, auth: u32) -> Result<()> {
        self.check_access(auth, READ_LOCKED, OWNER_READ, PP_READ)?;
        if self.has(WRITTEN) { Ok(()) } else { Err(rc::NV_UNINITIALIZED) }
    }

    /// Bytes from an offset; None if they are not all within.
    pub(super) fn slice(&self, offset: u16, len: usize) -> Option<&[u8]> {
        self.data.0.get(usize::from(offset)..)?.get(..len)
    }

    pub(super) fn len(&self) -> usize {
        self.data.0.len()
    }
}

impl Nv {
    pub(super) fn get(&self, handle: u32) -> Option<&Index> {
        self.indices.get(&handle)
    }

    pub(super) fn is_pin(&self, handle: u32) -> bool {
        self.get(handle).is_some_and(Index::is_pin)
    }

    pub(super) fn is_pin_pass(&self, handle: u32) -> bool {
        self.get(handle).is_some_and(|index| index.kind() == PIN_PASS)
    }

    pub(super) fn handles(&self) -> impl Iterator<Item = u32> {
        self.indices.keys().copied()
    }

    pub(super) fn counters(&self) -> usize {
        self.indices.values().filter(|index| index.kind() == COUNTER).count()
    }

    /// What was not kept of orderly indices is gone.
    pub(super) fn power_on(&mut self) {
        for index in self.indices.values_mut() {
            if let Some((attributes, data)) = &index.kept {
                index.attributes = *attributes;
                index.data = data.clone();
            }
        }
    }

    /// What is orderly is kept: at TPM2_Shutdown, and when attributes change or a counter has gone far.
    pub(super) fn keep(&mut self) {
        self.indices.values_mut().for_each(Index::keep);
    }

    /// Remembers the value of a counter.
    fn count(&mut self, handle: u32) {
        if let Some(index) = self.get(handle).filter(|index| index.kind() == COUNTER && index.has(WRITTEN)) {
            self.max_count = self.max_count.max(index.number());
        }
    }

    /// Remembers the values of all counters.
    pub(super) fn count_all(&mut self) {
        for handle in self.handles().collect::<Vec<_>>() {
            self.count(handle);
        }
    }

    /// At TPM2_Startup, unless a saved state is resumed: locks open, and what is to be written anew each time counts as unwritten.
    pub(super) fn start(&mut self, is_reset: bool, was_orderly: bool) {
        for index in self.indices.values_mut() {
            index.attributes &= !READ_LOCKED;
            if index.kind() != COUNTER && (index.has(CLEAR_ST_CLEAR) || index.has(ORDERLY) && is_reset) {
                index.attributes &= !WRITTEN;
            }
            if !index.has(WRITTEN) || !index.has(WRITE_DEFINE) {
                index.attributes &= !WRITE_LOCKED;
            }
            if index.kind() == COUNTER && index.has(ORDERLY) && !was_orderly {
                index.data = Secret((index.number() | ORDERLY_COUNT).to_be_bytes().to_vec());
            }
        }
    }

    /// At TPM2_Clear: the owner's are gone.
    pub(super) fn clear(&mut self) {
        let owners: Vec<u32> = self.indices.values().filter(|index| !index.has(PLATFORM_CREATE)).map(|index| index.handle).collect();
        for handle in owners {
            self.count(handle);
        }
        self.indices.retain(|_, index| index.has(PLATFORM_CREATE));
    }

    /// After an index' authorisation value was tried.
    pub(super) fn count_pin(&mut self, handle: u32, succeeded: bool) {
        let Some(index) = self.indices.get_mut(&handle).filter(|index| index.is_pin() && index.has(WRITTEN)) else { return };
        let (count, limit) = index.pin();
        let count = match (index.kind(), succeeded) {
            (PIN_FAIL, true) => 0,
            (PIN_PASS, false) => count,
            _ => count.wrapping_add(1),
        };
        index.data = Secret([count.to_be_bytes(), limit.to_be_bytes()].concat());
    }
}

/// TPM2_NV_Write, _Increment, _SetBits, _Extend, _WriteLock.
pub(super) fn is_write(code: u32) -> bool {
    matches!(code, 0x134..=0x138)
}

impl State {
    /// Whether an index is there, and not hidden with its hierarchy.
    pub(super) fn check_nv(&self, handle: u32) -> Result<()> {
        let index = self.nv.get(handle).ok_or(rc::HANDLE)?;
        let enabled = if index.has(PLATFORM_CREATE) { self.clear.platform_nv_enabled } else { self.clear.owner_enabled };
        if enabled { Ok(()) } else { Err(rc::HANDLE) }
    }

    pub(super) fn index(&self, handle: u32) -> Result<&Index> {
        self.nv.get(handle).ok_or(rc::FAILURE)
    }

    /// Puts bytes where they are known to fit. What was never written is ones.
    fn write_index(&mut self, handle: u32, offset: usize, bytes: &[u8]) -> Result<Reply> {
        let index = self.nv.indices.get_mut(&handle).ok_or(rc::FAILURE)?;
        if !index.has(WRITTEN) {
            index.data.0.fill(0xff);
        }
        index.data.0.get_mut(offset..).and_then(|rest| rest.get_mut(..bytes.len())).ok_or(rc::FAILURE)?.copy_from_slice(bytes);
        let is_first = !index.has(WRITTEN);
        let is_orderly = index.has(ORDERLY);
        index.attributes |= WRITTEN;
        self.disorder |= is_orderly;
        if is_first && is_orderly {
            self.nv.keep();
        }
        Ok(Reply::default())
    }
}

/// TPM2_NV_DefineSpace.
pub(super) fn define(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let auth = p.next(|r| r.sized(MAX_DIGEST))?;
    let mut index = p.next(|r| r.sized_as(read_index))?;
    p.end()?;
    let by_platform = call.handle(0) == PLATFORM;
    index.auth = Secret::auth(auth);
    check_definition(&index, by_platform)?;
    if by_platform && !tpm.clear.platform_nv_enabled {
        return Err(rc::HIERARCHY.handle(1));
    }
    if tpm.nv.indices.contains_key(&index.handle) {
        return Err(rc::NV_DEFINED);
    }
    let total: usize = tpm.nv.indices.values().map(Index::len).sum();
    if tpm.nv.indices.len() >= MAX_INDICES || total + index.len() > MAX_TOTAL {
        return Err(rc::NV_SPACE);
    }
    index.keep();
    tpm.nv.indices.insert(index.handle, index);
    Ok(Reply::default())
}

fn read_index(r: &mut Reader<'_>) -> Result<Index> {
    let handle = r.u32()?;
    if handle >> 24 != FIRST >> 24 {
        return Err(rc::VALUE);
    }
    let name_alg = Hash::read(r)?;
    let attributes = r.u32()?;
    if attributes & RESERVED != 0 {
        return Err(rc::RESERVED_BITS);
    }
    let policy = r.sized(MAX_DIGEST)?.to_vec();
    let size = usize::from(r.u16()?);
    if size > MAX_SIZE {
        return Err(rc::SIZE);
    }
    Ok(Index { handle, name_alg, attributes, policy, auth: Secret::default(), data: Secret(vec![0xff; size]), kept: None })
}

/// Whether attributes and sizes fit the type and each other.
fn check_definition(index: &Index, by_platform: bool) -> Result<()> {
    let (size, attributes) = (Err(rc::SIZE.parameter(2)), Err(rc::ATTRIBUTES.parameter(2)));
    let digest = index.name_alg.size();
    if !index.policy.is_empty() && index.policy.len() != digest {
        return size;
    }
    if index.auth.0.len() > digest {
        return Err(rc::SIZE.parameter(1));
    }
    let fits = match index.kind() {
        ORDINARY => true,
        EXTEND => index.len() == digest,
        COUNTER | BITS | PIN_FAIL | PIN_PASS => index.len() == 8,
        _ => return attributes,
    };
    if !fits {
        return size;
    }
    let refused = match index.kind() {
        COUNTER => index.has(CLEAR_ST_CLEAR),
        PIN_FAIL if !index.has(NO_DA) => true,
        PIN_FAIL | PIN_PASS => index.has(AUTH_WRITE | GLOBAL_LOCK | WRITE_DEFINE),
        _ => false,
    };
    if refused
        || index.has(WRITTEN | WRITE_LOCKED | READ_LOCKED)
        || !index.has(OWNER_READ | PP_READ | AUTH_READ | POLICY_READ)
        || !index.has(OWNER_WRITE | PP_WRITE | AUTH_WRITE | POLICY_WRITE)
        || index.has(CLEAR_ST_CLEAR) && index.has(WRITE_DEFINE)
    {
        return attributes;
    }
    if index.has(PLATFORM_CREATE) != by_platform {
        return Err(rc::ATTRIBUTES.handle(1));
    }
    // there is no command that could delete such an index
    if index.has(POLICY_DELETE) {
        return attributes;
    }
    if index.len() > MAX_BUFFER && index.has(WRITE_ALL) {
        return size;
    }
    Ok(())
}

/// TPM2_NV_UndefineSpace.
pub(super) fn undefine(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    let handle = call.handle(1);
    if call.handle(0) == OWNER && tpm.index(handle)?.has(PLATFORM_CREATE) {
        return Err(rc::NV_AUTHORIZATION);
    }
    tpm.nv.count(handle);
    tpm.nv.indices.remove(&handle);
    Ok(Reply::default())
}

/// TPM2_NV_ReadPublic.
pub(super) fn read_public(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    let index = tpm.index(call.handle(0))?;
    let mut reply = Reply::default();
    reply.body.sized(&index.public());
    reply.body.sized(&index.name());
    Ok(reply)
}

/// TPM2_NV_Read.
pub(super) fn read(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let len = usize::from(p.next(|r| r.u16())?);
    let offset = p.next(|r| r.u16())?;
    p.end()?;
    let index = tpm.index(call.handle(1))?;
    index.check_read(call.handle(0))?;
    if len > MAX_BUFFER {
        return Err(rc::VALUE.parameter(1));
    }
    if usize::from(offset) > index.len() {
        return Err(rc::VALUE.parameter(2));
    }
    let mut reply = Reply::default();
    reply.body.sized(index.slice(offset, len).ok_or(rc::NV_RANGE)?);
    Ok(reply)
}

/// TPM2_NV_Write.
pub(super) fn write(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let data = p.next(|r| r.sized(MAX_BUFFER))?;
    let offset = p.next(|r| r.u16())?;
    p.end()?;
    let index = tpm.index(call.handle(1))?;
    index.check_write(call.handle(0))?;
    if matches!(index.kind(), COUNTER | BITS | EXTEND) {
        return Err(rc::ATTRIBUTES);
    }
    if usize::from(offset) > index.len() {
        return Err(rc::VALUE.parameter(2));
    }
    if index.slice(offset, data.len()).is_none() || index.has(WRITE_ALL) && data.len() < index.len() {
        return Err(rc::NV_RANGE);
    }
    tpm.write_index(call.handle(1), usize::from(offset), data)
}

/// TPM2_NV_Increment.
pub(super) fn increment(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    let index = tpm.index(call.handle(1))?;
    index.check_write(call.handle(0))?;
    if index.kind() != COUNTER {
        return Err(rc::ATTRIBUTES.handle(2));
    }
    let before = if index.has(WRITTEN) { index.number() } else { tpm.nv.max_count };
    let number = before.wrapping_add(1);
    let reply = tpm.write_index(call.handle(1), 0, &number.to_be_bytes())?;
    if number & ORDERLY_COUNT == 0 && tpm.index(call.handle(1))?.has(ORDERLY) {
        tpm.nv.keep();
    }
    Ok(reply)
}

/// TPM2_NV_SetBits.
pub(super) fn set_bits(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let bits = p.next(|r| r.u64())?;
    p.end()?;
    let index = tpm.index(call.handle(1))?;
    index.check_write(call.handle(0))?;
    if index.kind() != BITS {
        return Err(rc::ATTRIBUTES.handle(2));
    }
    let before = if index.has(WRITTEN) { index.number() } else { 0 };
    tpm.write_index(call.handle(1), 0, &(before | bits).to_be_bytes())
}

/// TPM2_NV_Extend.
pub(super) fn extend(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let data = p.next(|r| r.sized(MAX_BUFFER))?;
    p.end()?;
    let index = tpm.index(call.handle(1))?;
    index.check_write(call.handle(0))?;
    if index.kind() != EXTEND {
        return Err(rc::ATTRIBUTES.handle(2));
    }
    let before = if index.has(WRITTEN) { index.data.0.clone() } else { vec![0; index.len()] };
    let value = index.name_alg.digest(&[&before, data]);
    tpm.write_index(call.handle(1), 0, &value)
}

/// TPM2_NV_WriteLock.
pub(super) fn write_lock(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    let index = tpm.index(call.handle(1))?;
    match index.check_write(call.handle(0)) {
        Err(rc::NV_LOCKED) => return Ok(Reply::default()),
        other => other?,
    }
    lock(tpm, call.handle(1), WRITE_DEFINE | WRITE_ST_CLEAR, WRITE_LOCKED)
}

/// TPM2_NV_ReadLock.
pub(super) fn read_lock(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    match tpm.index(call.handle(1))?.check_read(call.handle(0)) {
        Err(rc::NV_LOCKED) => return Ok(Reply::default()),
        Ok(()) | Err(rc::NV_UNINITIALIZED) => {}
        Err(e) => return Err(e),
    }
    lock(tpm, call.handle(1), READ_ST_CLEAR, READ_LOCKED)
}

fn lock(tpm: &mut State, handle: u32, needed: u32, lock: u32) -> Result<Reply> {
    let index = tpm.nv.indices.get_mut(&handle).ok_or(rc::FAILURE)?;
    if !index.has(needed) {
        return Err(rc::ATTRIBUTES.handle(2));
    }
    index.attributes |= lock;
    if index.has(ORDERLY) {
        tpm.disorder = true;
        tpm.nv.keep();
    }
    Ok(Reply::default())
}
