//! Signatures: one verification by key, and a whole file with its chain cold and warm.

use std::hint::black_box;

use benches::inputs::{Inputs, KEYS, TIME};
use corpus::synth::key::Key;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use der::Encode;
use hvci_engine::{
    crypto::{PublicKey, Scheme, digest},
    digest::DigestAlg,
    examine::Examiner,
    policy::{Decision, Judge, profile},
    signature::{cache::Cache, catalog::CatalogIndex},
};

fn signatures(c: &mut Criterion) {
    let mut group = c.benchmark_group("verify");
    let message = [7; 136];
    let message_digest = digest(DigestAlg::Sha256, &[&message]);
    for (name, kind) in KEYS {
        let key = Key::derive(1, name, kind).expect("a key");
        let spki = key.public().expect("a public key").to_der().expect("DER");
        let signature = key.sign(DigestAlg::Sha256, &message).expect("a signature");
        let scheme = if name.starts_with("RSA") { Scheme::Pkcs1 } else { Scheme::Ecdsa };
        let public = PublicKey::from_spki(&spki).expect("a public key");
        group.bench_function(name, |b| {
            b.iter(|| public.verify(scheme, black_box(&message_digest), black_box(&signature)).expect("a good signature"));
        });
        group.bench_function(format!("{name}, key not seen before"), |b| {
            b.iter(|| {
                let public = PublicKey::from_spki(black_box(&spki)).expect("a public key");
                public.verify(scheme, &message_digest, &signature).expect("a good signature")
            });
        });
    }
    group.finish();
}

fn chains(c: &mut Criterion) {
    let inputs = Inputs::new().expect("inputs");
    let trust = inputs.trust().expect("anchors");
    let catalogs = CatalogIndex::default();
    let decide = |file: &[u8], cache: &Cache| {
        let facts = Examiner { cache, catalogs: &catalogs, digests: &[] }.examine(file, usize::MAX);
        Judge { trust: &trust, time: TIME, cache }.judge(&facts, None)
    };
    let mut group = c.benchmark_group("file");
    for (name, file) in [("driver", &inputs.driver), ("module", &inputs.module)] {
        let verdict = decide(file, &Cache::default());
        assert_eq!(verdict.decision, Decision::Accept, "{:?}", verdict.findings);
        group.bench_function(format!("{name}, cold"), |b| {
            b.iter_batched_ref(Cache::default, |cache| decide(black_box(file), cache), BatchSize::SmallInput);
        });
        let cache = Cache::default();
        group.bench_function(format!("{name}, warm"), |b| b.iter(|| decide(black_box(file), &cache)));
    }
    let cache = Cache::default();
    let facts = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] }.examine(&inputs.driver, usize::MAX);
    let judge = Judge { trust: &trust, time: TIME, cache: &cache };
    group.bench_function("driver, judged again", |b| b.iter(|| judge.judge(black_box(&facts), Some(&profile::WINDOWS_KERNEL))));
    group.finish();
}

criterion_group!(benches, signatures, chains);
criterion_main!(benches);
