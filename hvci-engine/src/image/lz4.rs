//! LZ4 legacy frames, which kernels with `CONFIG_KERNEL_LZ4` pack their payload in (LZ4 `lz4_Frame_format.md`, "Legacy frame";
//! `lz4_Block_format.md`). Debian's cloud kernels are such.
//!
//! Trusts nothing: a match before the start of its block, a block larger than 8 MiB or output above the cap end the decoding.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use crate::bytes::{index, le16, le32};

/// What a legacy frame begins with.
pub(super) const MAGIC: &[u8] = &[0x02, 0x21, 0x4C, 0x18];

/// Why a frame cannot be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lz4Error {
    /// The block at this offset of the frame is no LZ4.
    Corrupt(usize),
    /// More than the cap.
    TooLarge,
}

/// Unpacks the frame that `frame` begins with behind what `out` holds, up to `cap` bytes in all. What is left has no length of its own:
/// blocks end where fewer than a length and one byte are left, or where the next length is larger than what is left.
pub(super) fn unpack<'a>(frame: &'a [u8], out: &mut Vec<u8>, cap: usize) -> Result<&'a [u8], Lz4Error> {
    let mut rest = frame.strip_prefix(MAGIC).ok_or(Lz4Error::Corrupt(0))?;
    let mut blocks = 0_usize;
    loop {
        let block = le32(rest, 0).and_then(|len| rest.get(4..)?.split_at_checked(index(len)).filter(|(block, _)| !block.is_empty()));
        let Some((block, behind)) = block else {
            let at = frame.len().saturating_sub(rest.len());
            return if blocks == 0 { Err(Lz4Error::Corrupt(at)) } else { Ok(rest) };
        };
        let limit = out.len().saturating_add(MAX_BLOCK);
        match unpack_block(block, out, limit.min(cap)) {
            Some(()) => {}
            None if out.len() >= cap => return Err(Lz4Error::TooLarge),
            None => return Err(Lz4Error::Corrupt(frame.len().saturating_sub(rest.len()))),
        }
        rest = behind;
        blocks = blocks.saturating_add(1);
    }
}

/// One block, behind what `out` holds. `None`: no LZ4, or `out` has grown to `limit`.
fn unpack_block(mut block: &[u8], out: &mut Vec<u8>, limit: usize) -> Option<()> {
    let start = out.len();
    loop {
        let (&token, rest) = block.split_first()?;
        block = rest;
        let literals = length(token >> 4, &mut block)?;
        let (bytes, rest) = block.split_at_checked(literals)?;
        grow(out, bytes.len(), limit)?;
        out.extend_from_slice(bytes);
        block = rest;
        if block.is_empty() {
            return Some(());
        }
        let distance = usize::from(le16(block, 0)?);
        block = block.get(2..)?;
        let len = length(token & 0xF, &mut block)?.checked_add(4)?;
        if distance == 0 || distance > out.len().checked_sub(start)? {
            return None;
        }
        grow(out, len, limit)?;
        repeat(out, distance, len)?;
    }
}

/// A length whose first 4 bits stand in the token and the rest in bytes that are added up until one is not 255.
fn length(nibble: u8, block: &mut &[u8]) -> Option<usize> {
    let mut len = usize::from(nibble);
    if nibble == 15 {
        loop {
            let (&byte, rest) = block.split_first()?;
            *block = rest;
            len = len.checked_add(usize::from(byte))?;
            if byte != 255 {
                break;
            }
        }
    }
    Some(len)
}

/// Whether `len` more bytes fit; fills up to the limit when not, so that the caller can tell this from corruption.
fn grow(out: &mut Vec<u8>, len: usize, limit: usize) -> Option<()> {
    if out.len().checked_add(len).is_some_and(|n| n <= limit) {
        return Some(());
    }
    out.resize(limit, 0);
    None
}

/// Appends `len` bytes from `distance` bytes before the end; they may overlap what is appended.
fn repeat(out: &mut Vec<u8>, distance: usize, len: usize) -> Option<()> {
    let mut left = len;
    while left > 0 {
        let n = left.min(distance);
        let from = out.len().checked_sub(distance)?;
        out.extend_from_within(from..from.checked_add(n)?);
        left = left.checked_sub(n)?;
    }
    Some(())
}

const MAX_BLOCK: usize = 8 << 20;

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn frame(blocks: &[&[u8]]) -> Vec<u8> {
        let mut frame = MAGIC.to_vec();
        for block in blocks {
            frame.extend_from_slice(&u32::try_from(block.len()).unwrap().to_le_bytes());
            frame.extend_from_slice(block);
        }
        frame
    }

    #[test]
    fn literals_and_overlapping_matches() {
        // "ab", then 15 + 3 + 4 bytes from 2 back, then "!"
        let block = [0x2F, b'a', b'b', 2, 0, 3, 0x10, b'!'];
        let text = b"abababababababababababab!";
        let mut data = frame(&[&block, &block]);
        data.extend_from_slice(&50_u32.to_le_bytes());
        let mut out = Vec::new();
        assert_eq!(unpack(&data, &mut out, 1000), Ok(&50_u32.to_le_bytes()[..]));
        assert_eq!(out, text.repeat(2));
        assert_eq!(unpack(&data, &mut Vec::new(), 49), Err(Lz4Error::TooLarge));
    }

    #[test]
    fn a_match_before_its_block_is_corrupt() {
        let good = [0x10, b'a'];
        for bad in [[0x10, b'a', 2, 0, 0].as_slice(), &[0x10, b'a', 0, 0, 0], &[0xF0, 255], &[]] {
            assert_eq!(unpack(&frame(&[bad]), &mut Vec::new(), 1000), Err(Lz4Error::Corrupt(4)), "{bad:?}");
        }
        let second = frame(&[&good, &[0x10, b'a', 2, 0, 0]]);
        assert_eq!(unpack(&second, &mut Vec::new(), 1000), Err(Lz4Error::Corrupt(4 + 4 + good.len())));
    }

    proptest! {
        #[test]
        fn never_panics_nor_exceeds_the_cap(body in proptest::collection::vec(any::<u8>(), 0..200), cap in 0_usize..5000) {
            let mut out = Vec::new();
            let _ = unpack(&frame(&[&body]), &mut out, cap);
            prop_assert!(out.len() <= cap);
        }
    }
}
