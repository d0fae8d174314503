//! Detached PKCS#7 signatures, as Linux modules carry them: the content is elsewhere, the certificate usually too
//! (`crypto/asymmetric_keys/pkcs7_verify.c`, `scripts/sign-file.c`). And as firmware wants them on variables, by one of the keys that it is given:
//! [`verify`].

use std::sync::Arc;

use super::{
    cache::Cache,
    cert::Certificate,
    chain::{self, PathError},
    cms::{Pool, Role, SignedData, check_signer},
    trust::{Purposes, TrustStore},
};
use crate::{
    budget::Budget,
    bytes::{Span, der::DerError},
    crypto,
    digest::{Digest, DigestAlg},
    facts::{Coverage, DigestForm, Signature, Source},
    finding::{Code, Note},
    oid,
};

/// A detached signature that waits for the digest of its content.
#[derive(Debug)]
pub(crate) struct Detached<'a> {
    signature: Signature,
    data: Option<SignedData<'a>>,
}

impl<'a> Detached<'a> {
    /// Reads `pkcs7`, which stands at `span` in the file.
    pub(crate) fn read(pkcs7: &'a [u8], span: Span) -> Self {
        let offset = usize::try_from(span.offset).unwrap_or(usize::MAX);
        let mut signature = Signature::new(Source::ModuleTrailer, Some(span));
        let data = match SignedData::parse(pkcs7, offset) {
            Ok(data) => Some(data),
            Err(e) => {
                signature.notes.push(Note::new(Code::SigMalformed, e.to_string()).at(span));
                None
            }
        };
        if let Some(data) = &data {
            let behind = pkcs7.len().saturating_sub(data.whole.raw.len());
            if behind > 0 {
                let at = Span::new(offset.saturating_add(data.whole.raw.len()), behind);
                signature.notes.push(Note::new(Code::SigPadding, format!("{behind} bytes behind the PKCS#7")).at(at));
            }
            if data.content.is_some() {
                signature.notes.push(Note::new(Code::SigContentType, "a module signature carries its content").at(span));
            }
        }
        Self { signature, data }
    }

    /// The digest algorithm that the content must be hashed with.
    pub(crate) fn digest_alg(&self) -> Option<DigestAlg> {
        self.data.as_ref()?.signers.first()?.digest_algorithm.digest()
    }

    /// The signature's facts, now that the content's digest is known.
    pub(crate) fn finish(self, content: Option<Digest>, pool: &mut Pool<'_>) -> Signature {
        let Self { mut signature, data } = self;
        let Some(data) = data else { return signature };
        signature.certificates = pool.add_all(&data.certificates, &mut signature.notes);
        let Some((info, others)) = data.signers.split_first() else {
            signature.notes.push(Note::new(Code::SigMalformed, "no SignerInfo").at(data.whole.span()));
            return signature;
        };
        if !others.is_empty() {
            signature.notes.push(Note::new(Code::SigMultipleSigners, format!("{} SignerInfos", data.signers.len())).at(data.whole.span()));
        }
        if info.signed_attributes.is_some() {
            signature.notes.push(Note::new(Code::SigModuleAttributes, "").at(info.tlv.span()));
        }
        if data.content_type != oid::DATA {
            signature.notes.push(Note::new(Code::SigContentType, format!("content is {}", data.content_type)).at(data.whole.span()));
        }
        if let Some(weak @ (DigestAlg::Md5 | DigestAlg::Sha1)) = info.digest_algorithm.digest() {
            signature.notes.push(Note::new(Code::SigWeakDigest, weak.name()).at(info.tlv.span()));
        }
        let signer = check_signer(info, data.content_type, content, &signature.certificates, pool, Role::Signer, &mut signature.notes);
        signature.coverage = content.map(|digest| Coverage { form: DigestForm::Module, signed: digest, calculated: Some(digest) });
        signature.signer = Some(signer);
        signature
    }
}

/// Why a detached signature does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// No SignedData.
    #[error("no PKCS#7 SignedData: {0}")]
    Malformed(#[from] DerError),
    /// The SignedData is not what a detached signature is.
    #[error("{0}")]
    Form(String),
    /// The signature's arithmetic or attributes do not hold, or its certificate is missing.
    #[error("{0}")]
    Invalid(String),
    /// No path from the signer to a key that is trusted.
    #[error("the signer {signer} is not trusted: {reason}")]
    Untrusted {
        /// Subject of the signer's certificate.
        signer: String,
        /// Why no path leads to a trusted key.
        reason: String,
    },
}

/// Verifies a detached signature over the parts of `content`, one after the other, and returns the signer's certificate. `pkcs7` is one
/// SignedData, with or without ContentInfo, of one signer with the digest `alg`, which carries the signer's certificate; a path must lead from
/// that to one of `anchors`, or it must be one. Dates and extended key usages are not looked at: UEFI firmware does not
/// (edk2 `CryptPkcs7VerifyCommon.c`), and the keys that it must go on to believe have expired.
///
/// # Errors
/// The first reason why it does not count.
pub fn verify(
    pkcs7: &[u8],
    content: &[&[u8]],
    alg: DigestAlg,
    anchors: impl IntoIterator<Item = Certificate>,
) -> Result<Arc<Certificate>, VerifyError> {
    let form = |what: &str| VerifyError::Form(what.to_owned());
    let data = SignedData::parse(pkcs7, 0)?;
    if data.whole.raw.len() != pkcs7.len() {
        return Err(form("bytes behind the PKCS#7"));
    }
    if data.content.is_some() || data.content_type != oid::DATA {
        return Err(form("the PKCS#7 is not detached: it carries content of its own"));
    }
    let [info] = data.signers.as_slice() else { return Err(VerifyError::Form(format!("{} signers, not one", data.signers.len()))) };
    // both places: firmware looks at the one that no signature covers
    if let Some(other) = data.digest_algorithms.iter().chain([&info.digest_algorithm]).find(|a| a.digest() != Some(alg)) {
        return Err(VerifyError::Form(format!("the digest algorithm is {}, not {alg}", other.name())));
    }

    let cache = Cache::default();
    let mut pool = Pool::new(&cache);
    // a certificate that cannot be read may be nobody's; the signer's is missing then
    let candidates = pool.add_all(&data.certificates, &mut Vec::new());
    let mut notes = Vec::new();
    let digest = crypto::digest(alg, content);
    let signer = check_signer(info, data.content_type, Some(digest), &candidates, &mut pool, Role::Signer, &mut notes);
    // attributes out of order are hashed as they stand
    if let Some(note) = notes.iter().find(|n| n.code != Code::SigAttributeOrder) {
        return Err(VerifyError::Invalid(reason(note)));
    }
    let certificate = signer.certificate.and_then(|i| pool.list.get(i)).filter(|_| signer.check.is_valid());
    let certificate = certificate.ok_or_else(|| VerifyError::Invalid(format!("no certificate of the signer, {}", signer.identity())))?;

    let mut trust = TrustStore::empty();
    for anchor in anchors {
        trust.add(Arc::new(anchor), Purposes::UEFI, "");
    }
    chain::build(certificate, &pool.list, &trust, &cache, &mut Budget::path_building())
        .map_err(|e: PathError| VerifyError::Untrusted { signer: certificate.subject(), reason: reason(&e.note()) })?;
    Ok(Arc::clone(certificate))
}

/// A note in one line; of whom is left out, as a path's last certificate may be anybody's.
fn reason(note: &Note) -> String {
    match note.detail.as_str() {
        "" => note.code.title().to_owned(),
        detail => format!("{} ({detail})", note.code.title()),
    }
}
