//! The frame table: the one authority for what may be done with memory.
//!
//! ```text
//!            claim (a transaction, a row of TRANSITIONS)      settle
//!   Data ────────────────────────────────────► Locked(txn) ─────────► Code, RoData, …
//!                                                   └───── restore ──► what it was
//! ```
//!
//! A frame has one state, however many guest pages lead to it, and every permission in every view is a function of it
//! ([`Kind::allows`]). There is no verb that sets a permission. **Invariants:** I1 to I6 of `docs/invariants.md`.
//! **Boundary:** knows no address of a guest, no signature, no hypercall.

#![forbid(unsafe_code)]

use alloc::{boxed::Box, vec::Vec};
use core::sync::atomic::Ordering;

use crate::{addr::Frame, status::HvStatus, sync::AtomicU64};

mod state;
mod transaction;

pub use state::{Content, Kind, State, TRANSITIONS, Transition};
pub use transaction::{Change, Step, Transaction};

/// The states of successive host frames. A word each: kind in bits 7:0, number of holds in 15:8, owner in 47:16.
#[derive(Debug)]
pub struct FrameTable {
    first: Frame,
    words: Box<[AtomicU64]>,
}

const HOLD: u64 = 1 << 8;
const HOLDS: u64 = 0xff << 8;

impl FrameTable {
    /// A table of `count` frames from `first`, all [`Kind::Free`].
    pub fn new(first: Frame, count: usize) -> Self {
        Self { first, words: (0..count).map(|_| AtomicU64::new(word(State::of(Kind::Free)))).collect() }
    }

    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Every frame.
    pub fn frames(&self) -> impl Iterator<Item = Frame> {
        (self.first.0..).take(self.words.len()).map(Frame)
    }

    /// The state of a frame; `None` for one that is not in the table.
    pub fn state(&self, frame: Frame) -> Option<State> {
        self.word(frame).map(|w| state(w.load(Ordering::SeqCst)))
    }

    /// Puts a frame that is [`Kind::Free`] to its first use: only [`Kind::Data`], [`Kind::Device`] or [`Kind::SecureOnly`], and only
    /// while no guest page leads to it yet.
    ///
    /// # Errors
    /// [`HvStatus::OPERATION_DENIED`] otherwise, [`HvStatus::INVALID_PARAMETER`] for no frame of the table.
    pub fn place(&self, frame: Frame, kind: Kind) -> Result<(), HvStatus> {
        if !matches!(kind, Kind::Data | Kind::Device | Kind::SecureOnly) {
            return Err(HvStatus::OPERATION_DENIED);
        }
        self.exchange(frame, |old| if old == State::of(Kind::Free) { Ok(State::of(kind)) } else { Err(HvStatus::OPERATION_DENIED) })
            .map(drop)
    }

    /// Keeps a frame from being claimed: while a guest page is made to lead to it, while a device or the VMM uses it for long.
    ///
    /// # Errors
    /// [`HvStatus::OBJECT_IN_USE`] if a transaction has it, or 255 hold it already; [`HvStatus::INVALID_PARAMETER`] for no frame of the table.
    pub fn hold(&self, frame: Frame) -> Result<Hold<'_>, HvStatus> {
        let word = self.word(frame).ok_or(HvStatus::INVALID_PARAMETER)?;
        let more = |old: u64| (!state(old).kind.is_held() && old & HOLDS != HOLDS).then_some(old + HOLD);
        let old = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).map_err(|_| HvStatus::OBJECT_IN_USE)?;
        Ok(Hold { word, state: state(old) })
    }

    /// Has transaction `transaction` on behalf of `owner` take a frame that is `from`, if that is said, and shall become `to`. Returns what
    /// it was.
    fn claim(&self, frame: Frame, transaction: u32, owner: u32, from: Option<Kind>, to: Kind) -> Result<State, HvStatus> {
        self.exchange(frame, |old| {
            if old.kind.is_held() {
                return Err(HvStatus::OBJECT_IN_USE);
            }
            let way = Transition::between(old.kind, to).ok_or(HvStatus::OPERATION_DENIED)?;
            if from.is_some_and(|from| from != old.kind) {
                return Err(HvStatus::OPERATION_DENIED);
            }
            if old.kind.is_owned() && old.owner != owner {
                return Err(HvStatus::ACCESS_DENIED);
            }
            Ok(State { kind: way.on_the_way(), owner: transaction })
        })
    }

    /// Gives a frame that `transaction` holds its new state, or the one it had.
    fn settle(&self, frame: Frame, transaction: u32, new: State) -> Result<(), HvStatus> {
        self.exchange(frame, |old| if old.kind.is_held() && old.owner == transaction { Ok(new) } else { Err(HvStatus::OPERATION_DENIED) })
            .map(drop)
    }

    /// Replaces the state of a frame that nobody holds. Returns the old one.
    fn exchange(&self, frame: Frame, new: impl Fn(State) -> Result<State, HvStatus>) -> Result<State, HvStatus> {
        let place = self.word(frame).ok_or(HvStatus::INVALID_PARAMETER)?;
        let mut old = place.load(Ordering::SeqCst);
        loop {
            if old & HOLDS != 0 {
                return Err(HvStatus::OBJECT_IN_USE);
            }
            let next = word(new(state(old))?);
            match place.compare_exchange(old, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Ok(state(old)),
                Err(seen) => old = seen,
            }
        }
    }

    fn word(&self, frame: Frame) -> Option<&AtomicU64> {
        self.words.get(self.index(frame)?)
    }

    /// Where a frame stands among [all](Self::frames).
    pub(crate) fn index(&self, frame: Frame) -> Option<usize> {
        usize::try_from(frame.0.checked_sub(self.first.0)?).ok()
    }

    /// Holds every frame, if nobody holds any: for the machine to become a saved one.
    ///
    /// # Errors
    /// [`HvStatus::OBJECT_IN_USE`] if somebody does; nothing is changed then.
    pub(crate) fn take_all(&self) -> Result<Taken<'_>, HvStatus> {
        let mut taken = Taken { table: self, words: Vec::with_capacity(self.words.len()) };
        for frame in self.frames() {
            let free = |old: State| if old.kind.is_held() { Err(HvStatus::OBJECT_IN_USE) } else { Ok(State::of(Kind::Hidden)) };
            // of no transaction: none of them settles it
            taken.words.push(word(self.exchange(frame, free)?));
        }
        Ok(taken)
    }

    /// The words, for a model that explores every state.
    pub fn snapshot(&self) -> Vec<u64> {
        self.words.iter().map(|w| w.load(Ordering::SeqCst)).collect()
    }

    /// The table with these words.
    pub fn from_snapshot(first: Frame, words: &[u64]) -> Self {
        Self { first, words: words.iter().map(|w| AtomicU64::new(*w)).collect() }
    }
}

/// Every frame, held until it is dropped; each is then what it was, or what it shall [be](Taken::settle).
pub(crate) struct Taken<'t> {
    table: &'t FrameTable,
    /// Of those that are taken, from the first.
    words: Vec<u64>,
}

impl Taken<'_> {
    /// Lets the frames go, each with the state of its place.
    pub(crate) fn settle(mut self, states: &[State]) {
        self.words.iter_mut().zip(states).for_each(|(old, new)| *old = word(*new));
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for (place, word) in self.table.words.iter().zip(&self.words) {
            place.store(*word, Ordering::SeqCst);
        }
    }
}

/// Keeps a frame from being claimed until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Hold<'t> {
    word: &'t AtomicU64,
    state: State,
}

impl Hold<'_> {
    /// What the frame is for as long as this lives.
    pub const fn state(&self) -> State {
        self.state
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.word.fetch_sub(HOLD, Ordering::SeqCst);
    }
}

fn word(state: State) -> u64 {
    u64::from(state.kind.number()) | u64::from(state.owner) << 16
}

fn state(word: u64) -> State {
    let [kind, _, a, b, c, d, _, _] = word.to_le_bytes();
    // every word is made by `word`; one that is not is trusted with nothing
    State { kind: Kind::from_number(kind).unwrap_or(Kind::Quarantined), owner: u32::from_le_bytes([a, b, c, d]) }
}
