//! Every interleaving of the engine's protocol with a hostile guest, in machines that are small enough.
//!
//! ```text
//! state ──every action of processors, devices and the engine──► states ──► seen before? broken?
//! ```
//!
//! Breadth first and exact, so that a counterexample is a shortest one. The steps of the engine are [`Transaction::perform`] on
//! [`FrameTable`], not a description of them. **Boundary:** proves nothing about hosts; what a host must do is what the model's does.
//!
//! [`Transaction::perform`]: crate::frames::Transaction::perform
//! [`FrameTable`]: crate::frames::FrameTable

#![forbid(unsafe_code)]
#![expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "a model of a few pages, made here; nothing of a guest's is read"
)]

use alloc::{boxed::Box, collections::VecDeque, vec, vec::Vec};
use core::{fmt, hash::Hash};

use hashbrown::HashSet;

mod model;

pub use model::{Action, Bug, MOST, Machine, Space};

/// How an exploration ended.
#[derive(Clone, Debug)]
pub struct Explored {
    /// Different states seen.
    pub states: usize,
    /// Actions tried.
    pub edges: usize,
    /// Whether something was executable in some state.
    pub executed: bool,
    /// The shortest way to a broken invariant.
    pub broken: Option<Counterexample>,
}

/// How to break an invariant.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// Which one.
    pub invariant: &'static str,
    /// What has to happen.
    pub actions: Vec<Action>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.invariant)?;
        for (number, action) in self.actions.iter().enumerate() {
            write!(f, "\n  {}. {action}", number + 1)?;
        }
        Ok(())
    }
}

/// Visits every state of `space` that can be reached, or those up to a broken invariant. `progress` hears of states and edges now and then
/// and may end it early, by `false`.
pub fn explore(space: &Space, progress: &mut dyn FnMut(usize, usize) -> bool) -> Explored {
    let mut found = Explored { states: 1, edges: 0, executed: false, broken: None };
    let start = Machine::new(space);
    // by which action from which state each was reached first
    let mut reached: Vec<(usize, Option<Action>)> = vec![(0, None)];
    let mut seen: HashSet<Key> = HashSet::new();
    seen.insert(key(&start));
    let mut waiting = VecDeque::from([(0, start)]);
    while let Some((number, machine)) = waiting.pop_front() {
        for action in machine.actions(space) {
            found.edges += 1;
            let next = machine.after(space, action);
            if !seen.insert(key(&next)) {
                continue;
            }
            found.states += 1;
            found.executed |= next.executes();
            reached.push((number, Some(action)));
            if let Some(invariant) = next.violation(space) {
                found.broken = Some(Counterexample { invariant, actions: way(&reached) });
                return found;
            }
            waiting.push_back((reached.len() - 1, next));
            if found.states.is_multiple_of(4096) && !progress(found.states, found.edges) {
                return found;
            }
        }
    }
    found
}

/// The actions that lead to the last state reached.
fn way(reached: &[(usize, Option<Action>)]) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut at = reached.len() - 1;
    while let (before, Some(action)) = reached[at] {
        actions.push(action);
        at = before;
    }
    actions.reverse();
    actions
}

/// A state as bytes: equal for equal states only.
type Key = Box<[u8]>;

fn key(machine: &Machine) -> Key {
    /// Takes what a hash would be made of. Small numbers, which is all there are, as one byte.
    struct Bytes(Vec<u8>);

    impl core::hash::Hasher for Bytes {
        fn finish(&self) -> u64 {
            0
        }
        fn write(&mut self, bytes: &[u8]) {
            match bytes {
                [small, rest @ ..] if *small < 0xff && !rest.is_empty() && rest.iter().all(|b| *b == 0) => self.0.push(*small),
                [one] if *one < 0xff => self.0.push(*one),
                _ => {
                    self.0.extend([0xff, bytes.len() as u8]);
                    self.0.extend(bytes);
                }
            }
        }
    }

    let mut bytes = Bytes(Vec::with_capacity(96));
    machine.hash(&mut bytes);
    bytes.0.into_boxed_slice()
}
