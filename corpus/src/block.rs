//! Lists of what is refused, from files: the project's own form, which [`BlockList`] reads, and the driver list of LOLDrivers (`drivers.json`).
//!
//! Of LOLDrivers the authentihashes count; digests of whole files do not, for a change that no signature covers evades them.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, anyhow, ensure};
use hvci_engine::{
    digest::{Digest, DigestAlg},
    signature::block_list::BlockList,
};
use serde::Deserialize;

/// The largest file that is read.
const MAX_BYTES: u64 = 256 << 20;

/// What is read of an entry of LOLDrivers.
#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "Id", default)]
    id: String,
    #[serde(rename = "KnownVulnerableSamples", default)]
    samples: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    #[serde(rename = "Authentihash", default)]
    authentihash: BTreeMap<String, Option<String>>,
}

/// Reads a list. One of LOLDrivers carries no version and is version 0.
///
/// # Errors
/// An unreadable file, one of neither form, a digest or a date that is none.
pub fn read(path: &Path) -> Result<BlockList> {
    let size = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    ensure!(size <= MAX_BYTES, "{}: {size} bytes, which no list has", path.display());
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{}: no list of what is refused, neither this program's nor that of LOLDrivers", path.display()))
}

fn parse(text: &[u8]) -> Result<BlockList> {
    if text.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
        return of_loldrivers(&serde_json::from_slice::<Vec<Listed>>(text)?);
    }
    Ok(serde_json::from_slice(text)?)
}

fn of_loldrivers(entries: &[Listed]) -> Result<BlockList> {
    let mut list = BlockList::new(0);
    for entry in entries {
        for (name, value) in entry.samples.iter().flat_map(|sample| &sample.authentihash) {
            // samples whose authentihash nobody has made have an empty one
            let Some(value) = value.as_deref().filter(|value| !value.is_empty()) else { continue };
            let alg = DigestAlg::from_name(&name.to_ascii_lowercase());
            let digest = alg.and_then(|alg| Digest::new(alg, &hex::decode(value).ok()?));
            list.block_file(
                digest.ok_or_else(|| anyhow!("{}: {name} {value} is no digest", entry.id))?,
                format!("LOLDrivers {}", entry.id),
            );
        }
    }
    ensure!(!list.is_empty(), "it lists no authentihash");
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Digest {
        Digest::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn both_forms_are_read_and_nothing_else() {
        let digest = format!("sha256:{}", "9f".repeat(32));
        let own = format!(
            r#"{{"version": 3, "authentihashes": {{"{digest}": "why"}}, "certificates": [{{"tbs": "{digest}", "since": "2023-05-01", "reason": "stolen"}}]}}"#
        );
        let list = parse(own.as_bytes()).unwrap();
        assert_eq!((list.version, list.len()), (3, 2));
        assert_eq!(list.file(&written(&digest)), Some("why"));
        assert_eq!(list.algorithms(), [DigestAlg::Sha256]);

        let value = "9f".repeat(32);
        let lol = format!(
            r#" [{{"Id": "ab-12", "Tags": ["x.sys"], "KnownVulnerableSamples": [{{"Authentihash": {{"SHA256": "{value}", "MD5": ""}}, "SHA1": "00"}}, {{"Filename": "y"}}]}}]"#
        );
        let list = parse(lol.as_bytes()).unwrap();
        assert_eq!((list.version, list.len()), (0, 1));
        assert_eq!(list.file(&written(&digest)), Some("LOLDrivers ab-12"));

        for bad in [
            "",
            "[]",
            "{}",
            r#"{"version": 1, "hashes": {}}"#,
            r#"{"version": -1}"#,
            r#"{"version": 1, "authentihashes": {"sha256:00": "short"}}"#,
            r#"{"version": 1, "certificates": [{"tbs": "x", "reason": ""}]}"#,
            &own.replace("2023-05-01", "2023-15-01"),
            &own.replace("reason", "why"),
            r#"[{"Id": "a", "KnownVulnerableSamples": [{"Authentihash": {"SHA256": "zz"}}]}]"#,
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
