//! Virtual secure mode: names, numbers and layouts of the Top-Level Functional Specification (TLFS), and what a partition does about them.
//!
//! - [`hypercall`]: control word, result, call codes; [`Call::decode`](hypercall::Call::decode) from the guest's bytes to what it asks for.
//! - [`input`]: the structures and lists that hypercalls take, [`vp_set`]: sets of processors in them.
//! - [`translate`]: control flags and results of address translation.
//! - [`register`]: `HV_REGISTER_NAME` and values; [`status_register`]: the VSM registers as views; [`intercept`]: which registers can be
//!   intercepted, by which bit, and which are pinned.
//! - [`message`]: `SynIC` messages and intercept bodies, pending exceptions; [`assist`]: the VTL part of the VP assist page.
//! - `secure_call`: the argument block of a VTL call.
//! - [`protection`]: which `HV_MAP_GPA_FLAGS` a protection mask may have.
//! - [`partition`]: the behaviour; everything else is bytes.
//!
//! Sources: the TLFS pages of MicrosoftDocs/Virtualization-Documentation `virtualization/hyper-v-on-windows/tlfs/`, named here by file,
//! and "hvdef", openvmm's `vm/hv1/hvdef/src/lib.rs`. Where they differ the item says so. `tests/tlfs/` holds a second reading of the numbers.
//!
//! Everything decoded here is chosen by a guest. Unknown values are kept by the types and refused by who uses them. Nothing panics or allocates.

#![forbid(unsafe_code)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

#[macro_use]
mod wire;

pub mod assist;
pub mod hypercall;
pub mod input;
pub mod intercept;
pub mod message;
pub mod partition;
pub mod protection;
pub mod register;
#[cfg(feature = "std")]
pub mod secure_call;
pub mod status_register;
pub mod translate;
pub mod vp_set;

pub use wire::Wire;
