//! The RSA public operation s^65537 mod n (RFC 8017 §5.2.2) by vector instructions: numbers in limbs that a vector holds four or eight of,
//! multiplied after Montgomery with results below 2n (Gueron and Krasnov, "Software implementation of modular exponentiation, using advanced
//! vector instructions architectures", 2012). Only public values pass: nothing takes constant time.
//!
//! 18 products: s into Montgomery form, sixteen squarings, and one by the plain s, which leaves the form by itself.
//!
//! [`ifma`] has 52-bit multiplication in AVX-512, [`fma`] makes one of 51 bits from the floating-point unit of AVX2.

mod fma;
mod ifma;

use rsa::BigUint;

/// A modulus of one of the lengths that keys mostly have, prepared for a kernel that this processor has.
#[derive(Debug)]
pub(in crate::crypto) enum VectorModulus {
    Ifma2048(Box<ifma::Modulus<5>>),
    Ifma3072(Box<ifma::Modulus<8>>),
    Ifma4096(Box<ifma::Modulus<10>>),
    Fma2048(Box<fma::Modulus<11>>),
    Fma3072(Box<fma::Modulus<16>>),
    Fma4096(Box<fma::Modulus<21>>),
}

impl VectorModulus {
    /// From an odd modulus, big endian. `None` without the instructions, or with another length than 2,048, 3,072 and 4,096 bits.
    pub(in crate::crypto) fn new(modulus: &[u8]) -> Option<Self> {
        if modulus.first()?.leading_zeros() > 0 {
            return None;
        }
        Self::by_ifma(modulus).or_else(|| Self::by_fma(modulus))
    }

    fn by_ifma(modulus: &[u8]) -> Option<Self> {
        match modulus.len() {
            256 => ifma::Modulus::new(modulus).map(Box::new).map(Self::Ifma2048),
            384 => ifma::Modulus::new(modulus).map(Box::new).map(Self::Ifma3072),
            512 => ifma::Modulus::new(modulus).map(Box::new).map(Self::Ifma4096),
            _ => None,
        }
    }

    fn by_fma(modulus: &[u8]) -> Option<Self> {
        match modulus.len() {
            256 => fma::Modulus::new(modulus).map(Box::new).map(Self::Fma2048),
            384 => fma::Modulus::new(modulus).map(Box::new).map(Self::Fma3072),
            512 => fma::Modulus::new(modulus).map(Box::new).map(Self::Fma4096),
            _ => None,
        }
    }

    /// `base`^65537 modulo the modulus, both big endian and as long as the modulus. `base` is below the modulus.
    pub(in crate::crypto) fn power_65537(&self, base: &[u8]) -> Vec<u8> {
        match self {
            Self::Ifma2048(modulus) => modulus.power_65537(base),
            Self::Ifma3072(modulus) => modulus.power_65537(base),
            Self::Ifma4096(modulus) => modulus.power_65537(base),
            Self::Fma2048(modulus) => modulus.power_65537(base),
            Self::Fma3072(modulus) => modulus.power_65537(base),
            Self::Fma4096(modulus) => modulus.power_65537(base),
        }
    }
}

/// −n⁻¹ mod 2⁶⁴ from the lowest word of an odd n.
fn negative_inverse(low: u64) -> u64 {
    // Newton's iteration doubles the number of right bits; n is its own inverse modulo 8
    (0..5).fold(low, |x, _| x.wrapping_mul(2_u64.wrapping_sub(low.wrapping_mul(x)))).wrapping_neg()
}

/// 2^(2 · `bits`) mod the modulus, both big endian.
fn r_squared(modulus: &[u8], bits: usize) -> Vec<u8> {
    ((BigUint::from(1_u32) << (2 * bits)) % BigUint::from_bytes_be(modulus)).to_bytes_be()
}

/// The number that `big_endian` bytes are, in limbs of `LIMB` bits; there is room for it.
fn to_limbs<const LIMB: usize>(big_endian: &[u8], limbs: &mut [u64]) {
    let (first, words) = big_endian.as_rchunks();
    let first = first.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    let mut words = words.iter().rev().map(|word| u64::from_be_bytes(*word)).chain([first]);
    let (mut held, mut bits) = (0_u128, 0);
    for limb in limbs {
        if bits < LIMB {
            held |= u128::from(words.next().unwrap_or(0)) << bits;
            bits += 64;
        }
        *limb = lower(held) & ((1 << LIMB) - 1);
        held >>= LIMB;
        bits -= LIMB;
    }
}

/// The lowest `len` bytes, big endian, of a number in limbs of `LIMB` bits; a multiple of eight.
fn from_limbs<const LIMB: usize>(limbs: &[u64], len: usize) -> Vec<u8> {
    let mut big_endian = vec![0; len];
    let mut limbs = limbs.iter();
    let (mut held, mut bits) = (0_u128, 0);
    for word in big_endian.as_rchunks_mut::<8>().1.iter_mut().rev() {
        while bits < 64 {
            held |= u128::from(limbs.next().copied().unwrap_or(0)) << bits;
            bits += LIMB;
        }
        *word = lower(held).to_be_bytes();
        held >>= 64;
        bits -= 64;
    }
    big_endian
}

/// Takes `n` off once if the number is not below it; limbs of `LIMB` bits.
fn reduce<const LIMB: usize>(number: &mut [u64], n: &[u64]) {
    if number.iter().rev().lt(n.iter().rev()) {
        return;
    }
    let mut borrow = 0;
    for (limb, n) in number.iter_mut().zip(n) {
        let difference = limb.wrapping_sub(*n).wrapping_sub(borrow);
        borrow = difference >> 63;
        *limb = difference & ((1 << LIMB) - 1);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn lower(number: u128) -> u64 {
    number as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand_chacha::{
        ChaCha8Rng,
        rand_core::{RngCore, SeedableRng},
    };

    use super::*;

    fn padded(number: &BigUint, len: usize) -> Vec<u8> {
        let bytes = number.to_bytes_be();
        [&vec![0; len - bytes.len()], &bytes[..]].concat()
    }

    /// Compares each kernel that this processor has with the `rsa` crate's arithmetic. Says how many there are.
    fn check(n: &BigUint, bases: impl IntoIterator<Item = BigUint>) -> usize {
        let modulus = n.to_bytes_be();
        let kernels = [VectorModulus::by_ifma(&modulus), VectorModulus::by_fma(&modulus)];
        for base in bases {
            let expected = base.modpow(&BigUint::from(65_537_u32), n);
            for kernel in kernels.iter().flatten() {
                assert_eq!(
                    BigUint::from_bytes_be(&kernel.power_65537(&padded(&base, modulus.len()))),
                    expected,
                    "{base} modulo {n}: {kernel:?}"
                );
            }
        }
        kernels.iter().flatten().count()
    }

    fn random(rng: &mut ChaCha8Rng, len: usize) -> BigUint {
        let mut bytes = vec![0; len];
        rng.fill_bytes(&mut bytes);
        BigUint::from_bytes_be(&bytes)
    }

    #[test]
    fn powers_are_those_of_another_library() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let one = BigUint::from(1_u32);
        for len in [256, 384, 512] {
            let bits = 8 * len;
            let top = &one << (bits - 1);
            let random_odd = (0..4).map(|_| random(&mut rng, len) | &top | &one).collect::<Vec<_>>();
            // all ones, one above a power of two, long runs of ones and noughts: what carries run through
            let edges = [(&one << bits) - &one, &top + &one, (&top | (&top >> 1)) + &one, (&one << bits) - (&one << (bits / 2)) + &one];
            for n in random_odd.iter().chain(&edges) {
                let mut bases: Vec<_> = (0..6).map(|_| random(&mut rng, len) % n).collect();
                bases.extend((0_u32..3).map(BigUint::from));
                bases.extend((1_u32..4).map(|i| n - BigUint::from(i)));
                bases.extend((1..len).step_by(29).map(|i| (&one << (8 * i)) % n));
                bases.extend((1..len).step_by(31).map(|i| ((&one << (8 * i)) - &one) % n));
                bases.extend([51, 52].map(|limb| (&one << (limb * 5)) - &one));
                bases.extend([n >> 1, (n >> 1) + &one]);
                match check(n, bases) {
                    0 => return eprintln!("skipped: this processor has the instructions of no kernel"),
                    1 if len == 256 => eprintln!("one kernel was not tried: this processor does not have its instructions"),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn other_lengths_are_left_to_others() {
        for len in [128, 255, 257, 511, 1024] {
            assert!(VectorModulus::new(&vec![0xFF; len]).is_none());
        }
        assert!(VectorModulus::new(&[&[0x7F], &[0xFF; 255][..]].concat()).is_none());
        assert!(VectorModulus::new(&[]).is_none());
    }

    #[test]
    fn limbs_and_bytes_are_the_same_number() {
        fn check<const LIMB: usize>(number: &[u8]) {
            let mut limbs = vec![0; (8 * number.len()).div_ceil(LIMB) + 2];
            to_limbs::<LIMB>(number, &mut limbs);
            assert!(limbs.iter().all(|limb| limb >> LIMB == 0));
            let sum = limbs.iter().rev().fold(BigUint::from(0_u32), |sum, limb| (sum << LIMB) + BigUint::from(*limb));
            assert_eq!(sum, BigUint::from_bytes_be(number));
            assert_eq!(from_limbs::<LIMB>(&limbs, number.len()), number);
            assert_eq!(from_limbs::<LIMB>(&limbs[..3], 16)[..], number[number.len() - 16..][..]);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for len in [256, 384, 512] {
            let number = padded(&random(&mut rng, len), len);
            check::<51>(&number);
            check::<52>(&number);
        }
    }

    #[test]
    fn the_inverse_is_one() {
        for n in [1_u64, 3, 5, 7, 0xFFFF_FFFF_FFFF_FFFF, 0x1234_5678_9ABC_DEF1] {
            assert_eq!(n.wrapping_mul(negative_inverse(n)), u64::MAX);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_modulus_and_base(
            len in prop_oneof![Just(32_usize), Just(48), Just(64)],
            words in proptest::collection::vec(prop_oneof![Just(0_u64), Just(u64::MAX), any::<u64>()], 64),
            base in proptest::collection::vec(prop_oneof![Just(0_u64), Just(u64::MAX), any::<u64>()], 64),
        ) {
            let number = |words: &[u64]| BigUint::from_bytes_be(words.iter().map(|w| w.to_be_bytes()).collect::<Vec<_>>().as_flattened());
            let one = BigUint::from(1_u32);
            let n = number(&words[..len]) | (&one << (64 * len - 1)) | &one;
            let base = number(&base[..len]) % &n;
            check(&n, [base]);
        }
    }
}
