//! Cryptography: digests and HMACs of the four banks' algorithms, KDFa and KDFe (Part 1, 11.4.10), AES-CFB, P-256, and the generator of random numbers.

use std::fmt;

use aws_lc_rs::{
    cipher::{AES_128, AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey},
    digest::{Digest as AwsDigest, SHA256},
    iv::FixedLength,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use hmac::{Hmac, Mac};
use p256::{
    AffinePoint, EncodedPoint, ProjectivePoint, PublicKey, SecretKey,
    ecdsa::{
        Signature, SigningKey, VerifyingKey,
        signature::hazmat::{PrehashSigner, PrehashVerifier},
    },
    elliptic_curve::sec1::{FromEncodedPoint, ToEncodedPoint},
};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::rc;
use super::wire::{Put, Reader, Result};

/// Bytes of a coordinate, and of a private key.
pub(super) const P256_BYTES: usize = 32;

/// Bytes that are wiped when they go, and that no `Debug` shows.
#[derive(Clone, Default, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub(super) struct Secret(pub(super) Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// An authorisation value: zeros at the end do not count.
    pub(super) fn auth(bytes: &[u8]) -> Self {
        let len = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
        Self(bytes.iter().copied().take(len).collect())
    }

    /// In a time that depends on the lengths only.
    pub(super) fn is(&self, other: &[u8]) -> bool {
        same(&self.0, other)
    }
}

/// Compares in a time that depends on the lengths only.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// A digest algorithm: a bank of PCRs each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    pub(super) const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// TPM_ALG_ID.
    pub(super) fn id(self) -> u16 {
        match self {
            Self::Sha1 => 0x04,
            Self::Sha256 => 0x0b,
            Self::Sha384 => 0x0c,
            Self::Sha512 => 0x0d,
        }
    }

    pub(super) fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.id() == id)
    }

    /// TPMI_ALG_HASH.
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self> {
        Self::from_id(r.u16()?).ok_or(rc::HASH)
    }

    /// Bytes of a digest.
    pub(super) fn size(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Bytes of a block: the longest key of an HMAC that is not hashed first.
    pub(super) fn block(self) -> usize {
        match self {
            Self::Sha1 | Self::Sha256 => 64,
            Self::Sha384 | Self::Sha512 => 128,
        }
    }

    /// Of all parts, one after the other.
    pub(super) fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        fn of<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut digest = D::new();
            for part in parts {
                digest.update(part);
            }
            digest.finalize().to_vec()
        }
        match self {
            Self::Sha1 => of::<Sha1>(parts),
            Self::Sha256 => of::<Sha256>(parts),
            Self::Sha384 => of::<Sha384>(parts),
            Self::Sha512 => of::<Sha512>(parts),
        }
    }

    pub(super) fn hmac(self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        macro_rules! of {
            ($digest:ty) => {{
                // keys of any length are taken
                let Ok(mut mac) = Hmac::<$digest>::new_from_slice(key) else { return Vec::new() };
                for part in parts {
                    mac.update(part);
                }
                mac.finalize().into_bytes().to_vec()
            }};
        }
        match self {
            Self::Sha1 => of!(Sha1),
            Self::Sha256 => of!(Sha256),
            Self::Sha384 => of!(Sha384),
            Self::Sha512 => of!(Sha512),
        }
    }

    /// Key derivation by HMAC in counter mode: `len` bytes.
    pub(super) fn kdfa(self, key: &[u8], label: &str, u: &[u8], v: &[u8], len: usize) -> Secret {
        let bits = u32::try_from(len * 8).unwrap_or(u32::MAX).to_be_bytes();
        self.blocks(len, |counter| self.hmac(key, &[counter, label.as_bytes(), &[0], u, v, &bits]))
    }

    /// Key derivation for a shared secret of ECDH: `len` bytes.
    pub(super) fn kdfe(self, z: &[u8], label: &str, u: &[u8], v: &[u8], len: usize) -> Secret {
        self.blocks(len, |counter| self.digest(&[counter, z, label.as_bytes(), &[0], u, v]))
    }

    fn blocks(self, len: usize, block: impl Fn(&[u8]) -> Vec<u8>) -> Secret {
        let mut out = Secret(Vec::with_capacity(len + self.size()));
        for counter in 1_u32.. {
            if out.0.len() >= len {
                break;
            }
            out.0.bytes(&Zeroizing::new(block(&counter.to_be_bytes())));
        }
        out.0.truncate(len);
        out
    }

    /// XOR obfuscation of a parameter (Part 1, 11.4.7.3).
    pub(super) fn obfuscate(self, key: &[u8], newer: &[u8], older: &[u8], data: &mut [u8]) {
        let mask = self.kdfa(key, "XOR", newer, older, data.len());
        for (byte, mask) in data.iter_mut().zip(&mask.0) {
            *byte ^= mask;
        }
    }
}

/// AES in CFB mode, in place. A key of an impossible size is an internal error.
pub(super) fn cfb(encrypt: bool, key: &[u8], iv: [u8; 16], data: &mut [u8]) -> Result<()> {
    let algorithm = match key.len() {
        16 => &AES_128,
        32 => &AES_256,
        _ => return Err(rc::FAILURE),
    };
    let key = UnboundCipherKey::new(algorithm, key).map_err(|_| rc::FAILURE)?;
    let iv = FixedLength::from(iv);
    if encrypt {
        let key = EncryptingKey::cfb128(key).map_err(|_| rc::FAILURE)?;
        key.less_safe_encrypt(data, EncryptionContext::Iv128(iv)).map(drop).map_err(|_| rc::FAILURE)
    } else {
        let key = DecryptingKey::cfb128(key).map_err(|_| rc::FAILURE)?;
        key.decrypt(data, DecryptionContext::Iv128(iv)).map(drop).map_err(|_| rc::FAILURE)
    }
}

/// A generator whose key is replaced by its first output at every request, so that earlier numbers cannot be told from a later state.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub(super) struct Drbg(pub(super) [u8; 32]);

impl fmt::Debug for Drbg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Drbg")
    }
}

impl Drbg {
    /// From all that is given.
    pub(super) fn seeded(parts: &[&[u8]]) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            digest.update(part);
        }
        Self(digest.finalize().into())
    }

    pub(super) fn fill(&mut self, out: &mut [u8]) {
        let mut rng = ChaCha20Rng::from_seed(self.0);
        rng.fill_bytes(&mut self.0);
        rng.fill_bytes(out);
    }

    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.fill(&mut out);
        out
    }

    pub(super) fn stir(&mut self, data: &[u8]) {
        *self = Self::seeded(&[&self.0, data]);
    }

    /// A private key.
    pub(super) fn p256(&mut self) -> Secret {
        loop {
            let candidate = Secret(self.bytes(P256_BYTES));
            // refused with a probability of 2^-32
            if SecretKey::from_slice(&candidate.0).is_ok() {
                return candidate;
            }
        }
    }
}

/// A point as the coordinates that were given, of whatever length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) x: Vec<u8>,
    pub(super) y: Vec<u8>,
}

impl Point {
    /// TPMS_ECC_POINT, with coordinates as long as those of the longest curve that the reference TPM has.
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self> {
        const MAX: usize = 80;
        Ok(Self { x: r.sized(MAX)?.to_vec(), y: r.sized(MAX)?.to_vec() })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.sized(&self.x);
        out.sized(&self.y);
    }

    pub(super) fn of_private(private: &Secret) -> Option<Self> {
        Some(Self::from_public(&SecretKey::from_slice(&private.0).ok()?.public_key()))
    }

    fn from_public(public: &PublicKey) -> Self {
        let point = public.to_encoded_point(false);
        Self { x: point.x().map_or_else(Vec::new, |x| x.to_vec()), y: point.y().map_or_else(Vec::new, |y| y.to_vec()) }
    }

    /// On the curve, and not at infinity.
    pub(super) fn public(&self) -> Option<PublicKey> {
        let coordinate = |bytes: &[u8]| {
            let skip = bytes.len().saturating_sub(P256_BYTES);
            let (zeros, rest) = bytes.split_at_checked(skip)?;
            let mut out = [0; P256_BYTES];
            out.get_mut(P256_BYTES - rest.len()..)?.copy_from_slice(rest);
            zeros.iter().all(|&b| b == 0).then_some(out)
        };
        let point = EncodedPoint::from_affine_coordinates(&coordinate(&self.x)?.into(), &coordinate(&self.y)?.into(), false);
        Option::from(AffinePoint::from_encoded_point(&point)).and_then(|point: AffinePoint| PublicKey::from_affine(point).ok())
    }
}

/// The x coordinate of what a private key and a point share.
pub(super) fn ecdh(private: &Secret, point: &PublicKey) -> Option<Secret> {
    let scalar = SecretKey::from_slice(&private.0).ok()?.to_nonzero_scalar();
    let shared = (ProjectivePoint::from(*point.as_affine()) * *scalar).to_affine();
    Some(Secret(shared.to_encoded_point(false).x()?.to_vec()))
}

/// A private key of P-256 that is ready for signing.
pub(super) struct Signer {
    fast: EcdsaKeyPair,
    private: Secret,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    pub(super) fn new(private: &Secret, public: &Point) -> Option<Self> {
        let public = [&[4][..], &public.x, &public.y].concat();
        let fast = EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_FIXED_SIGNING, &private.0, &public).ok()?;
        Some(Self { fast, private: private.clone() })
    }

    /// r and s. Only the nonces of signatures over SHA-256 are random, by the library's generator; for other digests RFC 6979 makes them.
    pub(super) fn sign(&self, hash: Hash, digest: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let signature = if hash == Hash::Sha256 {
            let digest = AwsDigest::import_less_safe(digest, &SHA256).ok()?;
            self.fast.sign_digest(&digest).ok()?.as_ref().to_vec()
        } else {
            let signature: Signature = SigningKey::from_slice(&self.private.0).ok()?.sign_prehash(&padded(digest)).ok()?;
            signature.to_bytes().to_vec()
        };
        let (r, s) = signature.split_at_checked(P256_BYTES)?;
        Some((r.to_vec(), s.to_vec()))
    }
}

/// A digest shorter than the half of the curve's order is refused by the library; zeros before it leave the number as it is.
fn padded(digest: &[u8]) -> Vec<u8> {
    let mut out = vec![0; P256_BYTES.saturating_sub(digest.len())];
    out.extend_from_slice(digest);
    out
}

/// Whether r and s are a signature over the digest.
pub(super) fn verify(public: &PublicKey, digest: &[u8], r: &[u8], s: &[u8]) -> bool {
    let number = |bytes: &[u8]| -> Option<[u8; P256_BYTES]> { padded(bytes).try_into().ok() };
    let (Some(r), Some(s)) = (number(r), number(s)) else { return false };
    Signature::from_scalars(r, s).is_ok_and(|signature| VerifyingKey::from(public).verify_prehash(&padded(digest), &signature).is_ok())
}

/// Entropy of the operating system.
pub(super) fn entropy() -> Option<[u8; 32]> {
    let mut seed = [0; 32];
    aws_lc_rs::rand::SecureRandom::fill(&SystemRandom::new(), &mut seed).ok()?;
    Some(seed)
}
