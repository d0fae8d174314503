//! A quote: that a TPM with a known key had these PCRs when it was challenged (TPM 2.0 Library, Part 2, §10.12; Part 3, §18.4).
//!
//! Reads TPM2B_PUBLIC, TPMS_ATTEST and TPMT_SIGNATURE; trusts the attestation key if the caller knows its name, and nothing else. The
//! signature is verified over the bytes as they came, before anything in them counts. Refuses keys that could sign what no TPM made:
//! only a restricted key of P-256 with SHA-256 is known to sign structures of its TPM alone.

use std::collections::BTreeMap;

use hvci_engine::{
    crypto::{self, PublicKey, Scheme},
    digest::{Digest, DigestAlg},
};
use tpm2_protocol::{
    TpmUnmarshal,
    data::{
        Tpm2bDigest, TpmAlgId, TpmEccCurve, TpmSt, TpmaObject, TpmsAttest, TpmtPublic, TpmtSignature, TpmuAsymScheme, TpmuAttest,
        TpmuPublicId, TpmuPublicParms, TpmuSignature,
    },
};

use super::evidence::QuoteEvidence;
use crate::measure::TpmAlg;

/// Length of a coordinate, and of each half of a signature.
const COORDINATE: usize = 32;
/// What a key must have: it never leaves its TPM, was made there, and signs only what that TPM made itself.
const REQUIRED: TpmaObject = TpmaObject::from_bits_truncate(0x0005_0032);

/// Why a key cannot attest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    /// Not a TPM2B_PUBLIC, to its end.
    #[error("the key is no TPM2B_PUBLIC")]
    Form,
    /// Not ECDSA on P-256 with SHA-256, or no point of it.
    #[error("the key is not one for ECDSA on P-256 with SHA-256")]
    Algorithm,
    /// It may sign what it is given, decrypt, be duplicated, or was made outside.
    #[error("the key's attributes are {0:#010x}: not restricted, for signing only, and of this TPM alone")]
    Attributes(u32),
}

/// Why a quote proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuoteProblem {
    /// The key did not sign this.
    #[error("the signature does not verify")]
    Signature,
    /// Not a TPMS_ATTEST with the magic value of a quote, to its end.
    #[error("the message is no quote of a TPM's")]
    Form,
    /// Made for another challenge.
    #[error("the nonce is {}", hex::encode(.0))]
    Nonce(Vec<u8>),
    /// Several banks, none, or one that says too little.
    #[error("it is not about one bank of SHA-256 or better")]
    Bank,
    /// Not the values that the selection has.
    #[error("the values are not of the PCRs that were quoted")]
    Selection,
    /// Other values than those quoted.
    #[error("the values are not those that were quoted")]
    Values,
}

/// An attestation key.
#[derive(Debug)]
pub struct AttestationKey {
    name: Vec<u8>,
    key: PublicKey,
}

impl AttestationKey {
    /// Reads a TPM2B_PUBLIC.
    ///
    /// # Errors
    /// [`KeyProblem`].
    pub fn read(tpm2b_public: &[u8]) -> Result<Self, KeyProblem> {
        let (size, area) = tpm2b_public.split_first_chunk::<2>().ok_or(KeyProblem::Form)?;
        if usize::from(u16::from_be_bytes(*size)) != area.len() {
            return Err(KeyProblem::Form);
        }
        let (public, rest) = TpmtPublic::unmarshal(area).map_err(|_| KeyProblem::Form)?;
        if !rest.is_empty() {
            return Err(KeyProblem::Form);
        }
        let bits = public.object_attributes;
        if !bits.contains(REQUIRED) || bits.contains(TpmaObject::DECRYPT) {
            return Err(KeyProblem::Attributes(bits.bits()));
        }
        let (TpmuPublicParms::Ecc(parameters), TpmuPublicId::Ecc(point)) = (&public.parameters, &public.unique) else {
            return Err(KeyProblem::Algorithm);
        };
        let scheme = matches!(&parameters.scheme.details, TpmuAsymScheme::Hash(scheme) if scheme.hash_alg == TpmAlgId::Sha256);
        let known = public.name_alg == TpmAlgId::Sha256 && parameters.curve_id == TpmEccCurve::NistP256;
        if !known || parameters.scheme.scheme != TpmAlgId::Ecdsa || !scheme {
            return Err(KeyProblem::Algorithm);
        }
        let (x, y) = (padded(&point.x).ok_or(KeyProblem::Algorithm)?, padded(&point.y).ok_or(KeyProblem::Algorithm)?);
        let key = PublicKey::from_spki(&[SPKI_P256, &x, &y].concat()).map_err(|_| KeyProblem::Algorithm)?;
        Ok(Self { name: name(area), key })
    }

    /// Its name: algorithm and digest of its public area (Part 1, §16).
    pub fn name(&self) -> &[u8] {
        &self.name
    }
}

/// Name of a key whose name algorithm is SHA-256, from its public area: algorithm and digest (Part 1, §16).
pub fn name(public_area: &[u8]) -> Vec<u8> {
    let digest = crypto::digest(DigestAlg::Sha256, &[public_area]);
    [&TpmAlgId::Sha256.value().to_be_bytes(), digest.as_bytes()].concat()
}

/// SubjectPublicKeyInfo of an uncompressed point of P-256, up to its coordinates (RFC 5480).
const SPKI_P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01, 0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01,
    0x07, 0x03, 0x42, 0x00, 0x04,
];

/// A number with the zeros before it that some TPMs leave out.
fn padded(number: &[u8]) -> Option<[u8; COORDINATE]> {
    let mut whole = [0; COORDINATE];
    let start = COORDINATE.checked_sub(number.len())?;
    whole.get_mut(start..)?.copy_from_slice(number);
    Some(whole)
}

/// TPMS_CLOCK_INFO, without the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Clock {
    /// Resets of the TPM since it was made or cleared.
    pub reset_count: u32,
    /// Restarts and resumes since the last reset.
    pub restart_count: u32,
    /// Whether the TPM is sure that its clock was never behind.
    pub safe: bool,
}

/// What a quote proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// The bank.
    pub bank: DigestAlg,
    /// PCRs of the bank.
    pub pcrs: BTreeMap<u32, Digest>,
    /// When.
    pub clock: Clock,
}

/// Verifies a quote: `key` signed it, for `nonce`, and its values are those.
///
/// # Errors
/// [`QuoteProblem`], the first.
pub fn verify(quote: &QuoteEvidence, key: &AttestationKey, nonce: &[u8]) -> Result<Quoted, QuoteProblem> {
    let message = &quote.message.0;
    let digest = crypto::digest(DigestAlg::Sha256, &[message]);
    let signature = der_signature(&quote.signature.0).ok_or(QuoteProblem::Signature)?;
    key.key.verify(Scheme::Ecdsa, &digest, &signature).map_err(|_| QuoteProblem::Signature)?;

    // the magic value is looked at by the reader; what an unrestricted key signs could begin with it
    let (attest, rest) = TpmsAttest::unmarshal(message).map_err(|_| QuoteProblem::Form)?;
    let (TpmSt::AttestQuote, TpmuAttest::Quote(info), []) = (attest.attest_type, &attest.attested, rest) else {
        return Err(QuoteProblem::Form);
    };
    if &*attest.extra_data != nonce {
        return Err(QuoteProblem::Nonce(attest.extra_data.to_vec()));
    }
    let [selection] = &*info.pcr_select else { return Err(QuoteProblem::Bank) };
    let bank = TpmAlg(selection.hash.value()).digest_alg().filter(|alg| *alg != DigestAlg::Sha1).ok_or(QuoteProblem::Bank)?;
    let selected = numbers(&selection.pcr_select);
    if selected.is_empty() || !quote.pcrs.keys().copied().eq(selected) || quote.pcrs.values().any(|value| value.alg() != bank) {
        return Err(QuoteProblem::Selection);
    }
    let values: Vec<&[u8]> = quote.pcrs.values().map(Digest::as_bytes).collect();
    if !same(&info.pcr_digest, &crypto::digest(DigestAlg::Sha256, &values)) {
        return Err(QuoteProblem::Values);
    }
    let clock = &attest.clock_info;
    let clock = Clock { reset_count: clock.reset_count.value(), restart_count: clock.restart_count.value(), safe: clock.safe.into() };
    Ok(Quoted { bank, pcrs: quote.pcrs.clone(), clock })
}

fn same(quoted: &Tpm2bDigest, digest: &Digest) -> bool {
    &**quoted == digest.as_bytes()
}

/// Numbers of the bits that are set, the lowest of the first byte being 0.
fn numbers(select: &[u8]) -> Vec<u32> {
    let bits = select.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
    (0..).zip(bits).filter_map(|(n, set)| set.then_some(n)).collect()
}

/// TPMT_SIGNATURE of ECDSA with SHA-256, as DER.
fn der_signature(tpmt_signature: &[u8]) -> Option<Vec<u8>> {
    let (signature, rest) = TpmtSignature::unmarshal(tpmt_signature).ok()?;
    let TpmuSignature::Ecdsa(signature) = signature.signature else { return None };
    if !rest.is_empty() || signature.hash != TpmAlgId::Sha256 {
        return None;
    }
    let (r, s) = (integer(&signature.signature_r)?, integer(&signature.signature_s)?);
    let len = u8::try_from(r.len().checked_add(s.len())?).ok()?;
    Some([&[0x30, len], &r[..], &s].concat())
}

/// A number as DER INTEGER.
fn integer(number: &[u8]) -> Option<Vec<u8>> {
    let number = padded(number)?;
    let zeros = number.iter().take_while(|b| **b == 0).count().min(COORDINATE.saturating_sub(1));
    let digits = number.get(zeros..)?;
    let sign: &[u8] = if digits.first()? & 0x80 == 0 { &[] } else { &[0] };
    let len = u8::try_from(sign.len().checked_add(digits.len())?).ok()?;
    Some([&[0x02, len], sign, digits].concat())
}
