//! What a machine answers when it is challenged, and what the host's verifier makes of the answer.

use std::collections::BTreeMap;

use hvci_engine::digest::DigestAlg;

use super::{Folder, Options, Profile, VmError, known::Known, tpm::Device};
use crate::{
    attest::{
        Appraisal, Evidence, Reference, Verifier,
        evidence::{Bytes, DriverEvent, QuoteEvidence},
    },
    boot::Boot,
    measure::EventLog,
    vtpm::client::KeyUse,
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
    let bank = DigestAlg::Sha256;
    let mut selected: Vec<u32> = (0..16).filter(|pcr| *pcr < 8 || log.events.iter().any(|e| e.pcr == *pcr && e.is_extended())).collect();
    selected.dedup();
    let asked = device.ask(|client| {
        let key = client.create_primary(KeyUse::Attestation)?;
        let quote = client.quote(key.handle, nonce, bank, &selected)?;
        let values = client.pcr_values(bank, &selected)?;
        client.flush(key.handle)?;
        Ok((key, quote, values))
    })?;
    let Some((key, quote, values)) = asked else { return Ok(None) };
    let quote = QuoteEvidence {
        message: Bytes(quote.message),
        signature: Bytes(quote.signature),
        pcrs: selected.iter().copied().zip(values).collect(),
    };
    let visible = boot.kernel().is_none_or(|kernel| kernel.event_log);
    let evidence = Evidence {
        profile: profile.guest.into(),
        vm: folder.name().to_owned(),
        nonce: nonce.to_vec(),
        ak_public: Bytes(key.public),
        quotes: vec![quote],
        tcg_log: visible.then(|| Bytes(boot.log.clone())),
        drivers: drivers.to_vec(),
        features: profile.features(),
    };
    serde_json::to_vec_pretty(&evidence).map(Some).map_err(|e| VmError::Known(e.to_string()))
}

/// What a verifier thinks of it, who has the evidence's bytes, the challenge and the host's knowledge.
pub(super) fn appraise(folder: &Folder, known: &Known, evidence: &[u8], nonce: &[u8], options: &Options<'_>) -> Result<Appraisal, VmError> {
    let text = folder.read("reference.toml")?.unwrap_or_default();
    let reference = Reference::read(&String::from_utf8_lossy(&text))?;
    let machines = BTreeMap::from([(folder.name().to_owned(), known.machine.clone())]);
    let verifier = Verifier::new(reference, options.dbx_info.clone(), machines);
    Ok(verifier.appraise_answer(folder.name(), evidence, nonce, options.time))
}
