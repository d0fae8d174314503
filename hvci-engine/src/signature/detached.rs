//! Detached PKCS#7 signatures, as Linux modules carry them: the content is elsewhere, the certificate usually too
//! (`crypto/asymmetric_keys/pkcs7_verify.c`, `scripts/sign-file.c`).

use super::cms::{Pool, Role, SignedData, check_signer};
use crate::{
    bytes::Span,
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
