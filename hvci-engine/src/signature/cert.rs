//! X.509 certificates (RFC 5280) as parsed, owned values that are made once and shared.
//!
//! Reads v1 to v3, and takes what real code-signing certificates get wrong: negative serial numbers, unknown extensions, string types of
//! any age. Trusts nothing it reads: whether a certificate may do what it is used for is for [`super::chain`] and the policy to say.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::{
    borrow::Cow,
    fmt,
    hash::{Hash, Hasher},
    ops::Range,
    sync::OnceLock,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::algorithm::Algorithm;
use crate::{
    bytes::der::{DerErrorKind, Result, Tlv, tag},
    crypto::{self, KeyError, PublicKey, Scheme, SignatureForm, VerifyError},
    digest::{Digest, DigestAlg},
    facts::SignatureCheck,
    oid::{self, Oid},
    time::UnixTime,
};

/// A parsed certificate. Two are equal if every byte is.
pub struct Certificate {
    der: Box<[u8]>,
    fields: Fields,
    key: OnceLock<core::result::Result<PublicKey, KeyError>>,
    sha256: OnceLock<Digest>,
    subject: OnceLock<String>,
    issuer: OnceLock<String>,
}

/// Where the parts stand in the DER, and the parts that are no bytes.
#[derive(Debug, Default)]
struct Fields {
    tbs: Range<usize>,
    serial: Range<usize>,
    issuer: Range<usize>,
    subject: Range<usize>,
    spki: Range<usize>,
    signature: Range<usize>,
    subject_key_id: Option<Range<usize>>,
    authority_key_id: Option<Range<usize>>,
    version: u8,
    not_before: Option<UnixTime>,
    not_after: Option<UnixTime>,
    ekus: Option<Vec<Oid>>,
    key_usage: Option<KeyUsage>,
    basic_constraints: Option<BasicConstraints>,
    unknown_critical: Option<Oid>,
    signature_algorithm: String,
    scheme: Option<(Scheme, Option<DigestAlg>)>,
}

/// keyUsage bits (RFC 5280 §4.2.1.3), bit 0 being the highest of the first octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUsage(u8);

impl KeyUsage {
    /// The key may sign anything but certificates and CRLs.
    pub const fn digital_signature(self) -> bool {
        self.0 & 0x80 != 0
    }

    /// The key may sign certificates.
    pub const fn key_cert_sign(self) -> bool {
        self.0 & 0x04 != 0
    }
}

/// basicConstraints (RFC 5280 §4.2.1.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BasicConstraints {
    /// The subject may issue certificates.
    pub ca: bool,
    /// How many CA certificates may stand between it and a leaf.
    pub path_len: Option<u32>,
}

impl Certificate {
    /// From the DER of exactly one certificate. Offsets in errors are relative to its start.
    ///
    /// # Errors
    /// Not a certificate, or one whose fields cannot be read.
    pub fn parse(der: &[u8]) -> Result<Self> {
        let fields = parse_certificate(Tlv::parse_exact(der, 0)?)?;
        Ok(Self {
            der: der.into(),
            fields,
            key: OnceLock::new(),
            sha256: OnceLock::new(),
            subject: OnceLock::new(),
            issuer: OnceLock::new(),
        })
    }

    /// The whole certificate as it stands.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// TBSCertificate: the bytes that the issuer signed.
    pub fn tbs(&self) -> &[u8] {
        self.part(&self.fields.tbs)
    }

    /// Subject name, DER.
    pub fn subject_der(&self) -> &[u8] {
        self.part(&self.fields.subject)
    }

    /// Issuer name, DER.
    pub fn issuer_der(&self) -> &[u8] {
        self.part(&self.fields.issuer)
    }

    /// Serial number, content octets as they stand.
    pub fn serial(&self) -> &[u8] {
        self.part(&self.fields.serial)
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> &[u8] {
        self.part(&self.fields.spki)
    }

    /// subjectKeyIdentifier extension.
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.fields.subject_key_id.as_ref().map(|r| self.part(r))
    }

    /// keyIdentifier of the authorityKeyIdentifier extension.
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.fields.authority_key_id.as_ref().map(|r| self.part(r))
    }

    /// X.509 version, 1 to 3.
    pub fn version(&self) -> u8 {
        self.fields.version
    }

    /// First instant of validity.
    pub fn not_before(&self) -> UnixTime {
        self.fields.not_before.unwrap_or(UnixTime(i64::MAX))
    }

    /// Last instant of validity.
    pub fn not_after(&self) -> UnixTime {
        self.fields.not_after.unwrap_or(UnixTime(i64::MIN))
    }

    /// Extended key usages; `None` without the extension, which allows every use.
    pub fn ekus(&self) -> Option<&[Oid]> {
        self.fields.ekus.as_deref()
    }

    /// keyUsage; `None` without the extension, which allows every use.
    pub fn key_usage(&self) -> Option<KeyUsage> {
        self.fields.key_usage
    }

    /// basicConstraints; `None` without the extension.
    pub fn basic_constraints(&self) -> Option<BasicConstraints> {
        self.fields.basic_constraints
    }

    /// The first critical extension of a type that is not known here.
    pub fn unknown_critical(&self) -> Option<&Oid> {
        self.fields.unknown_critical.as_ref()
    }

    /// Name of the algorithm of its own signature.
    pub fn signature_algorithm(&self) -> &str {
        &self.fields.signature_algorithm
    }

    /// Digest algorithm of its own signature, where its algorithm names one.
    pub fn signature_digest(&self) -> Option<DigestAlg> {
        self.fields.scheme.and_then(|(_, digest)| digest)
    }

    /// Its public key, parsed once.
    ///
    /// # Errors
    /// Malformed or not supported.
    pub fn public_key(&self) -> core::result::Result<&PublicKey, &KeyError> {
        self.key.get_or_init(|| PublicKey::from_spki(self.spki())).as_ref()
    }

    /// SHA-256 of the whole certificate (its fingerprint), calculated once.
    pub fn sha256(&self) -> &Digest {
        self.sha256.get_or_init(|| crypto::digest(DigestAlg::Sha256, &[&self.der]))
    }

    /// Digest of the TBSCertificate. App Control and UEFI dbx name certificates by it.
    pub fn tbs_hash(&self, alg: DigestAlg) -> Digest {
        crypto::digest(alg, &[self.tbs()])
    }

    /// Subject as RFC 4514 text, most specific attribute first; made once.
    pub fn subject(&self) -> String {
        self.subject.get_or_init(|| name_text(self.subject_der())).clone()
    }

    /// Issuer as RFC 4514 text, most specific attribute first; made once.
    pub fn issuer(&self) -> String {
        self.issuer.get_or_init(|| name_text(self.issuer_der())).clone()
    }

    /// What a person calls the subject: its common name, else its organisation, else all of it.
    pub fn subject_short(&self) -> String {
        [oid::AT_COMMON_NAME, oid::AT_ORGANIZATION, oid::AT_UNIT]
            .iter()
            .find_map(|wanted| name_attribute(self.subject_der(), wanted))
            .unwrap_or_else(|| self.subject())
    }

    /// Organisation of the subject.
    pub fn organization(&self) -> Option<String> {
        name_attribute(self.subject_der(), &oid::AT_ORGANIZATION)
    }

    /// Whether subject and issuer are the same name.
    pub fn is_self_issued(&self) -> bool {
        self.subject_der() == self.issuer_der()
    }

    /// Whether the key of `issuer` signed this certificate. Arithmetic only: no name, no validity, nothing cached.
    pub fn check_signed_by(&self, issuer: &Self) -> SignatureCheck {
        let Some((scheme, Some(alg))) = self.fields.scheme else { return SignatureCheck::Unsupported };
        let Ok(key) = issuer.public_key() else { return SignatureCheck::Unsupported };
        match key.verify(scheme, &self.tbs_hash(alg), self.part(&self.fields.signature)) {
            Ok(SignatureForm::Standard) => SignatureCheck::Valid,
            Err(VerifyError::Unsupported(_)) => SignatureCheck::Unsupported,
            // no certificate was ever issued with a bare hash
            Ok(SignatureForm::BareHash) | Err(_) => SignatureCheck::Invalid,
        }
    }

    fn part(&self, range: &Range<usize>) -> &[u8] {
        self.der.get(range.clone()).unwrap_or_default()
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Certificate {}

impl Hash for Certificate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.der.hash(state);
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("subject", &self.subject()).field("sha256", &self.sha256().hex()).finish_non_exhaustive()
    }
}

/// How a certificate stands in facts: for readers what it says; it is read back from `der` alone.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Serialised {
    /// Subject, RFC 4514.
    #[serde(default)]
    subject: String,
    /// Issuer, RFC 4514.
    #[serde(default)]
    issuer: String,
    /// Serial number in hexadecimal.
    #[serde(default)]
    serial: String,
    /// First and last instant of validity.
    #[serde(default)]
    validity: Vec<String>,
    /// SHA-256 of the certificate.
    #[serde(default)]
    sha256: String,
    /// SHA-256 of the TBSCertificate.
    #[serde(default)]
    tbs_sha256: String,
    /// The certificate, base64.
    der: String,
}

impl Serialize for Certificate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> core::result::Result<S::Ok, S::Error> {
        Serialised {
            subject: self.subject(),
            issuer: self.issuer(),
            serial: hex::encode(self.serial()),
            validity: vec![self.not_before().to_string(), self.not_after().to_string()],
            sha256: self.sha256().hex(),
            tbs_sha256: self.tbs_hash(DigestAlg::Sha256).hex(),
            der: BASE64_STANDARD.encode(&self.der),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Certificate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> core::result::Result<Self, D::Error> {
        let text = Serialised::deserialize(deserializer)?;
        let der = BASE64_STANDARD.decode(text.der).map_err(serde::de::Error::custom)?;
        Self::parse(&der).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Certificate {
    fn schema_name() -> Cow<'static, str> {
        "Certificate".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Serialised::json_schema(generator)
    }
}

/// A Name (RFC 5280 §4.1.2.4) as RFC 4514 text, most specific attribute first.
pub(super) fn name_text(name: &[u8]) -> String {
    let mut attributes = Vec::with_capacity(8);
    let complete = for_each_attribute(name, |oid, value| attributes.push((oid, value)));
    let mut text = String::with_capacity(name.len());
    if complete.is_none() {
        text.push('?');
    }
    for (oid, value) in attributes.iter().rev() {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&oid::name(oid).map_or_else(|| oid.to_string().into(), Cow::Borrowed));
        text.push('=');
        escape(&value.text(), &mut text);
    }
    text
}

/// The most specific value of the attribute `wanted`.
fn name_attribute(name: &[u8], wanted: &Oid) -> Option<String> {
    let mut found = None;
    for_each_attribute(name, |oid, value| {
        if oid == *wanted {
            found = Some(value.text());
        }
    });
    found
}

fn for_each_attribute<'a>(name: &'a [u8], mut visit: impl FnMut(Oid, Tlv<'a>)) -> Option<()> {
    let mut sequence = Tlv::parse_exact(name, 0).ok()?.reader().ok()?;
    while !sequence.is_empty() {
        let mut set = sequence.next().ok()?.reader().ok()?;
        while !set.is_empty() {
            let mut pair = set.next().ok()?.reader().ok()?;
            let oid = pair.next().ok()?.oid().ok()?;
            visit(oid, pair.next().ok()?);
        }
    }
    Some(())
}

/// Adds a value as RFC 4514 §2.4 has it, and as U+FFFD whatever drives a terminal or reorders text: control, bidirectional and invisible characters.
fn escape(value: &str, out: &mut String) {
    for (i, c) in value.trim_matches('\0').chars().enumerate() {
        match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => out.extend(['\\', c]),
            '#' | ' ' if i == 0 => out.extend(['\\', c]),
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                out.push(char::REPLACEMENT_CHARACTER);
            }
            c if c.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
}

fn range(tlv: &Tlv<'_>) -> Range<usize> {
    tlv.offset..tlv.offset.saturating_add(tlv.raw.len())
}

fn content_range(tlv: &Tlv<'_>) -> Range<usize> {
    tlv.content_offset..tlv.content_offset.saturating_add(tlv.content.len())
}

/// Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue }
fn parse_certificate(tlv: Tlv<'_>) -> Result<Fields> {
    let mut certificate = tlv.expect(tag::SEQUENCE)?.reader()?;
    let tbs = certificate.expect(tag::SEQUENCE)?;
    let outer_algorithm = certificate.next()?;
    let signature = certificate.next()?;
    certificate.finish()?;

    let algorithm = Algorithm::parse(outer_algorithm)?;
    // the octets behind the count of unused bits
    let value = signature.bit_octets()?;
    let end = signature.content_offset.saturating_add(signature.content.len());
    let mut fields = Fields {
        tbs: range(&tbs),
        signature: end.saturating_sub(value.len())..end,
        signature_algorithm: algorithm.name(),
        scheme: algorithm.signature(),
        version: 1,
        ..Fields::default()
    };

    let mut tbs = tbs.reader()?;
    if let Some(version) = tbs.optional(tag::context_constructed(0))? {
        let number = version.reader()?.next()?;
        fields.version = u8::try_from(number.small_uint()?.saturating_add(1))
            .ok()
            .filter(|v| *v <= 3)
            .ok_or_else(|| number.error(DerErrorKind::Value))?;
    }
    let serial = tbs.next()?;
    serial.integer()?;
    fields.serial = content_range(&serial);
    // RFC 5280 §4.1.1.2: the two must be the same, or an attacker could swap the outer one
    let inner_algorithm = tbs.next()?;
    if inner_algorithm.content != outer_algorithm.content {
        return Err(outer_algorithm.error(DerErrorKind::Value));
    }
    fields.issuer = range(&tbs.expect(tag::SEQUENCE)?);
    let mut validity = tbs.expect(tag::SEQUENCE)?.reader()?;
    fields.not_before = Some(validity.next()?.time()?);
    fields.not_after = Some(validity.next()?.time()?);
    fields.subject = range(&tbs.expect(tag::SEQUENCE)?);
    fields.spki = range(&tbs.expect(tag::SEQUENCE)?);
    for unique_id in [1, 2] {
        tbs.optional(tag::context(unique_id))?;
        tbs.optional(tag::context_constructed(unique_id))?;
    }
    if let Some(extensions) = tbs.optional(tag::context_constructed(3))? {
        let mut list = extensions.reader()?.expect(tag::SEQUENCE)?.reader()?;
        while !list.is_empty() {
            parse_extension(list.next()?, &mut fields)?;
        }
    }
    tbs.finish()?;
    Ok(fields)
}

/// Extension ::= SEQUENCE { extnID, critical DEFAULT FALSE, extnValue OCTET STRING }
fn parse_extension(tlv: Tlv<'_>, fields: &mut Fields) -> Result<()> {
    let mut reader = tlv.expect(tag::SEQUENCE)?.reader()?;
    let id = reader.next()?.oid()?;
    let critical = reader.optional(tag::BOOLEAN)?.is_some_and(|b| b.content != [0]);
    let octets = reader.expect(tag::OCTET_STRING)?;
    reader.finish()?;
    let value = || octets.reader()?.next();

    match id {
        oid::EXT_SUBJECT_KEY_ID => fields.subject_key_id = Some(content_range(&value()?.expect(tag::OCTET_STRING)?)),
        oid::EXT_AUTHORITY_KEY_ID => {
            let key_id = value()?.reader()?.optional(tag::context(0))?;
            fields.authority_key_id = key_id.map(|k| content_range(&k));
        }
        oid::EXT_KEY_USAGE => {
            let bits = value()?.expect(tag::BIT_STRING)?;
            fields.key_usage = Some(KeyUsage(bits.content.get(1).copied().unwrap_or(0)));
        }
        oid::EXT_BASIC_CONSTRAINTS => {
            let mut sequence = value()?.reader()?;
            let ca = sequence.optional(tag::BOOLEAN)?.is_some_and(|b| b.content != [0]);
            let path_len = if sequence.is_empty() { None } else { Some(sequence.next()?.small_uint()?) };
            fields.basic_constraints = Some(BasicConstraints { ca, path_len });
        }
        oid::EXT_EXTENDED_KEY_USAGE => {
            let mut purposes = value()?.reader()?;
            let mut list = Vec::new();
            while !purposes.is_empty() {
                list.push(purposes.next()?.oid()?);
            }
            fields.ekus = Some(list);
        }
        // understood to the extent that code signing needs: names and policies restrict nothing here
        oid::EXT_SUBJECT_ALT_NAME
        | oid::EXT_CERTIFICATE_POLICIES
        | oid::EXT_POLICY_MAPPINGS
        | oid::EXT_POLICY_CONSTRAINTS
        | oid::EXT_INHIBIT_ANY_POLICY => {}
        _ if critical && fields.unknown_critical.is_none() => fields.unknown_critical = Some(id),
        _ => {}
    }
    Ok(())
}
