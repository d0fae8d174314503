//! Vectors that hold one word of each lane, and how lanes become such vectors.

// UNSAFETY: vector loads and stores through pointers.
#![expect(unsafe_code, reason = "vector instructions")]

use core::arch::x86_64::*;

/// Proof that the processor has AVX-512 F and BW.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")).then_some(Self(()))
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_bytes(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: reads the 64 bytes that `bytes` borrows; this load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load32(words: &[u32; 16]) -> __m512i {
    // SAFETY: reads the 64 bytes that `words` borrows; this load needs no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load64(words: &[u64; 8]) -> __m512i {
    // SAFETY: reads the 64 bytes that `words` borrows; this load needs no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store32(vector: __m512i) -> [u32; 16] {
    let mut words = [0_u32; 16];
    // SAFETY: writes the 64 bytes of `words`; this store needs no alignment.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) };
    words
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store64(vector: __m512i) -> [u64; 8] {
    let mut words = [0_u64; 8];
    // SAFETY: writes the 64 bytes of `words`; this store needs no alignment.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) };
    words
}

/// Row r, word w becomes row w, word r.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose32(r: &[__m512i; 16]) -> [__m512i; 16] {
    let mut out = *r;
    let mut quads = *r;
    for j in (0..16).step_by(4) {
        let (lo, hi) = (_mm512_unpacklo_epi32(r[j], r[j + 1]), _mm512_unpackhi_epi32(r[j], r[j + 1]));
        let (lo2, hi2) = (_mm512_unpacklo_epi32(r[j + 2], r[j + 3]), _mm512_unpackhi_epi32(r[j + 2], r[j + 3]));
        quads[j] = _mm512_unpacklo_epi64(lo, lo2);
        quads[j + 1] = _mm512_unpackhi_epi64(lo, lo2);
        quads[j + 2] = _mm512_unpacklo_epi64(hi, hi2);
        quads[j + 3] = _mm512_unpackhi_epi64(hi, hi2);
    }
    for c in 0..4 {
        [out[c], out[c + 4], out[c + 8], out[c + 12]] = transpose128([quads[c], quads[c + 4], quads[c + 8], quads[c + 12]]);
    }
    out
}

/// Row r, word w becomes row w, word r.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose64(r: &[__m512i; 8]) -> [__m512i; 8] {
    let mut out = *r;
    let mut pairs = *r;
    for j in (0..8).step_by(2) {
        pairs[j] = _mm512_unpacklo_epi64(r[j], r[j + 1]);
        pairs[j + 1] = _mm512_unpackhi_epi64(r[j], r[j + 1]);
    }
    for c in 0..2 {
        [out[c], out[c + 2], out[c + 4], out[c + 6]] = transpose128([pairs[c], pairs[c + 2], pairs[c + 4], pairs[c + 6]]);
    }
    out
}

/// Row r, quarter q becomes row q, quarter r.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose128([r0, r1, r2, r3]: [__m512i; 4]) -> [__m512i; 4] {
    let (even, even2) = (_mm512_shuffle_i32x4::<0x88>(r0, r1), _mm512_shuffle_i32x4::<0x88>(r2, r3));
    let (odd, odd2) = (_mm512_shuffle_i32x4::<0xDD>(r0, r1), _mm512_shuffle_i32x4::<0xDD>(r2, r3));
    [
        _mm512_shuffle_i32x4::<0x88>(even, even2),
        _mm512_shuffle_i32x4::<0x88>(odd, odd2),
        _mm512_shuffle_i32x4::<0xDD>(even, even2),
        _mm512_shuffle_i32x4::<0xDD>(odd, odd2),
    ]
}
