//! Signatures of images, as facts: what was signed, by whom, when, and whether the arithmetic holds.
//!
//! Whether anybody should trust the signer is [`crate::policy`]'s to say.

pub mod cert;
pub mod kernel;
pub mod keyring;
pub mod modsig;
