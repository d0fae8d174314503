//! Which `.xz` files the decoder inside Linux refuses (`lib/xz/xz_dec_stream.c`, `lib/xz/xz_dec_lzma2.c`), which `MODULE_DECOMPRESS`
//! kernels unpack modules with. Programs such as `xz` and kmod read them all, so that nobody notices before the module must load.
//!
//! Reads the stream header and the first block header (.xz file format 1.0.4, §2.1.1 and §3.1). Whatever is not valid there is left to
//! the decoder to report.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use crate::{
    bytes::Span,
    finding::{Code, Note},
};

/// What every `.xz` file begins with.
pub(super) const MAGIC: &[u8] = &[0xFD, b'7', b'z', b'X', b'Z', 0];

/// What stands against the in-kernel decoder, of the stream that `stream` begins with.
pub(super) fn kernel_refusals(stream: &[u8]) -> Vec<Note> {
    let refusal = |at, len, detail: String| Note::new(Code::ImageXzUnsupported, detail).at(Span::new(at, len));
    let mut notes = Vec::new();
    // XZ_CHECK_NONE and XZ_CHECK_CRC32 only; the others are XZ_OPTIONS_ERROR ("decompression failed with status 6")
    if let Some(check) = stream.get(CHECK_AT).map(|flags| flags & 0xF).filter(|check| *check > 1) {
        notes.push(refusal(CHECK_AT, 1, format!("integrity check {}: the kernel knows none and CRC32", check_name(check))));
    }
    match block_filters(stream) {
        Some(Filters { count, .. }) if count > 2 => {
            notes.push(refusal(BLOCK_AT, 2, format!("{count} filters: the kernel takes LZMA2 behind at most one BCJ filter")));
        }
        Some(Filters { before: Some((id, properties)), .. }) if !(4..=11).contains(&id) || properties != 0 => {
            notes.push(refusal(
                BLOCK_AT,
                2,
                format!("filter {id:#x} with {properties} property bytes: the kernel takes plain BCJ filters only"),
            ));
        }
        // xz_dec_lzma2_reset: `props > 39`; module_xz_decompress itself allows every size (`XZ_DYNALLOC`, `(u32)-1`)
        Some(Filters { dictionary: Some((at, bits)), .. }) if bits > 39 => {
            notes.push(refusal(at, 1, "dictionary of 4 GiB: the kernel takes up to 3 GiB".to_owned()));
        }
        _ => {}
    }
    notes
}

struct Filters {
    count: u8,
    /// Identifier and number of property bytes of the filter before the last, where there is one.
    before: Option<(u8, u8)>,
    /// Offset and value of the LZMA2 property byte.
    dictionary: Option<(usize, u8)>,
}

/// Filter flags of the first block; `None` where there is no block or they are not valid.
fn block_filters(stream: &[u8]) -> Option<Filters> {
    let [size, flags] = crate::bytes::array(stream, BLOCK_AT)?;
    if size == 0 {
        return None;
    }
    let count = (flags & 3).checked_add(1)?;
    let mut at = BLOCK_AT.checked_add(2)?;
    for present in [flags & 0x40, flags & 0x80] {
        if present != 0 {
            at = skip_number(stream, at)?;
        }
    }
    if count > 2 {
        return Some(Filters { count, before: None, dictionary: None });
    }
    let mut before = None;
    if count == 2 {
        let [id, properties] = crate::bytes::array(stream, at)?;
        before = Some((id, properties));
        at = at.checked_add(2)?.checked_add(usize::from(properties))?;
    }
    let [id, properties, bits] = crate::bytes::array(stream, at)?;
    let dictionary = (id == LZMA2 && properties == 1).then_some((at.checked_add(2)?, bits));
    Some(Filters { count, before, dictionary })
}

/// Offset behind a multibyte integer (§1.2), which has at most 9 bytes.
fn skip_number(stream: &[u8], at: usize) -> Option<usize> {
    let len = stream.get(at..)?.iter().take(9).position(|b| b & 0x80 == 0)?;
    at.checked_add(len)?.checked_add(1)
}

fn check_name(check: u8) -> String {
    match check {
        4 => "CRC64".to_owned(),
        10 => "SHA-256".to_owned(),
        other => format!("{other:#x}"),
    }
}

const CHECK_AT: usize = 7;
const BLOCK_AT: usize = 12;
const LZMA2: u8 = 0x21;
