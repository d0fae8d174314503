//! What is known to be bad in spite of a good signature: drivers by their authentihash, signers by their certificates.
//!
//! A list of the project's own form, which a VMM or an audit makes of whatever it has (App Control deny rules, LOLDrivers). It is compared with
//! what the engine has calculated itself: not with the file's own digest, which a change of CheckSum or of the certificate table evades.
//!
//! As JSON; `since` and either list may be left out, and what is not known is refused:
//!
//! ```json
//! { "version": 3,
//!   "authentihashes": { "sha256:9f86…": "why" },
//!   "certificates": [ { "tbs": "sha256:2cf2…", "since": "2023-05-01", "reason": "the key was stolen" } ] }
//! ```

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::cert::Certificate;
use crate::{
    digest::{Digest, DigestAlg},
    time::UnixTime,
};

/// Drivers and signers that are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Written")]
pub struct BlockList {
    /// Counts up: a machine takes no list that is older than the one it has.
    pub version: u64,
    /// By algorithm, so that it is known what to calculate.
    authentihashes: BTreeMap<DigestAlg, HashMap<Digest, String>>,
    certificates: BTreeMap<DigestAlg, HashMap<Digest, BlockedCertificate>>,
}

/// A certificate that is refused wherever it is on a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedCertificate {
    /// From when on: what a trusted timestamp proves to have been signed before still counts. `None`: from ever.
    pub since: Option<UnixTime>,
    /// Why, for people.
    pub reason: String,
}

impl BlockList {
    /// An empty list of this version.
    pub fn new(version: u64) -> Self {
        Self { version, ..Self::default() }
    }

    /// Refuses files with this authentihash, of any form and algorithm.
    pub fn block_file(&mut self, authentihash: Digest, reason: impl Into<String>) {
        self.authentihashes.entry(authentihash.alg()).or_default().insert(authentihash, reason.into());
    }

    /// Refuses what the certificate with this digest of its TBSCertificate has signed or issued.
    pub fn block_certificate(&mut self, tbs: Digest, blocked: BlockedCertificate) {
        self.certificates.entry(tbs.alg()).or_default().insert(tbs, blocked);
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        let files = self.authentihashes.values().map(HashMap::len);
        files.chain(self.certificates.values().map(HashMap::len)).sum()
    }

    /// Whether nothing is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// With which algorithms the authentihashes are made: a file must be hashed with each.
    pub fn algorithms(&self) -> Vec<DigestAlg> {
        self.authentihashes.keys().copied().collect()
    }

    /// Why files with this authentihash are refused.
    pub fn file(&self, authentihash: &Digest) -> Option<&str> {
        self.authentihashes.get(&authentihash.alg())?.get(authentihash).map(String::as_str)
    }

    /// Why the certificate is refused for a signature made at `at`.
    pub fn certificate(&self, certificate: &Certificate, at: UnixTime) -> Option<&str> {
        let known = self.certificates.iter().find_map(|(alg, blocked)| blocked.get(&certificate.tbs_hash(*alg)));
        known.filter(|blocked| blocked.since.is_none_or(|since| at >= since)).map(|blocked| blocked.reason.as_str())
    }
}

/// A list as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u64,
    #[serde(default)]
    authentihashes: BTreeMap<Digest, String>,
    #[serde(default)]
    certificates: Vec<WrittenCertificate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCertificate {
    tbs: Digest,
    since: Option<UnixTime>,
    reason: String,
}

impl From<Written> for BlockList {
    fn from(Written { version, authentihashes, certificates }: Written) -> Self {
        let mut list = Self::new(version);
        authentihashes.into_iter().for_each(|(digest, reason)| list.block_file(digest, reason));
        for WrittenCertificate { tbs, since, reason } in certificates {
            list.block_certificate(tbs, BlockedCertificate { since, reason });
        }
        list
    }
}
