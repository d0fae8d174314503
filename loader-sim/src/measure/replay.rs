//! PCRs from a log: each event's digest extended into what is there, bank by bank (TPM 2.0 Library, Part 1, §17.2).

use hvci_engine::{
    bytes::index,
    crypto::{self, Job},
    digest::{Digest, DigestAlg},
};

use super::{
    data::{EventData, NoAction},
    log::{Digests, EventLog},
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
///
/// A PCR's extensions wait for one another, those of different PCRs and banks do not: each round takes the next of every PCR in every bank.
pub fn replay(log: &EventLog<'_>) -> Vec<Bank> {
    let locality = log.events.iter().filter(|event| !event.is_extended()).find_map(|event| match EventData::of(event) {
        EventData::NoAction(NoAction::StartupLocality(locality)) => Some(locality),
        _ => None,
    });
    let mut extended: [Vec<Digests<'_>>; PCRS] = Default::default();
    for event in log.events.iter().filter(|event| event.is_extended()) {
        if let Some(pcr) = extended.get_mut(index(event.pcr)) {
            pcr.push(event.digests);
        }
    }
    let algs = log.algorithms.iter().filter_map(|(alg, _)| alg.digest_alg());
    let mut banks: Vec<Bank> = algs.filter_map(|alg| Some(Bank { alg, pcrs: start(alg, locality.unwrap_or(0))? })).collect();
    let rounds = extended.iter().map(Vec::len).max().unwrap_or(0);
    for round in 0..rounds {
        let next = |bank: &Bank, pcr: usize| extended.get(pcr)?.get(round)?.get(bank.alg);
        let mut places = Vec::new();
        for (n, bank) in banks.iter().enumerate() {
            places.extend((0..PCRS).filter_map(|pcr| Some(Place { bank: n, pcr, old: *bank.pcrs.get(pcr)?, new: next(bank, pcr)? })));
        }
        let (wide, narrow): (Vec<_>, Vec<_>) =
            places.iter().partition(|place| matches!(place.old.alg(), DigestAlg::Sha384 | DigestAlg::Sha512));
        let side_by_side = wide.len() >= WORTH_IT;
        let together =
            if side_by_side { crypto::digest_jobs(&wide.iter().map(|place| place.job()).collect::<Vec<_>>()) } else { Vec::new() };
        let alone = wide.iter().skip(together.len()).chain(&narrow).map(|place| crypto::digest(place.old.alg(), &place.pieces()));
        let values: Vec<Digest> = together.iter().copied().chain(alone).collect();
        for (place, value) in wide.iter().chain(&narrow).zip(values) {
            if let Some(pcr) = banks.get_mut(place.bank).and_then(|bank| bank.pcrs.get_mut(place.pcr)) {
                *pcr = value;
            }
        }
    }
    banks
}

/// From how many on short digests of SHA-384 and SHA-512 are faster side by side, as measured; those of SHA-1 and SHA-256, which processors have
/// instructions for, are not.
const WORTH_IT: usize = 6;

/// An extension: which PCR of which bank, its value, and what comes.
struct Place {
    bank: usize,
    pcr: usize,
    old: Digest,
    new: Digest,
}

impl Place {
    fn pieces(&self) -> [&[u8]; 2] {
        [self.old.as_bytes(), self.new.as_bytes()]
    }

    fn job(&self) -> Job<'_> {
        Job { alg: self.old.alg(), pieces: self.pieces().to_vec() }
    }
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
