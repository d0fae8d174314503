//! The RSA public operation s^65537 mod n (RFC 8017 §5.2.2) with AVX-512 IFMA: numbers in limbs of 52 bits, eight to a vector, multiplied after
//! Montgomery with results below 2n (Gueron and Krasnov, "Software implementation of modular exponentiation, using advanced vector
//! instructions architectures", 2012). Only public values pass: nothing takes constant time.
//!
//! 18 products: s into Montgomery form, sixteen squarings, and one by the plain s, which leaves the form by itself.

// UNSAFETY: vector loads and stores through pointers, and calls of functions that need the processor to have the instructions.
#![expect(unsafe_code, reason = "vector instructions")]

use core::arch::x86_64::*;

use rsa::BigUint;

/// `8 * V` limbs, least significant first, each below 2⁵² between products.
type Limbs<const V: usize> = [[u64; 8]; V];

const LIMB: u32 = 52;
const MASK: u64 = (1 << LIMB) - 1;
/// Two limbs are thirteen bytes.
const PAIR: usize = 13;

/// A modulus of one of the lengths that keys mostly have, prepared. That it exists proves that the processor has the instructions.
#[derive(Debug)]
pub(in crate::crypto) enum IfmaModulus {
    Bits2048(Box<Modulus<5>>),
    Bits3072(Box<Modulus<8>>),
    Bits4096(Box<Modulus<10>>),
}

impl IfmaModulus {
    /// From an odd modulus, big endian. `None` without the instructions, or with another length than 2,048, 3,072 and 4,096 bits.
    pub(in crate::crypto) fn new(modulus: &[u8]) -> Option<Self> {
        let detected = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512ifma");
        if !detected || modulus.first()?.leading_zeros() > 0 {
            return None;
        }
        match modulus.len() {
            256 => Some(Self::Bits2048(Box::new(Modulus::new(modulus)))),
            384 => Some(Self::Bits3072(Box::new(Modulus::new(modulus)))),
            512 => Some(Self::Bits4096(Box::new(Modulus::new(modulus)))),
            _ => None,
        }
    }

    /// `base`^65537 modulo the modulus, both big endian and as long as the modulus. `base` is below the modulus.
    pub(in crate::crypto) fn power_65537(&self, base: &[u8]) -> Vec<u8> {
        // SAFETY: `self` is made only by `new`, so the processor has `avx512f` and `avx512ifma`.
        unsafe {
            match self {
                Self::Bits2048(modulus) => modulus.power_65537(base),
                Self::Bits3072(modulus) => modulus.power_65537(base),
                Self::Bits4096(modulus) => modulus.power_65537(base),
            }
        }
    }
}

/// Room for the modulus and at least two bits more: R = 2^(416·V) is above 4n, so products of numbers below 2n are below 2n.
#[derive(Debug)]
pub(in crate::crypto) struct Modulus<const V: usize> {
    n: Limbs<V>,
    /// −n⁻¹ mod 2⁵².
    negative_inverse: u64,
    /// R² mod n.
    r_squared: Limbs<V>,
}

impl<const V: usize> Modulus<V> {
    fn new(modulus: &[u8]) -> Self {
        let n = limbs(modulus);
        let r_squared = (BigUint::from(1_u32) << (2 * 8 * V * 52)) % BigUint::from_bytes_be(modulus);
        // Newton's iteration doubles the number of right bits; n is its own inverse modulo 8
        let low = n[0][0];
        let inverse = (0..5).fold(low, |x, _| x.wrapping_mul(2_u64.wrapping_sub(low.wrapping_mul(x))));
        Self { n, negative_inverse: inverse.wrapping_neg() & MASK, r_squared: limbs(&r_squared.to_bytes_be()) }
    }

    #[target_feature(enable = "avx512f,avx512ifma")]
    fn power_65537(&self, base: &[u8]) -> Vec<u8> {
        let base_limbs = limbs(base);
        let mut power = self.product(&base_limbs, &self.r_squared);
        for _ in 0..16 {
            power = self.product(&power, &power);
        }
        power = self.product(&power, &base_limbs);
        self.reduce(&mut power);
        bytes(&power, base.len())
    }

    /// a·b/R modulo n, below 2n if both are. Each step adds a·digit and the multiple of n that makes the lowest limb nought, then drops it.
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn product(&self, a: &Limbs<V>, b: &Limbs<V>) -> Limbs<V> {
        let zero = _mm512_setzero_si512();
        let (mut sum, mut va, mut vn) = ([zero; V], [zero; V], [zero; V]);
        for v in 0..V {
            va[v] = load(&a[v]);
            vn[v] = load(&self.n[v]);
        }
        // the lowest limb is kept here, because the next multiple waits for it; that of `sum` means nothing
        let mut low = 0_u64;
        for &digit in b.as_flattened() {
            let column = u128::from(low) + u128::from(a[0][0]) * u128::from(digit);
            let multiple = lower(column).wrapping_mul(self.negative_inverse) & MASK;
            let column = column + u128::from(self.n[0][0]) * u128::from(multiple);
            let (vd, vm) = (_mm512_set1_epi64(digit.cast_signed()), _mm512_set1_epi64(multiple.cast_signed()));
            for v in 0..V {
                sum[v] = _mm512_madd52lo_epu64(sum[v], va[v], vd);
                sum[v] = _mm512_madd52lo_epu64(sum[v], vn[v], vm);
            }
            for v in 0..V {
                sum[v] = _mm512_alignr_epi64::<1>(if v + 1 < V { sum[v + 1] } else { zero }, sum[v]);
            }
            low = lower(column >> LIMB) + _mm_cvtsi128_si64(_mm512_castsi512_si128(sum[0])).cast_unsigned();
            for v in 0..V {
                sum[v] = _mm512_madd52hi_epu64(sum[v], va[v], vd);
                sum[v] = _mm512_madd52hi_epu64(sum[v], vn[v], vm);
            }
        }
        sum[0] = _mm512_mask_set1_epi64(sum[0], 1, low.cast_signed());
        carry(sum)
    }

    /// Takes n off once if the number is not below it.
    fn reduce(&self, number: &mut Limbs<V>) {
        let n = self.n.as_flattened();
        if number.as_flattened().iter().rev().lt(n.iter().rev()) {
            return;
        }
        let mut borrow = 0;
        for (limb, n) in number.as_flattened_mut().iter_mut().zip(n) {
            let difference = limb.wrapping_sub(*n).wrapping_sub(borrow);
            borrow = difference >> 63;
            *limb = difference & MASK;
        }
    }
}

/// Brings every limb below 2⁵².
#[inline]
#[target_feature(enable = "avx512f")]
fn carry<const V: usize>(mut sum: [__m512i; V]) -> Limbs<V> {
    let (mask, one) = (_mm512_set1_epi64(MASK.cast_signed()), _mm512_set1_epi64(1));
    let mut below = _mm512_setzero_si512();
    let (mut over, mut full) = (0_u128, 0_u128);
    for (v, limbs) in sum.iter_mut().enumerate() {
        let high = _mm512_srli_epi64::<LIMB>(*limbs);
        *limbs = _mm512_add_epi64(_mm512_and_si512(*limbs, mask), _mm512_alignr_epi64::<7>(high, below));
        below = high;
        over |= u128::from(_mm512_cmpgt_epu64_mask(*limbs, mask)) << (8 * v);
        full |= u128::from(_mm512_cmpeq_epi64_mask(*limbs, mask)) << (8 * v);
    }
    // what is left to carry is one a limb; it runs on through limbs that are full, like a carry through the bits of this addition
    let carried = ((over << 1) + full) ^ full;
    let mut out = [[0; 8]; V];
    for v in 0..V {
        let lanes = (carried >> (8 * v)).to_le_bytes()[0];
        store(_mm512_and_si512(_mm512_mask_add_epi64(sum[v], lanes, sum[v], one), mask), &mut out[v]);
    }
    out
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(limbs: &[u64; 8]) -> __m512i {
    // SAFETY: reads the 64 bytes that `limbs` borrows; this load needs no alignment.
    unsafe { _mm512_loadu_si512(limbs.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(vector: __m512i, limbs: &mut [u64; 8]) {
    // SAFETY: writes the 64 bytes that `limbs` borrows; this store needs no alignment.
    unsafe { _mm512_storeu_si512(limbs.as_mut_ptr().cast(), vector) }
}

/// The number that `big_endian` bytes are; there is room for it.
fn limbs<const V: usize>(big_endian: &[u8]) -> Limbs<V> {
    let mut limbs = [[0; 8]; V];
    for (pair, bytes) in limbs.as_flattened_mut().as_chunks_mut::<2>().0.iter_mut().zip(big_endian.rchunks(PAIR)) {
        let number = bytes.iter().fold(0_u128, |n, b| n << 8 | u128::from(*b));
        *pair = [lower(number) & MASK, lower(number >> LIMB)];
    }
    limbs
}

/// The lowest `len` bytes of a number, big endian.
fn bytes<const V: usize>(limbs: &Limbs<V>, len: usize) -> Vec<u8> {
    let mut big_endian = vec![0; len];
    for (bytes, [low, high]) in big_endian.rchunks_mut(PAIR).zip(limbs.as_flattened().as_chunks().0) {
        let number = (u128::from(*low) | u128::from(*high) << LIMB).to_be_bytes();
        let len = bytes.len();
        bytes.copy_from_slice(&number[16 - len..]);
    }
    big_endian
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

    /// Compares with the `rsa` crate's arithmetic. Says whether there is anything to compare.
    fn check(n: &BigUint, bases: impl IntoIterator<Item = BigUint>) -> bool {
        let len = n.to_bytes_be().len();
        let Some(modulus) = IfmaModulus::new(&n.to_bytes_be()) else { return false };
        for base in bases {
            let expected = base.modpow(&BigUint::from(65_537_u32), n);
            assert_eq!(BigUint::from_bytes_be(&modulus.power_65537(&padded(&base, len))), expected, "{base} modulo {n}");
        }
        true
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
                bases.extend([n >> 1, (n >> 1) + &one, (&one << (52 * 5)) - &one]);
                if !check(n, bases) {
                    return eprintln!("skipped: this processor does not have the instructions");
                }
            }
        }
    }

    #[test]
    fn other_lengths_are_left_to_others() {
        for len in [128, 255, 257, 511, 1024] {
            assert!(IfmaModulus::new(&vec![0xFF; len]).is_none());
        }
        assert!(IfmaModulus::new(&[&[0x7F], &[0xFF; 255][..]].concat()).is_none());
        assert!(IfmaModulus::new(&[]).is_none());
    }

    #[test]
    fn limbs_and_bytes_are_the_same_number() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let number = padded(&random(&mut rng, 512), 512);
        assert_eq!(bytes(&limbs::<10>(&number), 512), number);
        assert_eq!(limbs::<5>(&[1, 0, 0, 0, 0, 0, 0, 0])[0][..2], [0, 16]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_modulus_and_base(
            words in proptest::collection::vec(prop_oneof![Just(0_u64), Just(u64::MAX), any::<u64>()], 32),
            base in proptest::collection::vec(prop_oneof![Just(0_u64), Just(u64::MAX), any::<u64>()], 32),
        ) {
            let number = |words: &[u64]| BigUint::from_bytes_be(words.iter().map(|w| w.to_be_bytes()).collect::<Vec<_>>().as_flattened());
            let one = BigUint::from(1_u32);
            let n = number(&words) | (&one << 2047) | &one;
            let base = number(&base) % &n;
            check(&n, [base]);
        }
    }
}
