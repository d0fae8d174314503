//! Bounded readers over untrusted bytes. The only place of the engine that takes slices of a file apart by offset.
//!
//! Nothing here panics or allocates: an offset outside the input is `None` or a typed error.
//! **Invariant:** every slice handed out lies within the slice handed in.

#[cfg(feature = "std")]
pub mod der;

use core::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A byte range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Span {
    /// Offset of the first byte from the start of the file.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

impl Span {
    /// The range of `len` bytes from `offset`.
    pub fn new(offset: usize, len: usize) -> Self {
        Self { offset: widen(offset), len: widen(len) }
    }

    /// First offset behind the range; `None` if that is no 64-bit number.
    pub fn end(self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }

    /// Whether the two ranges share a byte. A range whose end overflows is taken to reach to the end of everything.
    pub fn overlaps(self, other: Self) -> bool {
        let end = |s: Self| s.end().unwrap_or(u64::MAX);
        self.len > 0 && other.len > 0 && self.offset < end(other) && other.offset < end(self)
    }
}

impl fmt::Display for Span {
    /// Half open, in hexadecimal: `0x400..0x1600`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.offset, self.end().unwrap_or(u64::MAX))
    }
}

/// Length or offset as the 64-bit number that [`Span`] holds. Lossless wherever Rust's `usize` is at most 64 bits.
pub fn widen(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// A 32-bit file value as an index; saturates on machines whose `usize` is smaller, where the lookup then fails.
pub fn index(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// `len` bytes from `offset`.
pub fn slice(data: &[u8], offset: usize, len: usize) -> Option<&[u8]> {
    data.get(offset..offset.checked_add(len)?)
}

/// `N` bytes from `offset`.
pub fn array<const N: usize>(data: &[u8], offset: usize) -> Option<[u8; N]> {
    slice(data, offset, N)?.try_into().ok()
}

/// Little-endian 16-bit number at `offset`.
pub fn le16(data: &[u8], offset: usize) -> Option<u16> {
    array(data, offset).map(u16::from_le_bytes)
}

/// Little-endian 32-bit number at `offset`.
pub fn le32(data: &[u8], offset: usize) -> Option<u32> {
    array(data, offset).map(u32::from_le_bytes)
}

/// Little-endian 64-bit number at `offset`.
pub fn le64(data: &[u8], offset: usize) -> Option<u64> {
    array(data, offset).map(u64::from_le_bytes)
}

/// Big-endian 32-bit number at `offset`.
pub fn be32(data: &[u8], offset: usize) -> Option<u32> {
    array(data, offset).map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_end_at_the_end() {
        let data = [1, 2, 3, 4];
        assert_eq!(le32(&data, 0), Some(0x0403_0201));
        assert_eq!(be32(&data, 0), Some(0x0102_0304));
        assert_eq!(le16(&data, 3), None);
        assert_eq!(slice(&data, usize::MAX, 2), None);
        assert_eq!(slice(&data, 4, 0), Some(&[][..]));
    }

    #[test]
    fn overlap_is_by_bytes() {
        let s = Span::new;
        assert!(s(0, 8).overlaps(s(7, 1)));
        assert!(!s(0, 8).overlaps(s(8, 1)));
        assert!(!s(0, 8).overlaps(s(4, 0)));
        assert!(Span { offset: 5, len: u64::MAX }.overlaps(s(100, 1)));
    }
}
