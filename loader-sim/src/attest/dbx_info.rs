//! What is known of revoked images: the JSON that Microsoft publishes beside its dbx updates (`dbx_info_msft_latest.json` of
//! microsoft/secureboot_objects). Turns a digest into a CVE, a company and a date.
//!
//! Its words are for people: whether something is revoked is what digests say. Refuses what is not of this form; other tables of the file,
//! of certificates and versions, are not read.

use std::collections::{BTreeMap, HashMap};

use hvci_engine::digest::{Digest, DigestAlg};
use serde::{Deserialize, Serialize};

use super::reference::is_date;

/// Longer files are refused; that of 2026 has 394,305 bytes.
const MAX_FILE: usize = 16 << 20;

/// Why a file is not of this form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DbxInfoError(String);

/// An image that is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Revoked {
    /// Its vulnerabilities, as far as the list says.
    pub cve: Vec<String>,
    /// Who made it.
    pub vendor: String,
    /// What it was called.
    pub file: String,
    /// `YYYY-MM-DD`: since when it is on the list.
    pub since: String,
}

/// The list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DbxInfo(HashMap<Digest, Revoked>);

#[derive(Deserialize)]
struct File {
    images: BTreeMap<String, Vec<Image>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    authenticode_hash: String,
    hash_type: String,
    #[serde(default)]
    filename: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    company_name: String,
    date_of_addition: String,
}

impl DbxInfo {
    /// Reads the list.
    ///
    /// # Errors
    /// [`DbxInfoError`].
    pub fn read(json: &[u8]) -> Result<Self, DbxInfoError> {
        if json.len() > MAX_FILE {
            return Err(DbxInfoError(format!("{} bytes, more than {MAX_FILE}", json.len())));
        }
        let file: File = serde_json::from_slice(json).map_err(|error| DbxInfoError(error.to_string()))?;
        let mut list = HashMap::new();
        for image in file.images.into_values().flatten() {
            let (digest, revoked) = image.revoked().map_err(DbxInfoError)?;
            // one image may be listed for several architectures: the earliest date counts
            let kept = list.entry(digest).or_insert_with(|| revoked.clone());
            if revoked.since < kept.since {
                *kept = revoked;
            }
        }
        Ok(Self(list))
    }

    /// What is known of an image, if it is revoked.
    pub fn lookup(&self, authentihash: &Digest) -> Option<&Revoked> {
        self.0.get(authentihash)
    }

    /// The latest date of which one of `digests` is: up to when revocations are known to whoever has them.
    pub fn current_to<'d>(&self, digests: impl Iterator<Item = &'d Digest>) -> Option<&str> {
        digests.filter_map(|digest| self.lookup(digest)).map(|revoked| revoked.since.as_str()).max()
    }
}

impl Image {
    fn revoked(self) -> Result<(Digest, Revoked), String> {
        let bytes = (self.hash_type == "SHA256").then(|| hex::decode(&self.authenticode_hash).ok()).flatten();
        let digest = bytes.and_then(|bytes| Digest::new(DigestAlg::Sha256, &bytes));
        let digest = digest.ok_or_else(|| format!("{} {:?} is no digest", self.hash_type, self.authenticode_hash))?;
        if !is_date(&self.date_of_addition) {
            return Err(format!("{:?} is no date", self.date_of_addition));
        }
        let words = self.description.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let cve = words.filter(|word| word.starts_with("CVE-")).map(str::to_owned).collect();
        let vendor = self.company_name.trim().to_owned();
        Ok((digest, Revoked { cve, vendor, file: self.filename, since: self.date_of_addition }))
    }
}
