//! The virtual TPM of a machine: bytes in, bytes out (TPM 2.0 Library, Part 3; PC Client Platform TPM Profile).
//!
//! Every backend is behind [`Tpm`], so that one can stand for another and be tested against it. What a guest sends is hostile: a command that is
//! cut short, too long or unknown gets an error response of the TPM, and never ends a backend.

pub mod client;
pub mod embedded;
pub mod ledger;
#[cfg(unix)]
pub mod libtpms;
#[cfg(unix)]
mod link;
pub mod sealed_state;
#[cfg(unix)]
pub mod socket;
#[cfg(unix)]
mod state;
#[cfg(unix)]
pub mod swtpm;

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

/// Most bytes of a command or a response (TPM2_PT_MAX_COMMAND_SIZE and _RESPONSE_SIZE of libtpms).
pub const MAX_MESSAGE: usize = 4096;

/// Bytes of a response that has a header and nothing else: tag u16, size u32, code u32.
const MIN_RESPONSE: usize = 10;

/// A TPM 2.0 at locality 0.
pub trait Tpm: fmt::Debug + Send {
    /// Executes a command. Errors of the TPM are responses; whatever the command is, there is one.
    ///
    /// # Errors
    /// [`TpmFailed`] when there is no TPM any more that could answer.
    fn exec(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmFailed>;

    /// What a machine does to it at power-on and reset (`_TPM_Init`): the volatile state is gone, and TPM2_Startup is to come next.
    ///
    /// # Errors
    /// [`TpmFailed`].
    fn reset(&mut self) -> Result<(), TpmFailed>;

    /// Its whole state, permanent and volatile, as opaque bytes of this backend. They hold its secrets in clear.
    ///
    /// # Errors
    /// [`TpmFailed`].
    fn save(&mut self) -> Result<Vec<u8>, TpmFailed>;

    /// Takes the place of the TPM that [`save`](Self::save) saved, in the middle of its boot; [`reset`](Self::reset) starts the next one.
    ///
    /// # Errors
    /// [`TpmFailed`] for bytes that are no whole state of this backend; the TPM is then as before.
    fn load(&mut self, state: &[u8]) -> Result<(), TpmFailed>;
}

/// A TPM that cannot answer: its process died, or what it was given is no state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {backend} TPM: {reason}")]
pub struct TpmFailed {
    /// Which backend.
    pub backend: &'static str,
    /// What happened, for a person.
    pub reason: String,
}

/// What a TPM answers to a command that is not framed as one, without looking further: its tag is none, its length is not the one in its header,
/// or that is cut short. So a stream of commands stays one, whatever a guest sends. The order is libtpms'.
#[cfg(unix)]
fn misframed(command: &[u8]) -> Option<Vec<u8>> {
    use hvci_engine::bytes::{array, be32, index};

    const NO_SESSIONS: [u8; 2] = [0x80, 0x01];
    const SESSIONS: [u8; 2] = [0x80, 0x02];
    const INSUFFICIENT: u32 = 0x9a;
    const VALUE: u32 = 0x84;
    const COMMAND_SIZE: u32 = 0x142;

    let answer = |code: u32| Some([&NO_SESSIONS[..], &10_u32.to_be_bytes(), &code.to_be_bytes()].concat());
    match array(command, 0) {
        None => return answer(INSUFFICIENT),
        Some(NO_SESSIONS | SESSIONS) => {}
        Some(_) => return answer(VALUE),
    }
    let Some(size) = be32(command, 2) else { return answer(INSUFFICIENT) };
    if index(size) != command.len() || command.len() > MAX_MESSAGE {
        return answer(COMMAND_SIZE);
    }
    if command.len() < MIN_RESPONSE { answer(INSUFFICIENT) } else { None }
}

/// Which TPM a machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// The one in this program.
    #[default]
    Embedded,
    /// libtpms in a process of its own.
    Libtpms,
    /// swtpm.
    Swtpm,
}

/// A new TPM, which has no state but what its making gave it. `program` is this program, which a worker is started from.
///
/// # Errors
/// [`TpmFailed`], where the backend is not installed.
pub fn manufacture(backend: Backend, program: &Path) -> Result<Box<dyn Tpm>, TpmFailed> {
    Ok(match backend {
        Backend::Embedded => Box::new(embedded::EmbeddedTpm::new()?),
        Backend::Libtpms => Box::new(libtpms::LibtpmsTpm::start(program)?),
        Backend::Swtpm => Box::new(swtpm::SwtpmTpm::start()?),
    })
}
