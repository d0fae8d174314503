//! The log's structure (PFP 1.05 §10.2): `TCG_PCR_EVENT` (SHA-1 only, or a header) and `TCG_PCR_EVENT2` (a digest a bank).
//!
//! Reads all bytes, borrows them, trusts nothing. Refuses what does not end where an event does, digests of algorithms that the header does
//! not declare, PCRs that no TPM has. Padding is all zeros or all 0xFF, to the end.

use hvci_engine::{
    bytes::{array, index, le16, le32, slice},
    digest::{Digest, DigestAlg},
};

use super::{data::SPEC_ID_03, event_type::EventType, replay::PCRS};

/// Longer logs are refused; real ones have up to some hundred kilobytes.
pub const MAX_LOG: usize = 4 << 20;
/// Banks that a header may declare; TPMs have at most seven.
const MAX_BANKS: u32 = 16;

/// Why bytes are no event log. `offset` is where in the log, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// No event: what Linux shows when nothing was measured.
    #[error("the log is empty")]
    Empty,
    /// More than [`MAX_LOG`] bytes.
    #[error("the log has {0} bytes, more than {MAX_LOG}")]
    TooLong(usize),
    /// The bytes end within something.
    #[error("event {event}: the log ends within the {what} at offset {offset:#x}")]
    Truncated {
        /// The event.
        event: usize,
        /// Where what is cut off begins.
        offset: usize,
        /// What that is.
        what: &'static str,
    },
    /// The header is not what the PFP says (§10.4.5.1).
    #[error("the header at offset {offset:#x}: {what}")]
    Header {
        /// Where.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// An event for a PCR that no TPM has.
    #[error("event {event} at offset {offset:#x}: there is no PCR {pcr}")]
    NoSuchPcr {
        /// The event.
        event: usize,
        /// Where it begins.
        offset: usize,
        /// The number.
        pcr: u32,
    },
    /// More digests than the header declares algorithms.
    #[error("event {event} at offset {offset:#x}: {count} digests, more than the header's algorithms")]
    DigestCount {
        /// The event.
        event: usize,
        /// Where the number stands.
        offset: usize,
        /// The number.
        count: u32,
    },
    /// A digest of an algorithm that the header does not declare.
    #[error("event {event} at offset {offset:#x}: the header does not declare algorithm {alg:#06x}")]
    Undeclared {
        /// The event.
        event: usize,
        /// Where the digest stands.
        offset: usize,
        /// The algorithm.
        alg: u16,
    },
    /// Two digests of one algorithm.
    #[error("event {event} at offset {offset:#x}: a second digest of algorithm {alg:#06x}")]
    Repeated {
        /// The event.
        event: usize,
        /// Where the second stands.
        offset: usize,
        /// The algorithm.
        alg: u16,
    },
}

/// `TPM_ALG_ID` of a bank (TPM 2.0 Library, Part 2, §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TpmAlg(pub u16);

impl TpmAlg {
    const KNOWN: [(u16, DigestAlg); 7] = [
        (0x04, DigestAlg::Sha1),
        (0x0B, DigestAlg::Sha256),
        (0x0C, DigestAlg::Sha384),
        (0x0D, DigestAlg::Sha512),
        (0x27, DigestAlg::Sha3_256),
        (0x28, DigestAlg::Sha3_384),
        (0x29, DigestAlg::Sha3_512),
    ];

    /// The algorithm, if it can be calculated here.
    pub fn digest_alg(self) -> Option<DigestAlg> {
        Self::KNOWN.into_iter().find(|(id, _)| *id == self.0).map(|(_, alg)| alg)
    }

    /// The number of `alg`, if TPMs have one.
    pub fn of(alg: DigestAlg) -> Option<Self> {
        Self::KNOWN.into_iter().find(|(_, known)| *known == alg).map(|(id, _)| Self(id))
    }
}

/// The table of algorithms in the header: `{ u16 algorithm, u16 size }` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithms<'a>(&'a [u8]);

/// Of logs in the old format.
const SHA1_ONLY: Algorithms<'static> = Algorithms(&[4, 0, 20, 0]);

impl<'a> Algorithms<'a> {
    /// Algorithm and length of its digests, in the header's order.
    pub fn iter(self) -> impl Iterator<Item = (TpmAlg, usize)> + 'a {
        self.0.chunks_exact(4).filter_map(|entry| Some((TpmAlg(le16(entry, 0)?), usize::from(le16(entry, 2)?))))
    }

    fn size(self, alg: TpmAlg) -> Option<usize> {
        self.iter().find(|(a, _)| *a == alg).map(|(_, size)| size)
    }
}

/// Digests of one event, a bank each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digests<'a> {
    algorithms: Algorithms<'a>,
    /// `{ u16 algorithm, digest }` each, or one SHA-1 digest
    bytes: &'a [u8],
    agile: bool,
}

impl<'a> Digests<'a> {
    /// Algorithm and value, in the log's order.
    pub fn iter(self) -> impl Iterator<Item = (TpmAlg, &'a [u8])> {
        let mut at = 0_usize;
        std::iter::from_fn(move || {
            let (alg, start) = if self.agile { (TpmAlg(le16(self.bytes, at)?), at.checked_add(2)?) } else { (TpmAlg(4), at) };
            let value = slice(self.bytes, start, self.algorithms.size(alg)?)?;
            at = start.checked_add(value.len())?;
            Some((alg, value))
        })
    }

    /// The digest of one bank.
    pub fn get(self, alg: DigestAlg) -> Option<Digest> {
        self.iter().find(|(a, _)| a.digest_alg() == Some(alg)).and_then(|(_, value)| Digest::new(alg, value))
    }
}

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its number. The header of a log with several banks has none, as in the kernel's and other tools' counting it is no measurement.
    pub number: usize,
    /// Where it begins in the log.
    pub offset: usize,
    /// Which PCR it was extended into, if it was.
    pub pcr: u32,
    /// What it says it is.
    pub event_type: EventType,
    /// What was extended.
    pub digests: Digests<'a>,
    /// What it says was measured.
    pub data: &'a [u8],
}

impl Event<'_> {
    /// Whether a PCR was extended: `EV_NO_ACTION` is only written down.
    pub fn is_extended(&self) -> bool {
        self.event_type != EventType::EV_NO_ACTION
    }
}

/// A log that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLog<'a> {
    /// Banks that it is about.
    pub algorithms: Algorithms<'a>,
    /// The events, in order, without the header.
    pub events: Vec<Event<'a>>,
    /// Bytes of padding behind the last.
    pub padding: usize,
    /// Whether every event has a digest for each bank (`TCG_PCR_EVENT2`), or SHA-1 only.
    pub agile: bool,
}

impl<'a> EventLog<'a> {
    /// Reads a log. Takes time and memory linear in its length.
    ///
    /// # Errors
    /// [`LogError`] at the first byte that cannot be.
    pub fn read(bytes: &'a [u8]) -> Result<Self, LogError> {
        if bytes.len() > MAX_LOG {
            return Err(LogError::TooLong(bytes.len()));
        }
        // where padding may begin: from there on all bytes are the same
        let same = bytes.last().filter(|b| matches!(b, 0 | 0xFF)).map(|last| bytes.iter().rev().take_while(|b| *b == last).count());
        let pad_from = bytes.len().saturating_sub(same.unwrap_or(0));
        let mut reader = Reader { bytes, at: 0, event: 0 };
        let mut log = Self { algorithms: SHA1_ONLY, events: Vec::new(), padding: 0, agile: false };
        if pad_from == 0 {
            return Err(LogError::Empty);
        }
        let first = reader.sha1_event()?;
        if first.event_type == EventType::EV_NO_ACTION && first.data.starts_with(SPEC_ID_03) {
            log.algorithms = header(&first, reader.at)?;
            log.agile = true;
        } else {
            log.events.push(first);
            reader.event = 1;
        }
        while reader.at < pad_from {
            let event = if log.agile { reader.event2(log.algorithms)? } else { reader.sha1_event()? };
            log.events.push(event);
            reader.event = log.events.len();
        }
        // an event that ends in zeros or 0xFF ends behind where padding could begin
        log.padding = bytes.len().saturating_sub(reader.at);
        Ok(log)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    event: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], LogError> {
        let taken = slice(self.bytes, self.at, len).ok_or(LogError::Truncated { event: self.event, offset: self.at, what })?;
        self.at = self.at.saturating_add(len);
        Ok(taken)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, LogError> {
        let taken = self.take(4, what)?;
        Ok(le32(taken, 0).unwrap_or_default())
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, LogError> {
        let taken = self.take(2, what)?;
        Ok(le16(taken, 0).unwrap_or_default())
    }

    fn pcr_and_type(&mut self) -> Result<(u32, EventType), LogError> {
        let (event, offset) = (self.event, self.at);
        let pcr = self.u32("PCR number")?;
        let event_type = EventType(self.u32("event type")?);
        // what is not extended may say that it belongs to none
        let none = event_type == EventType::EV_NO_ACTION && pcr == u32::MAX;
        if index(pcr) >= PCRS && !none {
            return Err(LogError::NoSuchPcr { event, offset, pcr });
        }
        Ok((pcr, event_type))
    }

    fn data(&mut self) -> Result<&'a [u8], LogError> {
        let size = self.u32("length of the data")?;
        self.take(index(size), "data")
    }

    fn sha1_event(&mut self) -> Result<Event<'a>, LogError> {
        let (number, offset) = (self.event, self.at);
        let (pcr, event_type) = self.pcr_and_type()?;
        let bytes = self.take(20, "digest")?;
        let data = self.data()?;
        let digests = Digests { algorithms: SHA1_ONLY, bytes, agile: false };
        Ok(Event { number, offset, pcr, event_type, digests, data })
    }

    fn event2(&mut self, algorithms: Algorithms<'a>) -> Result<Event<'a>, LogError> {
        let (event, offset) = (self.event, self.at);
        let (pcr, event_type) = self.pcr_and_type()?;
        let count_at = self.at;
        let count = self.u32("number of digests")?;
        if index(count) > algorithms.iter().count() {
            return Err(LogError::DigestCount { event, offset: count_at, count });
        }
        let start = self.at;
        let mut seen = Vec::new();
        for _ in 0..count {
            let offset = self.at;
            let alg = TpmAlg(self.u16("algorithm of a digest")?);
            let size = algorithms.size(alg).ok_or(LogError::Undeclared { event, offset, alg: alg.0 })?;
            if seen.contains(&alg) {
                return Err(LogError::Repeated { event, offset, alg: alg.0 });
            }
            seen.push(alg);
            self.take(size, "digest")?;
        }
        let bytes = self.bytes.get(start..self.at).unwrap_or_default();
        let data = self.data()?;
        Ok(Event { number: event, offset, pcr, event_type, digests: Digests { algorithms, bytes, agile: true }, data })
    }
}

/// `TCG_EfiSpecIDEvent`: signature, platform class, version (minor, major, errata, size of integers), algorithms, vendor's bytes.
fn header<'a>(event: &Event<'a>, end: usize) -> Result<Algorithms<'a>, LogError> {
    let data = event.data;
    let start = end.saturating_sub(data.len());
    let refused = |at: usize, what| LogError::Header { offset: start.saturating_add(at), what };
    if event.pcr != 0 || event.digests.iter().any(|(_, value)| value.iter().any(|b| *b != 0)) {
        return Err(LogError::Header { offset: event.offset, what: "PCR and digest are not zero" });
    }
    let [_minor, major, _errata, uintn] = array(data, 20).ok_or_else(|| refused(16, "it ends before its version"))?;
    if major != 2 || !matches!(uintn, 1 | 2) {
        return Err(refused(20, "version or size of integers is unknown"));
    }
    let count = le32(data, 24).ok_or_else(|| refused(24, "it ends before its algorithms"))?;
    if !(1..=MAX_BANKS).contains(&count) {
        return Err(refused(24, "number of algorithms"));
    }
    let len = index(count).saturating_mul(4);
    let table = Algorithms(slice(data, 28, len).ok_or_else(|| refused(28, "it ends within its algorithms"))?);
    for (n, (alg, size)) in table.iter().enumerate() {
        let at = n.saturating_mul(4).saturating_add(28);
        if alg.digest_alg().map_or(size == 0 || size > 64, |known| known.len() != size) {
            return Err(refused(at, "length of an algorithm's digests"));
        }
        if table.iter().take(n).any(|(earlier, _)| earlier == alg) {
            return Err(refused(at, "an algorithm twice"));
        }
    }
    let vendor_at = len.saturating_add(28);
    let vendor = usize::from(*data.get(vendor_at).ok_or_else(|| refused(vendor_at, "it ends before the vendor's bytes"))?);
    if vendor_at.checked_add(1).and_then(|at| at.checked_add(vendor)) != Some(data.len()) {
        return Err(refused(vendor_at, "the vendor's bytes do not end with it"));
    }
    Ok(table)
}
