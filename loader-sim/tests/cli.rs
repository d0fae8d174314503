//! `hvci-sim` as its users run it.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    process::{Command, Output},
};

use corpus::synth::{
    authenticode,
    certificate::Template,
    elf,
    key::{Key, KeyKind},
    oid,
    pe::{Export, Image},
};
use hvci_engine::facts::FileKind;
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
    let rows: Vec<&str> = table.lines().skip(1).collect();
    assert_eq!((measured.status.code(), rows.len()), (Some(0), 1 + 6 * 3), "{table}");
    let phases: Vec<&str> = rows[0].split_whitespace().skip(4).collect();
    assert_eq!(phases, ["load", "parse", "relocate", "lock", "quiesce", "hash", "signature", "policy", "compare", "grant"]);
    let conditions = ["known quiet 1", "warm quiet 1", "cold quiet 1", "warm storm 1", "warm quiet 2", "warm storm 2"];
    let named = conditions.iter().flat_map(|condition| ["p50", "p99", "p99.9"].map(|quantile| format!("{condition} {quantile}")));
    let mut signatures = Vec::new();
    for (row, name) in rows[1..].iter().zip(named) {
        let words: Vec<&str> = row.split_whitespace().collect();
        let micros: Vec<f64> = words[4..].iter().map(|word| word.parse().unwrap()).collect();
        assert_eq!((words[..4].join(" "), micros.len()), (name, phases.len()), "{table}");
        assert!(micros.iter().all(|phase| *phase <= micros[0]), "{row}");
        signatures.push(micros[6]);
    }
    assert!(signatures[0] < signatures[3] / 2.0, "of a file that is known no signature is read: {table}");
    assert_eq!(sim(&format!("bench {}", at("good.ko"))).status.code(), Some(1));
    assert_eq!(sim("load missing.sys").status.code(), Some(2));
    assert_eq!(sim("load --profile nobody missing.sys").status.code(), Some(2));
}

/// A folder with modules and drivers that import from one another, signed by the keys beside them.
fn linked() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, file: &[u8]| fs::write(dir.path().join(name), file).unwrap();
    let key = Key::derive(7, "module", KeyKind::Rsa(2048)).unwrap();
    let module_key = Template::leaf("CN=Module Key", &[]).issue(&key, None).unwrap();
    write("module.der", &module_key.certificate.to_der().unwrap());
    // c needs b, b needs a; x and y need each other; d needs y
    for (name, exports, imports) in [
        ("a", &["first"][..], &["_printk"][..]),
        ("b", &["second"], &["first"]),
        ("c", &[], &["second", "first"]),
        ("d", &[], &["there"]),
        ("x", &["back"], &["there"]),
        ("y", &["there"], &["back"]),
        ("alone", &[], &["_printk"]),
    ] {
        let module = elf::linked_module(name, exports, imports).unwrap();
        write(&format!("{name}.ko"), &elf::signed(&module, &elf::signing(&module_key)).unwrap());
    }
    let publisher = Template::leaf("CN=Publisher", &[oid::EKU_WHQL, oid::EKU_CODE_SIGNING]).issue(&key, None).unwrap();
    write("driver.der", &publisher.certificate.to_der().unwrap());
    // by a forwarder of the middle one the last is needed too
    for (name, exports, imports) in [
        ("last", vec![("Run", Export::At(0, 0x10))], ("ntoskrnl.exe", vec!["DbgPrint"])),
        ("middle", vec![("Go", Export::Forward("LAST.Run"))], ("hal.dll", vec!["HalReturn"])),
        ("front", vec![], ("Middle.SYS", vec!["Go"])),
    ] {
        let image = Image { exports, imports, ..Image::of(FileKind::PeDriver, name) };
        write(&format!("{name}.sys"), &authenticode::signed(&image.build().unwrap(), &publisher, &[]).unwrap());
    }
    dir
}

#[test]
fn files_that_import_from_one_another_are_loaded_in_any_order_on_any_number_of_processors() {
    let dir = linked();
    let load = |files: &str, vps: u32| {
        let at = |name: &str| dir.path().join(name).display().to_string();
        let files: Vec<String> = files.split(' ').map(at).collect();
        let (module, driver) = (at("module.der"), at("driver.der"));
        let output = sim(&format!("load --roots module={module} --roots kernel={driver} --vps {vps} {}", files.join(" ")));
        let text: Vec<String> = said(&output).lines().filter(|line| !line.starts_with("  µs: ")).map(str::to_owned).collect();
        (text.join("\n"), output.status.code())
    };
    // of each file: what is said of it, without the line that names it
    let of = |text: &str, file: &str| {
        let from = text.split_once(&format!("/{file}  ")).unwrap().1.split_once('\n').unwrap().1;
        from.lines().take_while(|line| line.starts_with(' ')).collect::<Vec<_>>().join("\n")
    };

    let good = "c.ko front.sys alone.ko b.ko middle.sys a.ko last.sys";
    let (text, code) = load(good, 1);
    assert_eq!(code, Some(0), "{text}");
    for (file, number, uses) in [("c.ko", 1, "4, 6"), ("front.sys", 2, "7"), ("b.ko", 4, "6")] {
        let said = of(&text, file);
        assert!(said.contains(&format!("  sealed as module {number}, ")), "{file}: {text}");
        assert!(said.ends_with(&format!("\n    imports from module {uses}")), "{file}: {text}");
    }
    // whoever is in a cycle, or needs what is, is refused
    let bad = format!("d.ko x.ko {good} y.ko");
    let (refused, code) = load(&bad, 1);
    assert_eq!(code, Some(1), "{refused}");
    for file in ["d.ko", "x.ko", "y.ko"] {
        let said = of(&refused, file);
        assert!(said.contains("error[HVCI-MEM-002]") && said.contains("nothing exports ") && said.contains("  not loaded: "), "{refused}");
    }
    assert!(refused.matches("  sealed as module ").count() == 7);
    for vps in [2, 3, 8, 64] {
        for _ in 0..4 {
            assert_eq!(load(good, vps), (text.clone(), Some(0)), "{vps}");
            assert_eq!(load(&bad, vps), (refused.clone(), Some(1)), "{vps}");
        }
    }
    // a file that is not there is said to be before anything is loaded
    let (text, code) = load("b.ko missing.ko a.ko", 3);
    assert_eq!((text.as_str(), code), ("", Some(2)));
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
