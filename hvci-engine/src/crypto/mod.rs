//! Digests and signature verification behind one small interface. Nothing else of the engine calls a cryptographic library.
//!
//! Public-key operations only: no secrets pass here.

mod hash;
mod key;

pub use hash::{Job, digest, digest_jobs};
pub use key::{KeyError, KeyKind, PublicKey, Scheme, SignatureForm, VerifyError};
