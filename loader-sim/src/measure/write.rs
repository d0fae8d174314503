//! Writes a log with a digest for each bank, as firmware does: header first, then what is measured.
//!
//! Refuses what `EventLog::read` would not read back as it was.

use hvci_engine::{
    bytes::index,
    crypto,
    digest::{Digest, DigestAlg},
};

use super::{
    event_type::EventType,
    log::{EventLog, MAX_LOG, TpmAlg},
    replay::PCRS,
};

const SPEC_ID_03: &[u8] = b"Spec ID Event03\0";
const STARTUP_LOCALITY: &[u8] = b"StartupLocality\0";

/// Why something cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// No bank, one twice, or one that TPMs do not have.
    #[error("these are no banks of a TPM")]
    Banks,
    /// A PCR that no TPM has.
    #[error("there is no PCR {0}")]
    NoSuchPcr(u32),
    /// `EV_PREBOOT_CERT`, which is reserved: such an event could be padding.
    #[error("type 0 is reserved")]
    Reserved,
    /// Not one digest for each of the log's banks, in their order.
    #[error("the digests are not one for each bank, in the banks' order")]
    Digests,
    /// The log would be too long.
    #[error("the log would be longer than {MAX_LOG} bytes")]
    TooLong,
}

/// A log that is being written.
#[derive(Clone, Debug)]
pub struct LogBuilder {
    banks: Vec<DigestAlg>,
    bytes: Vec<u8>,
    events: usize,
}

impl LogBuilder {
    /// A log of `banks` with nothing in it but the header.
    ///
    /// # Errors
    /// [`BuildError::Banks`].
    pub fn new(banks: &[DigestAlg]) -> Result<Self, BuildError> {
        let ids: Vec<TpmAlg> = banks.iter().map(|alg| TpmAlg::of(*alg)).collect::<Option<_>>().ok_or(BuildError::Banks)?;
        if ids.is_empty() || ids.iter().enumerate().any(|(n, id)| ids.iter().take(n).any(|earlier| earlier == id)) {
            return Err(BuildError::Banks);
        }
        let mut header = SPEC_ID_03.to_vec();
        // platform class: client; version 2.0 errata 5 (PFP 1.05 says 105); integers of 64 bits
        header.extend([0, 0, 0, 0, 0, 2, 105, 2]);
        header.extend(length(ids.len())?);
        for (id, alg) in ids.iter().zip(banks) {
            header.extend(id.0.to_le_bytes());
            header.extend(u16::try_from(alg.len()).map_err(|_| BuildError::Banks)?.to_le_bytes());
        }
        header.push(0);
        let mut bytes = 0_u32.to_le_bytes().to_vec();
        bytes.extend(EventType::EV_NO_ACTION.0.to_le_bytes());
        bytes.extend([0; 20]);
        bytes.extend(length(header.len())?);
        bytes.extend(header);
        Ok(Self { banks: banks.to_vec(), bytes, events: 0 })
    }

    /// A log of `banks` that goes on behind what was [written](Self::bytes).
    ///
    /// # Errors
    /// [`BuildError::Banks`] where `log` does not begin with the header of such a log.
    pub fn resume(banks: &[DigestAlg], log: Vec<u8>) -> Result<Self, BuildError> {
        let new = Self::new(banks)?;
        let events = EventLog::read(&log).map_or(0, |read| read.events.len());
        if log.starts_with(&new.bytes) { Ok(Self { bytes: log, events, ..new }) } else { Err(BuildError::Banks) }
    }

    /// Says from which locality the TPM was started. Must come before anything is measured into PCR 0.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn startup_locality(&mut self, locality: u8) -> Result<(), BuildError> {
        let mut data = STARTUP_LOCALITY.to_vec();
        data.push(locality);
        let zeros: Option<Vec<Digest>> = self.banks.iter().map(|alg| Digest::new(*alg, vec![0; alg.len()].as_slice())).collect();
        self.append(0, EventType::EV_NO_ACTION, &zeros.ok_or(BuildError::Banks)?, &data)
    }

    /// Writes an event for something that was measured: `measured` is what the digests are of, `data` what the log says of it.
    /// Gives the digests back, for the TPM to extend.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is written.
    pub fn measure(&mut self, pcr: u32, event_type: EventType, measured: &[u8], data: &[u8]) -> Result<Vec<Digest>, BuildError> {
        let digests: Vec<Digest> = self.banks.iter().map(|alg| crypto::digest(*alg, &[measured])).collect();
        self.append(pcr, event_type, &digests, data)?;
        Ok(digests)
    }

    /// Writes an event whose digests are known: one for each bank, in the order of the banks.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is written.
    pub fn append(&mut self, pcr: u32, event_type: EventType, digests: &[Digest], data: &[u8]) -> Result<(), BuildError> {
        if index(pcr) >= PCRS {
            return Err(BuildError::NoSuchPcr(pcr));
        }
        if event_type == EventType::EV_PREBOOT_CERT {
            return Err(BuildError::Reserved);
        }
        if !digests.iter().map(Digest::alg).eq(self.banks.iter().copied()) {
            return Err(BuildError::Digests);
        }
        let mut event = pcr.to_le_bytes().to_vec();
        event.extend(event_type.0.to_le_bytes());
        event.extend(length(digests.len())?);
        for digest in digests {
            event.extend(TpmAlg::of(digest.alg()).ok_or(BuildError::Digests)?.0.to_le_bytes());
            event.extend(digest.as_bytes());
        }
        event.extend(length(data.len())?);
        if event.len().saturating_add(data.len()) > MAX_LOG.saturating_sub(self.bytes.len()) {
            return Err(BuildError::TooLong);
        }
        self.bytes.extend(event);
        self.bytes.extend(data);
        self.events = self.events.saturating_add(1);
        Ok(())
    }

    /// How many events it has, the header aside: the number of the next.
    pub fn events(&self) -> usize {
        self.events
    }

    /// The log so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn length(n: usize) -> Result<[u8; 4], BuildError> {
    u32::try_from(n).map(u32::to_le_bytes).map_err(|_| BuildError::TooLong)
}
