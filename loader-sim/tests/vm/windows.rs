//! A machine whose guest is Windows: its chain, its settings and its drivers, attested.

use std::fs;

use corpus::synth::{DEFAULT_SEED, authenticode::signed, pe::Image, pki::Pki};
use hvci_engine::facts::FileKind;

use super::lab::{Lab, text};

/// Makes the machine `win`.
fn windows(lab: &Lab) {
    let chain = lab.folder.path().join("chain");
    let made = lab.run(&["synth", chain.to_str().unwrap(), "--vars", lab.variables.to_str().unwrap()]);
    assert!(made.status.success(), "{}", text(&made));
    let (image, variables) = (chain.join("image"), chain.join("vars.fd"));
    let boot = lab.run(&["boot", image.to_str().unwrap(), "--vars", variables.to_str().unwrap()]);
    assert!(boot.status.success() && text(&boot).contains("NT kernel"), "{}", text(&boot));
    let created =
        lab.run(&["vm", "create", "win", "--guest", "windows", "--image", image.to_str().unwrap(), "--vars", variables.to_str().unwrap()]);
    assert!(created.status.success(), "{}", text(&created));
}

#[test]
fn it_attests_healthy_with_all_that_is_measured() {
    let Some(lab) = Lab::new() else { return };
    windows(&lab);
    for hvci in ["on", "off"] {
        assert!(lab.run(&["vm", "set", "win", "--hvci", hvci]).status.success());
        let (code, said) = lab.start("win");
        assert_eq!((code, said.contains("attested: healthy")), (0, true), "HVCI {hvci}: {said}");
        assert!(said.contains("driver          loaded   /drivers/example.sys"), "{said}");
        let log = text(&lab.run(&["eventlog", lab.path("win", "boot.eventlog").to_str().unwrap()]));
        let events = |pcr: &str| log.lines().filter(|line| line.contains(&format!(" {pcr}  EV_EVENT_TAG"))).count();
        // loader, kernel and driver; one key signed all of them
        let with_driver = usize::from(hvci == "on");
        assert_eq!((events("12"), events("13"), events("14")), (1, 2 + with_driver, 1), "{log}");
        assert_eq!(log.matches("EV_SEPARATOR").count(), 8 + 3, "{log}");
    }
}

/// A loader that is signed as well as the one that is known, and is another: an old one, with the old faults.
#[test]
fn a_loader_that_nobody_knows_is_named() {
    let Some(lab) = Lab::new() else { return };
    windows(&lab);
    let pki = Pki::new(DEFAULT_SEED).unwrap();
    let image = Image { version: Some([6, 3, 0, 0]), internal_name: Some("osloader.exe"), ..Image::of(FileKind::PeEfi, "old") };
    let other = signed(&image.build().unwrap(), pki.get("system").unwrap(), &pki.issuers("system").unwrap()).unwrap();
    let place = lab.path("win", "disk/windows/system32/winload.efi");
    let good = fs::read(&place).unwrap();
    fs::write(&place, &other).unwrap();
    let (code, said) = lab.start("win");
    assert_eq!((code, said.contains("attested: NOT HEALTHY")), (1, true), "{said}");
    assert!(said.contains("HVCI-ATT-021") && said.contains("PCR 13") && said.contains("os-loader"), "{said}");
    assert!(said.contains("winload.efi") && said.contains("hash-mismatch"), "{said}");
    // one with a bit changed does not start
    let mut flipped = good.clone();
    flipped[0x500] ^= 1;
    fs::write(&place, flipped).unwrap();
    let (code, said) = lab.start("win");
    assert_eq!((code, said.contains("boot manager: \\Windows\\System32\\winload.efi is not started")), (1, true), "{said}");
    assert!(said.contains("OS loader \\Windows\\System32\\winload.efi") && said.contains("hash-mismatch"), "{said}");
    fs::write(&place, good).unwrap();
    assert_eq!(lab.start("win").0, 0);
}
