//! PCR values of a TPM as text, and where a log's replay differs from them.
//!
//! Reads lines `NUMBER VALUE` and what `tpm2_pcrread` prints (`sha256:` before `0 : 0x…`). Refuses every line that is neither, values that
//! are no digest of the bank, and a PCR twice.

use std::collections::BTreeMap;

use hvci_engine::{
    bytes::index,
    digest::{Digest, DigestAlg},
};

use super::{
    log::{EventLog, TpmAlg},
    replay::{Bank, PCRS},
};

/// Values by bank and PCR.
pub type Pcrs = BTreeMap<(DigestAlg, u32), Digest>;

/// A line that is no PCR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct PcrsError {
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// A PCR that is not what the log makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its number.
    pub pcr: u32,
    /// What it is.
    pub given: Digest,
    /// What the log makes of it; `None` if the log is not about the bank.
    pub replayed: Option<Digest>,
    /// Number of the last event that the log says went into it.
    pub last_event: Option<usize>,
}

/// Reads values.
///
/// # Errors
/// [`PcrsError`] for the first line that is not understood.
pub fn read(text: &str) -> Result<Pcrs, PcrsError> {
    let mut pcrs = Pcrs::new();
    let mut bank = None;
    for (n, line) in text.lines().enumerate() {
        let refused = |problem| PcrsError { line: n.saturating_add(1), problem };
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if let Some(name) = line.strip_suffix(':') {
            bank = Some(bank_of(|alg| alg.name().replace('-', "_") == name).ok_or_else(|| refused("no bank that is known"))?);
            continue;
        }
        let (pcr, value) = line.split_once([' ', ':']).ok_or_else(|| refused("neither a PCR nor a bank"))?;
        let pcr: u32 = pcr.parse().ok().filter(|pcr| index(*pcr) < PCRS).ok_or_else(|| refused("no number of a PCR"))?;
        let value = value.trim_start_matches([' ', ':']);
        let value = hex::decode(value.strip_prefix("0x").unwrap_or(value)).map_err(|_| refused("the value is not hexadecimal"))?;
        // without its name a bank is told by the length: the oldest of it, SHA-3 always has one
        let alg = bank.or_else(|| bank_of(|alg| alg.len() == value.len())).ok_or_else(|| refused("no digest has this length"))?;
        let value = Digest::new(alg, &value).ok_or_else(|| refused("the value has not the length of the bank's digests"))?;
        if pcrs.insert((alg, pcr), value).is_some() {
            return Err(refused("this PCR stood before"));
        }
    }
    if pcrs.is_empty() { Err(PcrsError { line: 1, problem: "no PCR" }) } else { Ok(pcrs) }
}

fn bank_of(is: impl Fn(DigestAlg) -> bool) -> Option<DigestAlg> {
    DigestAlg::ALL.into_iter().find(|alg| TpmAlg::of(*alg).is_some() && is(*alg))
}

/// Whether a PCR says nothing about a log of the firmware's: of PCR 10, where the log has nothing in it, the operating system keeps its own
/// list (Linux's IMA); PCRs from 16 on are a dynamic launch's, or can be reset by anybody.
pub fn not_compared(log: &EventLog<'_>, pcr: u32) -> bool {
    pcr >= 16 || pcr == 10 && last_event(log, pcr).is_none()
}

/// Every PCR of `given` that is not what `banks`, the [replay](super::replay()) of `log`, have, but those that are [`not_compared`].
pub fn compare(log: &EventLog<'_>, banks: &[Bank], given: &Pcrs) -> Vec<Difference> {
    let compared = given.iter().filter(|((_, pcr), _)| !not_compared(log, *pcr));
    compared
        .filter_map(|((alg, pcr), given)| {
            let replayed = banks.iter().find(|bank| bank.alg == *alg).and_then(|bank| bank.pcrs.get(index(*pcr)).copied());
            (replayed != Some(*given)).then(|| Difference { pcr: *pcr, given: *given, replayed, last_event: last_event(log, *pcr) })
        })
        .collect()
}

fn last_event(log: &EventLog<'_>, pcr: u32) -> Option<usize> {
    let extended = log.events.iter().rev().find(|event| event.pcr == pcr && event.is_extended());
    extended.map(|event| event.number)
}
