//! Sessions (Part 1, 19): three loaded, 64 in all with those whose context was saved; TPM2_StartAuthSession.

use super::commands::{Call, Reply};
use super::crypt::{Hash, Secret, cfb};
use super::entity::handle_type;
use super::hierarchy::{LOCKOUT, NULL};
use super::public::{ALG_CFB, ALG_KEYEDHASH, ALG_NULL, ALG_XOR, MAX_DIGEST, Symmetric, attribute};
use super::rc;
use super::state::State;
use super::stored::stored;
use super::wire::{Params, Put, Result};

pub(super) const HMAC_SESSION: u32 = 0x0200_0000;
pub(super) const POLICY_SESSION: u32 = 0x0300_0000;
/// Handles of each type.
pub(super) const ACTIVE: usize = 64;
pub(super) const LOADED: usize = 3;
/// Most bytes of an encrypted secret: that of the longest RSA key of the reference TPM.
pub(super) const MAX_ENCRYPTED_SECRET: usize = 384;

/// A session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) hash: Hash,
    pub(super) symmetric: Symmetric,
    pub(super) key: Secret,
    pub(super) nonce: Vec<u8>,
    pub(super) is_policy: bool,
    pub(super) is_trial: bool,
    /// Of an HMAC session: what it is bound to, and the authorisation value at that time.
    pub(super) bound: Option<Secret>,
    pub(super) bound_to_protected: bool,
    pub(super) bound_to_lockout: bool,
    pub(super) is_audit: bool,
    /// The authorisation value of what is used is part of the key of this command's HMAC.
    pub(super) include_auth: bool,
    pub(super) start_time: u64,
    pub(super) epoch: u32,
    pub(super) policy: PolicyState,
}
stored!(Session {
    hash symmetric key nonce is_policy is_trial bound bound_to_protected bound_to_lockout is_audit include_auth start_time epoch policy
});

/// What the policy commands left in a session.
#[derive(Clone, Debug, Default)]
pub(super) struct PolicyState {
    pub(super) digest: Vec<u8>,
    pub(super) command: u32,
    pub(super) cp_hash: Vec<u8>,
    /// Milliseconds of the TPM's time; 0 is never.
    pub(super) timeout: u64,
    /// That of the PCRs at TPM2_PolicyPCR; 0 is none.
    pub(super) pcr_counter: u32,
    pub(super) auth_value: bool,
    pub(super) password: bool,
}
stored!(PolicyState { digest command cp_hash timeout pcr_counter auth_value password });

impl Session {
    /// As at the beginning, but for the nonce.
    pub(super) fn restart_policy(&mut self) {
        self.policy = PolicyState { digest: vec![0; self.hash.size()], ..PolicyState::default() };
        self.is_audit = false;
        self.include_auth = false;
    }

    /// Encrypts or decrypts a parameter.
    pub(super) fn crypt_parameter(&self, encrypt: bool, auth: &Secret, newer: &[u8], older: &[u8], data: &mut [u8]) -> Result<()> {
        let key = Secret([&self.key.0[..], &auth.0].concat());
        if self.symmetric.algorithm == ALG_XOR {
            self.hash.obfuscate(&key.0, newer, older, data);
            return Ok(());
        }
        let len = self.symmetric.key_bytes();
        let derived = self.hash.kdfa(&key.0, "CFB", newer, older, len + 16);
        let (key, iv) = derived.0.split_at_checked(len).ok_or(rc::FAILURE)?;
        cfb(encrypt, key, iv.try_into().map_err(|_| rc::FAILURE)?, data)
    }
}

/// The slots.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    slots: [Option<Session>; LOADED],
    /// The handle of the session that nothing but its audited commands came between.
    pub(super) exclusive: Option<u32>,
}
stored!(Sessions { slots exclusive });

impl Sessions {
    /// Numbers below are those of slots.
    pub(super) const FIRST_CONTEXT: u64 = 4;

    pub(super) fn no_contexts() -> Vec<u16> {
        vec![0; ACTIVE]
    }
}

/// Of the handle of a session.
fn index(handle: u32) -> usize {
    usize::try_from(handle & 0x00ff_ffff).unwrap_or(usize::MAX)
}

/// Low bits of a saved context's number: what tells it from others.
fn low(counter: u64) -> u16 {
    u16::try_from(counter & 0xffff).unwrap_or(0)
}

impl State {
    /// 0, a slot's number, or a saved context's.
    fn context(&self, handle: u32) -> u16 {
        self.reset.contexts.get(index(handle)).copied().unwrap_or(0)
    }

    fn set_context(&mut self, handle: u32, value: u16) {
        if let Some(context) = self.reset.contexts.get_mut(index(handle)) {
            *context = value;
        }
    }

    fn session_slot(&self, handle: u32) -> Option<usize> {
        usize::from(self.context(handle)).checked_sub(1).filter(|&slot| slot < LOADED)
    }

    /// Loaded, whichever type the handle says.
    pub(super) fn session(&self, handle: u32) -> Option<&Session> {
        self.sessions.slots.get(self.session_slot(handle)?)?.as_ref()
    }

    pub(super) fn session_mut(&mut self, handle: u32) -> Option<&mut Session> {
        let slot = self.session_slot(handle)?;
        self.sessions.slots.get_mut(slot)?.as_mut()
    }

    /// A policy session that was found to be loaded.
    pub(super) fn policy_session(&mut self, handle: u32) -> Result<&mut Session> {
        self.session_mut(handle).ok_or(rc::FAILURE)
    }

    pub(super) fn is_saved_session(&self, handle: u32) -> bool {
        usize::from(self.context(handle)) > LOADED
    }

    /// The saved session that others may not get too far ahead of.
    fn oldest_context(&self) -> Option<u16> {
        let now = low(self.reset.context_counter);
        self.reset
            .contexts
            .iter()
            .copied()
            .filter(|&context| usize::from(context) > LOADED)
            .max_by_key(|&context| now.wrapping_sub(context))
    }

    /// The next number is that of the oldest.
    fn is_gap_full(&self) -> bool {
        self.oldest_context() == Some(low(self.reset.context_counter))
    }

    fn free_session_slots(&self) -> usize {
        self.sessions.slots.iter().filter(|slot| slot.is_none()).count()
    }

    /// Takes a slot for a session of a handle.
    fn place(&mut self, handle: u32, session: Session) -> Result<()> {
        let slots = self.sessions.slots.iter_mut().zip(1_u16..);
        let (slot, number) = slots.into_iter().find(|(slot, _)| slot.is_none()).ok_or(rc::SESSION_MEMORY)?;
        *slot = Some(session);
        self.set_context(handle, number);
        Ok(())
    }

    /// Gives a session a handle.
    fn add_session(&mut self, session: Session) -> Result<u32> {
        match self.free_session_slots() {
            0 => return Err(rc::SESSION_MEMORY),
            1 if self.is_gap_full() => return Err(rc::CONTEXT_GAP),
            _ => {}
        }
        let kind = if session.is_policy { POLICY_SESSION } else { HMAC_SESSION };
        let mut free = self.reset.contexts.iter().zip(kind..).filter(|(context, _)| **context == 0);
        let handle = free.next().ok_or(rc::SESSION_HANDLES)?.1;
        self.place(handle, session)?;
        Ok(handle)
    }

    /// Out of its slot; its context's number.
    pub(super) fn save_session(&mut self, handle: u32) -> Result<(u64, Session)> {
        if self.is_gap_full() {
            return Err(rc::CONTEXT_GAP);
        }
        let slot = self.session_slot(handle).ok_or(rc::FAILURE)?;
        let session = self.sessions.slots.get_mut(slot).and_then(Option::take).ok_or(rc::FAILURE)?;
        let number = self.reset.context_counter;
        self.set_context(handle, low(number));
        self.reset.context_counter += 1;
        if low(self.reset.context_counter) == 0 {
            self.reset.context_counter += Sessions::FIRST_CONTEXT;
        }
        Ok((number, session))
    }

    /// Whether the context of this number is the last that the session was saved as.
    pub(super) fn is_current_context(&self, handle: u32, number: u64) -> bool {
        self.is_saved_session(handle)
            && self.context(handle) == low(number)
            && number < self.reset.context_counter
            && self.reset.context_counter - number <= 0xffff
    }

    pub(super) fn load_session(&mut self, handle: u32, session: Session) -> Result<()> {
        match self.free_session_slots() {
            0 => return Err(rc::SESSION_MEMORY),
            1 if self.is_gap_full() && self.oldest_context() != Some(self.context(handle)) => return Err(rc::CONTEXT_GAP),
            _ => {}
        }
        self.place(handle, session)
    }

    /// Loaded or saved.
    pub(super) fn flush_session(&mut self, handle: u32) {
        if let Some(slot) = self.session_slot(handle)
            && let Some(slot) = self.sessions.slots.get_mut(slot)
        {
            *slot = None;
        }
        self.set_context(handle, 0);
        if self.sessions.exclusive == Some(handle) {
            self.sessions.exclusive = None;
        }
    }

    /// At TPM2_Startup: loaded sessions are gone, after a TPM reset saved ones too.
    pub(super) fn start_sessions(&mut self, is_reset: bool) {
        self.sessions = Sessions::default();
        if is_reset {
            self.reset.contexts = Sessions::no_contexts();
            self.reset.context_counter = Sessions::FIRST_CONTEXT;
        } else {
            for context in self.reset.contexts.iter_mut().filter(|context| usize::from(**context) <= LOADED) {
                *context = 0;
            }
        }
    }

    /// Handles of loaded sessions, or with the first type those of saved ones.
    pub(super) fn session_handles(&self, loaded: bool) -> Vec<u32> {
        (0..u32::try_from(ACTIVE).unwrap_or(0))
            .filter_map(|index| match self.session(index) {
                Some(session) if loaded => Some(index + if session.is_policy { POLICY_SESSION } else { HMAC_SESSION }),
                None if !loaded && self.is_saved_session(index) => Some(index + HMAC_SESSION),
                _ => None,
            })
            .collect()
    }

    pub(super) fn active_sessions(&self) -> usize {
        self.reset.contexts.iter().filter(|context| **context != 0).count()
    }

    /// The name of what a session is bound to, with its authorisation value mixed in at the end.
    pub(super) fn bound_value(&self, handle: u32) -> Secret {
        const LEN: usize = 2 + MAX_DIGEST;
        let mut bound = Secret(self.entity_name(handle));
        bound.0.resize(LEN, 0);
        let auth = self.entity_auth(handle);
        for (byte, auth) in bound.0.iter_mut().rev().zip(auth.0.iter().rev()) {
            *byte ^= auth;
        }
        bound
    }
}

/// TPM2_StartAuthSession.
pub(super) fn start(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    const HMAC: u8 = 0;
    const POLICY: u8 = 1;
    const TRIAL: u8 = 3;
    let caller = p.next(|r| r.sized(MAX_DIGEST))?;
    let encrypted_salt = p.next(|r| r.sized(MAX_ENCRYPTED_SECRET))?;
    let kind = p.next(|r| match r.u8()? {
        kind @ (HMAC | POLICY | TRIAL) => Ok(kind),
        _ => Err(rc::VALUE),
    })?;
    let symmetric = p.next(Symmetric::read_session)?;
    let hash = p.next(Hash::read)?;
    p.end()?;
    let (key, bind) = (call.handle(0), call.handle(1));
    if caller.len() < 16 || caller.len() > hash.size() {
        return Err(rc::SIZE.parameter(1));
    }
    let salt = if key == NULL {
        if !encrypted_salt.is_empty() {
            return Err(rc::VALUE.parameter(2));
        }
        Secret::default()
    } else {
        let object = tpm.object(key)?;
        if object.public.type_id() == ALG_KEYEDHASH {
            return Err(rc::KEY.handle(1));
        }
        if encrypted_salt.is_empty() {
            return Err(rc::VALUE.parameter(2));
        }
        if object.sensitive.is_none() {
            return Err(rc::HANDLE.handle(1));
        }
        if !object.public.has(attribute::DECRYPT) {
            return Err(rc::ATTRIBUTES.handle(1));
        }
        super::credential::decrypt_secret(object, "SECRET", encrypted_salt).map_err(|_| rc::VALUE.parameter(2))?
    };
    match handle_type(bind) {
        0x80 if tpm.object(bind)?.sensitive.is_none() => return Err(rc::HANDLE.handle(2)),
        0x01 if tpm.nv.is_pin(bind) => return Err(rc::HANDLE.handle(2)),
        _ => {}
    }
    if !matches!(symmetric.algorithm, ALG_NULL | ALG_XOR) && symmetric.mode != ALG_CFB {
        return Err(rc::MODE.parameter(4));
    }
    let nonce = tpm.drbg.bytes(caller.len());
    let is_bound = bind != NULL;
    let session_key = if is_bound || !salt.0.is_empty() {
        let auth = Secret([&tpm.entity_auth(bind).0[..], &salt.0].concat());
        hash.kdfa(&auth.0, "ATH", &nonce, caller, hash.size())
    } else {
        Secret::default()
    };
    let bound_to_protected = is_bound && !tpm.is_exempt(bind);
    let mut session = Session {
        hash,
        symmetric,
        key: session_key,
        nonce: nonce.clone(),
        is_policy: kind != HMAC,
        is_trial: kind == TRIAL,
        bound: (is_bound && kind == HMAC).then(|| tpm.bound_value(bind)),
        bound_to_protected,
        bound_to_lockout: bound_to_protected && bind == LOCKOUT,
        is_audit: false,
        include_auth: false,
        start_time: tpm.time,
        epoch: tpm.epoch,
        policy: PolicyState::default(),
    };
    session.restart_policy();
    let handle = tpm.add_session(session)?;
    let mut reply = Reply { handle: Some(handle), body: Vec::new() };
    reply.body.sized(&nonce);
    Ok(reply)
}
