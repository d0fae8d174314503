//! A machine on disk: one folder, which one process has at a time.
//!
//! ```text
//! NAME/vm.toml       the profile            NAME/vars.fd       UEFI variables, OVMF's format
//! NAME/disk/…        what it boots from     NAME/tpm.sealed    state of its TPM, encrypted with the host's key
//! NAME/host.json     what the host knows of it by itself: its TPM's keys, the start that was predicted when it was made
//! NAME/boot.eventlog, evidence.json, health.ndjson           of its last start, of all
//! host.key, ledger   beside the machines: the key of what is encrypted, and which state each TPM was saved with
//! ```
//!
//! **Invariant:** a file is replaced whole or not at all (written beside it, flushed, renamed), and a machine is there whole or not at all.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::profile::Profile;
use crate::{
    attest::evidence::is_name,
    vtpm::ledger::{Ledger, LedgerError},
};

/// Longest file of a machine that is read whole, its disk aside.
const MAX_FILE: u64 = 64 << 20;

/// Why a machine cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A name that is no file name everywhere.
    #[error("{0:?} is no name for a machine: letters, digits, - _ and ., at most 64, no dot first")]
    Name(String),
    /// There is one.
    #[error("there is a machine {0} already")]
    Exists(String),
    /// There is none.
    #[error("there is no machine {0} in {1}")]
    Missing(String, PathBuf),
    /// Another process has it.
    #[error("{0} is in use by another process: a machine is started once at a time")]
    InUse(String),
    /// Its profile cannot be read.
    #[error("{0}: {1}")]
    Profile(PathBuf, String),
    /// Reading or writing failed.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> FolderError + use<'_> {
    move |error| FolderError::Io(path.to_owned(), error)
}

/// The machines of a host.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// Whose machines are in the folder `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where its machines are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The names of its machines, in order.
    ///
    /// # Errors
    /// The folder is there and cannot be read.
    pub fn machines(&self) -> Result<Vec<String>, FolderError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(FolderError::Io(self.root.clone(), error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed(&self.root))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_name(&name) && entry.path().join(PROFILE).is_file() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Makes a machine: `fill` writes what is in its folder, besides the profile.
    ///
    /// # Errors
    /// [`FolderError`], and what `fill` says; there is then no such machine.
    pub fn create<E: From<FolderError>>(
        &self,
        name: &str,
        profile: &Profile,
        fill: impl FnOnce(&Folder) -> Result<(), E>,
    ) -> Result<Folder, E> {
        if !is_name(name) {
            return Err(FolderError::Name(name.to_owned()).into());
        }
        let place = self.root.join(name);
        if place.exists() {
            return Err(FolderError::Exists(name.to_owned()).into());
        }
        fs::create_dir_all(&self.root).map_err(failed(&self.root))?;
        // a name with a dot first is no machine's
        let unfinished = self.root.join(format!(".{name}.new"));
        drop(fs::remove_dir_all(&unfinished));
        fs::create_dir(&unfinished).map_err(failed(&unfinished))?;
        let made = Folder::lock(name, unfinished.clone()).map_err(E::from).and_then(|folder| {
            folder.write_profile(profile)?;
            fill(&folder)?;
            fs::rename(&unfinished, &place).map_err(failed(&place))?;
            sync(&self.root)?;
            Ok(Folder { place: place.clone(), ..folder })
        });
        if made.is_err() {
            drop(fs::remove_dir_all(&unfinished));
        }
        made
    }

    /// Opens a machine for this process alone.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn open(&self, name: &str) -> Result<Folder, FolderError> {
        let place = self.root.join(name);
        if !is_name(name) || !place.join(PROFILE).is_file() {
            return Err(FolderError::Missing(name.to_owned(), self.root.clone()));
        }
        Folder::lock(name, place)
    }

    /// Removes a machine with all that it has.
    ///
    /// # Errors
    /// [`FolderError`], among them that it is in use.
    pub fn delete(&self, name: &str) -> Result<(), FolderError> {
        let folder = self.open(name)?;
        // out of the way whole, so that no half of it is found
        let going = self.root.join(format!(".{name}.gone"));
        drop(fs::remove_dir_all(&going));
        fs::rename(&folder.place, &going).map_err(failed(&folder.place))?;
        fs::remove_dir_all(&going).map_err(failed(&going))
    }

    /// The ledger of its machines' TPMs, with which `run` does something; it is written if that changed it. One process has it at a time.
    ///
    /// # Errors
    /// It cannot be read or written, and what `run` says: the ledger is then as before.
    pub fn ledger<T, E: From<FolderError> + From<LedgerError>>(&self, run: impl FnOnce(&mut Ledger) -> Result<T, E>) -> Result<T, E> {
        let (path, guard) = (self.root.join("ledger"), self.root.join("ledger.lock"));
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&guard).map_err(failed(&guard))?;
        lock.lock().map_err(failed(&guard))?;
        let mut ledger = match fs::read(&path) {
            Ok(bytes) => Ledger::read(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ledger::new(),
            Err(error) => return Err(FolderError::Io(path, error).into()),
        };
        let before = ledger.head();
        let outcome = run(&mut ledger)?;
        if ledger.head() != before {
            replace(&path, &ledger.to_bytes(), 0o600)?;
        }
        Ok(outcome)
    }

    /// The key of what the host encrypts, made when it is first asked for by `fresh`.
    ///
    /// # Errors
    /// It cannot be read or written, or is no key.
    pub fn key(&self, fresh: impl FnOnce() -> [u8; 32]) -> Result<[u8; 32], FolderError> {
        let path = self.root.join("host.key");
        match fs::read(&path) {
            Ok(bytes) => bytes.try_into().map_err(|_| FolderError::Io(path, io::Error::other("this is no key of 32 bytes"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.root).map_err(failed(&self.root))?;
                let key = fresh();
                replace(&path, &key, 0o600)?;
                Ok(key)
            }
            Err(error) => Err(FolderError::Io(path, error)),
        }
    }
}

const PROFILE: &str = "vm.toml";

/// A machine's folder, locked.
#[derive(Debug)]
pub struct Folder {
    name: String,
    place: PathBuf,
    /// held as long as the folder is open
    _lock: File,
}

impl Folder {
    fn lock(name: &str, place: PathBuf) -> Result<Self, FolderError> {
        let path = place.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed(&path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { name: name.to_owned(), place, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(FolderError::InUse(name.to_owned())),
            Err(TryLockError::Error(error)) => Err(FolderError::Io(path, error)),
        }
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where a file of it is.
    pub fn path(&self, file: &str) -> PathBuf {
        self.place.join(file)
    }

    /// Its profile.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn profile(&self) -> Result<Profile, FolderError> {
        let path = self.path(PROFILE);
        let text = self.read(PROFILE)?.unwrap_or_default();
        let text = String::from_utf8(text).map_err(|e| FolderError::Profile(path.clone(), e.to_string()))?;
        toml::from_str(&text).map_err(|e| FolderError::Profile(path, e.to_string()))
    }

    /// Writes its profile.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn write_profile(&self, profile: &Profile) -> Result<(), FolderError> {
        let text = toml::to_string(profile).map_err(|e| FolderError::Profile(self.path(PROFILE), e.to_string()))?;
        self.write(PROFILE, text.as_bytes())
    }

    /// A file's content; `None` without one.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn read(&self, file: &str) -> Result<Option<Vec<u8>>, FolderError> {
        let path = self.path(file);
        let mut content = Vec::new();
        match File::open(&path).and_then(|f| f.take(MAX_FILE).read_to_end(&mut content)) {
            Ok(_) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FolderError::Io(path, error)),
        }
    }

    /// Replaces a file, whole or not at all.
    ///
    /// # Errors
    /// [`FolderError::Io`]; the old content is still there.
    pub fn write(&self, file: &str, content: &[u8]) -> Result<(), FolderError> {
        replace(&self.path(file), content, 0o644)
    }

    /// Adds lines to a file, at once.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn append(&self, file: &str, lines: &[u8]) -> Result<(), FolderError> {
        let path = self.path(file);
        let written = OpenOptions::new().create(true).append(true).open(&path).and_then(|mut f| {
            f.write_all(lines)?;
            f.sync_data()
        });
        written.map_err(failed(&path))
    }
}

pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FolderError> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let written = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&beside).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&beside, path)).map_err(failed(path))?;
    path.parent().map_or(Ok(()), sync)
}

/// Makes a rename in a folder last.
fn sync(folder: &Path) -> Result<(), FolderError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(failed(folder))
}
