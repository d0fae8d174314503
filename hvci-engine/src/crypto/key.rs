//! Public keys (RFC 5280 §4.1.2.7, RFC 3279 §2.3, RFC 5480), and verifying a signature over a ready digest.
//!
//! Trusts nothing: a key is checked for its form before it is used. Algorithm parameters of rsaEncryption are not looked at (old
//! certificates leave the NULL out). Refuses EC parameters that are no named curve (CVE-2020-0601) and RSASSA-PSS keys with parameters.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ecdsa::EcdsaKey, rsa::RsaKey};
use crate::{
    bytes::der::{self, Tlv, tag},
    digest::{Digest, DigestAlg},
    oid,
};

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
    /// PKCS#1 v1.5 padding around the bare hash, without DigestInfo. Only MD5 and SHA-1: timestamping services of that age made them.
    BareHash,
}

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), or a key that is none.
    #[error("public key is malformed")]
    Malformed,
    /// An algorithm, curve or key size that is not supported.
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
pub struct PublicKey(Material);

#[derive(Debug)]
enum Material {
    Rsa(RsaKey),
    /// id-RSASSA-PSS: a key that PKCS#1 v1.5 signatures must not be accepted of (RFC 4055 §1.2).
    RsaPssOnly(RsaKey),
    Ecdsa(EcdsaKey),
}

impl PublicKey {
    /// From the DER of a SubjectPublicKeyInfo.
    ///
    /// RSA with a modulus of 512 to 8,192 bits and an odd exponent between 3 and 2³³; ECDSA on P-256, P-384 and P-521.
    ///
    /// # Errors
    /// Malformed, or of an algorithm that is not supported.
    pub fn from_spki(spki: &[u8]) -> Result<Self, KeyError> {
        let Spki { algorithm, parameters, key } = Spki::parse(spki).map_err(|_| KeyError::Malformed)?;
        match algorithm {
            oid::RSA_ENCRYPTION => RsaKey::parse(key).map(Material::Rsa),
            oid::RSA_PSS if parameters.is_none() => RsaKey::parse(key).map(Material::RsaPssOnly),
            oid::RSA_PSS => Err(KeyError::Unsupported("rsaPSS with parameters".to_owned())),
            oid::EC_PUBLIC_KEY => {
                let curve = parameters.ok_or(KeyError::Malformed)?;
                let curve = curve.oid().map_err(|_| KeyError::Unsupported("explicit EC parameters".to_owned()))?;
                EcdsaKey::parse(&curve, key).map(Material::Ecdsa)
            }
            other => Err(KeyError::Unsupported(oid::name(&other).map_or_else(|| other.to_string(), str::to_owned))),
        }
        .map(Self)
    }

    /// What kind of key.
    pub fn kind(&self) -> KeyKind {
        match &self.0 {
            Material::Rsa(key) | Material::RsaPssOnly(key) => KeyKind::Rsa(key.bits()),
            Material::Ecdsa(key) => key.kind(),
        }
    }

    /// That the key made `signature` of `digest`.
    ///
    /// An RSA signature is exactly as long as the modulus and, as a number, below it. An ECDSA signature is DER; a digest that is longer than
    /// the curve's order counts by its leftmost bits (FIPS 186-5 §6.4.2).
    ///
    /// # Errors
    /// It did not, or that cannot be told.
    pub fn verify(&self, scheme: Scheme, digest: &Digest, signature: &[u8]) -> Result<SignatureForm, VerifyError> {
        match (&self.0, scheme) {
            (Material::Rsa(key), Scheme::Pkcs1) => key.verify_pkcs1(digest, signature),
            (Material::Rsa(key) | Material::RsaPssOnly(key), Scheme::Pss) => key.verify_pss(digest, signature),
            (Material::Ecdsa(key), Scheme::Ecdsa) => key.verify(digest, signature),
            _ => Err(VerifyError::SchemeMismatch),
        }
    }
}

/// SubjectPublicKeyInfo.
struct Spki<'a> {
    algorithm: ::der::oid::ObjectIdentifier,
    parameters: Option<Tlv<'a>>,
    key: &'a [u8],
}

impl<'a> Spki<'a> {
    fn parse(spki: &'a [u8]) -> der::Result<Self> {
        let mut fields = Tlv::parse_exact(spki, 0)?.expect(tag::SEQUENCE)?.reader()?;
        let mut algorithm = fields.expect(tag::SEQUENCE)?.reader()?;
        let key = fields.expect(tag::BIT_STRING)?.bit_octets()?;
        fields.finish()?;
        let oid = algorithm.expect(tag::OID)?.oid()?;
        let parameters = if algorithm.is_empty() { None } else { Some(algorithm.next()?) };
        algorithm.finish()?;
        Ok(Self { algorithm: oid, parameters, key })
    }
}
