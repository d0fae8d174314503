//! `docs/threats.md` names tests that are there.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn every_threat_has_a_test_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("docs/threats.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| T")?.split_once(" | "));
    let mut seen = BTreeSet::new();
    for (number, row) in rows {
        let name = format!("T{number}");
        let quoted: Vec<&str> = row.rsplit(" | ").next().unwrap().split('`').skip(1).step_by(2).collect();
        assert!(!quoted.is_empty(), "{name} has a test");
        for pair in quoted.chunks(2) {
            let [file, test] = pair else { panic!("{name}: a file and a test") };
            let source = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{name}: {file}: {error}"));
            let is_there = [format!("fn {test}("), format!("{test}!(")].iter().any(|line| source.contains(line));
            assert!(is_there, "{name}: {file} has no {test}");
        }
        assert!(seen.insert(name));
    }
    assert_eq!(seen, (1..=31).map(|n| format!("T{n}")).collect());
}
