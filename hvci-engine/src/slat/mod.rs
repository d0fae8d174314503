//! Second-level page tables: guest page → host frame and what may be done to it, in the processors' own formats.
//!
//! One [`Slat`] is one view, such as VTL0's. [`Ept`] and [`Npt`] say how its entries look; walks, splits and merges are the same for both.
//! A [`Tlb`] is what one virtual processor remembers of a view, right or wrong.
//!
//! **Trusts** its writer, which is the frame table, to ask for the right permissions. **Refuses** what an encoding cannot represent, what
//! is mapped already, what is not mapped, and to grow beyond the tables that it was given.
//! **Invariant:** at no moment does any walker see a permission of a page that was granted neither before an operation nor after it.

#![forbid(unsafe_code)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod entry;
mod ept;
mod leaves;
mod npt;
mod span;
mod table;
mod tlb;
mod walk;

pub use entry::{CannotRepresent, Encoding, Kind, Leaf, LeafSize, MemoryType, Misconfiguration, Mode};
pub use ept::Ept;
pub use leaves::Leaves;
pub use npt::Npt;
pub use table::{Slat, SlatError};
pub use tlb::Tlb;
pub use walk::{ExitQualification, Violation, ViolationKind};

#[cfg(test)]
mod model;
#[cfg(test)]
mod races;
