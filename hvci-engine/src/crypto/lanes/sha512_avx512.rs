//! SHA-384 and SHA-512 (FIPS 180-4 §6.4) of eight lanes, one in each word of AVX-512 vectors.

// UNSAFETY: calls of functions that need the processor to have the instructions.
#![expect(unsafe_code, reason = "vector instructions")]

use core::arch::x86_64::*;

use super::{
    Kernel,
    avx512::{Avx512, load_bytes, load64, store64, transpose64},
    sha2_constants::K512,
};

impl Kernel<[u64; 8], 128, 8> for Avx512 {
    fn compress(&mut self, states: &mut [[u64; 8]; 8], blocks: [&[[u8; 128]]; 8]) {
        // SAFETY: `self` is made only by `detect`, so the processor has `avx512f` and `avx512bw`.
        unsafe { compress(states, blocks) }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn compress(states: &mut [[u64; 8]; 8], blocks: [&[[u8; 128]]; 8]) {
    let mut lanes = [_mm512_setzero_si512(); 8];
    for (row, lane) in lanes.iter_mut().zip(states.iter()) {
        *row = load64(lane);
    }
    let mut state = transpose64(&lanes);
    for at in 0..blocks[0].len() {
        let mut w = words(blocks.map(|lane| &lane[at]));
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = state;
        for (pass, k) in K512.as_chunks::<16>().0.iter().enumerate() {
            // a round, then the word that the same round of the next pass takes
            macro_rules! rounds {
                ($($i:literal)+) => {$(
                    let kw = _mm512_add_epi64(_mm512_set1_epi64(k[$i].cast_signed()), w[$i]);
                    let s1 = xor3(_mm512_ror_epi64::<14>(e), _mm512_ror_epi64::<18>(e), _mm512_ror_epi64::<41>(e));
                    let ch = _mm512_ternarylogic_epi64::<0xCA>(e, f, g);
                    let t1 = _mm512_add_epi64(_mm512_add_epi64(_mm512_add_epi64(h, kw), ch), s1);
                    let s0 = xor3(_mm512_ror_epi64::<28>(a), _mm512_ror_epi64::<34>(a), _mm512_ror_epi64::<39>(a));
                    let t2 = _mm512_add_epi64(s0, _mm512_ternarylogic_epi64::<0xE8>(a, b, c));
                    [a, b, c, d, e, f, g, h] = [_mm512_add_epi64(t1, t2), a, b, c, _mm512_add_epi64(d, t1), e, f, g];
                    if pass < 4 {
                        let (w1, w14) = (w[($i + 1) % 16], w[($i + 14) % 16]);
                        let s0 = xor3(_mm512_ror_epi64::<1>(w1), _mm512_ror_epi64::<8>(w1), _mm512_srli_epi64::<7>(w1));
                        let s1 = xor3(_mm512_ror_epi64::<19>(w14), _mm512_ror_epi64::<61>(w14), _mm512_srli_epi64::<6>(w14));
                        w[$i] = _mm512_add_epi64(_mm512_add_epi64(w[$i], w[($i + 9) % 16]), _mm512_add_epi64(s0, s1));
                    }
                )+};
            }
            rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
        for (sum, word) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *sum = _mm512_add_epi64(*sum, word);
        }
    }
    for (lane, row) in states.iter_mut().zip(transpose64(&state)) {
        *lane = store64(row);
    }
}

/// The sixteen words of a block of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn words(blocks: [&[u8; 128]; 8]) -> [__m512i; 16] {
    let swap = _mm512_set4_epi32(0x0809_0A0B, 0x0C0D_0E0F, 0x0001_0203, 0x0405_0607);
    let mut halves = [[_mm512_setzero_si512(); 8]; 2];
    for (l, block) in blocks.iter().enumerate() {
        for (half, bytes) in halves.iter_mut().zip(block.as_chunks::<64>().0) {
            half[l] = _mm512_shuffle_epi8(load_bytes(bytes), swap);
        }
    }
    let mut words = [_mm512_setzero_si512(); 16];
    let (first, second) = words.split_at_mut(8);
    first.copy_from_slice(&transpose64(&halves[0]));
    second.copy_from_slice(&transpose64(&halves[1]));
    words
}

#[inline]
#[target_feature(enable = "avx512f")]
fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}
