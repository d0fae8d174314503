//! The embedded TPM against libtpms: the same commands to both, well-formed, random and broken, and the same responses, byte for byte. Keys, random
//! numbers and clocks cannot be the same; the fields that hold them are the masks, and what one of the two cannot do at all is explained. A mask or an
//! explanation that hides nothing is stale, and fails.

#![cfg(unix)]
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use loader_sim::vtpm::{Tpm, embedded::EmbeddedTpm, libtpms::LibtpmsTpm};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use tpm2_protocol::{
    data::TpmCc,
    frame::{TpmCommand, TpmResponse},
};

const OWNER: u32 = 0x4000_0001;
const NULL: u32 = 0x4000_0007;
const LOCKOUT: u32 = 0x4000_000a;
const ENDORSEMENT: u32 = 0x4000_000b;
const PLATFORM: u32 = 0x4000_000c;

/// Fields of responses that two TPMs cannot have the same.
const MASKS: &[&str] = &[
    "random numbers",
    "key",
    "name of a key",
    "private area",
    "digest of creation data with the name of a key",
    "ticket",
    "signature",
    "clock",
    "obfuscated count",
    "firmware version",
    "context",
    "credential",
    "nonce",
    "timeout",
    "algorithms",
    "commands",
    "audited commands",
    "physical presence commands",
    "vendor, limits and counts of commands",
    "curves",
];

/// What the embedded TPM refuses with these codes, where libtpms does or says something else: it has no other keys and ciphers.
const EXPLAINED: &[(&str, &[u32], &[u32])] = &[
    ("another type of key", CREATE_OR_LOAD, &[0x1ca, 0x2ca]),
    ("another curve", CREATE_OR_LOAD, &[0x2e6]),
    ("another cipher of a key", CREATE_OR_LOAD, &[0x2d6]),
    ("another cipher of a session", &[0x176], &[0x4d6]),
    ("another scheme", CREATE_OR_LOAD, &[0x2d2]),
    ("another scheme of a signature", &[0x177], &[0x2d2]),
    ("another command", &[0x16c], &[0x1e4]),
];

const CREATE_OR_LOAD: &[u32] = &[0x131, 0x153, 0x157, 0x167];

/// TPM_PT that are each TPM's own.
fn is_own_property(tag: u32) -> bool {
    matches!(tag, 0x105..=0x10c | 0x121 | 0x122 | 0x129 | 0x12a | 0x209 | 0x20b | 0x20d)
}

struct Pair {
    ours: EmbeddedTpm,
    theirs: LibtpmsTpm,
    rng: ChaCha20Rng,
    /// When they began, and how much of the time since then the embedded one was told of; the other goes by itself.
    began: Instant,
    told: Duration,
    count: usize,
    successes: BTreeMap<u32, usize>,
    masked: RefCell<BTreeMap<&'static str, bool>>,
    explained: BTreeMap<&'static str, usize>,
    /// Whole commands, to be cut short later.
    corpus: BTreeMap<u32, Vec<u8>>,
}

/// A command: code, handles, whether sessions follow, and what.
#[derive(Clone)]
struct Command {
    code: u32,
    handles: Vec<u32>,
    sessions: Option<Vec<u8>>,
    body: Vec<u8>,
}

fn command(code: u32, handles: &[u32]) -> Command {
    Command { code, handles: handles.to_vec(), sessions: None, body: Vec::new() }
}

impl Command {
    fn password(self, password: &[u8]) -> Self {
        self.session(0x4000_0009, 0, password)
    }

    fn session(mut self, handle: u32, attributes: u8, auth: &[u8]) -> Self {
        let area = self.sessions.get_or_insert_default();
        area.extend(handle.to_be_bytes());
        area.extend([0, 0, attributes]);
        sized(area, auth);
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.body.extend(bytes);
        self
    }

    fn sized(mut self, bytes: &[u8]) -> Self {
        sized(&mut self.body, bytes);
        self
    }

    fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    fn build(&self) -> Vec<u8> {
        let mut out = if self.sessions.is_some() { vec![0x80, 0x02] } else { vec![0x80, 0x01] };
        out.extend([0; 4]);
        out.extend(self.code.to_be_bytes());
        for handle in &self.handles {
            out.extend(handle.to_be_bytes());
        }
        if let Some(area) = &self.sessions {
            out.extend((area.len() as u32).to_be_bytes());
            out.extend(area);
        }
        out.extend(&self.body);
        fix_size(&mut out);
        out
    }
}

fn sized(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u16).to_be_bytes());
    out.extend(bytes);
}

fn fix_size(bytes: &mut [u8]) {
    let size = (bytes.len() as u32).to_be_bytes();
    if let Some(place) = bytes.get_mut(2..6) {
        place.copy_from_slice(&size);
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn code(response: &[u8]) -> u32 {
    u32_at(response, 6)
}

/// Two responses, read in step: what is masked is replaced in both.
struct Compare<'a> {
    a: &'a [u8],
    b: &'a [u8],
    masked: &'a RefCell<BTreeMap<&'static str, bool>>,
    same: bool,
}

impl<'a> Compare<'a> {
    fn take(&mut self, a: usize, b: usize) -> (&'a [u8], &'a [u8]) {
        if self.a.len() < a || self.b.len() < b {
            self.same = false;
            return (&[], &[]);
        }
        let (head_a, tail_a) = self.a.split_at(a);
        let (head_b, tail_b) = self.b.split_at(b);
        (self.a, self.b) = (tail_a, tail_b);
        (head_a, head_b)
    }

    fn plain(&mut self, len: usize) {
        let (a, b) = self.take(len, len);
        self.same &= a == b;
    }

    fn hide(&self, mask: &'static str, a: &[u8], b: &[u8]) {
        assert!(MASKS.contains(&mask), "{mask}");
        *self.masked.borrow_mut().entry(mask).or_default() |= a != b;
    }

    fn masked(&mut self, mask: &'static str, len: usize) {
        let (a, b) = self.take(len, len);
        self.hide(mask, a, b);
    }

    fn lengths(&self) -> (usize, usize) {
        let len = |bytes: &[u8]| bytes.first_chunk().map_or(0, |len| usize::from(u16::from_be_bytes(*len)));
        (len(self.a), len(self.b))
    }

    fn sized(&mut self) {
        let (a, b) = self.lengths();
        let (a, b) = self.take(2 + a, 2 + b);
        self.same &= a == b;
    }

    /// Of the same length, other bytes.
    fn masked_sized(&mut self, mask: &'static str) {
        let (a, b) = self.lengths();
        self.same &= a == b;
        let (a, b) = self.take(2 + a, 2 + b);
        self.hide(mask, a, b);
    }

    /// Of whatever length.
    fn masked_any(&mut self, mask: &'static str) {
        let (a, b) = self.lengths();
        let (a, b) = self.take(2 + a, 2 + b);
        self.hide(mask, a, b);
    }

    /// TPM2B_PUBLIC: what is unique is another, of the same length.
    fn public(&mut self) {
        let (a, b) = self.lengths();
        self.same &= a == b;
        let (a, b) = self.take(2 + a, 2 + b);
        // the unique field is at the end: two coordinates, or a digest
        let unique = if u16_at(a, 2) == 0x23 { 68 } else { 2 + digest_len(u16_at(a, 4)) };
        let fixed = a.len() - unique.min(a.len());
        self.same &= a[..fixed] == b[..fixed];
        self.hide("key", &a[fixed..], &b[fixed..]);
    }

    fn ticket(&mut self) {
        self.plain(6);
        self.masked_sized("ticket");
    }

    fn attest(&mut self) {
        let (a, b) = self.lengths();
        self.same &= a == b;
        self.take(2, 2);
        self.plain(4);
        let kind = self.a.get(..2).map_or(0, |kind| u16_at(kind, 0));
        self.plain(2);
        self.masked_sized("name of a key");
        self.sized();
        self.masked("clock", 8);
        self.masked("obfuscated count", 8);
        self.plain(1);
        self.masked("firmware version", 8);
        if kind == 0x8017 {
            self.masked_sized("name of a key");
            self.masked_sized("name of a key");
        } else {
            let banks = self.a.get(..4).map_or(0, |count| u32_at(count, 0)) as usize;
            self.plain(4 + banks.min(4) * 6);
            self.sized();
        }
        let algorithm = self.a.get(..2).map_or(0, |algorithm| u16_at(algorithm, 0));
        self.plain(2);
        match algorithm {
            0x18 => {
                self.plain(2);
                self.masked_sized("signature");
                self.masked_sized("signature");
            }
            0x05 => {
                let hash = self.a.get(..2).map_or(0, |hash| u16_at(hash, 0));
                self.plain(2);
                self.masked("signature", digest_len(hash));
            }
            _ => {}
        }
    }

    fn capability(&mut self) {
        let capability = self.a.get(1..5).map_or(0, |capability| u32_at(capability, 0));
        let own = match capability {
            0 => "algorithms",
            2 => "commands",
            3 => "physical presence commands",
            4 => "audited commands",
            8 => "curves",
            6 => {
                self.plain(5);
                let count = self.a.get(..4).map_or(0, |count| u32_at(count, 0));
                self.plain(4);
                for _ in 0..count {
                    let tag = self.a.get(..4).map_or(0, |tag| u32_at(tag, 0));
                    self.plain(4);
                    if is_own_property(tag) { self.masked("vendor, limits and counts of commands", 4) } else { self.plain(4) }
                }
                return;
            }
            _ => return self.plain(self.a.len()),
        };
        let (a, b) = self.take(self.a.len(), self.b.len());
        self.hide(own, a, b);
    }

    fn parameters(&mut self, command: u32) {
        match command {
            0x131 => {
                self.public();
                self.sized();
                self.sized();
                self.ticket();
                self.masked_sized("name of a key");
            }
            0x153 => {
                self.masked_any("private area");
                self.public();
                self.masked_sized("name of a key");
                self.masked_sized("digest of creation data with the name of a key");
                self.ticket();
            }
            0x157 => self.masked_sized("name of a key"),
            0x173 => {
                self.public();
                self.masked_sized("name of a key");
                self.masked_sized("name of a key");
            }
            0x158 | 0x148 => self.attest(),
            0x17b => self.masked_sized("random numbers"),
            0x176 => self.masked_sized("nonce"),
            0x177 | 0x151 => {
                if command == 0x151 {
                    self.masked_sized("timeout");
                }
                self.ticket();
            }
            0x181 => {
                self.masked("clock", 16);
                self.plain(9);
            }
            0x162 => {
                self.plain(16);
                self.masked_any("context");
            }
            0x168 => {
                self.masked_sized("credential");
                self.masked_sized("credential");
            }
            0x17a => self.capability(),
            _ => {
                let len = self.a.len();
                self.plain(len);
            }
        }
    }
}

fn digest_len(algorithm: u16) -> usize {
    match algorithm {
        0x04 => 20,
        0x0c => 48,
        0x0d => 64,
        _ => 32,
    }
}

fn gives_handle(command: u32) -> bool {
    matches!(command, 0x131 | 0x157 | 0x161 | 0x167 | 0x176)
}

/// Responses' handle and parameters.
fn parts(command: u32, response: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let handle = if gives_handle(command) { 4 } else { 0 };
    let (handle, rest) = response[10..].split_at(handle);
    if u16_at(response, 0) == 0x8001 {
        return (handle, rest, &[]);
    }
    let (parameters, sessions) = rest[4..].split_at(u32_at(rest, 0) as usize);
    (handle, parameters, sessions)
}

impl Pair {
    fn new() -> Option<Self> {
        let theirs = match LibtpmsTpm::start(Path::new(env!("CARGO_BIN_EXE_hvci-sim"))) {
            Ok(tpm) => tpm,
            Err(e) if e.reason.contains("install the package libtpms0") => {
                println!("skipped: {e}");
                return None;
            }
            Err(e) => panic!("{e}"),
        };
        Some(Self {
            ours: EmbeddedTpm::manufacture([7; 32]),
            theirs,
            rng: ChaCha20Rng::seed_from_u64(20),
            began: Instant::now(),
            told: Duration::ZERO,
            count: 0,
            successes: BTreeMap::new(),
            masked: RefCell::default(),
            explained: BTreeMap::new(),
            corpus: BTreeMap::new(),
        })
    }

    fn reset(&mut self) {
        self.ours.reset().unwrap();
        self.theirs.reset().unwrap();
    }

    /// The same command to both.
    fn exec(&mut self, command: &Command) -> Vec<u8> {
        self.exec_each(command, command).0
    }

    /// A command that has bytes of a TPM in it.
    fn exec_each(&mut self, ours: &Command, theirs: &Command) -> (Vec<u8>, Vec<u8>) {
        let (ours, theirs) = (ours.build(), theirs.build());
        self.corpus.insert(u32_at(&ours, 6), ours.clone());
        let responses = self.raw(&ours, &theirs);
        if code(&responses.0) == 0 {
            self.check_frames(&ours, &responses.0);
        }
        responses
    }

    /// Another reader of frames, too, finds nothing wrong.
    fn check_frames(&self, command: &[u8], response: &[u8]) {
        let cc = TpmCc::try_from(u32_at(command, 6)).unwrap();
        TpmCommand::cast(command).unwrap_or_else(|e| panic!("{cc:?}: {e:?} {}", hex::encode(command)));
        let response = TpmResponse::cast(response).unwrap();
        response.validate(cc).unwrap_or_else(|e| panic!("{cc:?}: {e:?} {}", hex::encode(response.body())));
    }

    fn raw(&mut self, ours: &[u8], theirs: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let passed = Duration::from_millis(self.began.elapsed().as_millis() as u64);
        self.ours.advance(passed - self.told);
        self.told = passed;
        let a = self.ours.exec(ours).unwrap();
        let b = self.theirs.exec(theirs).unwrap();
        self.count += 1;
        // a length that was damaged makes lengths of what stands behind it, which are bytes of two keys
        let is_other_length = |code: u32| code & 0x40 != 0 && matches!(code & 0x3F, 0x15 | 0x1A);
        let (ours_said, theirs_said) = (code(&a), code(&b));
        if ours != theirs && ours_said >> 8 == theirs_said >> 8 && is_other_length(ours_said) && is_other_length(theirs_said) {
            return (a, b);
        }
        self.compare(ours, &a, &b);
        (a, b)
    }

    fn compare(&mut self, command: &[u8], a: &[u8], b: &[u8]) {
        let cc = command.get(6..10).map_or(0, |cc| u32_at(cc, 0));
        let said = || format!("command {}\nembedded {}\nlibtpms  {}", hex::encode(command), hex::encode(a), hex::encode(b));
        if a == b {
            if code(a) == 0 {
                *self.successes.entry(cc).or_default() += 1;
            }
            return;
        }
        if code(a) != 0 {
            let Some((why, ..)) = EXPLAINED.iter().find(|(_, commands, codes)| commands.contains(&cc) && codes.contains(&code(a))) else {
                panic!("{}", said())
            };
            *self.explained.entry(why).or_default() += 1;
            if cc == 0x16c {
                // their session's policy has gone on
                let restart = self::command(0x180, &[u32_at(command, 10)]).build();
                self.raw(&restart, &restart);
            }
            if code(b) == 0 && gives_handle(cc) {
                let flush = self::command(0x165, &[]).u32(u32_at(b, 10)).build();
                assert_eq!(code(&self.theirs.exec(&flush).unwrap()), 0);
            }
            return;
        }
        assert!(code(b) == 0 && a[..2] == b[..2], "{}", said());
        *self.successes.entry(cc).or_default() += 1;
        let (ours, theirs) = (parts(cc, a), parts(cc, b));
        let mut compare = Compare { a: ours.1, b: theirs.1, masked: &self.masked, same: ours.0 == theirs.0 };
        compare.parameters(cc);
        compare.same &= compare.a.is_empty() && compare.b.is_empty();
        (compare.a, compare.b) = (ours.2, theirs.2);
        while !compare.a.is_empty() && compare.same {
            compare.masked_sized("nonce");
            compare.plain(1);
            compare.sized();
        }
        assert!(compare.same && compare.b.is_empty(), "{}", said());
    }

    fn ok(&mut self, command: &Command) -> Vec<u8> {
        let response = self.exec(command);
        assert_eq!(code(&response), 0, "{}", hex::encode(command.build()));
        response
    }

    fn number(&mut self, below: u32) -> u32 {
        self.rng.next_u32() % below
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.number(from.len() as u32) as usize]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    fn startup(&mut self, su: u16) -> Vec<u8> {
        self.exec(&command(0x144, &[]).u16(su))
    }

    /// The same damage to both commands; they are of one length and shape. The command code stays.
    fn damage(&mut self, ours: &mut Vec<u8>, theirs: &mut Vec<u8>) {
        let len = ours.len().min(theirs.len()) as u32;
        match self.number(8) {
            0 => {
                let at = self.number(len) as usize;
                ours.truncate(at);
                theirs.truncate(at);
                if self.number(2) == 0 {
                    fix_size(ours);
                    fix_size(theirs);
                }
            }
            1 => {
                let tail = self.number(9) as usize + 1;
                let tail = self.bytes(tail);
                for bytes in [ours, theirs] {
                    bytes.extend(&tail);
                    fix_size(bytes);
                }
            }
            2 => {
                let (at, value) = (self.number(6) as usize, self.number(256) as u8);
                for bytes in [ours, theirs] {
                    bytes[at] = value;
                }
            }
            3 if len > 14 => {
                let handle = self.pick(&[
                    0,
                    16,
                    23,
                    24,
                    OWNER,
                    NULL,
                    LOCKOUT,
                    ENDORSEMENT,
                    PLATFORM,
                    0x4000_0009,
                    0x0100_0001,
                    0x0150_0000,
                    0x8000_0000,
                    0x8000_0002,
                    0x8000_0003,
                    0x8100_0001,
                    0x0200_0000,
                    0x0300_0000,
                    0x0300_0001,
                    0x0300_0040,
                    0xffff_ffff,
                ]);
                let at = self.pick(&[10_usize, 14, 18]);
                for bytes in [ours, theirs].into_iter().filter(|bytes| bytes.len() >= at + 4) {
                    bytes[at..at + 4].copy_from_slice(&handle.to_be_bytes());
                }
            }
            4 if len > 12 => {
                let value = self.pick(&[
                    0_u16, 1, 2, 8, 9, 20, 21, 32, 33, 48, 64, 65, 66, 67, 68, 69, 128, 129, 1024, 1025, 2048, 2049, 0x7fff, 0xffff,
                ]);
                let at = 10 + self.number(len - 12) as usize;
                for bytes in [ours, theirs] {
                    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
                }
            }
            _ if len > 10 => {
                let (at, bit) = (10 + self.number(len - 10) as usize, self.number(8));
                for bytes in [ours, theirs] {
                    bytes[at] ^= 1 << bit;
                }
            }
            _ => {}
        }
    }

    /// As it is, and sometimes a few times damaged before.
    fn fuzz(&mut self, ours: &Command, theirs: &Command) -> (Vec<u8>, Vec<u8>) {
        while self.number(2) == 0 {
            let (mut a, mut b) = (ours.build(), theirs.build());
            self.damage(&mut a, &mut b);
            self.raw(&a, &b);
        }
        self.exec_each(ours, theirs)
    }

    fn fuzz_same(&mut self, command: &Command) -> Vec<u8> {
        self.fuzz(command, command).0
    }

    /// No stale entry, and every command that there is succeeded at least once.
    fn finish(&mut self) {
        let all = self.ours.exec(&command(0x17a, &[]).u32(2).u32(0).u32(200).build()).unwrap();
        for command in all[19..].chunks(4) {
            let command = u32_at(command, 0) & 0xffff;
            assert!(self.successes.contains_key(&command), "{command:#x} never succeeded");
        }
        for mask in MASKS {
            assert_eq!(self.masked.borrow().get(mask), Some(&true), "the mask of {mask} hides nothing");
        }
        for (why, ..) in EXPLAINED {
            assert!(self.explained.contains_key(why), "{why} explains nothing");
        }
    }
}

/// TPMT_PUBLIC of a key on P-256.
fn ecc(attributes: u32, symmetric: &[u16], scheme: &[u16]) -> Vec<u8> {
    let mut out = [&0x23_u16.to_be_bytes()[..], &0x0b_u16.to_be_bytes(), &attributes.to_be_bytes(), &[0, 0]].concat();
    for word in symmetric.iter().chain(scheme).chain(&[3, 0x10, 0, 0]) {
        out.extend(word.to_be_bytes());
    }
    out
}

const AES: &[u16] = &[0x06, 128, 0x43];
const NONE: &[u16] = &[0x10];
const ECDSA: &[u16] = &[0x18, 0x0b];

/// fixedTPM fixedParent sensitiveDataOrigin userWithAuth, and what a key is for.
const FIXED: u32 = 0x72;
const NO_DA: u32 = 0x400;
const PARENT: u32 = FIXED | 0x3_0000 | NO_DA;
const AK: u32 = FIXED | 0x5_0000 | NO_DA;
const SIGN: u32 = FIXED | 0x4_0000 | NO_DA;

/// TPMT_PUBLIC of sealed data, with a policy.
fn sealed(attributes: u32, policy: &[u8]) -> Vec<u8> {
    let mut out = [&[0, 0x08, 0, 0x0b][..], &attributes.to_be_bytes()].concat();
    sized(&mut out, policy);
    out.extend([0, 0x10, 0, 0]);
    out
}

fn create(code: u32, parent: u32, auth: &[u8], data: &[u8], public: &[u8], pcrs: &[u8]) -> Command {
    let mut sensitive = Vec::new();
    sized(&mut sensitive, auth);
    sized(&mut sensitive, data);
    command(code, &[parent]).password(&[]).sized(&sensitive).sized(public).sized(b"outside").bytes(pcrs)
}

fn primary(hierarchy: u32, public: &[u8]) -> Command {
    create(0x131, hierarchy, &[], &[], public, &[0; 4])
}

fn flush(handle: u32) -> Command {
    command(0x165, &[]).u32(handle)
}

fn start_session(kind: u8, hash: u16) -> Command {
    command(0x176, &[NULL, NULL]).sized(&[0x5a; 20]).sized(&[]).bytes(&[kind]).u16(0x10).u16(hash)
}

fn define(auth: u32, index: u32, attributes: u32, policy: &[u8], size: u16) -> Command {
    let mut public = [&index.to_be_bytes()[..], &[0, 0x0b], &attributes.to_be_bytes()].concat();
    sized(&mut public, policy);
    public.extend(size.to_be_bytes());
    command(0x12a, &[auth]).password(&[]).sized(b"pin").sized(&public)
}

impl Pair {
    fn selection(&mut self) -> Vec<u8> {
        let count = self.number(5);
        let mut out = count.to_be_bytes().to_vec();
        for _ in 0..count {
            let bank = self.pick(&[0x04_u16, 0x0b, 0x0c, 0x0d]);
            out.extend(bank.to_be_bytes());
            out.push(3);
            let (one, other) = (self.bytes(3), self.bytes(3));
            out.extend(one.iter().zip(other).map(|(a, b)| a & b));
        }
        out
    }

    fn digests(&mut self) -> Vec<u8> {
        let count = self.number(5);
        let mut out = count.to_be_bytes().to_vec();
        for _ in 0..count {
            let bank = self.pick(&[0x04_u16, 0x0b, 0x0c, 0x0d]);
            out.extend(bank.to_be_bytes());
            out.extend(self.bytes(digest_len(bank)));
        }
        out
    }

    fn registers(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let pcr = self.pick(&[0, 1, 7, 15, 16, 17, 20, 22, 23, NULL]);
            let next = match self.number(5) {
                0 | 1 => {
                    let digests = self.digests();
                    command(0x182, &[pcr]).password(&[]).bytes(&digests)
                }
                2 => {
                    let len = self.number(1030) as usize;
                    let data = self.bytes(len);
                    command(0x13c, &[pcr]).password(&[]).sized(&data)
                }
                3 => command(0x13d, &[pcr]).password(&[]),
                _ => {
                    let selection = self.selection();
                    command(0x17e, &[]).bytes(&selection)
                }
            };
            self.fuzz_same(&next);
        }
    }

    fn capabilities(&mut self, rounds: usize) {
        for capability in 0..12 {
            for property in [
                0,
                1,
                0x100,
                0x114,
                0x200,
                0x210,
                0x300,
                0x0100_0000,
                0x0200_0000,
                0x0300_0000,
                OWNER,
                ENDORSEMENT,
                0x8000_0000,
                0x8100_0000,
                0x9000_0000,
            ] {
                for count in [0, 1, 3, 200] {
                    // where there are more or others, a part of the list cannot be compared
                    let part = matches!(capability, 0 | 2 | 3 | 4 | 8) && count != 200;
                    if !part {
                        self.exec(&command(0x17a, &[]).u32(capability).u32(property).u32(count));
                    }
                }
            }
        }
        for _ in 0..rounds {
            let handle = self.pick(&[0, 1, 0x0100_0000, 0x0200_0001, 0x0300_0000, 0x4000_0002, 0x8000_0001, 0x8100_0000]);
            let count = self.number(5);
            self.fuzz_same(&command(0x17a, &[]).u32(1).u32(handle).u32(count));
        }
    }

    fn small(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let len = self.number(140);
            let next = match self.number(6) {
                0 => command(0x143, &[]).bytes(&[self.number(3) as u8]),
                1 => command(0x17b, &[]).u16(len as u16),
                2 => {
                    let data = self.bytes(len as usize);
                    command(0x146, &[]).sized(&data)
                }
                3 => command(0x17c, &[]),
                4 => command(0x181, &[]),
                _ => command(0x144, &[]).u16(0),
            };
            self.fuzz_same(&next);
        }
    }

    fn nv(&mut self, rounds: usize) {
        // each type once, whole
        for (index, kind, size) in [(0, 0_u32, 16), (1, 1, 8), (2, 2, 8), (3, 4, 32)] {
            let handle = 0x0150_0000 + index;
            self.ok(&define(OWNER, handle, 0x0206_0006 | kind << 4, &[], size));
            self.exec(&command(0x14e, &[OWNER, handle]).password(&[]).u16(size).u16(0));
            self.exec(&command(0x137, &[handle, handle]).password(b"pin").sized(&[1, 2, 3]).u16(4));
            self.exec(&command(0x134, &[handle, handle]).password(b"pin"));
            self.exec(&command(0x135, &[handle, handle]).password(b"pin").bytes(&[0x11; 8]));
            self.exec(&command(0x136, &[handle, handle]).password(b"pin").sized(b"more"));
            self.ok(&command(0x14e, &[handle, handle]).password(b"pin").u16(size).u16(0));
            self.exec(&command(0x14e, &[handle, handle]).password(b"nip").u16(size).u16(0));
            self.ok(&command(0x169, &[handle]));
        }
        for _ in 0..rounds {
            let index = self.number(6);
            let handle = 0x0150_0000 + index;
            let auth = self.pick(&[OWNER, PLATFORM, handle, handle]);
            let password: &[u8] = if auth == handle { self.pick(&[&b"pin"[..], b"pin", b"pin\0", b"nip"]) } else { &[] };
            // mostly what goes with the index: data, a counter, bits, extended data, PINs
            let operation = if self.number(2) == 0 { self.pick(&[1, 2, 3, 4, 1, 1, 9]) } else { self.number(10) };
            let operation = if self.number(3) > 0 && (2..5).contains(&operation) { index.clamp(1, 3) + 1 } else { operation };
            let next = match operation {
                0 => {
                    let any = self.pick(&[0_u32, 0, 1, 2, 4, 8, 9, 3]);
                    let kind = if self.number(4) > 0 { [0, 1, 2, 4, 8, 9][index as usize] } else { any };
                    let any = self.pick(&[8_u16, 8, 8, 0, 16, 32, 1024, 1025, 2048, 2049]);
                    let size = if kind == 4 && self.number(4) > 0 { 32 } else { any };
                    // without a policy to delete it, and what differs after a reset without shutdown
                    let attributes = self.rng.next_u32() & self.rng.next_u32() & 0xfa0f_f80f | kind << 4;
                    let policy = self.pick(&[0_usize, 0, 32, 20]);
                    let by = self.pick(&[OWNER, OWNER, PLATFORM]);
                    let attributes = attributes & !0x7000_0000 | if by == PLATFORM { 0x4000_0000 } else { 0 } | 0x0002_0002;
                    define(by, handle, attributes, &vec![1; policy], size)
                }
                1 => {
                    let len = self.number(20) as usize;
                    let data = self.bytes(len);
                    let offset = self.number(20) as u16;
                    command(0x137, &[auth, handle]).password(password).sized(&data).u16(offset)
                }
                2 => command(0x134, &[auth, handle]).password(password),
                3 => command(0x135, &[auth, handle]).password(password).bytes(&[self.number(256) as u8; 8]),
                4 => command(0x136, &[auth, handle]).password(password).sized(b"data"),
                5 => command(0x138, &[auth, handle]).password(password),
                6 => command(0x14f, &[auth, handle]).password(password),
                7 => command(0x169, &[handle]),
                8 if self.number(3) == 0 => {
                    let by = self.pick(&[OWNER, PLATFORM]);
                    command(0x122, &[by, handle]).password(&[])
                }
                _ => {
                    let (size, offset) = (self.pick(&[8_u16, 8, 1, 16, 32, 1024, 1025]), self.pick(&[0_u16, 0, 0, 1, 8, 40]));
                    command(0x14e, &[auth, handle]).password(password).u16(size).u16(offset)
                }
            };
            self.fuzz_same(&next);
        }
    }

    fn policies(&mut self, rounds: usize) {
        for handle in 0..6 {
            self.exec(&command(0x122, &[PLATFORM, 0x0150_0000 + handle]).password(&[]));
        }
        self.ok(&define(OWNER, 0x0150_0000, 0x0206_0016, &[], 8));
        self.ok(&command(0x134, &[OWNER, 0x0150_0000]).password(&[]));
        let mut digests = vec![vec![0; 32]];
        for round in 0..rounds {
            if round % 20 == 0 {
                for handle in 0..3 {
                    self.exec(&flush(0x0300_0000 + handle));
                    self.exec(&flush(0x0200_0000 + handle));
                }
                let (kind, hash) = (self.pick(&[1_u8, 3, 1, 0]), self.pick(&[0x0b_u16, 0x0b, 0x0d, 0x04]));
                self.fuzz_same(&start_session(kind, hash));
                self.fuzz_same(&start_session(1, 0x0b));
            }
            let session = 0x0300_0000 + self.number(3);
            let next = match self.number(13) {
                0 => {
                    let selection = self.selection();
                    let digest = self.pick(&[0_usize, 0, 32]);
                    command(0x17f, &[session]).sized(&vec![9; digest]).bytes(&selection)
                }
                1 => {
                    let operand = self.pick(&[[0_u8; 8], [0, 0, 0, 0, 0, 0, 0, 1], [0xff; 8]]);
                    let len = self.pick(&[8_usize, 8, 4, 0]);
                    // signed comparison is right here and wrong there
                    let operation = self.pick(&[0_u16, 1, 3, 5, 7, 9, 10, 11, 12]);
                    let offset = self.pick(&[0_u16, 0, 4, 9]);
                    let auth = self.pick(&[OWNER, 0x0150_0000, PLATFORM]);
                    let password: &[u8] = if auth == 0x0150_0000 { b"pin" } else { &[] };
                    command(0x149, &[auth, 0x0150_0000, session]).password(password).sized(&operand[..len]).u16(offset).u16(operation)
                }
                2 => {
                    let count = self.number(4) + 1;
                    let mut branches = count.to_be_bytes().to_vec();
                    for _ in 0..count {
                        let which = self.number(digests.len() as u32) as usize;
                        sized(&mut branches, &digests[which]);
                    }
                    command(0x171, &[session]).bytes(&branches)
                }
                3 => {
                    let name = [&[0, 0x0b][..], &[4; 32]].concat();
                    command(0x16a, &[session]).sized(&digests[0].clone()).sized(b"ref").sized(&name).u16(0x8022).u32(OWNER).sized(&[])
                }
                4 => command(0x16b, &[session]),
                5 => command(0x18c, &[session]),
                6 => {
                    let code = self.pick(&[0x15e_u32, 0x158, 0x1000]);
                    command(0x16c, &[session]).u32(code)
                }
                7 => {
                    let entity = self.pick(&[OWNER, ENDORSEMENT, NULL, 0x0150_0000, 3]);
                    let password: &[u8] = if entity == 0x0150_0000 { b"pin" } else { &[] };
                    let expiration = self.pick(&[0_u32, 0, 100, (-1000_i32).cast_unsigned()]);
                    let cp_hash = self.pick(&[0_usize, 0, 0, 20, 32]);
                    command(0x151, &[entity, session]).password(password).sized(&[]).sized(&vec![3; cp_hash]).sized(b"ref").u32(expiration)
                }
                8 => command(0x180, &[session]),
                // as authorisation
                9 => command(0x14e, &[0x0150_0000, 0x0150_0000]).session(session, 1, &[]).u16(8).u16(0),
                10 => command(0x182, &[23]).session(session, 1, &[]).u32(0),
                _ => command(0x189, &[session]),
            };
            let response = self.fuzz_same(&next);
            if next.code == 0x189 && code(&response) == 0 {
                digests.push(response[12..].to_vec());
            }
        }
        for handle in 0..3 {
            self.exec(&flush(0x0300_0000 + handle));
            self.exec(&flush(0x0200_0000 + handle));
        }
    }

    fn templates(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let attributes = match self.number(3) {
                0 => self.rng.next_u32() & 0x0007_0cf6,
                1 => self.pick(&[PARENT, AK, SIGN, FIXED | 0x2_0000, FIXED | 0x6_0000]) ^ 1 << self.number(20),
                _ => self.pick(&[PARENT, AK, SIGN, FIXED | 0x2_0000, FIXED | 0x6_0000, 0x52]),
            };
            let symmetric = self.pick(&[AES, NONE, NONE, &[0x06, 256, 0x43], &[0x06, 129, 0x43], &[0x06, 128, 0x50]]);
            let scheme = self.pick(&[ECDSA, NONE, &[0x18, 0x10], &[0x19, 0x0b], &[0x18, 0x0d], &[0x1c, 0x0b]]);
            // half of them whole
            let whole = self.number(4);
            let (attributes, symmetric, scheme) = match whole {
                0 => (PARENT, AES, NONE),
                1 => (AK | 0x80, NONE, ECDSA),
                _ => (attributes, symmetric, scheme),
            };
            let hierarchy = self.pick(&[OWNER, ENDORSEMENT, PLATFORM, NULL, LOCKOUT]);
            let policy = self.pick(&[0_usize, 0, 32, 20]);
            let public = if self.number(3) == 0 { sealed(attributes, &vec![2; policy]) } else { ecc(attributes, symmetric, scheme) };
            let data = self.pick(&[0_usize, 0, 5, 128, 129]);
            let auth = self.pick(&[0_usize, 0, 32, 33, 65]);
            let pcrs = self.selection();
            let next = create(0x131, hierarchy, &vec![5; auth], &vec![6; data], &public, &pcrs);
            let response = self.fuzz_same(&next);
            if code(&response) == 0 && self.number(4) > 0 {
                self.exec(&command(0x173, &[u32_at(&response, 10)]));
            }
            for handle in 0..3 {
                self.exec(&flush(0x8000_0000 + handle));
            }
        }
    }

    fn objects(&mut self, rounds: usize) {
        self.ok(&primary(OWNER, &ecc(PARENT, AES, NONE)));
        let parent = 0x8000_0000;
        for _ in 0..rounds {
            for handle in [1, 2] {
                self.exec(&flush(parent + handle));
            }
            let attributes = self.pick(&[0x452, 0x52 | NO_DA, 0x412, 0x492]);
            let data = self.bytes(32);
            let is_key = self.number(3) == 0;
            let public = if is_key {
                ecc(self.pick(&[SIGN, AK, PARENT, PARENT & !0x12]), self.pick(&[NONE, AES]), self.pick(&[ECDSA, NONE]))
            } else {
                sealed(attributes, &[])
            };
            let next = create(0x153, parent, b"pw", if is_key { &[] } else { &data }, &public, &[0; 4]);
            let (ours, theirs) = self.fuzz(&next, &next);
            if code(&ours) != 0 {
                continue;
            }
            let split = |response: &[u8]| {
                let private = usize::from(u16_at(response, 14));
                let public = usize::from(u16_at(response, 16 + private));
                (response[16..16 + private].to_vec(), response[18 + private..18 + private + public].to_vec())
            };
            let load = |(private, public): (Vec<u8>, Vec<u8>)| command(0x157, &[parent]).password(&[]).sized(&private).sized(&public);
            let (ours, theirs) = (load(split(&ours)), load(split(&theirs)));
            if ours.build().len() == theirs.build().len() {
                self.fuzz(&ours, &theirs);
            } else {
                self.exec_each(&ours, &theirs);
            }
            for _ in 0..4 {
                let child = parent + self.number(3);
                let password: &[u8] = self.pick(&[&b"pw"[..], b"pw", b"pw\0\0", b"wp", b""]);
                let next = match self.number(7) {
                    0 => command(0x15e, &[child]).password(password),
                    1 => command(0x173, &[child]),
                    2 => command(0x148, &[child, NULL]).password(password).password(&[]).sized(b"nonce").u16(0x10),
                    3 => command(0x120, &[OWNER, child]).password(&[]).u32(0x8100_0000 + self.number(2)),
                    4 => command(0x173, &[0x8100_0000 + self.number(2)]),
                    5 => command(0x120, &[OWNER, 0x8100_0000 + self.number(2)]).password(&[]).u32(0x8100_0000 + self.number(2)),
                    _ => {
                        let selection = self.selection();
                        command(0x158, &[child]).password(password).sized(b"nonce").u16(0x18).u16(0x0b).bytes(&selection)
                    }
                };
                self.fuzz_same(&next);
            }
        }
        for handle in 0..3 {
            self.exec(&flush(parent + handle));
        }
    }

    fn attestation(&mut self, rounds: usize) {
        let ak = 0x8000_0000;
        self.ok(&primary(ENDORSEMENT, &ecc(AK, NONE, ECDSA)));
        for _ in 0..rounds {
            let selection = self.selection();
            let len = self.pick(&[0_usize, 20, 66, 67]);
            let data = self.bytes(len);
            let scheme: &[u16] = self.pick(&[NONE, NONE, ECDSA, &[0x18, 0x0c], &[0x14, 0x0b], &[0x1a, 0x0b, 1], &[0x99]]);
            let key = self.pick(&[ak, ak, ak, NULL, ak + 1]);
            let scheme: Vec<u8> = scheme.iter().flat_map(|word| word.to_be_bytes()).collect();
            let quote = command(0x158, &[key]).password(&[]).sized(&data).bytes(&scheme).bytes(&selection);
            let certify = command(0x148, &[ak, key]).password(&[]).password(&[]).sized(&data).bytes(&scheme);
            self.fuzz_same(&quote);
            self.fuzz_same(&certify);
        }
        // a key of another hierarchy is bound to an endorsement key
        self.ok(&primary(ENDORSEMENT, &ecc(PARENT, AES, NONE)));
        let read = command(0x173, &[ak]);
        let (ours, theirs) = self.exec_each(&read, &read);
        let name = |response: &[u8]| {
            let public = usize::from(u16_at(response, 10));

            response[14 + public..14 + public + 34].to_vec()
        };
        for _ in 0..rounds / 4 {
            let secret = self.bytes(20);
            let make = |name: &[u8]| command(0x168, &[ak + 1]).sized(&secret).sized(name);
            let (ours, theirs) = self.fuzz(&make(&name(&ours)), &make(&name(&theirs)));
            let activate = |made: &[u8]| command(0x147, &[ak, ak + 1]).password(&[]).password(&[]).bytes(&made[10..]);
            let (ours, theirs) = self.fuzz(&activate(&ours), &activate(&theirs));
            assert_eq!((&ours[16..36], code(&ours)), (&secret[..], 0));
            assert_eq!(ours, theirs);
        }
        for handle in 0..3 {
            self.exec(&flush(ak + handle));
        }
    }
}

impl Pair {
    /// Saves contexts, loads them, and presents what is stale or of others.
    fn contexts(&mut self, rounds: usize) {
        let saved = |response: &[u8]| command(0x161, &[]).bytes(&response[10..]);
        for hierarchy in [OWNER, ENDORSEMENT, PLATFORM, NULL] {
            self.ok(&primary(hierarchy, &ecc(SIGN | if hierarchy == PLATFORM { 4 } else { 0 }, NONE, ECDSA)));
            let save = command(0x162, &[0x8000_0000]);
            let (ours, theirs) = self.exec_each(&save, &save);
            self.exec(&flush(0x8000_0000));
            for _ in 0..rounds {
                let (ours, theirs) = (saved(&ours), saved(&theirs));
                if ours.build().len() == theirs.build().len() {
                    self.fuzz(&ours, &theirs)
                } else {
                    self.exec_each(&ours, &theirs)
                };
                let handle = 0x8000_0000 + self.number(3);
                self.exec(&flush(handle));
            }
            for handle in 0..3 {
                self.exec(&flush(0x8000_0000 + handle));
            }
        }
        let mut all: Vec<(Command, Command)> = Vec::new();
        for _ in 0..rounds * 4 {
            let session = 0x0300_0000 + self.number(6);
            let next = match self.number(6) {
                0 | 1 => start_session(1, 0x0b),
                2 => flush(session),
                3 => command(0x16b, &[session]),
                4 if !all.is_empty() => {
                    let which = self.number(all.len() as u32) as usize;
                    let (ours, theirs) = all[which].clone();
                    self.exec_each(&ours, &theirs);
                    continue;
                }
                _ => {
                    let save = command(0x162, &[session]);
                    let (ours, theirs) = self.exec_each(&save, &save);
                    if code(&ours) == 0 {
                        all.push((saved(&ours), saved(&theirs)));
                    }
                    continue;
                }
            };
            self.fuzz_same(&next);
            self.exec(&command(0x189, &[session]));
            self.exec(&command(0x17a, &[]).u32(1).u32(0x0200_0000).u32(9));
            self.exec(&command(0x17a, &[]).u32(1).u32(0x0300_0000).u32(9));
        }
        for handle in 0..6 {
            self.exec(&flush(0x0300_0000 + handle));
        }
    }

    /// Keys of others, their signatures, and a policy that they authorise.
    fn external(&mut self, rounds: usize) {
        use p256::ecdsa::{Signature, SigningKey, signature::hazmat::PrehashSigner as _};
        let key = SigningKey::from_slice(&[0x11; 32]).unwrap();
        let point = key.verifying_key().to_encoded_point(false);
        let public = |attributes: u32, x: &[u8], y: &[u8]| {
            let mut public = ecc(attributes, NONE, ECDSA);
            public.truncate(public.len() - 4);
            sized(&mut public, x);
            sized(&mut public, y);
            public
        };
        let right = public(0x0004_0040, point.x().unwrap(), point.y().unwrap());
        let load = |sensitive: &[u8], public: &[u8], hierarchy: u32| command(0x167, &[]).sized(sensitive).sized(public).u32(hierarchy);
        let private = [&[0, 0x23, 0, 0, 0, 0, 0, 32][..], &[0x11; 32]].concat();
        let clear = |pair: &mut Self| (0..3).for_each(|handle| drop(pair.exec(&flush(0x8000_0000 + handle))));
        for _ in 0..rounds {
            let sensitive: &[u8] = self.pick(&[&[][..], &[], &private, &private[..8]]);
            let attributes = self.pick(&[0x0004_0040_u32, 0x0002_0040, 0x0006_0040, 0x0004_0072, 0x0003_0040]);
            let (x, y) = (point.x().unwrap(), point.y().unwrap());
            let public = match self.number(4) {
                0 => public(attributes, x, y),
                1 => public(attributes, y, x),
                2 => public(attributes, &x[1..], y),
                _ => [&[0, 0x08, 0, 0x0b][..], &attributes.to_be_bytes(), &[0, 0, 0, 0x05, 0, 0x0b, 0, 32], &[3; 32]].concat(),
            };
            let hierarchy = self.pick(&[OWNER, NULL, NULL, PLATFORM, LOCKOUT]);
            self.fuzz_same(&load(sensitive, &public, hierarchy));
            if self.number(2) == 0 {
                clear(self);
            }
        }
        clear(self);
        let loaded = self.ok(&load(&[], &right, OWNER));
        let name = &loaded[16..];
        self.exec(&command(0x177, &[0x8000_0000]).sized(&[1; 32]).u16(0x1c).u16(0x0b).sized(&[1; 32]).sized(&[1; 32]));
        for round in 0..rounds {
            // what it approves: the digest of a session, and a reference
            self.exec(&flush(0x0300_0000));
            self.ok(&start_session(1, 0x0b));
            self.ok(&command(0x16b, &[0x0300_0000]));
            let policy = self.ok(&command(0x189, &[0x0300_0000]))[12..].to_vec();
            let reference = if round % 2 == 0 { &b"ref"[..] } else { b"" };
            let approved = sha2_256(&[&policy, reference]);
            let signature: Signature = key.sign_prehash(&approved).unwrap();
            let (r, s) = signature.split_bytes();
            let verify = command(0x177, &[0x8000_0000]).sized(&approved).u16(0x18).u16(0x0b).sized(&r).sized(&s);
            let (ours, theirs) = self.fuzz(&verify, &verify);
            assert_eq!(code(&ours), 0);
            let authorize = |ticket: &[u8]| command(0x16a, &[0x0300_0000]).sized(&policy).sized(reference).sized(name).bytes(ticket);
            self.fuzz(&authorize(&ours[10..]), &authorize(&theirs[10..]));
            self.exec(&command(0x189, &[0x0300_0000]));
        }
        self.exec(&flush(0x0300_0000));
        clear(self);
    }

    /// Authorisation values of hierarchies, wrong ones, and the lockout that they lead to.
    fn lockouts(&mut self, rounds: usize) {
        let property = |property: u32| command(0x17a, &[]).u32(6).u32(property).u32(1);
        self.exec(&command(0x122, &[PLATFORM, 0x0150_0006]).password(&[]));
        self.ok(&define(OWNER, 0x0150_0006, 0x0004_0006, &[], 8));
        for _ in 0..rounds {
            let hierarchy = self.pick(&[OWNER, ENDORSEMENT, LOCKOUT, PLATFORM]);
            let old: &[u8] = self.pick(&[&b""[..], b"", b"one"]);
            let new: &[u8] = self.pick(&[&b""[..], b"one", b"one\0"]);
            let password: &[u8] = self.pick(&[&b"pin"[..], b"wrong"]);
            let next = match self.number(6) {
                0 => command(0x129, &[hierarchy]).password(old).sized(new),
                1 => command(0x139, &[LOCKOUT]).password(old),
                2 => command(0x13a, &[LOCKOUT]).password(old).u32(self.number(6)).u32(1000).u32(self.number(2) * 1000),
                3 => command(0x137, &[OWNER, 0x0150_0006]).password(old).sized(&[1]).u16(0),
                _ => command(0x14e, &[0x0150_0006, 0x0150_0006]).password(password).u16(1).u16(0),
            };
            self.fuzz_same(&next);
            for number in [0x200, 0x20e, 0x20f] {
                self.exec(&property(number));
            }
            if self.number(12) == 0 {
                self.renew();
                self.exec(&define(OWNER, 0x0150_0006, 0x0004_0006, &[], 8));
            }
        }
        self.renew();
    }

    /// A known state: the platform has no password after a reset, and clears the others'.
    fn renew(&mut self) {
        self.reset();
        self.startup(0);
        self.ok(&command(0x126, &[PLATFORM]).password(&[]));
    }

    /// Every way to end a boot and begin the next, with what they keep.
    fn boots(&mut self, rounds: usize) {
        self.ok(&define(OWNER, 0x0150_0007, 0x0602_0012, &[], 8));
        self.ok(&define(OWNER, 0x0150_0008, 0x8a02_4006, &[], 8));
        for _ in 0..rounds {
            self.registers(6);
            self.exec(&command(0x134, &[OWNER, 0x0150_0007]).password(&[]));
            for index in [0x0150_0007, 0x0150_0008] {
                self.exec(&command(0x138, &[OWNER, index]).password(&[]));
                self.exec(&command(0x137, &[OWNER, 0x0150_0008]).password(&[]).sized(&[1, 2]).u16(0));
                self.exec(&command(0x14e, &[OWNER, index]).password(&[]).u16(8).u16(0));
                self.exec(&command(0x169, &[index]));
            }
            self.fuzz_same(&start_session(1, 0x0b));
            let down = self.number(3) as u16;
            if down < 2 {
                self.fuzz_same(&command(0x145, &[]).u16(down));
                if self.number(3) == 0 {
                    // what was shut down changes once more
                    self.registers(1);
                }
            }
            self.reset();
            let up = self.number(2) as u16;
            if code(&self.startup(up)) != 0 {
                assert_eq!(code(&self.startup(0)), 0);
            }
            for pcr in [0_u8, 16, 17, 23] {
                let mut select = [0; 3];
                select[usize::from(pcr / 8)] = 1 << (pcr % 8);
                self.ok(&command(0x17e, &[]).bytes(&[0, 0, 0, 1, 0, 0x0b, 3]).bytes(&select));
            }
            self.ok(&command(0x181, &[]));
            self.ok(&command(0x17a, &[]).u32(6).u32(0x200).u32(99));
            self.exec(&command(0x17a, &[]).u32(1).u32(0x0200_0000).u32(9));
            self.exec(&command(0x169, &[0x0150_0007]));
            self.exec(&command(0x14e, &[OWNER, 0x0150_0007]).password(&[]).u16(8).u16(0));
        }
    }

    /// Keys and sessions that only libtpms has.
    fn others(&mut self) {
        let rsa = [&[0, 1, 0, 0x0b][..], &AK.to_be_bytes(), &[0, 0, 0, 0x10, 0, 0x14, 0, 0x0b, 8, 0, 0, 0, 0, 0, 0, 0]].concat();
        let mut p384 = ecc(AK, NONE, ECDSA);
        let curve = p384.len() - 7;
        p384[curve] = 4;
        for public in [rsa, p384, ecc(PARENT, &[0x26, 128, 0x43], NONE), ecc(SIGN, NONE, &[0x1c, 0x0b])] {
            self.exec(&primary(OWNER, &public));
        }
        self.exec(&flush(0x0300_0000));
        self.ok(&start_session(1, 0x0b));
        self.exec(&command(0x16c, &[0x0300_0000]).u32(0x15c));
        self.exec(&command(0x176, &[NULL, NULL]).sized(&[1; 20]).sized(&[]).bytes(&[1, 0, 0x26, 0, 128, 0, 0x43, 0, 0x0b]));
    }

    /// Each kind of command cut short everywhere, with its true length and its old one.
    fn truncations(&mut self) {
        for whole in std::mem::take(&mut self.corpus).into_values() {
            for len in 0..whole.len() {
                let mut short = whole[..len].to_vec();
                self.raw(&short, &short);
                fix_size(&mut short);
                self.raw(&short, &short);
            }
        }
    }
}

fn sha2_256(parts: &[&[u8]]) -> Vec<u8> {
    use sha2::Digest as _;
    sha2::Sha256::digest(parts.concat()).to_vec()
}

#[test]
fn the_embedded_tpm_answers_as_libtpms_does() {
    let Some(mut pair) = Pair::new() else { return };
    // before TPM2_Startup
    for code in 0x11e..0x19a {
        pair.exec_known(code);
    }
    pair.startup(1);
    pair.ok(&command(0x144, &[]).u16(0));
    pair.startup(0);
    pair.registers(3000);
    pair.capabilities(100);
    pair.small(1000);
    pair.nv(6000);
    pair.capabilities(20);
    pair.policies(4000);
    pair.templates(2500);
    pair.objects(1000);
    pair.attestation(200);
    pair.contexts(150);
    pair.external(300);
    pair.lockouts(1000);
    pair.boots(150);
    pair.others();
    pair.truncations();
    println!("{} commands, {:?} succeeded, explained {:?}", pair.count, pair.successes, pair.explained);
    pair.finish();
}

impl Pair {
    /// A code that both have or neither.
    fn exec_known(&mut self, code: u32) {
        let bytes = command(code, &[]).build();
        if self::code(&self.ours.exec(&bytes).unwrap()) != 0x143 || !(0x11f..=0x197).contains(&code) {
            self.raw(&bytes, &bytes);
        }
    }
}
