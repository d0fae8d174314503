//! Attacks that a guest tries with its own code, each with what must come of it.
//!
//! Numbers are those of the project's catalogue of 93. Those that are here run as machine code under the engine; the others are not in it yet.

mod catalogue;
mod guest;

use anyhow::Result;

pub use self::{
    catalogue::ATTACKS,
    guest::{Guest, THROUGH},
};

/// How many attacks the catalogue has when it is whole.
pub const CATALOGUE: usize = 93;

/// An attack.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    /// Its number in the catalogue.
    pub number: u8,
    /// Its name, for a command line.
    pub name: &'static str,
    /// What is tried.
    pub what: &'static str,
    /// What must be observed.
    pub expected: &'static str,
    run: fn(&mut Guest) -> Result<String>,
}

impl Attack {
    /// Tries it in a guest of its own; what was observed.
    ///
    /// # Errors
    /// A program that does not assemble or does not halt.
    pub fn attempt(&self) -> Result<String> {
        (self.run)(&mut Guest::new()?)
    }
}
