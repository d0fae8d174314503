//! With AVX-512 IFMA: eight limbs of 52 bits to a vector, which an instruction multiplies and adds.

// UNSAFETY: vector loads and stores through pointers, and calls of functions that need the processor to have the instructions.
#![expect(unsafe_code, reason = "vector instructions")]

use core::arch::x86_64::*;

use super::{from_limbs, lower, negative_inverse, r_squared, reduce, to_limbs};

const LIMB: usize = 52;
const SHIFT: u32 = 52;
const MASK: u64 = (1 << LIMB) - 1;

/// `8 * V` limbs, least significant first, each below 2⁵² between products.
type Limbs<const V: usize> = [[u64; 8]; V];

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
    /// From an odd modulus that there is room for. `None` if the processor does not have the instructions: that a value exists proves them.
    pub(super) fn new(modulus: &[u8]) -> Option<Self> {
        if !(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512ifma")) {
            return None;
        }
        let n: Limbs<V> = limbs(modulus);
        let r_squared = limbs(&r_squared(modulus, 8 * V * LIMB));
        Some(Self { n, negative_inverse: negative_inverse(n[0][0]) & MASK, r_squared })
    }

    pub(super) fn power_65537(&self, base: &[u8]) -> Vec<u8> {
        // SAFETY: `self` is made only by `new`, so the processor has `avx512f` and `avx512ifma`.
        unsafe { self.power(base) }
    }

    #[target_feature(enable = "avx512f,avx512ifma")]
    fn power(&self, base: &[u8]) -> Vec<u8> {
        let base_limbs = limbs(base);
        let mut power = self.product(&base_limbs, &self.r_squared);
        for _ in 0..16 {
            power = self.product(&power, &power);
        }
        power = self.product(&power, &base_limbs);
        reduce::<LIMB>(power.as_flattened_mut(), self.n.as_flattened());
        from_limbs::<LIMB>(power.as_flattened(), base.len())
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
}

/// Brings every limb below 2⁵².
#[inline]
#[target_feature(enable = "avx512f")]
fn carry<const V: usize>(mut sum: [__m512i; V]) -> Limbs<V> {
    let (mask, one) = (_mm512_set1_epi64(MASK.cast_signed()), _mm512_set1_epi64(1));
    let mut below = _mm512_setzero_si512();
    let (mut over, mut full) = (0_u128, 0_u128);
    for (v, limbs) in sum.iter_mut().enumerate() {
        let high = _mm512_srli_epi64::<SHIFT>(*limbs);
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

fn limbs<const V: usize>(big_endian: &[u8]) -> Limbs<V> {
    let mut limbs = [[0; 8]; V];
    to_limbs::<LIMB>(big_endian, limbs.as_flattened_mut());
    limbs
}
