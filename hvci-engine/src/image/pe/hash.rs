//! Which bytes a digest of the image is over.
//!
//! - *Linear* is what Windows calculates (`ImageGetDigestStream`; also osslsigncode): the file in order without CheckSum, the certificate
//!   table's directory entry and the table. Bytes behind the table are hashed: were they left out, data could be appended to a signed file
//!   without breaking its digest.
//! - *Section sum* is the algorithm as "Windows Authenticode Portable Executable Signature Format" and EDK2 (`HashPeImage` in
//!   DxeImageVerificationLib) have it: headers up to SizeOfHeaders, each section by file offset, then as many bytes as are left *from the
//!   sum of what was hashed*. With gaps, overlaps or SizeOfHeaders past the first section that is another selection of bytes.
//!
//! Nothing is copied: a digest form is a list of slices of the file.

use super::{Pe, headers::CERTIFICATE_DIRECTORY};
use crate::{
    bytes::{Span, index, widen},
    facts::DigestForm,
    finding::{Code, Note},
};

/// File ranges, half open, in the order in which they are hashed.
type Ranges = Vec<(usize, usize)>;

impl<'a> Pe<'a> {
    /// The slices to hash, one after the other, for a digest of this form. `None` for a form that the image does not have: section sum where
    /// a section or the headers reach out of the file (firmware refuses the image then) or overlap so that more than twice the file would be
    /// hashed (65,535 sections can each be the whole file), and the forms that are none of a PE.
    pub fn hash_pieces(&self, form: DigestForm) -> Option<Vec<&'a [u8]>> {
        let ranges = self.ranges(form)?;
        let mut pieces = Vec::with_capacity(ranges.len().saturating_add(1));
        for (start, end) in ranges {
            pieces.push(self.data.get(start..end)?);
        }
        if form == DigestForm::LinearPadded {
            static ZEROS: [u8; 8] = [0; 8];
            pieces.push(ZEROS.get(..self.missing_padding())?);
        }
        Some(pieces)
    }

    /// The same as ranges of the file, without the zeros of the padded form.
    pub fn hash_ranges(&self, form: DigestForm) -> Option<Vec<Span>> {
        let ranges = self.ranges(form)?;
        Some(ranges.into_iter().map(|(start, end)| Span::new(start, end.saturating_sub(start))).collect())
    }

    /// Whether the linear and the section-sum digest are over different bytes; also where there is no section-sum digest.
    pub fn forms_differ(&self) -> bool {
        self.section_sum().is_none_or(|ranges| normalised(&ranges) != normalised(&self.linear()))
    }

    /// How many zeros [`DigestForm::LinearPadded`] adds, 0 to 7.
    pub fn missing_padding(&self) -> usize {
        let table = self.certificate_span().map_or(0, |span| usize::try_from(span.len).unwrap_or(0));
        let hashed_to = self.data.len().saturating_sub(table);
        hashed_to.checked_next_multiple_of(8).map_or(0, |padded| padded.saturating_sub(hashed_to))
    }

    fn ranges(&self, form: DigestForm) -> Option<Ranges> {
        match form {
            DigestForm::Flat => Some(vec![(0, self.data.len())]),
            DigestForm::Linear | DigestForm::LinearPadded => Some(self.linear()),
            DigestForm::SectionSum => self.section_sum(),
            DigestForm::Module => None,
        }
    }

    /// Offsets that split the headers: the file from 0 without CheckSum and without the certificate table's directory entry, up to `end`.
    fn without_fields(&self, end: usize) -> Option<Ranges> {
        let mut ranges = Vec::with_capacity(self.sections.len().saturating_add(4));
        let mut at = 0;
        for field in [Some(self.headers.checksum_span()), self.headers.certificate_directory_span()].into_iter().flatten() {
            ranges.push((at, usize::try_from(field.offset).ok()?));
            at = usize::try_from(field.end()?).ok()?;
        }
        ranges.push((at, end));
        (at <= end).then_some(ranges)
    }

    fn linear(&self) -> Ranges {
        let table = self.certificate_span().and_then(|t| Some((usize::try_from(t.offset).ok()?, usize::try_from(t.end()?).ok()?)));
        let (end, resume) = table.unwrap_or((self.data.len(), self.data.len()));
        // `certificate_span` lies behind the fields, and parsing made sure that they are in the file
        let mut ranges = self.without_fields(end).unwrap_or_default();
        ranges.push((resume, self.data.len()));
        ranges
    }

    fn section_sum(&self) -> Option<Ranges> {
        let headers = index(self.headers.size_of_headers);
        let mut ranges = self.without_fields(headers)?;
        let mut sum = headers;
        let mut sections: Vec<_> = self.sections.iter().filter(|s| s.file_size > 0).collect();
        sections.sort_by_key(|s| s.file_offset);
        for section in sections {
            let (start, len) = (index(section.file_offset), index(section.file_size));
            ranges.push((start, start.checked_add(len)?));
            sum = sum.checked_add(len)?;
        }
        let certificates =
            self.headers.certificate_directory_span().map_or(0, |_| index(self.headers.directory(CERTIFICATE_DIRECTORY).size));
        let end = self.data.len().saturating_sub(certificates);
        if end > sum {
            ranges.push((sum, end));
        }
        let bounded = sum <= self.data.len().saturating_mul(2);
        (bounded && ranges.iter().all(|(start, end)| start <= end && *end <= self.data.len())).then_some(ranges)
    }

    /// `ImageDigestForms`, `ImageUnaligned`.
    pub(super) fn digest_notes(&self, notes: &mut Vec<Note>) {
        let detail = match self.section_sum() {
            None => Some("headers or sections reach out of the file: there is no section-sum digest"),
            Some(sum) if normalised(&sum) != normalised(&self.linear()) => {
                Some("gaps or overlaps between headers and sections, or bytes behind the certificate table, are hashed by one form only")
            }
            Some(_) => None,
        };
        notes.extend(detail.map(|detail| Note::new(Code::ImageDigestForms, detail)));
        let missing = self.missing_padding();
        if missing > 0 {
            let detail = format!("{missing} bytes are missing to a multiple of 8");
            notes.push(Note::new(Code::ImageUnaligned, detail).at(Span { offset: widen(self.data.len()), len: 0 }));
        }
    }
}

/// The same bytes in the same order as the fewest ranges.
fn normalised(ranges: &[(usize, usize)]) -> Ranges {
    let mut fewest: Ranges = Vec::with_capacity(ranges.len());
    for &(start, end) in ranges.iter().filter(|(start, end)| start < end) {
        match fewest.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => fewest.push((start, end)),
        }
    }
    fewest
}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

    use authenticode::authenticode_digest;
    use object::read::pe::PeFile64;
    use proptest::prelude::*;

    use crate::digest::DigestAlg;

    use super::{
        super::sample::{BLOB, CERTIFICATE_ENTRY, CHECKSUM, DIRECTORY_COUNT, END, OPTIONAL, Sample},
        *,
    };

    fn pieces(sample: &Sample, form: DigestForm) -> Option<Vec<u8>> {
        Pe::parse(&sample.0).unwrap().hash_pieces(form).map(|p| p.concat())
    }

    fn without(sample: &Sample, left_out: &[core::ops::Range<usize>]) -> Vec<u8> {
        (0..sample.0.len()).filter(|at| !left_out.iter().any(|r| r.contains(at))).map(|at| sample.0[at]).collect()
    }

    const FIELDS: [core::ops::Range<usize>; 2] = [CHECKSUM..CHECKSUM + 4, CERTIFICATE_ENTRY..CERTIFICATE_ENTRY + 8];

    #[test]
    fn unsigned_and_signed_hash_the_same() {
        let unsigned = Sample::new();
        let expected = without(&unsigned, &FIELDS);
        for form in [DigestForm::Linear, DigestForm::LinearPadded, DigestForm::SectionSum] {
            assert_eq!(pieces(&unsigned, form).as_ref(), Some(&expected), "{form}");
            let mut signed = unsigned.clone();
            signed.sign(&[(0x200, 2, &BLOB)]);
            signed.set32(CHECKSUM, 99);
            assert_eq!(pieces(&signed, form).as_ref(), Some(&expected), "{form}");
        }
        assert_eq!(pieces(&unsigned, DigestForm::Flat).as_ref(), Some(&unsigned.0));
        assert_eq!(pieces(&unsigned, DigestForm::Module), None);
    }

    #[test]
    fn padding_is_of_the_hashed_length() {
        let mut sample = Sample::new();
        sample.0.extend_from_slice(b"abc");
        let expected = [without(&sample, &FIELDS), vec![0; 5]].concat();
        assert_eq!(pieces(&sample, DigestForm::LinearPadded), Some(expected));
        let pe = Pe::parse(&sample.0).unwrap();
        let note = pe.notes().iter().find(|n| n.code == Code::ImageUnaligned).unwrap();
        assert_eq!(note.detail, "5 bytes are missing to a multiple of 8");
    }

    #[test]
    fn bytes_behind_the_table_are_hashed() {
        let mut sample = Sample::new();
        sample.sign(&[(0x200, 2, &BLOB)]);
        sample.0.extend_from_slice(b"appended");
        let expected = without(&sample, &[FIELDS[0].clone(), FIELDS[1].clone(), END..END + 24]);
        assert_eq!(pieces(&sample, DigestForm::Linear), Some(expected));
    }

    #[test]
    fn without_a_certificate_entry_only_the_checksum_is_left_out() {
        let mut sample = Sample::new();
        sample.set32(DIRECTORY_COUNT, 4);
        let expected = without(&sample, &FIELDS[..1]);
        assert_eq!(pieces(&sample, DigestForm::Linear), Some(expected.clone()));
        assert_eq!(pieces(&sample, DigestForm::SectionSum), Some(expected));
    }

    #[test]
    fn forms_differ_over_gaps_and_covered_sections() {
        let differ = |sample: &Sample| {
            let pe = Pe::parse(&sample.0).unwrap();
            assert_eq!(pe.forms_differ(), pieces(sample, DigestForm::Linear) != pieces(sample, DigestForm::SectionSum));
            assert_eq!(pe.forms_differ(), pe.notes().iter().any(|n| n.code == Code::ImageDigestForms));
            pe.forms_differ()
        };
        assert!(!differ(&Sample::new()));
        // as UPX leaves it
        let mut covered = Sample::new();
        covered.set32(OPTIONAL + 60, 0x500);
        assert!(differ(&covered));
        let mut gap = Sample::new();
        gap.section(1, b".data\0\0\0", [0x1F0, 0x2000, 0x1F0, 0x610], 0xC000_0040);
        assert!(differ(&gap));
        let mut outside = Sample::new();
        outside.section(1, b".data\0\0\0", [0x200, 0x2000, 0x208, 0x600], 0xC000_0040);
        assert_eq!(pieces(&outside, DigestForm::SectionSum), None);
        assert!(differ(&outside));
        let mut overlay = Sample::new();
        overlay.0.extend_from_slice(&[1; 8]);
        assert!(!differ(&overlay));
    }

    #[test]
    fn section_sum_does_not_hash_a_file_many_times() {
        let mut sample = Sample::new();
        for n in 0..2 {
            sample.section(n, b"whole\0\0\0", [0x800, 0x1000, 0x800, 0], 0x6000_0020);
        }
        assert_eq!(pieces(&sample, DigestForm::SectionSum), None);
    }

    /// The signed digest as the `authenticode` crate reads it, against ours, for every signed image of a real corpus.
    #[test]
    fn corpus_digests_are_those_that_were_signed() {
        let Some(corpus) = std::env::var_os("HVCI_CORPUS") else {
            println!("skipped: HVCI_CORPUS names no directory of signed PE images");
            return;
        };
        let mut compared = 0;
        for file in std::fs::read_dir(corpus).unwrap() {
            let path = file.unwrap().path();
            // folders in it are other tests'
            let Ok(data) = std::fs::read(&path) else { continue };
            let Ok(pe) = Pe::parse(&data) else { continue };
            for entry in pe.certificate_table().entries.iter().filter(|e| e.is_authenticode()) {
                let Ok(signature) = authenticode::AuthenticodeSignature::from_bytes(entry.pkcs7) else { continue };
                let signed = signature.digest();
                let alg = DigestAlg::ALL.into_iter().find(|alg| alg.len() == signed.len()).unwrap();
                let calculated = crate::crypto::digest(alg, &pe.hash_pieces(DigestForm::Linear).unwrap());
                assert_eq!(calculated.as_bytes(), signed, "{} {}", path.display(), entry.subject());
                compared += 1;
            }
        }
        println!("{compared} signed digests compared");
    }

    #[derive(Default)]
    struct Recorder(Vec<u8>);
    impl sha2::digest::Update for Recorder {
        fn update(&mut self, data: &[u8]) {
            self.0.extend_from_slice(data);
        }
    }

    proptest! {
        /// The `authenticode` crate has the specification's algorithm too.
        #[test]
        fn section_sum_is_that_of_the_authenticode_crate(
            headers in 0x188..0x700_u32,
            a in (0x180..0x800_u32, 0..0x400_u32),
            b in (0x180..0x800_u32, 0..0x400_u32),
            signed: bool,
            tail in 0..40_usize,
        ) {
            let mut sample = Sample::new();
            sample.0.resize(END + tail * 8, 0xC3);
            sample.set32(OPTIONAL + 60, headers);
            sample.section(0, b"a\0\0\0\0\0\0\0", [0x100, 0x1000, a.1, a.0], 0x6000_0020);
            sample.section(1, b"b\0\0\0\0\0\0\0", [0x100, 0x2000, b.1, b.0], 0x6000_0020);
            if signed {
                sample.sign(&[(0x200, 2, &BLOB)]);
            }
            let theirs = PeFile64::parse(&*sample.0).ok().and_then(|pe| {
                let mut recorder = Recorder::default();
                authenticode_digest(&pe, &mut recorder).ok().map(|()| recorder.0)
            });
            let ours = pieces(&sample, DigestForm::SectionSum);
            // where they give up although there are no bytes left to hash (the sum is past the end), firmware goes on
            if let Some(theirs) = theirs {
                prop_assert_eq!(ours, Some(theirs));
            }
        }
    }
}
