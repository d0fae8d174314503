//! TPM2_EvictControl: objects that outlive power-off.

use super::commands::{Call, Reply};
use super::hierarchy::{NULL, PLATFORM};
use super::object::{PERSISTENT, PLATFORM_PERSISTENT};
use super::rc;
use super::state::State;
use super::wire::{Params, Result};

/// Most persistent objects.
pub(super) const MAX: usize = 64;

pub(super) fn evict_control(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let persistent = p.next(|r| {
        let handle = r.u32()?;
        if handle >> 24 == PERSISTENT >> 24 { Ok(handle) } else { Err(rc::VALUE) }
    })?;
    p.end()?;
    let object = tpm.object(call.handle(1))?;
    if object.hierarchy == NULL || object.st_clear || object.sensitive.is_none() {
        return Err(rc::ATTRIBUTES.handle(2));
    }
    if object.evict.is_some_and(|handle| handle != persistent) {
        return Err(rc::HANDLE.handle(2));
    }
    let is_new = object.evict.is_none();
    let of_platform = object.hierarchy == PLATFORM;
    if call.handle(0) == PLATFORM {
        if is_new && !of_platform {
            return Err(rc::HIERARCHY.handle(2));
        }
        if is_new && persistent < PLATFORM_PERSISTENT {
            return Err(rc::RANGE.parameter(1));
        }
    } else {
        if of_platform {
            return Err(rc::HIERARCHY.handle(2));
        }
        if is_new && persistent >= PLATFORM_PERSISTENT {
            return Err(rc::RANGE.parameter(1));
        }
    }
    if !is_new {
        tpm.persistent.remove(&persistent);
        return Ok(Reply::default());
    }
    if tpm.persistent.contains_key(&persistent) {
        return Err(rc::NV_DEFINED);
    }
    if tpm.persistent.len() >= MAX {
        return Err(rc::NV_SPACE);
    }
    let object = object.clone();
    tpm.persistent.insert(persistent, object);
    Ok(Reply::default())
}
