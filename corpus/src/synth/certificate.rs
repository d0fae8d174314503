//! Certificates with every field under control (RFC 5280 §4.1): the usual ones, and those that a verifier must refuse.

use std::time::Duration;

use der::{
    Encode,
    asn1::{BitString, GeneralizedTime, OctetString, UtcTime},
    flagset::FlagSet,
    oid::{AssociatedOid, ObjectIdentifier},
};
use hvci_engine::{digest::DigestAlg, time::UnixTime};
use x509_cert::{
    Certificate, TbsCertificate, Version,
    ext::{
        Extension,
        pkix::{AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectKeyIdentifier},
    },
    name::Name,
    serial_number::SerialNumber,
    time::{Time, Validity},
};

use super::{
    Error, Result,
    key::{Key, hash},
    oid,
};

/// Someone who signs: a key and the certificate for it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The private key.
    pub key: Key,
    /// The certificate.
    pub certificate: Certificate,
}

/// What a certificate is to say.
#[derive(Clone, Debug)]
pub struct Template<'a> {
    /// Subject, as RFC 4514 text.
    pub subject: &'a str,
    /// First day of validity, as `2020-01-01`.
    pub from: &'a str,
    /// Last day of validity.
    pub until: &'a str,
    /// Digest of the issuer's signature.
    pub digest: DigestAlg,
    /// Whether it is a version 1 certificate, which has no extensions.
    pub version1: bool,
    /// basicConstraints: `None` for none, otherwise a CA with this path length.
    pub ca: Option<Option<u8>>,
    /// keyUsage; `None` for none.
    pub key_usage: Option<FlagSet<KeyUsages>>,
    /// Extended key usages; none when empty.
    pub usages: &'a [ObjectIdentifier],
    /// The serial number of this certificate instead of its own.
    pub serial_of: Option<&'a Certificate>,
    /// An extension that nobody knows, critical.
    pub unknown_critical: bool,
}

impl<'a> Template<'a> {
    /// An end entity's, SHA-256, 2020 to 2035.
    pub fn leaf(subject: &'a str, usages: &'a [ObjectIdentifier]) -> Self {
        Self {
            subject,
            from: "2020-01-01",
            until: "2035-01-01",
            digest: DigestAlg::Sha256,
            version1: false,
            ca: None,
            key_usage: Some(KeyUsages::DigitalSignature.into()),
            usages,
            serial_of: None,
            unknown_critical: false,
        }
    }

    /// A CA's, SHA-256, 2010 to 2045.
    pub fn ca(subject: &'a str, path_length: Option<u8>) -> Self {
        Self {
            from: "2010-01-01",
            until: "2045-01-01",
            ca: Some(path_length),
            key_usage: Some(KeyUsages::KeyCertSign | KeyUsages::CRLSign | KeyUsages::DigitalSignature),
            ..Self::leaf(subject, &[])
        }
    }

    /// Issues it for `key` by `issuer`; signed with `key` itself when there is none.
    ///
    /// # Errors
    /// A subject or date that cannot be read, an issuer's key that cannot sign.
    pub fn issue(&self, key: &Key, issuer: Option<&Identity>) -> Result<Identity> {
        let signing_key = issuer.map_or(key, |i| &i.key);
        let subject: Name = self.subject.parse()?;
        let issuer_name = issuer.map_or_else(|| subject.clone(), |i| i.certificate.tbs_certificate.subject.clone());
        let spki = key.public()?;
        let algorithm = signing_key.signature_algorithm(self.digest)?;

        let identity = [subject.to_der()?, issuer_name.to_der()?, spki.to_der()?, self.from.into(), self.usages.to_vec().to_der()?];
        let mut serial = hash(DigestAlg::Sha256, &identity.concat());
        serial.truncate(8);
        // positive, and of full length
        serial[0] = serial[0] & 0x3F | 0x40;

        let key_id = |spki: &spki::SubjectPublicKeyInfoOwned| hash(DigestAlg::Sha1, spki.subject_public_key.raw_bytes());
        let mut extensions = Vec::new();
        if let Some(path_len_constraint) = self.ca {
            extensions.push(extension(true, &BasicConstraints { ca: true, path_len_constraint })?);
        }
        if let Some(usages) = self.key_usage {
            extensions.push(extension(true, &KeyUsage(usages))?);
        }
        if !self.usages.is_empty() {
            extensions.push(extension(false, &ExtendedKeyUsage(self.usages.to_vec()))?);
        }
        extensions.push(extension(false, &SubjectKeyIdentifier(OctetString::new(key_id(&spki))?))?);
        if let Some(issuer) = issuer {
            let id = OctetString::new(key_id(&issuer.certificate.tbs_certificate.subject_public_key_info))?;
            extensions.push(extension(false, &AuthorityKeyIdentifier { key_identifier: Some(id), ..Default::default() })?);
        }
        if self.unknown_critical {
            let nobody = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.99999.1");
            extensions.push(Extension { extn_id: nobody, critical: true, extn_value: OctetString::new([5, 0])? });
        }

        let tbs_certificate = TbsCertificate {
            version: if self.version1 { Version::V1 } else { Version::V3 },
            serial_number: match self.serial_of {
                Some(other) => other.tbs_certificate.serial_number.clone(),
                None => SerialNumber::new(&serial)?,
            },
            signature: algorithm.clone(),
            issuer: issuer_name,
            validity: Validity { not_before: time(self.from)?, not_after: time(self.until)? },
            subject,
            subject_public_key_info: spki,
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: (!self.version1).then_some(extensions),
        };
        let signature = BitString::from_bytes(&signing_key.sign(self.digest, &tbs_certificate.to_der()?)?)?;
        Ok(Identity { key: key.clone(), certificate: Certificate { tbs_certificate, signature_algorithm: algorithm, signature } })
    }
}

impl Identity {
    /// subjectKeyIdentifier of the certificate.
    ///
    /// # Errors
    /// It has none.
    pub fn key_id(&self) -> Result<Vec<u8>> {
        match self.certificate.tbs_certificate.get::<SubjectKeyIdentifier>()? {
            Some((_, id)) => Ok(id.0.as_bytes().to_vec()),
            None => Err(Error::NotApplicable("a certificate without subjectKeyIdentifier")),
        }
    }
}

/// `2020-01-01`, midnight UTC.
///
/// # Errors
/// No date.
pub fn instant(date: &str) -> Result<UnixTime> {
    UnixTime::parse(date).ok_or(Error::NotApplicable("a date that does not exist"))
}

/// Seconds since the epoch, for the encoders.
pub(super) fn since_epoch(time: UnixTime) -> Duration {
    Duration::from_secs(u64::try_from(time.0).unwrap_or(0))
}

/// UTCTime until 2049, as RFC 5280 §4.1.2.5 wants it.
fn time(date: &str) -> Result<Time> {
    let duration = since_epoch(instant(date)?);
    Ok(match UtcTime::from_unix_duration(duration) {
        Ok(utc) => Time::UtcTime(utc),
        Err(_) => Time::GeneralTime(GeneralizedTime::from_unix_duration(duration)?),
    })
}

fn extension<T: AssociatedOid + Encode>(critical: bool, value: &T) -> Result<Extension> {
    Ok(Extension { extn_id: T::OID, critical, extn_value: OctetString::new(value.to_der()?)? })
}

/// Usages of a code-signing certificate.
pub const CODE: &[ObjectIdentifier] = &[oid::EKU_CODE_SIGNING];
