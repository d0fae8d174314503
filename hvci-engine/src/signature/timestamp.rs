//! Timestamps on signatures: PKCS#9 countersignatures (RFC 2985 §5.3.6) and RFC 3161 tokens.
//!
//! A timestamp proves a time only if it is bound to the signature it stands on: imprint or messageDigest = H(signature value), the token's
//! attributes name its TSTInfo, and the authority's key signed them. Each link is checked here and a broken one is a note; whether the
//! authority is trusted is the policy's to say.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use super::{
    algorithm::Algorithm,
    cert::Certificate,
    cms::{Attributes, Pool, Role, SignedData, SignerInfo, check_signer},
};
use crate::{
    bytes::der::{DerErrorKind, Result, Tlv, tag},
    crypto,
    digest::{Digest, DigestAlg},
    facts::{Timestamp, TimestampKind},
    finding::{Code, Note},
    oid,
    time::UnixTime,
};

/// Reads a countersignature on `signature_value`; its certificate is among `candidates`, those of the signature it stands on.
pub(super) fn read_pkcs9(value: Tlv<'_>, signature_value: &[u8], candidates: &[usize], pool: &mut Pool<'_>) -> Timestamp {
    let mut timestamp = empty(TimestampKind::Pkcs9, &value);
    let info = match SignerInfo::parse(value) {
        Ok(info) => info,
        Err(e) => return malformed(timestamp, &e.to_string(), &value),
    };
    let digest = info.digest_algorithm.digest().map(|alg| crypto::digest(alg, &[signature_value]));
    let signer = check_signer(&info, oid::DATA, digest, candidates, pool, Role::Timestamp, &mut timestamp.notes);
    timestamp.time = signer.signing_time;
    if timestamp.time.is_none() {
        timestamp.notes.push(Note::new(Code::TspMalformed, "no signingTime attribute").at(value.span()));
    }
    note_weak(&mut timestamp.notes, info.digest_algorithm.digest(), &value);
    timestamp.signer = Some(signer);
    timestamp
}

/// Reads a token on `signature_value`, whose own digest algorithm is `signature_alg`. Certificates that the token leaves out are looked for
/// among `outer`, those of the signature it stands on.
pub(super) fn read_rfc3161(
    value: Tlv<'_>,
    signature_value: &[u8],
    signature_alg: Option<DigestAlg>,
    outer: &[usize],
    pool: &mut Pool<'_>,
) -> Timestamp {
    let mut timestamp = empty(TimestampKind::Rfc3161, &value);
    let parsed = SignedData::parse(value.raw, value.offset).and_then(|token| {
        let octets = token.content_octets()?.ok_or_else(|| value.error(DerErrorKind::Value))?;
        Ok((token, octets))
    });
    let (token, octets) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => return malformed(timestamp, &e.to_string(), &value),
    };
    timestamp.certificates = pool.add_all(&token.certificates, &mut timestamp.notes);

    let content_offset = token.content.as_ref().map_or(value.offset, |c| c.content_offset);
    let info = match TstInfo::parse(&octets, content_offset) {
        Ok(info) => info,
        Err(e) => return malformed(timestamp, &e.to_string(), &value),
    };
    timestamp.time = Some(info.time);
    if token.content_type != oid::TST_INFO {
        timestamp.notes.push(Note::new(Code::TspBinding, format!("the token's content is {}", token.content_type)).at(value.span()));
    }
    match info.imprint_alg {
        Some(alg) => {
            let calculated = crypto::digest(alg, &[signature_value]);
            if info.imprint != calculated.as_bytes() {
                let detail = format!("imprint is {}, the signature's digest {}", hex::encode(info.imprint), calculated.hex());
                timestamp.notes.push(Note::new(Code::TspImprint, detail).at(value.span()));
            }
            if signature_alg.is_some_and(|s| s != alg) {
                timestamp.notes.push(Note::new(Code::TspAlgMismatch, format!("the imprint is {alg}")).at(value.span()));
            }
            note_weak(&mut timestamp.notes, Some(alg), &value);
        }
        None => timestamp.notes.push(Note::new(Code::TspImprint, "imprint of an unknown digest algorithm").at(value.span())),
    }

    let [signer_info] = token.signers.as_slice() else {
        // RFC 3161 §2.4.2: one signature, that of the authority
        return malformed(timestamp, &format!("{} SignerInfos instead of one", token.signers.len()), &value);
    };
    let candidates: Vec<usize> = timestamp.certificates.iter().chain(outer).copied().collect();
    let digest = signer_info.digest_algorithm.digest().map(|alg| crypto::digest(alg, &[&octets]));
    let signer = check_signer(signer_info, oid::TST_INFO, digest, &candidates, pool, Role::Timestamp, &mut timestamp.notes);
    match &signer_info.signed_attributes {
        Some(attributes) => {
            if let Some(certificate) = signer.certificate.and_then(|i| pool.list.get(i))
                && ess_certificate_matches(attributes, certificate) == Some(false)
            {
                timestamp
                    .notes
                    .push(Note::new(Code::TspBinding, "signingCertificate names another certificate").at(signer_info.tlv.span()));
            }
        }
        None => timestamp.notes.push(Note::new(Code::TspBinding, "no signed attributes").at(signer_info.tlv.span())),
    }
    timestamp.signer = Some(signer);
    timestamp
}

/// TSTInfo (RFC 3161 §2.4.2), as far as it is looked at.
struct TstInfo<'a> {
    imprint_alg: Option<DigestAlg>,
    imprint: &'a [u8],
    time: UnixTime,
}

impl<'a> TstInfo<'a> {
    fn parse(bytes: &'a [u8], offset: usize) -> Result<Self> {
        let mut reader = Tlv::parse_exact(bytes, offset)?.expect(tag::SEQUENCE)?.reader()?;
        reader.expect(tag::INTEGER)?;
        reader.expect(tag::OID)?;
        let mut imprint = reader.expect(tag::SEQUENCE)?.reader()?;
        let imprint_alg = Algorithm::parse(imprint.next()?)?.digest();
        let hashed = imprint.expect(tag::OCTET_STRING)?.content;
        imprint.finish()?;
        reader.expect(tag::INTEGER)?;
        let time = reader.expect(tag::GENERALIZED_TIME)?.time()?;
        Ok(Self { imprint_alg, imprint: hashed, time })
    }
}

/// Whether signingCertificate or signingCertificateV2 (RFC 5035 §3, §4) names `certificate`; `None` if there is neither, or none that can be read.
fn ess_certificate_matches(attributes: &Attributes<'_>, certificate: &Certificate) -> Option<bool> {
    let first_id = |value: Tlv<'_>| -> Result<(DigestAlg, Vec<u8>)> {
        let v2 = value.reader()?.expect(tag::SEQUENCE)?;
        let mut id = v2.reader()?.expect(tag::SEQUENCE)?.reader()?;
        let alg = match id.optional(tag::SEQUENCE)? {
            Some(alg) => Algorithm::parse(alg)?.digest().ok_or_else(|| alg.error(DerErrorKind::Value))?,
            None => DigestAlg::Sha256,
        };
        Ok((alg, id.expect(tag::OCTET_STRING)?.content.to_vec()))
    };
    let (alg, stated) = match attributes.single(oid::SIGNING_CERTIFICATE_V2) {
        Some(value) => first_id(value).ok()?,
        // version 1 has no algorithm: always SHA-1
        None => (DigestAlg::Sha1, first_id(attributes.single(oid::SIGNING_CERTIFICATE)?).ok()?.1),
    };
    let calculated: Digest = crypto::digest(alg, &[certificate.der()]);
    Some(calculated.as_bytes() == stated)
}

fn note_weak(notes: &mut Vec<Note>, alg: Option<DigestAlg>, value: &Tlv<'_>) {
    if let Some(weak @ (DigestAlg::Md5 | DigestAlg::Sha1)) = alg {
        notes.push(Note::new(Code::TspWeak, weak.name()).at(value.span()));
    }
}

fn empty(kind: TimestampKind, value: &Tlv<'_>) -> Timestamp {
    Timestamp { kind, span: Some(value.span()), time: None, signer: None, certificates: Vec::new(), notes: Vec::new() }
}

fn malformed(mut timestamp: Timestamp, detail: &str, value: &Tlv<'_>) -> Timestamp {
    timestamp.notes.push(Note::new(Code::TspMalformed, detail).at(value.span()));
    timestamp
}
