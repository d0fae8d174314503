//! Readers: bytes to structures, nothing hashed, nothing verified.

use std::hint::black_box;

use benches::inputs::Inputs;
use cms::{content_info::ContentInfo, signed_data::SignedData};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use der::Decode;
use hvci_engine::{
    image::{elf::Elf, pe::Pe},
    signature::{cache::Cache, cert::Certificate, modsig::ModuleTrailer, read_blob},
};

fn parse(c: &mut Criterion) {
    let inputs = Inputs::new().expect("inputs");
    let pe = Pe::parse(&inputs.driver).expect("a PE image");
    let table = pe.certificate_table();
    let authenticode = table.entries.first().expect("a signature").pkcs7;
    let detached = ModuleTrailer::find(&inputs.module).expect("a trailer").expect("a signature").pkcs7;
    let certificate = inputs.certificate("whql").expect("a certificate");

    let mut head = c.benchmark_group("head");
    head.bench_function("PE", |b| b.iter(|| Pe::parse(black_box(&inputs.driver)).expect("a PE image")));
    head.bench_function("PE lint", |b| b.iter(|| black_box(&pe).lint(&pe.imports())));
    head.bench_function("ELF", |b| b.iter(|| Elf::parse(black_box(&inputs.module)).expect("an ELF file")));
    head.finish();

    let mut blobs = c.benchmark_group("blob");
    for (name, blob) in [("Authenticode", authenticode), ("module", detached)] {
        blobs.bench_function(BenchmarkId::new("us", name), |b| b.iter(|| read_blob(black_box(blob)).expect("a SignedData")));
        blobs.bench_function(BenchmarkId::new("cms", name), |b| {
            b.iter(|| {
                ContentInfo::from_der(black_box(blob)).expect("a ContentInfo").content.decode_as::<SignedData>().expect("a SignedData")
            });
        });
    }
    blobs.finish();

    let mut certificates = c.benchmark_group("certificate");
    certificates.bench_function("us", |b| b.iter(|| Certificate::parse(black_box(&certificate)).expect("a certificate")));
    let cache = Cache::default();
    certificates.bench_function("us, seen before", |b| b.iter(|| cache.certificate(black_box(&certificate)).expect("a certificate")));
    certificates
        .bench_function("x509-cert", |b| b.iter(|| x509_cert::Certificate::from_der(black_box(&certificate)).expect("a certificate")));
    certificates.finish();
}

criterion_group!(benches, parse);
criterion_main!(benches);
