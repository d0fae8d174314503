//! Writes a log, as firmware does: the Spec ID event first, then an event for each measurement.

use hvci_engine::{
    bytes::widen,
    crypto,
    digest::{Digest, DigestAlg},
};

use loader_sim::measure::{
    content::Variable,
    event::{Algorithm, EventType},
};

/// A log that grows.
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    banks: Vec<(Algorithm, DigestAlg)>,
    bytes: Vec<u8>,
}

impl Builder {
    /// An empty log with digests of these algorithms. Those that TPMs do not have are left out.
    pub(crate) fn new(banks: &[DigestAlg]) -> Self {
        let banks: Vec<(Algorithm, DigestAlg)> = banks.iter().filter_map(|alg| Some((Algorithm::of(*alg)?, *alg))).collect();
        let mut spec_id = b"Spec ID Event03\0".to_vec();
        // platformClass 0 (client), specification 2.0 errata 6, UINTN of 8 bytes
        spec_id.extend([0, 0, 0, 0, 0, 2, 6, 2]);
        spec_id.extend(length(banks.len()));
        for (algorithm, alg) in &banks {
            spec_id.extend(algorithm.0.to_le_bytes());
            spec_id.extend(u16::try_from(alg.len()).unwrap_or_default().to_le_bytes());
        }
        spec_id.push(0);
        let mut bytes = 0_u32.to_le_bytes().to_vec();
        bytes.extend(EventType::NO_ACTION.0.to_le_bytes());
        bytes.extend([0; 20]);
        bytes.extend(length(spec_id.len()));
        bytes.extend(spec_id);
        Self { banks, bytes }
    }

    /// Measures `measured` into a PCR, and writes down `data` of it. Returns what the PCR of each bank is extended with.
    pub(crate) fn measure(&mut self, pcr: u32, kind: EventType, measured: &[u8], data: &[u8]) -> Vec<Digest> {
        let digests: Vec<Digest> = self.banks.iter().map(|(_, alg)| crypto::digest(*alg, &[measured])).collect();
        self.append(pcr, kind, &digests, data);
        digests
    }

    /// Writes down an event with digests that were made elsewhere: one for each bank, in the order of the banks.
    pub(crate) fn append(&mut self, pcr: u32, kind: EventType, digests: &[Digest], data: &[u8]) {
        self.bytes.extend(pcr.to_le_bytes());
        self.bytes.extend(kind.0.to_le_bytes());
        let digests: Vec<_> = digests.iter().filter_map(|digest| Some((Algorithm::of(digest.alg())?, digest))).collect();
        self.bytes.extend(length(digests.len()));
        for (algorithm, digest) in digests {
            self.bytes.extend(algorithm.0.to_le_bytes());
            self.bytes.extend(digest.as_bytes());
        }
        self.bytes.extend(length(data.len()));
        self.bytes.extend(data);
    }

    /// The log so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// No log is longer than 4 GiB.
fn length(n: usize) -> [u8; 4] {
    u32::try_from(widen(n)).unwrap_or(u32::MAX).to_le_bytes()
}

/// A variable as it stands in an event.
pub(crate) fn variable_data(variable: &Variable<'_>) -> Vec<u8> {
    let name: Vec<u16> = variable.name.encode_utf16().collect();
    let mut out = variable.vendor.0.to_vec();
    out.extend(widen(name.len()).to_le_bytes());
    out.extend(widen(variable.data.len()).to_le_bytes());
    out.extend(name.iter().flat_map(|unit| unit.to_le_bytes()));
    out.extend(variable.data);
    out
}
