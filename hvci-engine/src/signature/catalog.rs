//! Security catalogs: a signed certificate trust list (szOID_CTL) whose subjects are the digests of files.
//!
//! A member is named by its tag, the digest itself (v2: raw octets, v1: hexadecimal as UTF-16LE), and usually carries an
//! SpcIndirectDataContent with the digest and its algorithm; bare SHA-1 twins of SHA-256 members have the tag alone. Both are indexed.
//! Nothing read here counts unless the catalog's own signature does.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::{collections::HashMap, sync::Arc};

use super::{
    authenticode::{IndirectData, read_signed_data},
    cache::Cache,
    cert::Certificate,
    cms::{Pool, SignedData},
};
use crate::{
    bytes::{
        Span,
        der::{DerErrorKind, Reader, Result, Tlv, tag},
    },
    digest::{Digest, DigestAlg},
    facts::{Signature, Source},
    finding::{Code, Note},
    oid,
};

/// How many members of one catalog are read: the largest real ones have some ten thousand.
const MAX_MEMBERS: usize = 1_000_000;

/// A read catalog: its own signature, and what it lists.
#[derive(Debug)]
pub struct Catalog {
    /// The catalog's signature; certificates are indexes into [`Catalog::certificates`].
    pub signature: Signature,
    /// Certificates it carries.
    pub certificates: Vec<Arc<Certificate>>,
    /// What it lists.
    pub members: Vec<Member>,
}

/// A file that a catalog lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The member's name in the catalog, as text.
    pub tag: String,
    /// The file's digest: an authentihash for images, of the whole file for others.
    pub digest: Digest,
    /// Whether it is an authentihash; `None` when the catalog does not say (members without SpcIndirectDataContent).
    pub is_image: Option<bool>,
}

impl Catalog {
    /// Whether `bytes` begin as a catalog does. Cheap: looks at the first elements only.
    pub fn is_catalog(bytes: &[u8]) -> bool {
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

    /// Reads a catalog.
    ///
    /// # Errors
    /// A note that says why it is none.
    pub fn read(bytes: &[u8], cache: &Cache) -> core::result::Result<Self, Note> {
        let whole = Span::new(0, bytes.len());
        let malformed = |e: crate::bytes::der::DerError| Note::new(Code::SigMalformed, format!("catalog: {e}")).at(whole);
        let data = SignedData::parse(bytes, 0).map_err(malformed)?;
        if data.content_type != oid::CTL {
            return Err(
                Note::new(Code::SigContentType, format!("content is {}, not a certificate trust list", data.content_type)).at(whole)
            );
        }
        let mut pool = Pool::new(cache);
        let mut signature = Signature::new(Source::CatalogItself, Some(data.whole.span()));
        let ctl = data.content.ok_or_else(|| Note::new(Code::SigMalformed, "catalog without content").at(whole))?;
        let members = read_members(ctl).map_err(malformed)?;
        read_signed_data(&data, &mut signature, &mut pool);
        let behind = bytes.len().saturating_sub(data.whole.raw.len());
        if behind > 0 {
            let detail = format!("{behind} bytes behind the catalog's signature");
            signature.notes.push(Note::new(Code::SigPadding, detail).at(Span::new(data.whole.raw.len(), behind)));
        }
        Ok(Self { signature, certificates: pool.list, members })
    }
}

/// CertificateTrustList (Microsoft, MS-CAESO and wincrypt.h): version and lists before the subjects are skipped by their types.
fn read_members(ctl: Tlv<'_>) -> Result<Vec<Member>> {
    let mut reader = ctl.expect(tag::SEQUENCE)?.reader()?;
    reader.optional(tag::INTEGER)?;
    let mut usage = reader.expect(tag::SEQUENCE)?.reader()?;
    let purpose = usage.next()?;
    if purpose.oid()? != oid::CATALOG_LIST {
        return Err(purpose.error(DerErrorKind::Value));
    }
    reader.optional(tag::OCTET_STRING)?;
    reader.optional(tag::INTEGER)?;
    reader.next()?.time()?;
    if matches!(reader.peek_tag(), Some(tag::UTC_TIME | tag::GENERALIZED_TIME)) {
        reader.next()?;
    }
    let algorithm = reader.expect(tag::SEQUENCE)?;
    let raw_tags = algorithm.reader()?.next()?.oid()? == oid::CATALOG_MEMBER_V2;

    let mut members = Vec::new();
    let Some(subjects) = reader.optional(tag::SEQUENCE)? else { return Ok(members) };
    let mut subjects = subjects.reader()?;
    while !subjects.is_empty() {
        let subject = subjects.expect(tag::SEQUENCE)?;
        if members.len() >= MAX_MEMBERS {
            return Err(subject.error(DerErrorKind::TooDeep));
        }
        read_member(subject, raw_tags, &mut members)?;
    }
    Ok(members)
}

/// TrustedSubject ::= SEQUENCE { subjectIdentifier OCTET STRING, subjectAttributes SET OF Attribute }
fn read_member(subject: Tlv<'_>, raw_tags: bool, members: &mut Vec<Member>) -> Result<()> {
    let mut reader = subject.reader()?;
    let identifier = reader.expect(tag::OCTET_STRING)?;
    let tag_digest = if raw_tags { tag_as_digest(identifier.content) } else { None }.or_else(|| text_tag(identifier.content).1);
    let name = if raw_tags { hex::encode(identifier.content) } else { text_tag(identifier.content).0 };

    let mut stated = None;
    if let Some(attributes) = reader.optional(tag::SET)? {
        let mut attributes = attributes.reader()?;
        while !attributes.is_empty() {
            let mut attribute = attributes.expect(tag::SEQUENCE)?.reader()?;
            if attribute.next()?.oid().ok() == Some(oid::SPC_INDIRECT_DATA) {
                let content = IndirectData::parse(attribute.expect(tag::SET)?.reader()?.next()?)?;
                stated = content.digest.map(|d| (d, content.is_image()));
            }
        }
    }
    if let Some((digest, is_image)) = stated {
        members.push(Member { tag: name.clone(), digest, is_image: Some(is_image) });
    }
    if let Some(digest) = tag_digest.filter(|d| stated.is_none_or(|(s, _)| s != *d)) {
        members.push(Member { tag: name, digest, is_image: stated.map(|(_, is_image)| is_image) });
    }
    Ok(())
}

/// A v1 tag as text, and as the digest that it usually is in hexadecimal.
fn text_tag(raw: &[u8]) -> (String, Option<Digest>) {
    let units: Vec<u16> = raw.chunks_exact(2).filter_map(|c| Some(u16::from_le_bytes(c.try_into().ok()?))).collect();
    let text = String::from_utf16_lossy(&units).trim_end_matches('\0').to_owned();
    let digest = hex::decode(&text).ok().and_then(|octets| tag_as_digest(&octets));
    (text, digest)
}

fn tag_as_digest(octets: &[u8]) -> Option<Digest> {
    // a length names the algorithm among those that catalogs use
    [DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha384, DigestAlg::Sha512]
        .into_iter()
        .find(|alg| alg.len() == octets.len())
        .and_then(|alg| Digest::new(alg, octets))
}

/// Which catalogs list which digest, over any number of catalogs.
#[derive(Debug, Default)]
pub struct CatalogIndex {
    catalogs: Vec<(String, Catalog)>,
    by_digest: HashMap<Digest, Vec<(usize, usize)>>,
    algorithms: Vec<DigestAlg>,
}

/// A catalog that lists a digest.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// The catalog's name, as given to [`CatalogIndex::add`].
    pub name: &'a str,
    /// The catalog.
    pub catalog: &'a Catalog,
    /// The member.
    pub member: &'a Member,
}

impl CatalogIndex {
    /// Adds a catalog under `name`.
    pub fn add(&mut self, name: impl Into<String>, catalog: Catalog) {
        let position = self.catalogs.len();
        for (index, member) in catalog.members.iter().enumerate() {
            self.by_digest.entry(member.digest).or_default().push((position, index));
            if !self.algorithms.contains(&member.digest.alg()) {
                self.algorithms.push(member.digest.alg());
            }
        }
        self.catalogs.push((name.into(), catalog));
    }

    /// Whether there is no catalog in it.
    pub fn is_empty(&self) -> bool {
        self.catalogs.is_empty()
    }

    /// How many catalogs.
    pub fn len(&self) -> usize {
        self.catalogs.len()
    }

    /// The algorithms of the digests in it: those that a file must be hashed with to be found.
    pub fn algorithms(&self) -> &[DigestAlg] {
        &self.algorithms
    }

    /// Every catalog that lists `digest`, as an authentihash if `is_image`, otherwise as the digest of a whole file.
    pub fn lookup<'a>(&'a self, digest: &Digest, is_image: bool) -> impl Iterator<Item = Listed<'a>> + use<'a> {
        self.by_digest.get(digest).into_iter().flatten().filter_map(move |(position, index)| {
            let (name, catalog) = self.catalogs.get(*position)?;
            let member = catalog.members.get(*index)?;
            member.is_image.is_none_or(|i| i == is_image).then_some(Listed { name, catalog, member })
        })
    }
}
