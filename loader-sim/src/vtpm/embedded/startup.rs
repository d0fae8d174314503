//! TPM2_Startup and TPM2_Shutdown, self-tests, random numbers, the clock.

use super::commands::{Call, Reply};
use super::public::{MAX_DIGEST, MAX_SEALED};
use super::rc;
use super::state::{ClearState, SU_CLEAR, SU_DA_USED, SU_NONE, SU_STATE, State, is_orderly};
use super::wire::{Params, Put, Reader, Result, yes_no};

/// TPM_SU.
fn read_su(r: &mut Reader<'_>) -> Result<u16> {
    match r.u16()? {
        su @ (SU_CLEAR | SU_STATE) => Ok(su),
        _ => Err(rc::VALUE),
    }
}

/// TPM2_Startup: a resumption or restart of what TPM2_Shutdown(STATE) saved, or a TPM reset.
pub(super) fn startup(tpm: &mut State, _: &Call, mut p: Params<'_>) -> Result<Reply> {
    let su = p.next(read_su)?;
    p.end()?;
    tpm.lockout.used = tpm.orderly == SU_DA_USED;
    if tpm.lockout.used {
        tpm.orderly = SU_NONE;
    }
    tpm.previous_orderly = tpm.orderly;
    if su == SU_STATE && tpm.orderly != SU_STATE {
        return Err(rc::VALUE.parameter(1));
    }
    let orderly = is_orderly(tpm.orderly);
    let saved = tpm.saved.take().filter(|_| tpm.orderly == SU_STATE);
    let is_reset = saved.is_none();
    let is_resume = su == SU_STATE && !is_reset;
    if let Some((clear, reset)) = saved {
        tpm.reset = reset;
        if is_resume {
            tpm.clear = clear;
        }
    }
    if !is_resume {
        tpm.clear = ClearState::new();
    }
    if !orderly {
        tpm.clock_safe = false;
    }
    tpm.started = true;
    tpm.lockout.start(orderly);
    tpm.start_hierarchies(is_reset);
    tpm.start_pcrs(is_reset, is_resume);
    if is_reset {
        tpm.reset_count = tpm.reset_count.wrapping_add(1);
        tpm.total_reset_count = tpm.total_reset_count.wrapping_add(1);
        tpm.reset.object_context = 0;
        tpm.reset.clear_count = 0;
        tpm.reset.restart_count = 0;
    } else {
        tpm.reset.restart_count = tpm.reset.restart_count.wrapping_add(1);
        tpm.reset.clear_count = tpm.reset.clear_count.wrapping_add(u32::from(!is_resume));
    }
    tpm.start_sessions(is_reset);
    tpm.nv.count_all();
    if !is_resume {
        tpm.nv.start(is_reset, orderly);
    }
    tpm.orderly = SU_NONE;
    Ok(Reply::default())
}

/// TPM2_Shutdown.
pub(super) fn shutdown(tpm: &mut State, _: &Call, mut p: Params<'_>) -> Result<Reply> {
    let su = p.next(read_su)?;
    p.end()?;
    tpm.orderly = su;
    tpm.nv.keep();
    tpm.saved = None;
    if su == SU_STATE {
        let mut clear = tpm.clear.clone();
        clear.pcrs = tpm.pcrs.save();
        tpm.saved = Some((clear, tpm.reset.clone()));
    }
    Ok(Reply::default())
}

/// TPM2_SelfTest: there is nothing that has to be tested before use.
pub(super) fn self_test(_: &mut State, _: &Call, mut p: Params<'_>) -> Result<Reply> {
    p.next(yes_no)?;
    p.end()?;
    Ok(Reply::default())
}

/// TPM2_GetTestResult: no data, success.
pub(super) fn test_result(_: &mut State, _: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    let mut reply = Reply::default();
    reply.body.sized(&[]);
    reply.body.u32(0);
    Ok(reply)
}

/// TPM2_GetRandom: at most as many bytes as a digest has.
pub(super) fn get_random(tpm: &mut State, _: &Call, mut p: Params<'_>) -> Result<Reply> {
    let len = usize::from(p.next(|r| r.u16())?);
    p.end()?;
    let mut reply = Reply::default();
    let bytes = tpm.drbg.bytes(len.min(MAX_DIGEST));
    reply.body.sized(&bytes);
    Ok(reply)
}

/// TPM2_StirRandom.
pub(super) fn stir_random(tpm: &mut State, _: &Call, mut p: Params<'_>) -> Result<Reply> {
    let data = p.next(|r| r.sized(MAX_SEALED))?;
    p.end()?;
    tpm.drbg.stir(data);
    Ok(Reply::default())
}

/// TPM2_ReadClock.
pub(super) fn read_clock(tpm: &mut State, _: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    let mut reply = Reply::default();
    reply.body.u64(tpm.time);
    tpm.put_clock_info(&mut reply.body);
    Ok(reply)
}
