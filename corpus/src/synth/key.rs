//! Keys that are made from a seed, and the signatures they make (RFC 8017 §8.2, RFC 6979).
//!
//! Each key comes from its own stream, derived from the corpus seed and the key's name, so that it does not matter in which order or on
//! how many threads keys are made. They protect nothing.

use der::{Any, asn1::Null, oid::ObjectIdentifier};
use md5::Md5;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use rsa::{Pkcs1v15Sign, RsaPrivateKey, pkcs8::EncodePublicKey};
use sha1::{Digest as _, Sha1};
use sha2::{Sha256, Sha384, Sha512};
use sha3::{Sha3_256, Sha3_384, Sha3_512};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use super::{Error, Result, oid};
use hvci_engine::digest::DigestAlg;

/// What kind of key to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA with a modulus of so many bits.
    Rsa(usize),
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
}

/// A private key. `Debug` shows its kind only.
#[derive(Clone)]
pub enum Key {
    /// RSA, PKCS#1 v1.5.
    Rsa(Box<RsaPrivateKey>),
    /// ECDSA on P-256.
    P256(p256::ecdsa::SigningKey),
    /// ECDSA on P-384.
    P384(p384::ecdsa::SigningKey),
}

impl Key {
    /// The key called `name` of the corpus with this seed.
    ///
    /// # Errors
    /// RSA key generation fails for a length that makes no sense.
    pub fn derive(seed: u64, name: &str, kind: KeyKind) -> Result<Self> {
        let mut rng = stream(seed, name);
        Ok(match kind {
            KeyKind::Rsa(bits) => Self::Rsa(Box::new(RsaPrivateKey::new(&mut rng, bits)?)),
            KeyKind::P256 => Self::P256(p256::ecdsa::SigningKey::random(&mut rng)),
            KeyKind::P384 => Self::P384(p384::ecdsa::SigningKey::random(&mut rng)),
        })
    }

    /// Signs the digest of `message`.
    ///
    /// # Errors
    /// A modulus too short for the digest; a digest algorithm that nothing here is signed with.
    pub fn sign(&self, alg: DigestAlg, message: &[u8]) -> Result<Vec<u8>> {
        let digest = hash(alg, message);
        match self {
            Self::Rsa(key) => {
                let scheme = match alg {
                    DigestAlg::Md5 => Pkcs1v15Sign::new::<Md5>(),
                    DigestAlg::Sha1 => Pkcs1v15Sign::new::<Sha1>(),
                    DigestAlg::Sha384 => Pkcs1v15Sign::new::<Sha384>(),
                    DigestAlg::Sha512 => Pkcs1v15Sign::new::<Sha512>(),
                    DigestAlg::Sha3_256 => Pkcs1v15Sign::new::<Sha3_256>(),
                    DigestAlg::Sha3_384 => Pkcs1v15Sign::new::<Sha3_384>(),
                    DigestAlg::Sha3_512 => Pkcs1v15Sign::new::<Sha3_512>(),
                    _ => Pkcs1v15Sign::new::<Sha256>(),
                };
                Ok(key.sign(scheme, &digest)?)
            }
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign_prehash(&digest)?;
                Ok(signature.to_der().as_bytes().to_vec())
            }
            Self::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign_prehash(&digest)?;
                Ok(signature.to_der().as_bytes().to_vec())
            }
        }
    }

    /// Signs the digest of `message` without DigestInfo around it, as old VeriSign timestamp servers did.
    ///
    /// # Errors
    /// Not an RSA key.
    pub fn sign_bare(&self, alg: DigestAlg, message: &[u8]) -> Result<Vec<u8>> {
        match self {
            Self::Rsa(key) => Ok(key.sign(Pkcs1v15Sign::new_unprefixed(), &hash(alg, message))?),
            _ => Err(Error::NotApplicable("only RSA has signatures over a bare hash")),
        }
    }

    /// The public key.
    ///
    /// # Errors
    /// None that occurs for keys made here.
    pub fn public(&self) -> Result<SubjectPublicKeyInfoOwned> {
        let document = match self {
            Self::Rsa(key) => key.to_public_key().to_public_key_der()?,
            Self::P256(key) => key.verifying_key().to_public_key_der()?,
            Self::P384(key) => key.verifying_key().to_public_key_der()?,
        };
        Ok(document.decode_msg()?)
    }

    /// The identifier of the signatures this key makes over `alg`: `sha256WithRSA`, `ecdsaWithSHA384`, …
    ///
    /// # Errors
    /// None that occurs for the algorithms signed with here.
    pub fn signature_algorithm(&self, alg: DigestAlg) -> Result<AlgorithmIdentifierOwned> {
        let rsa = matches!(self, Self::Rsa(_));
        let oid = match (rsa, alg) {
            (true, DigestAlg::Md5) => oid::MD5_WITH_RSA,
            (true, DigestAlg::Sha1) => oid::SHA1_WITH_RSA,
            (true, DigestAlg::Sha384) => oid::SHA384_WITH_RSA,
            (true, DigestAlg::Sha512) => oid::SHA512_WITH_RSA,
            (true, DigestAlg::Sha3_256) => oid::RSA_WITH_SHA3_256,
            (true, DigestAlg::Sha3_384) => oid::RSA_WITH_SHA3_384,
            (true, DigestAlg::Sha3_512) => oid::RSA_WITH_SHA3_512,
            (true, _) => oid::SHA256_WITH_RSA,
            (false, DigestAlg::Sha1) => oid::ECDSA_WITH_SHA1,
            (false, DigestAlg::Sha384) => oid::ECDSA_WITH_SHA384,
            (false, DigestAlg::Sha512) => oid::ECDSA_WITH_SHA512,
            (false, DigestAlg::Sha3_256) => oid::ECDSA_WITH_SHA3_256,
            (false, DigestAlg::Sha3_384) => oid::ECDSA_WITH_SHA3_384,
            (false, DigestAlg::Sha3_512) => oid::ECDSA_WITH_SHA3_512,
            (false, _) => oid::ECDSA_WITH_SHA256,
        };
        algorithm(oid, rsa)
    }

    /// The identifier of a SignerInfo: `rsaEncryption`, as signtool writes, or the ECDSA one.
    ///
    /// # Errors
    /// None that occurs for the algorithms signed with here.
    pub fn signer_algorithm(&self, alg: DigestAlg) -> Result<AlgorithmIdentifierOwned> {
        match self {
            Self::Rsa(_) => algorithm(oid::RSA_ENCRYPTION, true),
            _ => self.signature_algorithm(alg),
        }
    }
}

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Rsa(_) => "Key(RSA)",
            Self::P256(_) => "Key(P-256)",
            Self::P384(_) => "Key(P-384)",
        })
    }
}

/// A stream of random bytes of its own for `name`.
pub(super) fn stream(seed: u64, name: &str) -> ChaCha20Rng {
    ChaCha20Rng::from_seed(Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize().into())
}

/// The digest of `message`: the maker's own way, so that a fault of the verifier's does not hide in both.
pub fn hash(alg: DigestAlg, message: &[u8]) -> Vec<u8> {
    match alg {
        DigestAlg::Md5 => Md5::digest(message).to_vec(),
        DigestAlg::Sha1 => Sha1::digest(message).to_vec(),
        DigestAlg::Sha384 => Sha384::digest(message).to_vec(),
        DigestAlg::Sha512 => Sha512::digest(message).to_vec(),
        DigestAlg::Sha3_256 => Sha3_256::digest(message).to_vec(),
        DigestAlg::Sha3_384 => Sha3_384::digest(message).to_vec(),
        DigestAlg::Sha3_512 => Sha3_512::digest(message).to_vec(),
        _ => Sha256::digest(message).to_vec(),
    }
}

/// Object identifier of a digest algorithm that [`hash`] knows.
pub fn digest_oid(alg: DigestAlg) -> ObjectIdentifier {
    match alg {
        DigestAlg::Md5 => oid::MD5,
        DigestAlg::Sha1 => oid::SHA1,
        DigestAlg::Sha384 => oid::SHA384,
        DigestAlg::Sha512 => oid::SHA512,
        DigestAlg::Sha3_256 => oid::SHA3_256,
        DigestAlg::Sha3_384 => oid::SHA3_384,
        DigestAlg::Sha3_512 => oid::SHA3_512,
        _ => oid::SHA256,
    }
}

/// AlgorithmIdentifier of a digest algorithm.
///
/// # Errors
/// None that occurs.
pub fn digest_algorithm(alg: DigestAlg) -> Result<AlgorithmIdentifierOwned> {
    algorithm(digest_oid(alg), true)
}

fn algorithm(oid: ObjectIdentifier, null: bool) -> Result<AlgorithmIdentifierOwned> {
    Ok(AlgorithmIdentifierOwned { oid, parameters: null.then(|| Any::encode_from(&Null)).transpose()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_seed_and_name_only() {
        for kind in [KeyKind::P256, KeyKind::P384, KeyKind::Rsa(1024)] {
            let public = |seed, name| Key::derive(seed, name, kind).unwrap().public().unwrap();
            assert_eq!(public(1, "a"), public(1, "a"));
            assert_ne!(public(1, "a"), public(2, "a"));
            assert_ne!(public(1, "a"), public(1, "b"));
        }
    }

    #[test]
    fn signing_twice_gives_the_same_bytes() {
        for kind in [KeyKind::P256, KeyKind::P384, KeyKind::Rsa(1024)] {
            let key = Key::derive(3, "k", kind).unwrap();
            for alg in [DigestAlg::Sha256, DigestAlg::Sha384, DigestAlg::Sha512] {
                assert_eq!(key.sign(alg, b"x").unwrap(), key.sign(alg, b"x").unwrap());
            }
        }
    }
}
