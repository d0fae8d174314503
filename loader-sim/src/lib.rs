//! The simulated machine: guest memory, guest page tables and processors that execute guest code, under the engine's second-level table.
//!
//! ```text
//! instruction ─► linear address ─paging (guest tables, guest TLB)─► GPA ─Bus (second-level table, its TLB, intercepts)─► frame ─► GuestMemory
//! ```
//!
//! What a guest executes, and all that its memory holds, is hostile: nothing here panics on it, and an instruction is a bounded amount of
//! work. The machine is there to make attacks executable and explainable, not for speed.

pub mod attack;
pub mod attest;
pub mod boot;
pub mod bus;
pub mod cpu;
pub mod device;
pub mod firmware;
pub mod guest_loader;
pub mod host;
pub mod lsa;
pub mod machine;
pub mod measure;
pub mod memory;
pub mod paging;
pub mod scenario;
#[cfg(test)]
mod testing;
pub mod trace;
pub mod vm;
pub mod vmm;
mod vp;
pub mod vtpm;
