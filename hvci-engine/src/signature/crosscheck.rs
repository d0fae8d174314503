//! A second opinion on signatures: the `cms` and `authenticode` crates decode the same bytes, and what they read must be what we read.
//!
//! Parser differentials are how signature checks are bypassed. The crates allocate and re-sort, refuse some real files, and take fifty times
//! as long, so this runs where one file is explained and over corpora in tests, not on every file of a scan.

use ::cms::{
    cert::CertificateChoices,
    content_info::ContentInfo,
    signed_data::{SignedData as CmsSignedData, SignerIdentifier},
};
use authenticode::AuthenticodeSignature;
use der::{Decode, Encode};

use super::{
    authenticode::IndirectData,
    cms::{SignedData, SignerId},
    modsig::ModuleTrailer,
};
use crate::{
    bytes::Span,
    finding::{Code, Note},
    image::{elf::Elf, pe::Pe},
    oid,
};

/// What the second decoders read otherwise, in every signature that stands in the file itself (nested ones included in their bytes only).
pub fn divergences(file: &[u8]) -> Vec<Note> {
    let mut notes = Vec::new();
    if Pe::is_pe(file) {
        let Ok(pe) = Pe::parse(file) else { return notes };
        for entry in pe.certificate_table().entries.iter().filter(|e| e.is_authenticode()) {
            compare(entry.pkcs7, entry.payload_offset, true, &mut notes);
        }
    } else if Elf::is_elf(file) {
        if let Ok(Some(trailer)) = ModuleTrailer::find(file) {
            let offset = usize::try_from(trailer.pkcs7_span.offset).unwrap_or(usize::MAX);
            compare(trailer.pkcs7, offset, false, &mut notes);
        }
    } else {
        compare(file, 0, false, &mut notes);
        // what is no PKCS#7 to either decoder is none of our business
        notes.retain(|n| n.code != Code::SigBer);
    }
    notes
}

fn compare(pkcs7: &[u8], offset: usize, is_authenticode: bool, notes: &mut Vec<Note>) {
    let span = Span::new(offset, pkcs7.len());
    let ours = SignedData::parse(pkcs7, offset);
    let theirs = ContentInfo::from_der(pkcs7).and_then(|info| info.content.decode_as::<CmsSignedData>());
    let (ours, theirs) = match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => (ours, theirs),
        (Ok(_), Err(e)) => {
            notes.push(Note::new(Code::SigBer, format!("a strict decoder refuses it: {e}")).at(span));
            return;
        }
        (Err(ours), Ok(_)) => {
            notes.push(Note::new(Code::SigEncodingDivergence, format!("only the second decoder reads it; ours: {ours}")).at(span));
            return;
        }
        (Err(_), Err(_)) => return,
    };
    let mut differ = |what: &str| notes.push(Note::new(Code::SigEncodingDivergence, format!("{what} differ")).at(span));

    if ours.content_type.to_string() != theirs.encap_content_info.econtent_type.to_string() {
        differ("content types");
    }
    let mut our_certificates: Vec<&[u8]> = ours.certificates.iter().map(|c| c.raw).collect();
    let mut their_certificates: Vec<Vec<u8>> = theirs
        .certificates
        .iter()
        .flat_map(|set| set.0.iter())
        .filter_map(|choice| match choice {
            CertificateChoices::Certificate(certificate) => certificate.to_der().ok(),
            CertificateChoices::Other(_) => None,
        })
        .collect();
    our_certificates.sort_unstable();
    their_certificates.sort_unstable();
    if our_certificates != their_certificates {
        differ("certificates");
    }
    // the crate sorts the set, so each of ours must be somewhere among theirs
    let found = ours.signers.iter().all(|our| {
        theirs.signer_infos.0.iter().any(|their| {
            let same_id = match (&our.id, &their.sid) {
                (SignerId::IssuerSerial { issuer, serial }, SignerIdentifier::IssuerAndSerialNumber(id)) => {
                    id.issuer.to_der().is_ok_and(|d| d == *issuer) && same_number(id.serial_number.as_bytes(), serial)
                }
                (SignerId::KeyId(ours), SignerIdentifier::SubjectKeyIdentifier(id)) => id.0.as_bytes() == *ours,
                _ => false,
            };
            let digest = their.signed_attrs.iter().flat_map(|a| a.iter()).find(|a| a.oid.to_string() == oid::MESSAGE_DIGEST.to_string());
            let digest = digest.and_then(|a| a.values.get(0).map(|v| v.value().to_vec()));
            let our_digest = our.signed_attributes.as_ref().and_then(|a| a.single(oid::MESSAGE_DIGEST)).map(|v| v.content.to_vec());
            same_id && their.signature.as_bytes() == our.signature.as_ref() && digest == our_digest
        })
    });
    if !found || ours.signers.len() != theirs.signer_infos.0.len() {
        differ("signers");
    }

    if is_authenticode && let Ok(signature) = AuthenticodeSignature::from_bytes(pkcs7) {
        let ours = ours.content.and_then(|c| IndirectData::parse(c).ok()).and_then(|c| c.digest);
        if ours.is_none_or(|d| d.as_bytes() != signature.digest()) {
            differ("image digests");
        }
    }
}

/// Leading zeros do not change a number.
fn same_number(a: &[u8], b: &[u8]) -> bool {
    let trimmed = |n: &[u8]| n.iter().skip_while(|o| **o == 0).copied().collect::<Vec<u8>>();
    trimmed(a) == trimmed(b)
}
