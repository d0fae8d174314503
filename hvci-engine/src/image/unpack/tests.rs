#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::io::Write as _;

use flate2::write::GzEncoder;
use lzma_rust2::{CheckType, FilterType, LzmaOptions, LzmaWriter, XzOptions, XzWriter};
use proptest::prelude::*;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;

const CAP: usize = 1 << 20;

/// Something that compresses and that the x86 BCJ filter changes: calls to one address.
fn text() -> Vec<u8> {
    (0..2000_u16).flat_map(|i| [0xE8, i.to_be_bytes()[0], 0, 0, 0, b'a', i.to_be_bytes()[1]]).collect()
}

fn gz(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn xz(data: &[u8], check: CheckType, filters: &[(FilterType, u32)], dictionary: u32) -> Vec<u8> {
    let mut options = XzOptions::with_preset(1);
    options.lzma_options.dict_size = dictionary;
    options.set_check_sum_type(check);
    for (filter, property) in filters {
        options.prepend_pre_filter(*filter, *property);
    }
    let mut writer = XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(data).unwrap();
    writer.finish().unwrap()
}

fn kernel_xz(data: &[u8]) -> Vec<u8> {
    xz(data, CheckType::Crc32, &[(FilterType::BcjX86, 0)], 1 << 20)
}

fn zst(data: &[u8]) -> Vec<u8> {
    compress_to_vec(data, CompressionLevel::Fastest)
}

fn lzma(data: &[u8]) -> Vec<u8> {
    let mut writer = LzmaWriter::new_use_header(Vec::new(), &LzmaOptions::with_preset(6), None).unwrap();
    writer.write_all(data).unwrap();
    writer.finish().unwrap()
}

fn every_format() -> [(Compression, Vec<u8>); 3] {
    let data = text();
    [(Compression::Gzip, gz(&data)), (Compression::Xz, kernel_xz(&data)), (Compression::Zstd, zst(&data))]
}

fn code(data: &[u8], cap: usize) -> Code {
    unpack(data, cap).unwrap_err().code
}

#[test]
fn every_format_unpacks() {
    for (compression, packed) in every_format() {
        assert_eq!(unpack(&packed, CAP).unwrap(), Unpacked { compression, data: text(), notes: vec![] });
        // exactly the cap is not above it
        assert!(unpack(&packed, text().len()).is_ok());
        assert_eq!(code(&packed, text().len() - 1), Code::InputBomb, "{}", compression.name());
    }
    assert_eq!(code(b"\x7fELF", CAP), Code::InputContainer);
    assert_eq!(code(&lzma(&text()), CAP), Code::InputContainer);
}

#[test]
fn several_streams_are_put_together() {
    for (compression, packed) in every_format() {
        let twice = unpack(&packed.repeat(2), CAP).unwrap();
        assert_eq!(twice.data, text().repeat(2), "{}", compression.name());
        assert_eq!(code(&packed.repeat(2), 2 * text().len() - 1), Code::InputBomb);
        assert_eq!(unpack(&[&packed[..], &[0; 8]].concat(), CAP).unwrap().data, text());
        let error = unpack(&[&packed[..], b"more"].concat(), CAP).unwrap_err();
        assert_eq!((error.code, error.span), (Code::InputContainer, Some(Span::new(packed.len(), 4))), "{}", compression.name());
    }
    let skippable = [&[0x5A, 0x2A, 0x4D, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    assert_eq!(unpack(&[zst(b"one"), skippable, zst(b"two")].concat(), CAP).unwrap().data, b"onetwo");
}

#[test]
fn damage_is_named() {
    for (compression, packed) in every_format() {
        for len in [packed.len() / 2, packed.len() - 1] {
            let error = unpack(&packed[..len], CAP).unwrap_err();
            assert_eq!(error.code, Code::InputContainer);
            assert!(error.detail.contains("cut short"), "{}: {}", compression.name(), error.detail);
        }
        let mut corrupt = packed.clone();
        let middle = packed.len() / 2;
        corrupt[middle] ^= 0x55;
        assert_eq!(code(&corrupt, CAP), Code::InputContainer, "{}", compression.name());
    }
}

#[test]
fn a_large_dictionary_is_not_allocated() {
    let mut packed = kernel_xz(&text());
    // block header: size, flags, BCJ (id, 0), LZMA2 (id, 1, dictionary), padding, CRC32
    packed[18] = 38;
    let crc = crc32(&packed[12..12 + usize::from(packed[12]) * 4]);
    let at = 12 + usize::from(packed[12]) * 4;
    packed[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    let error = unpack(&packed, CAP).unwrap_err();
    assert_eq!(error.code, Code::InputBomb);
    assert!(error.detail.contains("dictionary"), "{}", error.detail);
}

fn crc32(data: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(data);
    crc.sum()
}

#[test]
fn what_the_kernels_xz_decoder_refuses() {
    let data = text();
    let notes = |packed: &[u8]| unpack(packed, CAP).unwrap().notes;
    assert_eq!(notes(&xz(&data, CheckType::None, &[], 1 << 20)), []);
    assert_eq!(notes(&xz(&data, CheckType::Crc32, &[(FilterType::BcjArm64, 0)], 64 << 20)), []);
    for (check, name) in [(CheckType::Crc64, "CRC64"), (CheckType::Sha256, "SHA-256")] {
        let notes = notes(&xz(&data, check, &[], 1 << 20));
        assert_eq!((notes.len(), notes[0].code, notes[0].span), (1, Code::ImageXzUnsupported, Some(Span::new(7, 1))));
        assert!(notes[0].detail.contains(name));
    }
    let delta = notes(&xz(&data, CheckType::Crc32, &[(FilterType::Delta, 1)], 1 << 20));
    assert!(delta[0].detail.contains("filter 0x3"), "{delta:?}");
    let three = notes(&xz(&data, CheckType::Crc32, &[(FilterType::BcjX86, 0), (FilterType::Delta, 1)], 1 << 20));
    assert!(three[0].detail.contains("3 filters"), "{three:?}");
    // a dictionary of 4 GiB - 1, as the header says it; nothing of the rest is read
    let header = [xz::MAGIC, &[0, 1, 0x69, 0x22, 0xDE, 0x36, 2, 0, 0x21, 1, 40, 0, 0, 0][..]].concat();
    let notes = xz::kernel_refusals(&header);
    assert_eq!((notes.len(), notes[0].span), (1, Some(Span::new(16, 1))));
    assert!(notes[0].detail.contains("4 GiB"));
    let streams = [xz(&data, CheckType::Crc32, &[], 1 << 20), xz(&data, CheckType::Crc32, &[], 1 << 20)].concat();
    assert!(unpack(&streams, CAP).unwrap().notes[0].detail.contains("2 streams"));
}

#[test]
fn a_signature_belongs_inside() {
    for (compression, packed) in every_format() {
        let signed = [&packed, &b"sig"[..], &[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3], MODULE_SIG_STRING].concat();
        let unpacked = unpack(&signed, CAP).unwrap();
        assert_eq!(unpacked.data, text());
        assert_eq!(unpacked.notes.len(), 1, "{}", compression.name());
        assert_eq!(unpacked.notes[0].code, Code::ImageCompressedSigned);
        assert_eq!(unpacked.notes[0].span, Some(Span::new(signed.len() - 28, 28)));
    }
}

#[test]
fn payloads_have_their_length_behind_them() {
    let len = u32::try_from(text().len()).unwrap().to_le_bytes();
    let mut lz4 = lz4::MAGIC.to_vec();
    lz4.extend([&5_u32.to_le_bytes()[..], &[0x40], b"text"].concat());
    assert_eq!(unpack_payload(&[&lz4[..], &[4, 0, 0, 0]].concat(), CAP).unwrap(), b"text");
    for packed in [kernel_xz(&text()), zst(&text()), lzma(&text())] {
        assert_eq!(unpack_payload(&packed, CAP).unwrap(), text());
        assert_eq!(unpack_payload(&[&packed[..], &len].concat(), CAP).unwrap(), text());
        let error = unpack_payload(&[&packed[..], &[1, 0, 0, 0]].concat(), CAP).unwrap_err();
        assert_eq!(error.code, Code::InputContainer);
        assert!(error.detail.contains("then 01000000"), "{}", error.detail);
        assert_eq!(unpack_payload(&[&packed[..], &len, &[0]].concat(), CAP).unwrap_err().code, Code::InputContainer);
        assert_eq!(unpack_payload(&packed, text().len() - 1).unwrap_err().code, Code::InputBomb);
    }
    assert_eq!(unpack_payload(&gz(&text()), CAP).unwrap(), text());
    for (magic, name) in [(&b"BZh9"[..], "bz2"), (b"\x89LZO\0\r\n", "lzo")] {
        let error = unpack_payload(magic, CAP).unwrap_err();
        assert_eq!(error.code, Code::ImageUnsupported);
        assert!(error.detail.contains(name));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn never_panics_nor_exceeds_the_cap(
        format in 0_usize..4,
        cut in 0.0_f64..1.0,
        changes in proptest::collection::vec((0.0_f64..1.0, any::<u8>()), 0..4),
    ) {
        let mut packed = match format {
            3 => lzma(&text()),
            n => every_format()[n].1.clone(),
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, clippy::as_conversions, reason = "a place in the file")]
        let place = |part: f64| (part * packed.len() as f64) as usize;
        let (cut, changes) = (place(cut), changes.into_iter().map(|(at, byte)| (place(at), byte)).collect::<Vec<_>>());
        for (at, byte) in changes {
            packed[at] = byte;
        }
        for data in [&packed[..], &packed[..cut]] {
            for cap in [1000, CAP] {
                if let Ok(unpacked) = unpack(data, cap) {
                    prop_assert!(unpacked.data.len() <= cap);
                }
                if let Ok(unpacked) = unpack_payload(data, cap) {
                    prop_assert!(unpacked.len() <= cap);
                }
            }
        }
    }
}
