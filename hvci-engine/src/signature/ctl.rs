//! Certificate trust lists (szOID_CTL): what security catalogs and the list of the Windows root programme have in common (MS-CAESO; wincrypt.h
//! `CTL_INFO`).
//!
//! ```text
//! CertificateTrustList ::= SEQUENCE {
//!   version CTLVersion DEFAULT v1, subjectUsage EnhancedKeyUsage, listIdentifier OCTET STRING OPTIONAL, sequenceNumber INTEGER OPTIONAL,
//!   ctlThisUpdate Time, ctlNextUpdate Time OPTIONAL, subjectAlgorithm AlgorithmIdentifier,
//!   trustedSubjects SEQUENCE OF TrustedSubject OPTIONAL, ctlExtensions [0] EXPLICIT Extensions OPTIONAL }
//! TrustedSubject ::= SEQUENCE { subjectIdentifier OCTET STRING, subjectAttributes SET OF Attribute OPTIONAL }
//! ```
//!
//! What the subjects mean is said by subjectUsage and left to the caller. Extensions are not looked at: the lists that are read have only the
//! template's name and dates in them. Nothing read here counts unless the list's signature does.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::sync::Arc;

use super::{
    authenticode::read_signed_data,
    cache::Cache,
    cert::Certificate,
    cms::{Pool, SignedData},
};
use crate::{
    bytes::{
        Span,
        der::{DerError, DerErrorKind, Reader, Result, Tlv, tag},
    },
    facts::{Signature, Source},
    finding::{Code, Note},
    oid::{self, Oid},
    time::UnixTime,
};

/// How many subjects of one list are read: the largest real catalogs have some ten thousand.
const MAX_SUBJECTS: usize = 1_000_000;

/// Whether `bytes` begin as a signed list does. Cheap: looks at the first elements only.
pub(super) fn is_ctl(bytes: &[u8]) -> bool {
    let begin = || -> Result<bool> {
        let mut outer = Reader::new(bytes, 0).expect(tag::SEQUENCE)?.reader()?;
        if outer.next()?.oid()? != oid::SIGNED_DATA {
            return Ok(false);
        }
        let mut data = outer.next()?.reader()?.next()?.reader()?;
        data.expect(tag::INTEGER)?;
        data.expect(tag::SET)?;
        Ok(data.expect(tag::SEQUENCE)?.reader()?.next()?.oid()? == oid::CTL)
    };
    begin().unwrap_or(false)
}

/// A list and the signature on it, of which only the arithmetic is known.
pub(super) struct SignedCtl<'a> {
    pub(super) ctl: Ctl<'a>,
    /// Certificates are indexes into `certificates`.
    pub(super) signature: Signature,
    pub(super) certificates: Vec<Arc<Certificate>>,
}

impl<'a> SignedCtl<'a> {
    /// Reads a list whose subjectUsage is `usage`; `what` it is to be is named in errors.
    pub(super) fn read(bytes: &'a [u8], what: &str, usage: Oid, cache: &Cache) -> core::result::Result<Self, Note> {
        let whole = Span::new(0, bytes.len());
        let data = SignedData::parse(bytes, 0).map_err(|e| malformed(what, &e, bytes))?;
        if data.content_type != oid::CTL {
            let detail = format!("content is {}, not a certificate trust list", data.content_type);
            return Err(Note::new(Code::SigContentType, detail).at(whole));
        }
        let content = data.content.ok_or_else(|| Note::new(Code::SigMalformed, format!("{what} without content")).at(whole))?;
        let ctl = Ctl::parse(content).map_err(|e| malformed(what, &e, bytes))?;
        if ctl.usage != usage {
            let stated = oid::name(&ctl.usage).map_or_else(|| ctl.usage.to_string(), str::to_owned);
            let detail = format!("a certificate trust list for {stated}, not a {what}");
            return Err(Note::new(Code::SigContentType, detail).at(whole));
        }
        let mut pool = Pool::new(cache);
        let mut signature = Signature::new(Source::CatalogItself, Some(data.whole.span()));
        read_signed_data(&data, &mut signature, &mut pool);
        let behind = bytes.len().saturating_sub(data.whole.raw.len());
        if behind > 0 {
            let detail = format!("{behind} bytes behind the {what}'s signature");
            signature.notes.push(Note::new(Code::SigPadding, detail).at(Span::new(data.whole.raw.len(), behind)));
        }
        Ok(Self { ctl, signature, certificates: pool.list })
    }
}

/// That the list cannot be read.
pub(super) fn malformed(what: &str, error: &DerError, bytes: &[u8]) -> Note {
    Note::new(Code::SigMalformed, format!("{what}: {error}")).at(Span::new(0, bytes.len()))
}

/// The list itself.
pub(super) struct Ctl<'a> {
    /// What it is for: the first of subjectUsage.
    usage: Oid,
    /// When it was made, by its own account.
    pub(super) this_update: UnixTime,
    /// What identifies a subject.
    pub(super) subject_algorithm: Oid,
    subjects: Option<Tlv<'a>>,
}

impl<'a> Ctl<'a> {
    /// Lists and numbers before the subjects are told apart by their types.
    fn parse(content: Tlv<'a>) -> Result<Self> {
        let mut reader = content.expect(tag::SEQUENCE)?.reader()?;
        reader.optional(tag::INTEGER)?;
        let usage = reader.expect(tag::SEQUENCE)?.reader()?.next()?.oid()?;
        reader.optional(tag::OCTET_STRING)?;
        reader.optional(tag::INTEGER)?;
        let this_update = reader.next()?.time()?;
        if matches!(reader.peek_tag(), Some(tag::UTC_TIME | tag::GENERALIZED_TIME)) {
            reader.next()?;
        }
        let subject_algorithm = reader.expect(tag::SEQUENCE)?.reader()?.next()?.oid()?;
        let subjects = reader.optional(tag::SEQUENCE)?;
        Ok(Self { usage, this_update, subject_algorithm, subjects })
    }

    /// Hands every subject to `take`, in order, until it fails.
    pub(super) fn for_each(&self, mut take: impl FnMut(Subject<'a>) -> Result<()>) -> Result<()> {
        let Some(subjects) = self.subjects else { return Ok(()) };
        let mut subjects = subjects.reader()?;
        let mut left = MAX_SUBJECTS;
        while !subjects.is_empty() {
            let tlv = subjects.expect(tag::SEQUENCE)?;
            left = left.checked_sub(1).ok_or_else(|| tlv.error(DerErrorKind::TooDeep))?;
            let mut reader = tlv.reader()?;
            let identifier = reader.expect(tag::OCTET_STRING)?.content;
            take(Subject { tlv, identifier, attributes: reader.optional(tag::SET)? })?;
        }
        Ok(())
    }
}

/// What a list lists.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    /// All of it, for errors.
    pub(super) tlv: Tlv<'a>,
    /// Its name: a digest, or text.
    pub(super) identifier: &'a [u8],
    attributes: Option<Tlv<'a>>,
}

impl<'a> Subject<'a> {
    /// Hands every attribute to `take` until it fails: its type, `None` for one too long to be known, and how to get its first value.
    pub(super) fn for_each_attribute(&self, mut take: impl FnMut(Option<Oid>, &dyn Fn() -> Result<Tlv<'a>>) -> Result<()>) -> Result<()> {
        let Some(attributes) = self.attributes else { return Ok(()) };
        let mut attributes = attributes.reader()?;
        while !attributes.is_empty() {
            let mut attribute = attributes.expect(tag::SEQUENCE)?.reader()?;
            let kind = attribute.next()?.oid().ok();
            take(kind, &|| attribute.clone().expect(tag::SET)?.reader()?.next())?;
        }
        Ok(())
    }
}
