//! HMAC sessions of the embedded TPM beside libtpms': bound, audited, both, and neither, in any order (TPM 2.0 Library, Part 1, §19.6 and §19.7).
//!
//! Nonces are each TPM's own, so each gets a command that is authorised for it. Codes and session attributes must be the same, and each response
//! authorised by the TPM that gave it.

#![cfg(unix)]
#![expect(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::path::Path;

use hmac::{Hmac, Mac as _};
use loader_sim::vtpm::{Tpm, embedded::EmbeddedTpm, libtpms::LibtpmsTpm};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

const OWNER: u32 = 0x4000_0001;
const ENDORSEMENT: u32 = 0x4000_000B;
const LOCKOUT: u32 = 0x4000_000A;
const NULL: u32 = 0x4000_0007;
const HIERARCHIES: [u32; 3] = [OWNER, ENDORSEMENT, LOCKOUT];
const CONTINUE: u8 = 1;
const AUDIT: u8 = 0x80;
const AUDIT_EXCLUSIVE: u8 = 2;
const AUDIT_RESET: u8 = 4;
const EXCLUSIVE: u32 = 0x121;
const BAD_AUTH: u32 = 0x9A2;

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// An HMAC session as whoever uses it knows it.
#[derive(Clone, Debug)]
struct Session {
    handle: u32,
    key: Vec<u8>,
    nonce: Vec<u8>,
    /// What it is bound to, and its authorisation value then.
    bound: Option<(u32, Vec<u8>)>,
}

/// What is done with both TPMs.
#[derive(Clone, Debug)]
enum Step {
    /// StartAuthSession, bound to a hierarchy or to nothing.
    Start { bind: Option<usize> },
    /// HierarchyChangeAuth by a session; `honest` has the right key.
    Change { session: usize, of: usize, to: Vec<u8>, attributes: u8, honest: bool },
    /// GetRandom, which needs no authorisation, with a session that audits it.
    Audited { session: usize, attributes: u8, honest: bool },
    /// GetRandom without a session.
    Plain,
    /// PCR_Read without a session.
    Read,
}

struct Side {
    tpm: Box<dyn Tpm>,
    sessions: Vec<Session>,
    auths: [Vec<u8>; 3],
}

impl Side {
    fn new(mut tpm: Box<dyn Tpm>) -> Self {
        assert_eq!(u32_at(&tpm.exec(&[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0]).unwrap(), 6), 0);
        Self { tpm, sessions: Vec::new(), auths: Default::default() }
    }

    /// Code, and the attributes that the session has in the response.
    fn take(&mut self, step: &Step, caller: &[u8; 16]) -> (u32, Option<u8>) {
        match step {
            Step::Start { bind } => (self.start(bind.map(|n| HIERARCHIES[n]), caller), None),
            Step::Change { session, of, to, attributes, honest } => {
                let Some(session) = self.index(*session) else { return (0, None) };
                let parameters = [&u16::try_from(to.len()).unwrap().to_be_bytes()[..], to].concat();
                let handle = HIERARCHIES[*of];
                let old = self.auths[*of].clone();
                // what authorises the response is the new value
                let came = self.run(session, *attributes, 0x129, Some((handle, &old, to)), &parameters, *honest, caller);
                if came.0 == 0 {
                    self.auths[*of].clone_from(to);
                }
                came
            }
            Step::Audited { session, attributes, honest } => {
                let Some(session) = self.index(*session) else { return (0, None) };
                self.run(session, *attributes, 0x17B, None, &[0, 8], *honest, caller)
            }
            Step::Plain => (u32_at(&self.tpm.exec(&[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7B, 0, 8]).unwrap(), 6), None),
            Step::Read => {
                (u32_at(&self.tpm.exec(&[0x80, 1, 0, 0, 0, 20, 0, 0, 1, 0x7E, 0, 0, 0, 1, 0, 0x0B, 3, 1, 0, 0]).unwrap(), 6), None)
            }
        }
    }

    fn index(&self, n: usize) -> Option<usize> {
        n.checked_rem(self.sessions.len())
    }

    fn auth_of(&self, handle: u32) -> Vec<u8> {
        HIERARCHIES.iter().position(|h| *h == handle).map(|n| self.auths[n].clone()).unwrap_or_default()
    }

    fn start(&mut self, bind: Option<u32>, caller: &[u8; 16]) -> u32 {
        let parts: [&[u8]; 7] =
            [&NULL.to_be_bytes(), &bind.unwrap_or(NULL).to_be_bytes(), &[0, 16], caller, &[0, 0], &[0], &[0, 0x10, 0, 0x0B]];
        let body = parts.concat();
        let size = u32::try_from(10 + body.len()).unwrap().to_be_bytes();
        let response = self.tpm.exec(&[&[0x80, 1][..], &size, &0x176_u32.to_be_bytes(), &body].concat()).unwrap();
        let code = u32_at(&response, 6);
        if code == 0 {
            let nonce = response[16..].to_vec();
            let auth = bind.map(|handle| self.auth_of(handle));
            let key =
                auth.as_ref().map(|auth| hmac(auth, &[&1_u32.to_be_bytes(), b"ATH\0", &nonce, caller, &256_u32.to_be_bytes()]).to_vec());
            let session = Session { handle: u32_at(&response, 10), key: key.unwrap_or_default(), nonce, bound: bind.zip(auth) };
            self.sessions.push(session);
        }
        code
    }

    /// A command with one session, which authorises a handle if there is one: its value before and after.
    #[expect(clippy::too_many_arguments, reason = "what a command has")]
    fn run(
        &mut self,
        at: usize,
        attributes: u8,
        code: u32,
        handle: Option<(u32, &[u8], &[u8])>,
        parameters: &[u8],
        honest: bool,
        caller: &[u8; 16],
    ) -> (u32, Option<u8>) {
        let session = self.sessions[at].clone();
        // the value of what it is bound to is in the session's key already; whether it is, is told when the command comes
        let is_bound = handle.is_some_and(|(handle, old, _)| session.bound == Some((handle, old.to_vec())));
        let with = |value: &[u8]| [&session.key[..], if is_bound { &[] } else { value }].concat();
        let handles = handle.map(|(handle, ..)| handle.to_be_bytes().to_vec()).unwrap_or_default();
        let digest = sha256(&[&code.to_be_bytes(), &handles, parameters]);
        let mut mac = hmac(&with(handle.map_or(&[], |(_, old, _)| old)), &[&digest, caller, &session.nonce, &[attributes]]);
        if !honest {
            mac[7] ^= 0x20;
        }
        let area: [&[u8]; 6] = [&session.handle.to_be_bytes(), &[0, 16], caller, &[attributes], &[0, 32], &mac];
        let area = area.concat();
        let body = [&handles[..], &u32::try_from(area.len()).unwrap().to_be_bytes(), &area, parameters].concat();
        let size = u32::try_from(10 + body.len()).unwrap().to_be_bytes();
        let response = self.tpm.exec(&[&[0x80, 2][..], &size, &code.to_be_bytes(), &body].concat()).unwrap();
        let result = u32_at(&response, 6);
        if result != 0 {
            return (result, None);
        }
        let len = u32_at(&response, 10) as usize;
        let (given, auth) = response[14..].split_at(len);
        let (nonce, auth) = auth[2..].split_at(usize::from(auth[1]));
        let (given_attributes, given_mac) = (auth[0], &auth[3..]);
        let digest = sha256(&[&0_u32.to_be_bytes(), &code.to_be_bytes(), given]);
        let key = with(handle.map_or(&[], |(_, _, new)| new));
        assert_eq!(given_mac, hmac(&key, &[&digest, nonce, caller, &[given_attributes]]), "the response is not authorised");
        if attributes & CONTINUE == 0 {
            self.sessions.remove(at);
        } else {
            self.sessions[at].nonce = nonce.to_vec();
            if attributes & AUDIT != 0 {
                // a session that audits is bound no longer
                self.sessions[at].bound = None;
            }
        }
        (result, Some(given_attributes))
    }
}

/// Both, or `None`, said, without libtpms.
fn pair() -> Option<[Side; 2]> {
    let theirs = match LibtpmsTpm::start(Path::new(env!("CARGO_BIN_EXE_hvci-sim"))) {
        Ok(tpm) => tpm,
        Err(e) => {
            assert!(e.reason.contains("install the package libtpms0"), "{e}");
            eprintln!("skipped: {e}");
            return None;
        }
    };
    Some([Side::new(Box::new(EmbeddedTpm::new().unwrap())), Side::new(Box::new(theirs))])
}

fn both(sides: &mut [Side; 2], step: &Step, n: u8) -> (u32, Option<u8>) {
    let [ours, theirs] = sides.each_mut().map(|side| side.take(step, &[n; 16]));
    assert_eq!(ours, theirs, "{step:?}");
    ours
}

#[test]
fn a_session_counts_for_what_it_is_bound_to_while_that_is_as_it_was() {
    let Some(mut sides) = pair() else { return };
    let mut take = |step: Step, n: u8| both(&mut sides, &step, n).0;
    let change = |session, of, to: &str, honest| Step::Change { session, of, to: to.into(), attributes: CONTINUE, honest };
    assert_eq!(take(Step::Start { bind: None }, 1), 0);
    assert_eq!(take(change(0, 0, "first", true), 2), 0);
    assert_eq!(take(Step::Start { bind: Some(0) }, 3), 0);
    for n in 4..8 {
        // once for the bound hierarchy, and once for another
        assert_eq!(take(change(1, usize::from(n % 2), "other", true), n), 0);
        assert_eq!(take(change(1, usize::from(n % 2), "other", false), n + 10), BAD_AUTH);
    }
    // bound to what has another value by now
    assert_eq!(take(Step::Start { bind: Some(0) }, 40), 0);
    assert_eq!(take(change(0, 0, "moved", true), 41), 0);
    assert_eq!(take(change(2, 0, "again", true), 42), 0);
}

#[test]
fn an_audit_is_exclusive_until_something_comes_between() {
    let Some(mut sides) = pair() else { return };
    let mut take = |step: Step, n: u8| both(&mut sides, &step, n);
    for n in 1..3 {
        take(Step::Start { bind: None }, n);
    }
    let audited = |session, more| Step::Audited { session, attributes: CONTINUE | AUDIT | more, honest: true };
    let first = take(audited(0, 0), 3).1.unwrap();
    assert_eq!(first & (AUDIT | AUDIT_EXCLUSIVE), AUDIT | AUDIT_EXCLUSIVE, "the first of its kind");
    assert_eq!(take(audited(0, AUDIT_EXCLUSIVE), 4).0, 0);
    assert_eq!(take(Step::Plain, 5).0, 0);
    assert_eq!(take(audited(0, AUDIT_EXCLUSIVE), 6).0, EXCLUSIVE);
    assert_eq!(take(audited(0, 0), 7).1.unwrap() & AUDIT_EXCLUSIVE, 0);
    assert_eq!(take(audited(1, 0), 8).1.unwrap() & AUDIT_EXCLUSIVE, AUDIT_EXCLUSIVE);
    assert_eq!(take(audited(0, AUDIT_RESET), 9).1.unwrap() & AUDIT_EXCLUSIVE, AUDIT_EXCLUSIVE);
}

fn step() -> impl Strategy<Value = Step> {
    let attributes = prop::sample::select(vec![
        CONTINUE,
        CONTINUE,
        0,
        CONTINUE | AUDIT,
        AUDIT,
        CONTINUE | AUDIT | AUDIT_EXCLUSIVE,
        CONTINUE | AUDIT | AUDIT_RESET,
        CONTINUE | AUDIT_EXCLUSIVE,
        CONTINUE | AUDIT_RESET,
        CONTINUE | 0x20,
    ]);
    let honest = prop::bool::weighted(0.9);
    prop_oneof![
        2 => prop::option::of(0..3_usize).prop_map(|bind| Step::Start { bind }),
        4 => (any::<usize>(), 0..2_usize, prop::collection::vec(1..=255_u8, 0..6), attributes.clone(), honest)
            .prop_map(|(session, of, to, attributes, honest)| Step::Change { session, of, to, attributes, honest }),
        4 => (any::<usize>(), attributes, honest).prop_map(|(session, attributes, honest)| Step::Audited { session, attributes, honest }),
        1 => Just(Step::Plain),
        1 => Just(Step::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_use_of_sessions_is_answered_alike(steps in prop::collection::vec(step(), 1..40)) {
        let Some(mut sides) = pair() else { return Ok(()) };
        for (n, step) in (1..).zip(&steps) {
            let [ours, theirs] = sides.each_mut().map(|side| side.take(step, &[n; 16]));
            prop_assert_eq!(ours, theirs, "step {} of {:?}", n, steps);
        }
    }
}
