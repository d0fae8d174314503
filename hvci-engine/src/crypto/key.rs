//! Public keys, and verifying a signature over a ready digest.
//!
//! aws-lc with a key parsed once for everything it takes; the `rsa` crate for what it refuses (MD5, bare hashes, odd key sizes).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestAlg};

/// What kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// RSA, with the modulus length in bits.
    Rsa(u32),
    /// ECDSA on NIST P-256.
    P256,
    /// ECDSA on NIST P-384.
    P384,
    /// ECDSA on NIST P-521.
    P521,
}

/// How a signature is made from a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// RSASSA-PKCS1-v1_5 (RFC 8017 §8.2).
    Pkcs1,
    /// RSASSA-PSS (RFC 8017 §8.1), the mask by the digest's own algorithm, salt as long as the digest.
    Pss,
    /// ECDSA with the signature as a DER SEQUENCE of r and s (RFC 3279 §2.2.3).
    Ecdsa,
}

/// How a signature that verifies was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureForm {
    /// As its scheme says.
    Standard,
    /// PKCS#1 v1.5 padding around the bare hash, without DigestInfo.
    BareHash,
}

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), or a key that is none.
    #[error("public key is malformed")]
    Malformed,
    /// An algorithm or curve that is not supported.
    #[error("public key algorithm {0} is not supported")]
    Unsupported(String),
}

/// Why a signature does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The key did not make this signature of this digest.
    #[error("signature does not verify")]
    Invalid,
    /// The scheme is not one of the key's.
    #[error("signature scheme does not fit the key")]
    SchemeMismatch,
    /// The digest algorithm cannot be verified with this key here.
    #[error("digest algorithm {0} is not supported with this key")]
    Unsupported(DigestAlg),
}

/// A parsed public key.
#[derive(Debug)]
pub struct PublicKey {
    kind: KeyKind,
}

impl PublicKey {
    /// From the DER of a SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// Malformed, or of an algorithm that is not supported.
    pub fn from_spki(_spki: &[u8]) -> Result<Self, KeyError> {
        todo!()
    }

    /// What kind of key.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// That the key made `signature` of `digest`.
    ///
    /// # Errors
    /// It did not, or that cannot be told.
    pub fn verify(&self, _scheme: Scheme, _digest: &Digest, _signature: &[u8]) -> Result<SignatureForm, VerifyError> {
        todo!()
    }
}
