//! Multi-buffer hashing: independent messages advance together, each in a lane of a vector kernel, because one message alone leaves most of a
//! processor idle (a round waits for the one before it).
//!
//! A [`Stream`](stream::Stream) gives a message as runs of whole blocks, wherever its pieces begin and end. A [`Pool`] keeps the lanes of a
//! kernel full: the longest messages first, and a lane takes the next message as soon as its own ends. When too few are left for a kernel, a
//! narrower one goes on with the states as they are.
//!
//! GB/s of one Zen 4 core, all lanes together:
//!
//! | function | lanes: speed |
//! |---|---|
//! | SHA-1 | SHA-NI 1: 1.9, 2: 3.6, 4: 4.7; AVX-512 16: 6.4 |
//! | SHA-224, SHA-256 | SHA-NI 1: 1.8, 2: 3.4, 3: 3.8 (no more lanes are faster) |
//! | SHA-384, SHA-512 | 1: 0.6; AVX-512 8: 2.7 |
//!
//! RSA's public operation is here too ([`rsa`]): the vector kernels are the only unsafe code of the engine.
//!
//! **Invariant:** a message's digest does not depend on the messages beside it. [`digest`](super::digest) is the oracle.

mod avx512;
mod pool;
pub(super) mod rsa;
mod sha1_avx512;
mod sha1_ni;
mod sha256_ni;
mod sha2_constants;
mod sha512_avx512;
mod sha512_one;
mod state;
mod stream;

use avx512::Avx512;
use pool::Pool;
use sha1_ni::Sha1Ni;
use sha256_ni::Sha256Ni;
use sha512_one::Sha512One;

use super::Job;
use crate::digest::Digest;

/// Calculates the digests of `jobs` that this processor has kernels for, where they are not alone, and of a lone SHA-256, with `step` beside it;
/// leaves the others `None`. `results` are in the order of `jobs`.
pub(super) fn digest_jobs(jobs: &[Job<'_>], results: &mut [Option<Digest>], step: impl FnMut()) {
    let avx512 = Avx512::detect();
    if let Some(ni) = Sha1Ni::detect()
        && let Some(mut sha1) = Pool::<[u32; 5], 64>::new(jobs, results, 2)
    {
        if let Some(avx512) = avx512 {
            // four lanes at full speed beat less than twelve of sixteen
            sha1.run::<16>(avx512, 12);
        }
        sha1.run::<4>(ni, 4);
        sha1.run::<2>(ni, 2);
        sha1.run::<1>(ni, 1);
    }
    if let Some(ni) = Sha256Ni::detect()
        && let Some(mut sha256) = Pool::<[u32; 8], 64>::new(jobs, results, 1)
    {
        if !sha256.is_led_by_one() {
            sha256.run::<3>(ni, 3);
        }
        sha256.run::<2>(ni, 2);
        sha256.run::<1>(Beside { kernel: ni, step }, 1);
    }
    if let Some(avx512) = avx512
        && let Some(mut sha512) = Pool::<[u64; 8], 128>::new(jobs, results, 2)
    {
        sha512.run::<8>(avx512, 2);
        sha512.run::<1>(Sha512One, 1);
    }
}

/// The compression function of an algorithm, over `N` messages at once.
trait Kernel<S, const BLOCK: usize, const N: usize> {
    /// Takes the blocks of each lane into the state of that lane. Every lane has as many blocks as the first.
    fn compress(&mut self, states: &mut [S; N], blocks: [&[[u8; BLOCK]]; N]);
}

/// A kernel for a lone message, which leaves most of the processor idle, and steps of something else that are done beside it.
struct Beside<K, F> {
    kernel: K,
    step: F,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::{state::State, *};
    use crate::{crypto::digest, digest::DigestAlg};

    /// Messages of which no two are alike, as prefixes of one text that does not repeat.
    fn text(len: usize, seed: u64) -> Vec<u8> {
        let mut x = seed.wrapping_mul(2).wrapping_add(1);
        let mut next = || {
            x = x.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            x.to_be_bytes()[0]
        };
        (0..len).map(|_| next()).collect()
    }

    /// `bytes` cut at `cuts`.
    fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([bytes.len()]).collect();
        ends.sort_unstable();
        let mut at = 0;
        ends.into_iter().map(|end| &bytes[core::mem::replace(&mut at, end)..end]).collect()
    }

    fn oracle(jobs: &[Job<'_>]) -> Vec<Digest> {
        jobs.iter().map(|job| digest(job.alg, &job.pieces)).collect()
    }

    /// Runs one kernel to the end of all jobs, whatever their number; `None` says that the processor does not have it.
    fn forced<S: State, const BLOCK: usize, const N: usize>(kernel: Option<impl Kernel<S, BLOCK, N>>, jobs: &[Job<'_>]) {
        let Some(kernel) = kernel else { return eprintln!("skipped: this processor does not have the instructions for {N} lanes") };
        let mut results = vec![None; jobs.len()];
        let mut pool = Pool::<S, BLOCK>::new(jobs, &mut results, 1).unwrap();
        pool.run::<N>(kernel, 1);
        let expected = oracle(jobs);
        for ((job, result), expected) in jobs.iter().zip(results).zip(expected) {
            let expected = S::initial(job.alg).map(|_| expected);
            assert_eq!(result, expected, "{N} lanes, {} bytes", job.pieces.concat().len());
        }
    }

    /// Every kernel, and what `digest_jobs` makes of them.
    fn check(jobs: &[Job<'_>]) {
        let of = |algs: &[DigestAlg]| jobs.iter().filter(|job| algs.contains(&job.alg)).count() >= 2;
        if of(&[DigestAlg::Sha1]) {
            forced::<_, 64, 16>(Avx512::detect(), jobs);
            forced::<_, 64, 4>(Sha1Ni::detect(), jobs);
            forced::<_, 64, 2>(Sha1Ni::detect(), jobs);
            forced::<_, 64, 1>(Sha1Ni::detect(), jobs);
        }
        if of(&[DigestAlg::Sha224, DigestAlg::Sha256]) {
            forced::<_, 64, 3>(Sha256Ni::detect(), jobs);
            forced::<_, 64, 2>(Sha256Ni::detect(), jobs);
            forced::<_, 64, 1>(Sha256Ni::detect(), jobs);
        }
        if of(&[DigestAlg::Sha384, DigestAlg::Sha512]) {
            forced::<_, 128, 8>(Avx512::detect(), jobs);
            forced::<_, 128, 1>(Some(Sha512One), jobs);
        }
        assert_eq!(crate::crypto::digest_jobs(jobs), oracle(jobs));
    }

    #[test]
    fn padding_at_every_boundary() {
        let lengths = [0, 1, 55, 56, 57, 63, 64, 65, 110, 111, 112, 113, 119, 120, 127, 128, 129, 239, 240, 255, 256, 257];
        let texts: Vec<_> = (0..).zip(lengths).map(|(seed, len)| text(len, seed)).collect();
        for alg in DigestAlg::ALL {
            for cuts in [&[][..], &[1], &[0, 0], &[63, 64], &[55, 56, 57], &[111, 112]] {
                let jobs: Vec<_> = texts.iter().map(|text| Job { alg, pieces: pieces(text, cuts) }).collect();
                check(&jobs);
            }
            let bytes: Vec<_> = texts.iter().map(|text| Job { alg, pieces: text.chunks(1).collect() }).collect();
            check(&bytes);
        }
    }

    /// A lane that takes the next job must forget the one before it: lengths differ so much that every lane is used many times over.
    #[test]
    fn lanes_are_clean_for_the_next_job() {
        let lengths = (0..120).map(|i| if i % 7 == 0 { 9_000 + i } else { (i * 37) % 300 });
        let texts: Vec<_> = (0..).zip(lengths).map(|(seed, len)| text(len, seed)).collect();
        for alg in [DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha512] {
            let jobs: Vec<_> = texts.iter().map(|text| Job { alg, pieces: pieces(text, &[100]) }).collect();
            check(&jobs);
        }
    }

    #[test]
    fn one_changed_byte_changes_one_digest() {
        let texts: Vec<_> = (0..20).map(|seed| text(3_000, seed)).collect();
        for alg in DigestAlg::ALL {
            let digests = |texts: &[Vec<u8>]| {
                crate::crypto::digest_jobs(&texts.iter().map(|text| Job { alg, pieces: vec![text] }).collect::<Vec<_>>())
            };
            let honest = digests(&texts);
            for forged in 0..texts.len() {
                let mut texts = texts.clone();
                texts[forged][2_999] ^= 1;
                for (i, (digest, honest)) in digests(&texts).iter().zip(&honest).enumerate() {
                    assert_eq!(digest != honest, i == forged, "{alg} {i}");
                }
            }
        }
    }

    #[test]
    fn steps_are_done_beside_a_lone_message() {
        let text = text(10_000, 1);
        for cuts in [&[][..], &[1], &[100, 5_000], &[64, 128, 9_999]] {
            let jobs = [Job { alg: DigestAlg::Sha256, pieces: pieces(&text, cuts) }];
            let mut steps = 0;
            assert_eq!(crate::crypto::digest_jobs_beside(&jobs, || steps += 1), oracle(&jobs));
            let due = if Sha256Ni::detect().is_some() { 10_000 / 128 } else { 0 };
            assert!((due..due + 8).contains(&steps), "{steps} of {due}");
        }
    }

    #[test]
    fn no_jobs_and_no_pieces() {
        assert_eq!(crate::crypto::digest_jobs(&[]), []);
        let jobs: Vec<_> = DigestAlg::ALL.into_iter().chain(DigestAlg::ALL).map(|alg| Job { alg, pieces: vec![] }).collect();
        check(&jobs);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn every_mix_of_jobs_gives_what_one_by_one_gives(
            specs in proptest::collection::vec((0..9_usize, 0..5_000_usize, proptest::collection::vec(any::<usize>(), 0..6)), 0..40),
            seed: u64,
        ) {
            let text = text(5_000, seed);
            let jobs: Vec<_> =
                specs.iter().map(|(alg, len, cuts)| Job { alg: DigestAlg::ALL[*alg], pieces: pieces(&text[5_000 - len..], cuts) }).collect();
            check(&jobs);
        }

        #[test]
        fn many_jobs_of_one_algorithm(
            alg in 0..9_usize,
            specs in proptest::collection::vec((0..2_000_usize, any::<usize>()), 2..60),
            seed: u64,
        ) {
            let text = text(2_000, seed);
            let jobs: Vec<_> =
                specs.iter().map(|(len, cut)| Job { alg: DigestAlg::ALL[alg], pieces: pieces(&text[..*len], &[*cut]) }).collect();
            check(&jobs);
        }
    }
}
