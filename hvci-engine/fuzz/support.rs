//! What several targets do with a file.

#![allow(dead_code, reason = "each target uses a part of it")]

use std::sync::LazyLock;

use hvci_engine::{
    examine::Examiner,
    facts::Facts,
    policy::{Decision, Judge, profile},
    signature::{cache::Cache, catalog::CatalogIndex, trust::TrustStore},
    time::UnixTime,
};

/// Most bytes that a compressed file may unpack to.
pub const CAP: usize = 1 << 20;

/// 2026-01-01.
const NOW: UnixTime = UnixTime(1_767_225_600);

static TRUST: LazyLock<TrustStore> = LazyLock::new(TrustStore::builtin);

/// Facts and verdicts of a file, with nothing remembered from the one before.
pub fn examine_and_judge(file: &[u8]) {
    let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
    let facts = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] }.examine(file, CAP);
    judge(&facts, &cache);
}

/// Verdicts under every profile. No input of a fuzzer is signed by an anchor that ships with the engine.
pub fn judge(facts: &Facts, cache: &Cache) {
    let judge = Judge { trust: &TRUST, time: NOW, cache };
    for profile in profile::ALL.into_iter().map(Some).chain([None]) {
        let verdict = judge.judge(facts, profile);
        assert!(verdict.decision != Decision::Accept, "accepted by {}: {facts:?}", verdict.profile);
        assert_eq!(verdict.signatures.len(), facts.signatures.len());
    }
}

/// A native x64 image of one empty section whose certificate table holds `pkcs7` as its one entry.
pub fn signed_driver(pkcs7: &[u8]) -> Vec<u8> {
    const HEADERS: u32 = 0x200;
    let mut image = vec![0; 0x200];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let entry = (pkcs7.len() as u32 + 8).next_multiple_of(8);
    put(0, b"MZ");
    put(0x3C, &0x40_u32.to_le_bytes());
    put(0x40, b"PE\0\0\x64\x86\x01\0");
    put(0x54, &[0xF0, 0, 0x22, 0]);
    put(0x58, &0x20B_u16.to_le_bytes());
    for (offset, value) in [(32, 0x1000), (36, 0x200), (56, 0x2000), (60, HEADERS), (108, 16), (112 + 32, HEADERS), (112 + 36, entry)] {
        put(0x58 + offset, &value.to_le_bytes());
    }
    put(0x58 + 48, &[10, 0, 0, 0]);
    put(0x58 + 68, &[1, 0]);
    put(0x148, b".text\0\0\0");
    put(0x150, &0x1000_u32.to_le_bytes());
    put(0x154, &0x1000_u32.to_le_bytes());
    put(0x16C, &0x6000_0020_u32.to_le_bytes());
    image.extend((pkcs7.len() as u32 + 8).to_le_bytes());
    image.extend([0, 2, 2, 0]);
    image.extend(pkcs7);
    image.resize((HEADERS + entry) as usize, 0);
    image
}

/// The smallest ELF64 object with `pkcs7` appended as its module signature.
pub fn signed_module(pkcs7: &[u8]) -> Vec<u8> {
    let mut module = vec![0; 64];
    module[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    module[16..24].copy_from_slice(&[1, 0, 62, 0, 1, 0, 0, 0]);
    module[52..64].copy_from_slice(&[64, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0]);
    module.extend(pkcs7);
    module.extend([0, 0, 2, 0, 0, 0, 0, 0]);
    module.extend((pkcs7.len() as u32).to_be_bytes());
    module.extend(b"~Module signature appended~\n");
    module
}
