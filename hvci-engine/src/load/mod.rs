//! Loading a module: what must stand in the guest's memory, computed from the signed file, and compared for equality.
//!
//! ```text
//! file ─┬─ pe, elf ─► Expected ──compare──► frames become Code, RoData, …
//!       └ base or placement: the guest's claim; symbols: the engine's own
//! ```
//!
//! What the guest says about addresses is checked, and then decides nothing but addresses. No byte that may execute is a wildcard.
//! **Boundary:** no memory is read but through a closure, no signature is looked at: that the file is the one that was signed is the
//! caller's to know.

#![forbid(unsafe_code)]

mod elf;
mod expected;
mod pe;
mod refusal;

pub use elf::{Placed, Placement, elf};
pub use expected::{Difference, Expected, MAX_IMAGE, Part, Segment};
pub use pe::{GUARD_CHECK, GUARD_DISPATCH, GUARD_LIBRARY, pe};
pub use refusal::Refusal;

use crate::{addr::Gva, image::pe::Symbol};

/// What the kernel and the modules that were loaded before export, as the engine itself knows it.
pub trait Symbols {
    /// Where `symbol` of `library` is. `library` is as the PE image writes it, and empty for an ELF module, whose symbols have one name space.
    /// Forwarders are followed here. `None` if nothing exports it.
    fn resolve(&self, library: &[u8], symbol: Symbol<'_>) -> Option<Gva>;
}
