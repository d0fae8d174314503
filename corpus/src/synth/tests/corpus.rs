//! The corpus as a whole: complete, the same every time, made without the engine; mutations that hold up on any input.

use std::collections::BTreeSet;

use hvci_engine::facts::FileKind::PeDriver;
use proptest::prelude::*;

use super::*;
use crate::synth::{mutate::Mutation, pe::Image};

/// Rows of the capability table that ask for images. Not among them: 50 (revocation needs authorities of the real world), 62 and 63 (catalogs by
/// the thousand, INF completeness).
const ROWS: &[std::ops::RangeInclusive<u8>] = &[1..=49, 51..=61, 79..=93];

#[test]
fn every_row_has_a_good_and_a_bad_file() {
    let of = |row: u8, wanted: fn(&cases::Expected) -> bool| -> BTreeSet<&str> {
        CORPUS.cases.iter().filter(|c| c.rows.contains(&row) && c.expected.iter().any(wanted)).map(|c| c.path.as_str()).collect()
    };
    for row in ROWS.iter().flat_map(Clone::clone) {
        let good = of(row, |e| e.decision == Decision::Accept);
        let bad = of(row, |e| e.decision != Decision::Accept || !e.codes.is_empty());
        assert!(!good.is_empty(), "row {row} has no good file");
        assert!(!bad.is_empty(), "row {row} has no bad file");
        // a file that is accepted with a finding is not both
        assert!(good.union(&bad).count() > 1, "row {row} has one file: {good:?}");
    }
    let known = ROWS.iter().flat_map(Clone::clone).collect::<BTreeSet<_>>();
    let odd: Vec<_> = CORPUS.cases.iter().filter(|c| c.rows.iter().any(|row| !known.contains(row))).map(|c| &c.path).collect();
    assert!(odd.is_empty(), "for rows that ask for no image: {odd:?}");
}

#[test]
fn every_file_is_there_once_and_is_judged() {
    let paths: BTreeSet<&str> = CORPUS.cases.iter().map(|c| c.path.as_str()).collect();
    assert_eq!(paths.len(), CORPUS.cases.len());
    for case in &CORPUS.cases {
        assert!(!case.expected.is_empty() && !case.rows.is_empty(), "{}", case.path);
        let twins = CORPUS.cases.iter().filter(|c| c.bytes == case.bytes).count();
        assert_eq!(twins, 1, "{} is not the only one of its kind", case.path);
    }
    let starter = cases::starter(&PKI).unwrap();
    assert!((20..60).contains(&starter.cases.len()), "{}", starter.cases.len());
    assert!(starter.cases.iter().any(|c| c.path == KERNEL_PATH));
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let make = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        pool.install(|| write(dir.path(), DEFAULT_SEED)).unwrap();
        let mut files = BTreeMap::new();
        let mut folders = vec![dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.insert(path.strip_prefix(dir.path()).unwrap().to_owned(), fs::read(&path).unwrap());
                }
            }
        }
        files
    };
    let (one, three) = (make(1), make(3));
    assert_eq!(one.keys().collect::<Vec<_>>(), three.keys().collect::<Vec<_>>());
    let differ: Vec<_> = one.iter().filter(|(path, bytes)| three[*path] != **bytes).map(|(path, _)| path).collect();
    assert!(differ.is_empty(), "{differ:?}");
    assert!(one.len() > CORPUS.cases.len() && one.contains_key(Path::new("expected.json")));
}

#[test]
fn another_seed_gives_other_keys() {
    let key = |seed| key::Key::derive(seed, "tsa root", key::KeyKind::P384).unwrap().public().unwrap();
    assert_ne!(key(DEFAULT_SEED), key(DEFAULT_SEED + 1));
}

#[test]
fn a_folder_with_something_in_it_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mine"), b"x").unwrap();
    assert!(matches!(write_corpus(dir.path(), 1, &PKI, &CORPUS), Err(Error::NotEmpty(_))));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// The maker may use the engine's words and none of its work.
#[test]
fn nothing_of_the_engine_but_its_vocabulary_is_used() {
    const WORDS: &[&str] = &[
        "digest",
        "DigestAlg",
        "facts",
        "FileKind",
        "PeDriver",
        "PeEfi",
        "PeUser",
        "finding",
        "Code",
        "policy",
        "Decision",
        "time",
        "UnixTime",
    ];
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/synth")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("tests") {
                folders.push(path);
            } else if path.is_file() && !path.ends_with("tests.rs") {
                files += 1;
                let source = fs::read_to_string(&path).unwrap();
                for used in source.split("hvci_engine::").skip(1) {
                    // a path, or a group of paths that may have groups in them
                    let mut depth = 0;
                    let end = used.find(|c: char| {
                        depth += i32::from(c == '{') - i32::from(c == '}');
                        depth < 1 && !(c.is_alphanumeric() || c == ':' || c == '_')
                    });
                    let group = &used[..end.unwrap_or(used.len())];
                    for name in group.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|n| !n.is_empty()) {
                        assert!(WORDS.contains(&name), "{} uses {name} of the engine", path.display());
                    }
                }
            }
        }
    }
    assert!(files > 20);
}

#[test]
fn mutations_change_signed_files_and_nothing_else() {
    let unsigned = Image::of(PeDriver, "unsigned").build().unwrap();
    let signed = case("mutated/none.sys");
    let dual = case("signature/nested-attested.sys");
    let stamped = case("timestamp/rfc3161.exe");
    let other = case("signature/nested-two-values.sys");
    for mutation in mutate::ALL {
        let results = [signed, dual, stamped].map(|file| mutation.apply(file, other).ok().filter(|mutated| mutated != file));
        assert!(results.iter().any(Option::is_some), "{} applies to nothing", mutation.name);
        let structural = ["content-byte", "checksum", "few-directories", "truncated-headers", "truncated-section", "signature-of-another"];
        if !structural.contains(&mutation.name) && mutation.name != "section-over-table" {
            assert!(mutation.apply(&unsigned, other).is_err(), "{} applies to an unsigned file", mutation.name);
        }
        assert_eq!(Mutation::find(mutation.name).map(|m| m.what), Some(mutation.what));
    }
    assert_eq!(mutate::truncated(signed, 10).len(), 10);
    assert_eq!(mutate::truncated(signed, usize::MAX), signed);
}

#[test]
fn a_table_taken_apart_and_joined_is_the_same_file() {
    for path in ["mutated/none.sys", "container/two-entries.efi", "signature/ber.sys", "kernel/vmlinuz"] {
        let file = case(path);
        assert_eq!(authenticode::Table::split(file).unwrap().join().unwrap(), file, "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The fuzzers feed mutations what they have.
    #[test]
    fn mutations_never_panic(len in 0_usize..40_000, at in 0_usize..40_000, value: u8, random in proptest::collection::vec(any::<u8>(), 0..300)) {
        let signed = case("signature/nested-attested.sys");
        let mut changed = mutate::truncated(signed, len).to_vec();
        if let Some(byte) = changed.get_mut(at) {
            *byte = value;
        }
        for mutation in mutate::ALL {
            let _ = mutation.apply(&changed, signed);
            let _ = mutation.apply(signed, &changed);
            let _ = mutation.apply(&random, signed);
        }
    }

    /// Headers decide where everything is.
    #[test]
    fn mutations_never_panic_on_headers(at in 0_usize..0x300, value: u32) {
        let signed = case("signature/nested-attested.sys");
        let mut changed = signed.to_vec();
        layout::write32(&mut changed, at, value).unwrap();
        for mutation in mutate::ALL {
            let _ = mutation.apply(&changed, signed);
        }
        let _ = layout::authentihash(&changed, hvci_engine::digest::DigestAlg::Sha256);
        let _ = layout::section_sum(&changed, hvci_engine::digest::DigestAlg::Sha256);
        let _ = layout::page_hashes(&changed, hvci_engine::digest::DigestAlg::Sha256);
    }
}

fn case(path: &str) -> &'static [u8] {
    &CORPUS.cases.iter().find(|c| c.path == path).unwrap().bytes
}
