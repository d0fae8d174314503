//! A disk's partition table as firmware measures it into PCR 5: `UEFI_GPT_DATA` (PFP 1.05 §10.4.1 and §10.2.4).
//!
//! ```text
//! EFI_PARTITION_TABLE_HEADER (92 bytes), u64 number of partitions, the entries that are in use
//! ```
//!
//! The disk is the guest's. What edk2 refuses since CVE-2022-36763 is refused: a header that cannot be, entries that are too small, none, or more
//! than there are bytes (`DxeTpm2MeasureBootLibSanitization.c`). Its checksums are not compared, as firmware does not.

use hvci_engine::bytes::{index, le32, le64, slice, widen};

const SECTOR: usize = 512;
const SIGNATURE: &[u8] = b"EFI PART";
const HEADER: usize = 92;
/// Smallest entry; a larger one is this times a power of two (UEFI 2.10 §5.3.2).
const ENTRY: usize = 128;
/// Most bytes of entries, 32 times as many as disks have.
const MAX_ENTRIES: usize = 512 << 10;

/// Why a disk has no partition table that could be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GptError {
    /// The second sector has no header.
    #[error("the second sector, offset 0x200, is no header of a GUID partition table")]
    NoHeader,
    /// A field of the header cannot be.
    #[error("the {what} of the partition table's header, offset {offset:#x}, cannot be")]
    Header {
        /// Which.
        what: &'static str,
        /// Where, in bytes.
        offset: usize,
    },
    /// The entries end behind the bytes that are there.
    #[error("the partition table's entries, {len} bytes from offset {offset:#x}, are not all there")]
    Entries {
        /// Where they begin.
        offset: usize,
        /// How long they are.
        len: usize,
    },
}

/// The event's data of a disk that begins with these bytes: its first 34 sectors, as a rule.
///
/// # Errors
/// [`GptError`]; firmware then measures nothing.
pub fn event(disk: &[u8]) -> Result<Vec<u8>, GptError> {
    let header = slice(disk, SECTOR, HEADER).filter(|header| header.starts_with(SIGNATURE)).ok_or(GptError::NoHeader)?;
    let refused = |what, at: usize| GptError::Header { what, offset: SECTOR.saturating_add(at) };
    let field = |at, what| le32(header, at).map(index).ok_or_else(|| refused(what, at));
    if le32(header, 8).is_none_or(|revision| revision < 0x1_0000) {
        return Err(refused("revision", 8));
    }
    if !(HEADER..=SECTOR).contains(&field(12, "length")?) {
        return Err(refused("length", 12));
    }
    let first = le64(header, 72).and_then(|lba| usize::try_from(lba).ok()).filter(|lba| *lba >= 2);
    let start = first.and_then(|lba| lba.checked_mul(SECTOR)).ok_or_else(|| refused("place of the entries", 72))?;
    let (count, size) = (field(80, "number of entries")?, field(84, "size of an entry")?);
    if size < ENTRY || !size.is_multiple_of(ENTRY) || !size.is_power_of_two() {
        return Err(refused("size of an entry", 84));
    }
    let len = count.checked_mul(size).filter(|len| (1..=MAX_ENTRIES).contains(len)).ok_or_else(|| refused("number of entries", 80))?;
    let entries = slice(disk, start, len).ok_or(GptError::Entries { offset: start, len })?;
    // one of no type is not in use
    let used: Vec<&[u8]> = entries.chunks_exact(size).filter(|entry| entry.iter().take(16).any(|byte| *byte != 0)).collect();
    Ok([header, &widen(used.len()).to_le_bytes(), &used.concat()].concat())
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A disk with entries of these types, each with its number behind.
    fn disk(types: &[u8], size: usize) -> Vec<u8> {
        let mut disk = vec![0; 34 * SECTOR];
        let fields: [(usize, &[u8]); 6] = [
            (0, SIGNATURE),
            (8, &0x1_0000_u32.to_le_bytes()),
            (12, &92_u32.to_le_bytes()),
            (72, &2_u64.to_le_bytes()),
            (80, &u32::try_from(types.len()).unwrap().to_le_bytes()),
            (84, &u32::try_from(size).unwrap().to_le_bytes()),
        ];
        for (at, field) in fields {
            disk[SECTOR + at..][..field.len()].copy_from_slice(field);
        }
        for (n, kind) in types.iter().enumerate() {
            disk[1024 + n * size] = *kind;
            disk[1024 + n * size + 16] = u8::try_from(n).unwrap();
        }
        disk
    }

    #[test]
    fn entries_in_use_are_measured() {
        for size in [128, 256] {
            let disk = disk(&[1, 0, 2, 0], size);
            let event = event(&disk).unwrap();
            assert_eq!(event[..92], disk[512..604]);
            assert_eq!(le64(&event, 92), Some(2));
            assert_eq!(event.len(), 100 + 2 * size);
            assert_eq!((event[100], event[100 + 16], event[100 + size], event[100 + size + 16]), (1, 0, 2, 2));
        }
    }

    #[test]
    fn absurd_headers_are_refused() {
        let good = disk(&[1; 8], 128);
        let with = |at: usize, field: &[u8]| {
            let mut disk = good.clone();
            disk[SECTOR + at..][..field.len()].copy_from_slice(field);
            event(&disk)
        };
        assert!(event(&good).is_ok());
        assert_eq!(event(&good[..600]), Err(GptError::NoHeader));
        assert_eq!(with(0, b"EFI PARD"), Err(GptError::NoHeader));
        for (at, field) in [
            (8, &[0, 0, 0, 0][..]),
            (12, &[91, 0, 0, 0]),
            (12, &[0, 4, 0, 0]),
            (72, &[1, 0, 0, 0, 0, 0, 0, 0]),
            (72, &[0xFF; 8]),
            (80, &[0; 4]),
            (80, &[0xFF; 4]),
            (84, &[0x7F, 0, 0, 0]),
            (84, &[0x80, 1, 0, 0]),
            (84, &[0xFF; 4]),
            (84, &[0; 4]),
        ] {
            assert!(matches!(with(at, field), Err(GptError::Header { .. })), "{at}");
        }
        assert!(matches!(with(72, &[33, 0, 0, 0]), Err(GptError::Entries { .. })));
    }

    proptest! {
        #[test]
        fn whatever_a_disk_says_its_event_is_bounded(
            at in 0_usize..92, bytes in prop::collection::vec(any::<u8>(), 1..12), cut in 0_usize..40 * 512
        ) {
            let mut disk = disk(&[1, 2, 0, 4], 128);
            disk[SECTOR + at..][..bytes.len()].copy_from_slice(&bytes);
            disk.truncate(cut);
            if let Ok(event) = event(&disk) {
                prop_assert!(event.len() <= 100 + disk.len());
            }
        }
    }
}
