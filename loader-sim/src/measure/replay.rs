//! PCRs from a log: each event's digest extended into what is there, bank by bank (TPM 2.0 Library, Part 1, §17.2).

use hvci_engine::{
    crypto,
    digest::{Digest, DigestAlg},
};

use super::{
    data::{EventData, NoAction},
    log::EventLog,
};

/// PCRs of a TPM of a PC.
pub const PCRS: usize = 24;

/// PCRs of one algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bank {
    /// The algorithm.
    pub alg: DigestAlg,
    /// The values.
    pub pcrs: [Digest; PCRS],
}

/// The PCRs of each bank whose algorithm can be calculated, if all that was extended is in the log.
///
/// Events of type `EV_NO_ACTION` are not extended. One of them says from which locality the TPM was started, which is what PCR 0 begins
/// with; what makes it believable is that PCR 0 comes out as quoted.
pub fn replay(log: &EventLog<'_>) -> Vec<Bank> {
    let locality = log.events.iter().filter(|event| !event.is_extended()).find_map(|event| match EventData::of(event) {
        EventData::NoAction(NoAction::StartupLocality(locality)) => Some(locality),
        _ => None,
    });
    let algs = log.algorithms.iter().filter_map(|(alg, _)| alg.digest_alg());
    algs.filter_map(|alg| {
        let mut pcrs = start(alg, locality.unwrap_or(0))?;
        for event in log.events.iter().filter(|event| event.is_extended()) {
            let Some(pcr) = usize::try_from(event.pcr).ok().and_then(|n| pcrs.get_mut(n)) else { continue };
            if let Some(digest) = event.digests.get(alg) {
                *pcr = crypto::digest(alg, &[pcr.as_bytes(), digest.as_bytes()]);
            }
        }
        Some(Bank { alg, pcrs })
    })
    .collect()
}

/// PCRs after a reset: zeros; ones for those of a dynamic launch; the locality in the last byte of PCR 0 (PC Client PTP 1.05 §4.6).
fn start(alg: DigestAlg, locality: u8) -> Option<[Digest; PCRS]> {
    let filled = |byte| Digest::new(alg, vec![byte; alg.len()].as_slice());
    let mut pcrs = [filled(0)?; PCRS];
    pcrs.get_mut(17..=22)?.fill(filled(0xFF)?);
    let mut first = vec![0; alg.len()];
    *first.last_mut()? = locality;
    *pcrs.first_mut()? = Digest::new(alg, &first)?;
    Some(pcrs)
}
