//! The embedded TPM by itself: whatever comes is answered, a state is all there is, and time and randomness are its owner's.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::time::Duration;

use loader_sim::vtpm::{MAX_MESSAGE, Tpm, embedded::EmbeddedTpm};
use proptest::{collection::vec, prelude::*, sample::select};
use sha2::{Digest as _, Sha256};

const OWNER: u32 = 0x4000_0001;
const LOCKOUT: u32 = 0x4000_000a;
const ENDORSEMENT: u32 = 0x4000_000b;
const PASSWORD: &[u8] = &[0x40, 0, 0, 9, 0, 0, 0, 0, 0];

/// Bytes before the body of a state: its name and version, and a digest of the body.
const HEAD: usize = 8 + 32;

/// A command, with an empty password for each handle if so.
fn command(code: u32, handles: &[u32], passwords: usize, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0x80, if passwords == 0 { 1 } else { 2 }, 0, 0, 0, 0];
    out.extend(code.to_be_bytes());
    out.extend(handles.iter().flat_map(|handle| handle.to_be_bytes()));
    if passwords > 0 {
        let area = PASSWORD.repeat(passwords);
        out.extend((area.len() as u32).to_be_bytes());
        out.extend(area);
    }
    out.extend(body);
    let size = (out.len() as u32).to_be_bytes();
    out[2..6].copy_from_slice(&size);
    out
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

fn code(response: &[u8]) -> u32 {
    u32::from_be_bytes(response[6..10].try_into().unwrap())
}

fn ok(tpm: &mut EmbeddedTpm, command: &[u8]) -> Vec<u8> {
    let response = tpm.exec(command).unwrap();
    assert_eq!(code(&response), 0, "{command:02x?}");
    response
}

fn started(seed: u8) -> EmbeddedTpm {
    let mut tpm = EmbeddedTpm::manufacture([seed; 32]);
    ok(&mut tpm, &command(0x144, &[], 0, &[0, 0]));
    tpm
}

/// TPM2B_PUBLIC of a key on P-256.
fn ecc(attributes: u32, rest: &[u16]) -> Vec<u8> {
    let mut public = [&[0, 0x23, 0, 0x0b][..], &attributes.to_be_bytes(), &[0, 0]].concat();
    public.extend(rest.iter().flat_map(|word| word.to_be_bytes()));
    sized(&public)
}

fn primary(hierarchy: u32, public: &[u8]) -> Vec<u8> {
    command(0x131, &[hierarchy], 1, &[&[0, 4, 0, 0, 0, 0], public, &[0; 6]].concat())
}

/// A restricted signing key, and a storage key.
fn ak() -> Vec<u8> {
    primary(ENDORSEMENT, &ecc(0x0005_0472, &[0x10, 0x18, 0x0b, 3, 0x10, 0, 0]))
}

fn parent() -> Vec<u8> {
    primary(OWNER, &ecc(0x0003_0472, &[6, 128, 0x43, 0x10, 3, 0x10, 0, 0]))
}

/// TPM2_NV_DefineSpace of a counter, or of eight bytes under dictionary-attack protection with the password `pin`.
fn define(index: u32, attributes: u32) -> Vec<u8> {
    let public = [&index.to_be_bytes()[..], &[0, 0x0b], &attributes.to_be_bytes(), &[0, 0, 0, 8]].concat();
    command(0x12a, &[OWNER], 1, &[sized(b"pin"), sized(&public)].concat())
}

/// One of everything that a state holds.
fn furnished(seed: u8) -> EmbeddedTpm {
    let mut tpm = started(seed);
    ok(&mut tpm, &ak());
    ok(&mut tpm, &parent());
    ok(&mut tpm, &command(0x120, &[OWNER, 0x8000_0001], 1, &0x8100_0001_u32.to_be_bytes()));
    ok(&mut tpm, &define(0x0150_0000, 0x0202_0012));
    ok(&mut tpm, &define(0x0150_0001, 0x0602_0012));
    ok(&mut tpm, &command(0x134, &[OWNER, 0x0150_0000], 1, &[]));
    ok(&mut tpm, &command(0x134, &[OWNER, 0x0150_0001], 1, &[]));
    ok(&mut tpm, &session(1));
    ok(&mut tpm, &command(0x162, &[0x0300_0000], 0, &[]));
    ok(&mut tpm, &session(1));
    ok(&mut tpm, &command(0x182, &[4], 1, &[&[0, 0, 0, 1, 0, 0x0b][..], &[9; 32]].concat()));
    tpm
}

fn session(kind: u8) -> Vec<u8> {
    command(0x176, &[0x4000_0007, 0x4000_0007], 0, &[&sized(&[1; 32])[..], &[0, 0, kind, 0, 0x10, 0, 0x0b]].concat())
}

fn quote() -> Vec<u8> {
    command(0x158, &[0x8000_0000], 1, &[&sized(b"nonce")[..], &[0, 0x10, 0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0, 0]].concat())
}

/// Commands that make sense, and change much.
fn sensible() -> impl Strategy<Value = Vec<u8>> {
    let pcr = select(vec![0_u32, 7, 16, 23]);
    let digest = any::<[u8; 32]>();
    let policy = [0x0300_0000_u32, 0x0300_0001];
    prop_oneof![
        (pcr.clone(), digest).prop_map(|(pcr, digest)| command(0x182, &[pcr], 1, &[&[0, 0, 0, 1, 0, 0x0b][..], &digest].concat())),
        pcr.prop_map(|pcr| command(0x13d, &[pcr], 1, &[])),
        (0_u16..70).prop_map(|len| command(0x17b, &[], 0, &len.to_be_bytes())),
        vec(any::<u8>(), 0..100).prop_map(|data| command(0x146, &[], 0, &sized(&data))),
        Just(ak()),
        Just(parent()),
        Just(session(1)),
        Just(session(3)),
        select(policy.to_vec()).prop_map(|session| command(0x16b, &[session], 0, &[])),
        select(policy.to_vec()).prop_map(|session| command(0x189, &[session], 0, &[])),
        select(policy.to_vec()).prop_map(|session| command(0x17f, &[session], 0, &[0, 0, 0, 0, 0, 1, 0, 0x0b, 3, 0x91, 0, 0])),
        select(policy.to_vec()).prop_map(|session| command(0x162, &[session], 0, &[])),
        (0_u32..3).prop_map(|index| command(0x162, &[0x8000_0000 + index], 0, &[])),
        (0_u32..3).prop_map(|index| command(0x165, &[], 0, &(0x8000_0000 + index).to_be_bytes())),
        (0_u32..3).prop_map(|index| command(0x173, &[0x8000_0000 + index], 0, &[])),
        (0_u32..2).prop_map(|index| command(0x134, &[OWNER, 0x0150_0000 + index], 1, &[])),
        (0_u32..2).prop_map(|index| command(0x14e, &[OWNER, 0x0150_0000 + index], 1, &[0, 8, 0, 0])),
        Just(command(0x14e, &[0x0150_0000, 0x0150_0000], 1, &[0, 8, 0, 0])),
        Just(command(0x173, &[0x8100_0001], 0, &[])),
        (0_u16..2).prop_map(|su| command(0x145, &[], 0, &su.to_be_bytes())),
        (0_u16..2).prop_map(|su| command(0x144, &[], 0, &su.to_be_bytes())),
        Just(command(0x17a, &[], 0, &[0, 0, 0, 6, 0, 0, 2, 0, 0, 0, 0, 99])),
        Just(command(0x17e, &[], 0, &[0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0, 0x80])),
        Just(command(0x181, &[], 0, &[])),
    ]
}

/// A command's code, and anything behind it.
fn shaped() -> impl Strategy<Value = Vec<u8>> {
    (
        0x11e_u32..0x19a,
        vec(select(vec![0, 16, OWNER, LOCKOUT, 0x8000_0000, 0x8100_0001, 0x0150_0000, 0x0300_0001]), 0..4),
        0_usize..3,
        vec(any::<u8>(), 0..80),
    )
        .prop_map(|(code, handles, passwords, body)| command(code, &handles, passwords, &body))
}

/// Bytes of one command, changed.
fn broken() -> impl Strategy<Value = Vec<u8>> {
    (sensible(), vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)).prop_map(|(mut bytes, changes)| {
        for (index, value) in changes {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        bytes
    })
}

fn is_response(response: &[u8]) -> bool {
    let size = u32::from_be_bytes(response[2..6].try_into().unwrap());
    size as usize == response.len() && response.len() <= MAX_MESSAGE && (code(response) == 0 || response.len() == 10)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_is_answered(commands in vec(prop_oneof![vec(any::<u8>(), 0..64), shaped(), broken(), sensible()], 1..60)) {
        let mut tpm = furnished(1);
        for command in commands {
            prop_assert!(is_response(&tpm.exec(&command).unwrap()));
        }
    }

    #[test]
    fn a_saved_tpm_goes_on_as_it_would_have(before in vec(sensible(), 0..30), after in vec((sensible(), 0_u8..8), 1..30)) {
        let mut tpm = furnished(2);
        for command in before {
            tpm.exec(&command).unwrap();
        }
        let mut other = started(3);
        let state = tpm.save().unwrap();
        other.load(&state).unwrap();
        for (command, reset) in after {
            if reset == 0 {
                tpm.reset().unwrap();
                other.reset().unwrap();
            }
            prop_assert_eq!(tpm.exec(&command).unwrap(), other.exec(&command).unwrap());
            tpm.advance(Duration::from_millis(700));
            other.advance(Duration::from_millis(700));
        }
        prop_assert_eq!(tpm.save().unwrap(), other.save().unwrap());
    }

    /// A state with a right digest can still be none; one that is taken is answered from, whatever it says.
    #[test]
    fn a_forged_state_is_refused_or_lived_with(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), commands in vec(prop_oneof![sensible(), shaped()], 1..40)) {
        let honest = furnished(4).save().unwrap();
        let mut state = honest.clone();
        for (index, value) in changes {
            let index = HEAD + index.index(state.len() - HEAD);
            state[index] = value;
        }
        let mut tpm = started(5);
        prop_assert_eq!(tpm.load(&state).is_err(), state != honest, "the digest is another");
        let digest = Sha256::digest(&state[HEAD..]);
        state[8..HEAD].copy_from_slice(&digest);
        let taken = tpm.load(&state).is_ok();
        for command in commands {
            prop_assert!(is_response(&tpm.exec(&command).unwrap()), "{taken}");
        }
    }
}

#[test]
fn what_is_no_state_leaves_the_tpm_as_it_was() {
    let mut tpm = furnished(6);
    let state = tpm.save().unwrap();
    for len in 0..state.len() {
        assert!(tpm.load(&state[..len]).is_err(), "{len}");
    }
    assert!(tpm.load(&[&state[..], &[0]].concat()).is_err());
    let mut version = state.clone();
    version[7] += 1;
    assert!(tpm.load(&version).is_err());
    assert_eq!(tpm.save().unwrap(), state);
    ok(&mut tpm, &quote());
}

#[test]
fn the_seed_is_all_the_randomness() {
    let random = command(0x17b, &[], 0, &[0, 64]);
    let name = |tpm: &mut EmbeddedTpm| ok(tpm, &ak());
    let (mut one, mut same, mut other) = (started(7), started(7), started(8));
    assert_eq!(ok(&mut one, &random), ok(&mut same, &random));
    assert_eq!(name(&mut one), name(&mut same));
    assert_eq!(one.save().unwrap(), same.save().unwrap());
    assert_ne!(ok(&mut one, &random), ok(&mut other, &random));
    assert_ne!(name(&mut one), name(&mut other));
    assert_ne!(ok(&mut one, &random), ok(&mut one, &random));
    let mut stirred = started(7);
    ok(&mut stirred, &command(0x146, &[], 0, &sized(b"more")));
    assert_ne!(ok(&mut stirred, &random), ok(&mut started(7), &random));
    let mut of_the_system = EmbeddedTpm::new().unwrap();
    ok(&mut of_the_system, &command(0x144, &[], 0, &[0, 0]));
    assert_ne!(name(&mut of_the_system), name(&mut started(7)));
}

#[test]
fn nothing_secret_is_shown() {
    let seed = [0xab; 32];
    let mut tpm = EmbeddedTpm::manufacture(seed);
    ok(&mut tpm, &command(0x144, &[], 0, &[0, 0]));
    ok(&mut tpm, &command(0x129, &[OWNER], 1, &sized(b"the owner's password")));
    let shown = format!("{tpm:?}");
    assert_eq!(shown, "EmbeddedTpm { started: true, reset_count: 1, .. }");
}

/// TPM2_NV_Read of the protected index with a password.
fn read_protected(password: &[u8]) -> Vec<u8> {
    let area = [&[0x40, 0, 0, 9, 0, 0, 0][..], &sized(password)].concat();
    let body = [&(area.len() as u32).to_be_bytes()[..], &area, &[0, 1, 0, 0]].concat();
    let mut bytes = command(0x14e, &[0x0150_0002, 0x0150_0002], 0, &body);
    bytes[1] = 2;
    bytes
}

#[test]
fn a_lockout_ends_with_time() {
    const WRONG: u32 = 0x98e;
    const LOCKED: u32 = 0x921;
    let mut tpm = started(9);
    ok(&mut tpm, &define(0x0150_0002, 0x0006_0006));
    ok(&mut tpm, &command(0x137, &[OWNER, 0x0150_0002], 1, &[0, 1, 5, 0, 0]));
    let (wrong, right) = (read_protected(b"nip"), read_protected(b"pin"));
    let codes = |tpm: &mut EmbeddedTpm, commands: &[&[u8]]| -> Vec<u32> {
        commands.iter().map(|command| code(&tpm.exec(command).unwrap())).collect()
    };
    // the first use is to be tried again
    assert_eq!(codes(&mut tpm, &[&right, &right, &wrong, &wrong, &wrong, &right]), [0x922, 0, WRONG, WRONG, WRONG, LOCKED]);
    tpm.advance(Duration::from_secs(999));
    assert_eq!(codes(&mut tpm, &[&right]), [LOCKED]);
    tpm.advance(Duration::from_secs(1));
    assert_eq!(codes(&mut tpm, &[&right, &wrong, &right]), [0, WRONG, LOCKED]);
    // or with the owner of the lockout
    ok(&mut tpm, &command(0x139, &[LOCKOUT], 1, &[]));
    assert_eq!(codes(&mut tpm, &[&right]), [0]);
}

#[test]
fn the_clock_is_the_owners() {
    let clock = command(0x181, &[], 0, &[]);
    let read = |tpm: &mut EmbeddedTpm| {
        let response = ok(tpm, &clock);
        let number = |at: usize| u64::from_be_bytes(response[at..at + 8].try_into().unwrap());
        (number(10), number(18), response[34])
    };
    let mut tpm = EmbeddedTpm::manufacture([10; 32]);
    tpm.advance(Duration::from_secs(5));
    ok(&mut tpm, &command(0x144, &[], 0, &[0, 0]));
    assert_eq!(read(&mut tpm), (0, 0, 1));
    tpm.advance(Duration::from_millis(5000));
    assert_eq!(read(&mut tpm), (5000, 5000, 1));
    // without a shutdown it goes back to what was written last, and says that it may have been there before
    tpm.reset().unwrap();
    ok(&mut tpm, &command(0x144, &[], 0, &[0, 0]));
    assert_eq!(read(&mut tpm), (0, 4096, 0));
    tpm.advance(Duration::from_millis(4096));
    assert_eq!(read(&mut tpm), (4096, 8192, 1));
    ok(&mut tpm, &command(0x145, &[], 0, &[0, 0]));
    tpm.reset().unwrap();
    ok(&mut tpm, &command(0x144, &[], 0, &[0, 0]));
    assert_eq!(read(&mut tpm), (0, 8192, 1));
}
