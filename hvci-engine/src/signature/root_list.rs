//! The list of the Windows root programme (`authroot.stl`): a certificate trust list for szOID_ROOT_LIST_SIGNER whose subjects are root
//! certificates, each with what it is still trusted for.
//!
//! A subject is named by the SHA-1 of the certificate. Its attributes are certificate properties, 1.3.6.1.4.1.311.10.11.N with N from wincrypt.h
//! (`CERT_*_PROP_ID`); each value is an OCTET STRING around the property. What they mean is known from Microsoft's "Deprecation definitions"
//! (learn.microsoft.com, security/trusted-root/deprecation) and from signify's `docs/authroot.rst`; Microsoft describes the encoding nowhere.
//! Read here:
//!
//! | N | property | |
//! |---|---|---|
//! | 9 | ENHKEY_USAGE | the only usages it is trusted for |
//! | 98 | AUTH_ROOT_SHA256_HASH | SHA-256 of the certificate |
//! | 104 | DISALLOWED_FILETIME | "Disable": signatures made from then on are not trusted |
//! | 122 | DISALLOWED_ENHKEY_USAGE | "EKU removal": usages it is not trusted for, whenever signed |
//! | 126 | NOT_BEFORE_FILETIME | "NotBefore": certificates issued from then on are not trusted |
//! | 127 | NOT_BEFORE_ENHKEY_USAGE | for which usages that is so; for all without it |
//!
//! **An empty FILETIME is no date.** A property is taken back by an empty value: that of 104 stands on VeriSign's G5 root, whose disabling of
//! August 2023 Microsoft reverted within days. A date of zero is 1601, so everything is later. 127 without 126 limits nothing, as there is no date.
//! signify reads 122 beside 104 as the usages that 104 is for; then roots whose disabling Microsoft announced would be disabled for OCSP alone.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::{collections::HashMap, sync::Arc};

use super::{
    cache::Cache,
    cert::Certificate,
    ctl::{self, SignedCtl, Subject},
    trust::Limits,
};
use crate::{
    bytes::der::{DerErrorKind, Result, Tlv, tag},
    digest::{Digest, DigestAlg},
    facts::Signature,
    finding::Note,
    oid::{self, Oid},
    time::UnixTime,
};

/// A read list. It limits nothing until [`policy::limit_anchors`](crate::policy::limit_anchors) has found its signer trusted.
#[derive(Debug)]
pub struct RootList {
    /// The list's signature; certificates are indexes into [`RootList::certificates`].
    pub signature: Signature,
    /// Certificates it carries.
    pub certificates: Vec<Arc<Certificate>>,
    /// When it was made, by its own account.
    pub this_update: UnixTime,
    /// What it says of roots, by the SHA-256 of the certificate, or its SHA-1 where the list has no other.
    pub entries: HashMap<Digest, Limits>,
}

impl RootList {
    /// Reads a list.
    ///
    /// # Errors
    /// A note that says why it is none. A list of disallowed certificates (szOID_DISALLOWED_LIST) is another kind of list, and a property that
    /// cannot be read makes all of it unreadable: a limit must not get lost.
    pub fn read(bytes: &[u8], cache: &Cache) -> core::result::Result<Self, Note> {
        let what = "list of root certificates";
        let SignedCtl { ctl, signature, certificates } = SignedCtl::read(bytes, what, oid::EKU_ROOT_LIST_SIGNER, cache)?;
        let mut entries = HashMap::new();
        ctl.for_each(|subject| {
            let (root, limits) = read_entry(subject)?;
            entries.insert(root, limits);
            Ok(())
        })
        .map_err(|e| ctl::malformed(what, &e, bytes))?;
        Ok(Self { signature, certificates, this_update: ctl.this_update, entries })
    }
}

fn read_entry(subject: Subject<'_>) -> Result<(Digest, Limits)> {
    let odd = || subject.tlv.error(DerErrorKind::Value);
    let mut root = Digest::new(DigestAlg::Sha1, subject.identifier);
    let mut limits = Limits::default();
    subject.for_each_attribute(|kind, value| {
        let octets = || value()?.expect(tag::OCTET_STRING);
        match kind {
            Some(oid::PROP_AUTH_ROOT_SHA256) => root = Some(Digest::new(DigestAlg::Sha256, octets()?.content).ok_or_else(odd)?),
            Some(oid::PROP_ENHKEY_USAGE) => limits.usages = Some(usages(octets()?)?),
            Some(oid::PROP_DISALLOWED_ENHKEY_USAGE) => limits.refused_usages = usages(octets()?)?,
            Some(oid::PROP_DISALLOWED_FILETIME) => limits.disallowed_since = filetime(octets()?)?,
            Some(oid::PROP_NOT_BEFORE_FILETIME) => limits.not_before = filetime(octets()?)?,
            Some(oid::PROP_NOT_BEFORE_ENHKEY_USAGE) => limits.not_before_usages = Some(usages(octets()?)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok((root.ok_or_else(odd)?, limits))
}

/// ExtKeyUsageSyntax (RFC 5280 §4.2.1.12) in an OCTET STRING.
fn usages(value: Tlv<'_>) -> Result<Vec<Oid>> {
    let mut reader = Tlv::parse_exact(value.content, value.content_offset)?.expect(tag::SEQUENCE)?.reader()?;
    let mut list = Vec::new();
    while !reader.is_empty() {
        list.push(reader.next()?.oid()?);
    }
    Ok(list)
}

/// FILETIME, little-endian; `None` for an empty value.
fn filetime(value: Tlv<'_>) -> Result<Option<UnixTime>> {
    if value.content.is_empty() {
        return Ok(None);
    }
    let octets = value.content.try_into().map_err(|_| value.error(DerErrorKind::Value))?;
    Ok(Some(UnixTime::from_filetime(u64::from_le_bytes(octets))))
}
