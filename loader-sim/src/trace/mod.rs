//! Traces: all that reaches a machine from outside, in order, and what came of each thing.
//!
//! ```text
//! scenario ─► inputs ─► Player ─► outputs ─┐
//!               └──────── trace ◄──────────┘ ─► replay: the same inputs must give the same outputs, byte for byte (invariant I12)
//!                           └─► shrink: fewer inputs that still show it
//! ```
//!
//! **Refuses** a trace that is cut short, holds what this version does not know, or asks for more than is bounded in [`limits`].

mod format;
mod player;
mod shrink;

pub use self::{
    format::{Anchor, Input, Machine, Output, Step, Trace, TraceError, Why, limits},
    player::Player,
    shrink::{Shrunk, shrink},
};
use hvci_engine::status::HvStatus;

/// The first place at which a replay is not what was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The line of the trace.
    pub line: usize,
    /// What stands there; `None` if nothing was recorded any more.
    pub recorded: Option<String>,
    /// What came now; `None` if nothing did.
    pub played: Option<String>,
}

/// What a replay came to.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The same inputs with what came of them now.
    pub trace: Trace,
    /// The first difference from what was recorded.
    pub difference: Option<Difference>,
}

/// Plays the inputs of a trace on a machine of its own.
///
/// # Errors
/// A machine that cannot be made.
pub fn replay(trace: &Trace) -> Result<Replay, HvStatus> {
    let mut player = Player::new(&trace.machine)?;
    let mut difference = None;
    let mut steps = Vec::with_capacity(trace.steps.len());
    for step in &trace.steps {
        let outputs: Vec<String> = player.apply(&step.input).iter().map(Output::line).collect();
        if difference.is_none() {
            difference = first_difference(step, &outputs);
        }
        steps.push(Step { input: step.input.clone(), outputs, line: step.line });
    }
    Ok(Replay { trace: Trace { machine: trace.machine.clone(), steps, edited: false }, difference })
}

fn first_difference(step: &Step, played: &[String]) -> Option<Difference> {
    let longest = step.outputs.len().max(played.len());
    let at = (0..longest).find(|at| step.outputs.get(*at) != played.get(*at))?;
    Some(Difference { line: step.line + 1 + at, recorded: step.outputs.get(at).cloned(), played: played.get(at).cloned() })
}
