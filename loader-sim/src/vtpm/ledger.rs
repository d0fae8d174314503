//! The host's ledger of the states that its machines' TPMs were saved with: what a TPM itself cannot tell, a restored old state and a copy, it can.
//!
//! ```text
//! link(n) = SHA-256("hvsimLDG" ‖ link(n-1) ‖ sequence u64 ‖ SHA-256(state) ‖ resetCount u32)         link before the first: SHA-256(name ‖ EK)
//! head    = SHA-256 over the machines in the order of their names: length of the name u16, name, last link
//! file    "hvsimLDG", version u32, machines u32, per machine: length u16, name, SHA-256(EK)[32], forgotten u64, link before[32], entries u32,
//!         per entry: SHA-256(state)[32], resetCount u32; then the head[32]                            all big endian
//! ```
//!
//! A machine may start from the state that it was last saved with, and from no other. Who keeps the file of the ledger can be rolled back along with
//! it: against that, [`Ledger::head`] belongs somewhere else. The head finds damage and changes by those who cannot write it there.
//!
//! To be safe from a crash, a new state is written under another name, then recorded and the ledger written, then renamed: whichever step was the
//! last, the recorded state is there under one of the names.

use std::collections::BTreeMap;

use hvci_engine::bytes::{array, be32, index, slice};
use sha2::{Digest as _, Sha256};

const MAGIC: [u8; 8] = *b"hvsimLDG";
const VERSION: u32 = 1;
/// Longest name of a machine.
pub const MAX_NAME: usize = 255;
/// Most machines of a ledger.
pub const MAX_MACHINES: usize = 1 << 16;
/// Entries of a machine that are kept; older states are unknown ones, and as such refused too.
pub const MAX_ENTRIES: usize = 1024;
/// Digest and count.
const ENTRY: usize = 36;

type Sha256Digest = [u8; 32];

/// One save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which save of its machine it is, from 1.
    pub sequence: u64,
    /// SHA-256 of the state.
    pub state: Sha256Digest,
    /// The TPM's resetCount then. It is recorded, not judged: TPM2_Clear sets it back.
    pub reset_count: u32,
}

/// Why a TPM may not go on with a state, or the state may not be recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// An older state of this machine: what came after it would be undone.
    #[error("rollback: this is save {found} of {machine}, and its last one is {newest}")]
    Rollback {
        /// Whose.
        machine: String,
        /// Which save it is.
        found: u64,
        /// Which was the last.
        newest: u64,
    },
    /// No state that this machine was ever saved with, as far as is still known.
    #[error("this is no state that {machine} was saved with")]
    UnknownState {
        /// Whose it is said to be.
        machine: String,
    },
    /// The state, or the endorsement key, of another machine.
    #[error("clone: {machine} presents the {what} of {owner}")]
    Clone {
        /// Who presents it.
        machine: String,
        /// What: "state" or "endorsement key".
        what: &'static str,
        /// Whose it is.
        owner: String,
    },
    /// Not the endorsement key that the machine had.
    #[error("{machine} has another endorsement key than before")]
    OtherTpm {
        /// Which.
        machine: String,
    },
    /// Nothing was recorded of it.
    #[error("there is no {machine} in the ledger")]
    UnknownMachine {
        /// Which.
        machine: String,
    },
    /// A name that is empty or too long, or one machine too many.
    #[error("the ledger does not take {what}")]
    Limit {
        /// What is too much.
        what: &'static str,
    },
    /// The file is none, or was changed.
    #[error("this is no whole ledger: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
}

/// The ledger of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    machines: BTreeMap<String, Chain>,
}

impl Ledger {
    /// One without machines.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records that a machine's TPM, with this endorsement key (its public area, or any other bytes that are its own), was saved with a state. The
    /// last one again is no new entry.
    ///
    /// # Errors
    /// [`LedgerError`]: states and keys of others, older states, limits.
    pub fn record(&mut self, machine: &str, endorsement_key: &[u8], state: &[u8], reset_count: u32) -> Result<Entry, LedgerError> {
        if machine.is_empty() || machine.len() > MAX_NAME {
            return Err(LedgerError::Limit { what: "a name of this length" });
        }
        let (key, digest) = (sha256(&[endorsement_key]), sha256(&[state]));
        let others = || self.machines.iter().filter(|(name, _)| *name != machine);
        let clone = |what, owner: &String| Err(LedgerError::Clone { machine: machine.to_owned(), what, owner: owner.clone() });
        if let Some((owner, _)) = others().find(|(_, chain)| chain.key == key) {
            return clone("endorsement key", owner);
        }
        if let Some((owner, _)) = others().find(|(_, chain)| chain.find(digest).is_some()) {
            return clone("state", owner);
        }
        if !self.machines.contains_key(machine) && self.machines.len() >= MAX_MACHINES {
            return Err(LedgerError::Limit { what: "another machine" });
        }
        if let Some(chain) = self.machines.get(machine) {
            if chain.key != key {
                return Err(LedgerError::OtherTpm { machine: machine.to_owned() });
            }
            match chain.find(digest) {
                Some(entry) if entry.sequence == chain.newest() => return Ok(entry),
                Some(entry) => return Err(chain.rollback(machine, entry)),
                None => {}
            }
        }
        let chain = self.machines.entry(machine.to_owned()).or_insert_with(|| Chain::new(machine, key));
        Ok(chain.push(digest, reset_count))
    }

    /// Whether a machine may start from a state, and which save that is.
    ///
    /// # Errors
    /// [`LedgerError`]: [`Rollback`](LedgerError::Rollback), [`Clone`](LedgerError::Clone), and what is unknown.
    pub fn check(&self, machine: &str, state: &[u8]) -> Result<Entry, LedgerError> {
        let digest = sha256(&[state]);
        let own = self.machines.get(machine);
        match own.and_then(|chain| Some((chain, chain.find(digest)?))) {
            Some((chain, entry)) if entry.sequence == chain.newest() => return Ok(entry),
            Some((chain, entry)) => return Err(chain.rollback(machine, entry)),
            None => {}
        }
        let machine = machine.to_owned();
        if let Some((owner, _)) = self.machines.iter().find(|(_, chain)| chain.find(digest).is_some()) {
            return Err(LedgerError::Clone { machine, what: "state", owner: owner.clone() });
        }
        Err(if own.is_some() { LedgerError::UnknownState { machine } } else { LedgerError::UnknownMachine { machine } })
    }

    /// The last save of a machine's TPM.
    pub fn newest(&self, machine: &str) -> Option<Entry> {
        self.machines.get(machine)?.entries.last().copied()
    }

    /// Forgets a machine that is deleted.
    ///
    /// # Errors
    /// [`LedgerError::UnknownMachine`].
    pub fn remove(&mut self, machine: &str) -> Result<(), LedgerError> {
        let removed = self.machines.remove(machine).map(drop);
        removed.ok_or_else(|| LedgerError::UnknownMachine { machine: machine.to_owned() })
    }

    /// The digest that all of it is in.
    pub fn head(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (name, chain) in &self.machines {
            hash.update(name_len(name));
            hash.update(name);
            hash.update(chain.link);
        }
        hash.finalize().into()
    }

    /// As a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = [&MAGIC[..], &VERSION.to_be_bytes(), &count(self.machines.len())].concat();
        for (name, chain) in &self.machines {
            bytes.extend_from_slice(&name_len(name));
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&chain.key);
            bytes.extend_from_slice(&chain.forgotten.to_be_bytes());
            bytes.extend_from_slice(&chain.before);
            bytes.extend_from_slice(&count(chain.entries.len()));
            for entry in &chain.entries {
                bytes.extend_from_slice(&entry.state);
                bytes.extend_from_slice(&entry.reset_count.to_be_bytes());
            }
        }
        bytes.extend_from_slice(&self.head());
        bytes
    }

    /// Reads a file. Whether its [`head`](Self::head) is the one that is known from elsewhere, the caller compares.
    ///
    /// # Errors
    /// [`LedgerError::Malformed`].
    pub fn read(bytes: &[u8]) -> Result<Self, LedgerError> {
        let malformed = |what| LedgerError::Malformed { what };
        if array(bytes, 0) != Some(MAGIC) || be32(bytes, 8) != Some(VERSION) {
            return Err(malformed("it has another header"));
        }
        let machines = be32(bytes, 12).map(index).filter(|n| *n <= MAX_MACHINES).ok_or_else(|| malformed("too many machines"))?;
        let mut reader = Reader { bytes, at: 16 };
        let mut ledger = Self::new();
        for _ in 0..machines {
            let (name, chain) = reader.chain().ok_or_else(|| malformed("it is cut short, or has a count that is too high"))?;
            if ledger.machines.last_key_value().is_some_and(|(last, _)| *last >= name) {
                return Err(malformed("its machines are in no order"));
            }
            ledger.machines.insert(name, chain);
        }
        if reader.array() != Some(ledger.head()) || reader.at != bytes.len() {
            return Err(malformed("its head is another one"));
        }
        Ok(ledger)
    }
}

/// What is known of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    key: Sha256Digest,
    /// How many entries are no longer kept, and the link after them.
    forgotten: u64,
    before: Sha256Digest,
    entries: Vec<Entry>,
    /// After the last entry.
    link: Sha256Digest,
}

impl Chain {
    fn new(machine: &str, key: Sha256Digest) -> Self {
        let before = sha256(&[machine.as_bytes(), &key]);
        Self { key, forgotten: 0, before, entries: Vec::new(), link: before }
    }

    /// Sequence of the last entry.
    fn newest(&self) -> u64 {
        self.entries.last().map_or(self.forgotten, |entry| entry.sequence)
    }

    fn find(&self, state: Sha256Digest) -> Option<Entry> {
        self.entries.iter().rfind(|entry| entry.state == state).copied()
    }

    fn push(&mut self, state: Sha256Digest, reset_count: u32) -> Entry {
        // nobody saves that often
        let entry = Entry { sequence: self.newest().saturating_add(1), state, reset_count };
        self.link = link(self.link, entry);
        if self.entries.len() >= MAX_ENTRIES {
            let oldest = self.entries.remove(0);
            self.before = link(self.before, oldest);
            self.forgotten = oldest.sequence;
        }
        self.entries.push(entry);
        entry
    }

    fn rollback(&self, machine: &str, entry: Entry) -> LedgerError {
        LedgerError::Rollback { machine: machine.to_owned(), found: entry.sequence, newest: self.newest() }
    }
}

/// Reads what follows what was read.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let taken = slice(self.bytes, self.at, len)?;
        self.at = self.at.checked_add(len)?;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn chain(&mut self) -> Option<(String, Chain)> {
        let len = usize::from(u16::from_be_bytes(self.array()?));
        let name = self.take(len).filter(|name| (1..=MAX_NAME).contains(&name.len()))?;
        let name = str::from_utf8(name).ok()?.to_owned();
        let (key, forgotten, before) = (self.array()?, u64::from_be_bytes(self.array()?), self.array()?);
        let mut chain = Chain { key, forgotten, before, entries: Vec::new(), link: before };
        let entries = index(u32::from_be_bytes(self.array()?));
        if entries > MAX_ENTRIES || forgotten.checked_add(hvci_engine::bytes::widen(entries)).is_none() {
            return None;
        }
        let entries = self.take(entries.checked_mul(ENTRY)?)?;
        for entry in entries.chunks_exact(ENTRY) {
            chain.push(array(entry, 0)?, be32(entry, 32)?);
        }
        // nothing was forgotten before the first one
        (forgotten > 0 || before == Chain::new(&name, key).before).then_some((name, chain))
    }
}

fn link(before: Sha256Digest, entry: Entry) -> Sha256Digest {
    sha256(&[&MAGIC, &before, &entry.sequence.to_be_bytes(), &entry.state, &entry.reset_count.to_be_bytes()])
}

fn sha256(parts: &[&[u8]]) -> Sha256Digest {
    parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize().into()
}

/// A name is at most [`MAX_NAME`] bytes long, and there are at most [`MAX_MACHINES`] and [`MAX_ENTRIES`].
fn name_len(name: &str) -> [u8; 2] {
    u16::try_from(name.len()).unwrap_or(u16::MAX).to_be_bytes()
}

fn count(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> Ledger {
        let mut ledger = Ledger::new();
        for n in 1_u8..=3 {
            assert_eq!(ledger.record("one", b"EK 1", &[1, n], n.into()).unwrap().sequence, u64::from(n));
            ledger.record("two", b"EK 2", &[2, n], 1).unwrap();
        }
        ledger
    }

    #[test]
    fn only_the_last_state_may_be_started_from() {
        let ledger = recorded();
        assert_eq!(ledger.check("one", &[1, 3]).unwrap(), Entry { sequence: 3, state: sha256(&[&[1, 3]]), reset_count: 3 });
        let machine = "one".to_owned();
        assert_eq!(ledger.check("one", &[1, 2]), Err(LedgerError::Rollback { machine: machine.clone(), found: 2, newest: 3 }));
        assert_eq!(ledger.check("one", &[1, 9]), Err(LedgerError::UnknownState { machine: machine.clone() }));
        let owner = "two".to_owned();
        // another's state is a clone, whether its last or not
        for n in [1, 3] {
            let clone = LedgerError::Clone { machine: machine.clone(), what: "state", owner: owner.clone() };
            assert_eq!(ledger.check("one", &[2, n]), Err(clone));
        }
        assert!(matches!(ledger.check("three", &[1, 3]), Err(LedgerError::Clone { owner, .. }) if owner == "one"));
        assert_eq!(ledger.check("three", &[9]), Err(LedgerError::UnknownMachine { machine: "three".to_owned() }));
    }

    #[test]
    fn what_is_recorded_is_new_and_ones_own() {
        let mut ledger = recorded();
        let before = ledger.clone();
        assert!(matches!(ledger.record("one", b"EK 1", &[1, 1], 4), Err(LedgerError::Rollback { found: 1, newest: 3, .. })));
        assert!(matches!(ledger.record("one", b"EK 3", &[1, 4], 4), Err(LedgerError::OtherTpm { .. })));
        assert!(matches!(ledger.record("three", b"EK 1", &[3, 1], 1), Err(LedgerError::Clone { what: "endorsement key", .. })));
        assert!(matches!(ledger.record("three", b"EK 3", &[1, 2], 1), Err(LedgerError::Clone { what: "state", .. })));
        for name in ["", &"n".repeat(MAX_NAME + 1)] {
            assert!(matches!(ledger.record(name, b"EK 3", &[3, 1], 1), Err(LedgerError::Limit { .. })));
        }
        // the last one again
        assert_eq!(ledger.record("one", b"EK 1", &[1, 3], 3).unwrap().sequence, 3);
        assert_eq!(ledger, before);
        ledger.remove("one").unwrap();
        assert_eq!(ledger.remove("one"), Err(LedgerError::UnknownMachine { machine: "one".to_owned() }));
        assert_eq!(ledger.record("three", b"EK 1", &[1, 3], 3).unwrap().sequence, 1);
    }

    #[test]
    fn the_head_tells_every_history_from_every_other() {
        let mut heads = vec![Ledger::new().head(), recorded().head()];
        // endorsement key; then states and reset counts
        let histories: [(u8, &[(u8, u32)]); 5] =
            [(1, &[(1, 1)]), (1, &[(1, 2)]), (2, &[(1, 1)]), (1, &[(1, 1), (2, 1)]), (1, &[(2, 1), (1, 1)])];
        for (key, saves) in histories {
            for machine in ["one", "two"] {
                let mut ledger = Ledger::new();
                for (state, count) in saves {
                    ledger.record(machine, &[key], &[*state], *count).unwrap();
                }
                heads.push(ledger.head());
            }
        }
        let all = heads.len();
        heads.sort_unstable();
        heads.dedup();
        assert_eq!(heads.len(), all);
    }

    #[test]
    fn a_file_is_the_ledger_and_every_change_is_found() {
        let ledger = recorded();
        let bytes = ledger.to_bytes();
        assert_eq!(Ledger::read(&bytes), Ok(ledger));
        for at in 0..bytes.len() {
            assert!(Ledger::read(&bytes[..at]).is_err(), "{at} bytes");
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(Ledger::read(&changed).is_err(), "bit {bit} of byte {at}");
            }
        }
        assert!(Ledger::read(&[&bytes[..], &[0]].concat()).is_err());
        assert_eq!(Ledger::read(&Ledger::new().to_bytes()), Ok(Ledger::new()));
    }

    #[test]
    fn what_is_forgotten_is_unknown_and_the_chain_stays() {
        let mut ledger = Ledger::new();
        let saves = u32::try_from(MAX_ENTRIES).unwrap() + 10;
        for n in 0..saves {
            ledger.record("one", b"EK", &n.to_be_bytes(), n).unwrap();
        }
        assert_eq!(ledger.check("one", &(saves - 1).to_be_bytes()).unwrap().sequence, u64::from(saves));
        assert!(matches!(ledger.check("one", &9_u32.to_be_bytes()), Err(LedgerError::UnknownState { .. })));
        assert!(matches!(ledger.check("one", &10_u32.to_be_bytes()), Err(LedgerError::Rollback { found: 11, .. })));
        let read = Ledger::read(&ledger.to_bytes()).unwrap();
        assert_eq!(read, ledger);
        assert_eq!(read.head(), ledger.head());
    }
}
