//! Timestamps: PKCS#9 countersignatures (RFC 2985 §5.3.6) and RFC 3161 tokens, by a test authority whose clock says what one wants.

use der::{
    Any, Decode, Encode,
    asn1::{GeneralizedTime, Int, OctetString, UtcTime},
    oid::ObjectIdentifier,
};
use hvci_engine::{digest::DigestAlg, time::UnixTime};
use x509_cert::{Certificate, attr::Attribute};
use x509_tsp::{MessageImprint, TspVersion, TstInfo};

use super::{
    Result,
    certificate::{Identity, since_epoch},
    der::Node,
    key::{digest_algorithm, hash},
    oid,
    signed_data::{Signing, any, attribute},
};

/// A timestamp to be made.
#[derive(Clone, Debug)]
pub struct Stamp<'a> {
    /// By whom.
    pub authority: &'a Identity,
    /// The authority's issuers, to be carried.
    pub issuers: Vec<Certificate>,
    /// The time to state.
    pub time: UnixTime,
    /// Which protocol.
    pub protocol: Protocol,
    /// Digest of imprint and attributes.
    pub digest: DigestAlg,
    /// Whether certificates come with it (`certReq`).
    pub certificates: bool,
    /// Whether the signature is over the bare hash.
    pub bare_hash: bool,
    /// Fraction of a second behind the time, such as `.75`; tokens only.
    pub fraction: &'a str,
    /// Whether signingCertificateV2 is left out; tokens only.
    pub no_certificate_id: bool,
}

/// Which protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// PKCS#9 countersignature.
    Pkcs9,
    /// RFC 3161 token.
    Rfc3161,
}

impl<'a> Stamp<'a> {
    /// An RFC 3161 token with SHA-256 and certificates.
    pub fn new(authority: &'a Identity, issuers: &[Certificate], time: UnixTime) -> Self {
        Self {
            authority,
            issuers: issuers.to_vec(),
            time,
            protocol: Protocol::Rfc3161,
            digest: DigestAlg::Sha256,
            certificates: true,
            bare_hash: false,
            fraction: "",
            no_certificate_id: false,
        }
    }

    /// The same as a countersignature.
    #[must_use]
    pub fn pkcs9(self) -> Self {
        Self { protocol: Protocol::Pkcs9, ..self }
    }

    /// The unsigned attribute that stamps a signature `value`.
    ///
    /// # Errors
    /// A key that cannot sign so, a time that cannot be written.
    pub fn on(&self, value: &[u8]) -> Result<Attribute> {
        match self.protocol {
            Protocol::Pkcs9 => attribute(oid::COUNTERSIGNATURE, vec![Any::encode_from(&self.countersignature(value)?)?]),
            Protocol::Rfc3161 => attribute(oid::RFC3161_COUNTERSIGN, vec![Any::from_der(&self.token(value)?)?]),
        }
    }

    /// Certificates that the stamped signature has to carry: a countersignature has no room for them.
    pub fn outer_certificates(&self) -> Vec<Certificate> {
        if self.protocol == Protocol::Pkcs9 && self.certificates { self.chain() } else { Vec::new() }
    }

    fn chain(&self) -> Vec<Certificate> {
        let mut chain = vec![self.authority.certificate.clone()];
        chain.extend_from_slice(&self.issuers);
        chain
    }

    fn countersignature(&self, value: &[u8]) -> Result<cms::signed_data::SignerInfo> {
        let time = UtcTime::from_unix_duration(since_epoch(self.time))?;
        let signing_time = attribute(oid::SIGNING_TIME, vec![Any::encode_from(&time)?])?;
        self.signing(vec![signing_time]).signer_info(oid::DATA, value)
    }

    fn token(&self, value: &[u8]) -> Result<Vec<u8>> {
        let info = TstInfo {
            version: TspVersion::V1,
            policy: ObjectIdentifier::new_unwrap("1.3.6.1.4.1.99999.3161"),
            message_imprint: MessageImprint {
                hash_algorithm: digest_algorithm(self.digest)?,
                hashed_message: OctetString::new(hash(self.digest, value))?,
            },
            serial_number: Int::new(&hash(DigestAlg::Sha1, value)[..4].iter().map(|b| b & 0x3F | 0x40).collect::<Vec<_>>())?,
            gen_time: GeneralizedTime::from_unix_duration(since_epoch(self.time))?,
            accuracy: None,
            ordering: false,
            nonce: None,
            tsa: None,
            extensions: None,
        };
        let mut info = Node::parse(&info.to_der()?)?;
        if !self.fraction.is_empty() {
            // the crate's GeneralizedTime has no fractions
            let time = info.at_mut(&[4])?.octets_mut()?;
            time.pop();
            time.extend(self.fraction.bytes());
            time.push(b'Z');
        }
        let mut attributes = Vec::new();
        if !self.no_certificate_id {
            // ESSCertIDv2 with its default algorithm, SHA-256 (RFC 5035 §4)
            let id = Node::sequence(vec![Node::octets(hash(DigestAlg::Sha256, &self.authority.certificate.to_der()?))]);
            let value = Node::sequence(vec![Node::sequence(vec![id])]);
            attributes.push(attribute(oid::SIGNING_CERTIFICATE_V2, vec![any(&value)?])?);
        }
        let mut signing = self.signing(attributes);
        signing.version = Some(cms::content_info::CmsVersion::V3);
        signing.attached(oid::TST_INFO, &Node::octets(info.encode()))
    }

    fn signing(&self, attributes: Vec<Attribute>) -> Signing<'a> {
        Signing {
            certificates: if self.certificates { self.chain() } else { Vec::new() },
            digest: self.digest,
            bare_hash: self.bare_hash,
            attributes: Some(attributes),
            ..Signing::new(self.authority, &[])
        }
    }
}
