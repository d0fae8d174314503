//! bytes → Facts: one pass over a file, whatever it is.
//!
//! ```text
//! bytes ─► parse ─► read signatures ─► digests ─► complete ─► Facts
//! ```
//!
//! What was read says which digests are needed; they are calculated for a whole batch of files at once, because digests of different files run
//! in interleaved lanes; then the signatures are completed. A batch of one is the same code.
//! **Invariant:** never fails: what cannot be read is a note in the facts.

use std::{borrow::Cow, sync::Arc};

use crate::{
    crypto::{Job, digest_jobs, digest_jobs_beside},
    digest::{Digest, DigestAlg},
    facts::{DigestForm, Facts, FileKind, FormDigest, Signature, Source},
    finding::{Code, Note},
    image::{
        elf::Elf,
        pe::{CertificateTable, CheckSum, Imports, Pe},
        unpack::{Compression, unpack},
    },
    signature::{
        authenticode,
        cache::Cache,
        catalog::{Catalog, CatalogIndex, Listed},
        cms::Pool,
        detached::Detached,
        modsig::ModuleTrailer,
    },
};

/// What files are examined with.
#[derive(Clone, Copy, Debug)]
pub struct Examiner<'e> {
    /// Parsed certificates of earlier files.
    pub cache: &'e Cache,
    /// Catalogs that may speak for a file.
    pub catalogs: &'e CatalogIndex,
    /// Digests to calculate besides those that signatures and catalogs ask for and SHA-256.
    pub digests: &'e [DigestAlg],
}

/// A file's bytes, unpacked if it was a compressed module.
#[derive(Debug)]
pub struct Input<'a> {
    bytes: Cow<'a, [u8]>,
    compression: Option<&'static str>,
    notes: Vec<Note>,
}

impl<'a> Input<'a> {
    /// The file `bytes`; a gzip, xz or Zstandard file is unpacked to at most `cap` bytes.
    pub fn new(bytes: &'a [u8], cap: usize) -> Self {
        let plain = |notes| Self { bytes: Cow::Borrowed(bytes), compression: None, notes };
        if !matches!(Compression::of(bytes), Some(Compression::Gzip | Compression::Xz | Compression::Zstd)) {
            return plain(Vec::new());
        }
        match unpack(bytes, cap) {
            Ok(unpacked) => {
                Self { bytes: Cow::Owned(unpacked.data), compression: Some(unpacked.compression.name()), notes: unpacked.notes }
            }
            Err(e) => plain(vec![e.into()]),
        }
    }

    /// What is examined: the file, or what was unpacked from it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether that is the file itself.
    pub(crate) const fn is_plain(&self) -> bool {
        matches!(self.bytes, Cow::Borrowed(_))
    }
}

impl Examiner<'_> {
    /// The facts of one file.
    pub fn examine(&self, bytes: &[u8], cap: usize) -> Facts {
        self.examine_all(&[Input::new(bytes, cap)]).pop().unwrap_or_else(|| Facts::new(bytes.len(), FileKind::Flat))
    }

    /// The facts of every file, in order.
    pub fn examine_all(&self, inputs: &[Input<'_>]) -> Vec<Facts> {
        let mut readings: Vec<(Reading<'_>, Parsed<'_>)> = inputs
            .iter()
            .map(|input| {
                let parsed = Parsed::of(input.bytes());
                let mut reading = Reading::of(input, &parsed);
                self.read_signatures(&mut reading, input, &parsed);
                (reading, parsed)
            })
            .collect();
        let jobs: Vec<Job<'_>> = readings.iter_mut().flat_map(|(reading, _)| core::mem::take(&mut reading.jobs)).collect();
        let digests = digest_jobs(&jobs);
        let mut rest = digests.as_slice();
        readings
            .into_iter()
            .map(|(reading, parsed)| {
                let (own, others) = rest.split_at_checked(reading.forms.len()).unwrap_or((rest, &[]));
                rest = others;
                self.complete(reading, &parsed, own)
            })
            .collect()
    }

    /// Reads a file's signatures, as far as that goes without a digest of it, and asks for those that they are over.
    pub(crate) fn read_signatures<'i>(&self, reading: &mut Reading<'i>, input: &'i Input<'_>, parsed: &Parsed<'i>) {
        let bytes = input.bytes();
        if let Parsed::Pe(image) = parsed {
            self.read_authenticode(bytes, image, reading);
        } else if Pe::is_pe(bytes) || bytes.is_empty() {
            // nothing of it can be read
        } else if Elf::is_elf(bytes) {
            self.read_trailer(bytes, reading);
        } else if Catalog::is_catalog(bytes) {
            self.read_catalog(bytes, reading);
        } else if self.catalogs.is_empty() {
            if reading.facts.notes.is_empty() {
                reading.facts.notes.push(Note::new(Code::InputNotImage, ""));
            }
        } else {
            for alg in self.catalogs.algorithms() {
                reading.want(DigestForm::Flat, *alg, vec![bytes]);
            }
        }
    }

    fn read_authenticode<'i>(&self, bytes: &'i [u8], image: &Image<'i>, reading: &mut Reading<'i>) {
        let Image { pe, certificates, .. } = image;
        let mut pool = Pool::new(self.cache);
        let mut signatures = Vec::new();
        for entry in certificates.entries.iter().filter(|e| e.is_authenticode()) {
            let own = signatures.len();
            authenticode::read(entry.pkcs7, entry.payload_offset, entry.index, &mut pool, &mut signatures);
            if pe.kind() == FileKind::PeEfi
                && !authenticode::is_seen_by_edk2(entry.pkcs7)
                && let Some(read) = signatures.get_mut(own)
            {
                read.signature.notes.push(Note::new(Code::BootEncoding, "").of(entry.subject()));
            }
        }
        reading.certificates = pool.list;

        let mut signed: Vec<DigestAlg> = signatures.iter().filter_map(|r| Some(r.signature.coverage.as_ref()?.signed.alg())).collect();
        let differ = pe.forms_differ();
        let unpadded = pe.missing_padding() != 0;
        if differ {
            for alg in signed.iter().chain(&[DigestAlg::Sha256]).chain(self.digests).copied() {
                reading.want_of(pe, DigestForm::SectionSum, alg);
            }
        }
        signed.extend([DigestAlg::Sha256]);
        signed.extend(self.digests);
        signed.extend(self.catalogs.algorithms());
        for alg in signed {
            reading.want_of(pe, DigestForm::Linear, alg);
            if unpadded {
                reading.want_of(pe, DigestForm::LinearPadded, alg);
            }
        }
        for alg in self.digests.iter().chain(self.catalogs.algorithms()) {
            reading.want(DigestForm::Flat, *alg, vec![bytes]);
        }
        reading.body = Body::Pe(signatures);
    }

    fn read_trailer<'i>(&self, bytes: &'i [u8], reading: &mut Reading<'i>) {
        let mut content = bytes;
        match ModuleTrailer::find(bytes) {
            Ok(Some(trailer)) => {
                content = trailer.content;
                let detached = Detached::read(trailer.pkcs7, trailer.pkcs7_span);
                if let Some(alg) = detached.digest_alg() {
                    reading.want(DigestForm::Module, alg, vec![content]);
                }
                reading.body = Body::Module(Box::new(detached));
            }
            Ok(None) => {}
            Err(note) => {
                let mut signature = Signature::new(Source::ModuleTrailer, note.span);
                signature.notes.push(note);
                reading.facts.signatures.push(signature);
            }
        }
        for alg in self.digests {
            reading.want(DigestForm::Module, *alg, vec![content]);
        }
    }

    fn read_catalog(&self, bytes: &[u8], reading: &mut Reading<'_>) {
        reading.facts.kind = FileKind::Catalog;
        match Catalog::read(bytes, self.cache) {
            Ok(catalog) => {
                reading.certificates = catalog.certificates;
                reading.facts.signatures.push(catalog.signature);
            }
            Err(note) => reading.facts.notes.push(note),
        }
    }

    /// The facts of the file that was read, whose digests, in the order asked for, are `digests`.
    pub(crate) fn complete(&self, reading: Reading<'_>, parsed: &Parsed<'_>, digests: &[Digest]) -> Facts {
        let Reading { mut facts, certificates, forms, checksum, body, .. } = reading;
        let mut pool = Pool::new(self.cache);
        pool.list = certificates;
        facts.digests = forms.iter().zip(digests).map(|(form, digest)| FormDigest { form: *form, digest: *digest }).collect();
        if let (Some(sum), Parsed::Pe(image)) = (checksum, parsed) {
            facts.notes.extend(image.pe.checksum_note(sum));
        }
        match body {
            Body::Pe(signatures) => {
                for authenticode::Read { mut signature, page_table } in signatures {
                    if let Some(coverage) = &mut signature.coverage {
                        coverage.calculated = facts.digest(DigestForm::Linear, coverage.signed.alg()).copied();
                    }
                    if let (Some(table), Parsed::Pe(image)) = (page_table, parsed) {
                        match image.pe.verify_page_table(&table.table, table.alg) {
                            Ok(pages) => signature.page_hashes = Some(pages),
                            Err(note) => signature.notes.push(note.at(table.span)),
                        }
                    }
                    facts.signatures.push(signature);
                }
                self.add_catalogs(&mut facts, &mut pool);
            }
            Body::Module(detached) => {
                let content = detached.digest_alg().and_then(|alg| facts.digest(DigestForm::Module, alg)).copied();
                facts.signatures.reserve_exact(1);
                facts.signatures.push(detached.finish(content, &mut pool));
            }
            Body::Other => self.add_catalogs(&mut facts, &mut pool),
        }
        facts.certificates = pool.list;
        facts
    }

    /// Adds the signature of every catalog that lists the file.
    fn add_catalogs(&self, facts: &mut Facts, pool: &mut Pool<'_>) {
        let listed: Vec<(FormDigest, Listed<'_>)> = facts
            .digests
            .iter()
            .flat_map(|d| self.catalogs.lookup(&d.digest, d.form != DigestForm::Flat).map(|listed| (*d, listed)))
            .collect();
        for (form_digest, Listed { name, catalog, member }) in listed {
            let source = Source::Catalog { name: name.to_owned(), member: member.tag.clone() };
            // a catalog lists a file once by SHA-256 and again by SHA-1: the stronger one speaks
            let better = |s: &&mut Signature| matches!(&s.source, Source::Catalog { name: n, .. } if n == name);
            if let Some(known) = facts.signatures.iter_mut().find(better) {
                if known.coverage.as_ref().is_some_and(|c| c.signed.alg() < form_digest.digest.alg()) {
                    known.source = source;
                    known.coverage = Some(coverage(form_digest));
                    known.notes.retain(|n| n.code != Code::SigCatalogMember);
                }
                continue;
            }
            let mut signature = catalog.signature.clone();
            signature.source = source;
            signature.coverage = Some(coverage(form_digest));
            let place: Vec<usize> = catalog.certificates.iter().map(|c| pool.index_of(Arc::clone(c))).collect();
            remap(&mut signature, &place);
            if form_digest.digest.alg() <= DigestAlg::Sha1 {
                signature.notes.push(Note::new(Code::SigCatalogMember, form_digest.digest.to_string()).of(member.tag.clone()));
            }
            facts.signatures.push(signature);
        }
        if facts.kind == FileKind::Flat && facts.signatures.is_empty() && facts.notes.is_empty() && !facts.digests.is_empty() {
            facts.notes.push(Note::new(Code::InputNotImage, "and no catalog lists it"));
        }
    }
}

/// What a file was parsed to.
pub(crate) enum Parsed<'i> {
    Pe(Box<Image<'i>>),
    Elf(Box<Elf<'i>>),
    /// It is no image, or cannot be read as the one that it begins as, for a reason.
    No(Option<Note>),
}

/// A PE image, and what is read of it once.
pub(crate) struct Image<'i> {
    pub(crate) pe: Pe<'i>,
    pub(crate) imports: Imports<'i>,
    certificates: CertificateTable<'i>,
}

impl<'i> Parsed<'i> {
    /// Parses a file, whatever it is.
    pub(crate) fn of(bytes: &'i [u8]) -> Self {
        if Pe::is_pe(bytes) {
            let image = |pe: Pe<'i>| Image { imports: pe.imports(), certificates: pe.certificate_table(), pe };
            Pe::parse(bytes).map_or_else(|e| Self::No(Some(e.into())), |pe| Self::Pe(Box::new(image(pe))))
        } else if Elf::is_elf(bytes) {
            Elf::parse(bytes).map_or_else(|e| Self::No(Some(e.into())), |elf| Self::Elf(Box::new(elf)))
        } else {
            Self::No(None)
        }
    }
}

/// A file that was read. What its digests are needed for is left.
pub(crate) struct Reading<'i> {
    facts: Facts,
    certificates: Vec<Arc<crate::signature::cert::Certificate>>,
    /// the digests asked for, and the form of each
    jobs: Vec<Job<'i>>,
    forms: Vec<DigestForm>,
    /// of a driver
    checksum: Option<CheckSum<'i>>,
    body: Body<'i>,
}

enum Body<'i> {
    Pe(Vec<authenticode::Read<'i>>),
    Module(Box<Detached<'i>>),
    Other,
}

impl<'i> Reading<'i> {
    /// What is known of a file without its signatures.
    pub(crate) fn of(input: &'i Input<'_>, parsed: &Parsed<'i>) -> Self {
        let bytes = input.bytes();
        let mut facts = Facts::new(bytes.len(), FileKind::Flat);
        let mut checksum = None;
        facts.compression = input.compression.map(str::to_owned);
        facts.notes.extend(input.notes.iter().cloned());
        match parsed {
            Parsed::Pe(image) => {
                let Image { pe, imports, certificates } = &**image;
                facts.kind = pe.kind();
                facts.image = Some(pe.facts());
                facts.notes.extend_from_slice(pe.notes());
                facts.notes.extend(pe.sbat().and_then(Result::err));
                facts.notes.extend(pe.lint(imports));
                facts.notes.extend_from_slice(&certificates.notes);
                // the kernel is the only one that looks at it, and it takes a pass over the whole file
                checksum = (pe.kind() == FileKind::PeDriver).then(|| pe.checksum());
            }
            Parsed::Elf(elf) => {
                facts.kind = elf.kind();
                facts.image = Some(elf.facts());
                facts.notes.extend(elf.notes());
                facts.notes.extend(elf.lint());
            }
            Parsed::No(reason) => {
                if Elf::is_elf(bytes) {
                    facts.kind = FileKind::ElfOther;
                } else if reason.as_ref().is_some_and(|note| note.code != Code::InputNotImage) {
                    // a DOS program is no image at all, whatever its first two bytes
                    facts.kind = FileKind::PeUser;
                }
                facts.notes.extend(reason.clone());
            }
        }
        if bytes.is_empty() {
            facts.notes.push(Note::new(Code::InputEmpty, ""));
        }
        Self { facts, certificates: Vec::new(), jobs: Vec::new(), forms: Vec::new(), checksum, body: Body::Other }
    }

    /// The digests that were asked for, and those of `further`, calculated in the same pass. `step` is called beside it ([`digest_jobs_beside`]).
    pub(crate) fn digests(&mut self, further: Vec<Job<'i>>, mut step: impl FnMut()) -> (Vec<Digest>, Vec<Digest>) {
        let mut jobs = core::mem::take(&mut self.jobs);
        jobs.extend(further);
        let (mut turn, sum) = (false, &mut self.checksum);
        let mut digests = digest_jobs_beside(&jobs, || {
            turn = !turn;
            match sum {
                Some(sum) if turn => sum.step(),
                _ => step(),
            }
        });
        let others = digests.split_off(self.forms.len());
        (digests, others)
    }

    /// What was found so far.
    pub(crate) fn notes(&self) -> &[Note] {
        &self.facts.notes
    }

    /// Asks for an image's digest, once, if it has one of this form.
    fn want_of(&mut self, pe: &Pe<'i>, form: DigestForm, alg: DigestAlg) {
        if let Some(pieces) = pe.hash_pieces(form) {
            self.want(form, alg, pieces);
        }
    }

    /// Asks for a digest, once.
    fn want(&mut self, form: DigestForm, alg: DigestAlg, pieces: Vec<&'i [u8]>) {
        let known = self.jobs.iter().zip(&self.forms).any(|(job, f)| job.alg == alg && *f == form);
        if !known {
            self.forms.push(form);
            self.jobs.push(Job { alg, pieces });
        }
    }
}

fn coverage(d: FormDigest) -> crate::facts::Coverage {
    crate::facts::Coverage { form: d.form, signed: d.digest, calculated: Some(d.digest) }
}

/// Certificate indexes of another list, as this list has them.
fn remap(signature: &mut Signature, place: &[usize]) {
    let moved = |index: &mut usize| *index = place.get(*index).copied().unwrap_or(usize::MAX);
    signature.certificates.iter_mut().for_each(moved);
    signature.signer.iter_mut().filter_map(|s| s.certificate.as_mut()).for_each(moved);
    for timestamp in &mut signature.timestamps {
        timestamp.certificates.iter_mut().for_each(moved);
        timestamp.signer.iter_mut().filter_map(|s| s.certificate.as_mut()).for_each(moved);
    }
}
