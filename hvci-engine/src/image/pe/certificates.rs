//! The attribute certificate table (PE/COFF specification, "The Attribute Certificate Table (Image Only)"): `WIN_CERTIFICATE` entries, each
//! rounded up to 8 bytes, at the *file offset* of data directory 4.
//!
//! Trusts nothing; every entry that lies in the file is handed out, and every fault is a note. No certificate is decoded, only the length
//! of the outermost ASN.1 element is read, to find what hides behind it (CVE-2013-3900: no signature covers the table).

use super::{CERTIFICATE_DIRECTORY, Pe, push};
use crate::{
    budget::MAX_SIGNATURES,
    bytes::{self, Span, der, index, widen},
    finding::{Code, Note},
};

/// The attribute certificate table of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateTable<'a> {
    /// Bytes of the table as far as the file has them; `None` without one.
    pub span: Option<Span>,
    /// Entries in file order.
    pub entries: Vec<CertificateEntry<'a>>,
    /// What is wrong with the table. A fault of one entry names it (`entry 0`) as the subject.
    pub notes: Vec<Note>,
}

/// A `WIN_CERTIFICATE` structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateEntry<'a> {
    /// Position in the table, from 0.
    pub index: u32,
    /// Header and payload, without the zeros that round it up.
    pub span: Span,
    /// `wRevision`; 0x0200 is the only one that Windows accepts.
    pub revision: u16,
    /// `wCertificateType`.
    pub kind: u16,
    /// `bCertificate`: everything behind the header.
    pub payload: &'a [u8],
    /// Offset of the payload in the file.
    pub payload_offset: usize,
    /// The outermost ASN.1 element at the start of the payload; the whole payload where that is none, so that its decoder says why.
    pub pkcs7: &'a [u8],
    /// What follows `pkcs7` in the payload. Up to 7 zeros are alignment.
    pub padding: &'a [u8],
}

impl CertificateEntry<'_> {
    /// WIN_CERT_TYPE_PKCS_SIGNED_DATA.
    pub const PKCS_SIGNED_DATA: u16 = 0x0002;
    /// WIN_CERT_REVISION_2_0.
    pub const REVISION_2: u16 = 0x0200;

    /// Whether Windows and firmware take it for an Authenticode signature.
    pub const fn is_authenticode(&self) -> bool {
        self.kind == Self::PKCS_SIGNED_DATA && self.revision == Self::REVISION_2
    }

    /// The name that notes give it.
    pub fn subject(&self) -> String {
        format!("entry {}", self.index)
    }
}

const SIZEOF_HEADER: usize = 8;

impl<'a> Pe<'a> {
    /// The bytes of the certificate table as far as the file has them. `None` where there is none, or where it starts outside the file or
    /// within the header fields that no digest covers: such a table cannot be left out of a digest.
    pub fn certificate_span(&self) -> Option<Span> {
        let field = self.headers.certificate_directory_span()?;
        let directory = self.headers.directory(CERTIFICATE_DIRECTORY);
        let (offset, len) = (u64::from(directory.address), widen(self.data.len()));
        if directory.is_empty() || directory.size == 0 || offset >= len || offset < field.end()? {
            return None;
        }
        Some(Span { offset, len: u64::from(directory.size).min(len.saturating_sub(offset)) })
    }

    /// Reads the certificate table. Notes: `SigEntry`, `SigEntryType`, `SigRevision`, `SigPadding`, `SigNotAtEof`, `SigTableOverlap`,
    /// `SigTooMany`.
    pub fn certificate_table(&self) -> CertificateTable<'a> {
        let mut notes = Vec::new();
        let directory = self.headers.directory(CERTIFICATE_DIRECTORY);
        let claimed = Span { offset: u64::from(directory.address), len: u64::from(directory.size) };
        let Some(span) = self.certificate_span() else {
            if claimed != (Span { offset: 0, len: 0 }) {
                notes.push(
                    Note::new(Code::SigEntry, format!("the certificate table at {claimed} is empty or outside the file")).at(claimed),
                );
            }
            return CertificateTable { span: None, entries: Vec::new(), notes };
        };
        self.check_place(claimed, &mut notes);
        let table = usize::try_from(span.offset).ok().and_then(|at| bytes::slice(self.data, at, usize::try_from(span.len).ok()?));
        let entries = read_entries(table.unwrap_or_default(), index(directory.address), &mut notes);
        CertificateTable { span: Some(span), entries, notes }
    }

    fn check_place(&self, claimed: Span, notes: &mut Vec<Note>) {
        let len = widen(self.data.len());
        match claimed.end() {
            Some(end) if end < len => {
                let behind = Span { offset: end, len: len.saturating_sub(end) };
                notes.push(Note::new(Code::SigNotAtEof, format!("{} bytes follow the certificate table", behind.len)).at(behind));
            }
            Some(end) if end == len => {}
            _ => notes
                .push(Note::new(Code::SigEntry, format!("the certificate table {claimed} reaches past the end of the file")).at(claimed)),
        }
        if claimed.offset & 7 != 0 {
            notes.push(Note::new(Code::SigEntry, "the certificate table does not start at a multiple of 8").at(claimed));
        }
        let headers = Span { offset: 0, len: u64::from(self.headers.size_of_headers) };
        if headers.overlaps(claimed) {
            notes.push(Note::new(Code::SigTableOverlap, format!("the certificate table {claimed} overlaps the headers")).at(claimed));
        }
        for section in self.sections.iter().filter(|s| s.file_span().overlaps(claimed)) {
            push(notes, Code::SigTableOverlap, || {
                let (name, place) = (section.display_name(), section.file_span());
                Note::new(Code::SigTableOverlap, format!("the certificate table {claimed} overlaps {name} at {place}")).at(claimed).of(name)
            });
        }
    }
}

/// Entries of `table`, which stands at `base` in the file.
fn read_entries<'a>(table: &'a [u8], base: usize, notes: &mut Vec<Note>) -> Vec<CertificateEntry<'a>> {
    let mut entries = Vec::new();
    let mut at = 0_usize;
    while at < table.len() {
        let rest = Span::new(base.saturating_add(at), table.len().saturating_sub(at));
        if entries.len() >= MAX_SIGNATURES {
            notes.push(Note::new(Code::SigTooMany, format!("more than {MAX_SIGNATURES} certificate table entries")).at(rest));
            break;
        }
        let Some(entry) = read_entry(table, at, base, entries.len()) else {
            check_rest(table.get(at..).unwrap_or_default(), rest, entries.len(), notes);
            break;
        };
        check_entry(&entry, notes);
        at = at.saturating_add(usize::try_from(entry.span.len).unwrap_or(usize::MAX));
        let filler = at.checked_next_multiple_of(8).unwrap_or(usize::MAX).saturating_sub(at);
        match table.get(at..).and_then(|rest| rest.get(..filler)) {
            Some(zeros) => check_filler(zeros, base.saturating_add(at), &entry, notes),
            // row 13: firmware and osslsigncode refuse such a table, Windows rounds
            None => notes.push(
                Note::new(Code::SigEntry, "the certificate table's size is not that of its entries rounded up to 8")
                    .at(entry.span)
                    .of(entry.subject()),
            ),
        }
        at = at.saturating_add(filler);
        entries.push(entry);
    }
    entries
}

fn read_entry(table: &[u8], at: usize, base: usize, position: usize) -> Option<CertificateEntry<'_>> {
    let len = index(bytes::le32(table, at)?);
    let payload_at = at.checked_add(SIZEOF_HEADER)?;
    let payload = bytes::slice(table, payload_at, len.checked_sub(SIZEOF_HEADER)?)?;
    let payload_offset = base.checked_add(payload_at)?;
    let (revision, kind) = (bytes::le16(table, at.checked_add(4)?)?, bytes::le16(table, at.checked_add(6)?)?);
    // other types hold no ASN.1
    let outer = if kind == CertificateEntry::PKCS_SIGNED_DATA { der::Reader::new(payload, payload_offset).next().ok() } else { None };
    let (pkcs7, padding) = payload.split_at_checked(outer.map_or(payload.len(), |tlv| tlv.raw.len())).unwrap_or((payload, &[]));
    Some(CertificateEntry {
        index: u32::try_from(position).ok()?,
        span: Span::new(base.checked_add(at)?, len),
        revision,
        kind,
        payload,
        payload_offset,
        pkcs7,
        padding,
    })
}

fn check_entry(entry: &CertificateEntry<'_>, notes: &mut Vec<Note>) {
    let note = |code, detail: String| Note::new(code, detail).at(entry.span).of(entry.subject());
    if entry.kind != CertificateEntry::PKCS_SIGNED_DATA {
        let name = match entry.kind {
            0x0001 => "X.509 certificate",
            0x0003 => "reserved",
            0x0004 => "Terminal Server certificate",
            0x0EF0 => "EFI PKCS#1.5",
            0x0EF1 => "EFI GUID",
            _ => "unknown",
        };
        notes.push(note(Code::SigEntryType, format!("wCertificateType {:#06x} ({name})", entry.kind)));
    }
    if entry.revision != CertificateEntry::REVISION_2 {
        notes.push(note(Code::SigRevision, format!("wRevision {:#06x}", entry.revision)));
    }
    if entry.padding.len() > 7 || entry.padding.iter().any(|b| *b != 0) {
        let padding_at = entry.payload_offset.saturating_add(entry.pkcs7.len());
        notes.push(
            padding_note(entry.padding, Span::new(padding_at, entry.padding.len()), "behind the PKCS#7 inside the entry")
                .of(entry.subject()),
        );
    }
}

fn check_filler(zeros: &[u8], offset: usize, entry: &CertificateEntry<'_>, notes: &mut Vec<Note>) {
    if zeros.iter().any(|b| *b != 0) {
        notes.push(padding_note(zeros, Span::new(offset, zeros.len()), "between the entry and the next multiple of 8").of(entry.subject()));
    }
}

/// What stands at the end of the table and is no entry. However it came there, the table's size is not that of its entries.
fn check_rest(rest: &[u8], span: Span, entries: usize, notes: &mut Vec<Note>) {
    let detail = match bytes::le32(rest, 0) {
        Some(len) if len != 0 => format!("dwLength {len:#x} of entry {entries} does not fit the {} bytes that are left", rest.len()),
        _ => format!("{} bytes behind {entries} entries are no entry", rest.len()),
    };
    notes.push(Note::new(Code::SigEntry, detail).at(span));
    if entries > 0 && rest.iter().any(|b| *b != 0) {
        notes.push(padding_note(rest, span, "behind the last entry"));
    }
}

fn padding_note(bytes: &[u8], span: Span, place: &str) -> Note {
    let non_zero = bytes.iter().filter(|b| **b != 0).count();
    Note::new(Code::SigPadding, format!("{} bytes {place}, {non_zero} of them not zero", bytes.len())).at(span)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

    use super::{
        super::sample::{BLOB, CERTIFICATE_ENTRY, END, Sample},
        *,
    };

    /// Code, subject, span and detail of every note.
    fn notes(sample: &Sample) -> Vec<String> {
        let table = Pe::parse(&sample.0).unwrap().certificate_table();
        let text = |n: &Note| {
            let (subject, span) = (n.subject.as_deref().unwrap_or("-"), n.span.map_or_else(String::new, |s| s.to_string()));
            format!("{} {subject} {span} {}", n.code.alias(), n.detail)
        };
        table.notes.iter().map(text).collect()
    }

    fn signed(entries: &[(u16, u16, &[u8])]) -> Sample {
        let mut sample = Sample::new();
        sample.sign(entries);
        sample
    }

    #[test]
    fn several_entries_and_other_types() {
        let sample = signed(&[(0x200, 2, &BLOB), (0x200, 0xEF1, b"guid"), (0x200, 2, &BLOB)]);
        let pe = Pe::parse(&sample.0).unwrap();
        let table = pe.certificate_table();
        assert_eq!(table.span, Some(Span::new(END, 24 + 16 + 24)));
        let spans: Vec<_> = table.entries.iter().map(|e| (e.index, e.span.to_string(), e.is_authenticode())).collect();
        assert_eq!(
            spans,
            [(0, "0x800..0x811".to_owned(), true), (1, "0x818..0x824".to_owned(), false), (2, "0x828..0x839".to_owned(), true)]
        );
        assert_eq!((table.entries[2].pkcs7, table.entries[2].payload_offset, table.entries[2].padding), (&BLOB[..], 0x830, &[][..]));
        assert_eq!(notes(&sample), ["certificate-entry-skipped entry 1 0x818..0x824 wCertificateType 0x0ef1 (EFI GUID)"]);
    }

    #[test]
    fn unsigned_is_no_finding() {
        assert_eq!(Pe::parse(&Sample::new().0).unwrap().certificate_table(), CertificateTable::default());
    }

    #[test]
    fn alignment_zeros_may_be_inside_the_entry() {
        let padded = [&BLOB[..], &[0; 7]].concat();
        let sample = signed(&[(0x200, 2, &padded)]);
        assert_eq!(notes(&sample), [""; 0]);
        let pe = Pe::parse(&sample.0).unwrap();
        assert_eq!(pe.certificate_table().entries[0].pkcs7, BLOB);
    }

    #[test]
    fn indefinite_length_ends_where_it_ends() {
        let ber = [0x30, 0x80, 4, 1, 9, 0, 0, 0xAA];
        let sample = signed(&[(0x200, 2, &ber)]);
        assert_eq!(
            notes(&sample),
            ["data-behind-signature entry 0 0x80f..0x810 1 bytes behind the PKCS#7 inside the entry, 1 of them not zero"]
        );
    }

    #[test]
    fn smuggled_bytes_are_found_wherever_they_are() {
        let inside = [&BLOB[..], &[0x41; 64]].concat();
        assert_eq!(
            notes(&signed(&[(0x200, 2, &inside)])),
            ["data-behind-signature entry 0 0x811..0x851 64 bytes behind the PKCS#7 inside the entry, 64 of them not zero"]
        );
        let zeros = [&BLOB[..], &[0; 8]].concat();
        assert_eq!(
            notes(&signed(&[(0x200, 2, &zeros)])),
            ["data-behind-signature entry 0 0x811..0x819 8 bytes behind the PKCS#7 inside the entry, 0 of them not zero"]
        );
        let mut between = signed(&[(0x200, 2, &BLOB), (0x200, 2, &BLOB)]);
        between.0[0x817] = 1;
        assert_eq!(
            notes(&between),
            ["data-behind-signature entry 0 0x811..0x818 7 bytes between the entry and the next multiple of 8, 1 of them not zero"]
        );
        let mut behind = signed(&[(0x200, 2, &BLOB)]);
        behind.0.extend_from_slice(&[0, 0, 0, 0, 5, 6, 7, 8]);
        behind.grow_table(8);
        assert_eq!(
            notes(&behind),
            [
                "certificate-table-malformed - 0x818..0x820 8 bytes behind 1 entries are no entry",
                "data-behind-signature - 0x818..0x820 8 bytes behind the last entry, 4 of them not zero"
            ]
        );
    }

    #[test]
    fn sizes_that_lie() {
        // m1b of the mutation list: only the directory grows
        let mut grown = signed(&[(0x200, 2, &BLOB)]);
        grown.grow_table(8);
        assert_eq!(
            notes(&grown),
            ["certificate-table-malformed - 0x800..0x820 the certificate table 0x800..0x820 reaches past the end of the file"]
        );
        let mut zeros = signed(&[(0x200, 2, &BLOB)]);
        zeros.0.extend_from_slice(&[0; 8]);
        zeros.grow_table(8);
        assert_eq!(notes(&zeros), ["certificate-table-malformed - 0x818..0x820 8 bytes behind 1 entries are no entry"]);
        let mut unrounded = signed(&[(0x200, 2, &BLOB)]);
        unrounded.0.truncate(0x811);
        unrounded.set32(CERTIFICATE_ENTRY + 4, 17);
        assert_eq!(
            notes(&unrounded),
            ["certificate-table-malformed entry 0 0x800..0x811 the certificate table's size is not that of its entries rounded up to 8"]
        );
        for len in [0_u32, 7, 25, u32::MAX] {
            let mut lying = signed(&[(0x200, 2, &BLOB)]);
            lying.set32(END, len);
            let found = notes(&lying);
            assert!(found.len() == 1 && found[0].starts_with("certificate-table-malformed - 0x800..0x818"), "{found:?}");
            assert_eq!(Pe::parse(&lying.0).unwrap().certificate_table().entries, []);
        }
    }

    #[test]
    fn revision_and_place() {
        assert_eq!(notes(&signed(&[(0x100, 2, &BLOB)])), ["certificate-revision entry 0 0x800..0x811 wRevision 0x0100"]);
        let mut appended = signed(&[(0x200, 2, &BLOB)]);
        appended.0.extend_from_slice(b"more");
        assert_eq!(notes(&appended), ["certificate-table-not-at-end - 0x818..0x81c 4 bytes follow the certificate table"]);
        let mut odd = Sample::new();
        odd.0.push(0);
        odd.sign(&[(0x200, 2, &[BLOB.as_slice(), &[0; 6]].concat())]);
        assert!(notes(&odd)[0].ends_with("does not start at a multiple of 8"));
        let mut mapped = signed(&[(0x200, 2, &BLOB)]);
        mapped.section(1, b".data\0\0\0", [0x200, 0x2000, 0x218, 0x600], 0xC000_0040);
        assert_eq!(
            notes(&mapped),
            ["certificate-table-overlaps .data 0x800..0x818 the certificate table 0x800..0x818 overlaps .data at 0x600..0x818"]
        );
        for (address, size) in [(8_u32, 8_u32), (0x900, 8), (0x800, 0), (0, 8), (u32::MAX, u32::MAX)] {
            let mut nowhere = Sample::new();
            nowhere.directory(4, address, size);
            assert!(notes(&nowhere)[0].contains("is empty or outside the file"), "{address:#x}");
            assert_eq!(Pe::parse(&nowhere.0).unwrap().certificate_table().span, None);
        }
    }

    #[test]
    fn entries_are_bounded() {
        let sample = signed(&vec![(0x200, 2, &BLOB[..]); MAX_SIGNATURES + 1]);
        assert_eq!(Pe::parse(&sample.0).unwrap().certificate_table().entries.len(), MAX_SIGNATURES);
        assert!(notes(&sample)[0].starts_with("too-many-signatures"));
    }
}
