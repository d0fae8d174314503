//! The files of the corpus, each with the verdicts it must get and why.
//!
//! Every row of the capability table that the engine is built after (container 1–19, SignedData 20–34, timestamps 35–42, chains 43–55,
//! catalogs 56–61, modules 79–87, lint 88–93) has a file that is good and one that is not; a case names the rows it is for.

mod catalogs;
mod chains;
mod container;
mod limits;
mod lint;
mod modules;
mod mutations;
mod signatures;
mod timestamps;

use hvci_engine::{finding::Code, policy::Decision, time::UnixTime};
use rayon::prelude::*;

use super::{
    Result,
    authenticode::{Authenticode, Entry, Table},
    certificate::{Identity, instant},
    pe::Image,
    pki::Pki,
    signed_data::Signing,
    timestamp::Stamp,
};

/// A file and what must be said of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Path below the folder of images.
    pub path: String,
    /// The file.
    pub bytes: Vec<u8>,
    /// Rows of the capability table that it is for.
    pub rows: &'static [u8],
    /// What is good or bad about it.
    pub why: &'static str,
    /// Verdicts, by profile.
    pub expected: Vec<Expected>,
    /// Whether the starter corpus has it.
    pub starter: bool,
}

/// What a profile must say.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The profile.
    pub profile: &'static str,
    /// The decision.
    pub decision: Decision,
    /// Codes that must be among the findings.
    pub codes: Vec<Code>,
}

/// The time that all verdicts are for.
pub const TIME: &str = "2025-06-01";

/// The files and what speaks for them from outside.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    /// The files.
    pub cases: Vec<Case>,
    /// Catalogs that speak for some of them: name, bytes.
    pub catalogs: Vec<(&'static str, Vec<u8>)>,
    /// What the trust anchors are limited to: name, bytes.
    pub root_lists: Vec<(&'static str, Vec<u8>)>,
}

/// Every case.
///
/// # Errors
/// None that occurs: what goes in is constant but for the keys.
pub fn all(pki: &Pki) -> Result<Corpus> {
    type Group = fn(&mut Studio<'_>) -> Result<()>;
    const GROUPS: [Group; 9] = [
        container::add,
        lint::add,
        signatures::add,
        timestamps::add,
        chains::add,
        limits::add,
        catalogs::add,
        modules::add,
        mutations::add,
    ];
    let groups = GROUPS.into_par_iter().map(|add| {
        let mut studio = Studio { pki, corpus: Corpus::default() };
        add(&mut studio)?;
        Ok(studio.corpus)
    });
    let mut all = Corpus::default();
    for mut group in groups.collect::<Result<Vec<_>>>()? {
        all.cases.append(&mut group.cases);
        all.catalogs.append(&mut group.catalogs);
        all.root_lists.append(&mut group.root_lists);
    }
    Ok(all)
}

/// The cases of the starter corpus, and the catalogs.
///
/// # Errors
/// As [`all`].
pub fn starter(pki: &Pki) -> Result<Corpus> {
    let mut corpus = all(pki)?;
    corpus.cases.retain(|c| c.starter);
    Ok(corpus)
}

// profiles
const KERNEL: &str = "windows-kernel";
const CROSS: &str = "windows-kernel+cross-signed";
const HVCI: &str = "hvci";
const USER: &str = "windows-user";
const UEFI: &str = "uefi";
const MODULE: &str = "linux-module";

fn accept(profile: &'static str, codes: &[Code]) -> Expected {
    Expected { profile, decision: Decision::Accept, codes: codes.to_vec() }
}

fn refuse(profile: &'static str, codes: &[Code]) -> Expected {
    Expected { profile, decision: Decision::Refuse, codes: codes.to_vec() }
}

fn unknown(profile: &'static str, codes: &[Code]) -> Expected {
    Expected { profile, decision: Decision::Unknown, codes: codes.to_vec() }
}

/// Where cases are made.
struct Studio<'p> {
    pki: &'p Pki,
    corpus: Corpus,
}

impl<'p> Studio<'p> {
    fn add(&mut self, path: &str, rows: &'static [u8], why: &'static str, bytes: Vec<u8>, expected: Vec<Expected>) {
        self.corpus.cases.push(Case { path: path.to_owned(), bytes, rows, why, expected, starter: false });
    }

    /// Puts the case that was added last into the starter corpus.
    fn starter(&mut self) {
        if let Some(case) = self.corpus.cases.last_mut() {
            case.starter = true;
        }
    }

    fn who(&self, name: &str) -> Result<&'p Identity> {
        self.pki.get(name)
    }

    /// The usual signing by `name`, with its issuers.
    fn signing(&self, name: &str) -> Result<Signing<'p>> {
        Ok(Signing::new(self.who(name)?, &self.pki.issuers(name)?))
    }

    /// The usual token by `name`.
    fn stamp(&self, name: &str, date: &str) -> Result<Stamp<'p>> {
        Ok(Stamp::new(self.who(name)?, &self.pki.issuers(name)?, instant(date)?))
    }

    /// A signature on `image` by `name` with a token of 2023, changed by `change` before it is made.
    fn blob(&self, image: &[u8], name: &str, change: impl FnOnce(&mut Authenticode<'p>)) -> Result<Vec<u8>> {
        let mut signature = Authenticode::new(self.signing(name)?);
        signature.signing.stamps.push(self.stamp("tsa", "2023-01-01")?);
        change(&mut signature);
        signature.sign(image)
    }

    /// `image` with that signature.
    fn signed(&self, image: &Image, name: &str, change: impl FnOnce(&mut Authenticode<'p>)) -> Result<Vec<u8>> {
        let image = image.build()?;
        attach(&image, [self.blob(&image, name, change)?])
    }

    /// `image` signed for the kernel.
    fn whql(&self, image: &Image) -> Result<Vec<u8>> {
        self.signed(image, "whql", |_| {})
    }
}

/// `image` with these signatures in its certificate table.
fn attach(image: &[u8], blobs: impl IntoIterator<Item = Vec<u8>>) -> Result<Vec<u8>> {
    Table { entries: blobs.into_iter().map(Entry::pkcs7).collect(), ..Table::split(image)? }.join()
}

fn time() -> Result<UnixTime> {
    instant(TIME)
}
