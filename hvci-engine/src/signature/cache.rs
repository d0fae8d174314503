//! What is worth remembering from one file to the next: parsed certificates with their keys, which certificate signed which, and for a loader
//! which key made which signature.
//!
//! Corpora repeat themselves: 868 signed PE files carry 200 distinct certificates. Only arithmetic is remembered, never a judgement: that
//! one key made one signature stays true whatever anybody trusts, so no change of trust, profile or time can make an entry wrong.
//! **Invariant:** bounded; a full table is emptied, so that hostile files cost time and not memory.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use super::cert::Certificate;
use crate::{
    bytes::der::DerError,
    crypto::Scheme,
    digest::Digest,
    facts::{SignatureCheck, Signer},
};

const MAX_CERTIFICATES: usize = 4_096;
const MAX_ISSUED: usize = 16_384;
const MAX_MADE: usize = 16_384;
/// How many certificates with one tail are remembered, and how many signatures; real ones have each its own.
const MAX_ALIKE: usize = 8;

/// Parsed certificates and checked signatures, shared by every thread of a run.
#[derive(Debug)]
pub struct Cache {
    certificates: RwLock<ByTail<Arc<Certificate>>>,
    issued: RwLock<HashMap<(Digest, Digest), SignatureCheck>>,
    made: Option<RwLock<ByTail<Made>>>,
}

/// What an audit has: it meets a signature of a file once.
impl Default for Cache {
    fn default() -> Self {
        Self { certificates: RwLock::new(ByTail::of_most(MAX_CERTIFICATES)), issued: RwLock::default(), made: None }
    }
}

impl Cache {
    /// One that remembers the signatures of files too, as a loader has it: drivers come again.
    pub fn with_signatures() -> Self {
        Self { made: Some(RwLock::new(ByTail::of_most(MAX_MADE))), ..Self::default() }
    }

    /// The certificate with this DER, parsed at most once while it is remembered.
    ///
    /// # Errors
    /// Not a certificate.
    pub fn certificate(&self, der: &[u8]) -> Result<Arc<Certificate>, DerError> {
        let known = |certificate: &Arc<Certificate>| certificate.der() == der;
        if let Some(known) = self.certificates.read().unwrap_or_else(PoisonError::into_inner).find(der, known) {
            return Ok(Arc::clone(known));
        }
        let parsed = Arc::new(Certificate::parse(der)?);
        let mut table = self.certificates.write().unwrap_or_else(PoisonError::into_inner);
        // another thread may have been faster
        if table.find(der, known).is_none() {
            table.insert(der, Arc::clone(&parsed));
        }
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

    /// Whether the key of `certificate` made a signature ([`Signer::check_with`]), calculated at most once for one that is valid if signatures
    /// are remembered. What does not verify is not: whoever has many such files would have the others forgotten.
    pub(crate) fn check_made_by(&self, signer: &Signer, certificate: &Certificate) -> SignatureCheck {
        let (Some(made), Some(scheme), Some(digest)) = (&self.made, signer.scheme, signer.signed_digest) else {
            return signer.check_with(certificate);
        };
        let key = *certificate.sha256();
        let same = |made: &Made| made.value == signer.value && (made.key, made.scheme, made.digest) == (key, scheme, digest);
        if let Some(known) = made.read().unwrap_or_else(PoisonError::into_inner).find(&signer.value, same) {
            return known.check;
        }
        let check = signer.check_with(certificate);
        if check.is_valid() {
            let new = Made { key, scheme, digest, value: signer.value.clone(), check };
            made.write().unwrap_or_else(PoisonError::into_inner).insert(&signer.value, new);
        }
        check
    }

    /// For measuring what it takes to verify a file that was not met before.
    pub(crate) fn forget_signatures(&self) {
        if let Some(made) = &self.made {
            *made.write().unwrap_or_else(PoisonError::into_inner) = ByTail::of_most(MAX_MADE);
        }
    }
}

/// A signature that verified: all that the arithmetic depends on, and what came of it.
#[derive(Debug)]
struct Made {
    /// SHA-256 of the certificate.
    key: Digest,
    scheme: Scheme,
    digest: Digest,
    value: Vec<u8>,
    check: SignatureCheck,
}

/// Things that end in a signature, or are one, by their last bytes. These are as good as random, and hashing them takes a twentieth of the time
/// that hashing a certificate does. Whoever makes many with one tail gets no more than [`MAX_ALIKE`] compared.
#[derive(Debug)]
struct ByTail<T> {
    by_tail: HashMap<Tail, Vec<T>>,
    held: usize,
    most: usize,
}

type Tail = [u8; 32];

fn tail(bytes: &[u8]) -> Tail {
    bytes.last_chunk().copied().unwrap_or_default()
}

impl<T> ByTail<T> {
    fn of_most(most: usize) -> Self {
        Self { by_tail: HashMap::new(), held: 0, most }
    }

    fn find(&self, bytes: &[u8], same: impl Fn(&T) -> bool) -> Option<&T> {
        self.by_tail.get(&tail(bytes))?.iter().find(|one| same(one))
    }

    fn insert(&mut self, bytes: &[u8], one: T) {
        if self.held >= self.most {
            *self = Self::of_most(self.most);
        }
        let alike = self.by_tail.entry(tail(bytes)).or_default();
        if alike.len() >= MAX_ALIKE {
            self.held = self.held.saturating_sub(alike.len());
            alike.clear();
        }
        alike.push(one);
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
        let mut table = ByTail::of_most(MAX_CERTIFICATES);
        let der = certificates_from(SMALL.as_bytes()).unwrap().remove(0);
        let mut add = |der: &[u8]| {
            let parsed = Arc::new(Certificate::parse(der).unwrap());
            table.insert(der, parsed);
            assert!(table.find(der, |known| known.der() == der).is_some());
            assert_eq!(table.held, table.by_tail.values().map(Vec::len).sum::<usize>());
            table.held
        };
        for n in 0..100 {
            assert!(add(&twin(&der, n)) <= MAX_ALIKE);
        }
        for n in 0..5_000_u16 {
            let mut other = der.clone();
            let end = other.len();
            other[end - 2..].copy_from_slice(&n.to_be_bytes());
            assert!(add(&other) <= MAX_CERTIFICATES);
        }
    }

    /// A module's signature, and the certificate of the key that made it.
    fn signed() -> (Signer, Certificate) {
        use crate::signature::{detached::Detached, modsig::ModuleTrailer};
        let file: &[u8] = include_bytes!("../../tests/capi/module.ko");
        let trailer = ModuleTrailer::find(file).unwrap().unwrap();
        let detached = Detached::read(trailer.pkcs7, trailer.pkcs7_span);
        let content = crate::crypto::digest(detached.digest_alg().unwrap(), &[trailer.content]);
        let cache = Cache::default();
        let signature = detached.finish(Some(content), &mut crate::signature::cms::Pool::new(&cache));
        (signature.signer.unwrap(), Certificate::parse(include_bytes!("../../tests/capi/signer.der")).unwrap())
    }

    #[test]
    fn a_signature_that_verified_is_known_and_nothing_that_differs_from_it() {
        let (signer, certificate) = signed();
        let (cache, plain) = (Cache::with_signatures(), Cache::default());
        let known = |cache: &Cache| cache.made.as_ref().map(|made| made.read().unwrap().held);
        for _ in 0..2 {
            assert_eq!(cache.check_made_by(&signer, &certificate), SignatureCheck::Valid);
            assert_eq!(plain.check_made_by(&signer, &certificate), SignatureCheck::Valid);
            assert_eq!((known(&cache), known(&plain)), (Some(1), None));
        }
        // each thing that the arithmetic depends on, changed alone; the value keeps its tail
        let other_key = Certificate::parse(&certificates_from(SMALL.as_bytes()).unwrap()[0]).unwrap();
        assert!(!cache.check_made_by(&signer, &other_key).is_valid());
        let mut value = signer.clone();
        value.value[0] ^= 1;
        let mut digest = signer.clone();
        digest.signed_digest = Some(crate::crypto::digest(signer.signed_digest.unwrap().alg(), &[b"another file"]));
        let mut scheme = signer.clone();
        scheme.scheme = Some(if signer.scheme == Some(Scheme::Pss) { Scheme::Pkcs1 } else { Scheme::Pss });
        for forged in [value, digest, scheme] {
            for _ in 0..2 {
                assert!(!cache.check_made_by(&forged, &certificate).is_valid());
                assert_eq!(known(&cache), Some(1), "what does not verify is not remembered");
            }
        }
        cache.forget_signatures();
        assert_eq!(known(&cache), Some(0));
        assert_eq!(cache.check_made_by(&signer, &certificate), SignatureCheck::Valid);
    }
}
