//! Digests: one stream, many streams in lanes, and the `sha2` and `sha1` crates.

use std::hint::black_box;

use benches::inputs::noise;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hvci_engine::{
    crypto::{Job, digest, digest_jobs},
    digest::DigestAlg,
};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

type OneShot = fn(&[u8]) -> Vec<u8>;

/// As many files as a scan puts into a batch.
const STREAMS: usize = 64;

fn digests(c: &mut Criterion) {
    for len in [4 << 10, 96 << 10] {
        let texts: Vec<Vec<u8>> = (0..STREAMS).map(|seed| noise(len, seed as u64)).collect();
        for alg in [DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha512] {
            let mut group = c.benchmark_group(format!("{alg} of {STREAMS} × {} KiB", len >> 10));
            group.throughput(Throughput::Bytes((STREAMS * len) as u64));
            group.bench_function("one by one", |b| {
                b.iter(|| black_box(&texts).iter().map(|text| digest(alg, &[text])).collect::<Vec<_>>());
            });
            let jobs: Vec<Job<'_>> = texts.iter().map(|text| Job { alg, pieces: vec![text] }).collect();
            group.bench_function("lanes", |b| b.iter(|| digest_jobs(black_box(&jobs))));
            let (name, of): (_, OneShot) = match alg {
                DigestAlg::Sha1 => ("sha1 crate", |text| Sha1::digest(text).to_vec()),
                DigestAlg::Sha256 => ("sha2 crate", |text| Sha256::digest(text).to_vec()),
                _ => ("sha2 crate", |text| Sha512::digest(text).to_vec()),
            };
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter(|| black_box(&texts).iter().map(|text| of(text)).collect::<Vec<_>>());
            });
            group.finish();
        }
    }
}

criterion_group!(benches, digests);
criterion_main!(benches);
