//! `hvci-sim` as its users run it.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    process::{Command, Output},
};

use corpus::synth::{
    certificate::Template,
    elf,
    key::{Key, KeyKind},
};
use x509_cert::der::Encode;

fn sim(args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hvci-sim")).args(args.split(' ')).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_engine_is_explored() {
    let output = sim("explore --pages 2 --frames 1 --vps 2");
    assert_eq!((said(&output), output.status.code()), ("8443 states, 73854 actions\nno invariant is broken\n".to_owned(), Some(0)));
    let output = sim("explore --pages 2 --frames 1 --vps 1 --transactions 2");
    assert!(said(&output).ends_with("no invariant is broken\n"), "{}", said(&output));
}

#[test]
fn a_mistake_is_shown_with_the_shortest_way_to_it() {
    let output = sim("explore --pages 2 --frames 1 --vps 1 --bug one-alias");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("I1: a frame can be written and executed\n  1. transaction 0 of the menu begins\n"), "{text}");
    assert!(text.contains("engine, transaction 0: Open"), "{text}");
}

#[test]
fn wrong_arguments_are_explained() {
    let output = sim("explore --pages 1 --frames 2");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "hvci-sim: --frames 2 needs at least as many --pages\n");
    assert_eq!(sim("explore --bug nothing").status.code(), Some(2));
}

#[test]
fn the_table_of_the_readme_is_what_it_prints() {
    let output = sim("explore --bugs");
    let readme = include_str!("../../README.md");
    assert_eq!(output.status.code(), Some(0));
    assert!(readme.contains(&said(&output)), "{}", said(&output));
}

/// A folder with a module that is signed by the key beside it, and the same module with one byte changed.
fn modules() -> tempfile::TempDir {
    let key = Key::derive(7, "module", KeyKind::Rsa(2048)).unwrap();
    let key = Template::leaf("CN=Module Key", &[]).issue(&key, None).unwrap();
    let signed = elf::signed(&elf::module("good", false).unwrap(), &elf::signing(&key)).unwrap();
    let mut forged = signed.clone();
    forged[0x100] ^= 1;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key.der"), key.certificate.to_der().unwrap()).unwrap();
    fs::write(dir.path().join("good.ko"), signed).unwrap();
    fs::write(dir.path().join("forged.ko"), forged).unwrap();
    fs::write(dir.path().join("note.txt"), "no image").unwrap();
    dir
}

#[test]
fn a_signed_module_is_sealed_and_a_forged_one_is_not() {
    let dir = modules();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let trace = at("events.ndjson");
    let output = sim(&format!("load --roots module={} {} {} --vps 2 --trace {trace}", at("key.der"), at("forged.ko"), at("good.ko")));
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let (forged, good) = text.split_once("ACCEPT").unwrap();
    assert!(forged.starts_with("REFUSE") && forged.contains("error[HVCI-SIG-011]") && forged.contains("not loaded: "), "{forged}");
    for line in
        ["sealed as module 1, sha256:", "r-x  text             code", "r--  rodata           read-only data", "rw-  data             data"]
    {
        assert!(good.contains(line), "{line}: {good}");
    }
    let events = fs::read_to_string(trace).unwrap();
    let events: Vec<serde_json::Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named = |name: &str| events.iter().find(|e| e["what"]["name"] == name).unwrap();
    assert_eq!((named("good.ko")["status"].as_u64(), named("forged.ko")["code"].as_str()), (Some(0), Some("HVCI-SIG-011")));

    let alone = sim(&format!("load --roots module={} {}", at("key.der"), at("good.ko")));
    assert_eq!(alone.status.code(), Some(0));
    assert_eq!(sim(&format!("load {}", at("good.ko"))).status.code(), Some(1), "nobody trusts the key");
    let text = said(&sim(&format!("load {}", at("note.txt"))));
    assert!(text.contains("the guest's loader cannot place the file") && text.contains("not loaded"), "{text}");
    let measured = sim(&format!("bench --rounds 5 --roots module={} {}", at("key.der"), at("good.ko")));
    let table = said(&measured);
    assert_eq!((measured.status.code(), table.lines().count()), (Some(0), 7), "{table}");
    for line in ["  warm  quiet        1 ", "  cold  quiet        1 ", "  warm  storm        2 "] {
        assert!(table.contains(line) && table.contains("quiesce"), "{line}: {table}");
    }
    assert_eq!(sim(&format!("bench {}", at("good.ko"))).status.code(), Some(1));
    assert_eq!(sim("load missing.sys").status.code(), Some(2));
    assert_eq!(sim("load --profile nobody missing.sys").status.code(), Some(2));
}

#[test]
fn attacks_are_tried_by_name_and_all_at_once() {
    let output = sim("attack --all");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("  6  code/alias                     #GP, HVCI-MEM-005                    #GP, HVCI-MEM-005\n"), "{text}");
    assert!(text.contains(" tried, 0 not as expected; "), "{text}");
    for name in ["deputy", "deputy/", "deputy/*"] {
        let text = said(&Command::new(env!("CARGO_BIN_EXE_hvci-sim")).args(["attack", name]).output().unwrap());
        let tried: Vec<&str> = text.lines().skip(1).take_while(|line| !line.is_empty()).collect();
        assert!(tried.len() > 4 && tried.iter().all(|line| line[5..].starts_with("deputy/")), "{text}");
    }
    assert_eq!(sim("attack nothing").status.code(), Some(2));
}
