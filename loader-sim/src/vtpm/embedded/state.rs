//! All that a TPM remembers, in the classes of Part 1, 32: what lasts, what a TPM2_Startup(CLEAR) and a TPM reset clear, and what power-off does.

use std::collections::BTreeMap;

use super::crypt::{Drbg, Hash, Secret};
use super::hierarchy::{Hierarchies, Protected};
use super::lockout::Lockout;
use super::nv::Nv;
use super::object::{Object, Objects};
use super::pcr::Pcrs;
use super::session::Sessions;
use super::stored::{Stored, stored};
use super::wire::{Put, Reader};

/// How the last cycle ended: TPM_SU of the TPM2_Shutdown, or one of these.
pub(super) const SU_CLEAR: u16 = 0;
pub(super) const SU_STATE: u16 = 1;
pub(super) const SU_NONE: u16 = 0xffff;
/// As [`SU_NONE`], and an object under dictionary-attack protection was used.
pub(super) const SU_DA_USED: u16 = 0xfffe;

/// Milliseconds between two times that the clock is written to what lasts.
const CLOCK_INTERVAL: u64 = 1 << 12;

/// Cleared by every start but the resumption of a saved state.
#[derive(Clone, Debug)]
pub(super) struct ClearState {
    pub(super) owner_enabled: bool,
    pub(super) endorsement_enabled: bool,
    pub(super) platform_nv_enabled: bool,
    pub(super) platform: Protected,
    /// Those that a saved state keeps.
    pub(super) pcrs: Vec<u8>,
}
stored!(ClearState { owner_enabled endorsement_enabled platform_nv_enabled platform pcrs });

/// Cleared by a TPM reset, which follows what was no TPM2_Shutdown(STATE).
#[derive(Clone, Debug)]
pub(super) struct ResetState {
    pub(super) null_seed: Secret,
    pub(super) null_proof: Secret,
    pub(super) clear_count: u32,
    pub(super) restart_count: u32,
    pub(super) object_context: u64,
    /// For each handle of a session: 0, the number of its slot, or the low bits of its saved context's number.
    pub(super) contexts: Vec<u16>,
    pub(super) context_counter: u64,
    pub(super) pcr_counter: u32,
}
stored!(ResetState { null_seed null_proof clear_count restart_count object_context contexts context_counter pcr_counter });

/// A TPM.
#[derive(Debug)]
pub(super) struct State {
    pub(super) drbg: Drbg,
    pub(super) hierarchies: Hierarchies,
    pub(super) lockout: Lockout,
    pub(super) nv: Nv,
    pub(super) persistent: BTreeMap<u32, Object>,
    pub(super) reset_count: u32,
    pub(super) total_reset_count: u64,
    pub(super) orderly: u16,
    /// Milliseconds that the TPM was on, ever; time is those since it was switched on.
    pub(super) clock: u64,
    pub(super) clock_safe: bool,
    /// What TPM2_Shutdown(STATE) kept.
    pub(super) saved: Option<(ClearState, ResetState)>,

    pub(super) clear: ClearState,
    pub(super) reset: ResetState,
    pub(super) started: bool,
    pub(super) platform_enabled: bool,
    pub(super) previous_orderly: u16,
    pub(super) time: u64,
    /// Changes whenever time begins anew.
    pub(super) epoch: u32,
    pub(super) pcrs: Pcrs,
    pub(super) objects: Objects,
    pub(super) sessions: Sessions,
    /// A command changed what a shutdown had saved.
    pub(super) disorder: bool,
}

impl State {
    /// A new TPM with seeds and proofs of the generator.
    pub(super) fn manufacture(mut drbg: Drbg) -> Self {
        let hierarchies = Hierarchies::new(&mut drbg);
        Self {
            drbg,
            hierarchies,
            lockout: Lockout::default(),
            nv: Nv::default(),
            persistent: BTreeMap::new(),
            reset_count: 0,
            total_reset_count: 0,
            orderly: SU_CLEAR,
            clock: 0,
            clock_safe: true,
            saved: None,
            clear: ClearState::new(),
            reset: ResetState::new(),
            started: false,
            platform_enabled: true,
            previous_orderly: SU_CLEAR,
            time: 0,
            epoch: 0,
            pcrs: Pcrs::new(),
            objects: Objects::default(),
            sessions: Sessions::default(),
            disorder: false,
        }
    }

    /// _TPM_Init: what is not kept over power-off is gone.
    pub(super) fn power_on(&mut self) {
        if !is_orderly(self.orderly) {
            self.clock &= !(CLOCK_INTERVAL - 1);
        }
        self.clear = ClearState::new();
        self.reset = ResetState::new();
        self.started = false;
        self.platform_enabled = true;
        self.time = 0;
        self.epoch = self.epoch.wrapping_add(1);
        self.pcrs = Pcrs::new();
        self.objects = Objects::default();
        self.sessions = Sessions::default();
        self.disorder = false;
        self.nv.power_on();
    }

    /// Time passes.
    pub(super) fn advance(&mut self, milliseconds: u64) {
        if !self.started {
            return;
        }
        let before = self.clock / CLOCK_INTERVAL;
        self.time = self.time.saturating_add(milliseconds);
        self.clock = self.clock.saturating_add(milliseconds);
        if self.clock / CLOCK_INTERVAL != before {
            self.clock_safe = true;
        }
        self.lockout.heal(self.time);
    }

    /// TPMS_CLOCK_INFO.
    pub(super) fn put_clock_info(&self, out: &mut Vec<u8>) {
        out.u64(self.clock);
        out.u32(self.reset_count);
        out.u32(self.reset.restart_count);
        out.u8(u8::from(self.clock_safe));
    }
}

/// After a TPM2_Shutdown.
pub(super) fn is_orderly(state: u16) -> bool {
    state < SU_DA_USED
}

impl ClearState {
    pub(super) fn new() -> Self {
        Self { owner_enabled: true, endorsement_enabled: true, platform_nv_enabled: true, platform: Protected::default(), pcrs: Vec::new() }
    }
}

impl ResetState {
    fn new() -> Self {
        Self {
            null_seed: Secret::default(),
            null_proof: Secret::default(),
            clear_count: 0,
            restart_count: 0,
            object_context: 0,
            contexts: Sessions::no_contexts(),
            context_counter: Sessions::FIRST_CONTEXT,
            pcr_counter: 0,
        }
    }
}

/// Before a state: its name and version.
const MAGIC: &[u8; 8] = b"HVCITPM\x01";
/// Most bytes of a state; a full TPM has less than a third.
const MAX_STATE: usize = 1 << 20;

impl State {
    pub(super) fn save(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let mut body = Vec::with_capacity(16 * 1024);
        self.store(&mut body);
        out.bytes(&Hash::Sha256.digest(&[&body]));
        out.bytes(&body);
        zeroize::Zeroize::zeroize(&mut body);
        out
    }

    /// None unless it is a whole state of this version, undamaged.
    pub(super) fn load(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (digest, body) = rest.split_at_checked(Hash::Sha256.size())?;
        if bytes.len() > MAX_STATE || Hash::Sha256.digest(&[body]) != digest {
            return None;
        }
        let mut r = Reader(body);
        let state = Self::restore(&mut r)?;
        (r.0.is_empty() && state.reset.contexts.len() == Sessions::no_contexts().len()).then_some(state)
    }
}

stored!(State {
    drbg hierarchies lockout nv persistent reset_count total_reset_count orderly clock clock_safe saved clear reset started platform_enabled
    previous_orderly time epoch pcrs objects sessions disorder
});

impl<A: Stored, B: Stored> Stored for (A, B) {
    fn store(&self, out: &mut Vec<u8>) {
        self.0.store(out);
        self.1.store(out);
    }

    fn restore(r: &mut Reader<'_>) -> Option<Self> {
        Some((A::restore(r)?, B::restore(r)?))
    }
}
