//! Measures while a machine starts: each event into the log and its digests to the TPM, always both.
//!
//! The forms of the events are those of the firmware and boot loaders that are simulated (edk2, shim, GRUB, systemd-stub); where a digest is of
//! something else than the event's data, that is said at the method.

use std::collections::HashSet;

use hvci_engine::{
    crypto,
    digest::{Digest, DigestAlg},
    facts::{DigestForm, Facts},
    image::pe::Pe,
    uefi::Guid,
};

use super::{
    data::Variable,
    event_type::EventType,
    log::{Event, EventLog},
    write::{BuildError, LogBuilder},
};

/// Takes the digests of an event, one for each bank: a TPM, or nobody when a boot is only predicted.
pub trait Extend {
    /// Extends a PCR.
    ///
    /// # Errors
    /// What keeps the machine from starting, for a person.
    fn extend(&mut self, pcr: u32, digests: &[Digest]) -> Result<(), String>;
}

/// Nobody: the log is all there is.
impl Extend for () {
    fn extend(&mut self, _: u32, _: &[Digest]) -> Result<(), String> {
        Ok(())
    }
}

/// Why something could not be measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// The log cannot hold it.
    #[error(transparent)]
    Log(#[from] BuildError),
    /// The TPM refused it.
    #[error("the TPM does not extend PCR {pcr}: {reason}")]
    Tpm {
        /// Which PCR.
        pcr: u32,
        /// What it said.
        reason: String,
    },
}

/// The log of a boot that is going on.
pub struct Recorder<'t> {
    log: LogBuilder,
    banks: Vec<DigestAlg>,
    tpm: &'t mut dyn Extend,
    /// authorities that have been measured: each is once
    authorities: HashSet<Vec<u8>>,
}

impl<'t> Recorder<'t> {
    /// With a log of `banks`, the digests going to `tpm`.
    ///
    /// # Errors
    /// [`BuildError::Banks`].
    pub fn new(banks: &[DigestAlg], tpm: &'t mut dyn Extend) -> Result<Self, MeasureError> {
        Ok(Self { log: LogBuilder::new(banks)?, banks: banks.to_vec(), tpm, authorities: HashSet::new() })
    }

    /// Going on with a log that was begun: what was measured after the firmware.
    ///
    /// # Errors
    /// [`BuildError::Banks`].
    pub fn resume(banks: &[DigestAlg], log: Vec<u8>, tpm: &'t mut dyn Extend) -> Result<Self, MeasureError> {
        let is_once = |event: &Event<'_>| matches!(event.event_type, EventType::EV_EFI_VARIABLE_AUTHORITY | EventType::EV_EVENT_TAG);
        let read = EventLog::read(&log).map(|log| log.events).unwrap_or_default();
        let authorities = read.iter().filter(|event| is_once(event)).map(|event| event.data.to_vec()).collect();
        Ok(Self { log: LogBuilder::resume(banks, log)?, banks: banks.to_vec(), tpm, authorities })
    }

    /// The log so far.
    pub fn log(&self) -> &[u8] {
        self.log.bytes()
    }

    /// An event whose digest is of its data.
    ///
    /// # Errors
    /// [`MeasureError`], of this and all that follow.
    pub fn data(&mut self, pcr: u32, event_type: EventType, data: &[u8]) -> Result<(), MeasureError> {
        self.of(pcr, event_type, data, data)
    }

    /// An event whose digest is of `measured`, and whose data is only what the log says of it.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn of(&mut self, pcr: u32, event_type: EventType, measured: &[u8], data: &[u8]) -> Result<(), MeasureError> {
        let digests = self.log.measure(pcr, event_type, measured, data)?;
        self.extend(pcr, &digests)
    }

    /// A variable of the Secure Boot configuration; one that does not exist is empty.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn config(&mut self, name: &str, guid: Guid, value: &[u8]) -> Result<(), MeasureError> {
        self.data(7, EventType::EV_EFI_VARIABLE_DRIVER_CONFIG, &variable(name, guid, value))
    }

    /// What let an image start; once, however often it does.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn authority(&mut self, name: &str, guid: Guid, value: &[u8]) -> Result<(), MeasureError> {
        self.once(7, EventType::EV_EFI_VARIABLE_AUTHORITY, variable(name, guid, value))
    }

    /// An event whose digest is of its data, unless it was measured already.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn once(&mut self, pcr: u32, event_type: EventType, data: Vec<u8>) -> Result<(), MeasureError> {
        if self.authorities.contains(&data) {
            return Ok(());
        }
        self.data(pcr, event_type, &data)?;
        self.authorities.insert(data);
        Ok(())
    }

    /// A boot option: the digest is of the variable's value alone (edk2, `MeasureVariable` in DxeTpm2MeasureBootLib).
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn boot_option(&mut self, name: &str, guid: Guid, value: &[u8]) -> Result<(), MeasureError> {
        self.of(1, EventType::EV_EFI_VARIABLE_BOOT, value, &variable(name, guid, value))
    }

    /// The end of what the firmware measures into a PCR before it starts something.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn separator(&mut self, pcr: u32) -> Result<(), MeasureError> {
        self.data(pcr, EventType::EV_SEPARATOR, &[0; 4])
    }

    /// An image that is started: the digests are its authentihashes, of which its `facts` have some; the data where it is in memory, how long, and its device path.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn image(&mut self, image: &Pe<'_>, facts: &Facts, path: &[u8]) -> Result<usize, MeasureError> {
        let pieces = image.hash_pieces(DigestForm::SectionSum).or_else(|| image.hash_pieces(DigestForm::Linear)).unwrap_or_default();
        let known = |alg: DigestAlg| facts.firmware_digest(alg).copied();
        let digests: Vec<Digest> = self.banks.iter().map(|alg| known(*alg).unwrap_or_else(|| crypto::digest(*alg, &pieces))).collect();
        let mut data = Vec::new();
        for field in [LOADED_AT, image.data().len(), 0, path.len()] {
            data.extend(hvci_engine::bytes::widen(field).to_le_bytes());
        }
        data.extend(path);
        let number = self.log.events();
        self.log.append(4, EventType::EV_EFI_BOOT_SERVICES_APPLICATION, &digests, &data)?;
        self.extend(4, &digests)?;
        Ok(number)
    }

    /// What a boot loader says and does: text that a NUL ends in the log, and that is measured without what `says` it is about.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn said(&mut self, says: &str, what: &str) -> Result<(), MeasureError> {
        self.of(8, EventType::EV_IPL, what.as_bytes(), format!("{says}{what}\0").as_bytes())
    }

    /// A file, or another thing, that a boot loader reads: the digest is of its content, the log has its name.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn content(&mut self, pcr: u32, name: &str, content: &[u8]) -> Result<(), MeasureError> {
        self.content_of(pcr, name, content, None)
    }

    /// The same of content that has this digest, in whichever bank.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn content_of(&mut self, pcr: u32, name: &str, content: &[u8], known: Option<Digest>) -> Result<(), MeasureError> {
        let digest = |alg: &DigestAlg| known.filter(|digest| digest.alg() == *alg).unwrap_or_else(|| crypto::digest(*alg, &[content]));
        let digests: Vec<Digest> = self.banks.iter().map(digest).collect();
        self.log.append(pcr, EventType::EV_IPL, &digests, format!("{name}\0").as_bytes())?;
        self.extend(pcr, &digests)
    }

    fn extend(&mut self, pcr: u32, digests: &[Digest]) -> Result<(), MeasureError> {
        self.tpm.extend(pcr, digests).map_err(|reason| MeasureError::Tpm { pcr, reason })
    }
}

/// Where images are said to be in memory: nobody looks at it.
const LOADED_AT: usize = 0x3C80_0000;

fn variable(name: &str, guid: Guid, value: &[u8]) -> Vec<u8> {
    Variable { guid, name: name.to_owned(), value }.to_bytes()
}

impl std::fmt::Debug for Recorder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("banks", &self.banks).field("bytes", &self.log().len()).finish_non_exhaustive()
    }
}
