//! The TPM's wire format: big-endian integers and buffers with a size before them. What is read was sent by the guest; every length is checked
//! against a cap and what is there, in this order, because the response code tells which it was.

use super::rc::{self, Rc};

pub(super) type Result<T> = std::result::Result<T, Rc>;

/// Bytes not yet read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(rc::INSUFFICIENT)?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk().ok_or(rc::INSUFFICIENT)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// TPM2B of at most so many bytes.
    pub(super) fn sized(&mut self, max: usize) -> Result<&'a [u8]> {
        let len = usize::from(self.u16()?);
        if len > max {
            return Err(rc::SIZE);
        }
        self.take(len)
    }

    /// TPM2B of a structure: the size must be what the structure takes, and is compared only once that is read.
    pub(super) fn sized_as<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let len = usize::from(self.u16()?);
        if len == 0 {
            return Err(rc::SIZE);
        }
        let before = self.0.len();
        let value = read(self)?;
        if before - self.0.len() != len {
            return Err(rc::SIZE);
        }
        Ok(value)
    }
}

/// Parameters of a command: an error names the one that it was found in.
#[derive(Debug)]
pub(super) struct Params<'a> {
    reader: Reader<'a>,
    number: u32,
}

impl<'a> Params<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { reader: Reader(bytes), number: 0 }
    }

    pub(super) fn next<T>(&mut self, read: impl FnOnce(&mut Reader<'a>) -> Result<T>) -> Result<T> {
        self.number += 1;
        read(&mut self.reader).map_err(|e| e.parameter(self.number))
    }

    /// Nothing may follow.
    pub(super) fn end(self) -> Result<()> {
        if self.reader.0.is_empty() { Ok(()) } else { Err(rc::SIZE) }
    }
}

/// Writes the wire format.
pub(super) trait Put {
    fn bytes(&mut self, bytes: &[u8]);

    fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    /// TPM2B. All that this TPM holds is shorter than 64 KiB.
    fn sized(&mut self, bytes: &[u8]) {
        self.u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
        self.bytes(bytes);
    }

    fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

impl Put for Vec<u8> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Reads 0 or 1.
pub(super) fn yes_no(r: &mut Reader<'_>) -> Result<bool> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(rc::VALUE),
    }
}

/// TPM_ST: any that there is.
pub(super) fn read_tag(r: &mut Reader<'_>) -> Result<u16> {
    match r.u16()? {
        tag @ (0x00c4 | 0x8000..=0x8002 | 0x8014..=0x801a | 0x8021..=0x8025) => Ok(tag),
        _ => Err(rc::VALUE),
    }
}
