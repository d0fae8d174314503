//! A TPM 2.0 in Rust alone: the commands that measured boot, attestation and sealing need (TPM 2.0 Library 1.64; PC Client profile), and no others.
//!
//! It reads commands of the guest, which are hostile, at locality 0. It trusts nothing of them; what is malformed is refused with the code that
//! libtpms gives (`tests/vtpm_differential.rs`). Its commands are
//!
//! <!-- commands -->
//! ActivateCredential, Certify, Clear, ContextLoad, ContextSave, Create, CreatePrimary, DictionaryAttackLockReset, DictionaryAttackParameters,
//! EvictControl, FlushContext, GetCapability, GetRandom, GetTestResult, HierarchyChangeAuth, Load, LoadExternal, MakeCredential, NV_DefineSpace,
//! NV_Extend, NV_Increment, NV_Read, NV_ReadLock, NV_ReadPublic, NV_SetBits, NV_UndefineSpace, NV_Write, NV_WriteLock, PCR_Event, PCR_Extend,
//! PCR_Read, PCR_Reset, PolicyAuthValue, PolicyAuthorize, PolicyCommandCode, PolicyGetDigest, PolicyNV, PolicyOR, PolicyPCR, PolicyPassword,
//! PolicyRestart, PolicySecret, Quote, ReadClock, ReadPublic, SelfTest, Shutdown, StartAuthSession, Startup, StirRandom, Unseal, VerifySignature.
//! <!-- end -->
//!
//! Any other is TPM_RC_COMMAND_CODE. Algorithms: SHA-1, SHA-256, SHA-384 and SHA-512, each a bank of PCRs that is always active; ECC on P-256 alone,
//! with ECDSA, and ECDH for salts and credentials; HMAC keys and sealed data; AES in CFB mode. At most 3 objects and 3 sessions are loaded, 64
//! sessions are active, 64 objects are persistent, 64 NV indices have 64 KiB in all.
//!
//! Commands are read here and by no library: which code refuses a command depends on what of it is read first, and how far. What it answers is read
//! by one, `tpm2-protocol`, in the tests.
//!
//! **Randomness** is that of the seed that it was made with: the same seed and commands give the same TPM. Only the nonces of signatures over
//! SHA-256 are the signing library's own. **Time** is the owner's: the clock stands still but for [`EmbeddedTpm::advance`].
//!
//! Where it differs from libtpms 0.9, besides what it has not:
//! - TPM2_GetCapability tells its own algorithms, curves, commands, limits, vendor and firmware version; no command is on the lists of those that
//!   need physical presence or are audited;
//! - TPM2_NV_DefineSpace refuses TPMA_NV_POLICY_DELETE, as there is no TPM2_NV_UndefineSpaceSpecial;
//! - TPM2_PolicyNV compares signed numbers as Part 2 says; libtpms before 0.10 does not;
//! - TPM2_PolicyCommandCode knows its own commands only;
//! - private areas and saved contexts are its own, and have other lengths.
#![forbid(unsafe_code)]

mod attest;
mod auth;
mod capability;
mod commands;
mod context;
mod create;
mod credential;
mod crypt;
mod dispatch;
mod entity;
mod evict;
mod hierarchy;
mod lockout;
mod nv;
mod object;
mod pcr;
mod policy;
mod public;
mod rc;
mod session;
mod startup;
mod state;
mod stored;
mod verify;
mod wire;
mod wrap;

use std::{fmt, time::Duration};

use self::{crypt::Drbg, state::State};
use super::{Tpm, TpmFailed};

const BACKEND: &str = "embedded";

/// A TPM of this module.
pub struct EmbeddedTpm {
    state: Box<State>,
}

impl EmbeddedTpm {
    /// A new TPM, before its first TPM2_Startup. Whoever knows the seed knows all its keys.
    pub fn manufacture(seed: [u8; 32]) -> Self {
        let drbg = Drbg::seeded(&[b"manufacture", &seed]);
        Self { state: Box::new(State::manufacture(drbg)) }
    }

    /// A new TPM with a seed of the operating system.
    ///
    /// # Errors
    /// [`TpmFailed`] if it has no randomness to give.
    pub fn new() -> Result<Self, TpmFailed> {
        crypt::entropy().map(Self::manufacture).ok_or_else(|| failed("no randomness"))
    }

    /// Time passes for it: its clock goes on, failures are forgotten, sessions expire. Before TPM2_Startup there is none.
    pub fn advance(&mut self, by: Duration) {
        self.state.advance(u64::try_from(by.as_millis()).unwrap_or(u64::MAX));
    }
}

impl Tpm for EmbeddedTpm {
    fn exec(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmFailed> {
        Ok(self.state.exec(command))
    }

    fn reset(&mut self) -> Result<(), TpmFailed> {
        self.state.power_on();
        Ok(())
    }

    fn save(&mut self) -> Result<Vec<u8>, TpmFailed> {
        Ok(self.state.save())
    }

    fn load(&mut self, state: &[u8]) -> Result<(), TpmFailed> {
        *self.state = State::load(state).ok_or_else(|| failed("these bytes are no state"))?;
        Ok(())
    }
}

impl fmt::Debug for EmbeddedTpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedTpm")
            .field("started", &self.state.started)
            .field("reset_count", &self.state.reset_count)
            .finish_non_exhaustive()
    }
}

fn failed(reason: &str) -> TpmFailed {
    TpmFailed { backend: BACKEND, reason: reason.into() }
}
