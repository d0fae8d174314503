//! Machines: made, started, attested, over Debian's real chain.
//!
//! `HVCI_CORPORA` and `HVCI_OVMF` as for the boot's tests; tests say that they skip where something is missing.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

#[expect(dead_code, reason = "other tests use the rest of it")]
#[path = "../../../corpus/tests/corpora/mod.rs"]
mod corpora;
mod crash;
mod credential;
mod guest;
mod lab;
mod staying;
mod verifier;
mod windows;

use std::{fs, path::Path};

use guest::Served;
use lab::{Lab, text};

/// By their bits: Secure Boot, vTPM, HVCI, Credential Guard.
const PARTS: [&str; 4] = ["--secure-boot", "--vtpm", "--hvci", "--credential-guard"];

#[test]
fn every_combination_of_parts() {
    let Some(lab) = Lab::new() else { return };
    for combination in 0..16_u32 {
        let on = |part: usize| combination >> part & 1 == 1;
        let name = format!("c{combination}");
        let options: Vec<&str> = (0..4).flat_map(|part| [PARTS[part], if on(part) { "on" } else { "off" }]).collect();
        let made = lab.create(&name, &options);
        if on(3) && !on(0) {
            assert_eq!(made.status.code(), Some(2));
            assert!(text(&made).contains("Credential Guard needs Secure Boot"), "{}", text(&made));
            continue;
        }
        assert!(made.status.success(), "{}", text(&made));
        let (code, said) = lab.start(&name);
        let healthy = on(0);
        // without Secure Boot there is nothing to show; without a TPM nobody to show it
        assert_eq!(code, i32::from(on(1) && !healthy), "{options:?}: {said}");
        assert_eq!(said.contains("lockdown integrity"), on(0), "{said}");
        assert_eq!(said.contains("attested: healthy"), on(1) && healthy, "{said}");
        assert_eq!(said.contains("attested: NOT HEALTHY"), on(1) && !healthy, "{said}");
        assert_eq!(said.contains("no vTPM"), !on(1), "{said}");
        if on(1) && on(0) {
            let log = lab.run(&["eventlog", lab.path(&name, "boot.eventlog").to_str().unwrap()]);
            assert!(log.status.success(), "{}", text(&log));
        }
        assert_eq!(lab.path(&name, "tpm.sealed").exists(), on(1));
    }
    let listed = text(&lab.run(&["vm", "list"]));
    assert_eq!(listed.lines().count(), 1 + 12);
}

#[test]
fn every_tpm_attests_a_machine() {
    let Some(lab) = Lab::new() else { return };
    for backend in ["embedded", "libtpms", "swtpm"] {
        let made = lab.create(backend, &["--tpm", backend]);
        if text(&made).contains("libtpms0") || text(&made).contains("the package swtpm") {
            eprintln!("skipped: {backend} is not installed");
            continue;
        }
        assert!(made.status.success(), "{}", text(&made));
        for _ in 0..2 {
            let (code, said) = lab.start(backend);
            assert_eq!((code, said.contains("attested: healthy")), (0, true), "{backend}: {said}");
        }
    }
}

#[test]
fn trusted_launch_is_chosen_when_a_machine_is_made() {
    let Some(lab) = Lab::new() else { return };
    assert!(lab.create("plain", &["--security-type", "standard"]).status.success());
    for switch in ["off", "on"] {
        assert!(lab.run(&["vm", "set", "probe", "--vtpm", switch]).status.success());
        assert_eq!(lab.start("probe").0, 0, "its TPM is kept while it is off");
    }
    for change in [["--secure-boot", "on"], ["--vtpm", "on"], ["--security-type", "trusted-launch"]] {
        let refused = lab.run(&[&["vm", "set", "plain"][..], &change].concat());
        assert_eq!(refused.status.code(), Some(2), "{change:?}");
        assert!(text(&refused).contains("chosen when a machine is made"), "{}", text(&refused));
    }
    assert!(lab.create("first", &["--profile", lab.path("plain", "vm.toml").to_str().unwrap()]).status.success());
    let old = lab.folder.path().join("old.toml");
    fs::write(&old, fs::read_to_string(lab.path("probe", "vm.toml")).unwrap().replace("generation = 2", "generation = 1")).unwrap();
    let refused = lab.create("old", &["--profile", old.to_str().unwrap()]);
    assert!(text(&refused).contains("generation 1 is not simulated"), "{}", text(&refused));
    fs::write(&old, "secure-boot = true\nspeed = 9\n").unwrap();
    assert!(text(&lab.create("odd", &["--profile", old.to_str().unwrap()])).contains("speed"), "unknown keys are refused");
    let twice = lab.create("plain", &[]);
    assert!(text(&twice).contains("there is a machine plain already"), "{}", text(&twice));
    assert!(text(&lab.create("../out", &[])).contains("no name for a machine"));
}

/// Changes a bit of a file within a machine's disk.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_changed_is_named() {
    let Some(lab) = Lab::new() else { return };
    let grub = lab.path("probe", "disk/efi/boot/grubx64.efi");
    flip(&grub, 0x8_0000);
    let (code, said) = lab.start("probe");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("Security Violation") && said.contains("alert [medium]: boot-no-authority"), "{said}");
    assert!(said.contains("GRUB \\EFI\\BOOT\\grubx64.efi") && said.contains("hash-mismatch"), "{said}");
    assert!(!said.contains("attested"), "nothing runs that could ask for a quote: {said}");
    let health = lab.run(&["health", "probe"]);
    assert_eq!((health.status.code(), text(&health).contains("NOT HEALTHY: boot-no-authority")), (Some(1), true), "{}", text(&health));
    let alerts = fs::read_to_string(lab.path("probe", "alerts.ndjson")).unwrap();
    let alert: serde_json::Value = serde_json::from_str(alerts.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&alert["severity"], &alert["kind"], &alert["components"][0]["verdict"]),
        (&"medium".into(), &"boot-refused".into(), &"hash-mismatch".into())
    );
    flip(&grub, 0x8_0000);
    let (code, said) = lab.start("probe");
    assert_eq!((code, said.contains("attested: healthy")), (0, true), "{said}");

    // something that is allowed to start, and is not what was there
    let configuration = lab.path("probe", "disk/efi/debian/grub.cfg");
    let changed = fs::read_to_string(&configuration).unwrap().replace("panic=1", "panic=1 init=/bin/sh");
    fs::write(&configuration, changed).unwrap();
    let (code, said) = lab.start("probe");
    assert_eq!((code, said.contains("init=/bin/sh")), (0, true), "PCR 8 and 9 are no part of the baseline unless the reference says so");
    let reference = lab.path("probe", "reference.toml");
    let text = fs::read_to_string(&reference).unwrap();
    fs::write(&reference, text.replacen("chain =", "baseline_pcrs = [0, 2, 4, 7, 8, 9, 14]\nchain =", 1)).unwrap();
    let (code, said) = lab.start("probe");
    assert_eq!((code, said.contains("HVCI-ATT-019") && said.contains("PCR 9")), (1, true), "{said}");
}

#[test]
fn drivers_are_decided_about_and_measured() {
    let Some(lab) = Lab::new() else { return };
    let Some(module) = lab.modules.first() else {
        eprintln!("skipped: the corpus debian-kernel has no mii.ko");
        return;
    };
    let (tampered, bare) = (lab.folder.path().join("tampered.ko"), lab.folder.path().join("bare.ko"));
    fs::copy(module, &tampered).unwrap();
    flip(&tampered, 3000);
    let bytes = fs::read(module).unwrap();
    let (trailer, magic) = (12, b"~Module signature appended~\n".len());
    let len = u32::from_be_bytes(bytes[bytes.len() - magic - 4..bytes.len() - magic].try_into().unwrap()) as usize;
    fs::write(&bare, &bytes[..bytes.len() - magic - trailer - len]).unwrap();
    let drivers: Vec<&str> = [module, &tampered, &bare].into_iter().flat_map(|p| ["--driver", p.to_str().unwrap()]).collect();
    // which load: good, tampered, unsigned
    for (name, secure, hvci, loads) in [
        ("full", "on", "on", [true, false, false]),
        ("plain", "on", "off", [true, false, false]),
        ("open", "off", "off", [true, false, true]),
    ] {
        let options = [&["--secure-boot", secure, "--hvci", hvci, "--credential-guard", "off"][..], &drivers].concat();
        assert!(lab.create(name, &options).status.success());
        let (_, said) = lab.start(name);
        let line = |file: &str| said.lines().find(|l| l.starts_with("driver") && l.contains(file)).unwrap().contains("loaded");
        assert_eq!([line("mii.ko"), line("tampered.ko"), line("bare.ko")], loads, "{name}: {said}");
        let low = said.matches("alert [low]: driver-refused").count();
        assert_eq!(low, loads.iter().filter(|l| !**l).count(), "{name}: {said}");
        assert_eq!(said.contains("attested: healthy"), secure == "on", "a refused driver is protection at work: {said}");
        let log = text(&lab.run(&["eventlog", lab.path(name, "boot.eventlog").to_str().unwrap()]));
        let measured = log.lines().filter(|l| l.contains(" 13  EV_EVENT_TAG")).count();
        assert_eq!(measured, usize::from(hvci == "on"), "{log}");
    }
}

#[test]
fn an_old_state_and_a_copied_machine_are_refused() {
    let Some(lab) = Lab::new() else { return };
    let sealed = lab.path("probe", "tpm.sealed");
    let old = fs::read(&sealed).unwrap();
    assert!(!old.windows(8).any(|w| w == b"permall\0"), "the state is encrypted");
    assert_eq!(lab.start("probe").0, 0);
    let new = fs::read(&sealed).unwrap();
    fs::write(&sealed, &old).unwrap();
    let (code, said) = lab.start("probe");
    assert_eq!((code, said.contains("rollback")), (2, true), "{said}");
    // a crash between the ledger and the rename: the new state stands beside
    fs::write(lab.path("probe", "tpm.sealed.next"), &new).unwrap();
    assert_eq!(lab.start("probe").0, 0);
    assert!(lab.create("other", &[]).status.success());
    let foreign = fs::read(lab.path("other", "tpm.sealed")).unwrap();
    let own = fs::read(&sealed).unwrap();
    fs::write(&sealed, foreign).unwrap();
    assert_eq!(lab.start("probe").0, 2, "the state of another machine");
    let mut damaged = own.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&sealed, damaged).unwrap();
    assert_eq!(lab.start("probe").0, 2);
    fs::remove_file(&sealed).unwrap();
    let (code, said) = lab.start("probe");
    assert_eq!((code, said.contains("not in its folder")), (2, true), "never made anew in silence: {said}");
    fs::write(&sealed, own).unwrap();
    assert_eq!(lab.start("probe").0, 0);
}

#[test]
fn tpm2_tools_see_the_pcrs_of_the_boot() {
    let Some(lab) = Lab::new() else { return };
    let Some(guest) = Served::start(&lab, "probe") else { return };
    let (code, said) = lab.start("probe");
    assert_eq!((code, said.contains("in use by another process")), (2, true), "{said}");

    let pcrs = guest.tool("tpm2_pcrread", &["sha256:0,1,2,3,4,5,6,7,8,9,12,14"]);
    let now = lab.folder.path().join("now.pcrs");
    fs::write(&now, &pcrs).unwrap();
    let log = lab.path("probe", "boot.eventlog");
    let compared = lab.run(&["eventlog", log.to_str().unwrap(), "--pcrs", now.to_str().unwrap()]);
    assert!(compared.status.success(), "{}", text(&compared));
    guest.tool("tpm2_createek", &["-c", "ek.ctx", "-G", "ecc", "-u", "ek.pub"]);
    guest.tool("tpm2_flushcontext", &["-t"]);
    assert_eq!(guest.stop(), Some(0));
    for _ in 0..2 {
        let (code, said) = lab.start("probe");
        assert_eq!((code, said.contains("attested: healthy")), (0, true), "it was stopped in order: {said}");
    }
}

#[test]
fn deleted_machines_leave_nothing() {
    let Some(lab) = Lab::new() else { return };
    assert!(lab.run(&["vm", "delete", "probe"]).status.success());
    assert!(text(&lab.run(&["vm", "start", "probe"])).contains("there is no machine probe"));
    assert!(!lab.folder.path().join("vms/probe").exists());
    assert!(lab.create("probe", &[]).status.success(), "a name can be used again");
    assert_eq!(lab.start("probe").0, 0);
}
