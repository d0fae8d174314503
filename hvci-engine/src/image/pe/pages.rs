//! Page hashes (`SpcPeImagePageHashes1` and `2`): a table of pairs of file offset and digest, one for each page of the headers and of every
//! section, and a last pair of the end offset and zeros.
//!
//! A page is 4 KiB (8 KiB on Alpha and Itanium) whatever SectionAlignment says, because it is what the memory manager pages in. Its digest
//! is over the bytes in the file, without the fields that no Authenticode digest covers, and zeros for what the file lacks of it.
//! There is no specification; signify (`PEFile`) and osslsigncode (`pe_page_hash_calc`, which wrongly takes SectionAlignment) were compared.

use super::Pe;
use crate::{
    bytes::{self, Span, index, slice, widen},
    crypto::digest,
    digest::DigestAlg,
    facts::PageHashes,
    finding::{Code, Note},
};

const MACHINE_ALPHA: u16 = 0x0184;
const MACHINE_IA64: u16 = 0x0200;
const MACHINE_ALPHA64: u16 = 0x0284;

static ZEROS: [u8; 8192] = [0; 8192];

/// One page of the headers or of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<'a> {
    /// Offset in the file.
    pub offset: u64,
    /// What its digest is over, one after the other; the last piece is the zeros that fill the page. Some are empty.
    pub pieces: [&'a [u8]; 4],
}

impl<'a> Pe<'a> {
    /// Length of a page in bytes.
    pub const fn page_size(&self) -> usize {
        match self.headers.machine {
            MACHINE_ALPHA | MACHINE_ALPHA64 | MACHINE_IA64 => 8192,
            _ => 4096,
        }
    }

    /// Pages in the order of the page-hash table: those of the headers, then those of each section in table order. What reaches out of the
    /// file is left out.
    pub fn pages(&self) -> impl Iterator<Item = Page<'a>> + '_ {
        let size = self.page_size();
        self.paged_ranges()
            .flat_map(move |(start, end)| (start..end).step_by(size).filter_map(move |at| self.page(at, end.saturating_sub(at).min(size))))
    }

    /// How many pages there are, without walking them.
    fn pages_len(&self) -> usize {
        self.paged_ranges().fold(0, |n, (start, end)| end.saturating_sub(start).div_ceil(self.page_size()).saturating_add(n))
    }

    /// File ranges of the headers and the sections, cut at the end of the file.
    fn paged_ranges(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let headers = (0, index(self.headers.size_of_headers));
        let sections = self.sections.iter().map(|s| (index(s.file_offset), index(s.file_size)));
        core::iter::once(headers).chain(sections).map(|(start, len)| (start, start.saturating_add(len).min(self.data.len())))
    }

    /// Verifies a page-hash table page by page. Which `alg` it uses comes from its attribute type: SHA-1 (1.3.6.1.4.1.311.2.3.1) or SHA-256
    /// (1.3.6.1.4.1.311.2.3.2).
    ///
    /// # Errors
    /// `SigPageHashTable` when the table is not whole: another algorithm, a length that is no multiple, pages that are missing, out of order
    /// or not the image's, or no end with zeros. Also when sections overlap so that there are more pages than the file has.
    pub fn verify_page_table(&self, table: &[u8], alg: DigestAlg) -> Result<PageHashes, Note> {
        let bad = |detail: String| Note::new(Code::SigPageHashTable, detail);
        let version = match alg {
            DigestAlg::Sha1 => 1,
            DigestAlg::Sha256 => 2,
            _ => return Err(bad(format!("page hashes are SHA-1 or SHA-256, not {alg}"))),
        };
        let pair = alg.len().saturating_add(4);
        if !table.len().is_multiple_of(pair) {
            return Err(bad(format!("{} bytes are no multiple of {pair}", table.len())));
        }
        // the headers and each section can end in a page that is not full
        let count = self.pages_len();
        let most = self.data.len().div_ceil(self.page_size()).saturating_add(self.sections.len()).saturating_add(1);
        if count > most {
            return Err(bad(format!("overlapping sections have {count} pages, the file has {most} at most")));
        }
        let mut pairs = table.chunks_exact(pair).filter_map(|pair| Some((bytes::le32(pair, 0)?, pair.get(4..)?)));
        let mut hashes = PageHashes { version, pages: 0, mismatches: Vec::new() };
        let mut end = 0;
        for page in self.pages() {
            let (offset, value) = pairs.next().ok_or_else(|| bad(format!("the page at {:#x} is missing", page.offset)))?;
            if u64::from(offset) != page.offset {
                return Err(bad(format!("pair {} is for {offset:#x}, the image has a page at {:#x}", hashes.pages, page.offset)));
            }
            hashes.pages = hashes.pages.saturating_add(1);
            if digest(alg, &page.pieces).as_bytes() != value {
                hashes.mismatches.push(page.offset);
            }
            end = page.end(self.page_size());
        }
        match (pairs.next(), pairs.next()) {
            (Some((last, zeros)), None) if u64::from(last) == end && zeros.iter().all(|b| *b == 0) => Ok(hashes),
            (Some((last, _)), None) => {
                Err(bad(format!("the last pair is {last:#x}, the pages end at {end:#x}, or its digest is not zero")))
            }
            (None, _) => Err(bad("the last, empty pair is missing".to_owned())),
            (Some(_), Some((extra, _))) => Err(bad(format!("a pair for {extra:#x} follows the last page"))),
        }
    }

    fn page(&self, at: usize, len: usize) -> Option<Page<'a>> {
        let page = slice(self.data, at, len)?;
        let mut pieces: [&[u8]; 4] = [&[]; 4];
        let mut from = 0;
        let span = Span::new(at, len);
        let fields = [Some(self.headers.checksum_span()), self.headers.certificate_directory_span()];
        let (head, zeros) = pieces.split_at_mut_checked(3)?;
        for (piece, field) in head.iter_mut().zip(fields.into_iter().flatten().filter(|f| f.overlaps(span)).map(Some).chain([None])) {
            // a field may reach over the end of the page, or begin before it
            let (until, resume) = match field {
                Some(field) => {
                    let relative = |n: u64| usize::try_from(n.saturating_sub(span.offset)).unwrap_or(usize::MAX).min(len);
                    (relative(field.offset), relative(field.end()?))
                }
                None => (len, len),
            };
            *piece = page.get(from..until)?;
            from = resume;
        }
        *zeros.first_mut()? = ZEROS.get(..self.page_size().checked_sub(len)?)?;
        Some(Page { offset: widen(at), pieces })
    }
}

impl Page<'_> {
    /// Offset behind the page's bytes in the file, without the zeros that fill it.
    fn end(&self, page_size: usize) -> u64 {
        let [.., zeros] = self.pieces;
        self.offset.saturating_add(widen(page_size.saturating_sub(zeros.len())))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

    use super::{
        super::sample::{CHECKSUM, COFF, OPTIONAL, Sample},
        *,
    };

    /// `.data` has 0x2100 bytes: two whole pages and a part of one.
    fn large() -> (Sample, Vec<(usize, usize)>) {
        let mut sample = Sample::new();
        sample.0.resize(0x600 + 0x2100, 0x5A);
        sample.section(1, b".data\0\0\0", [0x2100, 0x2000, 0x2100, 0x600], 0xC000_0040);
        (sample, vec![(0, 0x400), (0x400, 0x200), (0x600, 0x1000), (0x1600, 0x1000), (0x2600, 0x100)])
    }

    #[test]
    fn pages_are_4_kib_whatever_the_section_alignment() {
        let (mut sample, pages) = large();
        for alignment in [0x1000, 0x2000, 0x200] {
            sample.set32(OPTIONAL + 32, alignment);
            for (version, alg) in [(1, DigestAlg::Sha1), (2, DigestAlg::Sha256)] {
                let table = sample.page_table(alg, &pages);
                let pe = Pe::parse(&sample.0).unwrap();
                assert_eq!(pe.verify_page_table(&table, alg), Ok(PageHashes { version, pages: 5, mismatches: vec![] }));
            }
        }
        sample.set16(COFF, MACHINE_IA64);
        let offsets: Vec<_> = Pe::parse(&sample.0).unwrap().pages().map(|p| p.offset).collect();
        assert_eq!(offsets, [0, 0x400, 0x600, 0x2600]);
    }

    #[test]
    fn names_the_page_that_differs() {
        let (mut sample, pages) = large();
        let table = sample.page_table(DigestAlg::Sha256, &pages);
        sample.0[0x1601] ^= 1;
        sample.0[0x10] ^= 1;
        sample.set32(CHECKSUM, 7);
        let pe = Pe::parse(&sample.0).unwrap();
        assert_eq!(pe.verify_page_table(&table, DigestAlg::Sha256).unwrap().mismatches, [0, 0x1600]);
    }

    #[test]
    fn refuses_a_table_that_is_not_whole() {
        let (sample, pages) = large();
        let pe = Pe::parse(&sample.0).unwrap();
        let table = sample.page_table(DigestAlg::Sha256, &pages);
        let refused = |table: &[u8], alg| {
            let note = pe.verify_page_table(table, alg).unwrap_err();
            assert_eq!(note.code, Code::SigPageHashTable);
            note.detail
        };
        assert!(refused(&table, DigestAlg::Sha384).contains("not sha384"));
        assert!(refused(&table[..table.len() - 1], DigestAlg::Sha256).contains("no multiple"));
        assert!(refused(&table[..table.len() - 36], DigestAlg::Sha256).contains("last, empty pair is missing"));
        assert!(refused(&table[36..], DigestAlg::Sha256).contains("pair 0 is for 0x400"));
        assert!(refused(&[], DigestAlg::Sha256).contains("the page at 0x0 is missing"));
        assert!(refused(&[&table[..], &[0; 36]].concat(), DigestAlg::Sha256).contains("a pair for 0x0 follows"));
        for (at, what) in [(5 * 36, "the last pair is"), (5 * 36 + 4, "digest is not zero"), (36, "pair 1 is for")] {
            let mut changed = table.clone();
            changed[at] ^= 1;
            assert!(refused(&changed, DigestAlg::Sha256).contains(what), "{at}");
        }
    }

    #[test]
    fn overlapping_sections_do_not_multiply_the_work() {
        let mut sample = Sample::new();
        sample.0.resize(0x8000, 0);
        for n in 0..2 {
            sample.section(n, b"whole\0\0\0", [0x8000, 0x1000, 0x8000, 0], 0x6000_0020);
        }
        let pe = Pe::parse(&sample.0).unwrap();
        assert!(pe.verify_page_table(&[], DigestAlg::Sha256).unwrap_err().detail.contains("overlapping sections"));
    }

    #[test]
    fn a_field_may_lie_across_two_pages() {
        // the PE header so far back that the certificate table's entry is cut by the end of the first page
        let shift = 0x1000 - (OPTIONAL + 112 + 32) - 4;
        let mut sample = Sample::new();
        let head: Vec<u8> = sample.0.drain(0x80..0x400).collect();
        sample.0.splice(0x80..0x80, [vec![0xEE; shift], head, vec![0; 0x1000]].concat());
        sample.set32(0x3C, u32::try_from(0x80 + shift).unwrap());
        sample.set32(OPTIONAL + shift + 60, 0x1800);
        let pe = Pe::parse(&sample.0).unwrap();
        let field = pe.headers().certificate_directory_span().unwrap();
        assert_eq!(field.to_string(), "0xffc..0x1004");
        let mut pages = pe.pages();
        let (first, second) = (pages.next().unwrap().pieces.concat(), pages.next().unwrap().pieces.concat());
        assert_eq!((first.len(), second.len()), (4096 - 8, 4096 - 4));
        assert_eq!(second[..0x7FC], sample.0[0x1004..0x1800]);
    }
}
