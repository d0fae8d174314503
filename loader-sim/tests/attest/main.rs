//! Attestation: forged evidence of every kind that a guest, or somebody between it and the verifier, can send.
//!
//! Names begin with the number of the threat in the list that the verifier is built against, where it has one.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod expected;
mod made;
mod program;
mod real;

use std::collections::BTreeMap;

use hvci_engine::{
    digest::{Digest, DigestAlg},
    finding::Code,
};
use loader_sim::{
    attest::{
        Appraisal, Baseline, Claim, DbxInfo, Evidence, EvidenceError, Features, Ledger, Profile, Reference, Verdict, Verifier,
        alert::{self, Health, Kind, Severity},
        evidence::{Bytes, MAX_EVIDENCE, Refusal},
        result::{Ear, Tier},
    },
    firmware::variable::{GLOBAL, IMAGE_SECURITY, SHIM},
    measure::{EventLog, EventType as T},
};
use made::*;
use proptest::prelude::*;

fn codes(appraisal: &Appraisal) -> Vec<Code> {
    let mut codes: Vec<Code> = appraisal.findings.iter().map(|finding| finding.code).collect();
    codes.dedup();
    codes
}

/// A change of a log.
type Change = fn(&mut Vec<Record>);

/// Codes of a start that was changed itself, its log saying so.
fn honest(change: impl Fn(&mut Vec<Record>)) -> Appraisal {
    let mut log = linux();
    change(&mut log);
    appraise(&log, &log)
}

/// Of a log that was changed behind what was measured.
fn forged(change: impl Fn(&mut Vec<Record>)) -> Appraisal {
    let mut log = linux();
    change(&mut log);
    appraise(&linux(), &log)
}

/// Of a TPM that answers otherwise.
fn answered(change: impl Fn(&mut Tpm)) -> Appraisal {
    let log = bytes(&linux());
    let good = Tpm::new(1, &log);
    let mut tpm = good.clone();
    change(&mut tpm);
    verifier(&reference_text(), machine(&good)).appraise(&tpm.evidence(Some(&log)), &NONCE, NOW)
}

fn nothing_is_claimed(appraisal: &Appraisal) {
    for claim in
        ["secureboot", "x-ms-azurevm-dbvalidated", "x-ms-azurevm-hvci-policy", "hvci-credential-guard", "x-ms-azurevm-testsigning-enabled"]
    {
        assert_eq!(appraisal.claims.get(claim), &Claim::NotMeasured, "{claim}");
    }
    assert!(!appraisal.healthy());
}

#[test]
fn a_good_start_is_healthy() {
    let appraisal = honest(|_| {});
    assert_eq!(appraisal.findings, []);
    assert!(appraisal.healthy());
    let verdicts: Vec<_> = appraisal.components.iter().map(|c| (c.name.as_deref(), c.verdict)).collect();
    let allowed = |name| (Some(name), Verdict::Allowed);
    assert_eq!(verdicts, [allowed("shim 16.1"), allowed("GRUB 2.06"), allowed("Linux 6.1")]);
    let claim = |name| appraisal.claims.get(name);
    assert_eq!(claim("secureboot"), &Claim::Is(true));
    assert_eq!(claim("x-ms-azurevm-dbvalidated"), &Claim::Is(true));
    // the reference says "any", so nobody compared it
    assert_eq!(claim("x-ms-azurevm-dbxvalidated"), &Claim::NotMeasured);
    assert_eq!(claim("x-ms-azurevm-attested-pcrs"), &Claim::Pcrs((0..16).collect()));
    assert_eq!(claim("x-ms-azurevm-hvci-policy"), &Claim::NotMeasured);
    assert_eq!(claim("notSafeMode"), &Claim::NotMeasured, "what was not measured is no good sign");
    assert!(alert::alerts(&appraisal).is_empty());
}

#[test]
fn t01_an_image_that_is_revoked_names_its_cve() {
    // BootHole: a GRUB that is well signed, and that the firmware of the machine does not know to be revoked
    let appraisal = honest(|log| {
        let at = position(log, b"grub");
        log[at] = image(b"boothole", "\\EFI\\BOOT\\grubx64.efi");
    });
    assert_eq!(codes(&appraisal), [Code::AttRevoked]);
    let [alert] = &alert::alerts(&appraisal)[..] else { panic!("one alert") };
    let [component] = &alert.components[..] else { panic!("one component") };
    let revoked = component.report.revoked.as_ref().unwrap();
    assert_eq!(
        (revoked.cve.join(" "), &*revoked.vendor, &*revoked.since),
        ("CVE-2020-10713 CVE-2020-14308".to_owned(), "A Company", "2020-07-01")
    );
    assert_eq!((component.report.verdict, component.report.pcr), (Verdict::Revoked, 4));
    // allowing it does not help
    let log = {
        let mut log = linux();
        let at = position(&log, b"grub");
        log[at] = image(b"boothole", "");
        bytes(&log)
    };
    let tpm = Tpm::new(1, &log);
    let text = reference_text().replace(&sha256(b"grub").to_string(), &sha256(b"boothole").to_string());
    assert_eq!(codes(&verifier(&text, machine(&tpm)).appraise(&tpm.evidence(Some(&log)), &NONCE, NOW)), [Code::AttRevoked]);
}

#[test]
fn t02_t03_generations_below_the_least_are_refused() {
    // levels of SbatLevel_Variable.txt, which shim enforced and the reference does not know of
    for (level, old) in [
        (&b"sbat,1,2021030218\n"[..], None),
        (b"sbat,1,2022052400\ngrub,2\n", None),
        (b"sbat,1,2023012900\nshim,2\ngrub,3\ngrub.debian,4\n", None),
        (b"sbat,1,2024010900\nshim,4\ngrub,3\ngrub.debian,4\n", None),
        (b"sbat,1,2025051000\nshim,4\ngrub,5\ngrub.proxmox,2\n", None),
        (b"sbat,1,2026010100\nshim,4\ngrub,6\n", Some("GRUB 2.06")),
        (b"sbat,1,2026010100\nshim,5\ngrub,5\n", Some("shim 16.1")),
    ] {
        let appraisal = honest(|log| {
            let at = log.iter().position(|r| r.data.ends_with(SBAT_LEVEL)).unwrap();
            log[at] = authority(SHIM, "SbatLevel", level);
        });
        let refused = appraisal.components.iter().find(|c| c.verdict == Verdict::SbatRevoked).and_then(|c| c.name.as_deref());
        assert_eq!(refused, old, "{}", level.escape_ascii());
        assert_eq!(appraisal.healthy(), old.is_none());
    }
    // generations of the reference
    let log = bytes(&linux());
    let tpm = Tpm::new(1, &log);
    let text = reference_text().replace("grub = 5\n[[", "grub = 6\n[[");
    let appraisal = verifier(&text, machine(&tpm)).appraise(&tpm.evidence(Some(&log)), &NONCE, NOW);
    assert_eq!(codes(&appraisal), [Code::AttSbat]);
}

#[test]
fn t04_a_key_that_somebody_enrolled_shows_though_pcr_4_is_the_same() {
    let own = ca("Distribution CA", 66, "2045-01-01");
    let appraisal = honest(|log| {
        let at = log.iter().position(|r| r.data == authority(SHIM, "MokListRT", &owned(&distribution_ca())).data).unwrap();
        log[at] = authority(SHIM, "MokListRT", &owned(&own));
        let at = log.iter().position(|r| r.data == b"MokList\0").unwrap();
        log[at] = record(14, T::EV_IPL, b"a longer list", b"MokList\0");
    });
    assert_eq!(replayed(&bytes(&linux()), DigestAlg::Sha256)[&4], appraisal_pcr4(&own));
    assert_eq!(codes(&appraisal), [Code::AttMok, Code::AttSigner]);
    assert_eq!(appraisal.failed_pcrs().into_iter().collect::<Vec<_>>(), [4, 7, 14]);
    let grub = appraisal.components.iter().find(|c| c.name.as_deref() == Some("GRUB 2.06")).unwrap();
    assert_eq!(grub.verdict, Verdict::UnknownSigner);
    assert_eq!(grub.signers[0].certificate, Some(sha256(&own)), "same subject, another key");
}

fn appraisal_pcr4(own: &[u8]) -> Digest {
    let mut log = linux();
    log.push(authority(SHIM, "MokListRT", &owned(own)));
    replayed(&bytes(&log), DigestAlg::Sha256)[&4]
}

/// With a machine of Windows that is made with HVCI and Credential Guard.
fn windows_start(change: impl Fn(&mut Vec<Record>), change_evidence: impl Fn(&mut Evidence)) -> Appraisal {
    let mut log = windows();
    change(&mut log);
    let log = bytes(&log);
    let tpm = Tpm::new(1, &log);
    let features = Features { hvci: true, credential_guard: true, ..FEATURES };
    let text = reference_text()
        .replace("chain = [\"shim\", \"boot-loader\", \"kernel\"]", "chain = [\"boot-manager\"]")
        .replace("stage = \"shim\"", "stage = \"boot-manager\"");
    let machine = loader_sim::attest::Machine { features, profile: Profile::Windows, ..machine(&tpm) };
    let mut evidence = Evidence { features, profile: Profile::Windows, drivers: vec![driver(b"driver", None)], ..tpm.evidence(Some(&log)) };
    change_evidence(&mut evidence);
    verifier(&text, machine).appraise(&evidence, &NONCE, NOW)
}

fn settings_at(log: &[Record]) -> usize {
    log.iter().position(|r| r.pcr == 12).unwrap()
}

#[test]
fn t04_hvci_that_was_not_measured_as_on_is_not_on() {
    let appraisal = windows_start(|_| {}, |_| {});
    assert_eq!(appraisal.findings, []);
    for (claim, value) in [
        ("x-ms-azurevm-hvci-policy", Claim::Number(1)),
        ("vbsEnabled", Claim::Is(true)),
        ("hvci-credential-guard", Claim::Is(true)),
        ("x-ms-azurevm-testsigning-enabled", Claim::Is(false)),
        ("x-ms-azurevm-kerneldebug-enabled", Claim::NotMeasured),
        ("x-ms-azurevm-debuggersdisabled", Claim::NotMeasured),
    ] {
        assert_eq!(appraisal.claims.get(claim), &value, "{claim}");
    }
    let ear = Ear::of(&appraisal, 60);
    assert!(ear.submods.values().all(|part| part.ear_status == Tier::Affirming), "{ear:#?}");

    let off = |appraisal: Appraisal| {
        assert_eq!(codes(&appraisal), [Code::AttFeature]);
        assert_eq!(Ear::of(&appraisal, 60).submods["hvci"].ear_status, Tier::Contraindicated);
        appraisal.claims.get("x-ms-azurevm-hvci-policy").clone()
    };
    let with = |settings: &[Vec<u8>]| {
        let settings = settings.concat();
        off(windows_start(
            move |log| {
                let at = settings_at(log);
                log[at] = tagged(12, 0x4001_0001, &settings);
            },
            |_| {},
        ))
    };
    let guard = tag(0x0005_0028, &1_u32.to_le_bytes());
    assert_eq!(with(std::slice::from_ref(&guard)), Claim::NotMeasured, "missing");
    assert_eq!(with(&[guard.clone(), tag(0x000A_0007, &[0])]), Claim::Number(0));
    assert_eq!(with(&[guard.clone(), tag(0x000A_0007, &[2])]), Claim::Number(2));
    assert_eq!(with(&[guard.clone(), tag(0x000A_0007, &[1]), tag(0x000A_0007, &[0])]), Claim::NotMeasured, "both");
    assert_eq!(with(&[guard.clone(), tag(0x000A_0007, b"on!")]), Claim::NotMeasured, "no number");
    // said by whoever runs when the settings are closed
    let late = windows_start(
        |log| {
            let at = settings_at(log);
            log[at] = tagged(12, 0x4001_0001, &tag(0x0005_0028, &1_u32.to_le_bytes()));
            log.push(tagged(12, 0x000A_0007, &[1]));
        },
        |_| {},
    );
    assert_eq!(off(late), Claim::NotMeasured);
    // and where they are never closed
    let open = windows_start(|log| log.retain(|r| !(r.pcr == 12 && r.event_type == T::EV_SEPARATOR)), |_| {});
    assert_eq!(open.claims.get("x-ms-azurevm-hvci-policy"), &Claim::NotMeasured);
    // under a tag whose digest is of something else
    let hidden = windows_start(
        |log| {
            let at = settings_at(log);
            let data = [tag(0x8F3B_22EC, b""), tag(0x000A_0007, &[1]), tag(0x0005_0028, &1_u32.to_le_bytes())].concat();
            log[at] = record(12, T::EV_EVENT_TAG, b"an initrd", &data);
        },
        |_| {},
    );
    assert_eq!(off(hidden), Claim::NotMeasured);
}

#[test]
fn a_guest_that_weakens_itself_is_named() {
    for (id, value) in [
        (0x0004_0001, 1),
        (0x0005_0001, 1),
        (0x0005_000D, 1),
        (0x0005_0002, 0),
        (0x0005_0005, 1),
        (0x0005_0006, 1),
        (0x0005_0021, 1),
        (0x0005_0003, 1),
    ] {
        // the last contradicts what is measured already
        let appraisal = windows_start(
            |log| {
                let at = settings_at(log);
                log.insert(at, tagged(12, id, &[value]));
            },
            |_| {},
        );
        assert_eq!(codes(&appraisal), [Code::AttWeakened], "{id:#x}");
    }
}

#[test]
fn drivers_that_were_measured_are_those_that_were_decided_about() {
    assert_eq!(codes(&windows_start(|_| {}, |e| e.drivers.clear())), [Code::AttDriverLog]);
    assert_eq!(codes(&windows_start(|_| {}, |e| e.drivers.push(driver(b"other", None)))), [Code::AttDriverLog]);
    // a digest of another algorithm is compared as it is
    let longer = |log: &mut Vec<Record>| log.push(tagged(13, 0x4001_0003, &tag(0x0007_0004, &[7; 64])));
    assert_eq!(codes(&windows_start(longer, |_| {})), [Code::AttDriverLog]);
    let sha512 =
        loader_sim::attest::evidence::DriverEvent { authentihash: Digest::new(DigestAlg::Sha512, &[7; 64]).unwrap(), ..driver(b"", None) };
    assert_eq!(codes(&windows_start(longer, |e| e.drivers.push(sha512.clone()))), []);
    assert_eq!(codes(&windows_start(|_| {}, |e| e.profile = Profile::Linux)), [Code::AttFeature]);
}

#[test]
fn t06_a_certificate_of_the_same_name_is_another() {
    let twin = ca("Firmware CA", 77, "2045-01-01");
    let appraisal = honest(|log| {
        let at = log.iter().position(|r| r.event_type == T::EV_EFI_VARIABLE_AUTHORITY).unwrap();
        log[at] = authority(IMAGE_SECURITY, "db", &owned(&twin));
    });
    assert_eq!(codes(&appraisal), [Code::AttSigner]);
    assert!(appraisal.components[0].signers[0].subject.as_deref() == Some("CN=Firmware CA"));
}

#[test]
fn mb7_every_name_that_shim_gave_its_own_certificate_is_known_and_compared() {
    let at = |log: &[Record]| log.iter().rposition(|r| r.event_type == T::EV_EFI_VARIABLE_AUTHORITY).unwrap();
    let (good, bad) = (distribution_ca(), ca("Distribution CA", 66, "2045-01-01"));
    for (guid, name, with_owner) in [(SHIM, "Shim", false), (SHIM, "MokListRT", true), (IMAGE_SECURITY, "vendor_db", true)] {
        let entry = |der: &[u8]| if with_owner { owned(der) } else { der.to_vec() };
        let with = |der: &[u8]| {
            honest(|log| {
                let at = at(log);
                log[at] = authority(guid, name, &entry(der));
            })
        };
        assert_eq!(codes(&with(&good)), [], "{name}");
        assert!(!with(&bad).healthy(), "{name}");
    }
    for (guid, name) in [(SHIM, "NewName"), (GLOBAL, "Shim"), (GLOBAL, "db")] {
        let appraisal = honest(|log| {
            let at = at(log);
            log[at] = authority(guid, name, &good);
        });
        assert_eq!(codes(&appraisal), [Code::AttSigner], "{name}");
    }
}

#[test]
fn an_unknown_component_needs_everybody_who_may_have_authorised_it() {
    let other = |what: &'static [u8]| {
        let mut log = linux();
        log.iter_mut().filter(|r| is_image(r, what)).for_each(|r| *r = image(&[what, b" of tomorrow"].concat(), ""));
        log
    };
    let with = |log: &[Record], firmware: &str, distribution: &str| {
        let log = bytes(log);
        let tpm = Tpm::new(1, &log);
        let stages = |name: &str, stages: &str| format!("name = \"{name}\"\nstages = [{stages}]\n");
        let text = reference_text()
            .replace("name = \"firmware\"\n", &stages("firmware", firmware))
            .replace("name = \"distribution\"\n", &stages("distribution", distribution));
        codes(&verifier(&text, machine(&tpm)).appraise(&tpm.evidence(Some(&log)), &NONCE, NOW))
    };
    assert_eq!(with(&other(b"kernel"), "", ""), [Code::AttComponent]);
    // which of the two keys authorised it, no order that is measured says
    assert_eq!(with(&other(b"kernel"), "", "\"kernel\""), [Code::AttComponent]);
    assert_eq!(with(&other(b"kernel"), "\"kernel\"", "\"kernel\""), []);
    assert_eq!(with(&other(b"grub"), "\"boot-loader\"", "\"boot-loader\""), [], "SbatLevel is high enough");
    let mut low = other(b"grub");
    let at = low.iter().position(|r| r.data.ends_with(SBAT_LEVEL)).unwrap();
    low[at] = authority(SHIM, "SbatLevel", b"sbat,1,2024010900\nshim,4\ngrub,3\n");
    assert_eq!(with(&low, "\"boot-loader\"", "\"boot-loader\""), [Code::AttSbat]);
    low.push(authority(SHIM, "SbatLevel", SBAT_LEVEL));
    assert_eq!(with(&low, "\"boot-loader\"", "\"boot-loader\""), [Code::AttUnexpected, Code::AttSbat], "one that came later");
    low[at] = authority(SHIM, "SbatLevel", b"sbat,1,now\n");
    assert!(with(&low, "\"boot-loader\"", "\"boot-loader\"").contains(&Code::AttSbat));
    assert_eq!(with(&other(b"shim"), "\"shim\"", ""), [Code::AttSbat], "of an unknown shim nothing says its generation");
}

#[test]
fn t07_expired_certificates_are_no_reason() {
    assert!(honest(|_| {}).healthy(), "the firmware's CA ended in 2012");
}

#[test]
fn t08_a_dbx_that_is_too_old_is_named() {
    let list = |content: &[u8]| {
        let mut bytes = vec![0x26, 0x16, 0xC4, 0xC1, 0x4C, 0x50, 0x92, 0x40, 0xAC, 0xA9, 0x41, 0xF9, 0x36, 0x93, 0x43, 0x28];
        bytes.extend([76, 0, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0]);
        bytes.extend([7; 16]);
        bytes.extend(sha256(content).as_bytes());
        bytes
    };
    let with = |dbx: &[u8], since: &str| {
        let mut log = linux();
        log[6] = config(IMAGE_SECURITY, "dbx", dbx);
        let log = bytes(&log);
        let tpm = Tpm::new(1, &log);
        let text = reference_text().replace("[secure_boot]", &format!("[secure_boot]\ndbx_since = \"{since}\""));
        verifier(&text, machine(&tpm)).appraise(&tpm.evidence(Some(&log)), &NONCE, NOW)
    };
    let current = with(&list(b"boothole"), "2020-07-01");
    assert_eq!((codes(&current), current.claims.get("hvci-dbx-current-to")), (vec![], &Claim::Text("2020-07-01".to_owned())));
    assert_eq!(codes(&with(&list(b"boothole"), "2020-07-02")), [Code::AttDbxStale]);
    assert_eq!(codes(&with(&list(b"unknown to the list"), "2020-07-01")), [Code::AttDbxStale]);
    assert_eq!(codes(&with(b"", "2020-07-01")), [Code::AttDbxStale]);
    // edk2 starts what is in its own dbx, if it is signed with SHA-384
    let appraisal = with(&[list(b"boothole"), list(b"grub")].concat(), "2020-07-01");
    assert_eq!(codes(&appraisal), [Code::AttRevoked]);
}

#[test]
fn t13_a_log_that_was_tampered_with_does_not_replay() {
    let cases: [(&str, u32, Change); 8] = [
        ("drop", 9, |log| log.retain(|r| r.pcr != 9)),
        ("duplicate", 8, |log| log.push(log.iter().find(|r| r.pcr == 8).unwrap().clone())),
        ("reorder", 0, |log| log.swap(0, 1)),
        ("another image", 4, |log| {
            let at = position(log, b"grub");
            log[at] = image(b"other", "");
        }),
        ("another digest", 9, |log| {
            let at = log.iter().position(|r| r.pcr == 9).unwrap();
            log[at].digests[1] = sha256(b"other");
        }),
        ("moved", 9, |log| {
            let at = log.iter().position(|r| r.pcr == 9).unwrap();
            log[at].pcr = 10;
        }),
        ("hidden", 9, |log| {
            let at = log.iter().position(|r| r.pcr == 9).unwrap();
            log[at].event_type = T::EV_NO_ACTION;
        }),
        ("a better key", 7, |log| {
            log[3] = config(GLOBAL, "PK", b"another platform key");
        }),
    ];
    for (what, pcr, change) in cases {
        let appraisal = forged(change);
        let replays: Vec<_> = appraisal.findings.iter().filter(|f| f.code == Code::AttReplay).filter_map(|f| f.pcr).collect();
        assert!(replays.contains(&pcr), "{what}: {:?}", appraisal.findings);
        nothing_is_claimed(&appraisal);
    }
    // every prefix
    let (log, tpm) = (bytes(&linux()), Tpm::new(1, &bytes(&linux())));
    let verifier = verifier(&reference_text(), machine(&tpm));
    for end in 0..log.len() {
        assert!(!verifier.appraise(&tpm.evidence(Some(&log[..end])), &NONCE, NOW).healthy(), "prefix of {end}");
    }
    let padded = [&log[..], &[0xFF; 100]].concat();
    assert!(verifier.appraise(&tpm.evidence(Some(&padded)), &NONCE, NOW).healthy(), "padding is no event");
    // another machine's log and quote, whole
    let other = Tpm::new(2, &log);
    let swapped = verifier.appraise(&other.evidence(Some(&log)), &NONCE, NOW);
    assert_eq!(codes(&swapped), [Code::AttKey]);
    nothing_is_claimed(&swapped);
}

#[test]
fn a_forged_log_is_compared_with_the_baseline() {
    let good = bytes(&linux());
    let tpm = Tpm::new(1, &good);
    let baseline = Some(Baseline::of(&EventLog::read(&good).unwrap()));
    let known = loader_sim::attest::Machine { baseline, ..machine(&tpm) };
    let appraise = |measured: &[Record], said: &[Record]| {
        verifier(&reference_text(), known.clone()).appraise(&Tpm::new(1, &bytes(measured)).evidence(Some(&bytes(said))), &NONCE, NOW)
    };
    assert!(appraise(&linux(), &linux()).healthy());
    // an honest log of another start: first what differs, then what is wrong with it
    let mut other = linux();
    let grub = position(&other, b"grub");
    other[grub] = image(b"other grub", "\\EFI\\BOOT\\grubx64.efi");
    let appraisal = appraise(&other, &other);
    assert_eq!(codes(&appraisal), [Code::AttBaseline, Code::AttComponent]);
    assert_eq!(appraisal.first_divergent_event, Some(grub));
    // a log that says what was not measured
    assert_eq!(appraise(&linux(), &other).first_divergent_event, Some(grub));
    // the good log of a bad start differs nowhere, and is refused all the same
    let hidden = appraise(&other, &linux());
    assert_eq!((codes(&hidden), hidden.first_divergent_event), (vec![Code::AttReplay], None));
    // a start that ends early
    let short: Vec<_> = linux().into_iter().filter(|r| !is_image(r, b"kernel")).collect();
    assert_eq!(codes(&appraise(&short, &short)), [Code::AttBaseline, Code::AttMissing]);
    // what a start may change: the order of booting
    let mut order = linux();
    order[8] = record(1, T::EV_EFI_VARIABLE_BOOT, &[2, 0], &variable(GLOBAL, "BootOrder", &[2, 0]));
    assert!(appraise(&order, &order).healthy());
    let json = serde_json::to_string(&known).unwrap();
    assert_eq!(serde_json::from_str::<loader_sim::attest::Machine>(&json).unwrap(), known);
}

#[test]
fn t14_retyped_events_are_refused() {
    // a start without Secure Boot, its events called something that nobody reads, and behind them what should have been measured
    let mut log = linux();
    log[2] = config(GLOBAL, "SecureBoot", &[0]);
    let fake: Vec<_> = linux().into_iter().filter(|r| r.pcr == 7).collect();
    log.iter_mut().filter(|r| r.pcr == 7).for_each(|r| r.event_type = T::EV_UNUSED);
    log.extend(fake);
    let appraisal = appraise(&log, &log);
    assert!(codes(&appraisal).contains(&Code::AttLogRule), "{:?}", appraisal.findings);
    nothing_is_claimed(&appraisal);
    // images, called something that is not looked at
    for event_type in [T::EV_IPL, T::EV_EFI_ACTION, T::EV_EVENT_TAG, T::EV_POST_CODE, T(0x1234), T::EV_COMPACT_HASH] {
        let appraisal = honest(|log| log.push(Record { event_type, ..image(b"implant", "") }));
        assert!(!appraisal.healthy(), "{event_type:?}");
    }
    // a list of shim's, called what nobody digests
    let hidden = honest(|log| log.push(record(14, T::EV_EVENT_TAG, b"my own list", &tag(0x8F3B_22EC, b""))));
    assert_eq!(codes(&hidden), [Code::AttUnexpected]);
}

#[test]
fn t15_separators_and_variables_out_of_place_are_refused() {
    let cases: [(Code, Change); 7] = [
        (Code::AttSeparator, |log| log.retain(|r| (r.pcr, r.event_type) != (6, T::EV_SEPARATOR))),
        (Code::AttSeparator, |log| log.push(same(7, T::EV_SEPARATOR, &[0; 4]))),
        (Code::AttSeparator, |log| log.push(record(0, T::EV_POST_CODE, &[0xFF; 4], b"code"))),
        (Code::AttSeparator, |log| log.push(same(9, T::EV_SEPARATOR, &[0; 4]))),
        (Code::AttVariable, |log| log.push(config(GLOBAL, "SecureBoot", &[1]))),
        (Code::AttVariable, |log| {
            let db = log.remove(5);
            log.push(db);
        }),
        (Code::AttVariable, |log| drop(log.remove(6))),
    ];
    for (code, change) in cases {
        let appraisal = honest(change);
        assert!(codes(&appraisal).contains(&code), "{code}: {:?}", appraisal.findings);
        nothing_is_claimed(&appraisal);
    }
}

#[test]
fn t16_a_bank_that_the_firmware_did_not_extend_is_refused() {
    // a log without one digest of the bank that is quoted
    let missing = honest(|log| log[1].digests.truncate(1));
    assert_eq!(codes(&missing), [Code::AttBank]);
    nothing_is_claimed(&missing);
    // quotes of SHA-1 alone, or of a bank that the log does not have
    assert_eq!(
        codes(&answered(|tpm| {
            tpm.bank = DigestAlg::Sha1;
            tpm.pcrs = replayed(&bytes(&linux()), DigestAlg::Sha1);
        })),
        [Code::AttBank]
    );
    let filled = answered(|tpm| {
        tpm.bank = DigestAlg::Sha384;
        tpm.pcrs = (0..24).map(|pcr| (pcr, Digest::new(DigestAlg::Sha384, &[0; 48]).unwrap())).collect();
    });
    assert_eq!(codes(&filled), [Code::AttBank]);
    nothing_is_claimed(&filled);
}

#[test]
fn t17_answers_to_something_else_are_refused() {
    let replayed = answered(|tpm| tpm.nonce = vec![1; 32]);
    assert_eq!(codes(&replayed), [Code::AttNonce]);
    nothing_is_claimed(&replayed);
    let short = answered(|tpm| tpm.nonce.truncate(31));
    assert_eq!(codes(&short), [Code::AttNonce]);
    // old evidence as it was, challenged anew
    let log = bytes(&linux());
    let tpm = Tpm::new(1, &log);
    let again = verifier(&reference_text(), machine(&tpm)).appraise(&tpm.evidence(Some(&log)), &[2; 32], NOW);
    assert_eq!(codes(&again), [Code::AttNonce]);
    nothing_is_claimed(&again);
    // PCRs left out: the firmware's, and one that the log has events of
    let some = answered(|tpm| tpm.selected.retain(|pcr| *pcr != 7));
    assert_eq!(codes(&some), [Code::AttPcrMask]);
    nothing_is_claimed(&some);
    assert_eq!(codes(&answered(|tpm| tpm.selected.retain(|pcr| *pcr != 9))), [Code::AttPcrMask]);
    assert_eq!(codes(&answered(|tpm| tpm.selected.retain(|pcr| *pcr != 11))), [], "nothing is in it");
}

#[test]
fn t18_a_tpm_that_was_reset_behind_the_machine_is_refused() {
    // the same digests again: the PCRs are good, the counters are not
    let reset = answered(|tpm| {
        tpm.reset_count = 8;
        tpm.safe = false;
    });
    assert_eq!(codes(&reset), [Code::AttResetCount, Code::AttClock]);
    nothing_is_claimed(&reset);
    assert_eq!(codes(&answered(|tpm| tpm.reset_count = 6)), [Code::AttResetCount]);
    assert_eq!(codes(&answered(|tpm| tpm.restart_count = 1)), [Code::AttResetCount]);
    assert_eq!(codes(&answered(|tpm| tpm.safe = false)), [Code::AttClock]);
    // the host knows that the machine was switched off
    let log = bytes(&linux());
    let tpm = Tpm { safe: false, ..Tpm::new(1, &log) };
    let known = loader_sim::attest::Machine { orderly: false, ..machine(&tpm) };
    assert!(verifier(&reference_text(), known).appraise(&tpm.evidence(Some(&log)), &NONCE, NOW).healthy());
}

#[test]
fn t19_a_policy_cannot_count_on_what_can_be_reset() {
    for pcr in [16, 17, 23, 99] {
        for key in ["required_pcrs = [0, 1, 2, 3, 4, 5, 6, 7, ", "baseline_pcrs = ["] {
            let text = format!("{key}{pcr}]\n{}", reference_text());
            assert!(Reference::read(&text).unwrap_err().to_string().contains("can be reset"), "{text}");
        }
    }
    let quoted = answered(|tpm| {
        tpm.selected.push(16);
        tpm.pcrs.insert(16, sha256(b"whatever"));
    });
    assert_eq!(codes(&quoted), [], "quoted, and nothing follows from it");
}

#[test]
fn t20_t21_states_that_were_put_back_or_copied_are_refused() {
    let log = bytes(&linux());
    let tpm = Tpm::new(1, &log);
    let known = loader_sim::attest::Machine { ledger: Ledger::RolledBack, ..machine(&tpm) };
    let appraisal = verifier(&reference_text(), known).appraise(&tpm.evidence(Some(&log)), &NONCE, NOW);
    assert_eq!(codes(&appraisal), [Code::AttRollback]);
    nothing_is_claimed(&appraisal);

    let other = machine(&Tpm::new(2, &log));
    let one = machine(&tpm);
    for copy in [one.clone(), loader_sim::attest::Machine { ek_name: one.ek_name.clone(), ..other.clone() }] {
        let machines = BTreeMap::from([(VM.to_owned(), one.clone()), ("web-2".to_owned(), copy)]);
        let verifier = Verifier::new(Reference::read(&reference_text()).unwrap(), DbxInfo::default(), machines);
        let appraisal = verifier.appraise(&tpm.evidence(Some(&log)), &NONCE, NOW);
        assert_eq!(codes(&appraisal), [Code::AttClone]);
        nothing_is_claimed(&appraisal);
    }
    let machines = BTreeMap::from([(VM.to_owned(), one), ("web-2".to_owned(), other)]);
    let verifier = Verifier::new(Reference::read(&reference_text()).unwrap(), DbxInfo::default(), machines);
    assert!(verifier.appraise(&tpm.evidence(Some(&log)), &NONCE, NOW).healthy());
}

#[test]
fn t26_keys_that_could_sign_what_no_tpm_made_are_refused() {
    let log = bytes(&linux());
    // enrolled as it is, so that nothing but its attributes speaks against it
    let with = |attributes: u32| {
        let tpm = Tpm { attributes, ..Tpm::new(1, &log) };
        codes(&verifier(&reference_text(), machine(&tpm)).appraise(&tpm.evidence(Some(&log)), &NONCE, NOW))
    };
    assert_eq!(with(AK_ATTRIBUTES), []);
    // without restricted, sign, fixedTPM, fixedParent, sensitiveDataOrigin
    for bit in [0x0001_0000, 0x0004_0000, 0x02, 0x10, 0x20] {
        assert_eq!(with(AK_ATTRIBUTES & !bit), [Code::AttKeyAttributes], "{bit:#x}");
    }
    assert_eq!(with(AK_ATTRIBUTES | 0x0002_0000), [Code::AttKeyAttributes], "decrypt");
    // what an unrestricted key would sign
    assert_eq!(codes(&answered(|tpm| tpm.magic = *b"FAKE")), [Code::AttQuote]);
    // another structure of a TPM's: certified, time, NV
    for attest_type in [0x8017, 0x8019, 0x8014, 0x0000] {
        assert_eq!(codes(&answered(|tpm| tpm.attest_type = attest_type)), [Code::AttQuote], "{attest_type:#x}");
    }
}

#[test]
fn quotes_are_verified_over_every_byte() {
    let log = bytes(&linux());
    let tpm = Tpm::new(1, &log);
    let verifier = verifier(&reference_text(), machine(&tpm));
    let evidence = tpm.evidence(Some(&log));
    let appraise = |change: &dyn Fn(&mut Evidence)| {
        let mut evidence = evidence.clone();
        change(&mut evidence);
        verifier.appraise(&evidence, &NONCE, NOW)
    };
    assert!(appraise(&|_| {}).healthy());
    for at in 0..tpm.message().len() {
        assert_eq!(codes(&appraise(&|e| e.quotes[0].message.0[at] ^= 1)), [Code::AttSignature], "byte {at}");
    }
    for at in 0..evidence.quotes[0].signature.0.len() {
        assert_eq!(codes(&appraise(&|e| e.quotes[0].signature.0[at] ^= 1)), [Code::AttSignature], "byte {at}");
    }
    for at in 0..evidence.ak_public.0.len() {
        assert!(!appraise(&|e| e.ak_public.0[at] ^= 1).healthy(), "byte {at}");
    }
    for longer in [true, false] {
        let change = |bytes: &mut Vec<u8>| if longer { bytes.push(0) } else { bytes.truncate(bytes.len() - 1) };
        assert!(!appraise(&|e| change(&mut e.quotes[0].signature.0)).healthy());
        assert!(!appraise(&|e| change(&mut e.ak_public.0)).healthy());
        // signed by the key, and yet not a quote to its end
        let mut message = tpm.message();
        change(&mut message);
        let appraisal = appraise(&|e| {
            e.quotes[0].signature = Bytes(tpm.sign(&message));
            e.quotes[0].message = Bytes(message.clone());
        });
        assert_eq!(codes(&appraisal), [Code::AttQuote]);
    }
    assert_eq!(codes(&appraise(&|e| _ = e.quotes[0].pcrs.insert(0, sha256(b"other")))), [Code::AttQuote], "a value");
    assert_eq!(codes(&appraise(&|e| _ = e.quotes[0].pcrs.remove(&15))), [Code::AttQuote], "one missing");
    assert_eq!(codes(&appraise(&|e| _ = e.quotes[0].pcrs.insert(20, sha256(b"more")))), [Code::AttQuote], "one more");
    assert_eq!(
        codes(&appraise(&|e| {
            let quote = e.quotes[0].clone();
            e.quotes.push(quote);
        })),
        [Code::AttQuote],
        "twice"
    );
    assert_eq!(codes(&appraise(&|e| e.vm = "web-9".to_owned())), [Code::AttKey]);
}

#[test]
fn t27_secure_boot_off_and_a_log_that_is_not_there_fail() {
    let log = bytes(&linux());
    let tpm = Tpm::new(1, &log);
    let none = verifier(&reference_text(), machine(&tpm)).appraise(&tpm.evidence(None), &NONCE, NOW);
    assert_eq!(codes(&none), [Code::AttLogMissing]);
    nothing_is_claimed(&none);
    assert_eq!(Ear::of(&none, 60).ear_status, Tier::Contraindicated);
    let off = honest(|log| {
        log[2] = config(GLOBAL, "SecureBoot", &[0]);
        log.retain(|r| r.event_type != T::EV_EFI_VARIABLE_AUTHORITY);
    });
    assert_eq!(codes(&off), [Code::AttSecureBootOff]);
    assert_eq!(off.claims.get("secureboot"), &Claim::Is(false));
    for value in [&b""[..], &[1, 0], &[2]] {
        assert_eq!(codes(&honest(|log| log[2] = config(GLOBAL, "SecureBoot", value))), [Code::AttSecureBootOff]);
    }
}

#[test]
fn what_firmware_says_against_itself_is_heard() {
    let debug = honest(|log| log.insert(2, same(7, T::EV_EFI_ACTION, b"UEFI Debug Mode")));
    assert_eq!(codes(&debug), [Code::AttWeakened]);
    // a variable of the name, and not the variable
    let twin = honest(|log| {
        log[2] = config(GLOBAL, "SecureBoot", &[0]);
        log.insert(3, config(SHIM, "SecureBoot", &[1]));
    });
    assert_eq!(codes(&twin), [Code::AttSecureBootOff]);
}

#[test]
fn another_machines_answer_is_none() {
    let log = bytes(&linux());
    let (one, two) = (Tpm::new(1, &log), Tpm::new(2, &log));
    let machines = BTreeMap::from([(VM.to_owned(), machine(&one)), ("web-2".to_owned(), machine(&two))]);
    let verifier = Verifier::new(Reference::read(&reference_text()).unwrap(), DbxInfo::default(), machines);
    let evidence = Evidence { vm: "web-2".to_owned(), ..two.evidence(Some(&log)) };
    let json = serde_json::to_vec(&evidence).unwrap();
    assert!(verifier.appraise_answer("web-2", &json, &NONCE, NOW).healthy());
    for (answer, code) in [(&json[..], Code::AttKey), (&json[1..], Code::AttEvidence)] {
        let appraisal = verifier.appraise_answer(VM, answer, &NONCE, NOW);
        assert_eq!((codes(&appraisal), &*appraisal.vm), (vec![code], VM));
        nothing_is_claimed(&appraisal);
        assert_eq!(Ear::of(&appraisal, 60).submods["vtpm"].ear_status, Tier::Contraindicated);
        assert_eq!(alert::alerts(&appraisal)[0].severity, Severity::Medium);
    }
}

#[test]
fn t28_the_sequence_is_exact_but_for_the_kernel_twice() {
    let at = |log: &[Record], what: &[u8]| position(log, what);
    assert_eq!(
        codes(&honest(|log| {
            let n = at(log, b"kernel");
            log.remove(n);
        })),
        [],
        "once"
    );
    let cases: [(&str, &[Code], Change); 8] = [
        ("a third time", &[Code::AttUnexpected], |log| {
            let n = position(log, b"kernel");
            log.insert(n, image(b"kernel", ""));
        }),
        ("GRUB twice", &[Code::AttUnexpected], |log| {
            let n = position(log, b"grub");
            log.insert(n, image(b"grub", ""));
        }),
        ("shim twice", &[Code::AttUnexpected], |log| {
            let n = position(log, b"shim");
            log.insert(n, image(b"shim", ""));
        }),
        ("another behind the kernel", &[Code::AttUnexpected], |log| log.push(image(b"implant", ""))),
        ("another before GRUB", &[Code::AttComponent, Code::AttUnexpected, Code::AttMissing], |log| {
            let n = position(log, b"grub");
            log.insert(n, image(b"implant", ""));
        }),
        ("no GRUB", &[Code::AttMissing, Code::AttUnexpected], |log| {
            let n = position(log, b"grub");
            log.remove(n);
        }),
        ("no kernel", &[Code::AttMissing], |log| log.retain(|r| !is_image(r, b"kernel"))),
        ("a boot option that came back", &[Code::AttUnexpected], |log| {
            log.push(same(4, T::EV_EFI_ACTION, b"Returning from EFI Application from Boot Option"));
        }),
    ];
    for (what, expected, change) in cases {
        let appraisal = honest(change);
        let found = codes(&appraisal);
        assert!(found.iter().all(|code| expected.contains(code)) && expected.contains(&found[0]), "{what}: {:?}", appraisal.findings);
        assert!(!appraisal.healthy(), "{what}");
    }
    let late = honest(|log| log.push(same(1, T::EV_EFI_VARIABLE_BOOT2, &variable(GLOBAL, "BootNext", &[1, 0]))));
    assert_eq!(codes(&late), [Code::AttUnexpected], "behind ExitBootServices");
    // what a device brings
    let rom = honest(|log| {
        let n = position(log, b"shim");
        log.insert(n, Record { pcr: 2, event_type: T::EV_EFI_BOOT_SERVICES_DRIVER, ..image(b"option ROM", "") });
    });
    assert_eq!(codes(&rom), [Code::AttSigner]);
}

#[test]
fn t29_a_refused_driver_is_a_low_alert_with_its_own_cause() {
    let log = bytes(&linux());
    let tpm = Tpm::new(1, &log);
    let refusal = |code, detail: &str| Some(Refusal { code, detail: detail.to_owned() });
    let mut evidence = tpm.evidence(Some(&log));
    evidence.drivers = vec![
        driver(b"fine", None),
        driver(b"unsigned", refusal(Code::find("HVCI-SIG-001").unwrap(), "no signature")),
        driver(b"tampered", refusal(Code::find("HVCI-SIG-002").unwrap(), "digest differs")),
    ];
    let appraisal = verifier(&reference_text(), machine(&tpm)).appraise(&evidence, &NONCE, NOW);
    assert!(appraisal.healthy(), "the machine runs on: {:?}", appraisal.findings);
    let alerts = alert::alerts(&appraisal);
    let causes: Vec<_> =
        alerts.iter().map(|a| (a.severity, a.kind, a.driver.as_ref().unwrap().refused.as_ref().unwrap().code.id())).collect();
    assert_eq!(causes, [(Severity::Low, Kind::DriverRefused, "HVCI-SIG-001"), (Severity::Low, Kind::DriverRefused, "HVCI-SIG-002")]);
    assert_ne!(alerts[0].id, alerts[1].id);
    assert_eq!(alerts[0].driver.as_ref().unwrap().version.as_deref(), Some("1.2"));
}

#[test]
fn alerts_and_histories_are_the_same_for_the_same_evidence() {
    let bad = || {
        honest(|log| {
            let at = position(log, b"kernel");
            log[at] = image(b"other", "\\vmlinuz");
            log.remove(at + 1);
        })
    };
    let text = |appraisal: &Appraisal| {
        let mut out = Vec::new();
        alert::write(&mut out, &alert::alerts(appraisal)).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert_eq!(text(&bad()), text(&bad()));
    let line: serde_json::Value = serde_json::from_str(&text(&bad())).unwrap();
    let wanted = serde_json::json!({
        "vm": VM, "severity": "medium", "kind": "attestation-failed", "reason": "component-hash-mismatch", "codes": ["HVCI-ATT-021"],
        "failed_pcrs": [4], "first_divergent_event": position(&linux(), b"kernel"),
    });
    for (key, value) in wanted.as_object().unwrap() {
        assert_eq!(&line[key], value, "{key}");
    }
    let component = &line["components"][0];
    assert_eq!(
        (component["stage"].as_str(), component["path_trust"].as_str(), component["path"].as_str()),
        (Some("kernel"), Some("hint"), Some("\\vmlinuz"))
    );
    assert_eq!(component["expected"][0].as_str().unwrap(), sha256(b"kernel").to_string());
    assert_eq!(line["boot"]["reset_count"], 7);

    let mut history = Vec::new();
    let entries = [Health::from(&honest(|_| {})), Health::from(&bad())];
    entries.iter().for_each(|entry| entry.append(&mut history).unwrap());
    assert_eq!(Health::history(&history[..]).unwrap(), entries);
    // cut short while the last line was written
    assert_eq!(Health::history(&history[..history.len() - 1]).unwrap(), entries[..1]);
    assert!(Health::history(&b"{}\n"[..]).is_err());
    assert!(Health::history(&vec![b'x'; 1 << 20][..]).is_err());
}

#[test]
fn results_are_signed_and_nothing_in_them_is_better_than_the_appraisal() {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    use p256::{ecdsa::signature::Verifier as _, pkcs8::EncodePrivateKey};

    let Tpm { key, .. } = Tpm::new(9, &bytes(&linux()));
    let pkcs8 = p256::SecretKey::from(&key).to_pkcs8_der().unwrap();
    let token = Ear::of(&honest(|_| {}), 3600).sign(pkcs8.as_bytes()).unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let signature = p256::ecdsa::Signature::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
    key.verifying_key().verify(signed.as_bytes(), &signature).unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    let json = |text| serde_json::from_slice::<serde_json::Value>(&BASE64_URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap();
    assert_eq!(json(header), serde_json::json!({ "typ": "JWT", "alg": "ES256" }));
    let claims = json(claims);
    assert_eq!((&claims["iat"], &claims["exp"], &claims["ear_status"]), (&NOW.0.into(), &(NOW.0 + 3600).into(), &"affirming".into()));
    assert_eq!(claims["submods"]["secure-boot"]["ear_verifier_claims"]["secureboot"], true);
    assert!(claims["submods"]["hvci"]["ear_verifier_claims"]["x-ms-azurevm-hvci-policy"].is_null());
    assert_eq!(claims["submods"]["hvci"]["ear_status"], "none");
    assert_eq!(claims["submods"]["vtpm"]["ear_trustworthiness_vector"]["instance-identity"], 2);
    assert!(Ear::of(&honest(|_| {}), 1).sign(b"no key").is_err());

    let bad = Ear::of(&answered(|tpm| tpm.reset_count = 1), 60);
    assert_eq!((bad.ear_status, bad.submods["vtpm"].ear_status), (Tier::Contraindicated, Tier::Contraindicated));
    assert_eq!(bad.submods["secure-boot"].ear_status, Tier::None, "nothing is known of it");
}

#[test]
fn references_are_read_strictly() {
    let good = reference_text();
    assert!(Reference::read(&good).is_ok());
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        Reference::read(&good.replace(from, to)).unwrap_err().to_string()
    };
    replaced("[secure_boot]", "[secureboot]");
    replaced("name = \"shim 16.1\"", "name = \"shim 16.1\"\nnote = 1");
    replaced("\"any\"", "\"all\"");
    replaced("stage = \"kernel\"", "stage = \"colonel\"");
    assert!(replaced("chain = [\"shim\", \"boot-loader\", \"kernel\"]", "chain = []").contains("chain is empty"));
    assert!(replaced(&sha256(b"grub").to_string(), &sha256(b"shim").to_string()).contains("two components"));
    assert!(replaced(&sha256(b"grub").to_string(), &format!("sha1:{}", "0".repeat(40))).contains("is not SHA-256"));
    assert!(replaced("[secure_boot]", "[secure_boot]\ndbx_since = \"2025\"").contains("no date"));
    assert!(Reference::read(&format!("required_pcrs = [0, 1, 2, 3, 4, 5, 6]\n{good}")).unwrap_err().to_string().contains("PCR 7"));
    for bad in [
        r#"{"images":{"x64":[{"authenticodeHash":"AB","hashType":"SHA256","dateOfAddition":"2020-01-01"}]}}"#,
        r#"{"images":{"x64":[{"authenticodeHash":"","hashType":"SHA1","dateOfAddition":"2020-01-01"}]}}"#,
        r#"{"svns":[]}"#,
        "[]",
    ] {
        assert!(DbxInfo::read(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn evidence_is_read_within_bounds() {
    let log = bytes(&linux());
    let evidence = Tpm::new(1, &log).evidence(Some(&log));
    let json = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = serde_json::to_value(&evidence).unwrap();
        change(&mut value);
        Evidence::read(value.to_string().as_bytes())
    };
    assert_eq!(json(&|_| {}), Ok(evidence.clone()));
    assert_eq!(Evidence::read(&vec![b' '; MAX_EVIDENCE + 1]), Err(EvidenceError::TooLong(MAX_EVIDENCE + 1)));
    for (field, value) in [
        ("vm", "../etc".into()),
        ("vm", "".into()),
        ("nonce", "00".into()),
        ("nonce", "00".repeat(65).into()),
        ("quotes", serde_json::json!([])),
        ("ak_public", "".into()),
        ("tcg_log", "A".repeat(6 << 20).into()),
    ] {
        assert!(
            matches!(json(&|v: &mut serde_json::Value| v[field] = value.clone()), Err(EvidenceError::Bounds(what)) if what == field),
            "{field}"
        );
    }
    let more: [fn(&mut serde_json::Value); 3] =
        [|v| v["more"] = 1.into(), |v| v["tcg_log"] = "!".into(), |v| v["features"]["more"] = true.into()];
    for change in more {
        assert!(matches!(json(&change), Err(EvidenceError::Form(_))));
    }
}

proptest! {
    // more with PROPTEST_CASES
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(500), ..ProptestConfig::default() })]

    /// T30: whatever is sent, there is an appraisal, and it is good only if every PCR was extended with the same.
    #[test]
    fn t30_any_change_of_a_log_is_refused_or_changes_no_digest(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<[u8; 4]>()), 1..4)
    ) {
        let good = bytes(&linux());
        let tpm = Tpm::new(1, &good);
        let mut log = good.clone();
        for (index, how, value) in changes {
            let at = index.index(log.len().max(1));
            match how {
                0 => if let Some(byte) = log.get_mut(at) { *byte = value[0] },
                1 => log.truncate(at),
                2 => drop(log.splice(at..at, value)),
                _ => for (old, new) in log.iter_mut().skip(at).zip(value) { *old = new },
            }
        }
        let appraisal = verifier(&reference_text(), machine(&tpm)).appraise(&tpm.evidence(Some(&log)), &NONCE, NOW);
        alert::alerts(&appraisal);
        let _ = serde_json::to_string(&Ear::of(&appraisal, 1));
        if appraisal.healthy() {
            prop_assert_eq!(replayed(&log, DigestAlg::Sha256), replayed(&good, DigestAlg::Sha256));
        } else {
            prop_assert_ne!(log, good);
        }
    }

    #[test]
    fn t30_structures_of_a_tpm_without_sense_are_no_reason_to_panic(
        message in prop::collection::vec(any::<u8>(), 0..200), signature in prop::collection::vec(any::<u8>(), 0..100),
        public in prop::collection::vec(any::<u8>(), 0..150), signed: bool
    ) {
        let log = bytes(&linux());
        let tpm = Tpm::new(1, &log);
        let mut evidence = tpm.evidence(Some(&log));
        // with a good signature the message is read
        evidence.quotes[0].signature = Bytes(if signed { tpm.sign(&message) } else { signature });
        evidence.quotes[0].message = Bytes(message);
        if !signed {
            evidence.ak_public = Bytes(public);
        }
        prop_assert!(!verifier(&reference_text(), machine(&tpm)).appraise(&evidence, &NONCE, NOW).healthy());
    }

    #[test]
    fn any_bytes_are_evidence_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = (Evidence::read(&bytes), DbxInfo::read(&bytes));
    }
}
