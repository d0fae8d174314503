//! Where the fields of a PE image stand, and what an image hashes to: the maker's own reading (PE format specification; "Windows
//! Authenticode Portable Executable Signature Format", 2008). Trusts the image, which was made here or is a test's own.

use core::ops::Range;

use hvci_engine::digest::DigestAlg;

use super::{Error, Result, key::hash};

/// Page of every machine but IA-64, whatever SectionAlignment says.
const PAGE: usize = 4096;
const TRUNCATED: Error = Error::NotApplicable("no PE image, or a truncated one");

/// Offsets of fields in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Of the optional header.
    pub optional: usize,
    /// Of `CheckSum`.
    pub checksum: usize,
    /// Of `SizeOfHeaders`.
    pub size_of_headers: usize,
    /// Of `NumberOfRvaAndSizes`.
    pub directory_count: usize,
    /// Of the certificate table's data directory, if there is one.
    pub certificate_directory: Option<usize>,
    /// Of the first section header.
    pub sections: usize,
    /// How many section headers there are.
    pub section_count: usize,
}

impl Layout {
    /// Of `image`.
    ///
    /// # Errors
    /// No PE image.
    pub fn of(image: &[u8]) -> Result<Self> {
        let pe = to_usize(read32(image, 0x3C)?);
        if image.get(pe..pe + 4) != Some(b"PE\0\0") {
            return Err(TRUNCATED);
        }
        let optional = pe + 24;
        let directories = optional + if read16(image, optional)? == 0x20B { 112 } else { 96 };
        let directory_count = directories - 4;
        let has_table = read32(image, directory_count)? > 4;
        Ok(Self {
            optional,
            checksum: optional + 64,
            size_of_headers: optional + 60,
            directory_count,
            certificate_directory: has_table.then_some(directories + 4 * 8),
            sections: optional + usize::from(read16(image, pe + 20)?),
            section_count: usize::from(read16(image, pe + 6)?),
        })
    }

    /// Offset of a section header.
    pub fn section(&self, index: usize) -> usize {
        self.sections + 40 * index
    }

    /// Where the certificate table is; empty at the end of the file when there is none.
    ///
    /// # Errors
    /// A truncated image.
    pub fn table(&self, image: &[u8]) -> Result<Range<usize>> {
        let Some(directory) = self.certificate_directory else { return Ok(image.len()..image.len()) };
        let (start, len) = (to_usize(read32(image, directory)?), to_usize(read32(image, directory + 4)?));
        if start == 0 { Ok(image.len()..image.len()) } else { Ok(start..start.saturating_add(len)) }
    }
}

/// The authentihash of an image: everything but CheckSum, the certificate table's directory and the table.
///
/// # Errors
/// No PE image.
pub fn authentihash(image: &[u8], alg: DigestAlg) -> Result<Vec<u8>> {
    let layout = Layout::of(image)?;
    let table = layout.table(image)?;
    let mut hashed = header(image, &layout, table.start)?;
    hashed.extend(image.get(table.end..).unwrap_or_default());
    Ok(hash(alg, &hashed))
}

/// The authentihash as the specification says it and firmware calculates it: headers, each section by file offset, and what is behind as
/// many bytes as that was.
///
/// # Errors
/// No PE image.
pub fn section_sum(image: &[u8], alg: DigestAlg) -> Result<Vec<u8>> {
    let layout = Layout::of(image)?;
    let headers = to_usize(read32(image, layout.size_of_headers)?);
    let mut hashed = header(image, &layout, headers)?;
    let mut sections = (0..layout.section_count)
        .map(|i| Ok((to_usize(read32(image, layout.section(i) + 20)?), to_usize(read32(image, layout.section(i) + 16)?))))
        .collect::<Result<Vec<_>>>()?;
    sections.sort_unstable();
    let mut sum = headers;
    for (start, len) in sections {
        hashed.extend(image.get(start..start + len).ok_or(TRUNCATED)?);
        sum += len;
    }
    hashed.extend(image.get(sum..layout.table(image)?.start).unwrap_or_default());
    Ok(hash(alg, &hashed))
}

/// The page-hash table of an image: pairs of file offset and hash for the headers and each page of each section, and an empty last one.
///
/// # Errors
/// No PE image.
pub fn page_hashes(image: &[u8], alg: DigestAlg) -> Result<Vec<u8>> {
    let layout = Layout::of(image)?;
    let mut table = Vec::new();
    let mut entry = |offset: usize, mut page: Vec<u8>, padded: usize| {
        page.resize(padded.max(page.len()), 0);
        table.extend(to_u32(offset).to_le_bytes());
        table.extend(hash(alg, &page));
    };
    let headers = to_usize(read32(image, layout.size_of_headers)?);
    let page = header(image, &layout, headers)?;
    // what is left out of the headers is not made up for
    entry(0, page.clone(), PAGE - (headers - page.len()));
    let mut end = headers;
    for index in 0..layout.section_count {
        let at = layout.section(index);
        let (len, start) = (to_usize(read32(image, at + 16)?), to_usize(read32(image, at + 20)?));
        for offset in (start..start + len).step_by(PAGE) {
            let page = image.get(offset..(start + len).min(offset + PAGE)).ok_or(TRUNCATED)?;
            entry(offset, page.to_vec(), PAGE);
        }
        end = end.max(start + len);
    }
    table.extend(to_u32(end).to_le_bytes());
    table.extend(vec![0; alg.len()]);
    Ok(table)
}

/// `CheckSum` of an image (ImageHlp `CheckSumMappedFile`): the one's complement sum of its words, the field itself taken as zero, plus the length.
///
/// # Errors
/// No PE image.
pub fn checksum(image: &[u8]) -> Result<u32> {
    let mut zeroed = image.to_vec();
    write32(&mut zeroed, Layout::of(image)?.checksum, 0)?;
    let sum = zeroed.chunks(2).fold(0_u32, |sum, pair| {
        let word = u32::from(pair[0]) | u32::from(*pair.get(1).unwrap_or(&0)) << 8;
        let sum = sum + word;
        (sum & 0xFFFF) + (sum >> 16)
    });
    Ok(sum + to_u32(image.len()))
}

/// Bytes up to `end` without those that no signature covers.
fn header(image: &[u8], layout: &Layout, end: usize) -> Result<Vec<u8>> {
    let mut bytes = image.get(..layout.checksum).ok_or(TRUNCATED)?.to_vec();
    let after = layout.checksum + 4;
    match layout.certificate_directory {
        Some(directory) => {
            bytes.extend(image.get(after..directory).ok_or(TRUNCATED)?);
            bytes.extend(image.get(directory + 8..end).ok_or(TRUNCATED)?);
        }
        None => bytes.extend(image.get(after..end).ok_or(TRUNCATED)?),
    }
    Ok(bytes)
}

/// Little-endian 16 bits at `at`.
pub(super) fn read16(image: &[u8], at: usize) -> Result<u16> {
    image.get(at..).and_then(|b| b.first_chunk()).map(|b| u16::from_le_bytes(*b)).ok_or(TRUNCATED)
}

/// Little-endian 32 bits at `at`.
pub(super) fn read32(image: &[u8], at: usize) -> Result<u32> {
    image.get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b)).ok_or(TRUNCATED)
}

/// Puts `bytes` over those at `at`.
pub(super) fn write(image: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    image.get_mut(at..at + bytes.len()).ok_or(TRUNCATED)?.copy_from_slice(bytes);
    Ok(())
}

/// Little-endian 32 bits at `at`.
pub(super) fn write32(image: &mut [u8], at: usize, value: u32) -> Result<()> {
    write(image, at, &value.to_le_bytes())
}

/// A length or offset of an image, none of which has 4 GiB.
pub(super) fn to_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A field of an image as an offset.
pub(super) fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
