//! One compressed stream as a reader, with memory bounded whatever its headers ask for.

use std::io::{self, Read};

use bzip2::read::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder, errors::FrameDecoderError, errors::ReadFrameHeaderError};

use crate::source::kind::Compression;

/// Largest dictionary or window that is allocated: `xz -9` asks for 64 MiB, `zstd --ultra -22` for 128 MiB.
const MAX_WINDOW: u32 = 128 << 20;

/// The unpacked form of `data`, all streams or frames of it one behind the other.
///
/// # Errors
/// When the first header is none of this compression.
pub(crate) fn decoder(compression: Compression, data: &[u8]) -> io::Result<Box<dyn Read + '_>> {
    Ok(match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(data)),
        Compression::Xz => Box::new(XzReader::new_mem_limit(data, true, (MAX_WINDOW >> 10) + 1024)),
        Compression::Bzip2 => Box::new(MultiBzDecoder::new(data)),
        Compression::Zstd => Box::new(Zstd { frame: None, rest: data }),
    })
}

/// Zstandard frames in a row; `ruzstd` itself stops behind the first.
struct Zstd<'a> {
    frame: Option<StreamingDecoder<&'a [u8], FrameDecoder>>,
    rest: &'a [u8],
}

impl Read for Zstd<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(frame) = &mut self.frame {
                let n = frame.read(buf)?;
                if n > 0 || buf.is_empty() {
                    return Ok(n);
                }
                self.rest = frame.get_ref();
                self.frame = None;
            }
            if self.rest.is_empty() {
                return Ok(0);
            }
            match StreamingDecoder::new_with_max_window_size(self.rest, u64::from(MAX_WINDOW)) {
                Ok(frame) => self.frame = Some(frame),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    // magic and length precede what is skipped (RFC 8878 §3.1.2)
                    let skipped = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(8);
                    self.rest = self.rest.get(skipped..).ok_or(io::ErrorKind::UnexpectedEof)?;
                }
                Err(err) => return Err(io::Error::new(io::ErrorKind::InvalidData, err)),
            }
        }
    }
}
