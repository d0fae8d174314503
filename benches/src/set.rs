//! The files of a run: a folder that `perf-corpus.sh` made (`pe-drv`, `pe`, `ko/amd64` with `ko/amd64.pem`), or any folder of PE files.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use corpus::source::walk::walk;

/// Some files of one kind.
#[derive(Clone, Debug)]
pub struct Set {
    /// What it is called in the table.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
    /// Every regular file in it that begins as it should, in the order of the names.
    pub files: Vec<PathBuf>,
    /// Bytes in all of them.
    pub bytes: u64,
}

/// What there is in a folder.
#[derive(Clone, Debug)]
pub struct Sets {
    /// Driver-sized PE files: the audit benchmark.
    pub pe: Set,
    /// PE files of every size, if they are set apart.
    pub all_pe: Option<Set>,
    /// Signed Linux modules and the certificate that verifies them.
    pub modules: Option<(Set, PathBuf)>,
}

impl Sets {
    /// What there is in `dir`.
    ///
    /// # Errors
    /// An unreadable folder, or one without PE files.
    pub fn find(dir: &Path) -> Result<Self> {
        let drivers = dir.join("pe-drv");
        let laid_out = drivers.is_dir();
        let pe = Set::read(&if laid_out { drivers } else { dir.to_owned() }, b"MZ")?;
        ensure!(!pe.files.is_empty(), "{}: no PE files; give a folder that perf-corpus.sh made, or any folder of PE files", dir.display());
        let all = dir.join("pe");
        let all_pe = if laid_out && all.is_dir() { Some(Set::read(&all, b"MZ")?) } else { None };
        let (modules, key) = (dir.join("ko/amd64"), dir.join("ko/amd64.pem"));
        let modules = if modules.is_dir() && key.is_file() { Some((Set::read(&modules, b"\x7fELF")?, key)) } else { None };
        Ok(Self { pe, all_pe, modules })
    }
}

impl Set {
    fn read(dir: &Path, magic: &[u8]) -> Result<Self> {
        let name = dir.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>();
        let name = match name.as_slice() {
            [last, parent] if parent == "ko" => format!("{parent}/{last}"),
            [last, ..] => last.to_string(),
            [] => String::new(),
        };
        let mut set = Self { name, dir: dir.to_owned(), files: Vec::new(), bytes: 0 };
        let mut head = vec![0; magic.len()];
        for found in walk([dir.to_owned()]).filter(|found| found.result.is_ok()) {
            let mut file = File::open(&found.path).with_context(|| format!("cannot read {}", found.path.display()))?;
            if file.read_exact(&mut head).is_ok() && head == magic {
                set.bytes += file.metadata()?.len();
                set.files.push(found.path);
            }
        }
        Ok(set)
    }

    /// At most `count` of the files, evenly spaced.
    pub fn sample(&self, count: usize) -> Vec<PathBuf> {
        sample(&self.files, count)
    }

    /// Reads every file once, so that it is in the page cache.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn warm(&self) -> io::Result<()> {
        for file in &self.files {
            io::copy(&mut File::open(file)?, &mut io::sink())?;
        }
        Ok(())
    }
}

/// At most `count` of `all`, evenly spaced.
pub fn sample<T: Clone>(all: &[T], count: usize) -> Vec<T> {
    let count = count.min(all.len());
    (0..count).filter_map(|i| all.get(i * all.len() / count).cloned()).collect()
}

/// Bytes in `files`.
///
/// # Errors
/// One is gone.
pub fn size_of(files: &[PathBuf]) -> io::Result<u64> {
    files.iter().map(|f| Ok(fs::metadata(f)?.len())).sum()
}
