//! AlgorithmIdentifiers (RFC 5280 §4.1.1.2) of digests and signatures, as the crypto interface wants them.

use crate::{
    bytes::der::{Result, Tlv, tag},
    crypto::Scheme,
    digest::DigestAlg,
    oid::{self, Oid},
};

/// An AlgorithmIdentifier: which algorithm, and its parameters as they stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Algorithm<'a> {
    pub(super) oid: Oid,
    pub(super) parameters: Option<Tlv<'a>>,
}

impl<'a> Algorithm<'a> {
    pub(super) fn parse(tlv: Tlv<'a>) -> Result<Self> {
        let mut reader = tlv.expect(tag::SEQUENCE)?.reader()?;
        let oid = reader.next()?.oid()?;
        let parameters = if reader.is_empty() { None } else { Some(reader.next()?) };
        reader.finish()?;
        Ok(Self { oid, parameters })
    }

    /// The digest algorithm that this names.
    pub(super) fn digest(&self) -> Option<DigestAlg> {
        Some(match self.oid {
            oid::MD5 => DigestAlg::Md5,
            oid::SHA1 => DigestAlg::Sha1,
            oid::SHA224 => DigestAlg::Sha224,
            oid::SHA256 => DigestAlg::Sha256,
            oid::SHA384 => DigestAlg::Sha384,
            oid::SHA512 => DigestAlg::Sha512,
            oid::SHA3_256 => DigestAlg::Sha3_256,
            oid::SHA3_384 => DigestAlg::Sha3_384,
            oid::SHA3_512 => DigestAlg::Sha3_512,
            _ => return None,
        })
    }

    /// How a signature of this algorithm is verified, and the digest algorithm where the identifier names one.
    /// `None` for an algorithm that is not supported.
    ///
    /// Old signers name a digest algorithm where the signature algorithm belongs, and bare `ecPublicKey` for ECDSA; Windows takes both.
    pub(super) fn signature(&self) -> Option<(Scheme, Option<DigestAlg>)> {
        Some(match self.oid {
            oid::RSA_ENCRYPTION => (Scheme::Pkcs1, None),
            oid::MD5_WITH_RSA | oid::MD5 => (Scheme::Pkcs1, Some(DigestAlg::Md5)),
            oid::SHA1_WITH_RSA | oid::SHA1_WITH_RSA_OIW | oid::SHA1 => (Scheme::Pkcs1, Some(DigestAlg::Sha1)),
            oid::SHA224_WITH_RSA => (Scheme::Pkcs1, Some(DigestAlg::Sha224)),
            oid::SHA256_WITH_RSA | oid::SHA256 => (Scheme::Pkcs1, Some(DigestAlg::Sha256)),
            oid::SHA384_WITH_RSA | oid::SHA384 => (Scheme::Pkcs1, Some(DigestAlg::Sha384)),
            oid::SHA512_WITH_RSA | oid::SHA512 => (Scheme::Pkcs1, Some(DigestAlg::Sha512)),
            oid::RSA_WITH_SHA3_256 => (Scheme::Pkcs1, Some(DigestAlg::Sha3_256)),
            oid::RSA_WITH_SHA3_384 => (Scheme::Pkcs1, Some(DigestAlg::Sha3_384)),
            oid::RSA_WITH_SHA3_512 => (Scheme::Pkcs1, Some(DigestAlg::Sha3_512)),
            oid::RSA_PSS => (Scheme::Pss, Some(self.pss_digest()?)),
            oid::EC_PUBLIC_KEY => (Scheme::Ecdsa, None),
            oid::ECDSA_WITH_SHA1 => (Scheme::Ecdsa, Some(DigestAlg::Sha1)),
            oid::ECDSA_WITH_SHA224 => (Scheme::Ecdsa, Some(DigestAlg::Sha224)),
            oid::ECDSA_WITH_SHA256 => (Scheme::Ecdsa, Some(DigestAlg::Sha256)),
            oid::ECDSA_WITH_SHA384 => (Scheme::Ecdsa, Some(DigestAlg::Sha384)),
            oid::ECDSA_WITH_SHA512 => (Scheme::Ecdsa, Some(DigestAlg::Sha512)),
            oid::ECDSA_WITH_SHA3_256 => (Scheme::Ecdsa, Some(DigestAlg::Sha3_256)),
            oid::ECDSA_WITH_SHA3_384 => (Scheme::Ecdsa, Some(DigestAlg::Sha3_384)),
            oid::ECDSA_WITH_SHA3_512 => (Scheme::Ecdsa, Some(DigestAlg::Sha3_512)),
            _ => return None,
        })
    }

    /// The name of the algorithm where it has one here, otherwise the dotted identifier.
    pub(super) fn name(&self) -> String {
        oid::name(&self.oid).map_or_else(|| self.oid.to_string(), str::to_owned)
    }

    /// Digest of RSASSA-PSS-params (RFC 4055 §3.1), if mask and salt are the usual ones: MGF1 by the same digest, salt as long as the digest.
    fn pss_digest(&self) -> Option<DigestAlg> {
        let mut fields = self.parameters?.expect(tag::SEQUENCE).ok()?.reader().ok()?;
        let (mut digest, mut mask, mut salt) = (DigestAlg::Sha1, DigestAlg::Sha1, 20_u32);
        while !fields.is_empty() {
            let field = fields.next().ok()?;
            let inner = field.reader().ok()?.next().ok()?;
            match field.tag {
                t if t == tag::context_constructed(0) => digest = Self::parse(inner).ok()?.digest()?,
                t if t == tag::context_constructed(1) => {
                    // MGF1 is the only mask function there is
                    mask = Self::parse(Self::parse(inner).ok()?.parameters?).ok()?.digest()?;
                }
                t if t == tag::context_constructed(2) => salt = inner.small_uint().ok()?,
                _ => {}
            }
        }
        (digest == mask && u32::try_from(digest.len()) == Ok(salt)).then_some(digest)
    }
}
