//! SHA-256 with the SHA extensions: a round's latency is hidden behind the rounds of other lanes (Intel, "Intel SHA Extensions", 2013).

// UNSAFETY: vector loads through pointers, and calls of functions that need the processor to have the instructions.
#![expect(unsafe_code, reason = "vector instructions")]
#![expect(clippy::needless_range_loop, reason = "the same index goes through all lanes")]

use core::arch::x86_64::*;

use super::{Beside, Kernel, sha2_constants::K256};

/// How many blocks of a lone message there are for each step beside it: so few that its rounds are still waiting for each other when the step
/// is done.
const BLOCKS_A_STEP: usize = 2;

/// Proof that the processor has the instructions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sha256Ni(());

impl Sha256Ni {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("sha") && is_x86_feature_detected!("avx")).then_some(Self(()))
    }

    fn run<const N: usize>(self, states: &mut [[u32; 8]; N], blocks: [&[[u8; 64]]; N], before: impl FnMut(usize)) {
        // SAFETY: `self` is made only by `detect`, so the processor has `sha` and `avx`.
        unsafe { compress(states, blocks, before) }
    }
}

impl<const N: usize> Kernel<[u32; 8], 64, N> for Sha256Ni {
    fn compress(&mut self, states: &mut [[u32; 8]; N], blocks: [&[[u8; 64]]; N]) {
        self.run(states, blocks, |_| {});
    }
}

impl<F: FnMut()> Kernel<[u32; 8], 64, 1> for Beside<Sha256Ni, F> {
    fn compress(&mut self, states: &mut [[u32; 8]; 1], blocks: [&[[u8; 64]]; 1]) {
        self.kernel.run(states, blocks, |at| {
            if at.is_multiple_of(BLOCKS_A_STEP) {
                (self.step)();
            }
        });
    }
}

/// Calls `before` with the number of each block.
#[target_feature(enable = "sha,avx")]
fn compress<const N: usize>(states: &mut [[u32; 8]; N], blocks: [&[[u8; 64]]; N], mut before: impl FnMut(usize)) {
    let zero = _mm_setzero_si128();
    let (mut abef, mut cdgh) = ([zero; N], [zero; N]);
    for l in 0..N {
        let [a, b, c, d, e, f, g, h] = states[l].map(u32::cast_signed);
        abef[l] = _mm_set_epi32(a, b, e, f);
        cdgh[l] = _mm_set_epi32(c, d, g, h);
    }
    for at in 0..blocks.first().map_or(0, |lane| lane.len()) {
        before(at);
        let (old_abef, old_cdgh) = (abef, cdgh);
        let mut w = [[zero; 4]; N];
        for l in 0..N {
            w[l] = words(&blocks[l][at]);
        }
        // four rounds of every lane, then the four words that the same rounds of the next pass take
        macro_rules! rounds {
            ($from:expr, $schedule:literal, $($i:literal)+) => {$(
                let k = constants(&K256.as_chunks().0[$from + $i]);
                for l in 0..N {
                    let wk = _mm_add_epi32(w[l][$i], k);
                    cdgh[l] = _mm_sha256rnds2_epu32(cdgh[l], abef[l], wk);
                    abef[l] = _mm_sha256rnds2_epu32(abef[l], cdgh[l], _mm_shuffle_epi32::<0x0E>(wk));
                    if $schedule {
                        let [w1, w2, w3] = [w[l][($i + 1) % 4], w[l][($i + 2) % 4], w[l][($i + 3) % 4]];
                        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[l][$i], w1), _mm_alignr_epi8::<4>(w3, w2));
                        w[l][$i] = _mm_sha256msg2_epu32(sum, w3);
                    }
                }
            )+};
        }
        for pass in 0..3 {
            rounds!(4 * pass, true, 0 1 2 3);
        }
        rounds!(12, false, 0 1 2 3);
        for l in 0..N {
            abef[l] = _mm_add_epi32(abef[l], old_abef[l]);
            cdgh[l] = _mm_add_epi32(cdgh[l], old_cdgh[l]);
        }
    }
    for l in 0..N {
        let (x, y) = (abef[l], cdgh[l]);
        let a = [_mm_extract_epi32::<3>(x), _mm_extract_epi32::<2>(x), _mm_extract_epi32::<3>(y), _mm_extract_epi32::<2>(y)];
        let e = [_mm_extract_epi32::<1>(x), _mm_extract_epi32::<0>(x), _mm_extract_epi32::<1>(y), _mm_extract_epi32::<0>(y)];
        states[l] = [a[0], a[1], a[2], a[3], e[0], e[1], e[2], e[3]].map(i32::cast_unsigned);
    }
}

/// The sixteen words of a block.
#[inline]
#[target_feature(enable = "sha,avx")]
fn words(block: &[u8; 64]) -> [__m128i; 4] {
    let swap = _mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203);
    let mut words = [_mm_setzero_si128(); 4];
    for (word, bytes) in words.iter_mut().zip(block.as_chunks::<16>().0) {
        // SAFETY: reads the 16 bytes that `bytes` borrows; this load needs no alignment.
        let loaded = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
        *word = _mm_shuffle_epi8(loaded, swap);
    }
    words
}

#[inline]
#[target_feature(enable = "sha,avx")]
fn constants(k: &[u32; 4]) -> __m128i {
    let [k0, k1, k2, k3] = k.map(u32::cast_signed);
    _mm_set_epi32(k3, k2, k1, k0)
}
