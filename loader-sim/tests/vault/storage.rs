//! What outlives a boot, what must not, and what a crash leaves.

use std::sync::{Arc, Mutex};

use hvci_engine::{
    status::HvStatus,
    vault::{Etype, Function, Keeper, KeeperError, Key, Opened, UsePolicy, VaultError},
};
use loader_sim::lsa::{Lsa, Options, kdc::Kdc, kerberos, ntlm};

use super::PASSWORD;

/// A keeper's disk and counter, which outlive it; and at which call the machine stops.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    kept: Option<Vec<u8>>,
    counter: u64,
    /// Sealing is adding it; another TPM adds another.
    tpm: u8,
    released: bool,
    calls: u64,
    /// The call that is the last, and whether it still takes effect.
    crash: Option<(u64, bool)>,
}

impl Disk {
    fn boot(&self) -> anyhow::Result<Lsa> {
        self.0.lock().unwrap().released = false;
        let policy = UsePolicy { rate: None, ..UsePolicy::default() };
        Lsa::boot(Options { policy, keeper: Some(Box::new(self.clone())), ..Options::default() })
    }

    fn with<T>(&self, changes: bool, run: impl FnOnce(&mut State) -> Result<T, KeeperError>) -> Result<T, KeeperError> {
        let mut state = self.0.lock().unwrap();
        let call = state.calls;
        state.calls += u64::from(changes);
        let down = || Err(KeeperError::Io("the machine is off".into()));
        match state.crash {
            Some((at, _)) if call > at => down(),
            Some((at, effect)) if changes && call == at => {
                if effect {
                    let _ = run(&mut state);
                }
                down()
            }
            _ => run(&mut state),
        }
    }
}

impl Keeper for Disk {
    fn read(&mut self) -> Result<Option<Vec<u8>>, KeeperError> {
        self.with(false, |state| Ok(state.kept.clone()))
    }
    fn replace(&mut self, bytes: &[u8]) -> Result<(), KeeperError> {
        self.with(true, |state| {
            state.kept = Some(bytes.to_vec());
            Ok(())
        })
    }
    fn counter(&mut self) -> Result<u64, KeeperError> {
        self.with(false, |state| Ok(state.counter))
    }
    fn advance(&mut self, to: u64) -> Result<(), KeeperError> {
        self.with(true, |state| {
            state.counter = state.counter.max(to);
            Ok(())
        })
    }
    fn seal(&mut self, key: &Key) -> Result<Vec<u8>, KeeperError> {
        self.with(false, |state| Ok([&[state.tpm][..], &key.as_bytes().iter().map(|byte| byte ^ 0x5A).collect::<Vec<_>>()].concat()))
    }
    fn unseal(&mut self, sealed: &[u8]) -> Result<Key, KeeperError> {
        self.with(false, |state| {
            if state.released {
                return Err(KeeperError::NotReleased("it was released in this boot already".into()));
            }
            match sealed.split_first() {
                Some((tpm, key)) if *tpm == state.tpm => {
                    state.released = true;
                    Ok(Key::new(&key.iter().map(|byte| byte ^ 0x5A).collect::<Vec<_>>()).unwrap())
                }
                _ => Err(KeeperError::Lost("the TPM was cleared".into())),
            }
        })
    }
}

fn users(lsa: &mut Lsa) -> Vec<String> {
    lsa.list().unwrap().into_iter().map(|one| one.user).collect()
}

fn keep(lsa: &mut Lsa, user: &str, hash: u8) -> u64 {
    lsa.add_logon(user, "D", (1, &[hash; 16]), &UsePolicy::default(), true).unwrap()
}

fn response(lsa: &mut Lsa, credential: u64) -> bool {
    ntlm::respond(lsa, credential, 1, &[], ntlm::Target { name: "cifs/x", channel_binding: [0; 16] }).is_ok()
}

#[test]
fn what_is_kept_comes_back_under_its_handle_and_the_rest_is_gone() {
    let disk = Disk::default();
    let mut lsa = disk.boot().unwrap();
    assert_eq!(lsa.opened, Opened::New);
    let kept = keep(&mut lsa, "alice", 7);
    let gone = lsa.log_on("bob", "D", PASSWORD).unwrap();
    let key = lsa.make_key(2, "host key", b"x", true).unwrap();
    let public = lsa.ask(Function::PUBLIC_KEY, &[&[key]]).unwrap();
    lsa.word(Function::COMMIT, &[]).unwrap();
    drop(lsa);
    let mut lsa = disk.boot().unwrap();
    assert_eq!(lsa.opened, Opened::Kept(2));
    assert_eq!(users(&mut lsa), ["alice", "host key"]);
    assert!(response(&mut lsa, kept) && !response(&mut lsa, gone));
    assert_eq!(lsa.ask(Function::PUBLIC_KEY, &[&[key]]).unwrap(), public);
    let store = disk.0.lock().unwrap().kept.clone().unwrap();
    for secret in [&[7; 16][..], b"alice", b"host key"] {
        assert!(!store.windows(secret.len()).any(|bytes| bytes == secret), "in clear at rest");
    }
    // a handle is not used again
    let new = keep(&mut lsa, "carol", 8);
    assert!(new != kept && new != gone && new != key);
}

/// What is between those that are kept is used again, and a budget outlives a boot.
#[test]
fn places_are_used_again_and_budgets_go_on() {
    let disk = Disk::default();
    let mut lsa = disk.boot().unwrap();
    let policy = UsePolicy { budget: Some(3), ..UsePolicy::default() };
    let handles: Vec<u64> = (0..5).map(|n| lsa.add_logon(&format!("u{n}"), "D", (1, &[n; 16]), &policy, true).unwrap()).collect();
    lsa.word(Function::REMOVE, &[&[handles[1]]]).unwrap();
    lsa.word(Function::REMOVE, &[&[handles[3]]]).unwrap();
    assert!(response(&mut lsa, handles[4]) && response(&mut lsa, handles[4]));
    lsa.vault().commit().unwrap();
    drop(lsa);
    let mut lsa = disk.boot().unwrap();
    assert_eq!(users(&mut lsa), ["u0", "u2", "u4"]);
    assert!(response(&mut lsa, handles[4]) && !response(&mut lsa, handles[4]), "two of three were used before");
    // the response's session took one place
    let places: Vec<u64> = (0..2).map(|n| keep(&mut lsa, "new", 0x40 + n) & 0xFFFF_FFFF).collect();
    assert!(places.iter().all(|place| [1, 3, 5].contains(place)), "{places:?}");
    assert!(response(&mut lsa, handles[0]));
}

#[test]
fn what_is_old_changed_or_anothers_is_refused() {
    let disk = Disk::default();
    let mut lsa = disk.boot().unwrap();
    keep(&mut lsa, "alice", 7);
    lsa.vault().commit().unwrap();
    let old = disk.0.lock().unwrap().kept.clone();
    keep(&mut lsa, "bob", 8);
    lsa.vault().commit().unwrap();
    drop(lsa);
    let good = disk.0.lock().unwrap().clone();
    let refused = |change: &dyn Fn(&mut State)| {
        let disk = Disk(Arc::new(Mutex::new(State { ..good.clone() })));
        change(&mut disk.0.lock().unwrap());
        let before = disk.0.lock().unwrap().kept.clone();
        let error = disk.boot().err()?;
        assert_eq!(disk.0.lock().unwrap().kept, before, "what is refused is left as it is");
        error.downcast::<VaultError>().ok()
    };
    let is_store = |error: Option<VaultError>| matches!(error, Some(VaultError::Store(_)));
    assert!(is_store(refused(&|state| state.kept = old.clone())), "an older one");
    assert!(is_store(refused(&|state| state.counter -= 2)), "a counter that went back");
    let len = good.kept.as_ref().unwrap().len();
    for at in (0..len).step_by(7) {
        // a change of the sealed key is one of the TPM's to find
        if !(54..54 + 33).contains(&at) {
            assert!(is_store(refused(&|state| state.kept.as_mut().unwrap()[at] ^= 1)), "byte {at}");
        }
        assert!(is_store(refused(&|state| state.kept.as_mut().unwrap().truncate(at))) || at > 54, "cut at {at}");
    }
    assert_eq!(refused(&|_| ()), None);
    // another machine
    let disk = Disk(Arc::new(Mutex::new(good.clone())));
    let other = Lsa::boot(Options { vm: [9; 16], keeper: Some(Box::new(disk)), ..Options::default() });
    assert!(is_store(other.unwrap_err().downcast().ok()));
}

#[test]
fn a_cleared_tpm_costs_what_was_kept_and_nothing_else() {
    let disk = Disk::default();
    let mut lsa = disk.boot().unwrap();
    keep(&mut lsa, "alice", 7);
    lsa.vault().commit().unwrap();
    drop(lsa);
    disk.0.lock().unwrap().tpm = 1;
    let mut lsa = disk.boot().unwrap();
    assert_eq!(lsa.opened, Opened::Lost("the TPM was cleared".into()));
    assert_eq!(users(&mut lsa), [""; 0]);
    keep(&mut lsa, "bob", 8);
    lsa.vault().commit().unwrap();
    drop(lsa);
    assert_eq!(disk.boot().unwrap().opened, Opened::Kept(1));
}

#[test]
fn the_key_is_released_once() {
    let disk = Disk::default();
    drop(disk.boot().unwrap());
    let policy = || UsePolicy::default();
    let open = || Lsa::boot(Options { policy: policy(), keeper: Some(Box::new(disk.clone())), ..Options::default() });
    disk.0.lock().unwrap().released = false;
    open().unwrap();
    let error: VaultError = open().unwrap_err().downcast().unwrap();
    assert!(matches!(error, VaultError::Keeper(KeeperError::NotReleased(_))), "{error}");
}

/// Each change, stopped before and after each thing that the keeper is told: the old state or the new one.
#[test]
fn a_crash_leaves_the_old_state_or_the_new_one() {
    type Change = fn(&mut Lsa, u64) -> bool;
    let changes: [(&str, Change, &[&str]); 4] = [
        (
            "add",
            |lsa, _| {
                keep(lsa, "bob", 8);
                lsa.vault().commit().is_ok()
            },
            &["alice", "bob"],
        ),
        (
            "remove",
            |lsa, alice| {
                lsa.word(Function::REMOVE, &[&[alice]]).unwrap();
                lsa.vault().commit().is_ok()
            },
            &[],
        ),
        ("rotate", |lsa, _| lsa.vault().rotate().is_ok(), &["alice"]),
        (
            "replace",
            |lsa, alice| {
                let secret = lsa.put(&[9; 16]).unwrap();
                lsa.word(Function::REPLACE, &[&[alice, 1], &secret, &[0, 0]]).unwrap();
                lsa.vault().commit().is_ok()
            },
            &["alice"],
        ),
    ];
    for (name, change, after) in changes {
        let start = Disk::default();
        let mut lsa = start.boot().unwrap();
        let alice = keep(&mut lsa, "alice", 7);
        lsa.vault().commit().unwrap();
        drop(lsa);
        let mut seen = Vec::new();
        for call in 0.. {
            let mut outcomes = Vec::new();
            for effect in [false, true] {
                let disk = Disk(Arc::new(Mutex::new(start.0.lock().unwrap().clone())));
                let mut lsa = disk.boot().unwrap();
                let first = disk.0.lock().unwrap().calls;
                disk.0.lock().unwrap().crash = Some((first + call, effect));
                let done = change(&mut lsa, alice);
                drop(lsa);
                disk.0.lock().unwrap().crash = None;
                let mut lsa = disk.boot().unwrap_or_else(|error| panic!("{name}, stopped at {call}, {effect}: {error:#}"));
                let found = users(&mut lsa);
                assert!(found == ["alice"] || found == after, "{name}, stopped at {call}, {effect}: {found:?}");
                if done {
                    assert_eq!(found, after, "{name}: it was said to be done");
                }
                if found.contains(&"alice".to_owned()) {
                    assert!(response(&mut lsa, alice), "{name}, stopped at {call}: alice's credential is of no use");
                }
                // and it goes on
                keep(&mut lsa, "dave", 5);
                lsa.vault().commit().unwrap();
                outcomes.push(done);
                seen.push(found);
            }
            if outcomes == [true, true] {
                break;
            }
        }
        assert!(seen.len() >= 6, "{name}: stopped at {} places", seen.len());
    }
}

/// A store that was given and then followed is an older one, though the counter had not moved when it was given.
#[test]
fn what_was_given_and_followed_is_older() {
    let disk = Disk::default();
    let mut lsa = disk.boot().unwrap();
    let alice = keep(&mut lsa, "alice", 7);
    lsa.vault().commit().unwrap();
    keep(&mut lsa, "bob", 8);
    // the store is replaced, the counter does not move
    let next = disk.0.lock().unwrap().calls + 1;
    disk.0.lock().unwrap().crash = Some((next, false));
    assert!(lsa.vault().commit().is_err());
    disk.0.lock().unwrap().crash = None;
    let copied = disk.0.lock().unwrap().kept.clone();
    lsa.word(Function::REMOVE, &[&[alice]]).unwrap();
    lsa.vault().commit().unwrap();
    drop(lsa);
    let good = disk.0.lock().unwrap().kept.clone();
    disk.0.lock().unwrap().kept = copied;
    assert!(disk.boot().is_err(), "with alice in it");
    disk.0.lock().unwrap().kept = good;
    assert_eq!(users(&mut disk.boot().unwrap()), ["bob"]);
}

/// A budget that is kept is used up before there is an answer; sessions are uses of what they came of.
#[test]
fn budgets_are_neither_crashed_nor_multiplied_away() {
    let disk = Disk::default();
    let mut lsa = disk.boot().unwrap();
    let policy = UsePolicy { budget: Some(4), ..UsePolicy::default() };
    let password = lsa.add_logon("alice", "EXAMPLE.ORG", (0, PASSWORD.as_bytes()), &policy, true).unwrap();
    lsa.vault().commit().unwrap();
    let etype = Etype::Aes128Sha2;
    let kdc = Kdc::new("EXAMPLE.ORG", "alice", PASSWORD, etype);
    let now = lsa.guest.engine.time;
    let request = kerberos::as_request(&mut lsa, password, ("alice", "EXAMPLE.ORG"), etype, 1).unwrap();
    let reply = kdc.as_reply(&request, now).unwrap();
    let tgt = kerberos::reply(&mut lsa, password, &reply).unwrap();
    kerberos::tgs_request(&mut lsa, &tgt, "EXAMPLE.ORG", "cifs/x", etype, 1).unwrap();
    kerberos::tgs_request(&mut lsa, &tgt, "EXAMPLE.ORG", "cifs/y", etype, 2).unwrap();
    // four uses: the timestamp, the reply, two requests
    assert!(kerberos::tgs_request(&mut lsa, &tgt, "EXAMPLE.ORG", "cifs/z", etype, 3).is_err());
    assert!(kerberos::reply(&mut lsa, password, &reply).is_err(), "the same reply again");
    // the machine stops without a word
    drop(lsa);
    let mut lsa = disk.boot().unwrap();
    assert!(kerberos::as_request(&mut lsa, password, ("alice", "EXAMPLE.ORG"), etype, 1).is_err());
}

#[test]
fn an_answer_that_has_no_room_leaves_nothing_behind() {
    let disk = Disk::default();
    let mut lsa = disk.boot().unwrap();
    let alice = lsa.add_logon("alice", "D", (1, &[7; 16]), &UsePolicy::default(), false).unwrap();
    for place in [[0, 0], [0xE0_000, 16], [0xA0_000, 0x1000], [u64::MAX - 8, 0x1000]] {
        let (status, _) = lsa.call(Function::NTLM_PROTECT_CREDENTIAL, &[alice, place[0], place[1]]).unwrap();
        assert!(status != HvStatus::SUCCESS, "{place:x?}");
        assert!(response(&mut lsa, alice), "it is still there: {place:x?}");
        let before = lsa.vault().len();
        let target = lsa.put(b"cifs/x").unwrap();
        let (status, _) = lsa.call(Function::NTLM_RESPONSE, &[alice, 1, 0, 0, target[0], target[1], 0, 1, place[0], place[1]]).unwrap();
        assert!(status != HvStatus::SUCCESS && lsa.vault().len() == before, "no session that nobody knows: {place:x?}");
    }
}

/// Blobs are opened by a key of the boot: a new key of what is kept is nothing to them.
#[test]
fn what_is_out_comes_back_after_a_new_key() {
    let mut lsa = Disk::default().boot().unwrap();
    let alice = lsa.add_logon("alice", "D", (1, &[7; 16]), &UsePolicy::default(), false).unwrap();
    let blob = lsa.ask(Function::NTLM_PROTECT_CREDENTIAL, &[&[alice]]).unwrap();
    lsa.vault().rotate().unwrap();
    let blob = lsa.put(&blob).unwrap();
    assert_eq!(lsa.call(Function::UNPROTECT, &blob).unwrap(), (HvStatus::SUCCESS, alice));
    assert!(response(&mut lsa, alice));
}

#[test]
fn blobs_are_of_one_boot_one_credential_and_one_use() {
    let disk = Disk::default();
    let mut lsa = disk.boot().unwrap();
    let alice = lsa.add_logon("alice", "D", (1, &[7; 16]), &UsePolicy::default(), false).unwrap();
    let bob = lsa.add_logon("bob", "D", (1, &[7; 16]), &UsePolicy::default(), false).unwrap();
    let back = |lsa: &mut Lsa, blob: &[u8]| {
        let blob = lsa.put(blob).unwrap();
        lsa.call(Function::UNPROTECT, &blob).unwrap()
    };
    let blob = lsa.ask(Function::NTLM_PROTECT_CREDENTIAL, &[&[alice]]).unwrap();
    assert!(!response(&mut lsa, alice), "it is out");
    assert!(!lsa.secret_pages().unwrap()[128 * 2 - 128..].starts_with(&[7; 16]), "and no longer in its frame");
    // bits, ends, another account's handle
    for at in 0..blob.len() {
        let mut changed = blob.clone();
        changed[at] ^= 0x10;
        assert_eq!(back(&mut lsa, &changed).0, HvStatus::ACCESS_DENIED, "byte {at}");
        assert_eq!(back(&mut lsa, &blob[..at]).0, HvStatus::ACCESS_DENIED, "cut at {at}");
    }
    let other = lsa.ask(Function::NTLM_PROTECT_CREDENTIAL, &[&[bob]]).unwrap();
    let swapped = [&blob[..6], &other[6..14], &blob[14..]].concat();
    assert_eq!(back(&mut lsa, &swapped).0, HvStatus::ACCESS_DENIED);
    assert_eq!(back(&mut lsa, &blob), (HvStatus::SUCCESS, alice));
    assert!(response(&mut lsa, alice));
    assert_eq!(back(&mut lsa, &blob).0, HvStatus::ACCESS_DENIED, "it is in");
    let newer = lsa.ask(Function::NTLM_PROTECT_CREDENTIAL, &[&[alice]]).unwrap();
    assert_eq!(back(&mut lsa, &blob).0, HvStatus::ACCESS_DENIED, "an older one");
    // a secret that was replaced is not brought back
    let secret = lsa.put(&[9; 16]).unwrap();
    lsa.word(Function::REPLACE, &[&[alice, 1], &secret, &[0, 0]]).unwrap();
    assert_eq!(back(&mut lsa, &newer).0, HvStatus::ACCESS_DENIED);
    drop(lsa);
    let mut lsa = disk.boot().unwrap();
    assert_eq!(back(&mut lsa, &other).0, HvStatus::ACCESS_DENIED, "another boot");
    // what is kept does not go out
    let kept = keep(&mut lsa, "carol", 3);
    assert!(lsa.ask(Function::NTLM_PROTECT_CREDENTIAL, &[&[kept]]).is_err());
}
