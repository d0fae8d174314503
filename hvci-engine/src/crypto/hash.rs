//! Digests of byte ranges: one at a time, or many at once in interleaved lanes.

use md5::Md5;
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use sha3::{Sha3_256, Sha3_384, Sha3_512};

use crate::digest::{Digest, DigestAlg};

/// One digest to calculate: `alg` over the `pieces`, one after the other.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// Which algorithm.
    pub alg: DigestAlg,
    /// What it is over.
    pub pieces: Vec<&'a [u8]>,
}

/// The digest of `pieces`, one after the other, as if they were one.
pub fn digest(alg: DigestAlg, pieces: &[&[u8]]) -> Digest {
    fn run<D: sha2::Digest>(alg: DigestAlg, pieces: &[&[u8]]) -> Digest {
        let mut hasher = D::new();
        for piece in pieces {
            hasher.update(piece);
        }
        Digest::new(alg, &hasher.finalize()).unwrap_or_else(|| unreachable!("{alg} has the length that its implementation gives"))
    }
    match alg {
        DigestAlg::Md5 => run::<Md5>(alg, pieces),
        DigestAlg::Sha1 => run::<Sha1>(alg, pieces),
        DigestAlg::Sha224 => run::<Sha224>(alg, pieces),
        DigestAlg::Sha256 => run::<Sha256>(alg, pieces),
        DigestAlg::Sha384 => run::<Sha384>(alg, pieces),
        DigestAlg::Sha512 => run::<Sha512>(alg, pieces),
        DigestAlg::Sha3_256 => run::<Sha3_256>(alg, pieces),
        DigestAlg::Sha3_384 => run::<Sha3_384>(alg, pieces),
        DigestAlg::Sha3_512 => run::<Sha3_512>(alg, pieces),
    }
}

/// Every job's digest, in the order of the jobs. Worth it from a few jobs on, the more the better: they are calculated side by side.
pub fn digest_jobs(jobs: &[Job<'_>]) -> Vec<Digest> {
    digest_jobs_beside(jobs, || {})
}

/// The same. A SHA-256 that has no other to go beside it leaves most of a processor idle: for each 128 bytes of it `step` is called, and what
/// that does takes next to no time, as long as it is some hundred instructions and calls nobody. How often it is called, or whether at all,
/// depends on the processor.
pub fn digest_jobs_beside(jobs: &[Job<'_>], step: impl FnMut()) -> Vec<Digest> {
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "filled by lanes"))]
    let mut results = vec![None; jobs.len()];
    #[cfg(target_arch = "x86_64")]
    super::lanes::digest_jobs(jobs, &mut results, step);
    jobs.iter().zip(results).map(|(job, result)| result.unwrap_or_else(|| digest(job.alg, &job.pieces))).collect()
}
