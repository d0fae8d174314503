//! SignedData and SignerInfo (RFC 5652 §5, PKCS#7 v1.5) as borrowed spans.
//!
//! Signed attributes are kept as the raw bytes they stand as: they are hashed so, never sorted or re-encoded. Takes versions 1 to 5, BER,
//! a SignedData without its ContentInfo (Microsoft's dbx files), signers named by issuer and serial number or by key identifier.
//! Refuses what has no place in the syntax; a certificate that cannot be read spoils only itself.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::{borrow::Cow, sync::Arc};

use super::{
    algorithm::Algorithm,
    cache::Cache,
    cert::{Certificate, name_text},
};
use crate::{
    budget::{Budget, MAX_ATTRIBUTES, MAX_CERTIFICATES, MAX_SIGNATURES, MAX_VERIFICATIONS},
    bytes::der::{DerErrorKind, Result, Tlv, der_header, tag},
    crypto::{self, SignatureForm, VerifyError},
    digest::{Digest, DigestAlg},
    facts::{SignatureCheck, Signer},
    finding::{Code, Note},
    oid::{self, Oid},
};

/// A SignedData as it stands.
#[derive(Clone, Debug)]
pub(super) struct SignedData<'a> {
    /// The whole of it, ContentInfo included where there is one.
    pub(super) whole: Tlv<'a>,
    /// `digestAlgorithms`.
    pub(super) digest_algorithms: Vec<Algorithm<'a>>,
    /// `eContentType`.
    pub(super) content_type: Oid,
    /// The element inside `eContent`; `None` when detached.
    pub(super) content: Option<Tlv<'a>>,
    /// `certificates`, each as it stands.
    pub(super) certificates: Vec<Tlv<'a>>,
    /// `crls`, which no signature covers and nothing here reads.
    pub(super) crls: Option<Tlv<'a>>,
    /// `signerInfos`.
    pub(super) signers: Vec<SignerInfo<'a>>,
}

impl<'a> SignedData<'a> {
    /// From `bytes`, which stand at `offset` in the file. What follows the element is not looked at.
    pub(super) fn parse(bytes: &'a [u8], offset: usize) -> Result<Self> {
        let whole = crate::bytes::der::Reader::new(bytes, offset).expect(tag::SEQUENCE)?;
        let mut reader = whole.reader()?;
        if reader.peek_tag() == Some(tag::OID) {
            let id = reader.next()?;
            if id.oid()? != oid::SIGNED_DATA {
                return Err(id.error(DerErrorKind::Value));
            }
            // what the outer layers hold behind their only element is covered by no signature (CVE-2013-3900), so nothing may be there
            let mut explicit = reader.expect(tag::context_constructed(0))?.reader()?;
            reader.finish()?;
            reader = explicit.expect(tag::SEQUENCE)?.reader()?;
            explicit.finish()?;
        }
        reader.expect(tag::INTEGER)?;

        let mut digest_algorithms = Vec::new();
        let mut algorithms = reader.expect(tag::SET)?.reader()?;
        while !algorithms.is_empty() {
            digest_algorithms.push(Algorithm::parse(algorithms.next()?)?);
        }

        let mut content_info = reader.expect(tag::SEQUENCE)?.reader()?;
        let content_type = content_info.next()?.oid()?;
        let content = match content_info.optional(tag::context_constructed(0))? {
            Some(explicit) => {
                let mut explicit = explicit.reader()?;
                let content = explicit.next()?;
                explicit.finish()?;
                Some(content)
            }
            None => None,
        };
        content_info.finish()?;

        let mut certificates = Vec::new();
        if let Some(set) = reader.optional(tag::context_constructed(0))? {
            // real signatures carry two to five, those of modules none
            certificates.reserve_exact(5);
            let mut set = set.reader()?;
            while !set.is_empty() {
                let certificate = set.next()?;
                if certificates.len() >= MAX_CERTIFICATES {
                    return Err(certificate.error(DerErrorKind::TooDeep));
                }
                certificates.push(certificate);
            }
        }
        let crls = reader.optional(tag::context_constructed(1))?;

        // real signatures have one
        let mut signers = Vec::with_capacity(1);
        let mut set = reader.expect(tag::SET)?.reader()?;
        while !set.is_empty() {
            let signer = set.next()?;
            if signers.len() >= MAX_SIGNATURES {
                return Err(signer.error(DerErrorKind::TooDeep));
            }
            signers.push(SignerInfo::parse(signer)?);
        }
        reader.finish()?;
        Ok(Self { whole, digest_algorithms, content_type, content, certificates, crls, signers })
    }

    /// The octets that a signature of this content is over (RFC 5652 §5.4): those inside the OCTET STRING, or, as PKCS#7 and Authenticode
    /// have it, those inside whatever element stands there.
    pub(super) fn content_octets(&self) -> Result<Option<Cow<'a, [u8]>>> {
        match &self.content {
            None => Ok(None),
            Some(tlv) if tlv.tag & !tag::CONSTRUCTED == tag::OCTET_STRING => tlv.octets().map(Some),
            Some(tlv) => Ok(Some(Cow::Borrowed(tlv.content))),
        }
    }

    /// Whether any length of the outer layers is indefinite.
    pub(super) fn is_ber(&self) -> bool {
        let indefinite = |t: &Tlv<'_>| t.raw.get(1) == Some(&0x80);
        indefinite(&self.whole) || self.content.as_ref().is_some_and(indefinite)
    }
}

/// A SignerInfo as it stands.
#[derive(Clone, Debug)]
pub(super) struct SignerInfo<'a> {
    pub(super) tlv: Tlv<'a>,
    pub(super) id: SignerId<'a>,
    pub(super) digest_algorithm: Algorithm<'a>,
    pub(super) signed_attributes: Option<Attributes<'a>>,
    pub(super) signature_algorithm: Algorithm<'a>,
    pub(super) signature: Cow<'a, [u8]>,
    pub(super) unsigned_attributes: Option<Attributes<'a>>,
}

/// How the signer's certificate is named.
#[derive(Clone, Copy, Debug)]
pub(super) enum SignerId<'a> {
    IssuerSerial { issuer: &'a [u8], serial: &'a [u8] },
    KeyId(&'a [u8]),
}

impl<'a> SignerInfo<'a> {
    pub(super) fn parse(tlv: Tlv<'a>) -> Result<Self> {
        let mut reader = tlv.expect(tag::SEQUENCE)?.reader()?;
        // versions 0, 1 and 3 occur; the identifier's own tag says how the signer is named
        reader.expect(tag::INTEGER)?;
        let named = reader.next()?;
        let id = if named.tag == tag::context(0) {
            SignerId::KeyId(named.content)
        } else {
            let mut pair = named.expect(tag::SEQUENCE)?.reader()?;
            let issuer = pair.expect(tag::SEQUENCE)?.raw;
            let serial = pair.next()?.integer()?;
            pair.finish()?;
            SignerId::IssuerSerial { issuer, serial }
        };
        let digest_algorithm = Algorithm::parse(reader.next()?)?;
        let signed_attributes = reader.optional(tag::context_constructed(0))?.map(Attributes::parse).transpose()?;
        let signature_algorithm = Algorithm::parse(reader.next()?)?;
        let signature = reader.next()?.octets()?;
        let unsigned_attributes = reader.optional(tag::context_constructed(1))?.map(Attributes::parse).transpose()?;
        reader.finish()?;
        Ok(Self { tlv, id, digest_algorithm, signed_attributes, signature_algorithm, signature, unsigned_attributes })
    }
}

/// Attributes as they stand.
#[derive(Clone, Debug)]
pub(super) struct Attributes<'a> {
    tlv: Tlv<'a>,
    list: Vec<Attribute<'a>>,
}

/// One attribute: type and values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attribute<'a> {
    pub(super) tlv: Tlv<'a>,
    /// The type, as the octets of its identifier.
    oid: &'a [u8],
    values: Tlv<'a>,
}

impl<'a> Attribute<'a> {
    /// The type; `None` for an identifier longer than any real one.
    pub(super) fn oid(&self) -> Option<Oid> {
        Oid::from_bytes(self.oid)
    }

    /// The values, one after the other.
    pub(super) fn values(&self) -> Result<Vec<Tlv<'a>>> {
        let mut reader = self.values.reader()?;
        let mut values = Vec::new();
        while !reader.is_empty() {
            values.push(reader.next()?);
        }
        Ok(values)
    }
}

impl<'a> Attributes<'a> {
    fn parse(tlv: Tlv<'a>) -> Result<Self> {
        let mut reader = tlv.reader()?;
        let mut list = Vec::with_capacity(6);
        while !reader.is_empty() {
            let attribute = reader.expect(tag::SEQUENCE)?;
            if list.len() >= MAX_ATTRIBUTES {
                return Err(attribute.error(DerErrorKind::TooDeep));
            }
            let mut pair = attribute.reader()?;
            let oid = pair.expect(tag::OID)?.content;
            let values = pair.expect(tag::SET)?;
            pair.finish()?;
            list.push(Attribute { tlv: attribute, oid, values });
        }
        Ok(Self { tlv, list })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Attribute<'a>> {
        self.list.iter()
    }

    /// The value of the attribute `wanted`, which must be there once with one value (RFC 5652 §11).
    pub(super) fn single(&self, wanted: Oid) -> Option<Tlv<'a>> {
        let mut found = self.list.iter().filter(|a| a.oid == wanted.as_bytes());
        let attribute = found.next().filter(|_| found.next().is_none())?;
        let mut values = attribute.values.reader().ok()?;
        values.next().ok().filter(|_| values.is_empty())
    }

    /// Digest as a SET OF (RFC 5652 §5.4): the raw bytes with the tag of a SET instead of `[0]`; a definite length in place of an indefinite one.
    fn digest(&self, alg: DigestAlg) -> Digest {
        match self.tlv.raw.split_first() {
            Some((_, rest)) if rest.first() != Some(&0x80) => crypto::digest(alg, &[&[tag::SET], rest]),
            _ => {
                let (header, len) = der_header(tag::SET, self.tlv.content.len());
                crypto::digest(alg, &[header.get(..len).unwrap_or_default(), self.tlv.content])
            }
        }
    }

    /// Whether the attributes stand in DER order (X.690 §11.6).
    fn is_sorted(&self) -> bool {
        self.list.is_sorted_by_key(|a| a.tlv.raw)
    }
}

/// Which codes a signer's faults are reported as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Signer of the file.
    Signer,
    /// Signer of a timestamp: a fault takes the time away and leaves the signature.
    Timestamp,
}

impl Role {
    fn of(self, signer: Code, timestamp: Code) -> Code {
        match self {
            Self::Signer => signer,
            Self::Timestamp => timestamp,
        }
    }
}

/// The certificates of one file, each once, and how many more signature values of it are verified.
#[derive(Debug)]
pub(crate) struct Pool<'c> {
    cache: &'c Cache,
    pub(crate) list: Vec<Arc<Certificate>>,
    verifications: Budget,
}

impl<'c> Pool<'c> {
    pub(crate) fn new(cache: &'c Cache) -> Self {
        Self { cache, list: Vec::new(), verifications: Budget::new(MAX_VERIFICATIONS) }
    }

    /// Adds what a SignedData carries and returns their indexes; one that cannot be read becomes a note.
    pub(super) fn add_all(&mut self, certificates: &[Tlv<'_>], notes: &mut Vec<Note>) -> Vec<usize> {
        let mut indexes = Vec::with_capacity(certificates.len());
        for tlv in certificates {
            if self.list.len() >= MAX_CERTIFICATES {
                notes.push(Note::new(Code::SigTooMany, format!("the limit is {MAX_CERTIFICATES} certificates")).at(tlv.span()));
                break;
            }
            match self.cache.certificate(tlv.raw) {
                Ok(certificate) => {
                    let index = self.index_of(certificate);
                    if !indexes.contains(&index) {
                        indexes.push(index);
                    }
                }
                // CertificateChoices has attribute certificates too (RFC 5652 §10.2.2); Microsoft's timestamp tokens carry some
                Err(_) if tlv.tag != tag::SEQUENCE => {}
                Err(e) => notes.push(Note::new(Code::PkiMalformed, e.kind.to_string()).at(tlv.span())),
            }
        }
        indexes
    }

    /// Its index, after adding it if it is new.
    pub(crate) fn index_of(&mut self, certificate: Arc<Certificate>) -> usize {
        if let Some(known) = self.list.iter().position(|c| Arc::ptr_eq(c, &certificate) || c == &certificate) {
            return known;
        }
        self.list.push(certificate);
        self.list.len().saturating_sub(1)
    }

    fn get(&self, index: usize) -> Option<&Arc<Certificate>> {
        self.list.get(index)
    }
}

/// Checks one signer: attributes against the content, algorithms against each other, the signature with the certificate among `candidates`.
///
/// `content_digest` is the digest of the content under the signer's digest algorithm, `None` when that algorithm is not known.
/// `content_type` is what the contentType attribute must say.
pub(super) fn check_signer(
    info: &SignerInfo<'_>,
    content_type: Oid,
    content_digest: Option<Digest>,
    candidates: &[usize],
    pool: &mut Pool<'_>,
    role: Role,
    notes: &mut Vec<Note>,
) -> Signer {
    let malformed = role.of(Code::SigMalformed, Code::TspMalformed);
    let digest_alg = info.digest_algorithm.digest();
    let method = info.signature_algorithm.signature();

    if let Some((_, Some(named))) = method
        && digest_alg.is_some_and(|d| d != named)
    {
        let detail = format!(
            "the signature algorithm is {}, the digest algorithm {}",
            info.signature_algorithm.name(),
            info.digest_algorithm.name()
        );
        notes.push(Note::new(role.of(Code::SigAlgMismatch, Code::TspBinding), detail).at(info.tlv.span()));
    }

    let mut signing_time = None;
    let signed_digest = match (&info.signed_attributes, content_digest) {
        (Some(attributes), Some(content)) => {
            match attributes.single(oid::MESSAGE_DIGEST).map(|v| v.octets()) {
                Some(Ok(stated)) if stated.as_ref() == content.as_bytes() => {}
                Some(Ok(stated)) => {
                    let detail = format!("messageDigest is {}, the content's digest {}", hex::encode(&stated), content.hex());
                    notes.push(Note::new(role.of(Code::SigMessageDigest, Code::TspBinding), detail).at(attributes.tlv.span()));
                }
                _ => notes.push(Note::new(malformed, "no messageDigest attribute").at(attributes.tlv.span())),
            }
            match attributes.single(oid::CONTENT_TYPE).map(|v| v.oid()) {
                Some(Ok(stated)) if stated == content_type => {}
                Some(Ok(stated)) => {
                    let detail = format!("contentType is {stated}, the content is {content_type}");
                    notes.push(Note::new(role.of(Code::SigContentType, Code::TspBinding), detail).at(attributes.tlv.span()));
                }
                _ => notes.push(Note::new(malformed, "no contentType attribute").at(attributes.tlv.span())),
            }
            if !attributes.is_sorted() && role == Role::Signer {
                notes.push(Note::new(Code::SigAttributeOrder, "").at(attributes.tlv.span()));
            }
            signing_time = attributes.single(oid::SIGNING_TIME).and_then(|v| v.time().ok());
            digest_alg.map(|alg| attributes.digest(alg))
        }
        (Some(attributes), None) => digest_alg.map(|alg| attributes.digest(alg)),
        (None, content) => content,
    };

    let (issuer_der, serial, key_id) = match info.id {
        SignerId::IssuerSerial { issuer, serial } => (issuer, serial, &[][..]),
        SignerId::KeyId(id) => (&[][..], &[][..], id),
    };
    let mut signer = Signer {
        issuer: String::new(),
        issuer_der: issuer_der.to_vec(),
        serial: serial.to_vec(),
        key_id: key_id.to_vec(),
        certificate: None,
        algorithm: info.signature_algorithm.name(),
        scheme: method.map(|(scheme, _)| scheme),
        signed_digest,
        value: info.signature.to_vec(),
        check: SignatureCheck::NoCertificate,
        signing_time,
    };

    // several certificates may bear the name; the one whose key made the signature is the signer's
    for index in candidates.iter().copied() {
        let Some(certificate) = pool.get(index).filter(|c| signer.names(c)).map(Arc::clone) else { continue };
        if pool.verifications.spend().is_err() {
            notes.push(Note::new(Code::SigTooMany, format!("the limit is {MAX_VERIFICATIONS} verifications")).at(info.tlv.span()));
            break;
        }
        let check = pool.cache.check_made_by(&signer, &certificate);
        if signer.certificate.is_none() || check.is_valid() {
            signer.certificate = Some(index);
            signer.check = check;
        }
        if check.is_valid() {
            break;
        }
    }
    if signer.certificate.is_none() && (signer.scheme.is_none() || signer.signed_digest.is_none()) {
        signer.check = SignatureCheck::Unsupported;
    }
    let certificate = signer.certificate.and_then(|i| pool.get(i));
    if !issuer_der.is_empty() {
        signer.issuer = certificate.map_or_else(|| name_text(issuer_der), |c| c.issuer());
    }
    let note = match signer.check {
        SignatureCheck::Valid => None,
        SignatureCheck::ValidBareHash => Some(Note::new(Code::SigBareHash, "")),
        SignatureCheck::Invalid => Some(Note::new(role.of(Code::SigInvalid, Code::TspInvalid), "")),
        SignatureCheck::NoCertificate if role == Role::Timestamp => Some(Note::new(Code::TspNoSigner, signer.identity())),
        // for a file's signer the caller says whether that matters: module signatures come without certificates
        SignatureCheck::NoCertificate => None,
        SignatureCheck::Unsupported => {
            let detail = format!("signature {}, digest {}", info.signature_algorithm.name(), info.digest_algorithm.name());
            Some(Note::new(role.of(Code::SigUnsupported, Code::TspInvalid), format!("not supported: {detail}")))
        }
    };
    if let Some(note) = note {
        let note = note.at(info.tlv.span());
        notes.push(match certificate {
            Some(certificate) => note.of(certificate.subject()),
            None => note,
        });
    }
    signer
}

impl Signer {
    /// Whether it says that `certificate` is its own: the same issuer *and* serial number, or the same key identifier.
    pub fn names(&self, certificate: &Certificate) -> bool {
        if self.key_id.is_empty() {
            certificate.issuer_der() == self.issuer_der && certificate.serial() == self.serial
        } else {
            certificate.subject_key_id() == Some(&self.key_id)
        }
    }

    /// How it names its certificate, for a person.
    pub fn identity(&self) -> String {
        if self.key_id.is_empty() {
            format!("issuer {}, serial number {}", self.issuer, hex::encode(&self.serial))
        } else {
            format!("key identifier {}", hex::encode(&self.key_id))
        }
    }

    /// Whether the key of `certificate` made the signature. Arithmetic only: whether the signer names that certificate is another question.
    pub fn check_with(&self, certificate: &Certificate) -> SignatureCheck {
        let (Some(scheme), Some(digest)) = (self.scheme, self.signed_digest) else { return SignatureCheck::Unsupported };
        let Ok(key) = certificate.public_key() else { return SignatureCheck::Unsupported };
        match key.verify(scheme, &digest, &self.value) {
            Ok(SignatureForm::Standard) => SignatureCheck::Valid,
            Ok(SignatureForm::BareHash) => SignatureCheck::ValidBareHash,
            Err(VerifyError::Unsupported(_)) => SignatureCheck::Unsupported,
            Err(_) => SignatureCheck::Invalid,
        }
    }
}

/// Reads a PKCS#7 blob and the timestamp tokens in it down to the spans of their certificates, attributes and signers, and checks nothing.
/// Returns how many certificates there are. For measuring the reader by itself; [`crate::examine`] reads files.
///
/// # Errors
/// Not a SignedData.
#[doc(hidden)]
pub fn read_blob(blob: &[u8]) -> Result<usize> {
    let data = SignedData::parse(blob, 0)?;
    let mut certificates = data.certificates.len();
    for attribute in data.signers.iter().flat_map(|s| &s.unsigned_attributes).flat_map(Attributes::iter) {
        if matches!(attribute.oid(), Some(oid::RFC3161_COUNTERSIGN | oid::TIMESTAMP_TOKEN)) {
            for token in attribute.values()? {
                certificates = certificates.saturating_add(SignedData::parse(token.raw, token.offset)?.certificates.len());
            }
        }
    }
    Ok(certificates)
}
