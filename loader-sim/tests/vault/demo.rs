//! What `hvci-sim vault` prints is what is promised.

use std::{fs, path::Path, process::Command};

use super::PASSWORD;

fn sim(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_hvci-sim")).current_dir(folder).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn the_demonstration_finds_secrets_where_they_are_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let (code, said) = sim(folder.path(), &["vault", "demo"]);
    assert_eq!(code, Some(0), "{said}");
    let nothing = said.lines().filter(|line| line.ends_with("  nothing")).count();
    assert_eq!(nothing, 6, "{said}");
    let without = said.lines().find(|line| line.contains("without a vault")).unwrap();
    assert!(without.contains("NT hash (raw)") && without.contains("password (UTF-16)"), "{without}");
    assert!(said.contains("reduced") && said.contains("not removed"), "{said}");
}

#[test]
fn files_are_searched_for_what_a_password_comes_to() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| fs::write(folder.path().join(name), content).unwrap();
    write("password", PASSWORD.as_bytes());
    write("clean.log", b"nothing to see");
    write("leak.log", b"... nt=1b9d5effd34ac283c8efe2eacaea8bbc ...");
    let search =
        |files: &[&str]| sim(folder.path(), &[&["vault", "search", "alice@EXAMPLE.ORG", "--password-file", "password"], files].concat());
    assert_eq!(search(&["clean.log"]), (Some(0), "6 secrets, 14 bytes: found in 0 places\n".to_owned()));
    let (code, said) = search(&["clean.log", "leak.log"]);
    assert_eq!((code, said.lines().next()), (Some(1), Some("leak.log: NT hash (hex) at 0x7")));
    assert_eq!(search(&["missing"]).0, Some(2));
}
