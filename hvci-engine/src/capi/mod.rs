//! The C interface, `include/hvci.h`: a VMM that is not written in Rust gives the engine a table of functions and gets an opaque engine.
//!
//! Rules, for both sides:
//!
//! 1. **Pointers are trusted, values are not.** A pointer is null or points at what the header says, of the length that goes with it,
//!    aligned, and overlaps no other argument that is written to. Null where something must be is [`HvStatus::INVALID_PARAMETER`]; null
//!    with a length of 0 is an empty list.
//! 2. **Tables grow at their end.** Each begins with `version` and `size`. The caller zero-fills it and sets both. No more than `size`
//!    bytes are read. Another version, or a size that ends before what the first edition had or within a field, is refused; what lies
//!    behind the fields known here is ignored; a field behind `size` is 0 or null. Tables are copied: they may go when the call returns.
//! 3. **A context lives as long as what it is for**: a host's and a keeper's until [`hvci_destroy`] returns, a processor's for the call.
//! 4. **Callbacks come from any thread**, several at once, also from threads of the engine's own. They return, and do so neither by
//!    `longjmp` nor by an exception. None may call the engine: on the same thread that is refused with
//!    [`HvStatus::INVALID_PARTITION_STATE`]. A status that a callback returns is passed on as it is, but for
//!    a keeper's, which means what [`HvciKeeperV1`] says.
//! 5. **No panic crosses.** One that happens all the same is caught, where panics unwind: the call answers [`HvStatus::OPERATION_DENIED`],
//!    and so does every later one on that engine but [`hvci_destroy`], because nobody knows what it left half-way; intercepts answer
//!    [`HVCI_ACTION_TERMINATE`] then. So it is too when a host can not tell the aliases of a frame: what is not known cannot be protected.
//!    No memory is the end of the process, as in all Rust.
//! 6. Every function but [`hvci_destroy`] may be called from several threads at once.
//!
//! Only for 64-bit processors.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod engine;
mod host;
mod tables;
mod vault;

pub use engine::{
    HvciEngine, hvci_check, hvci_create, hvci_destroy, hvci_end_of_boot, hvci_hypercall, hvci_load, hvci_on_memory, hvci_on_register_write,
    hvci_replace_blocked, hvci_restore, hvci_save, hvci_take_events, hvci_unload, hvci_version, hvci_vtl_call,
};
pub use tables::*;
pub use vault::{hvci_secure_call, hvci_vault_commit, hvci_vault_open, hvci_vault_rotate};

#[cfg(doc)]
use crate::status::HvStatus;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the C interface is for 64-bit processors");
