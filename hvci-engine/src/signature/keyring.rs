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
        from_der(bytes, &mut found)?;
    } else {
        for block in pem_blocks(bytes)? {
            from_der(&block.der, &mut found).map_err(|e| e.at(block.span))?;
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

fn from_der(bytes: &[u8], found: &mut Vec<Vec<u8>>) -> Result<(), ImageError> {
    let malformed = |e: der::DerError| ImageError::new(Code::PkiMalformed, e.to_string()).at(Span::new(e.offset, 1));
    let mut elements = Reader::new(bytes, 0);
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
    /// Where it stands in the file, with its boundaries
    span: Span,
}

/// Content of every block whose label is one of certificates (RFC 7468 §5, §8, and labels of older programs). Text outside of blocks,
/// headers and other blocks are passed over.
fn pem_blocks(bytes: &[u8]) -> Result<Vec<Block>, ImageError> {
    let malformed = |from: usize, to: usize, detail: String| {
        ImageError::new(Code::PkiMalformed, format!("PEM block: {detail}")).at(Span::new(from, to.saturating_sub(from)))
    };
    let mut blocks = Vec::new();
    // offset and base64 of the block of certificates that is open
    let mut open: Option<(usize, Vec<u8>)> = None;
    let mut offset = 0_usize;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let (text, end) = (line.trim_ascii(), offset.saturating_add(line.len()));
        let label = |edge: &[u8]| text.strip_prefix(edge)?.strip_suffix(b"-----").filter(|label| LABELS.contains(label));
        if label(b"-----BEGIN ").is_some() {
            if let Some((from, _)) = open.replace((offset, Vec::new())) {
                return Err(malformed(from, offset, "no end".to_owned()));
            }
        } else if label(b"-----END ").is_some() {
            let (from, base64) = open.take().ok_or_else(|| malformed(offset, end, "no beginning".to_owned()))?;
            let der = BASE64_STANDARD.decode(base64).map_err(|e| malformed(from, end, e.to_string()))?;
            blocks.push(Block { der, span: Span::new(from, end.saturating_sub(from)) });
        } else if let Some((_, base64)) = &mut open {
            base64.extend_from_slice(text);
        }
        offset = end;
    }
    match open {
        Some((from, _)) => Err(malformed(from, offset, "no end".to_owned())),
        None => Ok(blocks),
    }
}

const LABELS: [&[u8]; 4] = [b"CERTIFICATE", b"X509 CERTIFICATE", b"PKCS7", b"CMS"];

#[cfg(test)]
pub(super) mod tests {
    #![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    /// As the kernel's build makes its own: RSA 2048, v3, self-signed.
    pub(in crate::signature) const RSA: &str = "\
-----BEGIN CERTIFICATE-----
MIIDSTCCAjGgAwIBAgIUXIwvPujl8IBMbdf7hzAeaMoqcQkwDQYJKoZIhvcNAQEL
BQAwLjEsMCoGA1UEAwwjQnVpbGQgdGltZSBhdXRvZ2VuZXJhdGVkIGtlcm5lbCBr
ZXkwIBcNMjYxMTI0MTcwNDEyWhgPMjEyNjEwMzExNzA0MTJaMC4xLDAqBgNVBAMM
I0J1aWxkIHRpbWUgYXV0b2dlbmVyYXRlZCBrZXJuZWwga2V5MIIBIjANBgkqhkiG
9w0BAQEFAAOCAQ8AMIIBCgKCAQEA4btUBWaAKhGOvYl2NkfiN2P4xEA2MMCW3VWD
7We/4BhjL9xURqXrq0KdFY3XRupnqWI1Pq/BNa/77u+xL55q3KD6T5ceJmA60P5z
/plkwzspVnZ08TNbzrPKc28wjP7jQqEUw22zpUaqm6mM5IIttSdSbeWudQ7wnrJr
LmkRnSvyc60nDyCIKT+2hsiWe4jWdzOtbSN/jGjSx8JqQbdwVd57++ETauy1mq9V
csZlARGvlXigt8ubLZ91Ra3CNLWpIkGxnZ4DbS96XtsrdT86DhMFxLDNeAbVXJ5Y
+247Tec1qX7wdJNhEhKS5dzCSgKZ+6Smnt90wQy7PPR5ZqUzmQIDAQABo10wWzAd
BgNVHQ4EFgQUVqWvOUjfs4ej1W/HmFSBeKtUpicwHwYDVR0jBBgwFoAUVqWvOUjf
s4ej1W/HmFSBeKtUpicwDAYDVR0TAQH/BAIwADALBgNVHQ8EBAMCB4AwDQYJKoZI
hvcNAQELBQADggEBACCwTreh9iVcF+lfSlkBR3UlbEMVf+r80jkGW1jsBtzgayMl
daXSu3BQ88NDwfvw6jUH7z+eBbtA3f3Fj7aAeB+P6angPUAuQihR4lvrTkv0BgwE
8PLBL36turoCKH/Hz/If5YSIyw+KIZ/q7C63shV0d/b9AYnFkmu2Jrm0LIQ8ZfRn
yEbxVEcnkpDWzuBfxIukoX1/bHMkIOFnhEUfiZsv0Qy3OPKnE6ITjCHGSAqa1QYz
eWXg8OaLX+dQ1WBuH68q+8oUkwlevYtI15nMe1i9pDBx8qhNaxjX2MJDFc9pQyme
Vqoia/JEM+Jxr7J5PctZYBG/5xn8e4HXPerEmRM=
-----END CERTIFICATE-----
";

    /// A small one: P-256, TBSCertificate below 256 bytes.
    pub(in crate::signature) const SMALL: &str = "\
-----BEGIN CERTIFICATE-----
MIIBRTCB66ADAgECAhQeOD9EsaC3tykpTHRrEXbhmKFrEzAKBggqhkjOPQQDAjAQ
MQ4wDAYDVQQDDAVzbWFsbDAgFw0yNjExMjQxNzA0MzFaGA8yMTI2MTAzMTE3MDQz
MVowEDEOMAwGA1UEAwwFc21hbGwwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATk
Mj1V2M5ilKh5XK8ztpAF7u1eFPcvz5k0qVhymIq+fCyMMehL9sZ6ZS4WIe9rt+3v
Ug4Faxf9ovapCW+6DYhcoyEwHzAdBgNVHQ4EFgQUUjE90z84H2l6mlGzmPYxS2mt
ov4wCgYIKoZIzj0EAwIDSQAwRgIhAJ70+WwT7xbseri4MsuDxFHgnAFIiueCBdoP
0w9BLCEBAiEAu1wJ/imBBaR5FLZfP2dTPUpeKSMq6+17a+otthgE7+c=
-----END CERTIFICATE-----
";

    /// DER of a single PEM certificate.
    pub(in crate::signature) fn der_of(pem: &str) -> Vec<u8> {
        certificates_from(pem.as_bytes()).unwrap().remove(0)
    }

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let (header, len) = der::der_header(tag, content.len());
        [&header[..len], content].concat()
    }

    fn p7b(certificates: &[u8]) -> Vec<u8> {
        let content = element(tag::SEQUENCE, &element(tag::OID, oid::DATA.as_bytes()));
        let parts = [&[2, 1, 1, 0x31, 0][..], &content, &element(0xA0, certificates), &[0x31, 0]].concat();
        let signed_data = element(0xA0, &element(tag::SEQUENCE, &parts));
        element(tag::SEQUENCE, &[element(tag::OID, oid::SIGNED_DATA.as_bytes()), signed_data].concat())
    }

    #[test]
    fn every_form_of_keyring() {
        let (rsa, small) = (der_of(RSA), der_of(SMALL));
        let both = vec![rsa.clone(), small.clone()];
        let concatenated = [&rsa[..], &small].concat();
        let in_pkcs7 = p7b(&concatenated);
        let pem_pkcs7 = format!("-----BEGIN PKCS7-----\n{}\n-----END PKCS7-----\n", BASE64_STANDARD.encode(&in_pkcs7));
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let bundle = format!("0x1 Some Root\r\n=========\n{}\n{key}# next\n{SMALL}", RSA.replace('\n', "\r\n"));
        for form in [&concatenated[..], &in_pkcs7, pem_pkcs7.as_bytes(), bundle.as_bytes(), &[&rsa[..], &in_pkcs7].concat()] {
            assert_eq!(certificates_from(form).unwrap(), both);
        }
        assert_eq!(certificates_from(&rsa.repeat(3)).unwrap(), [rsa]);
    }

    #[test]
    fn nothing_unreadable_is_passed_over() {
        let rsa = der_of(RSA);
        let nested = RSA.replace("-----END CERTIFICATE-----\n", SMALL);
        let fails: [&[u8]; 9] = [
            b"",
            b"no certificate",
            &rsa[..rsa.len() - 1],
            &[&rsa[..], b"\n"].concat(),
            &element(tag::SEQUENCE, &[0x30, 0]),
            b"-----BEGIN CERTIFICATE-----\nMIIB",
            b"-----END CERTIFICATE-----\n",
            nested.as_bytes(),
            b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
        ];
        for bytes in fails {
            assert_eq!(certificates_from(bytes).unwrap_err().code, Code::PkiMalformed, "{bytes:?}");
        }
        let broken = format!("{RSA}text\n-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n");
        let error = certificates_from(broken.as_bytes()).unwrap_err();
        assert_eq!(error.span, Some(Span::new(RSA.len() + 5, broken.len() - RSA.len() - 5)));
    }

    proptest! {
        #[test]
        fn never_panics(cut in 0_usize..2000, at in 0_usize..2000, byte in any::<u8>(), form in 0_u8..3) {
            let der = [der_of(RSA), der_of(SMALL)].concat();
            let mut data = match form {
                0 => der,
                1 => p7b(&der),
                _ => [RSA, SMALL].concat().into_bytes(),
            };
            if let Some(b) = data.get_mut(at) {
                *b = byte;
            }
            let _ = certificates_from(&data[..cut.min(data.len())]);
        }
    }
}
