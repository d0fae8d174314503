//! Alerts that are expected: marked, never left out, and no verdict is another for it.

use std::collections::{BTreeMap, BTreeSet};

use hvci_engine::{finding::Code, time::UnixTime};
use loader_sim::{
    attest::{
        Appraisal, DbxInfo, Expected, Reference, Verifier,
        alert::{Kind, Severity, alerts},
        result::{Ear, Tier},
    },
    firmware::variable::GLOBAL,
};
use proptest::prelude::*;

use super::{Change, codes};
use crate::made::*;

fn entry(code: &str, more: &str, until: i64) -> String {
    format!("\n[[expected]]\ncode = \"{code}\"\nreason = \"a laboratory\"\nuntil = \"@{until}\"\n{more}\n")
}

fn appraised(entries: &str, change: impl Fn(&mut Vec<Record>)) -> Appraisal {
    let mut log = linux();
    change(&mut log);
    let log = bytes(&log);
    let tpm = Tpm::new(1, &log);
    verifier(&format!("{}{entries}", reference_text()), machine(&tpm)).appraise(&tpm.evidence(Some(&log)), &NONCE, NOW)
}

fn secure_boot_off(log: &mut [Record]) {
    log[2] = config(GLOBAL, "SecureBoot", &[0]);
}

fn implant(log: &mut [Record]) {
    let at = position(log, b"kernel");
    log[at] = image(b"implant", "\\vmlinuz");
}

/// Severity, kind, whether it is suppressed.
fn raised(appraisal: &Appraisal) -> Vec<(Severity, Kind, bool)> {
    alerts(appraisal).iter().map(|alert| (alert.severity, alert.kind, !alert.suppressed_by.is_empty())).collect()
}

#[test]
fn an_alert_that_is_expected_is_marked_and_the_machine_no_healthier() {
    let plain = appraised("", |log| secure_boot_off(log));
    assert_eq!(raised(&plain), [(Severity::Medium, Kind::AttestationFailed, false)]);
    for name in ["secure-boot-off", "HVCI-ATT-015"] {
        let expected = appraised(&entry(name, "", NOW.0 + 1), |log| secure_boot_off(log));
        assert_eq!(raised(&expected), [(Severity::Medium, Kind::AttestationFailed, true)]);
        assert_eq!(expected.findings, plain.findings);
        assert!(!expected.healthy());
        assert_eq!(Ear::of(&expected, 60), Ear::of(&plain, 60));
        assert_eq!(Ear::of(&expected, 60).ear_status, Tier::Contraindicated);
        let [alert] = &alerts(&expected)[..] else { panic!("one alert") };
        assert!(!alert.needs_attention() && alerts(&plain)[0].needs_attention());
        assert!(!alert.repeats(&alerts(&plain)[0]), "that it is expected no more is news");
        let mut line = serde_json::to_value(alert).unwrap();
        let until = UnixTime(NOW.0 + 1).to_string();
        let wanted = serde_json::json!([{ "code": "HVCI-ATT-015", "reason": "a laboratory", "until": until }]);
        assert_eq!(line.as_object_mut().unwrap().remove("suppressed_by"), Some(wanted));
        assert_eq!(line, serde_json::to_value(&alerts(&plain)[0]).unwrap(), "and nothing else is another");
    }
}

#[test]
fn one_reason_that_is_not_expected_is_enough() {
    let both = |log: &mut Vec<Record>| {
        secure_boot_off(log);
        implant(log);
    };
    let found: BTreeSet<Code> = codes(&appraised("", both)).into_iter().collect();
    assert!(found.len() > 1 && found.contains(&Code::AttSecureBootOff), "{found:?}");
    let entries = |without: Option<Code>| -> String {
        found.iter().filter(|code| Some(**code) != without).map(|code| entry(code.id(), "", NOW.0 + 1)).collect()
    };
    assert_eq!(raised(&appraised(&entries(None), both)), [(Severity::Medium, Kind::AttestationFailed, true)]);
    for code in &found {
        assert_eq!(raised(&appraised(&entries(Some(*code)), both)), [(Severity::Medium, Kind::AttestationFailed, false)], "{code}");
    }
}

#[test]
fn an_expectation_that_nothing_comes_of_is_found() {
    let good = appraised(&entry("secure-boot-off", "", NOW.0 + 1), |_| {});
    assert_eq!(codes(&good), [Code::AttExpected]);
    assert!(good.healthy());
    assert_eq!(Ear::of(&good, 60).ear_status, Tier::Affirming);
    assert_eq!(raised(&good), [(Severity::Low, Kind::ExpectationUnmatched, false)]);
    assert!(good.findings[0].detail.contains("was not found"), "{:?}", good.findings);

    // it ends with its last second
    let ended = appraised(&entry("secure-boot-off", "", NOW.0), |log| secure_boot_off(log));
    assert_eq!(codes(&ended), [Code::AttSecureBootOff, Code::AttExpected]);
    assert_eq!(raised(&ended), [(Severity::Medium, Kind::AttestationFailed, false), (Severity::Low, Kind::ExpectationUnmatched, false)]);

    let two = appraised(&[entry("secure-boot-off", "", NOW.0 + 1), entry("mok-enrolled", "", NOW.0 + 1)].concat(), |_| {});
    let [one, other] = &alerts(&two)[..] else { panic!("two alerts") };
    assert!(one.id != other.id && !one.repeats(other) && one.repeats(one));
}

#[test]
fn what_is_not_proven_is_not_called_absent() {
    let log = bytes(&linux());
    let tpm = Tpm::new(1, &log);
    let text = format!("{}{}", reference_text(), entry("secure-boot-off", "", NOW.0 + 1));
    let without_log = verifier(&text, machine(&tpm)).appraise(&tpm.evidence(None), &NONCE, NOW);
    assert!(!codes(&without_log).contains(&Code::AttExpected), "{:?}", without_log.findings);
    // a missing log itself can be expected
    let found: String = codes(&without_log).iter().map(|code| entry(code.id(), "", NOW.0 + 1)).collect();
    let text = format!("{}{found}", reference_text());
    let expected = verifier(&text, machine(&tpm)).appraise(&tpm.evidence(None), &NONCE, NOW);
    assert_eq!(raised(&expected), [(Severity::Medium, Kind::AttestationFailed, true)]);
}

#[test]
fn another_machines_expectations_are_not_its_own() {
    let mut log = linux();
    secure_boot_off(&mut log);
    let log = bytes(&log);
    let (one, two) = (Tpm::new(1, &log), Tpm::new(2, &log));
    let machines = BTreeMap::from([(VM.to_owned(), machine(&one)), ("lab-1".to_owned(), machine(&two))]);
    let text = format!("{}{}", reference_text(), entry("secure-boot-off", "vm = \"lab-1\"", NOW.0 + 1));
    let verifier = Verifier::new(Reference::read(&text).unwrap(), DbxInfo::default(), machines);
    let web = verifier.appraise(&one.evidence(Some(&log)), &NONCE, NOW);
    assert_eq!(raised(&web), [(Severity::Medium, Kind::AttestationFailed, false)]);
    let evidence = loader_sim::attest::Evidence { vm: "lab-1".to_owned(), ..two.evidence(Some(&log)) };
    assert_eq!(raised(&verifier.appraise(&evidence, &NONCE, NOW)), [(Severity::Medium, Kind::AttestationFailed, true)]);
    // one of a machine that there is not would never be missed
    let nobody = appraised(&entry("secure-boot-off", "vm = \"lab-l\"", NOW.0 + 1), |_| {});
    assert_eq!(codes(&nobody), [Code::AttExpected]);
    assert!(nobody.findings[0].detail.contains("no machine is called so"), "{:?}", nobody.findings);
}

#[test]
fn what_cannot_be_expected_is_refused() {
    let read = |entries: &str| Reference::read(&format!("{}{entries}", reference_text())).map_err(|error| error.to_string());
    for (entries, why) in [
        (entry("quote-signature", "", 1), "leaves open who answered"),
        (entry("nonce", "", 1), "leaves open who answered"),
        (entry("vtpm-clone", "", 1), "leaves open who answered"),
        (entry("HVCI-ATT-034", "", 1), "cannot be expected"),
        (entry("HVCI-SIG-001", "", 1), "no reason for an alert"),
        (entry("no-such-code", "", 1), "no finding code"),
        (entry("secure-boot-off", "severity = \"low\"", 1), "unknown field"),
        (entry("secure-boot-off", "", 1).replace("a laboratory", " "), "without a reason"),
        (entry("secure-boot-off", "", 1).replace("@1", "tomorrow"), "is no time"),
        (entry("secure-boot-off", "", 1).replace("until = \"@1\"", ""), "missing field"),
        ([entry("secure-boot-off", "", 1), entry("HVCI-ATT-015", "", 2)].concat(), "twice"),
    ] {
        let error = read(&entries).unwrap_err();
        assert!(error.contains(why), "{entries}: {error}");
    }
    let both = [entry("secure-boot-off", "", 1), entry("secure-boot-off", "vm = \"lab-1\"", 1)].concat();
    assert_eq!(read(&both).unwrap().expected.len(), 2);
}

/// The codes that can be.
fn expectable() -> Vec<Code> {
    let is_read = |code: &Code| Reference::read(&format!("{}{}", reference_text(), entry(code.id(), "", 1))).is_ok();
    Code::ALL.iter().copied().filter(is_read).collect()
}

proptest! {
    /// Whatever is expected of whatever happens, only marks differ, and a mark needs every reason.
    #[test]
    fn expectations_change_no_verdict(expected in prop::sample::subsequence(expectable(), 0..=expectable().len()), what in 0..5_usize) {
        let changes: [Change; 5] = [
            |_| {},
            |log| secure_boot_off(log),
            |log| implant(log),
            |log| { secure_boot_off(log); implant(log) },
            |log| { log.remove(0); },
        ];
        let expected: BTreeSet<Code> = expected.into_iter().collect();
        let entries: String = expected.iter().map(|code| entry(code.id(), "", NOW.0 + 1)).collect();
        let (plain, marked) = (appraised("", changes[what]), appraised(&entries, changes[what]));
        prop_assert_eq!(plain.healthy(), marked.healthy());
        prop_assert_eq!(Ear::of(&plain, 60), Ear::of(&marked, 60));
        let without: Vec<_> = marked.findings.iter().filter(|finding| finding.code != Code::AttExpected).cloned().collect();
        prop_assert_eq!(&plain.findings, &without);
        let of_plain: Vec<_> = alerts(&plain);
        let mut of_marked = alerts(&marked);
        of_marked.retain(|alert| alert.kind != Kind::ExpectationUnmatched);
        prop_assert_eq!(of_plain.len(), of_marked.len());
        for (plain, marked) in of_plain.iter().zip(&of_marked) {
            let by: BTreeSet<Code> = marked.suppressed_by.iter().map(|Expected { code, .. }| *code).collect();
            let wanted = if marked.codes.is_subset(&expected) { marked.codes.clone() } else { BTreeSet::new() };
            prop_assert_eq!(by, wanted);
            prop_assert_eq!((&plain.id, &plain.codes, plain.severity), (&marked.id, &marked.codes, marked.severity));
        }
    }
}
