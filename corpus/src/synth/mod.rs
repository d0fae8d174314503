//! A signed corpus made from nothing but a seed: its own authorities, PE and ELF images, signatures and timestamps of every kind that the
//! engine tells apart, good and bad, with the verdicts that they must get.
//!
//! ```text
//! seed ─key─► keys ─pki─► certificates ─┐
//! pe, elf ─► images ────────────────────┴─authenticode, elf, catalog, timestamp─► signed files ─mutate─► forged files ─cases─► verdicts
//! ```
//!
//! **Invariant:** nothing here calls the engine's readers, digests or verifiers, only its vocabulary ([`Code`], [`DigestAlg`],
//! [`FileKind`], [`UnixTime`], [`Decision`]): an error in one is not made good by the same error in the other. The same seed gives the same
//! bytes, on any number of threads.
//!
//! [`Code`]: hvci_engine::finding::Code
//! [`DigestAlg`]: hvci_engine::digest::DigestAlg
//! [`FileKind`]: hvci_engine::facts::FileKind
//! [`Decision`]: hvci_engine::policy::Decision

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use ::der::{EncodePem, pem::LineEnding};
use hvci_engine::{finding::Code, policy::Decision, time::UnixTime};
use serde::Serialize;

pub mod authenticode;
pub mod cases;
pub mod catalog;
pub mod certificate;
pub mod der;
pub mod elf;
pub mod import_calls;
pub mod key;
pub mod layout;
pub mod mutate;
pub mod oid;
pub mod pe;
pub mod pki;
pub mod root_list;
pub mod signed_data;
pub mod timestamp;
pub mod windows;

use cases::Corpus;
use pki::Pki;

/// The seed when none is given.
pub const DEFAULT_SEED: u64 = 1;

/// Where the kernel with the module keys is, below the folder of images.
const KERNEL_PATH: &str = "kernel/vmlinuz";

/// Result of making something.
pub type Result<T> = core::result::Result<T, Error>;

/// Why something could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input is not one that this can be done to.
    #[error("not applicable: {0}")]
    NotApplicable(&'static str),
    /// Nobody of this name in the PKI, no mutation.
    #[error("the synthesiser knows no {0:?}")]
    Unknown(String),
    /// The folder is there and not empty.
    #[error("{0} is not empty; name a folder that is, or that does not exist")]
    NotEmpty(PathBuf),
    /// Encoding.
    #[error("encoding")]
    Der(#[from] ::der::Error),
    /// A public key.
    #[error("encoding a public key")]
    Spki(#[from] spki::Error),
    /// RSA.
    #[error("RSA")]
    Rsa(#[from] rsa::Error),
    /// ECDSA.
    #[error("ECDSA")]
    Ecdsa(#[from] p256::ecdsa::Error),
    /// An image.
    #[error("building an image")]
    Object(#[from] object::write::Error),
    /// Files.
    #[error("{path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A corpus on disk, and what a scan of it needs to be told.
#[derive(Clone, Debug)]
pub struct Written {
    /// The folder with the files to scan.
    pub images: PathBuf,
    /// Trust anchors, `PURPOSE=FILE` as `--roots` takes them.
    pub roots: Vec<String>,
    /// What they are limited to, for `--roots` too.
    pub root_lists: Vec<PathBuf>,
    /// Catalogs that speak for some of the files.
    pub catalogs: Vec<PathBuf>,
    /// Kernels whose keys some of the files are signed with.
    pub kernels: Vec<PathBuf>,
    /// The time that the verdicts are for.
    pub time: UnixTime,
    /// How many files there are to scan.
    pub files: usize,
    dir: PathBuf,
}

impl fmt::Display for Written {
    /// What was written, and the command that scans it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} files with their verdicts in {}", self.files, self.dir.join("expected.json").display())?;
        write!(f, "scan them with\n  hvci-audit scan {} --time {}", self.images.display(), self.time)?;
        self.roots.iter().try_for_each(|r| write!(f, " --roots {r}"))?;
        self.root_lists.iter().try_for_each(|l| write!(f, " --roots {}", l.display()))?;
        self.catalogs.iter().try_for_each(|c| write!(f, " --catalog {}", c.display()))?;
        self.kernels.iter().try_for_each(|k| write!(f, " --kernel {}", k.display()))
    }
}

/// Makes the whole corpus of `seed` in `dir`, which must be empty or not exist.
///
/// Beside the files in `images/` stand `expected.json` (for every file why it is there and, by profile, the decision and the finding codes that
/// it must get), trust anchors and the root list that limits them in `trust/` and catalogs in `catalogs/`.
///
/// # Errors
/// A folder that is not empty, files that cannot be written.
pub fn write(dir: &Path, seed: u64) -> Result<Written> {
    let pki = Pki::new(seed)?;
    write_corpus(dir, seed, &pki, &cases::all(&pki)?)
}

/// Makes the starter corpus of `seed` in `dir`, as [`write()`] does.
///
/// # Errors
/// As [`write()`].
pub fn write_starter(dir: &Path, seed: u64) -> Result<Written> {
    let pki = Pki::new(seed)?;
    write_corpus(dir, seed, &pki, &cases::starter(&pki)?)
}

/// Root certificates by purpose, as PEM.
///
/// # Errors
/// None that occurs.
pub fn anchors(pki: &Pki) -> Result<BTreeMap<&'static str, String>> {
    pki::ANCHORS
        .iter()
        .map(|(purpose, names)| {
            let pem: Result<String> = names.iter().map(|n| Ok(pki.get(n)?.certificate.to_pem(LineEnding::LF)?)).collect();
            Ok((*purpose, pem?))
        })
        .collect()
}

fn write_corpus(dir: &Path, seed: u64, pki: &Pki, corpus: &Corpus) -> Result<Written> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    if dir.exists() && fs::read_dir(dir).map_err(io(dir))?.next().is_some() {
        return Err(Error::NotEmpty(dir.to_owned()));
    }
    let put = |path: PathBuf, bytes: &[u8]| -> Result<PathBuf> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io(parent))?;
        }
        fs::write(&path, bytes).map_err(io(&path))?;
        Ok(path)
    };
    let images = dir.join("images");
    for case in &corpus.cases {
        put(images.join(&case.path), &case.bytes)?;
    }
    let mut roots = Vec::new();
    for (purpose, pem) in anchors(pki)? {
        let path = put(dir.join("trust").join(format!("{purpose}.pem")), pem.as_bytes())?;
        roots.push(format!("{purpose}={}", path.display()));
    }
    let mut root_lists = Vec::new();
    for (name, bytes) in &corpus.root_lists {
        root_lists.push(put(dir.join("trust").join(name), bytes)?);
    }
    let mut catalogs = Vec::new();
    for (name, bytes) in &corpus.catalogs {
        catalogs.push(put(dir.join("catalogs").join(name), bytes)?);
    }
    let time = certificate::instant(cases::TIME)?;
    let list = ExpectedList { schema_version: 1, seed, time, files: corpus.cases.iter().map(|c| (c.path.as_str(), c.into())).collect() };
    let mut json = serde_json::to_vec_pretty(&list).map_err(|e| Error::Io { path: "expected.json".into(), source: e.into() })?;
    json.push(b'\n');
    put(dir.join("expected.json"), &json)?;
    let kernels = vec![images.join(KERNEL_PATH)];
    Ok(Written { images, roots, root_lists, catalogs, kernels, time, files: corpus.cases.len(), dir: dir.to_owned() })
}

/// `expected.json`.
#[derive(Serialize)]
struct ExpectedList<'a> {
    schema_version: u32,
    seed: u64,
    time: UnixTime,
    files: BTreeMap<&'a str, ExpectedFile<'a>>,
}

#[derive(Serialize)]
struct ExpectedFile<'a> {
    why: &'a str,
    rows: &'a [u8],
    verdicts: BTreeMap<&'a str, ExpectedVerdict<'a>>,
}

#[derive(Serialize)]
struct ExpectedVerdict<'a> {
    decision: Decision,
    codes: &'a [Code],
}

impl<'a> From<&'a cases::Case> for ExpectedFile<'a> {
    fn from(case: &'a cases::Case) -> Self {
        let verdict = |e: &'a cases::Expected| (e.profile, ExpectedVerdict { decision: e.decision, codes: &e.codes });
        Self { why: case.why, rows: case.rows, verdicts: case.expected.iter().map(verdict).collect() }
    }
}

#[cfg(test)]
mod tests;
