//! RSA signatures (RFC 8017 §8): an own kernel for what is most frequent, aws-lc with keys parsed once for what it takes, the `rsa` crate for
//! the rest.
//!
//! The kernel takes PKCS#1 v1.5 of 2,048, 3,072 and 4,096 bits with exponent 65,537: with AVX-512 IFMA at three times the speed of aws-lc, with
//! AVX2 and FMA at 1.3, 1.4 and 1.6 times (Zen 3: 18, 35 and 55 µs). Without it:
//!
//! | | aws-lc | `rsa` |
//! |---|---|---|
//! | PKCS#1 v1.5, SHA-1/256/512 | 1,024 to 8,192 bits | 512 to 1,023 |
//! | PKCS#1 v1.5, SHA-384 | 2,048 to 8,192 | 512 to 2,047 |
//! | PSS, SHA-256/384/512 | 2,048 to 8,192 | 512 to 2,047 |
//! | MD5, SHA-224, SHA-3; PSS with SHA-1; bare hashes | | all |
//!
//! **Invariant:** before any path is taken, the signature is exactly as long as the modulus and below it (RFC 8017 §5.2.2, §8.2.2); the
//! encoded block is compared whole, never parsed. A DigestInfo without the NULL parameters is refused.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::sync::OnceLock;

use aws_lc_rs::{
    digest::{self, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512},
    signature::{
        ParsedPublicKey, RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
        RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA384, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
        RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    },
};
use md5::Md5;
use rsa::{BigUint, Pkcs1v15Sign, Pss, RsaPublicKey, traits::SignatureScheme};
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use sha3::{Sha3_256, Sha3_384, Sha3_512};

#[cfg(target_arch = "x86_64")]
use super::lanes::rsa::VectorModulus;
use super::{KeyError, SignatureForm, VerifyError};
use crate::{
    bytes::der::{self, Tlv, tag},
    digest::{Digest, DigestAlg},
};

const MIN_BITS: u32 = 512;
const MAX_BITS: u32 = 8192;
/// Both libraries stop here.
const MAX_EXPONENT: u64 = (1 << 33) - 1;

/// A modulus and an exponent.
#[derive(Debug, Default)]
pub(super) struct RsaKey {
    /// Big endian, without leading zeroes.
    modulus: Box<[u8]>,
    /// Big endian, without leading zeroes.
    exponent: Box<[u8]>,
    bits: u32,
    /// By [`Route`]; parsing costs a tenth of a verification, and a key is mostly used in one way.
    parsed: [OnceLock<Option<ParsedPublicKey>>; ROUTES.len()],
    /// `None` inside if the kernel does not take the key.
    #[cfg(target_arch = "x86_64")]
    vector: OnceLock<Option<VectorModulus>>,
}

/// What aws-lc takes: one parsed key for each.
struct Route {
    pss: bool,
    alg: DigestAlg,
    digest: &'static digest::Algorithm,
    parameters: &'static RsaParameters,
}

static ROUTES: [Route; 7] = [
    route(false, DigestAlg::Sha1, &SHA1_FOR_LEGACY_USE_ONLY, &RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY),
    route(false, DigestAlg::Sha256, &SHA256, &RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY),
    route(false, DigestAlg::Sha384, &SHA384, &RSA_PKCS1_2048_8192_SHA384),
    route(false, DigestAlg::Sha512, &SHA512, &RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY),
    route(true, DigestAlg::Sha256, &SHA256, &RSA_PSS_2048_8192_SHA256),
    route(true, DigestAlg::Sha384, &SHA384, &RSA_PSS_2048_8192_SHA384),
    route(true, DigestAlg::Sha512, &SHA512, &RSA_PSS_2048_8192_SHA512),
];

const fn route(pss: bool, alg: DigestAlg, digest: &'static digest::Algorithm, parameters: &'static RsaParameters) -> Route {
    Route { pss, alg, digest, parameters }
}

impl RsaKey {
    /// From the DER of an RSAPublicKey (RFC 8017 §A.1.1). Numbers with needless leading zeroes are taken; negative ones are not.
    pub(super) fn parse(key: &[u8]) -> Result<Self, KeyError> {
        let (modulus, exponent) = components(key).ok().flatten().ok_or(KeyError::Malformed)?;
        let bits = bit_length(modulus).ok_or(KeyError::Malformed)?;
        if !(MIN_BITS..=MAX_BITS).contains(&bits) {
            return Err(KeyError::Unsupported(format!("RSA of {bits} bits")));
        }
        let e = exponent.iter().try_fold(0_u64, |e, b| e.checked_mul(256)?.checked_add(u64::from(*b)));
        let Some(e) = e.filter(|e| *e <= MAX_EXPONENT) else {
            return Err(KeyError::Unsupported("RSA exponent above 33 bits".to_owned()));
        };
        let odd = |n: &[u8]| n.last().is_some_and(|b| b & 1 == 1);
        if e < 3 || !odd(exponent) || !odd(modulus) {
            return Err(KeyError::Malformed);
        }
        Ok(Self { modulus: modulus.into(), exponent: exponent.into(), bits, ..Default::default() })
    }

    pub(super) fn bits(&self) -> u32 {
        self.bits
    }

    /// That `signature` is of `digest` by RSASSA-PKCS1-v1_5.
    pub(super) fn verify_pkcs1(&self, digest: &Digest, signature: &[u8]) -> Result<SignatureForm, VerifyError> {
        self.check_range(signature)?;
        let standard = match digest.alg() {
            DigestAlg::Md5 => Pkcs1v15Sign::new::<Md5>(),
            DigestAlg::Sha1 => Pkcs1v15Sign::new::<Sha1>(),
            DigestAlg::Sha224 => Pkcs1v15Sign::new::<Sha224>(),
            DigestAlg::Sha256 => Pkcs1v15Sign::new::<Sha256>(),
            DigestAlg::Sha384 => Pkcs1v15Sign::new::<Sha384>(),
            DigestAlg::Sha512 => Pkcs1v15Sign::new::<Sha512>(),
            DigestAlg::Sha3_256 => Pkcs1v15Sign::new::<Sha3_256>(),
            DigestAlg::Sha3_384 => Pkcs1v15Sign::new::<Sha3_384>(),
            DigestAlg::Sha3_512 => Pkcs1v15Sign::new::<Sha3_512>(),
        };
        let bare = matches!(digest.alg(), DigestAlg::Md5 | DigestAlg::Sha1).then(Pkcs1v15Sign::new_unprefixed);
        if let Some(block) = self.recover(signature) {
            let is =
                |scheme: &Pkcs1v15Sign| encoded(&scheme.prefix, digest.as_bytes(), block.len()).is_some_and(|expected| block == expected);
            return match bare {
                _ if is(&standard) => Ok(SignatureForm::Standard),
                Some(bare) if is(&bare) => Ok(SignatureForm::BareHash),
                _ => Err(VerifyError::Invalid),
            };
        }
        let by_library = self.verify_by_aws_lc(false, digest, signature);
        match (by_library.unwrap_or_else(|| self.verify_by_rsa(standard, digest, signature)), bare) {
            (Ok(()), _) => Ok(SignatureForm::Standard),
            (Err(_), Some(bare)) => self.verify_by_rsa(bare, digest, signature).map(|()| SignatureForm::BareHash),
            (Err(e), None) => Err(e),
        }
    }

    /// That `signature` is of `digest` by RSASSA-PSS with MGF1 and a salt, both by the digest's algorithm.
    pub(super) fn verify_pss(&self, digest: &Digest, signature: &[u8]) -> Result<SignatureForm, VerifyError> {
        self.check_range(signature)?;
        self.verify_by_aws_lc(true, digest, signature)
            .unwrap_or_else(|| {
                // the encoded block is then one byte shorter than the modulus, and `rsa` does not look at the byte before it
                if self.bits % 8 == 1 {
                    return Err(VerifyError::Unsupported(digest.alg()));
                }
                let scheme = match digest.alg() {
                    DigestAlg::Md5 => Pss::new::<Md5>(),
                    DigestAlg::Sha1 => Pss::new::<Sha1>(),
                    DigestAlg::Sha224 => Pss::new::<Sha224>(),
                    DigestAlg::Sha256 => Pss::new::<Sha256>(),
                    DigestAlg::Sha384 => Pss::new::<Sha384>(),
                    DigestAlg::Sha512 => Pss::new::<Sha512>(),
                    DigestAlg::Sha3_256 => Pss::new::<Sha3_256>(),
                    DigestAlg::Sha3_384 => Pss::new::<Sha3_384>(),
                    DigestAlg::Sha3_512 => Pss::new::<Sha3_512>(),
                };
                self.verify_by_rsa(scheme, digest, signature)
            })
            .map(|()| SignatureForm::Standard)
    }

    /// That `signature` is a number below the modulus, as long as the modulus. `rsa` does not check it for PSS.
    fn check_range(&self, signature: &[u8]) -> Result<(), VerifyError> {
        if signature.len() == self.modulus.len() && signature < &*self.modulus { Ok(()) } else { Err(VerifyError::Invalid) }
    }

    /// The block that `signature` was made from, by the kernel; `None` if it does not take the key.
    #[cfg(target_arch = "x86_64")]
    fn recover(&self, signature: &[u8]) -> Option<Vec<u8>> {
        let prepare = || if *self.exponent == [1, 0, 1] { VectorModulus::new(&self.modulus) } else { None };
        Some(self.vector.get_or_init(prepare).as_ref()?.power_65537(signature))
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn recover(&self, _signature: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// The same key for the libraries alone.
    #[cfg(test)]
    pub(super) fn without_kernel(#[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut))] mut self) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            self.vector = OnceLock::from(None);
        }
        self
    }

    /// `None` if aws-lc does not take the digest with a key of this size.
    fn verify_by_aws_lc(&self, pss: bool, digest: &Digest, signature: &[u8]) -> Option<Result<(), VerifyError>> {
        let (route, parsed) = ROUTES.iter().zip(&self.parsed).find(|(route, _)| route.pss == pss && route.alg == digest.alg())?;
        if !(route.parameters.min_modulus_len()..=route.parameters.max_modulus_len()).contains(&self.bits) {
            return None;
        }
        let components = || RsaPublicKeyComponents { n: &self.modulus, e: &self.exponent }.to_parsed_public_key(route.parameters).ok();
        let key = parsed.get_or_init(components).as_ref()?;
        let digest = digest::Digest::import_less_safe(digest.as_bytes(), route.digest).ok()?;
        Some(key.verify_digest_sig(&digest, signature).map_err(|_| VerifyError::Invalid))
    }

    fn verify_by_rsa(&self, scheme: impl SignatureScheme, digest: &Digest, signature: &[u8]) -> Result<(), VerifyError> {
        let number = BigUint::from_bytes_be;
        RsaPublicKey::new_with_max_size(number(&self.modulus), number(&self.exponent), usize::MAX)
            .and_then(|key| key.verify(scheme, digest.as_bytes(), signature))
            .map_err(|_| VerifyError::Invalid)
    }
}

/// EMSA-PKCS1-v1_5 (RFC 8017 §9.2) with `prefix` as what DigestInfo has before the digest; `None` if that needs more than `len` bytes.
fn encoded(prefix: &[u8], digest: &[u8], len: usize) -> Option<Vec<u8>> {
    let fill = len.checked_sub(prefix.len())?.checked_sub(digest.len())?.checked_sub(3).filter(|fill| *fill >= 8)?;
    let mut block = vec![0xFF; len];
    block.splice(..2, [0, 1]);
    block.splice(fill.checked_add(2)?.., [0].iter().chain(prefix).chain(digest).copied());
    Some(block)
}

/// Modulus and exponent of an RSAPublicKey; `None` if one is negative or nought.
fn components(key: &[u8]) -> der::Result<Option<(&[u8], &[u8])>> {
    let mut fields = Tlv::parse_exact(key, 0)?.expect(tag::SEQUENCE)?.reader()?;
    let modulus = fields.next()?.integer()?;
    let exponent = fields.next()?.integer()?;
    fields.finish()?;
    Ok(positive(modulus).zip(positive(exponent)))
}

/// The octets of a positive INTEGER without leading zeroes.
fn positive(integer: &[u8]) -> Option<&[u8]> {
    if integer.first()? & 0x80 != 0 {
        return None;
    }
    integer.get(integer.iter().position(|b| *b != 0)?..)
}

/// Length in bits of a number without leading zeroes.
fn bit_length(number: &[u8]) -> Option<u32> {
    let spare = number.first()?.leading_zeros();
    u32::try_from(number.len()).ok()?.checked_mul(8)?.checked_sub(spare)
}
