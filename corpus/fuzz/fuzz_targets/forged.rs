//! Forgeries: synthetic files, good and bad, changed as the input says. Whatever is accepted must be something that was signed.
//!
//! The input is a list of records of eight bytes: what to do, to which place, with what. The first names the file.
#![no_main]

use std::{collections::HashSet, sync::LazyLock};

use corpus::synth::{
    DEFAULT_SEED, cases,
    certificate::instant,
    pki::{ANCHORS, Pki},
};
use der::Encode;
use hvci_engine::{
    digest::{Digest, DigestAlg},
    examine::Examiner,
    facts::{DigestForm, Facts},
    policy::{Decision, Judge, profile},
    signature::{
        cache::Cache,
        catalog::CatalogIndex,
        trust::{Purposes, TrustStore},
    },
    time::UnixTime,
};
use libfuzzer_sys::fuzz_target;

struct World {
    files: Vec<Vec<u8>>,
    trust: TrustStore,
    now: UnixTime,
    /// By profile: digests of what is accepted, unchanged.
    signed: HashSet<(&'static str, DigestForm, Digest)>,
}

/// What the loader of the profile hashes.
const ALGORITHMS: &[DigestAlg] = &[DigestAlg::Sha256];

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let pki = Pki::new(DEFAULT_SEED).expect("keys");
    let corpus = cases::all(&pki).expect("files");
    let mut trust = TrustStore::empty();
    for (purpose, names) in ANCHORS {
        for name in *names {
            let der = pki.get(name).expect("an anchor").certificate.to_der().expect("a certificate");
            trust.add_der(&der, Purposes::from_name(purpose).expect("a purpose"), *name).expect("a certificate");
        }
    }
    let now = instant(cases::TIME).expect("a time");
    let files: Vec<Vec<u8>> = corpus
        .cases
        .into_iter()
        .map(|c| c.bytes)
        .filter(|b| b.len() < 1 << 16 && (b.starts_with(b"MZ") || b.starts_with(b"\x7fELF")))
        .collect();
    let mut world = World { files, trust, now, signed: HashSet::new() };
    let signed = world.files.iter().flat_map(|file| accepted(&world, file)).collect();
    world.signed = signed;
    world
});

/// Who accepts the file, and what they took it for.
fn accepted(world: &World, file: &[u8]) -> Vec<(&'static str, DigestForm, Digest)> {
    let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
    let facts = Examiner { cache: &cache, catalogs: &catalogs, digests: ALGORITHMS }.examine(file, 1 << 20);
    let judge = Judge { trust: &world.trust, time: world.now, cache: &cache };
    let accepts = |p: &&profile::Profile| judge.judge(&facts, Some(*p)).decision == Decision::Accept;
    profile::ALL.into_iter().filter(accepts).map(|p| (p.name, p.form, content(&facts, p.form))).collect()
}

fn content(facts: &Facts, form: DigestForm) -> Digest {
    // the facts hold a section sum only where it is not the linear digest
    let linear = || facts.digest(DigestForm::Linear, DigestAlg::Sha256);
    *facts.digest(form, DigestAlg::Sha256).or_else(linear).expect("an accepted file has a digest")
}

// keys and files are made before the first input, whose time is limited
fuzz_target!(init: { LazyLock::force(&WORLD); }, |data: &[u8]| {
    let world = &*WORLD;
    let pick = |n: u16| &world.files[usize::from(n) % world.files.len()];
    let mut records = data.chunks_exact(8).map(|r| (r[0], word(r, 1), word(r, 3), word(r, 5), r[7])).take(64);
    let Some((_, first, ..)) = records.next() else { return };
    let mut file = pick(first).clone();
    for (what, place, other, len, value) in records {
        let at = usize::from(place) % (file.len() + 1);
        let from = pick(u16::from(value));
        let source = usize::from(other) % from.len();
        let part = from[source..].iter().take(usize::from(len)).copied().collect::<Vec<u8>>();
        match what % 6 {
            0 if at < file.len() => file[at] = value,
            1 if at < file.len() => file[at] ^= 1 << (value % 8),
            2 => drop(file.splice(at..at, part)),
            3 => drop(file.splice(at..(at + part.len()).min(file.len()), part)),
            4 => drop(file.drain(at..(at + usize::from(len)).min(file.len()))),
            // a length or offset grows by a little
            _ => {
                if let Some(field) = file.get_mut(at..at + 4) {
                    let grown = u32::from_le_bytes([field[0], field[1], field[2], field[3]]).wrapping_add(u32::from(len));
                    field.copy_from_slice(&grown.to_le_bytes());
                }
            }
        }
    }
    for taken in accepted(world, &file) {
        assert!(world.signed.contains(&taken), "{taken:?} was never signed");
    }
});

fn word(record: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([record[at], record[at + 1]])
}
