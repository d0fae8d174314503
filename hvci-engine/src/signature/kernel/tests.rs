#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests")]

use std::io::Write as _;

use proptest::prelude::*;

use super::{
    super::keyring::tests::{RSA, SMALL, der_of},
    *,
};

const CAP: usize = 1 << 20;

/// A `vmlinux` that holds `parts`, each aligned to 8 bytes.
fn vmlinux(parts: &[&[u8]]) -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(64, 0);
    for part in parts {
        image.resize(image.len().next_multiple_of(8), 0);
        image.extend_from_slice(part);
    }
    image.extend_from_slice(&[0; 32]);
    image
}

fn quad(n: usize) -> [u8; 8] {
    widen(n).to_le_bytes()
}

/// A kernel with a signing key, another built-in certificate, and a list of revoked ones before them.
fn modern() -> (Vec<u8>, Vec<Vec<u8>>) {
    let (key, other) = (der_of(RSA), der_of(SMALL));
    let list = [&key[..], &other].concat();
    let image = vmlinux(&[
        b"Linux version 6.1.0-56-amd64 (x)",
        &other,
        &quad(other.len()),
        b"something else",
        &list,
        &quad(key.len()),
        &quad(list.len()),
    ]);
    (image, vec![key, other])
}

/// A bzImage of boot protocol 2.15 with 2 setup sectors.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 3 * 512 + 100];
    image[0x1F1] = 2;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20F_u16.to_le_bytes());
    image[0x248..0x24C].copy_from_slice(&100_u32.to_le_bytes());
    image[0x24C..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.extend_from_slice(payload);
    image.extend_from_slice(b"behind the payload");
    image
}

fn zboot(payload: &[u8]) -> Vec<u8> {
    let mut image = b"MZ\0\0zimg".to_vec();
    image.extend_from_slice(&64_u32.to_le_bytes());
    image.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.resize(64, 0);
    image.extend_from_slice(payload);
    image
}

/// A unified kernel image: PE32+ headers and these sections.
fn unified(sections: &[(&[u8; 8], &[u8])]) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3C, &[0x80]);
    put(0x80, b"PE\0\0");
    put(0x84, &0x8664_u16.to_le_bytes());
    put(0x86, &u16::try_from(sections.len()).unwrap().to_le_bytes());
    put(0x94, &[240, 0, 0x22, 0]);
    put(0x98, &0x20B_u16.to_le_bytes());
    for (at, value) in [(0x98 + 32, 0x1000_u32), (0x98 + 36, 0x200), (0x98 + 56, 0x10_0000), (0x98 + 60, 0x400), (0x98 + 108, 16)] {
        put(at, &value.to_le_bytes());
    }
    put(0x98 + 68, &[10]);
    for (index, (name, content)) in sections.iter().enumerate() {
        let header = 0x98 + 240 + index * 40;
        let number = |n: usize| u32::try_from(n).unwrap();
        let filled = content.len().next_multiple_of(0x200);
        image[header..header + 8].copy_from_slice(*name);
        for (field, value) in [content.len(), 0x1_0000 * (index + 1), filled, image.len()].into_iter().map(number).enumerate() {
            image[header + 8 + field * 4..header + 12 + field * 4].copy_from_slice(&value.to_le_bytes());
        }
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(0x200), 0);
    }
    image
}

fn gz(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn raw_image(vmlinux: &[u8]) -> Vec<u8> {
    let mut image = vmlinux.to_vec();
    image[..64].fill(0);
    image[0x38..0x3C].copy_from_slice(b"ARM\x64");
    image
}

fn code(kernel: &[u8]) -> Code {
    kernel_certificates(kernel, CAP).unwrap_err().code
}

#[test]
fn every_form_of_kernel() {
    let (vmlinux, certificates) = modern();
    let raw = raw_image(&vmlinux);
    for kernel in [
        &vmlinux[..],
        &gz(&vmlinux),
        &bzimage(&gz(&vmlinux)),
        &bzimage(&vmlinux),
        &gz(&bzimage(&gz(&vmlinux))),
        &raw,
        &gz(&raw),
        &zboot(&gz(&raw)),
        &unified(&[(b".osrel\0\0", b"ID=debian"), (b".linux\0\0", &bzimage(&gz(&vmlinux)))]),
        // what the section is filled up with is no part of the compressed file
        &unified(&[(b".linux\0\0", &gz(&bzimage(&gz(&vmlinux))))]),
        &unified(&[(b".linux\0\0", &zboot(&gz(&raw))), (b".linux\0\0", b"another")]),
    ] {
        assert_eq!(kernel_certificates(kernel, CAP).unwrap(), certificates);
    }
    assert_eq!(kernel_certificates(&bzimage(&gz(&vmlinux)), 100).unwrap_err().code, Code::InputBomb);
}

#[test]
fn refusals() {
    let (vmlinux, _) = modern();
    assert_eq!(code(b"MZ"), Code::InputNotImage);
    assert_eq!(code(&gz(&gz(&gz(&gz(&vmlinux))))), Code::InputNotImage);
    assert_eq!(code(&bzimage(b"BZh9")), Code::ImageUnsupported);
    assert_eq!(code(&bzimage(b"what is this")), Code::InputContainer);
    assert_eq!(code(&unified(&[(b".linux\0\0", b"what is this")])), Code::InputNotImage);
    assert_eq!(code(&unified(&[(b".text\0\0\0", &vmlinux)])), Code::InputNotImage);
    let inner = unified(&[(b".linux\0\0", &vmlinux)]);
    assert!(kernel_certificates(&inner, CAP).is_ok());
    assert_eq!(code(&unified(&[(b".linux\0\0", &inner)])), Code::InputNotImage);
    assert_eq!(code(&inner[..inner.len() - 0x200]), Code::ImageTruncated);
    let mut short = bzimage(&gz(&vmlinux));
    short.truncate(short.len() - 19);
    assert_eq!(code(&short), Code::ImageTruncated);
    short[0x24C..0x250].fill(0xFF);
    assert_eq!(code(&short), Code::ImageTruncated);
}

#[test]
fn other_certificates_are_no_keys() {
    let (rsa, small) = (der_of(RSA), der_of(SMALL));
    // a list of revoked certificates, and certificates of no list
    for parts in [[&small[..], &quad(small.len())], [&rsa[..], b"regulatory"]] {
        assert_eq!(code(&vmlinux(&[b"Linux version 6.1.0 (x)", parts[0], parts[1]])), Code::PkiNoKeyring);
    }
    // lengths that are those of another run
    let list = [&rsa[..], &small].concat();
    assert_eq!(code(&vmlinux(&[&list, &quad(rsa.len()), &quad(list.len() + 1)])), Code::PkiNoKeyring);
    assert_eq!(code(&vmlinux(&[&list, &quad(small.len()), &quad(list.len())])), Code::PkiNoKeyring);
}

#[test]
fn forms_of_the_list() {
    let (rsa, small) = (der_of(RSA), der_of(SMALL));
    let list = [&rsa[..], &small, &rsa].concat();
    let be = |n: usize| widen(n).to_be_bytes();
    let long = |n: usize| [u32::try_from(n).unwrap().to_le_bytes(), [0xAA; 4]].concat();
    let forms = [
        // no signing key; a signing key of two certificates; room for one more; big endian; 32 bits
        vmlinux(&[&list, &quad(0), &quad(list.len())]),
        vmlinux(&[&list, &quad(rsa.len() + small.len()), &quad(list.len())]),
        vmlinux(&[&list, &[0; 4096], &[7, 0, 0, 0], &quad(rsa.len()), &quad(list.len())]),
        vmlinux(&[&list, &be(rsa.len()), &be(list.len())]),
        vmlinux(&[&list, &long(rsa.len()), &long(list.len())]),
    ];
    for image in forms {
        assert_eq!(kernel_certificates(&image, CAP).unwrap(), [rsa.clone(), small.clone()]);
    }
}

#[test]
fn kernels_before_5_13_have_one_length() {
    let (rsa, small) = (der_of(RSA), der_of(SMALL));
    let kernel = |banner: &[u8]| vmlinux(&[banner, &rsa, &quad(rsa.len())]);
    assert_eq!(kernel_certificates(&kernel(b"Linux version 4.19.0-27-amd64 (x)"), CAP).unwrap(), std::slice::from_ref(&rsa));
    assert_eq!(kernel_certificates(&kernel(b"Linux version 5.12.19 (a compiler)"), CAP).unwrap(), std::slice::from_ref(&rsa));
    assert_eq!(code(&kernel(b"Linux version 5.13.0 (a compiler)")), Code::PkiNoKeyring);
    assert_eq!(code(&kernel(b"no banner")), Code::PkiNoKeyring);
    // two that look the same: one of them may be of revoked certificates
    let two = vmlinux(&[b"Linux version 5.4.0-200-generic ()", &rsa, &quad(rsa.len()), &small, &quad(small.len())]);
    assert_eq!(code(&two), Code::PkiNoKeyring);
}

#[test]
fn real_kernels() {
    let Some(corpus) = std::env::var_os("HVCI_CORPUS") else {
        println!("skipped: HVCI_CORPUS is no directory with kernels");
        return;
    };
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")) {
            let certificates = kernel_certificates(&std::fs::read(&path).unwrap(), 256 << 20).unwrap();
            println!("{}: {} certificates", path.display(), certificates.len());
            assert!(!certificates.is_empty());
        }
    }
}

proptest! {
    #[test]
    fn never_panics(cut in 0_usize..6000, at in 0_usize..6000, byte in any::<u8>(), form in 0_u8..4) {
        let (vmlinux, _) = modern();
        let mut data = match form {
            0 => vmlinux,
            1 => bzimage(&gz(&vmlinux)),
            2 => unified(&[(b".linux\0\0", &bzimage(&gz(&vmlinux)))]),
            _ => zboot(&vmlinux),
        };
        if let Some(b) = data.get_mut(at) {
            *b = byte;
        }
        let _ = kernel_certificates(&data[..cut.min(data.len())], CAP);
    }
}
