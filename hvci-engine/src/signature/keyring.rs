//! Certificates out of keyring files: PEM, DER, PKCS#7 (`--roots`, `--kernel` keys, distribution CA bundles).
//!
//! The file is the operator's own, so one certificate in it that cannot be read is an error and not passed over.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::collections::BTreeSet;

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::cert::Certificate;
use crate::{
    bytes::{
        Span,
        der::{self, DerErrorKind, Reader, Tlv, tag},
    },
    finding::Code,
    image::ImageError,
    oid,
};

/// The certificates in a keyring file, as DER, in their order, each once: PEM blocks with any text between them, DER certificates back to
/// back, or a PKCS#7 SignedData for its certificates only (`.p7b`), the last also as PEM.
///
/// # Errors
/// [`Code::PkiMalformed`] where there is no certificate, or one that cannot be read.
pub fn certificates_from(bytes: &[u8]) -> Result<Vec<Vec<u8>>, ImageError> {
    let mut found = Vec::new();
    // long-form lengths are no text, so that this is no PEM that begins with a "0"
    if matches!(bytes, [tag::SEQUENCE, length, ..] if !length.is_ascii()) {
        from_der(bytes, 0, &mut found)?;
    } else {
        for block in pem_blocks(bytes)? {
            from_der(&block.der, block.offset, &mut found)?;
        }
    }
    if found.is_empty() {
        return Err(ImageError::new(Code::PkiMalformed, "no certificate: neither PEM nor DER nor PKCS#7"));
    }
    Ok(unique(found.iter().map(Vec::as_slice)))
}

/// Each value once, in the order of their first places.
pub(super) fn unique<'a>(certificates: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let mut seen = BTreeSet::new();
    certificates.filter(|der| seen.insert(*der)).map(<[u8]>::to_vec).collect()
}

/// The certificate that `bytes` begin with, if they do.
pub(super) fn certificate(bytes: &[u8]) -> Option<&[u8]> {
    let element = Reader::new(bytes, 0).next().ok()?;
    let shape = || -> der::Result<()> {
        let mut parts = element.expect(tag::SEQUENCE)?.reader()?;
        for expected in [tag::SEQUENCE, tag::SEQUENCE, tag::BIT_STRING] {
            parts.expect(expected)?;
        }
        parts.finish()
    };
    shape().ok()?;
    Certificate::parse(element.raw).ok().map(|_| element.raw)
}

fn from_der(bytes: &[u8], offset: usize, found: &mut Vec<Vec<u8>>) -> Result<(), ImageError> {
    let malformed = |e: der::DerError| ImageError::new(Code::PkiMalformed, e.to_string()).at(Span::new(e.offset, 1));
    let mut elements = Reader::new(bytes, offset);
    while !elements.is_empty() {
        let element = elements.next().map_err(malformed)?;
        if element.reader().map_err(malformed)?.peek_tag() == Some(tag::OID) {
            for tlv in signed_data_certificates(&element).map_err(malformed)? {
                push(&tlv, found)?;
            }
        } else {
            push(&element, found)?;
        }
    }
    Ok(())
}

fn push(element: &Tlv<'_>, found: &mut Vec<Vec<u8>>) -> Result<(), ImageError> {
    let der = certificate(element.raw).ok_or_else(|| ImageError::new(Code::PkiMalformed, "no X.509 certificate").at(element.span()))?;
    found.push(der.to_vec());
    Ok(())
}

/// `certificates [0]` of a ContentInfo with SignedData (RFC 5652 §3, §5.1); other choices than `certificate` are passed over.
fn signed_data_certificates<'a>(content_info: &Tlv<'a>) -> der::Result<Vec<Tlv<'a>>> {
    let mut parts = content_info.expect(tag::SEQUENCE)?.reader()?;
    let content_type = parts.next()?;
    if content_type.oid()? != oid::SIGNED_DATA {
        return Err(content_type.error(DerErrorKind::Value));
    }
    let mut content = parts.expect(tag::context_constructed(0))?.reader()?;
    let mut signed_data = content.expect(tag::SEQUENCE)?.reader()?;
    signed_data.expect(tag::INTEGER)?;
    signed_data.expect(tag::SET)?;
    signed_data.expect(tag::SEQUENCE)?;
    let mut found = Vec::new();
    if let Some(certificates) = signed_data.optional(tag::context_constructed(0))? {
        let mut choices = certificates.reader()?;
        while !choices.is_empty() {
            let choice = choices.next()?;
            if choice.tag == tag::SEQUENCE {
                found.push(choice);
            }
        }
    }
    Ok(found)
}

struct Block {
    der: Vec<u8>,
    /// Offset of the encapsulation boundary in the file
    offset: usize,
}

/// Content of every block whose label is one of certificates (RFC 7468 §5, §8, and labels of older programs). Text outside of blocks,
/// headers and other blocks are passed over.
fn pem_blocks(bytes: &[u8]) -> Result<Vec<Block>, ImageError> {
    let mut blocks = Vec::new();
    let mut open: Option<(&[u8], usize, Vec<u8>)> = None;
    let mut offset = 0_usize;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let text = line.trim_ascii();
        let label = |edge: &[u8]| text.strip_prefix(edge)?.strip_suffix(b"-----");
        if let Some(label) = label(b"-----BEGIN ") {
            open = Some((label, offset, Vec::new()));
        } else if label(b"-----END ").is_some() {
            if let Some((label, offset, base64)) = open.take()
                && LABELS.contains(&label)
            {
                let der = BASE64_STANDARD
                    .decode(base64)
                    .map_err(|e| ImageError::new(Code::PkiMalformed, format!("PEM: {e}")).at(Span::new(offset, 1)))?;
                blocks.push(Block { der, offset });
            }
        } else if let Some((_, _, base64)) = &mut open {
            base64.extend_from_slice(text);
        }
        offset = offset.saturating_add(line.len());
    }
    match open {
        Some((label, offset, _)) if LABELS.contains(&label) => {
            Err(ImageError::new(Code::PkiMalformed, "PEM block without end").at(Span::new(offset, 1)))
        }
        _ => Ok(blocks),
    }
}

const LABELS: [&[u8]; 4] = [b"CERTIFICATE", b"X509 CERTIFICATE", b"PKCS7", b"CMS"];

#[cfg(test)]
mod tests {}
