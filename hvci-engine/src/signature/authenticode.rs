//! Authenticode signatures: SignedData over SpcIndirectDataContent, with their timestamps and the signatures nested in them
//! (Microsoft, "Windows Authenticode Portable Executable Signature Format", 2008; nested signatures: szOID_NESTED_SIGNATURE).
//!
//! Reads one PKCS#7 blob into the facts of its own signature and of every nested one. What the image itself hashes to is filled in later
//! by [`crate::examine`], when the digests that these signatures ask for have been calculated.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use super::{
    algorithm::Algorithm,
    cms::{Attributes, Pool, Role, SignedData, check_signer},
    timestamp,
};
use crate::{
    budget::{MAX_NESTING, MAX_SIGNATURES, MAX_TIMESTAMPS},
    bytes::{
        Span,
        der::{DerErrorKind, Reader, Result, Tlv, tag},
    },
    crypto,
    digest::{Digest, DigestAlg},
    facts::{Coverage, DigestForm, Signature, SignatureCheck, Source},
    finding::{Code, Note},
    oid::{self, Oid},
};

/// A page-hash table as a signature carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageTable<'a> {
    /// Algorithm of the hashes.
    pub(crate) alg: DigestAlg,
    /// Pairs of a little-endian 32-bit file offset and a hash.
    pub(crate) table: std::borrow::Cow<'a, [u8]>,
    /// Where it stands in the file.
    pub(crate) span: Span,
}

/// A signature, and what of it only the image can confirm.
#[derive(Debug)]
pub(crate) struct Read<'a> {
    pub(crate) signature: Signature,
    pub(crate) page_table: Option<PageTable<'a>>,
}

/// Reads the PKCS#7 `blob`, which stands at `offset` in the file as entry `entry` of the certificate table: behind what was `found` in the
/// file before, its own signature first, then the nested ones, outermost first.
pub(crate) fn read<'a>(blob: &'a [u8], offset: usize, entry: u32, pool: &mut Pool<'_>, found: &mut Vec<Read<'a>>) {
    read_level(blob, offset, Source::Embedded(entry), pool, found);
}

/// Whether edk2 recognises the signature: `HashPeImageByType` looks for the digest algorithm at a fixed place, which it has where the outermost
/// length takes two bytes.
pub(crate) fn is_seen_by_edk2(blob: &[u8]) -> bool {
    const ALGORITHM: usize = 32;
    let two_bytes = blob.get(1).is_some_and(|length| length & 0x82 == 0x82);
    let known = [oid::SHA1, oid::SHA256, oid::SHA384, oid::SHA512];
    two_bytes && blob.get(ALGORITHM..).is_some_and(|rest| known.iter().any(|oid| rest.starts_with(oid.as_bytes())))
}

fn read_level<'a>(blob: &'a [u8], offset: usize, source: Source, pool: &mut Pool<'_>, found: &mut Vec<Read<'a>>) {
    let span = Span::new(offset, blob.len());
    let mut signature = Signature::new(source, Some(span));
    let data = match SignedData::parse(blob, offset) {
        Ok(data) => data,
        Err(e) => {
            let code = if matches!(signature.source, Source::Nested { .. }) { Code::SigNested } else { Code::SigMalformed };
            signature.notes.push(Note::new(code, e.to_string()).at(span));
            found.push(Read { signature, page_table: None });
            return;
        }
    };
    signature.span = Some(data.whole.span());
    let page_table = match data.content.map(IndirectData::parse) {
        Some(Ok(content)) if data.content_type == oid::SPC_INDIRECT_DATA => content.record(&data, &mut signature),
        Some(Err(e)) => {
            signature.notes.push(Note::new(Code::SigMalformed, format!("SpcIndirectDataContent: {e}")).at(span));
            None
        }
        _ => {
            let detail = format!("content is {}, not SpcIndirectDataContent", data.content_type);
            signature.notes.push(Note::new(Code::SigContentType, detail).at(span));
            None
        }
    };
    let nested = read_signed_data(&data, &mut signature, pool);
    let source = signature.source.clone();
    let own = found.len();
    found.push(Read { signature, page_table });

    for (index, value) in nested.into_iter().enumerate() {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let (entry, mut path) = match &source {
            Source::Nested { entry, path } => (*entry, path.clone()),
            Source::Embedded(entry) => (*entry, Vec::new()),
            _ => return,
        };
        path.push(index);
        if path.len() > MAX_NESTING || found.len() >= MAX_SIGNATURES {
            if let Some(outer) = found.get_mut(own) {
                outer.signature.notes.push(
                    Note::new(Code::SigTooMany, format!("the limit is {MAX_SIGNATURES}, nested {MAX_NESTING} deep")).at(value.span()),
                );
            }
            return;
        }
        read_level(value.raw, value.offset, Source::Nested { entry, path }, pool, found);
    }
}

/// What every SignedData over a file has in common, whatever its content: certificates, signer, attributes, timestamps.
/// Returns the values of nested-signature attributes.
pub(super) fn read_signed_data<'a>(data: &SignedData<'a>, signature: &mut Signature, pool: &mut Pool<'_>) -> Vec<Tlv<'a>> {
    if data.is_ber() {
        signature.notes.push(Note::new(Code::SigBer, "").at(data.whole.span()));
    }
    signature.certificates = pool.add_all(&data.certificates, &mut signature.notes);
    if let Some(crls) = data.crls.filter(|c| !c.content.is_empty()) {
        let detail = format!("{} bytes", crls.raw.len());
        signature.notes.push(Note::new(Code::SigUnsignedAttribute, detail).of("crls").at(crls.span()));
    }
    let Some((info, others)) = data.signers.split_first() else {
        signature.notes.push(Note::new(Code::SigMalformed, "no SignerInfo").at(data.whole.span()));
        return Vec::new();
    };
    if !others.is_empty() {
        let detail = format!("{} SignerInfos", data.signers.len());
        signature.notes.push(Note::new(Code::SigMultipleSigners, detail).at(data.whole.span()));
    }
    let digest_alg = info.digest_algorithm.digest();
    if !data.digest_algorithms.iter().any(|a| a.oid == info.digest_algorithm.oid) {
        let detail = format!("the signer uses {}, which digestAlgorithms does not list", info.digest_algorithm.name());
        signature.notes.push(Note::new(Code::SigAlgMismatch, detail).at(info.tlv.span()));
    }
    // the attributes of a signature without eContent are bound to nothing; the caller has noted that
    let content = data.content_octets().ok().flatten();
    let content_digest = content.and_then(|octets| Some(crypto::digest(digest_alg?, &[&octets])));
    let signer = check_signer(info, data.content_type, content_digest, &signature.certificates, pool, Role::Signer, &mut signature.notes);
    if signer.check == SignatureCheck::NoCertificate {
        signature.notes.push(Note::new(Code::SigNoSigner, signer.identity()).at(info.tlv.span()));
    }
    if let Some(weak @ (DigestAlg::Md5 | DigestAlg::Sha1)) = digest_alg {
        signature.notes.push(Note::new(Code::SigWeakDigest, weak.name()).at(info.tlv.span()));
    }
    match &info.signed_attributes {
        Some(attributes) => read_signed_attributes(attributes, signature),
        None => signature.notes.push(Note::new(Code::SigMalformed, "no signed attributes").at(info.tlv.span())),
    }
    signature.signer = Some(signer);

    let mut nested = Vec::new();
    for attribute in info.unsigned_attributes.iter().flat_map(Attributes::iter) {
        let values = match attribute.values() {
            Ok(values) => values,
            Err(e) => {
                signature.notes.push(Note::new(Code::SigUnsignedAttribute, e.to_string()).at(attribute.tlv.span()));
                continue;
            }
        };
        match attribute.oid() {
            Some(oid::COUNTERSIGNATURE) => {
                for value in first_timestamps(values, signature) {
                    signature.timestamps.push(timestamp::read_pkcs9(value, &info.signature, &signature.certificates, pool));
                }
            }
            Some(oid::RFC3161_COUNTERSIGN | oid::TIMESTAMP_TOKEN) => {
                for value in first_timestamps(values, signature) {
                    signature.timestamps.push(timestamp::read_rfc3161(value, &info.signature, digest_alg, &signature.certificates, pool));
                }
            }
            Some(oid::NESTED_SIGNATURE) => nested.extend(values),
            // carries nothing but a number that Microsoft's tools put there
            Some(oid::SEQUENCE_NUMBER) if attribute.tlv.raw.len() < 64 => {}
            other => {
                let name = other.map_or_else(|| "an over-long identifier".to_owned(), |o| o.to_string());
                let detail = format!("{} bytes", attribute.tlv.raw.len());
                signature.notes.push(Note::new(Code::SigUnsignedAttribute, detail).of(name).at(attribute.tlv.span()));
            }
        }
    }
    nested
}

/// As many of `values`, which are timestamps, as are still looked at.
fn first_timestamps<'a>(mut values: Vec<Tlv<'a>>, signature: &mut Signature) -> Vec<Tlv<'a>> {
    let left = MAX_TIMESTAMPS.saturating_sub(signature.timestamps.len());
    if let Some(more) = values.get(left) {
        signature.notes.push(Note::new(Code::SigTooMany, format!("the limit is {MAX_TIMESTAMPS} timestamps")).at(more.span()));
        values.truncate(left);
    }
    values
}

fn read_signed_attributes(attributes: &Attributes<'_>, signature: &mut Signature) {
    if let Some(opus) = attributes.single(oid::SPC_SP_OPUS_INFO) {
        match read_opus(opus) {
            Ok((name, link)) => (signature.program_name, signature.more_info) = (name, link),
            Err(e) => signature.notes.push(Note::new(Code::SigSpcType, format!("SpcSpOpusInfo: {e}")).at(opus.span())),
        }
    }
    if let Some(statement) = attributes.single(oid::SPC_STATEMENT_TYPE)
        && let Ok(mut purposes) = statement.reader()
    {
        while let Ok(purpose) = purposes.next() {
            signature.statement_types.extend(purpose.oid().ok().map(|o| o.to_string()));
        }
    }
}

/// SpcSpOpusInfo ::= SEQUENCE { programName `[0]` EXPLICIT SpcString OPTIONAL, moreInfo `[1]` EXPLICIT SpcLink OPTIONAL }
fn read_opus(value: Tlv<'_>) -> Result<(Option<String>, Option<String>)> {
    let mut reader = value.expect(tag::SEQUENCE)?.reader()?;
    let name = reader.optional(tag::context_constructed(0))?.map(|t| spc_string(t.reader()?.next()?)).transpose()?;
    let link = match reader.optional(tag::context_constructed(1))? {
        Some(explicit) => match explicit.reader()?.next()? {
            url if url.tag == tag::context(0) => Some(String::from_utf8_lossy(url.content).into_owned()),
            file if file.tag == tag::context_constructed(2) => Some(spc_string(file.reader()?.next()?)?),
            _ => None,
        },
        None => None,
    };
    Ok((name.filter(|n| !n.is_empty()), link.filter(|l| !l.is_empty())))
}

/// SpcString ::= CHOICE { unicode `[0]` IMPLICIT BMPString, ascii `[1]` IMPLICIT IA5String }
fn spc_string(tlv: Tlv<'_>) -> Result<String> {
    match tlv.tag {
        t if t == tag::context(0) => Ok(tlv.implicit(tag::BMP_STRING).text()),
        t if t == tag::context(1) => Ok(String::from_utf8_lossy(tlv.content).into_owned()),
        _ => Err(tlv.error(DerErrorKind::Value)),
    }
}

/// SpcIndirectDataContent ::= SEQUENCE { data SpcAttributeTypeAndOptionalValue, messageDigest DigestInfo }
pub(super) struct IndirectData<'a> {
    attribute_type: Oid,
    attribute_value: Option<Tlv<'a>>,
    pub(super) digest: Option<Digest>,
    digest_algorithm: Algorithm<'a>,
    tlv: Tlv<'a>,
}

impl<'a> IndirectData<'a> {
    pub(super) fn parse(tlv: Tlv<'a>) -> Result<Self> {
        // CMS puts the structure into an OCTET STRING, PKCS#7 does not; both occur
        let tlv = if tlv.tag == tag::OCTET_STRING { Reader::new(tlv.content, tlv.content_offset).next()? } else { tlv };
        let mut reader = tlv.expect(tag::SEQUENCE)?.reader()?;
        let mut attribute = reader.expect(tag::SEQUENCE)?.reader()?;
        let attribute_type = attribute.next()?.oid()?;
        let attribute_value = if attribute.is_empty() { None } else { Some(attribute.next()?) };
        let mut info = reader.expect(tag::SEQUENCE)?.reader()?;
        let digest_algorithm = Algorithm::parse(info.next()?)?;
        let octets = info.expect(tag::OCTET_STRING)?;
        let digest = match digest_algorithm.digest() {
            Some(alg) => Some(Digest::new(alg, octets.content).ok_or_else(|| octets.error(DerErrorKind::Value))?),
            None => None,
        };
        Ok(Self { attribute_type, attribute_value, digest, digest_algorithm, tlv })
    }

    /// Whether the digest is one of a PE image (an authentihash) and not of a flat file.
    pub(super) fn is_image(&self) -> bool {
        self.attribute_type == oid::SPC_PE_IMAGE_DATA
    }

    fn record(self, data: &SignedData<'a>, signature: &mut Signature) -> Option<PageTable<'a>> {
        let span = self.tlv.span();
        match self.digest {
            Some(signed) => signature.coverage = Some(Coverage { form: DigestForm::Linear, signed, calculated: None }),
            None => signature.notes.push(Note::new(Code::SigUnsupported, format!("digest {}", self.digest_algorithm.name())).at(span)),
        }
        if data.signers.first().is_some_and(|s| s.digest_algorithm.oid != self.digest_algorithm.oid) {
            let detail = format!("the image digest is {}", self.digest_algorithm.name());
            signature.notes.push(Note::new(Code::SigAlgMismatch, detail).at(span));
        }
        if !self.is_image() {
            signature.notes.push(Note::new(Code::SigSpcType, format!("type is {}", self.attribute_type)).at(span));
        }
        match self.attribute_value.map(page_table) {
            Some(Ok(table)) => table,
            Some(Err(e)) => {
                // some signing tools write the value by hand; only page hashes inside would matter
                signature.notes.push(Note::new(Code::SigSpcType, format!("SpcPeImageData: {e}")).at(span));
                None
            }
            None => None,
        }
    }
}

/// Class identifier of the SpcSerializedObject that holds page hashes (a6b586d5-b4a1-2466-ae05-a217da8e60d6, as the bytes stand).
const PAGE_HASH_CLASS: [u8; 16] = [0xa6, 0xb5, 0x86, 0xd5, 0xb4, 0xa1, 0x24, 0x66, 0xae, 0x05, 0xa2, 0x17, 0xda, 0x8e, 0x60, 0xd6];

/// SpcPeImageData ::= SEQUENCE { flags BIT STRING, file `[0]` EXPLICIT SpcLink }, where the link may be a serialised page-hash table:
/// SET OF SEQUENCE { type OBJECT IDENTIFIER, SET OF OCTET STRING }.
fn page_table(value: Tlv<'_>) -> Result<Option<PageTable<'_>>> {
    let mut reader = value.expect(tag::SEQUENCE)?.reader()?;
    reader.optional(tag::BIT_STRING)?;
    let Some(file) = reader.optional(tag::context_constructed(0))? else { return Ok(None) };
    let link = file.reader()?.next()?;
    if link.tag != tag::context_constructed(1) {
        return Ok(None);
    }
    let mut object = link.reader()?;
    if object.expect(tag::OCTET_STRING)?.content != PAGE_HASH_CLASS {
        return Ok(None);
    }
    let serialised = object.expect(tag::OCTET_STRING)?;
    let mut attributes = Reader::new(serialised.content, serialised.content_offset).expect(tag::SET)?.reader()?;
    while !attributes.is_empty() {
        let mut attribute = attributes.expect(tag::SEQUENCE)?.reader()?;
        let alg = match attribute.next()?.oid()? {
            oid::SPC_PAGE_HASHES_V1 => DigestAlg::Sha1,
            oid::SPC_PAGE_HASHES_V2 => DigestAlg::Sha256,
            _ => continue,
        };
        let table = attribute.expect(tag::SET)?.reader()?.next()?;
        return Ok(Some(PageTable { alg, table: table.octets()?, span: table.span() }));
    }
    Ok(None)
}
