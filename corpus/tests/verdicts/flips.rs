//! One changed bit anywhere that a signature covers, and nobody accepts the file any more.

use std::ops::Range;

use corpus::synth::{
    authenticode::Authenticode,
    elf,
    layout::Layout,
    pe::{self, Image},
    signed_data::Signing,
    timestamp::Stamp,
};
use hvci_engine::{
    bytes::der::{Reader, Tlv, tag},
    examine::Examiner,
    facts::FileKind::PeDriver,
    image::unpack::unpack,
    policy::{
        Decision::{self, Accept},
        Judge, Profile, profile,
    },
    signature::{cache::Cache, catalog::CatalogIndex},
};
use rayon::prelude::*;

use super::{NOW, PKI, TRUST, attach, case, instant, who};

/// Offsets at which a flipped bit does not keep the file from being accepted. Each offset gets another bit, and all of them in 8 rounds.
fn accepted(file: &[u8], profile: &Profile, rounds: usize) -> Vec<usize> {
    let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
    let decision = |bytes: &[u8]| -> Decision {
        let facts = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] }.examine(bytes, 1 << 20);
        Judge { trust: &TRUST, time: *NOW, cache: &cache }.judge(&facts, Some(profile)).decision
    };
    assert_eq!(decision(file), Accept, "the file as it is");
    let mut found: Vec<usize> = (0..file.len())
        .into_par_iter()
        .filter(|at| {
            (0..rounds).any(|round| {
                let mut changed = file.to_vec();
                changed[*at] ^= 1 << ((at + round) % 8);
                decision(&changed) == Accept
            })
        })
        .collect();
    found.sort_unstable();
    found
}

fn range(tlv: &Tlv<'_>) -> Range<usize> {
    tlv.offset..tlv.offset + tlv.raw.len()
}

/// The parts of a PKCS#7 at `offset` that its signature does not cover (RFC 5652 §5.4): versions, algorithm lists and identifiers, and the
/// unsigned attributes.
fn uncovered(pkcs7: &[u8], offset: usize) -> Vec<Range<usize>> {
    let mut outer = Reader::new(pkcs7, offset).next().unwrap().reader().unwrap();
    outer.next().unwrap();
    let mut data = outer.next().unwrap().reader().unwrap().next().unwrap().reader().unwrap();
    let mut ranges = vec![range(&data.next().unwrap()), range(&data.next().unwrap())];
    data.next().unwrap();
    data.optional(tag::context_constructed(0)).unwrap();
    let mut signer = data.next().unwrap().reader().unwrap().next().unwrap().reader().unwrap();
    ranges.push(range(&signer.next().unwrap()));
    signer.next().unwrap();
    ranges.push(range(&signer.next().unwrap()));
    signer.optional(tag::context_constructed(0)).unwrap();
    ranges.push(range(&signer.next().unwrap()));
    signer.next().unwrap();
    ranges.extend(signer.optional(tag::context_constructed(1)).unwrap().iter().map(range));
    ranges
}

fn small_driver() -> Image {
    Image {
        sections: vec![(".text", pe::CODE, 0x200), (".rdata", pe::CONST, 0x100)],
        relocations: Vec::new(),
        version: None,
        ..Image::of(PeDriver, "flips")
    }
}

fn check_driver(signer: &str, stamped: bool) {
    let image = small_driver().build().unwrap();
    let mut signature = Authenticode::new(Signing::new(who(signer), &PKI.issuers(signer).unwrap()));
    if stamped {
        signature.signing.stamps = vec![Stamp::new(who("tsa"), &[], instant("2023-01-01").unwrap())];
    }
    let file = attach(&image, &signature);
    let layout = Layout::of(&file).unwrap();
    let table = layout.table(&file).unwrap();
    let pkcs7 = table.start + 8;
    let length = Reader::new(&file[pkcs7..], 0).next().unwrap().raw.len();
    let mut allowed = uncovered(&file[pkcs7..pkcs7 + length], pkcs7);
    allowed.push(layout.checksum..layout.checksum + 4);
    // padding, which is a finding of its own, and the length of the entry, which may end anywhere in it
    allowed.push(pkcs7 + length..table.end);
    allowed.push(table.start..table.start + 4);
    let accepted = accepted(&file, &profile::WINDOWS_KERNEL, 1);
    let wrong: Vec<String> = accepted.iter().filter(|at| !allowed.iter().any(|r| r.contains(at))).map(|at| format!("{at:#x}")).collect();
    assert!(wrong.is_empty(), "{signer}: accepted with a flipped bit at {}", wrong.join(", "));
    assert!((layout.checksum..layout.checksum + 4).all(|at| accepted.contains(&at)), "CheckSum is no part of what is signed");
}

#[test]
fn no_flipped_bit_of_a_signed_driver_is_accepted() {
    check_driver("whql", false);
    check_driver("whql p256", false);
}

#[test]
fn no_flipped_bit_of_a_timestamped_driver_is_accepted() {
    check_driver("whql", true);
}

#[test]
fn no_flipped_bit_of_a_signed_module_is_accepted() {
    for signer in ["module", "module ecdsa"] {
        let module = elf::module("flips", false).unwrap();
        let file = elf::signed(&module, &elf::signing(who(signer))).unwrap();
        let allowed = uncovered(&file[module.len()..], module.len());
        let wrong: Vec<String> = accepted(&file, &profile::LINUX_MODULE, 2)
            .iter()
            .filter(|at| !allowed.iter().any(|r| r.contains(at)))
            .map(|at| format!("{at:#x}"))
            .collect();
        assert!(wrong.is_empty(), "{signer}: accepted with a flipped bit at {}", wrong.join(", "));
    }
}

/// Compresses a file.
type Pack = fn(&[u8]) -> Vec<u8>;

const PACKERS: [(&str, Pack); 3] = [("gz", |b| elf::gzip(b).unwrap()), ("xz", |b| elf::xz(b, true).unwrap()), ("zst", elf::zstd)];

/// The decision about a module, with nothing remembered.
fn module_decision(bytes: &[u8]) -> Decision {
    let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
    let facts = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] }.examine(bytes, 1 << 20);
    Judge { trust: &TRUST, time: *NOW, cache: &cache }.judge(&facts, Some(&profile::LINUX_MODULE)).decision
}

#[test]
fn no_flipped_bit_below_the_compression_is_accepted() {
    let module = elf::module("packed", false).unwrap();
    let file = elf::signed(&module, &elf::signing(who("module"))).unwrap();
    let allowed = uncovered(&file[module.len()..], module.len());
    for (name, pack) in PACKERS {
        assert_eq!(module_decision(&pack(&file)), Accept, "{name}");
        let accepted: Vec<usize> = (0..file.len())
            .into_par_iter()
            .filter(|at| !allowed.iter().any(|r| r.contains(at)))
            .filter(|at| {
                let mut changed = file.clone();
                changed[*at] ^= 1 << (at % 8);
                module_decision(&pack(&changed)) == Accept
            })
            .collect();
        assert!(accepted.is_empty(), "{name}: accepted with a flipped bit at {accepted:?}");
    }
}

#[test]
fn a_flipped_bit_of_the_compressed_stream_changes_nothing_or_is_refused() {
    for (name, _) in PACKERS {
        let file = case(&format!("module/compressed.ko.{name}"));
        let content = unpack(file, 1 << 20).unwrap().data;
        let same: usize = (0..8 * file.len())
            .into_par_iter()
            .map(|bit| {
                let mut changed = file.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                let accepted = module_decision(&changed) == Accept;
                let same = unpack(&changed, 1 << 20).is_ok_and(|u| u.data == content);
                assert!(same || !accepted, "{name}: bit {bit} changes the module, and it is accepted");
                usize::from(same && accepted)
            })
            .sum();
        // header fields that no content depends on, such as gzip's time
        assert!(same < file.len(), "{name}: {same} of {} bits change nothing", 8 * file.len());
    }
}
