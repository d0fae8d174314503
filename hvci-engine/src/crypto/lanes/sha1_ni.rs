//! SHA-1 with the SHA extensions, several lanes at once (Intel, "Intel SHA Extensions", 2013).

// UNSAFETY: vector loads through pointers, and calls of functions that need the processor to have the instructions.
#![expect(unsafe_code, reason = "vector instructions")]
#![expect(clippy::needless_range_loop, reason = "the same index goes through all lanes")]

use core::arch::x86_64::*;

use super::Kernel;

/// Proof that the processor has the instructions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sha1Ni(());

impl Sha1Ni {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("sha") && is_x86_feature_detected!("avx")).then_some(Self(()))
    }
}

impl<const N: usize> Kernel<[u32; 5], 64, N> for Sha1Ni {
    fn compress(&mut self, states: &mut [[u32; 5]; N], blocks: [&[[u8; 64]]; N]) {
        // SAFETY: `self` is made only by `detect`, so the processor has `sha` and `avx`.
        unsafe { compress(states, blocks) }
    }
}

#[target_feature(enable = "sha,avx")]
fn compress<const N: usize>(states: &mut [[u32; 5]; N], blocks: [&[[u8; 64]]; N]) {
    let zero = _mm_setzero_si128();
    // `older` is what a, b, c, d were four rounds ago: its a, rotated by 30, is the e of now
    let (mut abcd, mut older) = ([zero; N], [zero; N]);
    for l in 0..N {
        let [a, b, c, d, e] = states[l];
        abcd[l] = _mm_set_epi32(a.cast_signed(), b.cast_signed(), c.cast_signed(), d.cast_signed());
        older[l] = _mm_set_epi32(e.rotate_right(30).cast_signed(), 0, 0, 0);
    }
    for at in 0..blocks.first().map_or(0, |lane| lane.len()) {
        let before = (abcd, older);
        let mut w = [[zero; 4]; N];
        for l in 0..N {
            w[l] = words(&blocks[l][at]);
        }
        // four rounds of every lane with function $f, then the four words that come sixteen rounds later
        macro_rules! rounds {
            ($f:literal, $schedule:literal, $($i:literal)+) => {$(
                for l in 0..N {
                    let ew = _mm_sha1nexte_epu32(older[l], w[l][$i]);
                    older[l] = abcd[l];
                    abcd[l] = _mm_sha1rnds4_epu32::<$f>(abcd[l], ew);
                    if $schedule {
                        let [w1, w2, w3] = [w[l][($i + 1) % 4], w[l][($i + 2) % 4], w[l][($i + 3) % 4]];
                        w[l][$i] = _mm_sha1msg2_epu32(_mm_xor_si128(_mm_sha1msg1_epu32(w[l][$i], w1), w2), w3);
                    }
                }
            )+};
        }
        rounds!(0, true, 0 1 2 3 0);
        rounds!(1, true, 1 2 3 0 1);
        rounds!(2, true, 2 3 0 1 2);
        rounds!(3, true, 3);
        rounds!(3, false, 0 1 2 3);
        for l in 0..N {
            abcd[l] = _mm_add_epi32(abcd[l], before.0[l]);
            // the sum is of e, so rotate both, add, and rotate back
            let e = _mm_sha1nexte_epu32(older[l], _mm_sha1nexte_epu32(before.1[l], zero));
            older[l] = _mm_or_si128(_mm_slli_epi32::<2>(e), _mm_srli_epi32::<30>(e));
        }
    }
    for l in 0..N {
        let (x, e) = (abcd[l], _mm_extract_epi32::<3>(older[l]).cast_unsigned().rotate_left(30));
        let abcd = [_mm_extract_epi32::<3>(x), _mm_extract_epi32::<2>(x), _mm_extract_epi32::<1>(x), _mm_extract_epi32::<0>(x)];
        let [a, b, c, d] = abcd.map(i32::cast_unsigned);
        states[l] = [a, b, c, d, e];
    }
}

/// The sixteen words of a block, the first at the top.
#[inline]
#[target_feature(enable = "sha,avx")]
fn words(block: &[u8; 64]) -> [__m128i; 4] {
    let swap = _mm_set_epi64x(0x0001_0203_0405_0607, 0x0809_0A0B_0C0D_0E0F);
    let mut words = [_mm_setzero_si128(); 4];
    for (word, bytes) in words.iter_mut().zip(block.as_chunks::<16>().0) {
        // SAFETY: reads the 16 bytes that `bytes` borrows; this load needs no alignment.
        let loaded = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
        *word = _mm_shuffle_epi8(loaded, swap);
    }
    words
}
