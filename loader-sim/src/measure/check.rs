//! What a verifier must refuse in a log even if it replays to the quoted PCRs: a PCR says that something was measured, not that it is what the
//! event calls it. The masquerades are those of go-attestation's `docs/event-log-disclosure.md` and of CVE-2021-42299.
//!
//! | rule | source |
//! |---|---|
//! | separators of PCRs 0 to 7: exact, one each, and nothing else has their digest | Platform Firmware Profile 1.06 §3.3.1, §10.4.1 |
//! | a digest of data is the digest of those data, in every bank | §10.4.1 table 27 |
//! | every event is in every bank | §10.2.1; a bank that firmware left out is whoever's that fills it |
//! | PCR 7: SecureBoot, PK, KEK, db and dbx before the separator, once, none after; no type that it does not have | §3.3.4.8 |
//! | the locality of the start is said before PCR 0 is used, once | §10.4.5.3 |

use std::fmt;

use hvci_engine::{bytes::index, crypto, digest::DigestAlg};

use super::{
    content::{Content, Variable},
    event::{Algorithm, Event, EventType},
    log::Log,
    replay::startup_locality,
};

/// PCRs of the firmware, which a separator closes.
const FIRMWARE: std::ops::RangeInclusive<u32> = 0..=7;
const SECURE_BOOT_PCR: u32 = 7;
/// What a separator measures: the boot goes on; or it goes on and nobody says how.
const SEPARATORS: [[u8; 4]; 2] = [[0; 4], [0xFF; 4]];
/// What stands for a failure of the firmware, and what is measured for it.
const FAILURE: [u8; 4] = [1, 0, 0, 0];
/// Measured into PCR 7 in this order, also where there is none.
const VARIABLES: [&str; 5] = ["SecureBoot", "PK", "KEK", "db", "dbx"];

/// Something that a verifier must not believe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The event; `None` where one is missing.
    pub event: Option<usize>,
    /// The PCR that it is about.
    pub pcr: u32,
    /// What is wrong.
    pub what: What,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The event has no digest for a bank.
    NotInBank(Algorithm),
    /// The digest is not that of the data.
    Digest(Algorithm),
    /// A separator of other bytes than separators have.
    SeparatorData,
    /// The firmware says that it failed.
    Failure,
    /// A second separator.
    SecondSeparator,
    /// No separator.
    NoSeparator,
    /// Another type of event with a separator's digest.
    LooksLikeSeparator,
    /// A type that PCR 7 does not have, or data that are not of the type.
    NotOfPcr7,
    /// A variable that decides about Secure Boot, measured after the separator.
    VariableAfterSeparator(String),
    /// The same variable again.
    VariableTwice(String),
    /// A variable of Secure Boot that is not measured.
    NoVariable(&'static str),
    /// The locality of the start, said again or too late.
    Locality,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInBank(bank) => write!(f, "has no digest for bank {bank}: whoever comes later can fill that bank"),
            Self::Digest(bank) => write!(f, "its {bank} digest is not that of its data"),
            Self::SeparatorData => f.write_str("a separator is 00000000 or FFFFFFFF"),
            Self::Failure => f.write_str("the firmware says that it failed"),
            Self::SecondSeparator => f.write_str("a second separator"),
            Self::NoSeparator => f.write_str("no separator: what belongs to the firmware cannot be told from what came after"),
            Self::LooksLikeSeparator => f.write_str("measures what a separator measures, under another type"),
            Self::NotOfPcr7 => f.write_str("PCR 7 has no such event"),
            Self::VariableAfterSeparator(name) => write!(f, "the variable {} after the separator", name.escape_debug()),
            Self::VariableTwice(name) => write!(f, "the variable {} again", name.escape_debug()),
            Self::NoVariable(name) => write!(f, "the variable {name} is not measured"),
            Self::Locality => f.write_str("the locality of the TPM's start, again or after PCR 0 was used"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.event {
            Some(event) => write!(f, "event {event}, PCR {}: {}", self.pcr, self.what),
            None => write!(f, "PCR {}: {}", self.pcr, self.what),
        }
    }
}

/// Everything that is wrong, in the order of the events.
pub fn check(log: &Log<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for event in &log.events {
        for what in digests(event, log) {
            faults.push(Fault { event: Some(event.number), pcr: event.pcr, what });
        }
    }
    separators(log, &mut faults);
    secure_boot(log, &mut faults);
    locality(log, &mut faults);
    faults.sort_by_key(|fault| fault.event.unwrap_or(usize::MAX));
    faults
}

/// What is wrong with an event's digests by themselves.
fn digests<'l>(event: &'l Event<'_>, log: &'l Log<'_>) -> impl Iterator<Item = What> + 'l {
    let banks = log.banks.iter().filter(|_| event.is_measured()).map(|bank| bank.algorithm);
    banks.filter_map(move |bank| match (event.digest(bank), bank.digest()) {
        (None, _) => Some(What::NotInBank(bank)),
        (Some(digest), Some(alg)) if !is_of_data(event, alg, digest) => Some(What::Digest(bank)),
        _ => None,
    })
}

/// Whether a digest is that of the data, where the type says that it is.
fn is_of_data(event: &Event<'_>, alg: DigestAlg, digest: &[u8]) -> bool {
    let is = |data: &[u8]| crypto::digest(alg, &[data]).as_bytes() == digest;
    match event.kind {
        EventType::SEPARATOR if FIRMWARE.contains(&event.pcr) && event.data == FAILURE => is(event.data),
        EventType::SEPARATOR
        | EventType::ACTION
        | EventType::EFI_ACTION
        | EventType::S_CRTM_VERSION
        | EventType::EVENT_TAG
        | EventType::EFI_GPT_EVENT
        | EventType::EFI_VARIABLE_DRIVER_CONFIG
        | EventType::EFI_VARIABLE_BOOT2
        | EventType::EFI_VARIABLE_AUTHORITY => is(event.data),
        // older firmware measures the value alone
        EventType::EFI_VARIABLE_BOOT => {
            is(event.data) || matches!(Content::of(event), Content::Variable(Variable { data, .. }) if is(data))
        }
        _ => true,
    }
}

fn separators(log: &Log<'_>, faults: &mut Vec<Fault>) {
    for pcr in FIRMWARE {
        let mut found = None;
        for event in log.events.iter().filter(|event| event.pcr == pcr && event.is_measured()) {
            let mut fault = |what| faults.push(Fault { event: Some(event.number), pcr, what });
            if event.kind != EventType::SEPARATOR {
                if measures_separator(event) {
                    fault(What::LooksLikeSeparator);
                }
                continue;
            }
            if event.data == FAILURE {
                fault(What::Failure);
            } else if !SEPARATORS.iter().any(|separator| event.data == separator) {
                fault(What::SeparatorData);
            }
            if found.replace(event.number).is_some() {
                fault(What::SecondSeparator);
            }
        }
        if found.is_none() {
            faults.push(Fault { event: None, pcr, what: What::NoSeparator });
        }
    }
}

/// In any bank that is calculated here.
fn measures_separator(event: &Event<'_>) -> bool {
    let all = SEPARATORS.iter().chain([&FAILURE]);
    all.into_iter().any(|separator| {
        event.digests.iter().any(|(bank, digest)| bank.digest().is_some_and(|alg| crypto::digest(alg, &[separator]).as_bytes() == *digest))
    })
}

fn secure_boot(log: &Log<'_>, faults: &mut Vec<Fault>) {
    let mut closed = false;
    let mut measured: Vec<Variable<'_>> = Vec::new();
    for event in log.events.iter().filter(|event| event.pcr == SECURE_BOOT_PCR && event.is_measured()) {
        let mut fault = |what| faults.push(Fault { event: Some(event.number), pcr: event.pcr, what });
        match (event.kind, Content::of(event)) {
            (EventType::SEPARATOR, _) => closed = true,
            (EventType::EFI_VARIABLE_DRIVER_CONFIG, Content::Variable(variable)) => {
                if measured.iter().any(|known| (known.vendor, &known.name) == (variable.vendor, &variable.name)) {
                    fault(What::VariableTwice(variable.name));
                } else if closed {
                    fault(What::VariableAfterSeparator(variable.name));
                } else {
                    measured.push(variable);
                }
            }
            (
                EventType::EFI_VARIABLE_AUTHORITY | EventType::EFI_SPDM_DEVICE_POLICY | EventType::EFI_SPDM_DEVICE_AUTHORITY,
                Content::Variable(_),
            )
            | (EventType::EFI_ACTION, Content::Text(_)) => {}
            _ => fault(What::NotOfPcr7),
        }
    }
    for name in VARIABLES.into_iter().filter(|name| !measured.iter().any(|variable| variable.name == *name)) {
        faults.push(Fault { event: None, pcr: SECURE_BOOT_PCR, what: What::NoVariable(name) });
    }
}

fn locality(log: &Log<'_>, faults: &mut Vec<Fault>) {
    let (mut said, mut used) = (false, false);
    for event in log.events.iter().filter(|event| index(event.pcr) == 0) {
        if startup_locality(event).is_some() {
            if said || used {
                faults.push(Fault { event: Some(event.number), pcr: 0, what: What::Locality });
            }
            said = true;
        }
        used |= event.is_measured();
    }
}
