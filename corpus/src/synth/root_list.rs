//! The list of a root programme, as Microsoft publishes it (`authroot.stl`): a signed certificate trust list whose subjects are root certificates
//! with properties (wincrypt.h `CERT_*_PROP_ID`; signify reads the same structure).

use der::{asn1::UtcTime, oid::ObjectIdentifier};
use hvci_engine::{digest::DigestAlg, time::UnixTime};
use x509_cert::Certificate;

use super::{
    Result,
    certificate::{instant, since_epoch},
    der::Node,
    key::hash,
    oid,
    signed_data::Signing,
};
use ::der::Encode;

/// A root and what the list says of it.
#[derive(Clone, Debug)]
pub struct Entry {
    certificate: Vec<u8>,
    properties: Vec<(ObjectIdentifier, Vec<u8>)>,
}

impl Entry {
    /// A root without limits.
    ///
    /// # Errors
    /// None that occurs.
    pub fn of(certificate: &Certificate) -> Result<Self> {
        let der = certificate.to_der()?;
        let name = "A root".encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        let properties = vec![(oid::PROP_AUTH_ROOT_SHA256, hash(DigestAlg::Sha256, &der)), (oid::PROP_FRIENDLY_NAME, name)];
        Ok(Self { certificate: der, properties })
    }

    /// With the property `kind` of these octets.
    #[must_use]
    pub fn with(mut self, kind: ObjectIdentifier, octets: Vec<u8>) -> Self {
        self.properties.push((kind, octets));
        self
    }

    /// With the property `kind`, a list of usages.
    #[must_use]
    pub fn usages(self, kind: ObjectIdentifier, usages: &[ObjectIdentifier]) -> Self {
        self.with(kind, Node::sequence(usages.iter().map(|u| Node::oid(*u)).collect()).encode())
    }

    /// With the property `kind`, midnight of a date as FILETIME.
    ///
    /// # Errors
    /// No date.
    pub fn date(self, kind: ObjectIdentifier, date: &str) -> Result<Self> {
        let since_1601 = (instant(date)?.0 + 11_644_473_600) * 10_000_000;
        Ok(self.with(kind, since_1601.to_le_bytes().to_vec()))
    }

    fn node(&self) -> Node {
        let attribute = |(kind, octets): &(ObjectIdentifier, Vec<u8>)| {
            Node::sequence(vec![Node::oid(*kind), Node::set(vec![Node::octets(octets.clone())])])
        };
        let attributes = self.properties.iter().map(attribute).collect();
        Node::sequence(vec![Node::octets(hash(DigestAlg::Sha1, &self.certificate)), Node::set(attributes)])
    }
}

/// A list of `entries` for `usage`, made and signed at `time`.
///
/// # Errors
/// A key that cannot sign so.
pub fn root_list(entries: &[Entry], usage: ObjectIdentifier, time: UnixTime, signing: &Signing<'_>) -> Result<Vec<u8>> {
    let list = Node::sequence(vec![
        Node::sequence(vec![Node::oid(usage)]),
        Node::integer(0x1401),
        Node::parse(&UtcTime::from_unix_duration(since_epoch(time))?.to_der()?)?,
        Node::algorithm(oid::SHA1),
        Node::sequence(entries.iter().map(Entry::node).collect()),
    ]);
    signing.attached(oid::CTL, &list)
}
