//! Compressed modules (`.ko.gz`, `.ko.xz`, `.ko.zst`) and kernel payloads, unpacked by magic with pure-Rust decoders.
//!
//! Output stops at the caller's cap; the decoders' own memory at [`MAX_DICTIONARY`]. Checksums of the formats are verified.
//! Several members or streams in a file are put together. Refuses what follows the last one, unless it is zeros.
//!
//! A module signature covers the uncompressed module. One that is appended to the compressed file is a finding: no kernel looks there.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::io::{self, Read};

use lzma_rust2::{LzmaReader, XzReader};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::{
    ImageError,
    elf::MODULE_SIG_STRING,
    lz4::{self, Lz4Error},
    xz,
};
use crate::{
    bytes::{Span, index, le32, widen},
    finding::{Code, Note},
};

/// Largest dictionary or window that is allocated, in bytes: what `xz -9` (64 MiB), `zstd --ultra` (128 MiB) and the kernel's own
/// `scripts/xz_wrap.sh` (128 MiB) use at most.
pub const MAX_DICTIONARY: u32 = 128 << 20;

/// A compression format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The .xz file format, LZMA2 and BCJ filters.
    Xz,
    /// RFC 8878.
    Zstd,
    /// LZMA alone (`.lzma`): kernel payloads only.
    Lzma,
    /// LZ4 legacy frames: kernel payloads only.
    Lz4,
    /// bzip2: recognised, not unpacked.
    Bzip2,
    /// lzop: recognised, not unpacked.
    Lzo,
}

impl Compression {
    /// What `data` begins as.
    pub fn of(data: &[u8]) -> Option<Self> {
        let magics: [(&[u8], Self); 7] = [
            (&[0x1F, 0x8B, 8], Self::Gzip),
            (xz::MAGIC, Self::Xz),
            (&ZSTD_MAGIC, Self::Zstd),
            // lc=3 lp=0 pb=2 and a dictionary of whole 64 KiB, as every encoder writes; LZMA alone has no magic (Linux `lib/decompress.c`)
            (&[0x5D, 0, 0], Self::Lzma),
            (lz4::MAGIC, Self::Lz4),
            (b"BZh", Self::Bzip2),
            (b"\x89LZO\0", Self::Lzo),
        ];
        magics.into_iter().find(|(magic, _)| data.starts_with(magic)).map(|(_, compression)| compression)
    }

    /// The name in reports: the usual extension.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gz",
            Self::Xz => "xz",
            Self::Zstd => "zst",
            Self::Lzma => "lzma",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bz2",
            Self::Lzo => "lzo",
        }
    }
}

/// An unpacked file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// How it was compressed.
    pub compression: Compression,
    /// What was in it.
    pub data: Vec<u8>,
    /// What is odd about the compressed file; spans are of it, not of `data`.
    pub notes: Vec<Note>,
}

/// Unpacks a whole compressed module of at most `cap` bytes: gzip, xz or zstd, which are what `modprobe` and the kernel read.
///
/// # Errors
/// [`Code::InputBomb`] above the cap or [`MAX_DICTIONARY`]; [`Code::InputContainer`] for another format, damage, or trailing bytes.
pub fn unpack(data: &[u8], cap: usize) -> Result<Unpacked, ImageError> {
    let compression = Compression::of(data)
        .filter(|c| matches!(c, Compression::Gzip | Compression::Xz | Compression::Zstd))
        .ok_or_else(|| ImageError::new(Code::InputContainer, "neither gzip nor xz nor zstd"))?;
    let mut notes = Vec::new();
    if compression == Compression::Xz {
        notes.extend(xz::kernel_refusals(data));
    }
    let signed = data.ends_with(MODULE_SIG_STRING);
    if signed {
        let at = data.len().saturating_sub(MODULE_SIG_STRING.len());
        let detail = format!("the {} file ends in the module signature magic; kernels look for it in what is inside", compression.name());
        notes.push(Note::new(Code::ImageCompressedSigned, detail).at(Span::new(at, MODULE_SIG_STRING.len())));
    }
    let mut out = Vec::new();
    let mut rest = stream(compression, data, data, &mut out, cap)?;
    let mut streams = 1_usize;
    while Compression::of(rest) == Some(compression) {
        rest = stream(compression, data, rest, &mut out, cap)?;
        streams = streams.saturating_add(1);
    }
    if compression == Compression::Xz && streams > 1 {
        // module_xz_decompress stops at XZ_STREAM_END
        notes.push(Note::new(Code::ImageXzUnsupported, format!("{streams} streams: the kernel unpacks the first only")));
    }
    if !signed && rest.iter().any(|b| *b != 0) {
        let span = Span::new(data.len().saturating_sub(rest.len()), rest.len());
        let detail = format!("{} bytes that are no {} follow the last stream", rest.len(), compression.name());
        return Err(ImageError::new(Code::InputContainer, detail).at(span));
    }
    Ok(Unpacked { compression, data: out, notes })
}

/// Unpacks a kernel's payload: one stream of any format, and behind it the uncompressed length in 32 bits, little endian (gzip has
/// its own; Linux `scripts/Makefile.lib`, `size_append`).
///
/// # Errors
/// As [`unpack`]; [`Code::ImageUnsupported`] for bzip2 and lzop; a length that is not that of what was unpacked.
pub fn unpack_payload(payload: &[u8], cap: usize) -> Result<Vec<u8>, ImageError> {
    let compression = Compression::of(payload).ok_or_else(|| ImageError::new(Code::InputContainer, "kernel payload of no known format"))?;
    let mut out = Vec::new();
    let rest = stream(compression, payload, payload, &mut out, cap)?;
    let fits = match *rest {
        [] => true,
        [a, b, c, d] => index(u32::from_le_bytes([a, b, c, d])) == out.len(),
        _ => false,
    };
    if !fits {
        let detail = format!("kernel payload: {} unpacked bytes, then {}, which are not that length", out.len(), hex_start(rest));
        let span = Span::new(payload.len().saturating_sub(rest.len()), rest.len());
        return Err(ImageError::new(Code::InputContainer, detail).at(span));
    }
    Ok(out)
}

/// Unpacks the one stream that `input` begins with and gives what follows it. `input` is the end of `whole`.
fn stream<'a>(compression: Compression, whole: &[u8], input: &'a [u8], out: &mut Vec<u8>, cap: usize) -> Result<&'a [u8], ImageError> {
    let limit_kib = (MAX_DICTIONARY >> 10).saturating_add(DECODER_KIB);
    let result = match compression {
        Compression::Gzip => {
            let mut reader = flate2::bufread::GzDecoder::new(input);
            drain(&mut reader, out, cap).map(|()| reader.into_inner())
        }
        Compression::Xz => {
            let mut reader = XzReader::new_mem_limit(input, false, limit_kib);
            drain(&mut reader, out, cap).map(|()| reader.into_inner())
        }
        Compression::Lzma => LzmaReader::new_mem_limit(input, limit_kib, None).map_err(Failure::Io).and_then(|mut reader| {
            drain(&mut reader, out, cap)?;
            let (rest, read_ahead) = reader.into_parts();
            let left = rest.len().saturating_add(read_ahead.len());
            Ok(input.get(input.len().saturating_sub(left)..).unwrap_or_default())
        }),
        Compression::Zstd => zstd_frame(input, out, cap),
        Compression::Lz4 => lz4::unpack(input, out, cap).map_err(|e| match e {
            Lz4Error::TooLarge => Failure::TooLarge,
            Lz4Error::Corrupt(at) => Failure::Corrupt(format!("LZ4 block at {at:#x} is corrupt")),
        }),
        Compression::Bzip2 | Compression::Lzo => {
            return Err(ImageError::new(Code::ImageUnsupported, format!("compressed with {}", compression.name())));
        }
    };
    let name = compression.name();
    let span = Span::new(whole.len().saturating_sub(input.len()), input.len());
    result.map_err(|failure| match failure {
        Failure::TooLarge => ImageError::new(Code::InputBomb, format!("{name}: more than {cap} bytes")).at(span),
        Failure::Io(e) if e.kind() == io::ErrorKind::OutOfMemory => {
            ImageError::new(Code::InputBomb, format!("{name}: dictionary larger than {MAX_DICTIONARY} bytes")).at(span)
        }
        Failure::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            ImageError::new(Code::InputContainer, format!("{name}: cut short after {} unpacked bytes", out.len())).at(span)
        }
        Failure::Io(e) => ImageError::new(Code::InputContainer, format!("{name}: {e}")).at(span),
        Failure::Corrupt(detail) => ImageError::new(Code::InputContainer, format!("{name}: {detail}")).at(span),
    })
}

enum Failure {
    TooLarge,
    Io(io::Error),
    Corrupt(String),
}

/// Reads to the end of the stream, but never more than one byte above the cap.
fn drain(reader: &mut impl Read, out: &mut Vec<u8>, cap: usize) -> Result<(), Failure> {
    let left = widen(cap.saturating_sub(out.len())).saturating_add(1);
    reader.take(left).read_to_end(out).map_err(Failure::Io)?;
    if out.len() > cap { Err(Failure::TooLarge) } else { Ok(()) }
}

/// One frame, and the skippable frames (RFC 8878 §3.1.2) behind it.
fn zstd_frame<'a>(input: &'a [u8], out: &mut Vec<u8>, cap: usize) -> Result<&'a [u8], Failure> {
    let before = out.len();
    let mut rest = input;
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(u64::from(MAX_DICTIONARY));
    let mut reader = StreamingDecoder::new_with_decoder(&mut rest, decoder).map_err(|e| zstd_failure(io::Error::other(e)))?;
    drain(&mut reader, out, cap).map_err(|failure| match failure {
        Failure::Io(e) => zstd_failure(e),
        other => other,
    })?;
    let decoder = reader.into_frame_decoder();
    if decoder.get_checksum_from_data().is_some_and(|sum| decoder.get_calculated_checksum() != Some(sum)) {
        return Err(Failure::Corrupt("content checksum does not match".to_owned()));
    }
    let (stated, got) = (decoder.content_size(), widen(out.len().saturating_sub(before)));
    if stated != 0 && stated != got {
        return Err(Failure::Corrupt(format!("frame holds {got} bytes, its header says {stated}")));
    }
    while let Some(behind) = skippable_frame(rest) {
        rest = behind;
    }
    Ok(rest)
}

/// The decoder wraps errors of reading in its own; the one below them says whether the input is cut short.
fn zstd_failure(e: io::Error) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = e.get_ref().map(|e| -> &(dyn std::error::Error + 'static) { e });
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::UnexpectedEof) {
            return Failure::Io(io::ErrorKind::UnexpectedEof.into());
        }
        cause = error.source();
    }
    Failure::Io(e)
}

/// The first bytes in hexadecimal, for people.
fn hex_start(bytes: &[u8]) -> String {
    hex::encode(bytes.get(..16).unwrap_or(bytes))
}

fn skippable_frame(data: &[u8]) -> Option<&[u8]> {
    le32(data, 0).filter(|magic| magic & !0xF == 0x184D_2A50)?;
    data.get(8..)?.get(index(le32(data, 4)?)..)
}

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// What the LZMA decoders count on top of the dictionary, in KiB, at most.
const DECODER_KIB: u32 = 16 << 10;

#[cfg(test)]
mod tests;
