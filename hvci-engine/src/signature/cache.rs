//! What is worth remembering from one file to the next: parsed certificates with their keys, and which certificate signed which.
//!
//! Corpora repeat themselves: 868 signed PE files carry 200 distinct certificates. Only arithmetic is remembered, never a judgement: that
//! one key made one signature stays true whatever anybody trusts, so no change of trust, profile or time can make an entry wrong.
//! **Invariant:** bounded; a full table is emptied, so that hostile files cost time and not memory.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use super::cert::Certificate;
use crate::{bytes::der::DerError, digest::Digest, facts::SignatureCheck};

const MAX_CERTIFICATES: usize = 4_096;
const MAX_ISSUED: usize = 16_384;
/// How many certificates with one tail are remembered; real ones have each its own.
const MAX_ALIKE: usize = 8;

/// Parsed certificates and checked certificate signatures, shared by every thread of a run.
#[derive(Debug, Default)]
pub struct Cache {
    certificates: RwLock<Certificates>,
    issued: RwLock<HashMap<(Digest, Digest), SignatureCheck>>,
}

impl Cache {
    /// The certificate with this DER, parsed at most once while it is remembered.
    ///
    /// # Errors
    /// Not a certificate.
    pub fn certificate(&self, der: &[u8]) -> Result<Arc<Certificate>, DerError> {
        if let Some(known) = self.certificates.read().unwrap_or_else(PoisonError::into_inner).get(der) {
            return Ok(Arc::clone(known));
        }
        let parsed = Arc::new(Certificate::parse(der)?);
        self.certificates.write().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(&parsed));
        Ok(parsed)
    }

    /// Whether the key of `issuer` signed `subject`, calculated at most once while it is remembered.
    pub fn check_signed_by(&self, subject: &Certificate, issuer: &Certificate) -> SignatureCheck {
        let pair = (*subject.sha256(), *issuer.sha256());
        if let Some(known) = self.issued.read().unwrap_or_else(PoisonError::into_inner).get(&pair) {
            return *known;
        }
        let check = subject.check_signed_by(issuer);
        let mut table = self.issued.write().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= MAX_ISSUED {
            table.clear();
        }
        table.insert(pair, check);
        check
    }
}

/// Certificates by the tail of their DER. That is the end of the issuer's signature, as good as random, and hashing it takes a twentieth of
/// the time that hashing all of it does. Whoever makes many certificates with one tail gets no more than [`MAX_ALIKE`] compared.
#[derive(Debug, Default)]
struct Certificates {
    by_tail: HashMap<Tail, Vec<Arc<Certificate>>>,
    held: usize,
}

type Tail = [u8; 32];

fn tail(der: &[u8]) -> Tail {
    der.last_chunk().copied().unwrap_or_default()
}

impl Certificates {
    fn get(&self, der: &[u8]) -> Option<&Arc<Certificate>> {
        self.by_tail.get(&tail(der))?.iter().find(|c| c.der() == der)
    }

    fn insert(&mut self, certificate: Arc<Certificate>) {
        // another thread may have been faster
        if self.get(certificate.der()).is_some() {
            return;
        }
        if self.held >= MAX_CERTIFICATES {
            *self = Self::default();
        }
        let alike = self.by_tail.entry(tail(certificate.der())).or_default();
        if alike.len() >= MAX_ALIKE {
            self.held = self.held.saturating_sub(alike.len());
            alike.clear();
        }
        alike.push(certificate);
        self.held = self.held.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::{
        super::keyring::{certificates_from, tests::SMALL},
        *,
    };

    /// The certificate of the tests with another serial number, and so with the same tail.
    fn twin(der: &[u8], n: u16) -> Vec<u8> {
        let serial = Certificate::parse(der).unwrap().serial().to_vec();
        let at = der.windows(serial.len()).position(|w| w == serial).unwrap();
        let mut der = der.to_vec();
        der[at + 2..at + 4].copy_from_slice(&n.to_be_bytes());
        der
    }

    #[test]
    fn a_certificate_is_parsed_once_and_its_twin_is_another() {
        let cache = Cache::default();
        let der = certificates_from(SMALL.as_bytes()).unwrap().remove(0);
        let (first, again) = (cache.certificate(&der).unwrap(), cache.certificate(&der).unwrap());
        assert!(Arc::ptr_eq(&first, &again));
        let twin = twin(&der, 7);
        assert_eq!(tail(&twin), tail(&der));
        assert_eq!(cache.certificate(&twin).unwrap().der(), twin);
        assert!(Arc::ptr_eq(&first, &cache.certificate(&der).unwrap()));
        assert!(cache.certificate(&der[..der.len() - 1]).is_err());
    }

    #[test]
    fn neither_twins_nor_numbers_make_it_grow() {
        let mut table = Certificates::default();
        let der = certificates_from(SMALL.as_bytes()).unwrap().remove(0);
        for n in 0..100 {
            table.insert(Arc::new(Certificate::parse(&twin(&der, n)).unwrap()));
            assert!(table.get(&twin(&der, n)).is_some());
            assert!(table.held <= MAX_ALIKE);
        }
        for n in 0..5_000_u16 {
            let mut other = der.clone();
            let end = other.len();
            other[end - 2..].copy_from_slice(&n.to_be_bytes());
            table.insert(Arc::new(Certificate::parse(&other).unwrap()));
            assert_eq!(table.held, table.by_tail.values().map(Vec::len).sum::<usize>());
            assert!(table.held <= MAX_CERTIFICATES);
        }
    }
}
