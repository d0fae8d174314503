//! PE headers, directories, hash ranges, page hashes, lint. The first byte says how long a page-hash table stands in front of the image.
#![no_main]

use hvci_engine::{
    digest::DigestAlg,
    facts::DigestForm::{Flat, Linear, LinearPadded, Module, SectionSum},
    image::pe::Pe,
    signature::crosscheck,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((len, rest)) = data.split_first() else { return };
    let (table, image) = rest.split_at(usize::from(*len).min(rest.len()));
    let Ok(pe) = Pe::parse(image) else { return };
    for form in [Flat, Linear, LinearPadded, Module, SectionSum] {
        if let (Some(pieces), Some(ranges)) = (pe.hash_pieces(form), pe.hash_ranges(form)) {
            let hashed: usize = pieces.iter().map(|p| p.len()).sum();
            // sections may overlap, so that bytes are hashed twice; padding is hashed and not there
            assert!(hashed <= 2 * image.len() + 8, "{form}: {hashed} bytes of {}", image.len());
            assert!(ranges.iter().all(|r| r.end().is_some_and(|end| end <= image.len() as u64 + 8)), "{form}: {ranges:?}");
        }
    }
    for section in pe.sections() {
        assert_eq!(section.permissions().as_str().len(), 5);
        section.display_name();
        pe.at_address(section.mapped_size());
    }
    for page in pe.pages() {
        let hashed: usize = page.pieces.iter().map(|p| p.len()).sum();
        assert!(hashed <= pe.page_size());
    }
    for alg in [DigestAlg::Sha1, DigestAlg::Sha256] {
        _ = pe.verify_page_table(table, alg);
    }
    pe.lint(&pe.imports());
    pe.facts();
    pe.imports();
    let exports = pe.exports();
    assert!(exports.ordinals.is_sorted_by(|a, b| a.0 < b.0) && exports.names.len() <= 65_536);
    pe.relocation_blocks().flatten().flat_map(|block| block.relocations()).for_each(drop);
    assert!(pe.import_transfers().count() <= image.len() / 4);
    pe.version_info();
    pe.resource_note();
    pe.pdb();
    pe.forms_differ();
    pe.checksum_note(pe.checksum());
    let table = pe.certificate_table();
    for entry in &table.entries {
        entry.subject();
    }
    crosscheck::divergences(image);
});
