//! The logs of real starts: Debian 12's shim, GRUB and kernel on OVMF, and what Microsoft says of revoked images.

use std::{fs, path::PathBuf};

use hvci_engine::{digest::DigestAlg, finding::Code};
use loader_sim::{
    attest::{Appraisal, Baseline, Claim, DbxInfo, Machine, Verdict},
    measure::{EventLog, EventType, pcrs},
};

use crate::made::*;

const GOOD: &str = "debian12-shim16.1-good";
const GOOD_2023: &str = "debian12-shim16.1-good2023";

/// A log and its TPM's PCRs; none if they are not there.
fn vector(name: &str) -> Option<(Vec<u8>, Tpm)> {
    let Some(dir) = std::env::var_os("HVCI_EVENTLOGS").map(PathBuf::from).filter(|dir| dir.is_dir()) else {
        eprintln!("skipped: HVCI_EVENTLOGS names no folder of event logs");
        return None;
    };
    let log = fs::read(dir.join(format!("{name}.eventlog"))).unwrap();
    let given = pcrs::read(&fs::read_to_string(dir.join(format!("{name}.pcrs-sha256"))).unwrap()).unwrap();
    let mut tpm = Tpm::new(1, &log);
    // what the real TPM had, not what the log makes of it
    tpm.pcrs = given.into_iter().map(|((alg, pcr), value)| (pcr, Some(value).filter(|_| alg == DigestAlg::Sha256).unwrap())).collect();
    tpm.selected.retain(|pcr| tpm.pcrs.contains_key(pcr));
    Some((log, tpm))
}

/// Reference values made from a log that is known to be good.
fn reference(log: &[u8]) -> String {
    let log = EventLog::read(log).unwrap();
    let images: Vec<_> = log.events.iter().filter(|e| e.event_type == EventType::EV_EFI_BOOT_SERVICES_APPLICATION).collect();
    let mut text = "chain = [\"shim\", \"boot-loader\", \"kernel\"]\n[mok]\n".to_owned();
    for list in log.events.iter().filter(|e| e.pcr == 14 && e.event_type == EventType::EV_IPL) {
        let name = std::str::from_utf8(list.data).unwrap().trim_end_matches('\0');
        text += &format!("{name} = [\"{}\"]\n", list.digests.get(DigestAlg::Sha256).unwrap());
    }
    for (stage, image) in ["shim", "boot-loader", "kernel"].into_iter().zip(images) {
        let digest = image.digests.get(DigestAlg::Sha256).unwrap();
        text += &format!("[[component]]\nstage = \"{stage}\"\nname = \"Debian's {stage}\"\nauthentihash = [\"{digest}\"]\n");
    }
    for authority in log.events.iter().filter(|e| e.event_type == EventType::EV_EFI_VARIABLE_AUTHORITY) {
        // the certificate begins behind name and owner
        let at = authority.data.windows(4).position(|w| w[..2] == [0x30, 0x82] && usize::from(w[2]) * 256 + usize::from(w[3]) > 700);
        if let Some(at) = at {
            text += &format!("[[signer]]\nname = \"an authority\"\ncertificate = \"{}\"\n", sha256(&authority.data[at..]));
        }
    }
    text
}

fn appraise(text: &str, log: &[u8], tpm: &Tpm, baseline: Option<&[u8]>) -> Appraisal {
    let baseline = baseline.map(|log| Baseline::of(&EventLog::read(log).unwrap()));
    verifier(text, Machine { baseline, ..machine(tpm) }).appraise(&tpm.evidence(Some(log)), &NONCE, NOW)
}

#[test]
fn a_real_start_is_healthy_by_its_own_reference_and_baseline() {
    for name in [GOOD, GOOD_2023] {
        let Some((log, tpm)) = vector(name) else { return };
        let appraisal = appraise(&reference(&log), &log, &tpm, Some(&log));
        assert_eq!(appraisal.findings, [], "{name}");
        assert_eq!(appraisal.claims.get("secureboot"), &Claim::Is(true));
        let verdicts: Vec<_> = appraisal.components.iter().map(|c| c.verdict).collect();
        assert_eq!(verdicts, [Verdict::Allowed; 3], "the kernel is measured twice");
        let grub = &appraisal.components[1].signers[0];
        assert_eq!((&*grub.variable, grub.subject.as_deref()), ("MokListRT", Some("CN=Debian Secure Boot CA")));
    }
}

#[test]
fn another_key_in_db_is_named_though_pcr_4_is_the_same() {
    let (Some((good, of_good)), Some((other, tpm))) = (vector(GOOD), vector(GOOD_2023)) else { return };
    assert_eq!(of_good.pcrs[&4], tpm.pcrs[&4]);
    let appraisal = appraise(&reference(&good), &other, &tpm, Some(&good));
    let codes: Vec<_> = appraisal.findings.iter().map(|f| f.code).collect();
    assert!(codes.contains(&Code::AttBaseline) && codes.contains(&Code::AttSigner), "{:#?}", appraisal.findings);
    let first = appraisal.first_divergent_event.unwrap();
    let event = EventLog::read(&other).unwrap().events[first].pcr;
    assert!(matches!(event, 0 | 7), "{first}");
    assert_eq!(appraisal.components[0].signers[0].subject.as_deref().map(|s| s.contains("UEFI CA 2023")), Some(true));
    // and the good log with the other start's PCRs
    let swapped = appraise(&reference(&good), &good, &tpm, None);
    assert!(swapped.findings.iter().any(|f| (f.code, f.pcr) == (Code::AttReplay, Some(7))), "{:#?}", swapped.findings);
}

#[test]
fn every_byte_of_a_real_log_that_is_digested_counts() {
    let Some((log, tpm)) = vector(GOOD) else { return };
    let verifier = verifier(&reference(&log), machine(&tpm));
    let read = EventLog::read(&log).unwrap();
    for event in read.events.iter().filter(|e| e.is_extended()) {
        let mut changed = log.clone();
        // behind the digest of SHA-1, which is not quoted
        changed[event.offset + 12 + 22 + 2] ^= 1;
        assert!(!verifier.appraise(&tpm.evidence(Some(&changed)), &NONCE, NOW).healthy(), "event {}", event.number);
    }
}

#[test]
fn microsofts_list_says_what_a_revoked_image_was() {
    let path = std::env::var_os("HVCI_EVENTLOGS").map(|dir| PathBuf::from(dir).join("../uefi/dbx_info_msft_latest.json"));
    let Some(json) = path.and_then(|path| fs::read(path).ok()) else {
        eprintln!("skipped: no dbx_info_msft_latest.json");
        return;
    };
    let list = DbxInfo::read(&json).unwrap();
    let digest = "sha256:c805603c4fa038776e42f263c604b49d96840322e1922d5606a9b0bbb5bffe6f".to_owned().try_into().unwrap();
    let revoked = list.lookup(&digest).unwrap();
    assert_eq!((revoked.cve.len(), &*revoked.file, &*revoked.since), (8, "BOOTX64.EFI", "2020-07-01"));
    assert_eq!(revoked.cve[0], "CVE-2020-10713");
}
