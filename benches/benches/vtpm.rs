//! The embedded TPM: what a boot and a quote cost, and the bare signature that a quote is to be near.

use std::hint::black_box;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use criterion::{Criterion, criterion_group, criterion_main};
use loader_sim::vtpm::{Tpm as _, embedded::EmbeddedTpm};

/// A command with an empty password for its one handle; without a handle, without sessions.
fn command(code: u32, handle: Option<u32>, body: &[u8]) -> Vec<u8> {
    const PASSWORD: &[u8] = &[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
    let mut out = vec![0x80, if handle.is_some() { 2 } else { 1 }, 0, 0, 0, 0];
    out.extend(code.to_be_bytes());
    if let Some(handle) = handle {
        out.extend(handle.to_be_bytes());
        out.extend(PASSWORD);
    }
    out.extend(body);
    let size = u32::try_from(out.len()).expect("short").to_be_bytes();
    out[2..6].copy_from_slice(&size);
    out
}

fn exec(tpm: &mut EmbeddedTpm, command: &[u8]) -> Vec<u8> {
    let response = tpm.exec(command).expect("it never fails");
    assert_eq!(response[6..10], [0; 4]);
    response
}

fn vtpm(c: &mut Criterion) {
    let mut tpm = EmbeddedTpm::manufacture([1; 32]);
    exec(&mut tpm, &command(0x144, None, &[0, 0]));
    // fixedTPM fixedParent sensitiveDataOrigin userWithAuth noDA restricted sign; ECDSA with SHA-256 on P-256
    let key = [
        0, 4, 0, 0, 0, 0, 0, 24, 0, 0x23, 0, 0x0b, 0, 5, 4, 0x72, 0, 0, 0, 0x10, 0, 0x18, 0, 0x0b, 0, 3, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0,
    ];
    exec(&mut tpm, &command(0x131, Some(0x4000_000b), &key));
    let mut group = c.benchmark_group("embedded TPM");
    for (name, command) in [
        ("TPM2_PCR_Extend of SHA-256", command(0x182, Some(4), &[&[0, 0, 0, 1, 0, 0x0b][..], &[9; 32]].concat())),
        ("TPM2_PCR_Read of 8", command(0x17e, None, &[0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0, 0])),
        (
            "TPM2_Quote of 24, P-256",
            command(0x158, Some(0x8000_0000), &[0, 4, 1, 2, 3, 4, 0, 0x10, 0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0xff, 0xff]),
        ),
    ] {
        group.bench_function(name, |b| b.iter(|| exec(&mut tpm, black_box(&command))));
    }
    group.bench_function("bare signature of as many bytes, P-256", |b| {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        b.iter(|| key.sign(&SystemRandom::new(), black_box(&[7; 141])).expect("a signature"));
    });
    group.finish();
}

criterion_group!(benches, vtpm);
criterion_main!(benches);
