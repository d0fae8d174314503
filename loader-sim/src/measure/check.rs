//! The rules by which a log that can be read is no evidence.
//!
//! A type is covered by no digest, so whoever writes the log can call a measured thing something else. What a verifier believes must
//! follow from digests: those of data are recalculated in every bank, and what has a separator's digest must be called a separator.
//! Sources: PFP 1.05 §3.3.4 and §10.4; the attacks are in go-attestation's `docs/event-log-disclosure.md` and CVE-2021-42299.

use std::{collections::HashSet, fmt};

use hvci_engine::{crypto, digest::DigestAlg, uefi::Guid};

use super::{
    data::{EventData, NoAction},
    event_type::{Digested, EventType},
    log::{Event, EventLog, TpmAlg},
};
use crate::firmware::variable::{GLOBAL, IMAGE_SECURITY};

/// PCRs of the firmware, each closed by a separator.
const FIRMWARE_PCRS: u32 = 8;
const SECURE_BOOT_PCR: u32 = 7;
/// The variables of Secure Boot, which are measured even when they are empty (UEFI 2.10 §32.3, PFP 1.05 §3.3.4.8).
const SECURE_BOOT: [(&str, Guid); 5] =
    [("SecureBoot", GLOBAL), ("PK", GLOBAL), ("KEK", GLOBAL), ("db", IMAGE_SECURITY), ("dbx", IMAGE_SECURITY)];
/// The two forms of a separator.
const SEPARATORS: [&[u8]; 2] = [&[0; 4], &[0xFF; 4]];
/// What firmware measures instead after an error.
const SEPARATOR_ERROR: &[u8] = &[1, 0, 0, 0];
/// What Windows closes its own PCRs with.
const WBCL: &[u8] = b"WBCL";

/// Findings that are kept; a log of nothing but nonsense has more than anybody reads.
pub const MAX_FINDINGS: usize = 1000;

/// A reason to refuse a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Number of the event and where it begins, unless it is that there is none.
    pub event: Option<(usize, usize)>,
    /// The PCR, unless it is about all.
    pub pcr: Option<u32>,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(pcr) = self.pcr {
            write!(f, "PCR {pcr}, ")?;
        }
        if let Some((number, offset)) = self.event {
            write!(f, "event {number} at offset {offset:#x}, ")?;
        }
        self.problem.fmt(f)
    }
}

/// What is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A bank of an algorithm that cannot be calculated here: nothing in it can be compared.
    #[error("bank {:#06x} cannot be calculated", .0.0)]
    UnknownBank(TpmAlg),
    /// Something was not measured in a bank, which whoever comes later can fill as they like (CVE-2021-42299).
    #[error("no digest in bank {:#06x}", .0.0)]
    MissingDigest(TpmAlg),
    /// The digest is not of the data that it must be of.
    #[error("the {0} digest is not of the event's data")]
    DigestOfOther(DigestAlg),
    /// A separator's data is neither of the two forms, nor Windows' in a PCR of Windows'.
    #[error("no separator has this data")]
    SeparatorData,
    /// Firmware says that it failed.
    #[error("the firmware measured an error")]
    SeparatorError,
    /// A second one: what comes after the first is not the firmware's.
    #[error("a second separator")]
    SecondSeparator,
    /// A separator where none belongs.
    #[error("a separator in a PCR that has none")]
    SeparatorElsewhere,
    /// None: what was measured by whom cannot be told.
    #[error("no separator")]
    NoSeparator,
    /// The digest is a separator's, and the event is called something else.
    #[error("its {0} digest is a separator's, its type is not")]
    LooksLikeSeparator(DigestAlg),
    /// Something in PCR 7 that a verifier does not know.
    #[error("type {:#010x} is unknown in this PCR", .0.0)]
    UnknownType(EventType),
    /// Data that is not of its type's form, where it must be read.
    #[error("the data is not of the type's form")]
    Unreadable,
    /// The type belongs in another PCR.
    #[error("type {:#010x} does not belong in this PCR", .0.0)]
    WrongPcr(EventType),
    /// A variable after it could have been changed.
    #[error("variable {0:?} after the separator")]
    LateVariable(String),
    /// The same variable, or the same authority, again.
    #[error("variable {0:?} a second time")]
    SecondVariable(String),
    /// A variable that says what Secure Boot did.
    #[error("variable {0} was not measured before the separator")]
    MissingVariable(&'static str),
    /// A second header, which other readers may believe.
    #[error("a second header")]
    SecondHeader,
    /// Events that are not extended have digests of zeros.
    #[error("an event that is not extended has a digest")]
    NoActionDigest,
    /// Localities are 0, 3 and 4, said once, for PCR 0, before anything is in it.
    #[error("locality of the start: value, PCR or place")]
    StartupLocality,
}

/// Every reason to refuse `log`, in the order of its events, up to [`MAX_FINDINGS`]; then what is missing. Empty: none.
pub fn check(log: &EventLog<'_>) -> Vec<Finding> {
    let mut checker = Checker {
        log,
        findings: Vec::new(),
        separated: HashSet::new(),
        extended: HashSet::new(),
        variables: HashSet::new(),
        authorities: HashSet::new(),
        locality: false,
    };
    for (alg, _) in log.algorithms.iter().filter(|(alg, _)| alg.digest_alg().is_none()) {
        checker.findings.push(Finding { event: None, pcr: None, problem: Problem::UnknownBank(alg) });
    }
    for event in &log.events {
        checker.event(event);
    }
    checker.missing();
    checker.findings
}

struct Checker<'l, 'a> {
    log: &'l EventLog<'a>,
    findings: Vec<Finding>,
    separated: HashSet<u32>,
    extended: HashSet<u32>,
    variables: HashSet<([u8; 16], String)>,
    authorities: HashSet<&'a [u8]>,
    locality: bool,
}

impl<'a> Checker<'_, 'a> {
    fn found(&mut self, event: &Event<'_>, problem: Problem) {
        if self.findings.len() >= MAX_FINDINGS {
            return;
        }
        self.findings.push(Finding { event: Some((event.number, event.offset)), pcr: Some(event.pcr), problem });
    }

    fn event(&mut self, event: &Event<'a>) {
        let data = EventData::of(event);
        if let EventData::NoAction(said) = &data {
            self.no_action(event, said);
            return;
        }
        self.digests(event, &data);
        if event.event_type.pcrs().is_some_and(|pcrs| !pcrs.contains(&event.pcr)) {
            self.found(event, Problem::WrongPcr(event.event_type));
        }
        if event.event_type == EventType::EV_SEPARATOR {
            self.separator(event);
        } else if event.pcr < FIRMWARE_PCRS {
            self.separator_in_disguise(event);
        }
        if event.pcr == SECURE_BOOT_PCR {
            self.secure_boot(event, &data);
        }
        self.extended.insert(event.pcr);
    }

    fn no_action(&mut self, event: &Event<'_>, said: &NoAction<'_>) {
        if event.digests.iter().any(|(_, value)| value.iter().any(|b| *b != 0)) {
            self.found(event, Problem::NoActionDigest);
        }
        match said {
            // the old format's header is its first event
            NoAction::SpecId(_) if self.log.agile || event.number != 0 => self.found(event, Problem::SecondHeader),
            NoAction::StartupLocality(locality) => {
                let early = event.pcr == 0 && !self.extended.contains(&0);
                if !matches!(locality, 0 | 3 | 4) || !early || self.locality {
                    self.found(event, Problem::StartupLocality);
                }
                self.locality = true;
            }
            NoAction::SpecId(_) | NoAction::Unknown(_) => {}
        }
    }

    /// A digest in every bank, and each of the data where it must be.
    fn digests(&mut self, event: &Event<'_>, data: &EventData<'_>) {
        let value = match data {
            EventData::Variable(variable) => variable.value,
            _ => event.data,
        };
        for (alg, _) in self.log.algorithms.iter() {
            if !event.digests.iter().any(|(a, _)| a == alg) {
                self.found(event, Problem::MissingDigest(alg));
            }
        }
        for (alg, digest) in event.digests.iter() {
            let Some(alg) = alg.digest_alg() else { continue };
            let is_of = |bytes: &[u8]| crypto::digest(alg, &[bytes]).as_bytes() == digest;
            let holds = match event.event_type.digested(event.data) {
                Digested::Data => is_of(event.data),
                Digested::DataOrValue => is_of(value) || is_of(event.data),
                Digested::Elsewhere => true,
            };
            if !holds {
                self.found(event, Problem::DigestOfOther(alg));
            }
        }
    }

    fn separator(&mut self, event: &Event<'_>) {
        let windows = event.data == WBCL;
        if event.data == SEPARATOR_ERROR {
            self.found(event, Problem::SeparatorError);
        } else if !windows && !SEPARATORS.contains(&event.data) || windows && event.pcr < FIRMWARE_PCRS {
            self.found(event, Problem::SeparatorData);
        }
        if event.pcr >= FIRMWARE_PCRS && !windows {
            self.found(event, Problem::SeparatorElsewhere);
        }
        if !self.separated.insert(event.pcr) {
            self.found(event, Problem::SecondSeparator);
        }
    }

    /// Each form is digested by itself: one hasher for several gives the second form a digest that nothing has.
    fn separator_in_disguise(&mut self, event: &Event<'_>) {
        for (alg, digest) in event.digests.iter() {
            let Some(alg) = alg.digest_alg() else { continue };
            let forms = SEPARATORS.into_iter().chain([SEPARATOR_ERROR]);
            if forms.into_iter().any(|form| crypto::digest(alg, &[form]).as_bytes() == digest) {
                self.found(event, Problem::LooksLikeSeparator(alg));
            }
        }
    }

    fn secure_boot(&mut self, event: &Event<'a>, data: &EventData<'a>) {
        let separated = self.separated.contains(&SECURE_BOOT_PCR);
        match (event.event_type, data) {
            (EventType::EV_SEPARATOR, _) | (EventType::EV_EFI_ACTION, EventData::Text(_)) => {}
            (EventType::EV_EFI_VARIABLE_DRIVER_CONFIG, EventData::Variable(variable)) => {
                if separated {
                    self.found(event, Problem::LateVariable(variable.name.clone()));
                }
                if !self.variables.insert((variable.guid.0, variable.name.clone())) {
                    self.found(event, Problem::SecondVariable(variable.name.clone()));
                }
            }
            (EventType::EV_EFI_VARIABLE_AUTHORITY, EventData::Variable(variable)) => {
                // of one variable several entries may have been used, each once
                if !self.authorities.insert(event.data) {
                    self.found(event, Problem::SecondVariable(variable.name.clone()));
                }
            }
            (_, EventData::Unreadable(_)) => self.found(event, Problem::Unreadable),
            _ => self.found(event, Problem::UnknownType(event.event_type)),
        }
    }

    fn missing(&mut self) {
        let missing = |pcr, problem| Finding { event: None, pcr: Some(pcr), problem };
        for pcr in (0..FIRMWARE_PCRS).filter(|pcr| !self.separated.contains(pcr)) {
            self.findings.push(missing(pcr, Problem::NoSeparator));
        }
        for (name, guid) in SECURE_BOOT {
            if !self.variables.contains(&(guid.0, name.to_owned())) {
                self.findings.push(missing(SECURE_BOOT_PCR, Problem::MissingVariable(name)));
            }
        }
    }
}
