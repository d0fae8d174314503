//! The partition table of the disk that a machine starts from.

use super::*;

/// The first 34 sectors of a disk with one partition.
fn sectors() -> Vec<u8> {
    let mut disk = vec![0; 34 * 512];
    for (at, field) in [
        (512, &b"EFI PART"[..]),
        (512 + 8, &0x1_0000_u32.to_le_bytes()),
        (512 + 12, &92_u32.to_le_bytes()),
        (512 + 56, &[0x11; 16]),
        (512 + 72, &2_u64.to_le_bytes()),
        (512 + 80, &128_u32.to_le_bytes()),
        (512 + 84, &128_u32.to_le_bytes()),
        (1024, &[0x22; 128]),
    ] {
        disk[at..at + field.len()].copy_from_slice(field);
    }
    disk
}

#[test]
fn it_is_measured_once_before_the_first_image() {
    let Some(debian) = Debian::new() else { return };
    let without = start(&debian.disk, &mut debian.store.clone(), Strict);
    let disk = debian.with_file("/gpt.img", sectors());
    let boot = start(&disk, &mut debian.store.clone(), Strict);
    assert!(boot.kernel().is_some());
    let log = EventLog::read(&boot.log).unwrap();
    let at = |kind| log.events.iter().position(|event| event.event_type == kind).unwrap();
    let events: Vec<_> = log.events.iter().filter(|event| event.event_type == EventType::EV_EFI_GPT_EVENT).collect();
    assert_eq!(events.len(), 1);
    assert!(at(EventType::EV_EFI_GPT_EVENT) < at(EventType::EV_EFI_BOOT_SERVICES_APPLICATION));
    assert_eq!(EventData::of(events[0]).to_string(), "disk 11111111-1111-1111-1111-111111111111, 1 partitions");
    assert_eq!(loader_sim::measure::check(&log), []);
    for n in [0, 1, 2, 3, 4, 6, 7, 8, 9, 14] {
        assert_eq!(pcr(&boot, n), pcr(&without, n), "PCR {n}");
    }
    assert_ne!(pcr(&boot, 5), pcr(&without, 5));
}

#[test]
fn one_that_cannot_be_is_not_measured_and_said() {
    let Some(debian) = Debian::new() else { return };
    let mut absurd = sectors();
    absurd[512 + 80..512 + 84].copy_from_slice(&[0xFF; 4]);
    let boot = start(&debian.with_file("/gpt.img", absurd), &mut debian.store.clone(), Strict);
    assert!(boot.kernel().is_some());
    assert_eq!(
        boot.stages[0].notes,
        ["gpt.img is not measured: the number of entries of the partition table's header, offset 0x250, cannot be"]
    );
    assert_eq!(pcr(&boot, 5), pcr(&start(&debian.disk, &mut debian.store.clone(), Strict), 5));
}
