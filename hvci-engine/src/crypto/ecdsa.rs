//! ECDSA on the NIST curves (FIPS 186-5 §6.4, SEC 1), by aws-lc with the key parsed once.
//!
//! Signatures are DER `ECDSA-Sig-Value` (RFC 3279 §2.2.3) without variations. For every signature (r, s) the pair (r, n − s) verifies too: nothing
//! may take a signature value for an identity.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use aws_lc_rs::{
    digest::{self, SHA256, SHA384, SHA512},
    signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, ParsedPublicKey},
};

use super::{KeyError, KeyKind, SignatureForm, VerifyError};
use crate::{
    digest::Digest,
    oid::{self, Oid},
};

/// A point on one of the curves.
#[derive(Debug)]
pub(super) struct EcdsaKey {
    kind: KeyKind,
    point: ParsedPublicKey,
}

impl EcdsaKey {
    /// From a point in X9.62 form, compressed or not, on the named `curve`.
    pub(super) fn parse(curve: &Oid, point: &[u8]) -> Result<Self, KeyError> {
        let (kind, algorithm) = match *curve {
            oid::CURVE_P256 => (KeyKind::P256, &ECDSA_P256_SHA256_ASN1),
            oid::CURVE_P384 => (KeyKind::P384, &ECDSA_P384_SHA384_ASN1),
            oid::CURVE_P521 => (KeyKind::P521, &ECDSA_P521_SHA512_ASN1),
            other => return Err(KeyError::Unsupported(oid::name(&other).map_or_else(|| other.to_string(), str::to_owned))),
        };
        // aws-lc would take a SubjectPublicKeyInfo here too, whose own curve no one has looked at
        if !matches!(point.first(), Some(2..=4)) {
            return Err(KeyError::Malformed);
        }
        let point = ParsedPublicKey::new(algorithm, point).map_err(|_| KeyError::Malformed)?;
        Ok(Self { kind, point })
    }

    pub(super) fn kind(&self) -> KeyKind {
        self.kind
    }

    /// That `signature` is of `digest`.
    pub(super) fn verify(&self, digest: &Digest, signature: &[u8]) -> Result<SignatureForm, VerifyError> {
        let algorithm = match self.kind {
            KeyKind::P384 => &SHA384,
            KeyKind::P521 => &SHA512,
            _ => &SHA256,
        };
        let imported = leftmost(digest.as_bytes(), algorithm.output_len())
            .and_then(|bytes| digest::Digest::import_less_safe(&bytes, algorithm).ok())
            .ok_or_else(|| VerifyError::Unsupported(digest.alg()))?;
        self.point.verify_digest_sig(&imported, signature).map_err(|_| VerifyError::Invalid)?;
        Ok(SignatureForm::Standard)
    }
}

/// The number that a digest stands for, in `len` bytes: the leftmost ones of a longer digest, zeroes before a shorter one.
///
/// `len` is the order's length for P-256 and P-384; for P-521, whose order is longer than any digest, it is that of the longest.
fn leftmost(digest: &[u8], len: usize) -> Option<Vec<u8>> {
    let kept = digest.get(..digest.len().min(len))?;
    let mut number = vec![0; len.checked_sub(kept.len())?];
    number.extend_from_slice(kept);
    Some(number)
}
