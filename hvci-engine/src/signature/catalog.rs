//! Security catalogs: a signed certificate trust list (szOID_CTL) whose subjects are the digests of files.
//!
//! A member is named by its tag, the digest itself (v2: raw octets, v1: hexadecimal as UTF-16LE), and usually carries an
//! SpcIndirectDataContent with the digest and its algorithm; bare SHA-1 twins of SHA-256 members have the tag alone. Both are indexed.
//! Nothing read here counts unless the catalog's own signature does.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::{collections::HashMap, sync::Arc};

use super::{
    authenticode::IndirectData,
    cache::Cache,
    cert::Certificate,
    ctl::{self, SignedCtl, Subject},
};
use crate::{
    bytes::der::Result,
    digest::{Digest, DigestAlg},
    facts::Signature,
    finding::Note,
    oid,
};

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
        ctl::is_ctl(bytes)
    }

    /// Reads a catalog.
    ///
    /// # Errors
    /// A note that says why it is none.
    pub fn read(bytes: &[u8], cache: &Cache) -> core::result::Result<Self, Note> {
        let SignedCtl { ctl, signature, certificates } = SignedCtl::read(bytes, "catalog", oid::CATALOG_LIST, cache)?;
        let raw_tags = ctl.subject_algorithm == oid::CATALOG_MEMBER_V2;
        let mut members = Vec::new();
        ctl.for_each(|subject| read_member(subject, raw_tags, &mut members)).map_err(|e| ctl::malformed("catalog", &e, bytes))?;
        Ok(Self { signature, certificates, members })
    }
}

fn read_member(subject: Subject<'_>, raw_tags: bool, members: &mut Vec<Member>) -> Result<()> {
    let identifier = subject.identifier;
    let tag_digest = if raw_tags { tag_as_digest(identifier) } else { None }.or_else(|| text_tag(identifier).1);
    let name = if raw_tags { hex::encode(identifier) } else { text_tag(identifier).0 };

    let mut stated = None;
    subject.for_each_attribute(|kind, value| {
        if kind == Some(oid::SPC_INDIRECT_DATA) {
            let content = IndirectData::parse(value()?)?;
            stated = content.digest.map(|d| (d, content.is_image()));
        }
        Ok(())
    })?;
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
