//! Authenticode signatures on PE images and the certificate table that holds them (Microsoft, "Windows Authenticode Portable Executable
//! Signature Format", 2008; PE format specification, "The Attribute Certificate Table").

use der::oid::ObjectIdentifier;
use hvci_engine::digest::DigestAlg;
use x509_cert::attr::Attribute;

use super::{
    Error, Result,
    certificate::Identity,
    der::Node,
    key::digest_oid,
    layout::{Layout, authentihash, checksum, read32, section_sum, to_u32, write32},
    oid,
    signed_data::{Signing, any, attribute},
};

/// Class identifier of a serialised page-hash table.
const PAGE_HASH_CLASS: [u8; 16] = [0xa6, 0xb5, 0x86, 0xd5, 0xb4, 0xa1, 0x24, 0x66, 0xae, 0x05, 0xa2, 0x17, 0xda, 0x8e, 0x60, 0xd6];

/// An Authenticode signature to be made.
#[derive(Clone, Debug)]
pub struct Authenticode<'a> {
    /// By whom and how.
    pub signing: Signing<'a>,
    /// Digest of the image, where it is not that of the signature.
    pub image_digest: Option<DigestAlg>,
    /// Whether the image digest is the section sum and not the linear one.
    pub section_sum: bool,
    /// A page-hash table, SHA-1 for version 1, SHA-256 for version 2: usually what [`super::layout::page_hashes`] makes.
    pub page_hashes: Option<(DigestAlg, Vec<u8>)>,
    /// Type of the SpcAttributeTypeAndOptionalValue.
    pub spc_type: ObjectIdentifier,
    /// Program name and link of SpcSpOpusInfo.
    pub opus: Option<(&'a str, &'a str)>,
    /// Whether the content stands in an OCTET STRING, as CMS has it and PKCS#7 does not.
    pub octets: bool,
    /// Levels of the outermost elements that get indefinite lengths; 0 for DER.
    pub indefinite: usize,
}

impl<'a> Authenticode<'a> {
    /// The usual way, by `signing`.
    pub fn new(signing: Signing<'a>) -> Self {
        Self {
            signing,
            image_digest: None,
            section_sum: false,
            page_hashes: None,
            spc_type: oid::SPC_PE_IMAGE_DATA,
            opus: None,
            octets: false,
            indefinite: 0,
        }
    }

    /// The PKCS#7 over `image`, which gets zeros up to a multiple of 8, as it will have in front of its certificate table.
    ///
    /// # Errors
    /// No PE image, a key that cannot sign so.
    pub fn sign(&self, image: &[u8]) -> Result<Vec<u8>> {
        let mut image = image.to_vec();
        pad(&mut image);
        let file = match &self.page_hashes {
            Some((alg, table)) => {
                let kind = if *alg == DigestAlg::Sha1 { oid::SPC_PAGE_HASHES_V1 } else { oid::SPC_PAGE_HASHES_V2 };
                let table = Node::set(vec![Node::octets(table.clone())]);
                let serialised = Node::set(vec![Node::sequence(vec![Node::oid(kind), table])]);
                Node::context(1, vec![Node::octets(PAGE_HASH_CLASS), Node::octets(serialised.encode())])
            }
            None => Node::context(2, vec![Node::primitive(0x80, utf16_be("<<<Obsolete>>>"))]),
        };
        let data = Node::sequence(vec![Node::primitive(0x03, [0]), Node::context(0, vec![file])]);
        let alg = self.image_digest.unwrap_or(self.signing.digest);
        let digest = if self.section_sum { section_sum(&image, alg)? } else { authentihash(&image, alg)? };
        let content = indirect_data(self.spc_type, data, alg, &digest);
        let content = if self.octets { Node::octets(content.encode()) } else { content };

        let mut signing = self.signing.clone();
        if let Some(attributes) = &mut signing.attributes {
            attributes.extend(opus_attributes(self.opus)?);
        }
        let blob = signing.attached(oid::SPC_INDIRECT_DATA, &content)?;
        Ok(if self.indefinite == 0 { blob } else { Node::parse(&blob)?.encode_indefinite(self.indefinite) })
    }
}

/// SpcIndirectDataContent ::= SEQUENCE { data SpcAttributeTypeAndOptionalValue, messageDigest DigestInfo }
pub(super) fn indirect_data(kind: ObjectIdentifier, value: Node, alg: DigestAlg, digest: &[u8]) -> Node {
    Node::sequence(vec![
        Node::sequence(vec![Node::oid(kind), value]),
        Node::sequence(vec![Node::algorithm(digest_oid(alg)), Node::octets(digest)]),
    ])
}

/// SpcSpOpusInfo, which signtool always writes, and SpcStatementType.
fn opus_attributes(opus: Option<(&str, &str)>) -> Result<[Attribute; 2]> {
    let info = opus.map_or_else(Vec::new, |(name, link)| {
        vec![Node::context(0, vec![Node::primitive(0x80, utf16_be(name))]), Node::context(1, vec![Node::primitive(0x80, link.as_bytes())])]
    });
    let statement = Node::sequence(vec![Node::oid(oid::SPC_INDIVIDUAL)]);
    Ok([attribute(oid::SPC_SP_OPUS_INFO, vec![any(&Node::sequence(info))?])?, attribute(oid::SPC_STATEMENT_TYPE, vec![any(&statement)?])?])
}

/// A signature as the unsigned attribute of another.
///
/// # Errors
/// Not DER.
pub fn nested(blob: &[u8]) -> Result<Attribute> {
    attribute(oid::NESTED_SIGNATURE, vec![any(&Node::parse(blob)?)?])
}

/// Signs `image` in the usual way.
///
/// # Errors
/// No PE image, a key that cannot sign so.
pub fn signed(image: &[u8], signer: &Identity, issuers: &[x509_cert::Certificate]) -> Result<Vec<u8>> {
    let blob = Authenticode::new(Signing::new(signer, issuers)).sign(image)?;
    Table { entries: vec![Entry::pkcs7(blob)], ..Table::split(image)? }.join()
}

/// An image taken apart at its certificate table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Everything before the table, a multiple of 8.
    pub image: Vec<u8>,
    /// The entries.
    pub entries: Vec<Entry>,
    /// What stands behind the table.
    pub behind: Vec<u8>,
}

/// A WIN_CERTIFICATE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `wRevision`, 0x0200.
    pub revision: u16,
    /// `wCertificateType`, 2 for PKCS#7.
    pub kind: u16,
    /// `bCertificate`, with what stands behind the PKCS#7 up to `dwLength`.
    pub content: Vec<u8>,
}

impl Entry {
    /// A PKCS#7.
    pub fn pkcs7(blob: Vec<u8>) -> Self {
        Self { revision: 0x0200, kind: 2, content: blob }
    }
}

impl Table {
    /// Takes `image` apart.
    ///
    /// # Errors
    /// No PE image, a table that is not well formed.
    pub fn split(image: &[u8]) -> Result<Self> {
        let layout = Layout::of(image)?;
        let range = layout.table(image)?;
        let mut table = Self {
            image: image.get(..range.start).ok_or(Error::NotApplicable("the certificate table is outside the file"))?.to_vec(),
            entries: Vec::new(),
            behind: image.get(range.end..).unwrap_or_default().to_vec(),
        };
        let bytes = image.get(range).ok_or(Error::NotApplicable("the certificate table is outside the file"))?;
        let mut at = 0;
        while at + 8 <= bytes.len() {
            let len = usize::try_from(read32(bytes, at)?).unwrap_or(usize::MAX);
            let entry = bytes.get(at..at.saturating_add(len)).filter(|_| len >= 8).ok_or(Error::NotApplicable("a malformed entry"))?;
            let word = |i: usize| u16::from_le_bytes([entry[i], entry[i + 1]]);
            table.entries.push(Entry { revision: word(4), kind: word(6), content: entry[8..].to_vec() });
            at += len.next_multiple_of(8);
        }
        pad(&mut table.image);
        Ok(table)
    }

    /// Puts the image together: table, its directory, CheckSum.
    ///
    /// # Errors
    /// The image has no directory for the table.
    pub fn join(&self) -> Result<Vec<u8>> {
        let mut image = self.image.clone();
        let directory = Layout::of(&image)?.certificate_directory.ok_or(Error::NotApplicable("no directory for a certificate table"))?;
        let start = image.len();
        for entry in &self.entries {
            image.extend(to_u32(8 + entry.content.len()).to_le_bytes());
            image.extend(entry.revision.to_le_bytes());
            image.extend(entry.kind.to_le_bytes());
            image.extend(&entry.content);
            pad(&mut image);
        }
        let len = image.len() - start;
        write32(&mut image, directory, if len == 0 { 0 } else { to_u32(start) })?;
        write32(&mut image, directory + 4, to_u32(len))?;
        image.extend(&self.behind);
        set_checksum(&mut image)?;
        Ok(image)
    }
}

/// Sets `CheckSum` to that of the image.
///
/// # Errors
/// No PE image.
pub fn set_checksum(image: &mut [u8]) -> Result<()> {
    let value = checksum(image)?;
    write32(image, Layout::of(image)?.checksum, value)
}

/// Zeros up to a multiple of 8, where a certificate table may start.
pub(super) fn pad(image: &mut Vec<u8>) {
    image.resize(image.len().next_multiple_of(8), 0);
}

/// A BMPString's content.
pub(super) fn utf16_be(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}
