//! Security catalogs: a signed certificate trust list whose subjects are digests of files (wincrypt.h `CTL_INFO`, mscat.h; relic and
//! signify read the same structure).

use der::asn1::UtcTime;
use hvci_engine::{digest::DigestAlg, time::UnixTime};

use super::{
    Result,
    authenticode::{indirect_data, utf16_be},
    certificate::since_epoch,
    der::Node,
    key::hash,
    layout::authentihash,
    oid,
    signed_data::Signing,
};
use ::der::Encode;

/// How members are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tags {
    /// Version 1: hexadecimal as UTF-16LE.
    Text,
    /// Version 2: the digest itself.
    Raw,
}

/// A file to be listed.
#[derive(Clone, Debug)]
pub struct Member {
    digest: Vec<u8>,
    alg: DigestAlg,
    image: bool,
    bare: bool,
}

impl Member {
    /// An image, by its authentihash over the file with zeros up to a multiple of 8.
    ///
    /// # Errors
    /// No PE image.
    pub fn image(bytes: &[u8], alg: DigestAlg) -> Result<Self> {
        let mut padded = bytes.to_vec();
        super::authenticode::pad(&mut padded);
        Ok(Self { digest: authentihash(&padded, alg)?, alg, image: true, bare: false })
    }

    /// Any file, by the digest of all of it.
    pub fn flat(bytes: &[u8], alg: DigestAlg) -> Self {
        Self { digest: hash(alg, bytes), alg, image: false, bare: false }
    }

    /// The same with a tag and nothing else, as the SHA-1 twins of SHA-256 members have.
    #[must_use]
    pub fn bare(self) -> Self {
        Self { bare: true, ..self }
    }

    fn node(&self, tags: Tags) -> Node {
        let tag = match tags {
            Tags::Raw => self.digest.clone(),
            Tags::Text => hex::encode_upper(&self.digest).encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect(),
        };
        let obsolete = Node::context(2, vec![Node::primitive(0x80, utf16_be("<<<Obsolete>>>"))]);
        let (kind, value) = if self.image {
            (oid::SPC_PE_IMAGE_DATA, Node::sequence(vec![Node::primitive(0x03, [0]), Node::context(0, vec![obsolete])]))
        } else {
            (oid::SPC_CAB_DATA, obsolete)
        };
        // the class of the program that knows how to hash such a file
        let class = if self.image { "{C689AAB8-8E78-11D0-8C47-00C04FC295EE}" } else { "{DE351A42-8E59-11D0-8C47-00C04FC295EE}" };
        let info = Node::sequence(vec![Node::primitive(0x1E, utf16_be(class)), Node::integer(0x200)]);
        // which Windows versions it is for, as inf2cat writes
        let versions = "2:10.0".encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let os = Node::sequence(vec![Node::primitive(0x1E, utf16_be("OSAttr")), Node::integer(0x1001_0001), Node::octets(versions)]);
        let attributes = vec![
            Node::sequence(vec![Node::oid(oid::CATALOG_NAME_VALUE), Node::set(vec![os])]),
            Node::sequence(vec![Node::oid(oid::CATALOG_MEMBER_INFO), Node::set(vec![info])]),
            Node::sequence(vec![Node::oid(oid::SPC_INDIRECT_DATA), Node::set(vec![indirect_data(kind, value, self.alg, &self.digest)])]),
        ];
        let attributes = Node::set(if self.bare { Vec::new() } else { attributes });
        Node::sequence(vec![Node::octets(tag), attributes])
    }
}

/// A catalog that lists `members`, signed.
///
/// # Errors
/// A key that cannot sign so.
pub fn catalog(members: &[Member], tags: Tags, time: UnixTime, signing: &Signing<'_>) -> Result<Vec<u8>> {
    let kind = if tags == Tags::Raw { oid::CATALOG_MEMBER_V2 } else { oid::CATALOG_MEMBER };
    let identifier: Vec<u8> = members.iter().flat_map(|m| m.digest.clone()).collect();
    let list = Node::sequence(vec![
        Node::sequence(vec![Node::oid(oid::CATALOG_LIST)]),
        Node::octets(&hash(DigestAlg::Md5, &identifier)[..]),
        Node::parse(&UtcTime::from_unix_duration(since_epoch(time))?.to_der()?)?,
        Node::algorithm(kind),
        Node::sequence(members.iter().map(|m| m.node(tags)).collect()),
    ]);
    signing.attached(oid::CTL, &list)
}
