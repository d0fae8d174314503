//! What may import what, how long a file may be, and where `unsafe` may stand: read from the sources.
//!
//! ```text
//! budget digest oid time → bytes → finding, crypto → image → signature → policy
//!                                       └─ facts: the plain data between them ─┘     examine: image + signature → facts
//! ```

#![expect(clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test of files that are there")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A module of the crate, and what it may import: modules, or items and modules in them.
const ALLOWED: &[(&str, &[&str])] = &[
    // the half that enforces
    ("access", &[]),
    ("addr", &[]),
    ("status", &[]),
    ("sync", &[]),
    ("host", &["access", "addr", "status"]),
    ("embed", &["access", "addr", "host", "status", "sync"]),
    // the one place where everything that a VMM needs meets
    (
        "capi",
        &[
            "access",
            "addr",
            "bytes",
            "event",
            "host",
            "image::pe::Symbol",
            "load",
            "signature::block_list",
            "signature::cache",
            "signature::catalog",
            "signature::trust",
            "status",
            "time",
            "vault",
            "vsm::partition",
            "vsm::secure_call",
        ],
    ),
    ("explore", &["access", "addr", "frames", "host", "status"]),
    ("frames", &["access", "addr", "host", "status", "sync"]),
    ("event", &["access", "addr", "digest", "finding", "status"]),
    // of `bytes` the readers, which are the only ones to index
    ("vsm", &["access", "addr", "bytes", "event", "finding", "frames", "host", "status", "sync"]),
    ("slat", &["access", "addr", "bytes::widen"]),
    // the half that decides
    ("budget", &[]),
    ("digest", &[]),
    ("oid", &[]),
    ("time", &[]),
    ("bytes", &["budget", "oid", "time"]),
    // a finding says which bytes
    ("finding", &["bytes::Span"]),
    ("crypto", &["bytes", "digest", "oid"]),
    // the data that the readers fill in and the policy reads: of other modules only types that stand in it
    ("facts", &["bytes::Span", "bytes::widen", "crypto::Scheme", "digest", "finding", "signature::cert::Certificate", "time"]),
    ("image", &["budget", "bytes", "crypto::digest", "digest", "facts", "finding"]),
    ("signature", &["budget", "bytes", "crypto", "digest", "facts", "finding", "image", "oid", "time", "uefi"]),
    ("uefi", &["time"]),
    (
        "load",
        &[
            "access",
            "addr",
            "bytes",
            // digests of pages that come back
            "crypto",
            "digest",
            "event",
            "examine",
            "facts",
            "finding",
            "frames",
            "host",
            "image",
            "policy",
            "signature::block_list",
            "signature::cache",
            "signature::catalog",
            "signature::trust",
            "status",
            "sync",
            "time",
            "vsm::partition",
            // which page tables a processor has
            "vsm::register",
            "vsm::secure_call",
        ],
    ),
    ("vault", &["addr", "bytes", "digest", "event", "finding", "frames", "status", "sync", "time", "vsm::partition", "vsm::secure_call"]),
    ("examine", &["crypto", "digest", "facts", "finding", "image", "signature"]),
    // reads facts, never bytes: of `signature` only what trust changes
    (
        "policy",
        &[
            "budget",
            "bytes::Span",
            "crypto::KeyKind",
            "digest",
            "facts",
            "finding",
            "oid",
            "signature::cache",
            "signature::cert",
            "signature::chain",
            "signature::root_list",
            "signature::signature_list",
            "signature::trust",
            "time",
            "uefi::Guid",
        ],
    ),
];

/// Lines of a file without its tests.
const MAX_LINES: usize = 600;

#[test]
fn modules_import_only_what_is_below_them() {
    let mut wrong = Vec::new();
    for source in sources() {
        wrong.extend(violations(&source.module, &source.text).into_iter().map(|v| format!("{}: {v}", source.path.display())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_the_table_allows_is_needed() {
    let used: Vec<(String, String)> =
        sources().iter().flat_map(|s| imports(&s.module, &code(&s.text)).into_iter().map(|path| (s.module[0].clone(), path))).collect();
    let idle: Vec<String> = ALLOWED
        .iter()
        .flat_map(|(module, allowed)| allowed.iter().map(move |path| (module, path)))
        .filter(|(module, path)| !used.iter().any(|(m, p)| m == *module && within(p, path)))
        .map(|(module, path)| format!("nothing in {module} imports {path}"))
        .collect();
    assert!(idle.is_empty(), "{}", idle.join("\n"));
}

#[test]
fn every_module_stands_in_the_table() {
    let lib = fs::read_to_string(root().join("lib.rs")).expect("src/lib.rs");
    let mut declared: Vec<&str> =
        lib.lines().filter_map(|l| l.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')).collect();
    let mut listed: Vec<&str> = ALLOWED.iter().map(|(module, _)| *module).collect();
    declared.sort_unstable();
    listed.sort_unstable();
    assert_eq!(declared, listed);
}

#[test]
fn files_are_short() {
    for source in sources() {
        let lines = source.text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines without tests", source.path.display());
    }
}

#[test]
fn unsafe_code_is_in_the_lanes_and_at_the_edge_to_c_alone() {
    const ALLOWED: [&str; 2] = ["crypto/lanes", "capi"];
    let mut files = 0;
    for source in sources() {
        let has = code(&source.text).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
        let allowed = ALLOWED.iter().any(|folder| source.path.starts_with(root().join(folder)));
        assert!(!has || allowed, "{} has unsafe code", source.path.display());
        files += usize::from(has);
    }
    assert!(files > 0, "the search for unsafe code finds none where some is");
}

#[test]
fn violations_are_found() {
    let of = |module: &str, text: &str| violations(&module.split("::").map(str::to_owned).collect::<Vec<_>>(), text);
    assert_eq!(of("policy::judge", "use crate::{bytes::Span, facts::{Facts, Signature as S}};\nuse super::profile::Profile;\n"), [""; 0]);
    assert_eq!(of("policy::judge", "use crate::bytes::der::Tlv;"), ["policy imports bytes::der::Tlv"]);
    assert_eq!(
        of("image::pe", "use crate::{\n    bytes::{self, Span},\n    signature::{\n        cms::Pool,\n    },\n};\n"),
        ["image imports signature::cms::Pool"]
    );
    assert_eq!(of("image", "fn f(c: &crate::signature::cert::Certificate) {}"), ["image imports signature::cert::Certificate"]);
    assert_eq!(of("bytes::der", "use super::super::image::pe::Pe;"), ["bytes imports image::pe::Pe"]);
    assert_eq!(of("bytes::der", "pub use super::Span;\n/// See [`crate::image`].\n// crate::image\n"), [""; 0]);
    assert_eq!(of("digest", "use crate::*;"), ["digest imports *"]);
    assert_eq!(of("finding", "use crate::bytes::{widen as w, Span};"), ["finding imports bytes::widen"]);
    assert_eq!(without_tests("a\n#[cfg(test)]\nmod tests {\nuse crate::x;\n}\n"), "a\n");
}

struct Source {
    path: PathBuf,
    /// Path of the module: `signature`, `cert`.
    module: Vec<String>,
    /// Without the tests.
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file but those of tests and `lib.rs`.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        let entries: Vec<PathBuf> = fs::read_dir(&folder).expect("a folder").map(|e| e.expect("an entry").path()).collect();
        let of_tests: Vec<String> = entries.iter().flat_map(|path| test_modules(path)).collect();
        for path in entries {
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !of_tests.contains(&stem) && stem != "tests" && stem != "lib" {
                let below = path.strip_prefix(root()).expect("below src").with_extension("");
                let mut module: Vec<String> = below.iter().map(|c| c.to_string_lossy().into_owned()).collect();
                module.pop_if(|last| last == "mod");
                let text = without_tests(&fs::read_to_string(&path).expect("a source"));
                found.push(Source { path, module, text });
            }
        }
    }
    assert!(found.len() > 40, "only {} sources found", found.len());
    found
}

/// Modules in files of their own that only tests have.
fn test_modules(path: &Path) -> Vec<String> {
    let text = if path.is_dir() { String::new() } else { fs::read_to_string(path).unwrap_or_default() };
    let lines: Vec<&str> = text.lines().collect();
    let is_test = |pair: &&[&str]| pair.first().is_some_and(|l| l.trim() == "#[cfg(test)]");
    let name = |line: &str| Some(line.rsplit_once("mod ")?.1.strip_suffix(';')?.to_owned());
    lines.windows(2).filter(is_test).filter_map(|pair| name(pair.last()?)).collect()
}

/// The text before the module of tests, which is the last thing in a file.
fn without_tests(text: &str) -> String {
    let end = text.find("\n#[cfg(test)]\nmod tests").map_or(text.len(), |at| at + 1);
    text.get(..end).unwrap_or(text).to_owned()
}

/// The text without comments.
fn code(text: &str) -> String {
    text.lines()
        .map(|line| if line.trim_start().starts_with("//") { "" } else { line.split(" // ").next().unwrap_or(line) }.to_owned() + "\n")
        .collect()
}

/// What `text`, the source of `module`, imports and may not.
fn violations(module: &[String], text: &str) -> Vec<String> {
    let top = module.first().expect("a module has a name");
    let (_, allowed) = ALLOWED.iter().find(|(m, _)| m == top).unwrap_or_else(|| panic!("{top} stands not in the table"));
    imports(module, &code(text))
        .into_iter()
        .filter(|path| !within(path, top) && !allowed.iter().any(|a| within(path, a)))
        .map(|path| format!("{top} imports {path}"))
        .collect()
}

/// Whether `path` is `prefix` or in it.
fn within(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Paths from the root of the crate that stand in `code`, `use` trees unfolded.
fn imports(module: &[String], code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("::") {
        let (before, after) = (code.get(..at).unwrap_or_default(), code.get(at + 2..).unwrap_or_default());
        let word_start = before.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |i| i + 1);
        let (outside, word) = before.split_at(word_start);
        let mut rest = after;
        let base = match word {
            "crate" => 0,
            // a chain of them is followed from its first
            "super" if !outside.ends_with("::") => {
                let mut up = 1;
                while let Some(more) = rest.strip_prefix("super::") {
                    (up, rest) = (up + 1, more);
                }
                module.len().saturating_sub(up)
            }
            _ => continue,
        };
        unfold(&module.get(..base).unwrap_or_default().join("::"), &mut rest, &mut found);
    }
    found
}

/// Reads one `use` tree, or the one path of an expression, below `prefix`.
fn unfold(prefix: &str, rest: &mut &str, found: &mut Vec<String>) {
    let join = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
    if let Some(inside) = rest.strip_prefix('{') {
        *rest = inside.trim_start();
        while !rest.is_empty() && !rest.starts_with('}') {
            unfold(prefix, rest, found);
            // what another name it gets does not matter
            let end = rest.find([',', '}']).unwrap_or(rest.len());
            *rest = rest.get(end..).unwrap_or_default().trim_start_matches(',').trim_start();
        }
        *rest = rest.strip_prefix('}').unwrap_or(rest);
        return;
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*').unwrap_or(rest.len());
    let (name, after) = rest.split_at(end);
    *rest = after;
    match after.strip_prefix("::") {
        Some(more) => {
            *rest = more;
            unfold(&join(name), rest, found);
        }
        None if name == "self" || name.is_empty() => found.push(prefix.to_owned()),
        None => found.push(join(name)),
    }
}
