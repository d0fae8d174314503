//! Event logs: read, replayed and checked; what is true of every log of a boot, and what no change of one gets past.
//!
//! `HVCI_EVENTLOGS` names a folder with logs of real boots, `NAME.eventlog` with the PCRs of the TPM beside it, `NAME.pcrs-sha256`; the test of
//! them says that it skips where it is missing.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::{env, fs, path::Path, process::Command};

mod builder;

use builder::{Builder, variable_data};
use hvci_engine::{
    crypto,
    digest::{Digest, DigestAlg},
    signature::signature_list::Guid,
};
use loader_sim::measure::{
    check::{Fault, What, check},
    content::{Content, Variable},
    event::{Algorithm, EventType},
    log::{LogErrorKind, read},
    pcr_file,
    replay::replay,
};
use proptest::prelude::*;

const BANKS: [DigestAlg; 3] = [DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha384];
const GLOBAL: Guid = Guid::new(0x8be4_df61, 0x93ca, 0x11d2, [0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c]);
const ALL_FIRMWARE: std::ops::RangeInclusive<u32> = 0..=7;

/// A measurement: PCR, type, what is measured, what is written down of it.
type Measurement = (u32, EventType, Vec<u8>, Vec<u8>);

fn variable(name: &str, data: &[u8]) -> Vec<u8> {
    variable_data(&Variable { vendor: GLOBAL, name: name.to_owned(), data })
}

/// Measured as it is written down.
fn plain(pcr: u32, kind: EventType, data: Vec<u8>) -> Measurement {
    (pcr, kind, data.clone(), data)
}

/// What a machine measures that starts shim and GRUB, in its order.
fn boot() -> Vec<Measurement> {
    let mut all = vec![plain(0, EventType::S_CRTM_VERSION, vec![b'1', 0, 0, 0])];
    for (name, value) in [("SecureBoot", &[1][..]), ("PK", b"pk"), ("KEK", b"kek"), ("db", b"db"), ("dbx", b"")] {
        all.push(plain(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, variable(name, value)));
    }
    all.push(plain(7, EventType::SEPARATOR, vec![0; 4]));
    all.push((1, EventType::EFI_VARIABLE_BOOT, vec![1, 0], variable("BootOrder", &[1, 0])));
    all.push(plain(4, EventType::EFI_ACTION, b"Calling EFI Application from Boot Option".to_vec()));
    all.extend((0..=6).map(|pcr| plain(pcr, EventType::SEPARATOR, vec![0; 4])));
    all.push(plain(7, EventType::EFI_VARIABLE_AUTHORITY, variable("db", b"an owner, a certificate")));
    all.push((4, EventType::EFI_BOOT_SERVICES_APPLICATION, b"shim".to_vec(), vec![0; 32]));
    all.push((14, EventType::IPL, b"mok".to_vec(), b"MokList\0".to_vec()));
    all.push((4, EventType::EFI_BOOT_SERVICES_APPLICATION, b"grub".to_vec(), vec![0; 32]));
    all.push((8, EventType::IPL, b"boot".to_vec(), b"grub_cmd: boot\0".to_vec()));
    all
}

fn written(all: &[Measurement]) -> Vec<u8> {
    let mut builder = Builder::new(&BANKS);
    for (pcr, kind, measured, data) in all {
        builder.measure(*pcr, *kind, measured, data);
    }
    builder.bytes().to_vec()
}

fn faults(all: &[Measurement]) -> Vec<Fault> {
    check(&read(&written(all)).unwrap())
}

#[test]
fn a_log_is_read_as_it_was_written_and_replays_to_what_was_measured() {
    let all = boot();
    let bytes = written(&all);
    let log = read(&bytes).unwrap();
    assert_eq!(log.events.len(), all.len() + 1);
    for (event, (pcr, kind, measured, data)) in log.events[1..].iter().zip(&all) {
        assert_eq!((event.pcr, event.kind, event.data), (*pcr, *kind, data.as_slice()));
        for alg in BANKS {
            assert_eq!(event.digest(Algorithm::of(alg).unwrap()).unwrap(), crypto::digest(alg, &[measured]).as_bytes());
        }
    }
    // the simplest TPM there is
    let banks = replay(&log);
    assert_eq!(banks.iter().map(|bank| bank.alg).collect::<Vec<_>>(), BANKS);
    for bank in banks {
        for pcr in 0..24_u32 {
            let mut value = vec![if (17..=22).contains(&pcr) { 0xFF } else { 0 }; bank.alg.len()];
            for (.., measured, _) in all.iter().filter(|(to, ..)| *to == pcr) {
                value = crypto::digest(bank.alg, &[&value, crypto::digest(bank.alg, &[measured]).as_bytes()]).as_bytes().to_vec();
            }
            assert_eq!(bank.values[pcr as usize], Digest::new(bank.alg, &value).unwrap(), "PCR {pcr}");
        }
    }
    assert_eq!(check(&log), []);
    assert_eq!(Content::of(&log.events[2]), Content::Variable(Variable { vendor: GLOBAL, name: "SecureBoot".to_owned(), data: &[1] }));
}

#[test]
fn room_at_the_end_is_no_event_and_a_locality_is_where_pcr_0_starts() {
    let mut builder = Builder::new(&BANKS);
    let zeros: Vec<Digest> = BANKS.iter().map(|alg| Digest::new(*alg, &vec![0; alg.len()]).unwrap()).collect();
    builder.append(0, EventType::NO_ACTION, &zeros, b"StartupLocality\0\x03");
    for room in [&[0; 40][..], &[0xFF; 40], &[]] {
        let bytes = [builder.bytes(), room].concat();
        let log = read(&bytes).unwrap();
        assert_eq!(log.events.len(), 2);
        let pcr0 = replay(&log)[1].values[0];
        assert_eq!(pcr0.hex(), format!("{}03", "00".repeat(31)));
    }
    let mut late = builder.clone();
    late.measure(0, EventType::POST_CODE, b"code", b"code");
    late.append(0, EventType::NO_ACTION, &zeros, b"StartupLocality\0\x00");
    let late = late.bytes().to_vec();
    assert!(check(&read(&late).unwrap()).iter().any(|fault| fault.what == What::Locality));
}

/// The masquerades of go-attestation's `docs/event-log-disclosure.md` among them: each is a log whose PCRs a TPM could have.
#[test]
fn what_a_pcr_cannot_tell_is_a_fault() {
    let good = boot();
    let at = |kind: EventType, pcr: u32| good.iter().position(|event| event.1 == kind && event.0 == pcr).unwrap();
    let changed = |change: &dyn Fn(&mut Vec<Measurement>)| {
        let mut all = good.clone();
        change(&mut all);
        faults(&all).into_iter().map(|fault| (fault.pcr, fault.what)).collect::<Vec<_>>()
    };
    let authority = at(EventType::EFI_VARIABLE_AUTHORITY, 7);
    let config = at(EventType::EFI_VARIABLE_DRIVER_CONFIG, 7);
    let separator = at(EventType::SEPARATOR, 7);
    assert_eq!(changed(&|_| {}), []);
    for pcr in ALL_FIRMWARE {
        let it = at(EventType::SEPARATOR, pcr);
        // not said, said twice, said by other bytes, a failure, under another name
        assert_eq!(changed(&|all| drop(all.remove(it))), [(pcr, What::NoSeparator)], "PCR {pcr}");
        assert_eq!(changed(&|all| all.push(all[it].clone())), [(pcr, What::SecondSeparator)], "PCR {pcr}");
        assert_eq!(changed(&|all| all[it] = plain(pcr, EventType::SEPARATOR, vec![2; 4])), [(pcr, What::SeparatorData)], "PCR {pcr}");
        assert_eq!(changed(&|all| all[it] = plain(pcr, EventType::SEPARATOR, vec![1, 0, 0, 0])), [(pcr, What::Failure)], "PCR {pcr}");
        for bytes in [[0; 4], [0xFF; 4]] {
            let found = changed(&|all| all.insert(it + 1, (pcr, EventType::IPL, bytes.to_vec(), b"harmless".to_vec())));
            assert!(found.contains(&(pcr, What::LooksLikeSeparator)), "PCR {pcr}: {found:?}");
        }
    }
    // everything in PCR 7 under a name that nobody reads, and a better story behind it
    let retyped = changed(&|all| {
        all.iter_mut().filter(|event| event.0 == 7).for_each(|event| event.1 = EventType::UNUSED);
        all.push(plain(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, variable("SecureBoot", &[1])));
    });
    assert!(retyped.contains(&(7, What::NotOfPcr7)) && retyped.contains(&(7, What::NoVariable("PK"))), "{retyped:?}");
    assert_eq!(changed(&|all| all[authority].1 = EventType(0x8000_00F0)), [(7, What::NotOfPcr7)]);
    let moved = changed(&|all| {
        let event = all.remove(config);
        all.insert(separator, event);
    });
    assert_eq!(moved, [(7, What::VariableAfterSeparator("SecureBoot".to_owned())), (7, What::NoVariable("SecureBoot"))]);
    assert_eq!(changed(&|all| all.insert(separator, all[config].clone())), [(7, What::VariableTwice("SecureBoot".to_owned()))]);
    // a variable of another value than was measured, in each bank
    let digest = |alg: &DigestAlg| (7, What::Digest(Algorithm::of(*alg).unwrap()));
    assert_eq!(changed(&|all| all[config].3 = variable("SecureBoot", &[0])), BANKS.iter().map(digest).collect::<Vec<_>>());
    // two variables in one event: the sizes say that something is left
    let two = [variable("PK", b"pk"), variable("KEK", b"kek")].concat();
    let merged = changed(&|all| {
        all[config + 1] = plain(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, two.clone());
        all.remove(config + 2);
    });
    assert!(merged.contains(&(7, What::NotOfPcr7)), "{merged:?}");
}

/// CVE-2021-42299: firmware leaves a bank out, and whoever comes later fills it.
#[test]
fn a_bank_that_is_left_out_is_a_fault() {
    let mut builder = Builder::new(&BANKS);
    builder.append(0, EventType::POST_CODE, &[crypto::digest(DigestAlg::Sha1, &[b"code"])], b"code");
    let log = builder.bytes().to_vec();
    let found: Vec<What> = check(&read(&log).unwrap()).into_iter().filter(|fault| fault.event == Some(1)).map(|fault| fault.what).collect();
    assert_eq!(found, BANKS[1..].iter().map(|alg| What::NotInBank(Algorithm::of(*alg).unwrap())).collect::<Vec<_>>());
}

#[test]
fn bytes_that_do_not_add_up_are_refused_with_the_place() {
    let mut bytes = written(&boot());
    let log = read(&bytes).unwrap();
    let offset = log.events[3].offset;
    let refused = |bytes: &[u8]| read(bytes).map(drop).unwrap_err();
    let cut = refused(&bytes[..offset + 5]);
    assert_eq!((cut.event, cut.offset, cut.kind), (3, offset, LogErrorKind::Truncated));
    let mut set = |at: usize, to: &[u8]| {
        let before = bytes[at..at + to.len()].to_vec();
        bytes[at..at + to.len()].copy_from_slice(to);
        let error = refused(&bytes);
        bytes[at..at + to.len()].copy_from_slice(&before);
        error.kind
    };
    assert_eq!(set(offset, &[24]), LogErrorKind::Pcr(24));
    assert_eq!(set(offset + 12, &[0x12]), LogErrorKind::UnknownAlgorithm(Algorithm(0x12)));
    assert_eq!(set(offset + 12 + 22, &[4]), LogErrorKind::DigestTwice(Algorithm(4)));
    // a count of digests that goes on into the data
    assert!(matches!(set(offset + 8, &[0xFF; 4]), LogErrorKind::UnknownAlgorithm(_)));
    // of the Spec ID event: how many algorithms, the length of the first, the length of the vendor's information
    assert_eq!(set(32 + 24, &[17]), LogErrorKind::Algorithms);
    assert_eq!(set(32 + 24, &[0]), LogErrorKind::Algorithms);
    assert_eq!(set(32 + 30, &[21]), LogErrorKind::Algorithms);
    assert_eq!(set(32 + 40, &[1]), LogErrorKind::SpecId);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing panics, and a log that still replays to the PCRs of the good one has the same events in it.
    #[test]
    fn no_change_of_a_byte_goes_unnoticed(at in 0..4096_usize, with in 1..=255_u8, len in 0..4096_usize) {
        let good = written(&boot());
        let _ = read(&good[..len.min(good.len())]).map(|log| check(&log));
        let mut bad = good.clone();
        let at = at % good.len();
        bad[at] ^= with;
        let (before, after) = (read(&good).unwrap(), read(&bad));
        if let Ok(after) = after
            && replay(&after).iter().map(|bank| bank.values).eq(replay(&before).iter().map(|bank| bank.values))
        {
            let same = |kind: EventType| {
                let of = |log: &loader_sim::measure::log::Log<'_>| log.events.iter().filter(|e| e.kind == kind).map(|e| (e.pcr, e.data.to_vec())).collect::<Vec<_>>();
                of(&before) == of(&after)
            };
            // what is left to change: types and descriptions that no digest covers
            prop_assert!(!check(&after).is_empty() || same(EventType::EFI_VARIABLE_DRIVER_CONFIG) && same(EventType::SEPARATOR));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), agile in any::<bool>()) {
        let front = if agile { Builder::new(&BANKS).bytes().to_vec() } else { Vec::new() };
        if let Ok(log) = read(&[front, bytes].concat()) {
            replay(&log);
            check(&log);
            log.events.iter().for_each(|event| _ = Content::of(event).to_string());
        }
    }
}

#[test]
fn logs_of_real_boots_replay_to_the_pcrs_of_their_tpm() {
    let Some(folder) = env::var_os("HVCI_EVENTLOGS") else {
        eprintln!("skipped: HVCI_EVENTLOGS names no folder with logs of real boots");
        return;
    };
    let mut tried = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "eventlog") {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let log = read(&bytes).unwrap();
        assert_eq!(check(&log), [], "{}", path.display());
        let expected = pcr_file::parse(&fs::read_to_string(path.with_extension("pcrs-sha256")).unwrap()).unwrap();
        let banks = replay(&log);
        let sha256 = banks.iter().find(|bank| bank.alg == DigestAlg::Sha256).unwrap();
        for (pcr, value) in expected.iter().filter(|(pcr, _)| sha256.last[*pcr].is_some()) {
            assert_eq!(sha256.values[*pcr], *value, "{}: PCR {pcr}", path.display());
        }
        assert!((0..=9).all(|pcr| sha256.last[pcr].is_some()));
        tried += 1;
    }
    assert!(tried > 0, "no log in {}", Path::new(&folder).display());
}

#[test]
fn the_command_shows_the_events_and_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let run = |log: &[u8], pcrs: Option<&str>| {
        let file = dir.path().join("log");
        fs::write(&file, log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hvci-sim"));
        command.arg("eventlog").arg(&file);
        if let Some(pcrs) = pcrs {
            let file = dir.path().join("pcrs");
            fs::write(&file, pcrs).unwrap();
            command.arg("--pcrs").arg(file);
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    };
    let good = written(&boot());
    let sha256 = &replay(&read(&good).unwrap())[1];
    let pcrs = format!("4 {}\n7 {}\n10 {}\n", sha256.values[4].hex(), sha256.values[7].hex(), "ab".repeat(32));
    let (status, said) = run(&good, Some(&pcrs));
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("EV_EFI_VARIABLE_DRIVER_CONFIG") && said.contains("SecureBoot, 1 bytes"), "{said}");
    assert!(said.contains("of which the log says nothing") && said.ends_with("22 events, 3 PCRs compared: nothing is wrong\n"), "{said}");
    let (status, said) = run(&good, Some(&format!("4 {}\n", "ab".repeat(32))));
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("event 20 is the last that went into it"), "{said}");
    let mut bad = boot();
    bad.remove(6);
    let (status, said) = run(&written(&bad), None);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("PCR 7: no separator"), "{said}");
    let (status, said) = run(&good[..100], None);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("event 1, at offset 0x49"), "{said}");
}

/// tpm2_eventlog of tpm2-tools calculates the same PCRs.
#[test]
fn tpm2_eventlog_reads_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log");
    let bytes = written(&boot());
    fs::write(&file, &bytes).unwrap();
    let Ok(output) = Command::new("tpm2_eventlog").arg(&file).output() else {
        eprintln!("skipped: tpm2_eventlog is not installed");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for bank in replay(&read(&bytes).unwrap()) {
        let part = said.split(&format!("  {}:\n", bank.alg)).nth(1).unwrap();
        for (pcr, _) in bank.last.iter().enumerate().filter(|(_, last)| last.is_some()) {
            let line = part.lines().find_map(|line| line.trim().strip_prefix(&format!("{pcr}"))?.trim().strip_prefix(": 0x")).unwrap();
            assert_eq!(line, bank.values[pcr].hex(), "{} {pcr}", bank.alg);
        }
    }
}
