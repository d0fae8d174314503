//! Loading a module: what must stand in the guest's memory, computed from the signed file, and compared for equality.
//!
//! ```text
//! file ─┬─ pe, elf ─► Expected ──compare──► frames become Code, RoData, …
//!       └ base or placement: the guest's claim; symbols: the engine's own
//! ```
//!
//! What the guest says about addresses is checked, and then decides nothing but addresses. No byte that may execute is a wildcard.
//! **Boundary:** the readers (`pe`, `elf`, `expected`) look at no signature and read no memory but through a closure. [`Loader`] is where a
//! verdict, the expected bytes and the frames meet.

#![forbid(unsafe_code)]

mod change;
mod clock;
mod comparison;
mod elf;
mod expected;
mod exports;
mod guest_tables;
mod import_site;
mod known;
mod linker;
mod loader;
mod module;
mod pages;
mod paging;
mod patch;
mod pe;
#[cfg(test)]
mod races;
mod refusal;
mod region;
mod saved;
mod service;
mod verification;

pub use elf::{Placed, Placement, elf};
pub use expected::{Expected, MAX_IMAGE, Part, Segment};
pub use exports::Exports;
pub use loader::{Attempt, File, Loader, MAX_MODULES, NOT_THERE, Place, Request};
pub use module::{Module, Sealed};
pub use pages::Pages;
pub use pe::{GUARD_CHECK, GUARD_DISPATCH, GUARD_LIBRARY, pe};
pub use refusal::Refusal;
pub use region::{MAX_REGION_PAGES, MAX_REGIONS};
pub use service::Function;

use crate::{addr::Gva, image::pe::Symbol};

/// What the kernel exports, and whatever else the [`Loader`] has not loaded itself: it is asked before the modules that are loaded.
pub trait Symbols {
    /// Where `symbol` of `library` is. `library` is as the PE image writes it (without extension where a forwarder of a driver does), and empty
    /// for an ELF module, whose symbols have one name space. The kernel's own forwarders are followed here. `None` if it exports no such thing.
    fn resolve(&self, library: &[u8], symbol: Symbol<'_>) -> Option<Gva>;
}
