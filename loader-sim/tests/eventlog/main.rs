//! Event logs: real ones against the TPM that was there, made ones against everything that can be done to a log.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use hvci_engine::{
    crypto,
    digest::{Digest, DigestAlg},
    uefi::Guid,
};
use loader_sim::{
    firmware::variable::{GLOBAL, IMAGE_SECURITY},
    measure::{
        Bank, BuildError, EventLog, EventType as T, LogBuilder, LogError, MAX_LOG, TpmAlg, check,
        check::Problem,
        data::{EventData, NoAction, Variable},
        event_type::Digested,
        pcrs::{self, Pcrs},
        replay,
    },
};
use proptest::prelude::*;

const BANKS: [DigestAlg; 3] = [DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha384];
const ZEROS: &[u8] = &[0; 4];

/// An event as a test changes it: digests of any number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    pcr: u32,
    event_type: T,
    digests: Vec<Digest>,
    data: Vec<u8>,
}

fn record(pcr: u32, event_type: T, measured: &[u8], data: &[u8]) -> Record {
    let digests = BANKS.into_iter().map(|alg| crypto::digest(alg, &[measured])).collect();
    Record { pcr, event_type, digests, data: data.to_vec() }
}

fn same(pcr: u32, event_type: T, data: &[u8]) -> Record {
    record(pcr, event_type, data, data)
}

fn variable(guid: Guid, name: &str, value: &[u8]) -> Vec<u8> {
    Variable { guid, name: name.to_owned(), value }.to_bytes()
}

fn config(guid: Guid, name: &str, value: &[u8]) -> Record {
    same(7, T::EV_EFI_VARIABLE_DRIVER_CONFIG, &variable(guid, name, value))
}

/// Every kind of event that is known, in the order of a real start.
fn made() -> Vec<Record> {
    let mut log = vec![
        same(0, T::EV_S_CRTM_VERSION, b"\x31\0\0\0"),
        record(0, T::EV_EFI_PLATFORM_FIRMWARE_BLOB, b"firmware", &[0, 0, 0x82, 0, 0, 0, 0, 0, 0, 0, 0xE, 0, 0, 0, 0, 0]),
        record(0, T::EV_EFI_PLATFORM_FIRMWARE_BLOB2, b"more", b"\x04DXEF\0\0\x90\0\0\0\0\0\0\0\xC0\0\0\0\0\0"),
        config(GLOBAL, "SecureBoot", &[1]),
        config(GLOBAL, "PK", b"a platform key"),
        config(GLOBAL, "KEK", b"a key exchange key"),
        config(IMAGE_SECURITY, "db", b"what may start"),
        config(IMAGE_SECURITY, "dbx", b""),
        same(7, T::EV_SEPARATOR, ZEROS),
        record(1, T::EV_EFI_VARIABLE_BOOT, &[1, 0], &variable(GLOBAL, "BootOrder", &[1, 0])),
        same(1, T::EV_EFI_VARIABLE_BOOT2, &variable(GLOBAL, "Boot0001", b"option")),
        same(4, T::EV_EFI_ACTION, b"Calling EFI Application from Boot Option"),
    ];
    log.extend((0..7).map(|pcr| same(pcr, T::EV_SEPARATOR, ZEROS)));
    let mut gpt = vec![0; 92];
    gpt[..8].copy_from_slice(b"EFI PART");
    gpt[84] = 128;
    gpt.extend(1_u64.to_le_bytes());
    gpt.extend([7; 128]);
    log.push(same(5, T::EV_EFI_GPT_EVENT, &gpt));
    log.push(same(7, T::EV_EFI_VARIABLE_AUTHORITY, &variable(IMAGE_SECURITY, "db", b"who signed it")));
    let path = b"\x02\x01\x0c\0\xd0\x41\x03\x0a\0\0\0\0\x01\x01\x06\0\x01\x02\x04\x04\x0a\0\\\0A\0\0\0\x7f\xff\x04\0";
    let mut image = vec![0; 24];
    image[9] = 0x10;
    image.extend(u64::try_from(path.len()).unwrap().to_le_bytes());
    image.extend(path);
    log.push(record(4, T::EV_EFI_BOOT_SERVICES_APPLICATION, b"authenticode", &image));
    log.push(record(14, T::EV_IPL, b"list", b"MokList\0"));
    log.push(record(8, T::EV_IPL, b"boot", b"grub_cmd: boot\0"));
    log.push(same(13, T::EV_EVENT_TAG, &[7, 0, 0x0A, 0, 1, 0, 0, 0, 1]));
    log.push(same(13, T::EV_SEPARATOR, b"WBCL"));
    log.push(record(9, T::EV_EVENT_TAG, b"initrd", b"\xEC\x22\x3B\x8F\x06\0\0\0Linux\0"));
    log.push(same(5, T::EV_EFI_ACTION, b"Exit Boot Services Invocation"));
    log
}

fn builder() -> LogBuilder {
    let mut builder = LogBuilder::new(&BANKS).unwrap();
    builder.startup_locality(3).unwrap();
    builder
}

/// Written by hand, as the builder does not write what is wrong.
fn bytes(records: &[Record]) -> Vec<u8> {
    let mut bytes = builder().bytes().to_vec();
    for record in records {
        bytes.extend(record.pcr.to_le_bytes());
        bytes.extend(record.event_type.0.to_le_bytes());
        bytes.extend(u32::try_from(record.digests.len()).unwrap().to_le_bytes());
        for digest in &record.digests {
            bytes.extend(TpmAlg::of(digest.alg()).unwrap().0.to_le_bytes());
            bytes.extend(digest.as_bytes());
        }
        bytes.extend(u32::try_from(record.data.len()).unwrap().to_le_bytes());
        bytes.extend(&record.data);
    }
    bytes
}

fn values(banks: &[Bank]) -> Pcrs {
    banks.iter().flat_map(|bank| (0..).zip(bank.pcrs).map(|(pcr, value)| ((bank.alg, pcr), value))).collect()
}

fn problems(bytes: &[u8]) -> Vec<Problem> {
    check(&EventLog::read(bytes).unwrap()).into_iter().map(|finding| finding.problem).collect()
}

/// Whether a verifier that has `given` from a TPM believes the log.
fn believed(bytes: &[u8], given: &Pcrs) -> bool {
    EventLog::read(bytes).is_ok_and(|log| check(&log).is_empty() && pcrs::compare(&log, &replay(&log), given).is_empty())
}

/// Real logs with the PCRs of their TPM; none if they are not there.
fn vectors() -> Vec<(PathBuf, Vec<u8>, Pcrs)> {
    let dir = std::env::var_os("HVCI_EVENTLOGS").map(PathBuf::from);
    let Some(dir) = dir.filter(|dir| dir.is_dir()) else {
        eprintln!("skipped: HVCI_EVENTLOGS names no folder of event logs");
        return Vec::new();
    };
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let logs: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == "eventlog")).collect();
    assert!(!logs.is_empty(), "HVCI_EVENTLOGS names a folder without event logs");
    let values = |path: &PathBuf| pcrs::read(&fs::read_to_string(path.with_extension("pcrs-sha256")).unwrap()).unwrap();
    logs.into_iter().map(|path| (path.clone(), fs::read(&path).unwrap(), values(&path))).collect()
}

#[test]
fn real_logs_replay_to_the_pcrs_of_their_tpm() {
    for (path, bytes, given) in vectors() {
        let log = EventLog::read(&bytes).unwrap();
        assert_eq!((check(&log), pcrs::compare(&log, &replay(&log), &given)), (vec![], vec![]), "{}", path.display());
        let replayed = values(&replay(&log));
        let equal = given.iter().filter(|(at, value)| replayed.get(at) == Some(value)).map(|((_, pcr), _)| *pcr);
        // all but the list of IMA
        assert_eq!(equal.collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 23], "{}", path.display());
        for event in &log.events {
            let data = EventData::of(event);
            assert!(!matches!(data, EventData::Unknown(_) | EventData::Unreadable(_)), "event {}: {data}", event.number);
        }
        assert!((0..bytes.len()).all(|end| !believed(&bytes[..end], &given)), "a prefix is believed");
    }
}

#[test]
fn what_is_written_is_read_back_and_replays() {
    let records = made();
    let mut builder = builder();
    let mut expected = values(&replay(&EventLog::read(builder.bytes()).unwrap()));
    for r in &records {
        builder.append(r.pcr, r.event_type, &r.digests, &r.data).unwrap();
        for digest in &r.digests {
            let pcr = expected.get_mut(&(digest.alg(), r.pcr)).unwrap();
            *pcr = crypto::digest(digest.alg(), &[pcr.as_bytes(), digest.as_bytes()]);
        }
    }
    assert_eq!(builder.bytes(), bytes(&records));
    let log = EventLog::read(builder.bytes()).unwrap();
    let said = log.events.iter().skip(1).map(|e| Record {
        pcr: e.pcr,
        event_type: e.event_type,
        digests: e.digests.iter().map(|(alg, value)| Digest::new(alg.digest_alg().unwrap(), value).unwrap()).collect(),
        data: e.data.to_vec(),
    });
    assert_eq!(said.collect::<Vec<_>>(), records);
    assert_eq!(EventData::of(&log.events[0]), EventData::NoAction(NoAction::StartupLocality(3)));
    assert_eq!((values(&replay(&log)), check(&log)), (expected, vec![]));
    let words: Vec<String> = log.events.iter().map(|e| EventData::of(e).to_string()).collect();
    for said in ["PciRoot(0x0)/Pci(0x2,0x1)/\\A", "tag 0x000a0007, 1 bytes", "SecureBoot = 01", "DXEF, 0xc00000 bytes at 0x900000", "WBCL"]
    {
        assert!(words.iter().any(|w| w == said), "{said}: {words:#?}");
    }
    assert!(words.iter().any(|w| w.ends_with("1 partitions")), "{words:#?}");
}

#[test]
fn the_builder_writes_nothing_that_cannot_be_read_back() {
    let digests = &made()[0].digests;
    let mut log = builder();
    let before = log.bytes().to_vec();
    for (pcr, event_type, digests, error) in [
        (24, T::EV_IPL, &digests[..], BuildError::NoSuchPcr(24)),
        (0, T::EV_PREBOOT_CERT, &digests[..], BuildError::Reserved),
        (0, T::EV_IPL, &digests[1..], BuildError::Digests),
    ] {
        assert_eq!(log.append(pcr, event_type, digests, b""), Err(error));
    }
    assert_eq!(log.measure(0, T::EV_IPL, b"", &vec![0; MAX_LOG]), Err(BuildError::TooLong));
    assert_eq!(log.bytes(), before);
    for banks in [&[][..], &[DigestAlg::Md5], &[DigestAlg::Sha1, DigestAlg::Sha1]] {
        assert_eq!(LogBuilder::new(banks).unwrap_err(), BuildError::Banks);
    }
}

#[test]
fn the_old_format_gives_the_sha1_bank() {
    let mut old = Vec::new();
    let agile = bytes(&made());
    let log = EventLog::read(&agile).unwrap();
    for event in &log.events {
        old.extend(event.pcr.to_le_bytes());
        old.extend(event.event_type.0.to_le_bytes());
        old.extend(event.digests.get(DigestAlg::Sha1).unwrap().as_bytes());
        old.extend(u32::try_from(event.data.len()).unwrap().to_le_bytes());
        old.extend(event.data);
    }
    let read = EventLog::read(&old).unwrap();
    assert_eq!((read.agile, check(&read)), (false, vec![]));
    assert_eq!(replay(&read), replay(&log).into_iter().filter(|bank| bank.alg == DigestAlg::Sha1).collect::<Vec<_>>());
    let given = values(&replay(&read));
    assert!((0..old.len()).all(|end| !believed(&old[..end], &given)));
}

#[test]
fn padding_is_of_one_byte_and_reaches_the_end() {
    // an event that ends in what may be padding itself
    for last in [0, 0xFF] {
        let mut records = made();
        records.push(same(5, T::EV_IPL, &[last; 40]));
        let plain = bytes(&records);
        let events = EventLog::read(&plain).unwrap().events.len();
        for byte in [0, 0xFF] {
            for len in [0, 1, 3, 16, 5000] {
                let padded = [&plain[..], &vec![byte; len]].concat();
                // padding like the event's own end is more padding, wherever it is taken to begin
                assert_eq!(EventLog::read(&padded).map(|log| (log.events.len(), log.padding)), Ok((events, len)), "{byte} {len} {last}");
            }
        }
        assert!(EventLog::read(&[&plain[..], &[0; 20], &[0xFF; 20]].concat()).is_err());
        assert!(EventLog::read(&[&plain[..], &[0; 20], &[1]].concat()).is_err());
    }
    for nothing in [&[][..], &[0; 100], &[0xFF; 100]] {
        assert_eq!(EventLog::read(nothing), Err(LogError::Empty));
    }
    assert_eq!(EventLog::read(&vec![1; MAX_LOG + 1]), Err(LogError::TooLong(MAX_LOG + 1)));
}

#[test]
fn what_is_no_log_is_refused_where_it_stops_being_one() {
    let header = LogBuilder::new(&BANKS).unwrap().bytes().len();
    let first = builder().bytes().len();
    let all = bytes(&made());
    let with = |at: usize, new: &[u8]| {
        let mut changed = all.clone();
        changed[at..at + new.len()].copy_from_slice(new);
        EventLog::read(&changed).map(|log| log.events.len())
    };
    let in_header = |offset, what| Err(LogError::Header { offset, what });
    assert_eq!(with(0, &[1]), in_header(0, "PCR and digest are not zero"));
    assert_eq!(with(53, &[3]), in_header(52, "version or size of integers is unknown"));
    assert_eq!(with(56, &[0]), in_header(56, "number of algorithms"));
    assert_eq!(with(56, &[17]), in_header(56, "number of algorithms"));
    assert_eq!(with(62, &[21]), in_header(60, "length of an algorithm's digests"));
    assert_eq!(with(64, &[4, 0, 20, 0]), in_header(64, "an algorithm twice"));
    assert_eq!(with(header - 1, &[1]), in_header(header - 1, "the vendor's bytes do not end with it"));
    assert_eq!(with(first, &[24]), Err(LogError::NoSuchPcr { event: 1, offset: first, pcr: 24 }));
    assert_eq!(with(first + 8, &[4]), Err(LogError::DigestCount { event: 1, offset: first + 8, count: 4 }));
    assert_eq!(with(first + 12, &[0x12]), Err(LogError::Undeclared { event: 1, offset: first + 12, alg: 0x12 }));
    assert_eq!(with(first + 34, &[4]), Err(LogError::Repeated { event: 1, offset: first + 34, alg: 4 }));
    let data = first + 12 + 3 * 2 + 20 + 32 + 48;
    assert_eq!(with(data, &[0xFF; 4]), Err(LogError::Truncated { event: 1, offset: data + 4, what: "data" }));
    assert_eq!(EventLog::read(&all[..first + 40]).unwrap_err(), LogError::Truncated { event: 1, offset: first + 36, what: "digest" });
}

#[test]
fn no_digested_byte_can_be_changed_and_no_end_cut_off() {
    let all = bytes(&made());
    let log = EventLog::read(&all).unwrap();
    let given = values(&replay(&log));
    assert!(believed(&all, &given));
    let mut digested = 0;
    for (n, event) in log.events.iter().enumerate() {
        let end = log.events.get(n + 1).map_or(all.len(), |next| next.offset);
        let data_at = end - event.data.len();
        let covered = event.event_type.digested(event.data) == Digested::Data;
        let places = (event.offset + 12..data_at - 4).chain(if covered { data_at..end } else { end..end });
        // what is not extended has digests too, and its data is not digested
        for at in places {
            let mut changed = all.clone();
            changed[at] ^= 1 << (at % 8);
            assert!(!believed(&changed, &given), "byte {at:#x} of event {n}");
            digested += 1;
        }
    }
    assert!(digested > 3000, "{digested}");
    assert!((0..all.len()).all(|end| !believed(&all[..end], &given)));
}

/// A change that whoever writes the log makes; what was extended stays.
type Change = fn(&mut Vec<Record>);

fn at(log: &[Record], pcr: u32, event_type: T) -> usize {
    log.iter().position(|r| (r.pcr, r.event_type) == (pcr, event_type)).unwrap()
}

#[test]
fn changed_logs_do_not_replay() {
    let original = values(&replay(&EventLog::read(&bytes(&made())).unwrap()));
    let changes: [(&str, Change); 9] = [
        ("drop", |log| drop(log.pop())),
        ("duplicate", |log| log.push(log[1].clone())),
        ("reorder", |log| log.swap(1, 2)),
        ("other PCR", |log| log[1].pcr = 2),
        ("other events of the same type", |log| log[1].digests = log[2].digests.clone()),
        ("retyped so that it is not extended", |log| log[1].event_type = T::EV_NO_ACTION),
        ("split", |log| {
            let n = at(log, 4, T::EV_EFI_ACTION);
            let (a, b) = log[n].data.split_at(11);
            let parts = [same(4, T::EV_EFI_ACTION, a), same(4, T::EV_EFI_ACTION, b)];
            log.splice(n..=n, parts);
        }),
        ("merge", |log| {
            let n = at(log, 0, T::EV_EFI_PLATFORM_FIRMWARE_BLOB);
            let data = [&log[n].data[..], &log[n + 1].data].concat();
            log.splice(n..=n + 1, [record(0, T::EV_IPL, &data, &data)]);
        }),
        ("swapped logs", |log| log.truncate(13)),
    ];
    for (what, change) in changes {
        let mut records = made();
        change(&mut records);
        let forged = bytes(&records);
        let log = EventLog::read(&forged).unwrap();
        let found = pcrs::compare(&log, &replay(&log), &original);
        assert!(!found.is_empty(), "{what}");
        // each says which event is the last that the log has for it
        for difference in found {
            let last = log.events.iter().rfind(|e| e.pcr == difference.pcr && e.event_type != T::EV_NO_ACTION).map(|e| e.number);
            assert_eq!(difference.last_event, last, "{what}");
        }
    }
}

/// Here the attacker has extended whatever the log says, so PCRs say nothing and only the rules can refuse.
#[test]
fn masquerades_are_refused_by_rules() {
    let cases: [(&str, Problem, Change); 23] = [
        ("all of PCR 7 called unused, and a better story after it", Problem::UnknownType(T::EV_UNUSED), |log| {
            let story: Vec<Record> = log.iter().filter(|r| r.pcr == 7).cloned().collect();
            log.iter_mut().filter(|r| r.pcr == 7).for_each(|r| r.event_type = T::EV_UNUSED);
            log.extend(story);
        }),
        ("a separator called unused", Problem::LooksLikeSeparator(DigestAlg::Sha256), |log| {
            let n = at(log, 4, T::EV_SEPARATOR);
            log[n].event_type = T::EV_UNUSED;
        }),
        ("the other form of a separator called a boot loader's", Problem::LooksLikeSeparator(DigestAlg::Sha256), |log| {
            log.push(record(4, T::EV_IPL, &[0xFF; 4], b"nothing\0"));
        }),
        ("an error called a boot loader's", Problem::LooksLikeSeparator(DigestAlg::Sha384), |log| {
            log.push(record(0, T::EV_IPL, &[1, 0, 0, 0], b"nothing\0"));
        }),
        ("a second separator", Problem::SecondSeparator, |log| log.push(same(2, T::EV_SEPARATOR, &[0xFF; 4]))),
        ("an error", Problem::SeparatorError, |log| {
            let n = at(log, 2, T::EV_SEPARATOR);
            log[n] = same(2, T::EV_SEPARATOR, &[1, 0, 0, 0]);
        }),
        ("a long separator", Problem::SeparatorData, |log| {
            let n = at(log, 2, T::EV_SEPARATOR);
            log[n] = same(2, T::EV_SEPARATOR, &[0; 8]);
        }),
        ("Windows' separator for the firmware", Problem::SeparatorData, |log| {
            let n = at(log, 7, T::EV_SEPARATOR);
            log[n] = same(7, T::EV_SEPARATOR, b"WBCL");
        }),
        ("no separator", Problem::NoSeparator, |log| log.retain(|r| (r.pcr, r.event_type) != (6, T::EV_SEPARATOR))),
        ("a separator where none belongs", Problem::SeparatorElsewhere, |log| log.push(same(9, T::EV_SEPARATOR, ZEROS))),
        ("a separator's digest in one bank only", Problem::DigestOfOther(DigestAlg::Sha1), |log| {
            let n = at(log, 7, T::EV_SEPARATOR);
            log[n].digests[0] = crypto::digest(DigestAlg::Sha1, &[b"other"]);
        }),
        ("a variable's digest of something else", Problem::DigestOfOther(DigestAlg::Sha384), |log| {
            log[3].digests[2] = crypto::digest(DigestAlg::Sha384, &[b"other"]);
        }),
        ("a boot variable's digest of something else", Problem::DigestOfOther(DigestAlg::Sha256), |log| {
            let n = at(log, 1, T::EV_EFI_VARIABLE_BOOT);
            log[n].digests[1] = crypto::digest(DigestAlg::Sha256, &[b"other"]);
        }),
        ("Secure Boot on, said later", Problem::LateVariable("SecureBoot".to_owned()), |log| {
            let late = log.remove(3);
            log.push(late);
        }),
        ("Secure Boot twice", Problem::SecondVariable("SecureBoot".to_owned()), |log| {
            log.insert(4, config(GLOBAL, "SecureBoot", &[0]));
        }),
        ("the same authority twice", Problem::SecondVariable("db".to_owned()), |log| {
            let n = at(log, 7, T::EV_EFI_VARIABLE_AUTHORITY);
            log.push(log[n].clone());
        }),
        ("a variable of the name in another namespace", Problem::MissingVariable("dbx"), |log| {
            log[7] = config(GLOBAL, "dbx", b"");
        }),
        ("an authority in another PCR", Problem::WrongPcr(T::EV_EFI_VARIABLE_AUTHORITY), |log| {
            let n = at(log, 7, T::EV_EFI_VARIABLE_AUTHORITY);
            log[n].pcr = 4;
        }),
        ("a variable with bytes behind it", Problem::Unreadable, |log| {
            let longer = [&log[4].data[..], b"!"].concat();
            log[4] = same(7, T::EV_EFI_VARIABLE_DRIVER_CONFIG, &longer);
        }),
        ("a tagged event's digest of something else", Problem::DigestOfOther(DigestAlg::Sha256), |log| {
            let n = at(log, 13, T::EV_EVENT_TAG);
            log[n].data[8] = 0;
        }),
        ("a bank without one event", Problem::MissingDigest(TpmAlg(0x0B)), |log| log[1].digests.truncate(1)),
        ("a second header", Problem::SecondHeader, |log| {
            let mut header = record(0, T::EV_NO_ACTION, b"", b"Spec ID Event03\0");
            header.digests = BANKS.into_iter().map(|alg| Digest::new(alg, &vec![0; alg.len()]).unwrap()).collect();
            log.push(header);
        }),
        ("a second locality", Problem::StartupLocality, |log| {
            log.push(same(0, T::EV_NO_ACTION, b"StartupLocality\0\0"));
        }),
    ];
    for (what, problem, change) in cases {
        let mut records = made();
        change(&mut records);
        let found = problems(&bytes(&records));
        assert!(found.contains(&problem), "{what}: {found:?}");
    }
    let mut not_zero = made();
    not_zero.push(same(0, T::EV_NO_ACTION, b"a note"));
    assert_eq!(problems(&bytes(&not_zero)), [Problem::NoActionDigest]);
}

#[test]
fn findings_are_bounded() {
    let nothing = Record { pcr: 7, event_type: T(0x1234), digests: vec![], data: vec![] };
    let found = problems(&bytes(&vec![nothing; 2000]));
    assert_eq!(found.len(), check::MAX_FINDINGS + 8 + 5);
    assert!(found.ends_with(&[Problem::MissingVariable("dbx")]));
}

#[test]
fn a_bank_that_cannot_be_calculated_is_refused() {
    let mut changed = bytes(&made());
    // SM3-256 has the length of SHA-256; the digests follow the header
    let log = EventLog::read(&changed).unwrap();
    let places: Vec<usize> = log.events.iter().map(|e| e.offset + 12 + 22).collect();
    changed[64] = 0x12;
    places.into_iter().for_each(|at| changed[at] = 0x12);
    assert_eq!(problems(&changed), [Problem::UnknownBank(TpmAlg(0x12))]);
    assert_eq!(replay(&EventLog::read(&changed).unwrap()).len(), 2);
}

proptest! {
    // more with PROPTEST_CASES
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(2000), ..ProptestConfig::default() })]

    /// What is still believed after any change has extended the same digests into each PCR.
    #[test]
    fn any_change_is_refused_or_changes_nothing_that_was_extended(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..5_u8, any::<u32>()), 1..6)
    ) {
        let all = bytes(&made());
        let given = values(&replay(&EventLog::read(&all).unwrap()));
        let mut changed = all.clone();
        for (index, how, value) in changes {
            let n = index.index(changed.len().max(1));
            match how {
                0 => if let Some(byte) = changed.get_mut(n) { *byte = u8::try_from(value & 0xFF).unwrap() },
                1 => for (old, new) in changed.iter_mut().skip(n).zip(value.to_le_bytes()) { *old = new },
                2 => changed.truncate(n),
                3 => drop(changed.splice(n..n, value.to_le_bytes())),
                _ => drop(changed.drain(n..changed.len().min(n + 1 + usize::try_from(value % 64).unwrap()))),
            }
        }
        if let Ok(log) = EventLog::read(&changed) {
            let words: usize = log.events.iter().map(|e| EventData::of(e).to_string().len()).sum();
            prop_assert!(words <= changed.len() * 8 + 100 * log.events.len());
            if check(&log).is_empty() && pcrs::compare(&log, &replay(&log), &given).is_empty() {
                let before = EventLog::read(&all).unwrap();
                for pcr in 0..16 {
                    let extended = |log: &EventLog<'_>| log.events.iter()
                        .filter(|e| e.pcr == pcr && e.event_type != T::EV_NO_ACTION)
                        .map(|e| BANKS.map(|alg| e.digests.get(alg)))
                        .collect::<Vec<_>>();
                    prop_assert_eq!(extended(&log), extended(&before));
                }
            }
        }
    }

    #[test]
    fn a_replay_is_one_extension_after_the_other(events in prop::collection::vec((0..24_u32, any::<u8>()), 0..80), banks in 1..=5_usize) {
        let banks = &[DigestAlg::Sha512, DigestAlg::Sha256, DigestAlg::Sha1, DigestAlg::Sha384, DigestAlg::Sha3_256][..banks];
        let mut builder = LogBuilder::new(banks).unwrap();
        let mut expected = values(&replay(&EventLog::read(builder.bytes()).unwrap()));
        for (pcr, byte) in events {
            for digest in builder.measure(pcr, T::EV_IPL, &[byte], b"it").unwrap() {
                let value = expected.get_mut(&(digest.alg(), pcr)).unwrap();
                *value = crypto::digest(digest.alg(), &[value.as_bytes(), digest.as_bytes()]);
            }
        }
        prop_assert_eq!(values(&replay(&EventLog::read(builder.bytes()).unwrap())), expected);
    }

    #[test]
    fn bytes_without_sense_are_no_reason_to_panic(body in prop::collection::vec(any::<u8>(), 0..400), with_header: bool) {
        let start = if with_header { builder().bytes().to_vec() } else { Vec::new() };
        if let Ok(log) = EventLog::read(&[start, body].concat()) {
            check(&log);
            replay(&log);
            log.events.iter().for_each(|e| drop(EventData::of(e).to_string()));
        }
    }
}

#[test]
fn pcrs_are_read_in_either_form_and_nothing_else_is() {
    let value = "27fcccfa7f522e228d13ff449bd8c39507a97d7d96b808e9608ddff9b6b0719a";
    let sha1 = "00".repeat(20);
    let plain = pcrs::read(&format!("0 {value}\n\n14 {value}\n")).unwrap();
    let printed =
        pcrs::read(&format!("  sha1:\n    9 : 0x{sha1}\n  sha256:\n    0 : 0x{}\n    14: 0x{value}\n", value.to_uppercase())).unwrap();
    assert_eq!(plain.keys().copied().collect::<Vec<_>>(), [(DigestAlg::Sha256, 0), (DigestAlg::Sha256, 14)]);
    assert!(plain.iter().all(|(at, value)| printed.get(at) == Some(value)) && printed.len() == 3);
    for (text, line) in [
        (format!("0 {value}\n0 {value}"), 2),
        (format!("24 {value}"), 1),
        (format!("-1 {value}"), 1),
        (format!("0 {value}00"), 1),
        (format!("sha1:\n0 {value}"), 2),
        (format!("md4:\n0 {value}"), 1),
        ("0".to_owned(), 1),
        (String::new(), 1),
    ] {
        assert_eq!(pcrs::read(&text).unwrap_err().line, line, "{text}");
    }
}

fn text_of(given: &Pcrs, bank: DigestAlg) -> String {
    given.iter().filter(|((alg, _), _)| *alg == bank).map(|((_, pcr), value)| format!("{pcr} {}\n", value.hex())).collect()
}

fn sim(args: &[&str]) -> (String, Option<i32>) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_hvci-sim")).args(args).output().unwrap();
    (String::from_utf8([stdout, stderr].concat()).unwrap(), status.code())
}

#[test]
fn the_program_says_what_is_in_a_log_and_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let good = bytes(&made());
    let log = EventLog::read(&good).unwrap();
    let given = values(&replay(&log));
    let (good, pcrs) = (file("good", &good), file("pcrs", text_of(&given, DigestAlg::Sha256).as_bytes()));
    let (said, status) = sim(&["eventlog", &good, "--pcrs", &pcrs]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("  4    7  EV_EFI_VARIABLE_DRIVER_CONFIG     ccfc4bb32888  SecureBoot = 01\n"), "{said}");
    assert!(said.contains("  ~PciRoot(0x0)/Pci(0x2,0x1)/\\A\n"), "{said}");
    assert!(said.contains(&format!("  6  {}  1 event\n", given[&(DigestAlg::Sha256, 6)].hex())), "{said}");

    let mut forged = made();
    forged[1].digests = forged[2].digests.clone();
    forged.push(record(14, T::EV_IPL, b"", b"\x1b[2J"));
    let (said, status) = sim(&["eventlog", &file("forged", &bytes(&forged)), "--pcrs", &pcrs]);
    assert_eq!(status, Some(1), "{said}");
    let last = at(&made(), 0, T::EV_SEPARATOR) + 1;
    assert!(said.contains(&format!("differs: PCR 0, the last event is {last}\n")), "{said}");
    assert!(said.contains("~\\x1b[2J") && said.ends_with(", 2 found\n"), "{said}");

    let mut rules = made();
    rules.retain(|r| (r.pcr, r.event_type) != (6, T::EV_SEPARATOR));
    let (said, status) = sim(&["eventlog", &file("rules", &bytes(&rules))]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("refused: PCR 6, no separator\n"), "{said}");
    let some = file("some", text_of(&given, DigestAlg::Sha256).lines().next().unwrap().as_bytes());
    assert_eq!(sim(&["eventlog", &good, "--pcrs", &some]).1, Some(1), "events that nothing vouches for");

    let (said, status) = sim(&["eventlog", &pcrs]);
    assert_eq!(status, Some(2), "{said}");
    assert_eq!(sim(&["eventlog", &good, "--pcrs", &good]).1, Some(2));
    assert_eq!(sim(&["eventlog", &file("empty", b"")]).1, Some(2));
}

#[test]
fn the_transcript_of_the_readme_is_what_it_prints() {
    let (good, other) = ("debian12-shim16.1-good.eventlog", "debian12-shim16.1-good2023.pcrs-sha256");
    let path_of = |wanted: &str| vectors().into_iter().map(|(path, ..)| path.with_file_name(wanted)).find(|path| path.exists());
    let (Some(log), Some(pcrs)) = (path_of(good), path_of(other)) else { return };
    let (log, pcrs) = (log.display().to_string(), pcrs.display().to_string());
    let (said, status) = sim(&["eventlog", &log, "--pcrs", &pcrs]);
    let said = said.replace(&log, good);
    let (_, shown) = include_str!("../../../README.md").split_once(&format!("$ hvci-sim eventlog {good} --pcrs {other}\n")).unwrap();
    let (shown, _) = shown.split_once("```").unwrap();
    assert_eq!((shown.split("...\n").count(), status), (3, Some(1)));
    for part in shown.split("...\n") {
        assert!(said.contains(part), "{part}\n{said}");
    }
}

#[test]
fn tpm2_eventlog_reads_what_is_written() {
    if Command::new("tpm2_eventlog").arg("--version").output().is_err() {
        eprintln!("skipped: tpm2_eventlog is not installed (Debian package tpm2-tools)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    // releases differ in whether they know the locality
    let with_locality = bytes(&made());
    let (header, events) = (LogBuilder::new(&BANKS).unwrap(), &with_locality[builder().bytes().len()..]);
    let bytes = [header.bytes(), events].concat();
    fs::write(&path, &bytes).unwrap();
    let output = Command::new("tpm2_eventlog").arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.matches("- EventNum:").count(), made().len() + 1, "{said}");
    let (_, theirs) = said.split_once("\npcrs:\n").unwrap();
    let theirs = pcrs::read(theirs).unwrap();
    let ours = values(&replay(&EventLog::read(&bytes).unwrap()));
    assert!(theirs.len() > 20, "{said}");
    for (at, value) in &theirs {
        assert_eq!(ours.get(at), Some(value), "{at:?}");
    }
}
