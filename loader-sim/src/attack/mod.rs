//! Attacks that a guest, its devices or its publisher try, each with what must come of it.
//!
//! Numbers and groups are those of the project's catalogue of 93. What a guest could run is machine code that runs under the engine; what a
//! device or the VMM does goes through the machine's own paths. An attack that is out of scope is tried too, and must succeed: nobody shall
//! believe that it is stopped.

mod code;
mod deputy;
pub(crate) mod forge;
mod guest;
mod image;
mod imports;
mod policy;
mod race;
mod service;
mod vault;
mod vtl;

use std::sync::LazyLock;

use anyhow::Result;

pub(crate) use self::guest::assemble;
pub use self::guest::{Guest, THROUGH};

/// How many attacks the catalogue has when it is whole.
pub const CATALOGUE: u8 = 93;

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
    /// Whether it is out of scope: then it must succeed.
    pub out_of_scope: bool,
    run: fn(&mut Guest) -> Result<String>,
}

impl Attack {
    /// Whether it is called so, or is one of those that are: `code/alias`, and `code` or `code/*` for all of them.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.name.split('/').next() == Some(name.trim_end_matches('*').trim_end_matches('/'))
    }

    /// Tries it in a guest of its own; what was observed.
    ///
    /// # Errors
    /// A program that does not assemble or does not halt.
    pub fn attempt(&self) -> Result<String> {
        (self.run)(&mut Guest::new()?)
    }
}

/// Every attack that can be tried, by number.
pub static ATTACKS: LazyLock<Vec<Attack>> = LazyLock::new(|| {
    let groups =
        [code::ATTACKS, race::ATTACKS, deputy::ATTACKS, service::ATTACKS, image::ATTACKS, policy::ATTACKS, vault::ATTACKS, vtl::ATTACKS];
    let mut all = groups.concat();
    all.sort_by_key(|attack| attack.number);
    all
});

const fn attack(
    number: u8,
    name: &'static str,
    what: &'static str,
    expected: &'static str,
    run: fn(&mut Guest) -> Result<String>,
) -> Attack {
    Attack { number, name, what, expected, out_of_scope: false, run }
}

/// One that is not defended against.
const fn beyond(
    number: u8,
    name: &'static str,
    what: &'static str,
    expected: &'static str,
    run: fn(&mut Guest) -> Result<String>,
) -> Attack {
    Attack { number, name, what, expected, out_of_scope: true, run }
}
