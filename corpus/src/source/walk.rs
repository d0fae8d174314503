//! From paths on the command line to the files below them.
//!
//! Every regular file is found, whatever ignore files say; directories are read in the order of their names, one at a time, so that the
//! order is the same in every run and memory stays small. Links are followed; a directory is read once however many links lead to it,
//! which ends loops. What cannot be read, or is no regular file, is an item with a note; nothing ends the walk.
//!
//! What an entry is stands in its directory: of the files of a tree none is looked at by itself before it is opened.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fmt,
    fs::{self, FileType},
    io::{self, BufRead},
    path::{Path, PathBuf},
};

use hvci_engine::finding::{Code, Note};

use super::escape;

/// One file, or what is wrong at this path.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where, for opening it.
    pub path: PathBuf,
    /// Where, for showing it: escaped.
    pub display: String,
    /// That a regular file stood there, or why there is nothing to read: missing, unreadable, no regular file.
    pub result: Result<(), Note>,
}

/// The regular files at and below `roots`, lazily.
pub fn walk(roots: impl IntoIterator<Item = PathBuf, IntoIter: Send> + 'static) -> Walk {
    Walk::over(roots.into_iter().map(Ok))
}

/// The regular files at and below the paths that `list` names, lazily: one path a line, or each ended by a NUL byte (as `find -print0`
/// writes them) if there is one in the first buffer. A list that cannot be read on is the last item.
pub fn walk_list(list: impl BufRead + Send + 'static) -> Walk {
    Walk::over(List { list, separator: None })
}

/// The files found; made by [`walk`] and [`walk_list`].
pub struct Walk {
    roots: Box<dyn Iterator<Item = io::Result<PathBuf>> + Send>,
    /// The root that is being walked, if it is a directory.
    root: Option<Identity>,
    /// The directories that lead to the next entry, outermost first.
    open: Vec<Directory>,
    /// The directories below roots that were read.
    seen: HashSet<Identity>,
}

impl fmt::Debug for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walk").finish_non_exhaustive()
    }
}

impl Iterator for Walk {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            while let Some(directory) = self.open.last_mut() {
                match directory.entries.next() {
                    None => drop(self.open.pop()),
                    Some((name, kind)) => {
                        let path = directory.path_of(&name);
                        if let Some(found) = self.look_at(path, kind) {
                            return Some(found);
                        }
                    }
                }
            }
            let root = match self.roots.next()? {
                Ok(root) => root,
                Err(err) => return Some(found(PathBuf::from("--files-from"), Err(missing(&err)))),
            };
            match fs::metadata(&root) {
                Ok(metadata) if metadata.is_dir() => {
                    self.root = identity(&root).ok();
                    if let Some(found) = self.read(root) {
                        return Some(found);
                    }
                }
                Ok(metadata) => return Some(found(root, regular(metadata.file_type()))),
                Err(err) => return Some(found(root, Err(missing(&err)))),
            }
        }
    }
}

impl Walk {
    fn over(roots: impl Iterator<Item = io::Result<PathBuf>> + Send + 'static) -> Self {
        Self { roots: Box::new(roots), root: None, open: Vec::new(), seen: HashSet::new() }
    }

    /// What the entry at `path` is as an item; `None` for a directory, whose entries come next if they have not come before.
    fn look_at(&mut self, path: PathBuf, kind: io::Result<FileType>) -> Option<Found> {
        let kind = match kind {
            Ok(kind) if kind.is_symlink() => fs::metadata(&path).map(|m| m.file_type()),
            kind => kind,
        };
        match kind {
            Ok(kind) if !kind.is_dir() => Some(found(path, regular(kind))),
            Err(err) => Some(failed(path, &err)),
            // one that cannot be identified cannot be read either, and that is told
            Ok(_) => match identity(&path) {
                Ok(id) if self.root.as_ref() == Some(&id) || !self.seen.insert(id) => None,
                _ => self.read(path),
            },
        }
    }

    /// Goes on with the entries of a directory. Returns what is wrong with it; what could be read of it comes all the same.
    fn read(&mut self, path: PathBuf) -> Option<Found> {
        let mut entries = Vec::new();
        let listed = fs::read_dir(&path).and_then(|listing| {
            listing.into_iter().try_for_each(|entry| {
                let entry = entry?;
                entries.push((entry.file_name(), entry.file_type()));
                Ok(())
            })
        });
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let fault = listed.err().map(|err| failed(path.clone(), &err));
        self.open.push(Directory { path, entries: entries.into_iter() });
        fault
    }
}

/// A directory that is being walked.
struct Directory {
    path: PathBuf,
    /// Names in order, and what the directory says they are.
    entries: std::vec::IntoIter<(OsString, io::Result<FileType>)>,
}

impl Directory {
    fn path_of(&self, name: &OsStr) -> PathBuf {
        let mut path = PathBuf::with_capacity(self.path.as_os_str().len() + 1 + name.len());
        path.push(&self.path);
        path.push(name);
        path
    }
}

/// What tells one directory from another whatever path leads there: device and inode.
#[cfg(unix)]
type Identity = (u64, u64);

#[cfg(unix)]
fn identity(directory: &Path) -> io::Result<Identity> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(directory).map(|m| (m.dev(), m.ino()))
}

#[cfg(not(unix))]
type Identity = PathBuf;

#[cfg(not(unix))]
fn identity(directory: &Path) -> io::Result<Identity> {
    fs::canonicalize(directory)
}

/// What a path is that is no regular file, as a note.
pub(super) fn regular(kind: FileType) -> Result<(), Note> {
    if kind.is_file() {
        return Ok(());
    }
    let what = if kind.is_dir() { "a directory" } else { special(kind) };
    Err(Note::new(Code::InputUnreadable, format!("{what}, not opened")))
}

#[cfg(unix)]
fn special(kind: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match () {
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () => "no regular file",
    }
}

#[cfg(not(unix))]
fn special(_: FileType) -> &'static str {
    "no regular file"
}

fn missing(err: &io::Error) -> Note {
    Note::new(Code::InputUnreadable, err.to_string())
}

fn found(path: PathBuf, result: Result<(), Note>) -> Found {
    let display = escape(path.as_os_str().as_encoded_bytes());
    Found { path, display, result }
}

/// What the system says against an entry of a tree.
fn failed(path: PathBuf, err: &io::Error) -> Found {
    let mut failed = found(path, Ok(()));
    let detail = format!("IO error for operation on {}: {err}", failed.display);
    failed.result = Err(Note::new(Code::InputUnreadable, detail));
    failed
}

struct List<R> {
    list: R,
    separator: Option<u8>,
}

impl<R: BufRead> Iterator for List<R> {
    type Item = io::Result<PathBuf>;

    fn next(&mut self) -> Option<io::Result<PathBuf>> {
        loop {
            match self.record() {
                Ok(Some(record)) if record.is_empty() => {}
                Ok(Some(record)) => return Some(path(record)),
                Ok(None) => return None,
                Err(err) => {
                    self.separator = None;
                    return Some(Err(err));
                }
            }
        }
    }
}

impl<R: BufRead> List<R> {
    fn record(&mut self) -> io::Result<Option<Vec<u8>>> {
        let separator = match self.separator {
            Some(separator) => separator,
            None => *self.separator.insert(if self.list.fill_buf()?.contains(&0) { 0 } else { b'\n' }),
        };
        let mut record = Vec::new();
        if self.list.read_until(separator, &mut record)? == 0 {
            return Ok(None);
        }
        if record.last() == Some(&separator) {
            record.pop();
        }
        if cfg!(windows) && record.last() == Some(&b'\r') {
            record.pop();
        }
        Ok(Some(record))
    }
}

#[cfg(unix)]
fn path(record: Vec<u8>) -> io::Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Ok(PathBuf::from(OsString::from_vec(record)))
}

#[cfg(not(unix))]
fn path(record: Vec<u8>) -> io::Result<PathBuf> {
    String::from_utf8(record).map(PathBuf::from).map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))
}

#[cfg(all(test, unix))]
mod tests {
    use std::{io::Cursor, os::unix::fs::symlink};

    use super::*;

    /// Path below the root, and the note's detail.
    fn told(walk: Walk, root: &Path) -> Vec<(String, Option<String>)> {
        let below = |f: &Found| f.path.strip_prefix(root).unwrap_or(&f.path).to_string_lossy().into_owned();
        walk.map(|f| (below(&f), f.result.err().map(|n| n.detail))).collect()
    }

    #[test]
    fn a_tree_is_walked_once_in_order_and_past_every_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for sub in ["b/deep", ".git", "a"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        for file in ["b/deep/2.sys", "b/1.sys", ".gitignore", ".git/x", "z.ko", "a/hidden"] {
            fs::write(root.join(file), "*.sys\n*.ko\n").unwrap();
        }
        symlink(root, root.join("b/loop")).unwrap();
        symlink(root.join("b"), root.join("a/to-b")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        symlink("z.ko", root.join("link.ko")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();

        let found = told(walk([root.to_path_buf()]), root);
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [".git/x", ".gitignore", "a/hidden", "a/to-b/1.sys", "a/to-b/deep/2.sys", "dangling", "link.ko", "socket", "z.ko"];
        assert_eq!(names, expected);
        let notes: Vec<_> = found.iter().filter_map(|(name, note)| Some((name.as_str(), note.as_deref()?))).collect();
        assert!(notes[0].0 == "dangling" && notes[0].1.contains("No such file"), "{notes:?}");
        assert_eq!(notes[1..], [("socket", "a socket, not opened")]);
    }

    #[test]
    fn links_given_directly_are_followed_and_missing_paths_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/x.sys"), "MZ").unwrap();
        symlink("d", root.join("link")).unwrap();
        let found = told(walk([root.join("missing"), root.join("link"), root.join("d/x.sys")]), root);
        assert_eq!(found[1..], [("link/x.sys".to_owned(), None), ("d/x.sys".to_owned(), None)]);
        assert!(found[0].0 == "missing" && found[0].1.as_ref().is_some_and(|n| n.contains("No such file")));
    }

    #[test]
    fn lists_are_lines_or_nul_terminated() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let (odd, plain) = (root.join("a\nb\u{1b}"), root.join("c"));
        fs::write(&odd, "").unwrap();
        fs::write(&plain, "").unwrap();
        let mut list = [odd.as_os_str().as_encoded_bytes(), plain.as_os_str().as_encoded_bytes()].join(&0);
        list.push(0);
        let found: Vec<_> = walk_list(Cursor::new(list)).collect();
        assert_eq!(found.iter().map(|f| &f.path).collect::<Vec<_>>(), [&odd, &plain]);
        assert!(found[0].display.ends_with("a\\x0ab\\x1b") && found.iter().all(|f| f.result.is_ok()));

        let lines = format!("{}\n\n{}", plain.display(), root.join("gone").display());
        let found: Vec<_> = walk_list(Cursor::new(lines)).collect();
        assert_eq!((found.len(), found[0].path == plain, found[1].result.is_err()), (2, true, true));
    }
}
