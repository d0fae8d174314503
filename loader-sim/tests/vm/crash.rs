//! A machine whose host stops in the middle: at every call of the system that changes a file, one after the other.

use std::{collections::BTreeMap, fs, process::Command};

use super::lab::{Lab, SIM, text};

/// What changes files, or makes a change last.
const CALLS: [&str; 8] = ["rename", "unlink", "unlinkat", "rmdir", "mkdir", "fsync", "fdatasync", "write"];

/// Runs the program until its `n`-th such call, which it does not survive; `None` runs it to its end and counts the calls.
fn run(lab: &Lab, arguments: &[&str], at: Option<(&str, usize)>) -> BTreeMap<String, usize> {
    let log = lab.folder.path().join("calls");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", log.to_str().unwrap()]).args(["-e", &format!("trace={}", CALLS.join(","))]);
    if let Some((call, n)) = at {
        strace.args(["-e", &format!("inject={call}:signal=KILL:when={n}")]);
    }
    // one thread: whose n-th call it is, is then the same each time
    let output = strace.arg(SIM).args(arguments).env("HVCI_VMS", lab.folder.path().join("vms")).env("RAYON_NUM_THREADS", "1").output();
    let output = output.unwrap();
    assert_eq!(output.status.success(), at.is_none(), "{at:?}: {}", text(&output));
    let mut calls = BTreeMap::new();
    for line in fs::read_to_string(&log).unwrap().lines() {
        let call = line.split_whitespace().nth(1).and_then(|call| call.split_once('(')).map(|(name, _)| name.to_owned());
        *calls.entry(call.unwrap_or_default()).or_default() += 1;
    }
    calls
}

fn has_strace() -> bool {
    let there = Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success());
    if !there {
        eprintln!("skipped: the package strace is not installed, or nothing may be traced here");
    }
    there
}

/// Each call that changes a file, and its number, of a program that runs to its end.
fn cuts(lab: &Lab, arguments: &[&str]) -> Vec<(String, usize)> {
    let calls = run(lab, arguments, None);
    let changing = calls.into_iter().filter(|(call, _)| CALLS.contains(&call.as_str()));
    changing.flat_map(|(call, times)| (1..=times).map(move |n| (call.clone(), n))).collect()
}

#[test]
fn a_start_that_is_cut_off_anywhere_leaves_a_machine_that_starts() {
    let Some(lab) = Lab::new() else { return };
    if !has_strace() {
        return;
    }
    let arguments = ["vm", "start", "probe"];
    let cuts = cuts(&lab, &arguments);
    // variables, log, evidence, profile's knowledge, ledger, the TPM's state beside and in its place
    assert!(cuts.iter().filter(|(call, _)| call == "rename").count() >= 6, "{cuts:?}");
    for (call, n) in &cuts {
        run(&lab, &arguments, Some((call, *n)));
        let (code, said) = lab.start("probe");
        assert_eq!((code, said.contains("attested: healthy")), (0, true), "{call} {n}: {said}");
    }
}

#[test]
fn a_change_that_is_cut_off_is_made_or_is_not() {
    let Some(lab) = Lab::new() else { return };
    if !has_strace() {
        return;
    }
    let change = |switch: &'static str| ["vm", "set", "probe", "--secure-boot", switch, "--credential-guard", switch];
    for (call, n) in cuts(&lab, &change("off")) {
        assert!(lab.run(&change("on")).status.success());
        run(&lab, &change("off"), Some((&call, n)));
        let is_on = text(&lab.run(&["vm", "list"])).contains("Secure Boot on");
        let (code, said) = lab.start("probe");
        assert_eq!((code == 0, said.contains("lockdown integrity")), (is_on, is_on), "{call} {n}: {said}");
    }
}

#[test]
fn a_machine_that_is_cut_off_while_it_is_made_is_none() {
    let Some(lab) = Lab::new() else { return };
    if !has_strace() {
        return;
    }
    let vms = lab.folder.path().join("vms");
    let (image, variables) = (lab.image.clone(), lab.variables.clone());
    let arguments = ["vm", "create", "new", "--image", image.to_str().unwrap(), "--vars", variables.to_str().unwrap()];
    let is_there = || vms.join("new").exists();
    for (call, n) in cuts(&lab, &arguments) {
        if is_there() {
            assert!(lab.run(&["vm", "delete", "new"]).status.success());
        }
        run(&lab, &arguments, Some((&call, n)));
        // it is there whole, or not at all
        if !is_there() {
            let made = lab.create("new", &[]);
            assert!(made.status.success(), "{call} {n}: {}", text(&made));
        }
        let (code, said) = lab.start("new");
        assert_eq!((code, said.contains("attested: healthy")), (0, true), "{call} {n}: {said}");
    }
}

#[test]
fn a_machine_that_is_cut_off_while_it_is_deleted_can_be_made_again() {
    let Some(lab) = Lab::new() else { return };
    if !has_strace() {
        return;
    }
    let arguments = ["vm", "delete", "probe"];
    for (call, n) in cuts(&lab, &arguments) {
        if !lab.path("probe", "vm.toml").exists() {
            assert!(lab.create("probe", &[]).status.success(), "{call} {n}");
        }
        run(&lab, &arguments, Some((&call, n)));
    }
    drop(lab.run(&arguments));
    assert!(lab.create("probe", &[]).status.success());
    assert_eq!(lab.start("probe").0, 0);
}

#[test]
fn credentials_that_are_cut_off_are_the_old_ones_or_the_new_ones() {
    let Some(lab) = Lab::new() else { return };
    if !has_strace() {
        return;
    }
    assert_eq!(lab.add("probe", "alice@EXAMPLE.ORG").0, 0);
    let password = lab.folder.path().join("password");
    let add = ["vm", "credential", "probe", "add", "bob@EXAMPLE.ORG", "--password-file", password.to_str().unwrap()];
    let cuts = cuts(&lab, &add);
    let handle = |lab: &Lab| {
        let listed = text(&lab.run(&["vm", "credential", "probe", "list"]));
        listed.lines().find(|line| line.contains("bob@")).and_then(|line| line.split_whitespace().next()).map(str::to_owned)
    };
    for (call, n) in &cuts {
        if let Some(handle) = handle(&lab) {
            assert!(lab.run(&["vm", "credential", "probe", "remove", &handle]).status.success());
        }
        run(&lab, &add, Some((call, *n)));
        let users = lab.users("probe").unwrap_or_else(|said| panic!("{call} {n}: {said}"));
        assert!(users == ["alice"] || users == ["alice", "bob"], "{call} {n}: {users:?}");
    }
}
