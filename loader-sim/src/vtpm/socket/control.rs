//! The control socket of swtpm (`swtpm/tpm_ioctl.h`): its codes, and what is answered to them here.
//!
//! Of a request the code says how long it is. States are not to be had here: whoever is on the other side is on the guest's. What is not answered
//! is TPM_BAD_ORDINAL, and since nobody knows how long it is, the last of its stream.

use super::super::{Tpm, TpmFailed};

const GET_CAPABILITY: u32 = 1;
pub(in super::super) const INIT: u32 = 2;
const SHUTDOWN: u32 = 3;
const GET_TPMESTABLISHED: u32 = 4;
const SET_LOCALITY: u32 = 5;
const CANCEL_TPM_CMD: u32 = 9;
pub(in super::super) const GET_STATEBLOB: u32 = 12;
pub(in super::super) const SET_STATEBLOB: u32 = 13;

/// Argument of [`INIT`]: what was left of the volatile state counts for this start only.
pub(in super::super) const INIT_DELETE_VOLATILE: u32 = 1;

const SUCCESS: [u8; 4] = [0; 4];
const FAIL: u32 = 9;
const BAD_ORDINAL: u32 = 10;
const BAD_LOCALITY: u32 = 61;
/// INIT, SHUTDOWN, GET_TPMESTABLISHED, SET_LOCALITY.
const CAPABILITIES: u64 = 0b1111;

/// What follows an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// The next request.
    Continue,
    /// The end of the stream.
    Close,
    /// The end of the TPM.
    Shutdown,
}

/// How many bytes follow a code.
pub(super) fn arguments(code: u32) -> usize {
    match code {
        INIT => 4,
        SET_LOCALITY => 1,
        _ => 0,
    }
}

/// Does what a request says. `arguments` are as many as [`arguments`] says.
pub(super) fn answer(tpm: &mut dyn Tpm, code: u32, arguments: &[u8]) -> Result<(Vec<u8>, Then), TpmFailed> {
    let answer = match code {
        GET_CAPABILITY => CAPABILITIES.to_be_bytes().to_vec(),
        INIT => {
            tpm.reset()?;
            SUCCESS.to_vec()
        }
        SHUTDOWN => return Ok((SUCCESS.to_vec(), Then::Shutdown)),
        // the bit, and what C puts behind it
        GET_TPMESTABLISHED => [SUCCESS, [0; 4]].concat(),
        SET_LOCALITY if arguments == [0] => SUCCESS.to_vec(),
        SET_LOCALITY => BAD_LOCALITY.to_be_bytes().to_vec(),
        CANCEL_TPM_CMD => FAIL.to_be_bytes().to_vec(),
        _ => return Ok((BAD_ORDINAL.to_be_bytes().to_vec(), Then::Close)),
    };
    Ok((answer, Then::Continue))
}
