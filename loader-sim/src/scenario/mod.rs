//! Scenarios: a machine that is scripted in TOML.
//!
//! ```text
//! TOML ─format─► Scenario ─layout, program─► inputs ─run (schedule from the seed)─► trace::Player ─► rows, trace
//! ```
//!
//! A scenario runs by playing inputs one at a time and keeping them with what came of them, so what it did is a [`Trace`](crate::trace::Trace)
//! that replays without the scenario. What the schedule does next depends on nothing but the seed and what came of the inputs before.

mod driver;
mod format;
mod layout;
mod program;
mod run;

use std::ops::Range;

pub use self::{
    format::Scenario,
    run::{Played, Row, play},
};

/// Why a scenario cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// It is no TOML, or has keys or values that are unknown.
    #[error("{0}")]
    Form(#[from] toml::de::Error),
    /// Something in it cannot be.
    #[error("line {line}: {what}")]
    Line {
        /// Where.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// A file that it names cannot be read.
    #[error("line {line}: cannot read {path}")]
    Io {
        /// Where it is named.
        line: usize,
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Something that the machine or the synthesiser says.
    #[error("{0}")]
    Machine(String),
}

/// The text of a scenario, for the line that something stands in.
#[derive(Clone, Copy)]
struct Source<'t>(&'t str);

impl Source<'_> {
    fn wrong(self, at: Range<usize>, what: impl Into<String>) -> ScenarioError {
        ScenarioError::Line { line: self.line(at), what: what.into() }
    }

    fn line(self, at: Range<usize>) -> usize {
        self.0.get(..at.start).unwrap_or(self.0).matches('\n').count() + 1
    }
}

fn machine(error: impl std::fmt::Display) -> ScenarioError {
    ScenarioError::Machine(error.to_string())
}
