//! Bytes to events: the log that a TPM 2.0 platform keeps, and the older one of SHA-1 alone (TCG PC Client Platform Firmware Profile 1.06 §10.2).
//!
//! ```text
//! TCG_PCR_EVENT   PCRIndex u32, EventType u32, SHA-1[20], EventSize u32, Event[EventSize]
//! Spec ID event   the first TCG_PCR_EVENT, EV_NO_ACTION: "Spec ID Event03\0", platformClass u32, minor u8, major u8, errata u8, uintnSize u8,
//!                 numberOfAlgorithms u32, (algorithmId u16, digestSize u16)…, vendorInfoSize u8, vendorInfo
//! TCG_PCR_EVENT2  PCRIndex u32, EventType u32, count u32, (algorithmId u16, digest)…, EventSize u32, Event[EventSize]
//! ```
//!
//! Trusts nothing. Refuses what is cut short, PCRs that there are not, algorithms that the Spec ID event does not name, and two digests of one.
//! Zeros or 0xFF to the end are room that was not used.

use std::fmt;

use hvci_engine::bytes::{array, index, le16, le32, slice};

use super::event::{Algorithm, Event, EventType, PCRS};

const SPEC_ID: &[u8] = b"Spec ID Event03\0";
/// Header of a TCG_PCR_EVENT.
const OLD_HEADER: usize = 32;
/// Algorithms that a log may name; TPMs have at most 16 banks (TPM_NUM_PCR_BANKS in use).
const MAX_BANKS: u32 = 16;
/// A log without a Spec ID event has this bank.
const SHA1: Bank = Bank { algorithm: Algorithm(4), size: 20 };

/// An algorithm that a log has digests of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank {
    /// Which.
    pub algorithm: Algorithm,
    /// Bytes of a digest.
    pub size: usize,
}

/// A log that could be read. Nothing in it is known to be true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log<'a> {
    /// The banks that the Spec ID event names, or SHA-1 alone.
    pub banks: Vec<Bank>,
    /// Every record, the Spec ID event first if there is one.
    pub events: Vec<Event<'a>>,
}

/// Why bytes are no log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {event}, at offset {offset:#x} of the log: {kind}")]
pub struct LogError {
    /// The number of the event that cannot be read.
    pub event: usize,
    /// Where it begins.
    pub offset: usize,
    /// What is wrong with it.
    pub kind: LogErrorKind,
}

/// What can be wrong with an event's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogErrorKind {
    /// The log ends before the event does.
    Truncated,
    /// There is no such PCR.
    Pcr(u32),
    /// The Spec ID event names no algorithm, too many, one twice, or one with another length than it has.
    Algorithms,
    /// A digest of an algorithm that the Spec ID event does not name.
    UnknownAlgorithm(Algorithm),
    /// Two digests of one algorithm.
    DigestTwice(Algorithm),
    /// A Spec ID event whose own bytes do not add up.
    SpecId,
}

impl fmt::Display for LogErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("the log ends before the event does"),
            Self::Pcr(pcr) => write!(f, "there is no PCR {pcr}"),
            Self::Algorithms => f.write_str("the algorithms of the Spec ID event are none, too many, named twice, or of a wrong length"),
            Self::UnknownAlgorithm(algorithm) => write!(f, "a digest of {algorithm}, which the Spec ID event does not name"),
            Self::DigestTwice(algorithm) => write!(f, "two digests of {algorithm}"),
            Self::SpecId => f.write_str("the Spec ID event does not have the length that its fields say"),
        }
    }
}

/// Reads a whole log.
///
/// # Errors
/// The first event that is none.
pub fn read(bytes: &[u8]) -> Result<Log<'_>, LogError> {
    let mut log = Log { banks: vec![SHA1], events: Vec::new() };
    let mut at = 0;
    let fail = |event, kind, offset| LogError { event, offset, kind };
    let (first, mut next) = old_event(bytes, 0, 0).map_err(|kind| fail(0, kind, 0))?;
    let is_spec_id = first.kind == EventType::NO_ACTION && first.data.starts_with(SPEC_ID);
    if is_spec_id {
        log.banks = banks(first.data).map_err(|kind| fail(0, kind, 0))?;
        log.events.push(first);
        at = next;
    }
    while !is_room(bytes.get(at..).unwrap_or_default()) {
        let number = log.events.len();
        let event = if is_spec_id { event(bytes, at, number, &log.banks) } else { old_event(bytes, at, number) };
        let event = event.map_err(|kind| fail(number, kind, at))?;
        next = event.1;
        log.events.push(event.0);
        at = next;
    }
    Ok(log)
}

/// Whether the rest of a log is room that was not used.
fn is_room(rest: &[u8]) -> bool {
    rest.iter().all(|byte| *byte == 0) || rest.iter().all(|byte| *byte == 0xFF)
}

type Read<'a> = Result<(Event<'a>, usize), LogErrorKind>;

fn old_event(bytes: &[u8], offset: usize, number: usize) -> Read<'_> {
    let header = slice(bytes, offset, OLD_HEADER).ok_or(LogErrorKind::Truncated)?;
    let (data, next) = data(bytes, offset + OLD_HEADER - 4)?;
    let kind = EventType(le32(header, 4).ok_or(LogErrorKind::Truncated)?);
    let pcr = pcr(header, kind)?;
    let digest = slice(header, 8, SHA1.size).ok_or(LogErrorKind::Truncated)?;
    Ok((Event { number, offset, pcr, kind, digests: vec![(SHA1.algorithm, digest)], data }, next))
}

fn event<'a>(bytes: &'a [u8], offset: usize, number: usize, banks: &[Bank]) -> Read<'a> {
    let header = slice(bytes, offset, 12).ok_or(LogErrorKind::Truncated)?;
    let kind = EventType(le32(header, 4).ok_or(LogErrorKind::Truncated)?);
    let pcr = pcr(header, kind)?;
    let count = le32(header, 8).ok_or(LogErrorKind::Truncated)?;
    let mut at = offset + header.len();
    let mut digests = Vec::new();
    // one of each bank at most, so that a count of millions ends soon
    for _ in 0..count {
        let algorithm = Algorithm(le16(bytes, at).ok_or(LogErrorKind::Truncated)?);
        let bank = banks.iter().find(|bank| bank.algorithm == algorithm).ok_or(LogErrorKind::UnknownAlgorithm(algorithm))?;
        if digests.iter().any(|(known, _)| *known == algorithm) {
            return Err(LogErrorKind::DigestTwice(algorithm));
        }
        digests.push((algorithm, slice(bytes, at + 2, bank.size).ok_or(LogErrorKind::Truncated)?));
        at += 2 + bank.size;
    }
    let (data, next) = data(bytes, at)?;
    Ok((Event { number, offset, pcr, kind, digests, data }, next))
}

/// The bytes behind their length at `at`, and where they end.
fn data(bytes: &[u8], at: usize) -> Result<(&[u8], usize), LogErrorKind> {
    let len = index(le32(bytes, at).ok_or(LogErrorKind::Truncated)?);
    let data = slice(bytes, at + 4, len).ok_or(LogErrorKind::Truncated)?;
    Ok((data, at + 4 + len))
}

/// What is not measured may name no PCR (SP 800-155 events do).
fn pcr(header: &[u8], kind: EventType) -> Result<u32, LogErrorKind> {
    let pcr = le32(header, 0).ok_or(LogErrorKind::Truncated)?;
    if index(pcr) < PCRS || kind == EventType::NO_ACTION && pcr == u32::MAX { Ok(pcr) } else { Err(LogErrorKind::Pcr(pcr)) }
}

fn banks(spec_id: &[u8]) -> Result<Vec<Bank>, LogErrorKind> {
    let list = SPEC_ID.len() + 12;
    let count = le32(spec_id, list - 4).ok_or(LogErrorKind::SpecId)?;
    if !(1..=MAX_BANKS).contains(&count) {
        return Err(LogErrorKind::Algorithms);
    }
    let mut banks: Vec<Bank> = Vec::new();
    for n in 0..index(count) {
        let [id @ .., size, high] = array::<4>(spec_id, list + 4 * n).ok_or(LogErrorKind::SpecId)?;
        let bank = Bank { algorithm: Algorithm(u16::from_le_bytes(id)), size: usize::from(u16::from_le_bytes([size, high])) };
        let is_right = bank.size != 0 && bank.algorithm.digest().is_none_or(|known| known.len() == bank.size);
        if !is_right || banks.iter().any(|other| other.algorithm == bank.algorithm) {
            return Err(LogErrorKind::Algorithms);
        }
        banks.push(bank);
    }
    let vendor = list + 4 * index(count);
    let len = spec_id.get(vendor).map(|len| usize::from(*len)).ok_or(LogErrorKind::SpecId)?;
    if spec_id.len() == vendor + 1 + len { Ok(banks) } else { Err(LogErrorKind::SpecId) }
}
