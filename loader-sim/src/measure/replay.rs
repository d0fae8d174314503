//! Events to PCRs, as a TPM would have been extended (TPM 2.0 Library part 1 §17; Platform Firmware Profile 1.06 §10.4.5 for the locality).

use hvci_engine::{
    bytes::index,
    crypto,
    digest::{Digest, DigestAlg},
};

use super::{
    event::{Event, EventType, PCRS},
    log::Log,
};

const LOCALITY: &[u8] = b"StartupLocality\0";

/// The PCRs of one bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pcrs {
    /// The bank.
    pub alg: DigestAlg,
    /// By number.
    pub values: [Digest; PCRS],
    /// The last event that went into each.
    pub last: [Option<usize>; PCRS],
}

impl Pcrs {
    /// Those of a TPM that was reset, started at this locality: PCRs 17 to 22 are all ones until a dynamic launch.
    fn reset(alg: DigestAlg, locality: u8) -> Self {
        let value = |pcr: usize| {
            let mut bytes = vec![if (17..=22).contains(&pcr) { 0xFF } else { 0 }; alg.len()];
            if let Some(last) = bytes.last_mut().filter(|_| pcr == 0) {
                *last = locality;
            }
            digest_of(alg, &bytes)
        };
        Self { alg, values: std::array::from_fn(value), last: [None; PCRS] }
    }

    /// TPM2_PCR_Extend.
    fn extend(&mut self, event: &Event<'_>, digest: &[u8]) {
        let pcr = index(event.pcr);
        if let (Some(value), Some(last)) = (self.values.get_mut(pcr), self.last.get_mut(pcr)) {
            *value = crypto::digest(self.alg, &[value.as_bytes(), digest]);
            *last = Some(event.number);
        }
    }
}

fn digest_of(alg: DigestAlg, bytes: &[u8]) -> Digest {
    Digest::new(alg, bytes).unwrap_or_else(|| crypto::digest(alg, &[bytes]))
}

/// The PCRs of each bank of the log that is calculated here, in the log's order. An event without a digest for a bank does not extend it.
pub fn replay(log: &Log<'_>) -> Vec<Pcrs> {
    let locality = log.events.iter().find_map(startup_locality).unwrap_or(0);
    let banks = log.banks.iter().filter_map(|bank| Some((bank.algorithm, bank.algorithm.digest()?)));
    banks
        .map(|(algorithm, alg)| {
            let mut pcrs = Pcrs::reset(alg, locality);
            for event in log.events.iter().filter(|event| event.is_measured()) {
                if let Some(digest) = event.digest(algorithm) {
                    pcrs.extend(event, digest);
                }
            }
            pcrs
        })
        .collect()
}

/// The locality that TPM2_Startup came from, if this event says it: PCR 0 starts with it.
pub fn startup_locality(event: &Event<'_>) -> Option<u8> {
    match event.data.strip_prefix(LOCALITY) {
        Some([locality]) if event.kind == EventType::NO_ACTION && event.pcr == 0 => Some(*locality),
        _ => None,
    }
}
