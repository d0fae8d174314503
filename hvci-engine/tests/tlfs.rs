//! The engine's numbers against `tests/tlfs/*.tsv`, a second reading of the public sources: name, number, where it stands; for intercepts the
//! register, its MSR number and the bits for reads and writes. Both ways: what a table has the engine has, and the reverse.

#![expect(clippy::expect_used, clippy::panic, reason = "a test of files that are there")]

use std::{collections::BTreeMap, fs, path::Path};

use hvci_engine::{
    status::HvStatus,
    vsm::{hypercall::HypercallCode, intercept::Interceptable, message::MessageType, register::RegisterName},
};

#[test]
fn hypercalls_are_those_of_the_table() {
    compare("hypercalls", HypercallCode::NAMED.iter().map(|(code, name)| (*name, u32::from(code.0))));
}

#[test]
fn registers_are_those_of_the_table() {
    compare("registers", RegisterName::NAMED.iter().map(|(register, name)| (*name, register.0)));
}

#[test]
fn messages_are_those_of_the_table() {
    compare("messages", MessageType::NAMED.iter().map(|(kind, name)| (*name, kind.0)));
}

#[test]
fn statuses_are_those_of_the_table() {
    let ours: Vec<(String, u32)> = HvStatus::NAMED.iter().map(|(status, name, _)| (camel_case(name), u32::from(status.0))).collect();
    compare("statuses", ours.iter().map(|(name, number)| (name.as_str(), *number)));
}

#[test]
fn intercepts_are_those_of_the_table() {
    let bit = |mask: u64| if mask == 0 { "-".to_owned() } else { mask.trailing_zeros().to_string() };
    let row = |one: &Interceptable| {
        let msr = one.msr.map_or_else(|| "-".to_owned(), |msr| format!("{msr:#X}").replace("0X", "0x"));
        [one.register.to_string(), msr, bit(one.read.0), bit(one.write.0)].join("\t")
    };
    let mut ours: Vec<String> = Interceptable::ALL.iter().map(row).collect();
    let text = table("intercepts");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("register\tmsr\tread\twrite\tsource"));
    let mut theirs: Vec<&str> = lines.map(|line| line.rsplit_once('\t').expect("a source").0).collect();
    ours.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(ours, theirs);
}

/// `ACCESS_DENIED` as `AccessDenied`.
fn camel_case(name: &str) -> String {
    name.split('_').flat_map(|word| word.chars().take(1).chain(word.chars().skip(1).map(|c| c.to_ascii_lowercase()))).collect()
}

fn compare<'a>(table: &str, ours: impl Iterator<Item = (&'a str, u32)>) {
    let theirs = read(table);
    let ours: BTreeMap<String, u32> = ours.map(|(name, number)| (name.to_owned(), number)).collect();
    let names = theirs.keys().chain(ours.keys());
    let different: Vec<String> = names
        .filter(|name| theirs.get(*name) != ours.get(*name))
        .map(|name| format!("{name}: {table}.tsv {:x?}, engine {:x?}", theirs.get(name), ours.get(name)))
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
}

fn table(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tlfs").join(name).with_extension("tsv");
    fs::read_to_string(&path).expect("a table")
}

fn read(name: &str) -> BTreeMap<String, u32> {
    let text = table(name);
    let mut rows = BTreeMap::new();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("name\tnumber\tsource"));
    for line in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, number, source] = fields[..] else { panic!("{line:?} has not three fields") };
        let digits = number.strip_prefix("0x").expect("hexadecimal");
        let number = u32::from_str_radix(digits, 16).expect("a number");
        assert!(source.starts_with("TLFS ") || source.starts_with("openvmm "), "{name} has no source");
        assert_eq!(rows.insert(name.to_owned(), number), None, "{name} stands twice");
    }
    rows
}
