//! CMS SignedData (RFC 5652 §5, RFC 2315 §9) around any content, with every choice that real signers and forgers make.

use cms::{
    cert::{CertificateChoices, IssuerAndSerialNumber},
    content_info::{CmsVersion, ContentInfo},
    signed_data::{CertificateSet, EncapsulatedContentInfo, SignedData, SignerIdentifier, SignerInfo, SignerInfos},
};
use der::{
    Any, Decode, Encode,
    asn1::{OctetString, SetOfVec},
    oid::ObjectIdentifier,
};
use hvci_engine::digest::DigestAlg;
use x509_cert::{
    Certificate,
    attr::{Attribute, Attributes},
    ext::pkix::SubjectKeyIdentifier,
};

use super::{
    Result,
    certificate::Identity,
    der::Node,
    key::{digest_algorithm, hash},
    oid,
    timestamp::Stamp,
};

/// How to sign.
#[derive(Clone, Debug)]
pub struct Signing<'a> {
    /// By whom.
    pub signer: &'a Identity,
    /// Certificates to carry.
    pub certificates: Vec<Certificate>,
    /// Digest of the content and of the attributes.
    pub digest: DigestAlg,
    /// Whether the signer is named by subjectKeyIdentifier, not by issuer and serial number.
    pub by_key_id: bool,
    /// Version of SignedData, when it is not to be the one that RFC 5652 §5.1 computes.
    pub version: Option<CmsVersion>,
    /// Whether the RSA signature is over the bare hash.
    pub bare_hash: bool,
    /// Signed attributes beside contentType and messageDigest; `None` for no signed attributes at all.
    pub attributes: Option<Vec<Attribute>>,
    /// Unsigned attributes, beside timestamps.
    pub unsigned: Vec<Attribute>,
    /// Timestamps to put on the signature.
    pub stamps: Vec<Stamp<'a>>,
}

impl<'a> Signing<'a> {
    /// The usual way: SHA-256, issuer and serial number, signed attributes, only the signer's certificate and `issuers` carried.
    pub fn new(signer: &'a Identity, issuers: &[Certificate]) -> Self {
        let mut certificates = vec![signer.certificate.clone()];
        certificates.extend_from_slice(issuers);
        Self {
            signer,
            certificates,
            digest: DigestAlg::Sha256,
            by_key_id: false,
            version: None,
            bare_hash: false,
            attributes: Some(Vec::new()),
            unsigned: Vec::new(),
            stamps: Vec::new(),
        }
    }

    /// A SignedData over `content`, an element of type `content_type` whose content octets are what is hashed.
    ///
    /// # Errors
    /// A key that cannot sign so.
    pub fn attached(&self, content_type: ObjectIdentifier, content: &Node) -> Result<Vec<u8>> {
        let econtent = Some(Any::from_der(&content.encode())?);
        self.build(EncapsulatedContentInfo { econtent_type: content_type, econtent }, &content.content())
    }

    /// A SignedData over `content`, which it does not hold.
    ///
    /// # Errors
    /// A key that cannot sign so.
    pub fn detached(&self, content: &[u8]) -> Result<Vec<u8>> {
        self.build(EncapsulatedContentInfo { econtent_type: oid::DATA, econtent: None }, content)
    }

    /// A SignerInfo over octets of type `content_type`.
    ///
    /// # Errors
    /// A key that cannot sign so.
    pub fn signer_info(&self, content_type: ObjectIdentifier, content: &[u8]) -> Result<SignerInfo> {
        let signed_attrs = match &self.attributes {
            Some(others) => {
                let digest = Any::encode_from(&OctetString::new(hash(self.digest, content))?)?;
                let mut all = vec![
                    attribute(oid::CONTENT_TYPE, vec![Any::encode_from(&content_type)?])?,
                    attribute(oid::MESSAGE_DIGEST, vec![digest])?,
                ];
                all.extend_from_slice(others);
                Some(Attributes::try_from(all)?)
            }
            None => None,
        };
        let message = match &signed_attrs {
            Some(attributes) => attributes.to_der()?,
            None => content.to_vec(),
        };
        let key = &self.signer.key;
        let value = if self.bare_hash { key.sign_bare(self.digest, &message)? } else { key.sign(self.digest, &message)? };

        let mut unsigned = self.unsigned.clone();
        for stamp in &self.stamps {
            unsigned.push(stamp.on(&value)?);
        }
        let tbs = &self.signer.certificate.tbs_certificate;
        let (version, sid) = if self.by_key_id {
            let id = SubjectKeyIdentifier(OctetString::new(self.signer.key_id()?)?);
            (CmsVersion::V3, SignerIdentifier::SubjectKeyIdentifier(id))
        } else {
            let name = IssuerAndSerialNumber { issuer: tbs.issuer.clone(), serial_number: tbs.serial_number.clone() };
            (CmsVersion::V1, SignerIdentifier::IssuerAndSerialNumber(name))
        };
        Ok(SignerInfo {
            version,
            sid,
            digest_alg: digest_algorithm(self.digest)?,
            signed_attrs,
            signature_algorithm: key.signer_algorithm(self.digest)?,
            signature: OctetString::new(value)?,
            unsigned_attrs: if unsigned.is_empty() { None } else { Some(Attributes::try_from(unsigned)?) },
        })
    }

    fn build(&self, encap_content_info: EncapsulatedContentInfo, content: &[u8]) -> Result<Vec<u8>> {
        let info = self.signer_info(encap_content_info.econtent_type, content)?;
        let mut certificates = self.certificates.clone();
        for stamp in &self.stamps {
            certificates.extend(stamp.outer_certificates());
        }
        let choices: Vec<CertificateChoices> = certificates.into_iter().map(CertificateChoices::Certificate).collect();
        let usual = if self.by_key_id { CmsVersion::V3 } else { CmsVersion::V1 };
        let data = SignedData {
            version: self.version.unwrap_or(usual),
            digest_algorithms: SetOfVec::try_from(vec![digest_algorithm(self.digest)?])?,
            encap_content_info,
            certificates: if choices.is_empty() { None } else { Some(CertificateSet(unique(choices)?)) },
            crls: None,
            signer_infos: SignerInfos(SetOfVec::try_from(vec![info])?),
        };
        Ok(ContentInfo { content_type: oid::SIGNED_DATA, content: Any::encode_from(&data)? }.to_der()?)
    }
}

/// An attribute.
///
/// # Errors
/// The same value twice.
pub fn attribute(oid: ObjectIdentifier, values: Vec<Any>) -> Result<Attribute> {
    Ok(Attribute { oid, values: SetOfVec::try_from(values)? })
}

/// Any element as an attribute value.
///
/// # Errors
/// None for elements built here.
pub fn any(node: &Node) -> Result<Any> {
    Ok(Any::from_der(&node.encode())?)
}

/// A set refuses what stands in it twice.
fn unique(choices: Vec<CertificateChoices>) -> Result<SetOfVec<CertificateChoices>> {
    let mut kept: Vec<CertificateChoices> = Vec::new();
    for choice in choices {
        if !kept.contains(&choice) {
            kept.push(choice);
        }
    }
    Ok(SetOfVec::try_from(kept)?)
}
