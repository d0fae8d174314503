//! What a machine answers when it is challenged, and what the host's verifier makes of the answer.

use std::collections::BTreeMap;

use hvci_engine::digest::DigestAlg;

use super::{Folder, Options, Profile, VmError, tpm::Device};
use crate::{
    attest::{
        Appraisal, Evidence, Machine, Reference, Verifier,
        evidence::{Bytes, DriverEvent, QuoteEvidence},
    },
    boot::Boot,
    measure::EventLog,
    vtpm::client::{Client, ClientError, KeyUse},
};

/// What the machine says of itself, in answer to `nonce`; nothing where no TPM answers.
pub(super) fn evidence(
    folder: &Folder,
    profile: &Profile,
    boot: &Boot,
    drivers: &[DriverEvent],
    device: &mut Device,
    nonce: &[u8],
) -> Result<Option<Vec<u8>>, VmError> {
    let log = EventLog::read(&boot.log).map_err(|e| VmError::Known(e.to_string()))?;
    let is_used = |pcr: &u32| *pcr < 8 || log.events.iter().any(|e| e.pcr == *pcr && e.is_extended());
    let selected: Vec<u32> = (0..16).filter(is_used).collect();
    let visible = boot.kernel().is_none_or(|kernel| kernel.event_log);
    let unsigned = Evidence {
        profile: profile.guest.into(),
        vm: folder.name().to_owned(),
        nonce: nonce.to_vec(),
        ak_public: Bytes(Vec::new()),
        quotes: Vec::new(),
        tcg_log: visible.then(|| Bytes(boot.log.clone())),
        drivers: drivers.to_vec(),
        features: profile.features(),
    };
    let evidence = device.ask(|client| quoted(client, unsigned, &selected))?;
    let text = evidence.as_ref().map(serde_json::to_vec_pretty).transpose();
    text.map_err(|e| VmError::Known(e.to_string()))
}

/// Evidence with a quote of these PCRs, of the bank of SHA-256, for its nonce; the TPM makes its attestation key for it, and forgets it.
///
/// # Errors
/// What the TPM answers.
pub fn quoted(client: &mut Client<'_>, evidence: Evidence, pcrs: &[u32]) -> Result<Evidence, ClientError> {
    let key = client.create_primary(KeyUse::Attestation)?;
    let quote = client.quote(key.handle, &evidence.nonce, DigestAlg::Sha256, pcrs)?;
    let values = client.pcr_values(DigestAlg::Sha256, pcrs)?;
    client.flush(key.handle)?;
    let pcrs = pcrs.iter().copied().zip(values).collect();
    let quote = QuoteEvidence { message: Bytes(quote.message), signature: Bytes(quote.signature), pcrs };
    Ok(Evidence { ak_public: Bytes(key.public), quotes: vec![quote], ..evidence })
}

/// What a verifier thinks of it, who has the evidence's bytes, the challenge and the host's knowledge.
pub(super) fn appraise(
    folder: &Folder,
    known: &Machine,
    evidence: &[u8],
    nonce: &[u8],
    options: &Options<'_>,
) -> Result<Appraisal, VmError> {
    let text = folder.read("reference.toml")?.unwrap_or_default();
    let reference = Reference::read(&String::from_utf8_lossy(&text))?;
    let machines = BTreeMap::from([(folder.name().to_owned(), known.clone())]);
    let verifier = Verifier::new(reference, options.dbx_info.clone(), machines);
    Ok(verifier.appraise_answer(folder.name(), evidence, nonce, options.time))
}
