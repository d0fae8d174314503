//! What UEFI writes everywhere: identifiers and times (UEFI 2.10 appendix A, §8.3), as they stand in variables, signature lists and event logs.

use std::fmt;

use crate::time::UnixTime;

/// EFI_GUID, as the bytes that stand in files: the first three fields are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// From its fields, as specifications write them.
    pub const fn new(a: u32, b: u16, c: u16, d: [u8; 8]) -> Self {
        let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        let [d0, d1, d2, d3, d4, d5, d6, d7] = d;
        Self([a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7])
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d @ ..] = self.0;
        let (a, b, c) = (u32::from_le_bytes([a0, a1, a2, a3]), u16::from_le_bytes([b0, b1]), u16::from_le_bytes([c0, c1]));
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d0:02x}{d1:02x}-{}", hex::encode(d))
    }
}

/// EFI_TIME (UEFI 2.10 §8.3) as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EfiTime(pub [u8; 16]);

impl EfiTime {
    /// Whether Pad1, Nanosecond, TimeZone, Daylight and Pad2 are zero, as they must be in what is signed or revoked.
    pub fn is_plain(&self) -> bool {
        self.0.get(7..).is_some_and(|rest| rest.iter().all(|b| *b == 0))
    }

    /// The instant, taken as UTC; `None` for a date that does not exist, which zero is.
    pub fn instant(&self) -> Option<UnixTime> {
        let [_, _, month, day, hour, minute, second, ..] = self.0;
        UnixTime::from_calendar(i32::from(self.year()), month, day, hour, minute, second)
    }

    /// Its fields from year to second, for comparing as firmware does: dates that do not exist have a place too.
    pub fn order(&self) -> (u16, [u8; 5]) {
        let [_, _, month, day, hour, minute, second, ..] = self.0;
        (self.year(), [month, day, hour, minute, second])
    }

    fn year(&self) -> u16 {
        let [low, high, ..] = self.0;
        u16::from_le_bytes([low, high])
    }
}

impl fmt::Display for EfiTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.instant() {
            Some(instant) => instant.fmt(f),
            None if self.0 == [0; 16] => f.write_str("no time"),
            None => write!(f, "no date: {}", hex::encode(self.0)),
        }
    }
}
