//! The whole scan, over a small folder made here, or over `HVCI_CORPUS` if that is set.

use std::{collections::HashSet, env, fs, io, path::PathBuf};

use benches::inputs::{Inputs, TIME};
use corpus::{
    report::Audited,
    scan::{Context, Watcher, scan},
    source::walk::walk,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hvci_engine::signature::{cache::Cache, catalog::CatalogIndex, trust::TrustStore};

/// Files of each kind in the folder: two batches.
const COPIES: usize = 64;

struct Count(u64);

impl Watcher for Count {
    fn record(&mut self, _: &Audited) -> io::Result<()> {
        self.0 += 1;
        Ok(())
    }

    fn advance(&mut self, _: u64, _: u64) {}
}

fn context(trust: &TrustStore, jobs: usize) -> Context {
    Context {
        profile: None,
        trust: trust.clone(),
        catalogs: CatalogIndex::default(),
        time: TIME,
        cache: Cache::default(),
        digests: Vec::new(),
        max_size: 1 << 30,
        jobs,
        named: HashSet::new(),
        base: None,
    }
}

fn scans(c: &mut Criterion) {
    let inputs = Inputs::new().expect("inputs");
    let folder = tempfile::tempdir().expect("a folder");
    let (dir, trust) = match env::var_os("HVCI_CORPUS") {
        Some(dir) => (PathBuf::from(dir), TrustStore::builtin()),
        None => {
            eprintln!("HVCI_CORPUS is not set: scanning {} small files", 2 * COPIES);
            for i in 0..COPIES {
                for (extension, bytes) in [("sys", &inputs.driver), ("ko", &inputs.module)] {
                    fs::write(folder.path().join(format!("{i}.{extension}")), bytes).expect("a file");
                }
            }
            (folder.path().to_owned(), inputs.trust().expect("anchors"))
        }
    };
    let run = |jobs| {
        let mut files = Count(0);
        scan(walk([dir.clone()]), &context(&trust, jobs), &mut files).expect("a scan");
        files.0
    };
    let mut group = c.benchmark_group("scan");
    group.sample_size(10).throughput(Throughput::Elements(run(1)));
    for jobs in [1, 2] {
        group.bench_function(format!("{jobs} threads"), |b| b.iter(|| run(jobs)));
    }
    group.finish();
}

criterion_group!(benches, scans);
criterion_main!(benches);
