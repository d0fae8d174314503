//! SHA-1 (FIPS 180-4 §6.1) of sixteen lanes, one in each word of AVX-512 vectors.

// UNSAFETY: calls of functions that need the processor to have the instructions.
#![expect(unsafe_code, reason = "vector instructions")]
#![expect(clippy::needless_range_loop, reason = "the same index goes through all lanes")]

use core::arch::x86_64::*;

use super::{
    Kernel,
    avx512::{Avx512, load_bytes, load32, store32, transpose32},
};

impl Kernel<[u32; 5], 64, 16> for Avx512 {
    fn compress(&mut self, states: &mut [[u32; 5]; 16], blocks: [&[[u8; 64]]; 16]) {
        // SAFETY: `self` is made only by `detect`, so the processor has `avx512f` and `avx512bw`.
        unsafe { compress(states, blocks) }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn compress(states: &mut [[u32; 5]; 16], blocks: [&[[u8; 64]]; 16]) {
    let swap = _mm512_set4_epi32(0x0C0D_0E0F, 0x0809_0A0B, 0x0405_0607, 0x0001_0203);
    let mut state = [_mm512_setzero_si512(); 5];
    for (i, word) in state.iter_mut().enumerate() {
        *word = load32(&states.map(|lane| lane[i]));
    }
    for at in 0..blocks[0].len() {
        let mut rows = [_mm512_setzero_si512(); 16];
        for l in 0..16 {
            rows[l] = _mm512_shuffle_epi8(load_bytes(&blocks[l][at]), swap);
        }
        let mut w = transpose32(&rows);
        let [mut a, mut b, mut c, mut d, mut e] = state;
        // twenty rounds: $f is the truth table of the function of b, c and d
        macro_rules! rounds {
            ($f:literal, $k:literal, $($t:literal)+) => {
                let k = _mm512_set1_epi32($k);
                $(
                    if $t >= 16 {
                        let three = _mm512_ternarylogic_epi32::<0x96>(w[($t + 13) % 16], w[($t + 8) % 16], w[($t + 2) % 16]);
                        w[$t % 16] = _mm512_rol_epi32::<1>(_mm512_xor_si512(three, w[$t % 16]));
                    }
                    let ekw = _mm512_add_epi32(_mm512_add_epi32(e, k), w[$t % 16]);
                    let f = _mm512_ternarylogic_epi32::<$f>(b, c, d);
                    let sum = _mm512_add_epi32(_mm512_add_epi32(f, ekw), _mm512_rol_epi32::<5>(a));
                    [a, b, c, d, e] = [sum, a, _mm512_rol_epi32::<30>(b), c, d];
                )+
            };
        }
        rounds!(0xCA, 0x5A82_7999, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
        rounds!(0x96, 0x6ED9_EBA1, 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39);
        rounds!(0xE8, -0x70E4_4324, 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59);
        rounds!(0x96, -0x359D_3E2A, 60 61 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79);
        for (sum, word) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = _mm512_add_epi32(*sum, word);
        }
    }
    for (i, word) in state.into_iter().enumerate() {
        for (lane, value) in states.iter_mut().zip(store32(word)) {
            lane[i] = value;
        }
    }
}
