//! Forgeries of real files, through the batch and one by one: none may be accepted.
//!
//! PE images are forged by the synthesiser's mutations; modules by bit flips in what is signed and in the signature, by other numbers of the
//! same residue, and by the signature of another module.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use corpus::synth::mutate::{self, Hits};
use hvci_engine::{
    examine::{Examiner, Input},
    facts::Facts,
    policy::{Decision, Judge, Profile},
    signature::{cache::Cache, catalog::CatalogIndex, cert::Certificate, modsig::ModuleTrailer, trust::TrustStore},
};
use rsa::{BigUint, RsaPublicKey, pkcs8::DecodePublicKey, traits::PublicKeyParts};
use serde::{Deserialize, Serialize};

use crate::task::{MAX_SIZE, Request, now, trust};

/// What came of forging some files.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tried {
    /// Forgeries made.
    pub forged: usize,
    /// Forgeries that were accepted, and untouched files that were refused beside them.
    pub faults: Vec<String>,
}

/// Forges each of the files.
///
/// # Errors
/// Unreadable files.
pub fn run(request: &Request) -> Result<Tried> {
    let (trust, profile) = trust(&request.trust)?;
    let mut tried = Tried::default();
    let mut other: Option<Vec<u8>> = None;
    let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
    let examiner = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] };
    let judge = Judge { trust: &trust, time: now()?, cache: &cache };
    for file in &request.files {
        let signed = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let facts = examiner.examine(&signed, usize::try_from(MAX_SIZE)?);
        if judge.judge(&facts, profile).decision == Decision::Accept {
            // the first file has no other to take parts from
            if let Some(other) = &other {
                let forgeries =
                    if signed.starts_with(b"MZ") { images(&signed, other, &facts) } else { modules(&signed, other, &facts, &trust) };
                try_all(&signed, &forgeries, (&examiner, &judge, profile), file, &mut tried);
            }
            other = Some(signed);
        }
    }
    Ok(tried)
}

/// What a forgery must not reach.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aim {
    Accepted,
    TimeProven,
}

struct Forgery {
    name: String,
    bytes: Vec<u8>,
    aim: Aim,
}

fn try_all(
    signed: &[u8],
    forgeries: &[Forgery],
    (examiner, judge, profile): (&Examiner<'_>, &Judge<'_>, Option<&Profile>),
    file: &Path,
    tried: &mut Tried,
) {
    // the untouched file goes before and behind them
    let mut inputs = vec![Input::new(signed, signed.len())];
    inputs.extend(forgeries.iter().map(|f| Input::new(&f.bytes, f.bytes.len())));
    inputs.push(Input::new(signed, signed.len()));
    let batch = examiner.examine_all(&inputs);
    let succeeds = |facts: &Facts, aim: Aim| {
        let verdict = judge.judge(facts, profile);
        match aim {
            Aim::Accepted => verdict.decision == Decision::Accept,
            Aim::TimeProven => verdict.signatures.first().is_some_and(|s| s.signing_time.is_some()),
        }
    };
    for facts in [batch.first(), batch.last()].into_iter().flatten() {
        if !succeeds(facts, Aim::Accepted) {
            tried.faults.push(format!("{}: untouched, refused beside forgeries", file.display()));
        }
    }
    for (forgery, facts) in forgeries.iter().zip(batch.iter().skip(1)) {
        tried.forged += 1;
        let alone = examiner.examine(&forgery.bytes, forgery.bytes.len());
        for (how, facts) in [("batch", facts), ("alone", &alone)] {
            if succeeds(facts, forgery.aim) {
                tried.faults.push(format!("{}: {} ({how})", file.display(), forgery.name));
            }
        }
    }
}

/// Mutations that no loader may miss. A second timestamp on a signature may still prove the time.
fn images(signed: &[u8], other: &[u8], facts: &Facts) -> Vec<Forgery> {
    let one_timestamp = facts.signatures.first().is_some_and(|s| s.timestamps.len() == 1);
    let mut forgeries = Vec::new();
    for mutation in mutate::ALL {
        let aim = match mutation.hits {
            Hits::File | Hits::Primary => Aim::Accepted,
            Hits::Timestamp if one_timestamp => Aim::TimeProven,
            _ => continue,
        };
        // not every mutation fits every file
        if let Ok(bytes) = mutation.apply(signed, other)
            && bytes != signed
        {
            forgeries.push(Forgery { name: mutation.name.to_owned(), bytes, aim });
        }
    }
    forgeries
}

fn modules(signed: &[u8], other: &[u8], facts: &Facts, trust: &TrustStore) -> Vec<Forgery> {
    let mut forgeries = Vec::new();
    let mut push = |name: &str, bytes: Vec<u8>| forgeries.push(Forgery { name: name.to_owned(), bytes, aim: Aim::Accepted });
    let Ok(Some(trailer)) = ModuleTrailer::find(signed) else { return forgeries };
    let content = trailer.content.len();
    let Some(value) = facts.signatures.first().and_then(|s| s.signer.as_ref()).map(|s| s.value.as_slice()) else { return forgeries };
    let Some(at) = signed.windows(value.len().max(1)).rposition(|w| w == value) else { return forgeries };

    let flipped = |offset: usize| {
        let mut bytes = signed.to_vec();
        if let Some(byte) = bytes.get_mut(offset) {
            *byte ^= 1 << (offset % 8);
        }
        bytes
    };
    for i in 0..8 {
        push("content bit", flipped(content * i / 8));
        push("signature bit", flipped(at + value.len() * i / 8));
    }
    push("last content byte", flipped(content.saturating_sub(1)));
    let with = |new: &[u8]| [signed.get(..at).unwrap_or_default(), new, signed.get(at + value.len()..).unwrap_or_default()].concat();
    let fill = |byte: u8| vec![byte; value.len()];
    push("zeros", with(&fill(0)));
    push("ones", with(&fill(0xFF)));
    for certificate in trust.anchors().iter().map(|a| &a.certificate) {
        let Some(modulus) = modulus(certificate) else { continue };
        let n = modulus.to_bytes_be();
        if n.len() == value.len() {
            push("modulus", with(&n));
            let sum = (BigUint::from_bytes_be(value) + &modulus).to_bytes_be();
            if sum.len() == value.len() {
                push("s + n", with(&sum));
            }
            let difference = (&modulus - BigUint::from_bytes_be(value) % &modulus).to_bytes_be();
            if difference.len() == value.len() {
                push("n - s", with(&difference));
            }
        }
    }
    if let Ok(Some(theirs)) = ModuleTrailer::find(other)
        && theirs.pkcs7 != trailer.pkcs7
        && theirs.pkcs7.len() == trailer.pkcs7.len()
    {
        let behind = signed.get(content + trailer.pkcs7.len()..).unwrap_or_default();
        push("signature of another", [trailer.content, theirs.pkcs7, behind].concat());
    }
    forgeries
}

fn modulus(certificate: &Certificate) -> Option<BigUint> {
    Some(RsaPublicKey::from_public_key_der(certificate.spki()).ok()?.n().clone())
}
