//! What one writes first in Rust: read the file, decode with the RustCrypto crates, hash with `sha2`, verify with `rsa`.

use std::path::Path;

use authenticode::{AttributeCertificateIterator, PeTrait, authenticode_digest};
use cms::{content_info::ContentInfo, signed_data::SignedData};
use der::{Decode, Encode};
use hvci_engine::signature::modsig::ModuleTrailer;
use object::{
    FileKind,
    read::pe::{PeFile32, PeFile64},
};
use rsa::{Pkcs1v15Sign, RsaPublicKey, pkcs8::DecodePublicKey};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;

/// Whether the first Authenticode signature of the PE file is an RSA signature of it: digest and signer; no chain, no timestamp.
pub fn pe(path: &Path) -> bool {
    let Ok(data) = std::fs::read(path) else { return false };
    match FileKind::parse(&*data) {
        Ok(FileKind::Pe32) => PeFile32::parse(&*data).is_ok_and(|pe| image(&pe).is_some()),
        Ok(FileKind::Pe64) => PeFile64::parse(&*data).is_ok_and(|pe| image(&pe).is_some()),
        _ => false,
    }
}

fn image(pe: &dyn PeTrait) -> Option<()> {
    let entry = AttributeCertificateIterator::new(pe).ok()??.next()?.ok()?;
    let signature = entry.get_authenticode_signature().ok()?;
    let signer = signature.signer_info();
    let algorithm = signer.digest_alg.oid.to_string();
    let digest = match algorithm.as_str() {
        SHA1 => image_digest::<Sha1>(pe)?,
        SHA256 => image_digest::<Sha256>(pe)?,
        SHA384 => image_digest::<Sha384>(pe)?,
        SHA512 => image_digest::<Sha512>(pe)?,
        _ => return None,
    };
    if digest != signature.digest() {
        return None;
    }
    let attributes = signer.signed_attrs.as_ref()?.to_der().ok()?;
    let of_signer = |c: &&Certificate| match &signer.sid {
        cms::signed_data::SignerIdentifier::IssuerAndSerialNumber(id) => {
            c.tbs_certificate.issuer == id.issuer && c.tbs_certificate.serial_number == id.serial_number
        }
        cms::signed_data::SignerIdentifier::SubjectKeyIdentifier(_) => false,
    };
    let certificate = signature.certificates().find(of_signer)?;
    verify(&key(certificate)?, &algorithm, &attributes, signature.signature())
}

fn image_digest<D: Digest + digest_update::Update>(pe: &dyn PeTrait) -> Option<Vec<u8>> {
    let mut hasher = D::new();
    authenticode_digest(pe, &mut hasher).ok()?;
    Some(hasher.finalize().to_vec())
}

use sha2::digest as digest_update;

/// The RSA key of a certificate.
pub fn key(certificate: &Certificate) -> Option<RsaPublicKey> {
    let spki = certificate.tbs_certificate.subject_public_key_info.to_der().ok()?;
    RsaPublicKey::from_public_key_der(&spki).ok()
}

/// Whether the appended signature of the Linux module was made with `key`.
pub fn module(path: &Path, key: &RsaPublicKey) -> bool {
    let Ok(data) = std::fs::read(path) else { return false };
    let Ok(Some(trailer)) = ModuleTrailer::find(&data) else { return false };
    let data = ContentInfo::from_der(trailer.pkcs7).and_then(|info| info.content.decode_as::<SignedData>());
    let Ok(data) = data else { return false };
    let Some(signer) = data.signer_infos.0.iter().next() else { return false };
    verify(key, &signer.digest_alg.oid.to_string(), trailer.content, signer.signature.as_bytes()).is_some()
}

const SHA1: &str = "1.3.14.3.2.26";
const SHA256: &str = "2.16.840.1.101.3.4.2.1";
const SHA384: &str = "2.16.840.1.101.3.4.2.2";
const SHA512: &str = "2.16.840.1.101.3.4.2.3";

fn verify(key: &RsaPublicKey, algorithm: &str, message: &[u8], signature: &[u8]) -> Option<()> {
    match algorithm {
        SHA1 => key.verify(Pkcs1v15Sign::new::<Sha1>(), &Sha1::digest(message), signature),
        SHA256 => key.verify(Pkcs1v15Sign::new::<Sha256>(), &Sha256::digest(message), signature),
        SHA384 => key.verify(Pkcs1v15Sign::new::<Sha384>(), &Sha384::digest(message), signature),
        SHA512 => key.verify(Pkcs1v15Sign::new::<Sha512>(), &Sha512::digest(message), signature),
        _ => return None,
    }
    .ok()
}
