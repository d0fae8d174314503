//! Signatures of images, as facts: what was signed, by whom, when, and whether the arithmetic holds.
//!
//! Whether anybody should trust the signer is [`crate::policy`]'s to say.

mod algorithm;
pub(crate) mod authenticode;
pub mod block_list;
pub mod cache;
pub mod catalog;
pub mod cert;
pub mod chain;
pub(crate) mod cms;
pub mod crosscheck;
mod ctl;
pub mod detached;
pub mod kernel;
pub mod keyring;
pub mod modsig;
pub mod root_list;
pub mod signature_list;
mod timestamp;
pub mod trust;
#[doc(hidden)]
pub use cms::read_blob;
