//! Digests and signature verification behind one small interface. Nothing else of the engine calls a cryptographic library.
//!
//! Public-key operations only: no secrets pass here.

mod ecdsa;
mod hash;
mod key;
#[cfg(target_arch = "x86_64")]
mod lanes;
mod rsa;

pub use hash::{Job, digest, digest_jobs, digest_jobs_beside};
pub use key::{KeyError, KeyKind, PublicKey, Scheme, SignatureForm, VerifyError};
