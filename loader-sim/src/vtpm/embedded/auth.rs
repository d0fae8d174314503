//! Authorisation (Part 1, 19; Part 3, 5): reads the sessions of a command, checks them in the reference TPM's order, and answers them.

use super::commands::{Command, Role};
use super::crypt::{Hash, Secret, same};
use super::entity::{handle_type, is_hmac_session, is_policy_session};
use super::hierarchy::{ENDORSEMENT, LOCKOUT, NULL, OWNER, PASSWORD, PLATFORM};
use super::nv;
use super::public::{ALG_NULL, MAX_DIGEST, attribute};
use super::rc::{self, Rc};
use super::session::Session;
use super::state::{SU_DA_USED, State};
use super::wire::{Put, Reader, Result};

const MAX_SESSIONS: usize = 3;
const POLICY_SECRET: u32 = 0x151;

/// TPMA_SESSION.
const CONTINUE: u8 = 0x01;
const AUDIT_EXCLUSIVE: u8 = 0x02;
const AUDIT_RESET: u8 = 0x04;
const RESERVED: u8 = 0x18;
const DECRYPT: u8 = 0x20;
const ENCRYPT: u8 = 0x40;
const AUDIT: u8 = 0x80;

/// A session of a command.
#[derive(Debug)]
struct Given<'a> {
    handle: u32,
    nonce: &'a [u8],
    attributes: u8,
    /// Password or HMAC.
    auth: &'a [u8],
    /// What it authorises.
    entity: Option<u32>,
}

/// The sessions of a command, between its check and its response.
#[derive(Debug)]
pub(super) struct Authorised<'a> {
    given: Vec<Given<'a>>,
    decrypt: Option<usize>,
    encrypt: Option<usize>,
}

/// What an HMAC of a command is over.
struct Signed<'a> {
    command: &'a Command,
    handles: &'a [u32],
    parameters: &'a [u8],
}

impl State {
    /// Reads and checks the session area. The parameters follow it; the first is decrypted if a session says so.
    pub(super) fn authorise<'a>(
        &mut self,
        command: &Command,
        handles: &[u32],
        area: &'a [u8],
        parameters: &mut [u8],
    ) -> Result<Authorised<'a>> {
        if !command.sessions {
            return Err(rc::AUTH_CONTEXT);
        }
        let mut authorised = self.read_sessions(command, area)?;
        for (index, (&handle, (_, role))) in handles.iter().zip(command.handles).enumerate() {
            if *role != Role::None {
                authorised.given.get_mut(index).ok_or(rc::AUTH_MISSING)?.entity = Some(handle);
            }
        }
        let signed = Signed { command, handles, parameters };
        for index in 0..authorised.given.len() {
            self.check_session(&signed, &authorised, index)?;
        }
        if let Some(index) = authorised.decrypt
            && let Some(given) = authorised.given.get(index)
        {
            self.decrypt_parameter(given, parameters).map_err(|e| e.session(index))?;
        }
        Ok(authorised)
    }

    fn read_sessions<'a>(&self, command: &Command, area: &'a [u8]) -> Result<Authorised<'a>> {
        let mut r = Reader(area);
        let mut all = Authorised { given: Vec::new(), decrypt: None, encrypt: None };
        while !r.0.is_empty() {
            let index = all.given.len();
            if index == MAX_SESSIONS {
                return Err(rc::SIZE.session(index));
            }
            let given = read_session(&mut r).map_err(|e| e.session(index))?;
            if given.handle == PASSWORD {
                if given.attributes & !CONTINUE != 0 {
                    return Err(rc::ATTRIBUTES.session(index));
                }
                if !given.nonce.is_empty() {
                    return Err(rc::NONCE.session(index));
                }
                all.given.push(given);
                continue;
            }
            let session = self.session(given.handle).ok_or_else(|| rc::REFERENCE_S0.nth(index))?;
            let is_used = all.given.iter().any(|other| other.handle == given.handle);
            if session.is_policy != is_policy_session(given.handle) || is_used {
                return Err(rc::HANDLE.session(index));
            }
            for (flag, allowed, chosen) in [(DECRYPT, command.decrypt, &mut all.decrypt), (ENCRYPT, command.encrypt, &mut all.encrypt)] {
                if given.attributes & flag != 0 {
                    if !allowed || chosen.is_some() {
                        return Err(rc::ATTRIBUTES.session(index));
                    }
                    if session.symmetric.algorithm == ALG_NULL {
                        return Err(rc::SYMMETRIC.session(index));
                    }
                    *chosen = Some(index);
                }
            }
            if given.attributes & AUDIT != 0 {
                if session.is_policy || all.given.iter().any(|other| other.attributes & AUDIT != 0) {
                    return Err(rc::ATTRIBUTES.session(index));
                }
                let goes_on = given.attributes & AUDIT_RESET == 0 && session.is_audit;
                if goes_on && given.attributes & AUDIT_EXCLUSIVE != 0 && self.sessions.exclusive != Some(given.handle) {
                    return Err(rc::EXCLUSIVE);
                }
            }
            all.given.push(given);
        }
        Ok(all)
    }

    fn check_session(&mut self, signed: &Signed<'_>, all: &Authorised<'_>, index: usize) -> Result<()> {
        let Some(given) = all.given.get(index) else { return Ok(()) };
        if given.handle == PASSWORD {
            if given.entity.is_none() {
                return Err(rc::HANDLE.session(index));
            }
        } else {
            let session = self.session(given.handle).ok_or(rc::FAILURE)?;
            if session.is_trial {
                return Err(rc::ATTRIBUTES.session(index));
            }
            if session.bound_to_protected {
                let lockout = session.bound_to_lockout;
                self.check_lockout(lockout)?;
            }
        }
        if let Some(entity) = given.entity {
            return self.check_authorisation(signed, all, index, entity).map_err(|e| e.session(index));
        }
        if given.attributes & (AUDIT | ENCRYPT | DECRYPT) == 0 {
            return Err(rc::ATTRIBUTES.session(index));
        }
        if let Some(session) = self.session_mut(given.handle) {
            session.include_auth = false;
        }
        self.check_hmac(signed, all, index).map_err(|e| e.session(index))
    }

    /// Refuses what is under dictionary-attack protection: too many failures, or the first use in a cycle, which is noted first.
    fn check_lockout(&mut self, lockout_auth: bool) -> Result<()> {
        if lockout_auth {
            return if self.lockout.lockout_auth_enabled { Ok(()) } else { Err(rc::LOCKOUT) };
        }
        if self.lockout.is_locked() {
            return Err(rc::LOCKOUT);
        }
        if !self.lockout.used {
            self.lockout.used = true;
            self.orderly = SU_DA_USED;
            return Err(rc::RETRY);
        }
        Ok(())
    }

    fn check_authorisation(&mut self, signed: &Signed<'_>, all: &Authorised<'_>, index: usize, entity: u32) -> Result<()> {
        let given = all.given.get(index).ok_or(rc::FAILURE)?;
        let is_policy = is_policy_session(given.handle);
        let mut uses_auth = true;
        let mut by_password = given.handle == PASSWORD;
        if !by_password {
            let session = self.session(given.handle).ok_or(rc::FAILURE)?;
            uses_auth = if is_policy {
                session.policy.auth_value || session.policy.password
            } else {
                session.bound.as_ref().is_none_or(|bound| !bound.is(&self.bound_value(entity).0))
            };
            by_password = session.policy.password;
            if let Some(session) = self.session_mut(given.handle) {
                session.include_auth = uses_auth;
            }
        }
        if uses_auth && !self.is_exempt(entity) {
            self.check_lockout(entity == LOCKOUT)?;
        }
        if is_policy {
            if !self.has_policy(signed.command, index, entity) {
                return Err(rc::AUTH_UNAVAILABLE);
            }
            self.check_policy(signed, given.handle, index, entity)?;
        } else {
            if self.needs_policy(signed.command, index, entity) {
                return Err(rc::AUTH_TYPE);
            }
            if !self.has_auth_value(signed.command, index, entity) {
                return Err(rc::AUTH_UNAVAILABLE);
            }
        }
        let result = if by_password {
            if Secret::auth(given.auth).is(&self.entity_auth(entity).0) { Ok(()) } else { Err(self.fail(given, entity)) }
        } else {
            self.check_hmac(signed, all, index)
        };
        if uses_auth {
            self.nv.count_pin(entity, result.is_ok());
        }
        result
    }

    /// Notes a wrong authorisation value.
    fn fail(&mut self, given: &Given<'_>, entity: u32) -> Rc {
        let mut entity = entity;
        if given.handle == PASSWORD {
            if self.is_exempt(entity) {
                return rc::BAD_AUTH;
            }
        } else if let Some(session) = self.session(given.handle) {
            if session.bound_to_lockout {
                entity = LOCKOUT;
            }
            if !session.bound_to_protected && (self.is_exempt(entity) || !session.include_auth) {
                return rc::BAD_AUTH;
            }
        }
        self.lockout.fail(entity == LOCKOUT, self.time);
        rc::AUTH_FAIL
    }

    fn role(command: &Command, index: usize) -> Role {
        command.handles.get(index).map_or(Role::None, |(_, role)| *role)
    }

    fn needs_policy(&self, command: &Command, index: usize, entity: u32) -> bool {
        // an object may leave the role ADMIN to its authorisation value
        Self::role(command, index) == Role::Admin
            && self.objects.get(entity).is_none_or(|object| object.public.has(attribute::ADMIN_WITH_POLICY))
    }

    fn has_auth_value(&self, command: &Command, index: usize, entity: u32) -> bool {
        match handle_type(entity) {
            0x40 => matches!(entity, OWNER | ENDORSEMENT | PLATFORM | LOCKOUT | NULL),
            0x80 => self.objects.get(entity).is_some_and(|object| {
                let by_admin = Self::role(command, index) == Role::Admin && !object.public.has(attribute::ADMIN_WITH_POLICY);
                object.sensitive.is_some() && (object.public.has(attribute::USER_WITH_AUTH) || by_admin)
            }),
            0x01 => self
                .nv
                .get(entity)
                .is_some_and(|index| if nv::is_write(command.code) { index.has(nv::AUTH_WRITE) } else { index.may_read_with_auth() }),
            _ => true,
        }
    }

    fn has_policy(&self, command: &Command, index: usize, entity: u32) -> bool {
        match handle_type(entity) {
            0x40 => self.protected(entity).is_some_and(|protected| !protected.policy.is_empty()),
            0x80 => self.objects.get(entity).is_some_and(|object| object.sensitive.is_some()),
            0x01 => self.nv.get(entity).is_some_and(|nv_index| {
                let needed = if nv::is_write(command.code) { nv::POLICY_WRITE } else { nv::POLICY_READ };
                !nv_index.policy.is_empty() && (self.needs_policy(command, index, entity) || nv_index.has(needed))
            }),
            // of the PCRs only the group that may have one, none has
            _ => (20..=22).contains(&entity),
        }
    }

    fn check_policy(&self, signed: &Signed<'_>, handle: u32, index: usize, entity: u32) -> Result<()> {
        let session = self.session(handle).ok_or(rc::FAILURE)?;
        let policy = &session.policy;
        if signed.command.code == POLICY_SECRET && !policy.password && !policy.auth_value {
            return Err(rc::MODE);
        }
        if policy.pcr_counter != 0 && policy.pcr_counter != self.reset.pcr_counter {
            return Err(rc::PCR_CHANGED);
        }
        let (hash, digest) = self.entity_policy(entity);
        if !same(&policy.digest, digest) || hash != Some(session.hash) {
            return Err(rc::POLICY_FAIL);
        }
        if policy.timeout != 0 && (policy.timeout < self.time || session.epoch != self.epoch) {
            return Err(rc::EXPIRED);
        }
        if policy.command == 0 {
            if Self::role(signed.command, index) == Role::Admin {
                return Err(rc::POLICY_FAIL);
            }
        } else if policy.command != signed.command.code {
            return Err(rc::POLICY_CC);
        }
        if !policy.cp_hash.is_empty() && !same(&policy.cp_hash, &self.cp_hash(signed, session.hash)) {
            return Err(rc::POLICY_FAIL);
        }
        Ok(())
    }

    /// Digest of a command: code, names of what its handles name, parameters.
    fn cp_hash(&self, signed: &Signed<'_>, hash: Hash) -> Vec<u8> {
        let names: Vec<u8> = signed.handles.iter().flat_map(|&handle| self.entity_name(handle)).collect();
        hash.digest(&[&signed.command.code.to_be_bytes(), &names, signed.parameters])
    }

    fn check_hmac(&mut self, signed: &Signed<'_>, all: &Authorised<'_>, index: usize) -> Result<()> {
        let given = all.given.get(index).ok_or(rc::FAILURE)?;
        let session = self.session(given.handle).ok_or(rc::FAILURE)?;
        let key = self.hmac_key(session, given);
        let hmac = if key.0.is_empty() && given.auth.is_empty() {
            Vec::new()
        } else {
            // the first session, if it authorises, vouches for those that encrypt
            let other = |chosen: Option<usize>| {
                let handle = all.given.get(chosen.filter(|&chosen| chosen != index)?)?.handle;
                self.session(handle).map(|session| &session.nonce[..])
            };
            let (mut decrypt, mut encrypt): (&[u8], &[u8]) = (&[], &[]);
            if index == 0 && given.entity.is_some() {
                decrypt = other(all.decrypt).unwrap_or(&[]);
                encrypt = other(all.encrypt.filter(|_| all.encrypt != all.decrypt)).unwrap_or(&[]);
            }
            let cp_hash = self.cp_hash(signed, session.hash);
            session.hash.hmac(&key.0, &[&cp_hash, given.nonce, &session.nonce, decrypt, encrypt, &[given.attributes]])
        };
        if same(&hmac, given.auth) { Ok(()) } else { Err(self.fail(given, given.entity.unwrap_or(NULL))) }
    }

    fn hmac_key(&self, session: &Session, given: &Given<'_>) -> Secret {
        let auth = given.entity.filter(|_| session.include_auth).map_or_else(Secret::default, |entity| self.entity_auth(entity));
        Secret([&session.key.0[..], &auth.0].concat())
    }

    fn decrypt_parameter(&self, given: &Given<'_>, parameters: &mut [u8]) -> Result<()> {
        let session = self.session(given.handle).ok_or(rc::FAILURE)?;
        let auth = given.entity.map_or_else(Secret::default, |entity| self.entity_auth(entity));
        let (size, rest) = parameters.split_first_chunk_mut().ok_or(rc::INSUFFICIENT)?;
        let data = rest.get_mut(..usize::from(u16::from_be_bytes(*size))).ok_or(rc::SIZE)?;
        session.crypt_parameter(false, &auth, given.nonce, &session.nonce, data)
    }

    /// Gives every session a new nonce, encrypts the response's first parameter if a session says so, and writes the answers behind it.
    pub(super) fn answer(&mut self, command: &Command, all: &mut Authorised<'_>, body: &mut Vec<u8>) -> Result<()> {
        for given in &all.given {
            let len = self.session(given.handle).map_or(0, |session| session.nonce.len());
            let nonce = self.drbg.bytes(len);
            if let Some(session) = self.session_mut(given.handle) {
                session.nonce = nonce;
            }
        }
        if let Some(given) = all.encrypt.and_then(|index| all.given.get(index)) {
            let session = self.session(given.handle).ok_or(rc::FAILURE)?;
            let auth = given.entity.map_or_else(Secret::default, |entity| self.entity_auth(entity));
            let (size, rest) = body.split_first_chunk_mut().ok_or(rc::FAILURE)?;
            let data = rest.get_mut(..usize::from(u16::from_be_bytes(*size))).ok_or(rc::FAILURE)?;
            session.crypt_parameter(true, &auth, &session.nonce, given.nonce, data)?;
        }
        self.audit(all);
        let parameters = body.clone();
        for given in &mut all.given {
            if given.handle == PASSWORD {
                body.sized(&[]);
                body.u8(given.attributes | CONTINUE);
                body.sized(&[]);
                continue;
            }
            let Some(session) = self.session(given.handle) else { continue };
            let key = self.hmac_key(session, given);
            let hmac = if session.is_policy && session.policy.password || key.0.is_empty() && given.auth.is_empty() {
                Vec::new()
            } else {
                let rp_hash = session.hash.digest(&[&[0; 4], &command.code.to_be_bytes(), &parameters]);
                session.hash.hmac(&key.0, &[&rp_hash, &session.nonce, given.nonce, &[given.attributes]])
            };
            body.sized(&session.nonce);
            body.u8(given.attributes);
            body.sized(&hmac);
            if given.attributes & CONTINUE == 0 {
                self.flush_session(given.handle);
            } else {
                let (time, epoch) = (self.time, self.epoch);
                if let Some(session) = self.session_mut(given.handle).filter(|session| session.is_policy) {
                    session.restart_policy();
                    session.start_time = time;
                    session.epoch = epoch;
                }
            }
        }
        Ok(())
    }

    /// Which session is the exclusive audit session. The digest itself has no command here that shows it.
    fn audit(&mut self, all: &mut Authorised<'_>) {
        let mut is_audited = false;
        for given in all.given.iter_mut().filter(|given| given.attributes & AUDIT != 0) {
            is_audited = true;
            let reset = given.attributes & AUDIT_RESET != 0;
            if let Some(session) = self.session_mut(given.handle)
                && (!session.is_audit || reset)
            {
                session.is_audit = true;
                session.bound = None;
                self.sessions.exclusive = Some(given.handle);
            }
            if self.sessions.exclusive == Some(given.handle) {
                given.attributes |= AUDIT_EXCLUSIVE;
            } else {
                self.sessions.exclusive = None;
                given.attributes &= !AUDIT_EXCLUSIVE;
            }
        }
        if !is_audited {
            self.sessions.exclusive = None;
        }
    }
}

impl Authorised<'_> {
    /// Of a command without sessions.
    pub(super) fn none() -> Self {
        Self { given: Vec::new(), decrypt: None, encrypt: None }
    }
}

fn read_session<'a>(r: &mut Reader<'a>) -> Result<Given<'a>> {
    let handle = r.u32()?;
    if handle != PASSWORD && !is_hmac_session(handle) && !is_policy_session(handle) {
        return Err(rc::VALUE);
    }
    let nonce = r.sized(MAX_DIGEST)?;
    let attributes = r.u8()?;
    if attributes & RESERVED != 0 {
        return Err(rc::RESERVED_BITS);
    }
    Ok(Given { handle, nonce, attributes, auth: r.sized(MAX_DIGEST)?, entity: None })
}
