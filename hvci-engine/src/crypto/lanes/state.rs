//! Chaining values of the SHA-1 and SHA-2 functions.

use super::sha2_constants::{IV224, IV256, IV384, IV512};
use crate::digest::{Digest, DigestAlg};

/// Chaining value of a compression function, which several algorithms may share.
pub(super) trait State: Copy {
    /// The initial value of `alg`; `None` if that is another function's.
    fn initial(alg: DigestAlg) -> Option<Self>;

    /// The value as the digest that it is after the last block: cut to its length.
    fn digest(&self, alg: DigestAlg) -> Option<Digest>;
}

impl State for [u32; 5] {
    fn initial(alg: DigestAlg) -> Option<Self> {
        (alg == DigestAlg::Sha1).then_some([0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0])
    }

    fn digest(&self, alg: DigestAlg) -> Option<Digest> {
        Digest::new(alg, self.map(u32::to_be_bytes).as_flattened())
    }
}

impl State for [u32; 8] {
    fn initial(alg: DigestAlg) -> Option<Self> {
        match alg {
            DigestAlg::Sha224 => Some(IV224),
            DigestAlg::Sha256 => Some(IV256),
            _ => None,
        }
    }

    fn digest(&self, alg: DigestAlg) -> Option<Digest> {
        Digest::new(alg, self.map(u32::to_be_bytes).as_flattened().get(..alg.len())?)
    }
}

impl State for [u64; 8] {
    fn initial(alg: DigestAlg) -> Option<Self> {
        match alg {
            DigestAlg::Sha384 => Some(IV384),
            DigestAlg::Sha512 => Some(IV512),
            _ => None,
        }
    }

    fn digest(&self, alg: DigestAlg) -> Option<Digest> {
        Digest::new(alg, self.map(u64::to_be_bytes).as_flattened().get(..alg.len())?)
    }
}
