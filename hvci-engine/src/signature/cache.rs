//! What is worth remembering from one file to the next: parsed certificates with their keys, and which certificate signed which.
//!
//! Corpora repeat themselves: 868 signed PE files carry 200 distinct certificates. Only arithmetic is remembered, never a judgement: that
//! one key made one signature stays true whatever anybody trusts, so no change of trust, profile or time can make an entry wrong.
//! **Invariant:** bounded; a full table is emptied, so that hostile files cost time and not memory.

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    hash::{Hash, Hasher},
    sync::{Arc, PoisonError, RwLock},
};

use super::cert::Certificate;
use crate::{bytes::der::DerError, digest::Digest, facts::SignatureCheck};

const MAX_CERTIFICATES: usize = 4_096;
const MAX_ISSUED: usize = 16_384;

/// Parsed certificates and checked certificate signatures, shared by every thread of a run.
#[derive(Debug, Default)]
pub struct Cache {
    certificates: RwLock<HashSet<ByDer>>,
    issued: RwLock<HashMap<(Digest, Digest), SignatureCheck>>,
}

impl Cache {
    /// The certificate with this DER, parsed at most once while it is remembered.
    ///
    /// # Errors
    /// Not a certificate.
    pub fn certificate(&self, der: &[u8]) -> Result<Arc<Certificate>, DerError> {
        if let Some(known) = self.certificates.read().unwrap_or_else(PoisonError::into_inner).get(der) {
            return Ok(Arc::clone(&known.0));
        }
        let parsed = Arc::new(Certificate::parse(der)?);
        let mut table = self.certificates.write().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= MAX_CERTIFICATES {
            table.clear();
        }
        table.insert(ByDer(Arc::clone(&parsed)));
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

/// A certificate that a set finds by its DER.
#[derive(Debug, PartialEq, Eq)]
struct ByDer(Arc<Certificate>);

impl Hash for ByDer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.der().hash(state);
    }
}

impl Borrow<[u8]> for ByDer {
    fn borrow(&self) -> &[u8] {
        self.0.der()
    }
}
