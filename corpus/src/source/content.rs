//! The bytes of one file: read below [`MAP_FROM`], mapped from there on; and whether they stayed what they were.
//!
//! Another process may write to the file meanwhile. Then [`Content::changed`] says so, and nothing that was concluded from the bytes holds;
//! a mapped file that is cut short reads as zeros instead of killing the process (`map`). Only regular files are opened: a FIFO would
//! block, and opening a device can have effects.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    path::Path,
    time::SystemTime,
};

use hvci_engine::finding::{Code, Note};

use super::{map::Mapping, walk::regular};

/// Files of at least this many bytes are mapped. Below, reading into memory that is warm costs less than the page faults of a mapping,
/// and than interrupting the other threads' processors to take it away.
pub const MAP_FROM: u64 = 256 << 10;

/// Files of at least this many bytes are mapped if there is no room for them.
const MAP_IF_FULL: u64 = 64 << 10;

/// The content of an open file. Made by [`Content::open`], which also says what can be wrong.
#[derive(Debug)]
pub struct Content<'b> {
    bytes: Bytes<'b>,
    file: File,
    before: Stamp,
}

#[derive(Debug)]
enum Bytes<'b> {
    Read(&'b [u8]),
    Owned(Vec<u8>),
    Mapped(Mapping),
}

/// What tells one state of a file from another.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self { len: metadata.len(), modified: metadata.modified().ok() }
    }
}

impl<'b> Content<'b> {
    /// The content of the regular file at `path`, of at most `max_size` bytes. A file that is read goes to the start of `room`, which
    /// shrinks by it; what does not fit there is mapped, or gets memory of its own if it is small.
    ///
    /// # Errors
    /// A note that says why there is nothing to look at: unreadable, no regular file, empty, too large.
    pub fn open(path: &Path, max_size: u64, room: &mut &'b mut [u8]) -> Result<Self, Note> {
        regular(std::fs::metadata(path).map_err(|err| unreadable(&err))?.file_type())?;
        Self::open_found(path, max_size, room)
    }

    /// The same for a path that the walk has looked at and found to be a regular file.
    ///
    /// # Errors
    /// Those of [`Content::open`].
    pub fn open_found(path: &Path, max_size: u64, room: &mut &'b mut [u8]) -> Result<Self, Note> {
        let mut file = open(path).map_err(|err| unreadable(&err))?;
        let metadata = file.metadata().map_err(|err| unreadable(&err))?;
        // the path may lead elsewhere by now
        regular(metadata.file_type())?;
        let before = Stamp::from(&metadata);
        if before.len > max_size {
            return Err(Note::new(Code::InputTooLarge, format!("{} bytes, the limit is {max_size}", before.len)));
        }
        let fits = usize::try_from(before.len).is_ok_and(|len| len < room.len());
        let mapped = if before.len >= MAP_FROM || before.len >= MAP_IF_FULL && !fits { Mapping::new(&file, before.len) } else { None };
        let bytes = match mapped {
            Some(mapping) => Bytes::Mapped(mapping),
            None => read(&mut file, before.len, max_size, room)?,
        };
        let content = Self { bytes, file, before };
        if content.bytes().is_empty() { Err(Note::new(Code::InputEmpty, "0 bytes")) } else { Ok(content) }
    }

    /// The bytes. Of a mapped file that another process writes to they may differ from one look to the next.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Read(bytes) => bytes,
            Bytes::Owned(bytes) => bytes,
            Bytes::Mapped(mapping) => mapping.bytes(),
        }
    }

    /// Whether the file was written to since it was opened. Ask when done with the bytes: if it was, nothing concluded from them holds.
    /// Told by length, time of modification and pages that went missing; two writes within one tick of the file system's clock
    /// (about 4 ms), one before opening and one after, look like one.
    pub fn changed(&self) -> Option<Note> {
        let changed = |detail: String| Some(Note::new(Code::InputChanged, detail));
        if matches!(&self.bytes, Bytes::Mapped(mapping) if mapping.torn()) {
            return changed("it was cut short, or its storage failed".to_owned());
        }
        let after = match self.file.metadata() {
            Ok(metadata) => Stamp::from(&metadata),
            Err(err) => return changed(err.to_string()),
        };
        let seen = self.bytes().len() as u64;
        if after.len != self.before.len || (self.before.len > 0 && seen != self.before.len) {
            return changed(format!("{} bytes when opened, {seen} read, {} now", self.before.len, after.len));
        }
        if after.modified != self.before.modified { changed("its time of modification moved".to_owned()) } else { None }
    }
}

/// Reads a file that says to be of `len` bytes, and one byte more to see whether it grew.
fn read<'b>(file: &mut File, len: u64, max_size: u64, room: &mut &'b mut [u8]) -> Result<Bytes<'b>, Note> {
    let size = usize::try_from(len.saturating_add(1)).unwrap_or(usize::MAX);
    // files of proc(5) have no length before they are read
    if len > 0
        && let Some(space) = room.split_off_mut(..size)
    {
        let mut filled = 0;
        while let Some(rest) = space.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read(rest) {
                Ok(0) => break,
                Ok(n) => {
                    filled += n;
                    // it was asked for one more
                    if filled as u64 == len {
                        break;
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(unreadable(&err)),
            }
        }
        return Ok(Bytes::Read(&space[..filled]));
    }
    let most = if len == 0 { max_size } else { len };
    let mut bytes = Vec::with_capacity(size.min(1 << 20));
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(|err| unreadable(&err))?;
    if bytes.len() as u64 > max_size {
        return Err(Note::new(Code::InputTooLarge, format!("more than {max_size} bytes")));
    }
    Ok(Bytes::Owned(bytes))
}

fn unreadable(err: &io::Error) -> Note {
    Note::new(Code::InputUnreadable, err.to_string())
}

#[cfg(unix)]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // should it have become a FIFO or terminal since it was looked at
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

#[cfg(not(unix))]
fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

#[cfg(test)]
mod tests {
    use std::{fs, hint::black_box, path::PathBuf, thread};

    use super::*;

    const MAX: u64 = 64 << 20;

    fn file(dir: &tempfile::TempDir, len: usize) -> PathBuf {
        let path = dir.path().join("x.sys");
        fs::write(&path, vec![0xa5; len]).unwrap();
        path
    }

    fn code(result: Result<Content<'_>, Note>) -> Code {
        result.unwrap_err().code
    }

    #[test]
    fn small_files_are_read_and_large_ones_mapped() {
        let dir = tempfile::tempdir().unwrap();
        for (len, mapped) in [(1, false), (MAP_FROM - 1, false), (MAP_FROM, cfg!(unix)), (1 << 20, cfg!(unix))] {
            let len = usize::try_from(len).unwrap();
            let path = file(&dir, len);
            let mut memory = vec![1; 300 << 10];
            let mut room = memory.as_mut_slice();
            let content = Content::open(&path, MAX, &mut room).unwrap();
            assert_eq!(matches!(content.bytes, Bytes::Mapped(_)), mapped);
            assert_eq!(room.len(), if mapped { 300 << 10 } else { (300 << 10) - len - 1 });
            assert!(content.bytes().len() == len && content.bytes().iter().all(|b| *b == 0xa5));
            assert_eq!(content.changed(), None);
        }
    }

    #[test]
    fn what_does_not_fit_the_room_is_seen_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, 65536);
        let content = Content::open(&path, MAX, &mut Default::default()).unwrap();
        assert_eq!((content.bytes().len(), matches!(content.bytes, Bytes::Mapped(_))), (65536, cfg!(unix)));
        let path = file(&dir, 1000);
        let mut memory = vec![0; 3000];
        let mut room = memory.as_mut_slice();
        let three = [(); 3].map(|()| Content::open(&path, MAX, &mut room).unwrap());
        assert!(three.iter().all(|c| c.bytes() == [0xa5; 1000] && c.changed().is_none()));
        assert_eq!(three.map(|c| matches!(c.bytes, Bytes::Owned(_))), [false, false, true]);
        assert_eq!(room.len(), 3000 - 2 * 1001);
    }

    #[test]
    fn what_is_not_read_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(code(Content::open(&dir.path().join("missing"), MAX, &mut Default::default())), Code::InputUnreadable);
        assert_eq!(code(Content::open(dir.path(), MAX, &mut Default::default())), Code::InputUnreadable);
        let path = file(&dir, 0);
        assert_eq!(code(Content::open(&path, MAX, &mut Default::default())), Code::InputEmpty);
        let path = file(&dir, 1001);
        assert_eq!(code(Content::open(&path, 1000, &mut Default::default())), Code::InputTooLarge);
        assert!(Content::open(&path, 1001, &mut Default::default()).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn a_fifo_never_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let note = Content::open(&path, MAX, &mut Default::default()).unwrap_err();
        assert_eq!((note.code, note.detail.as_str()), (Code::InputUnreadable, "a FIFO, not opened"));
    }

    #[test]
    fn growing_and_rewriting_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for len in [1000, 400_000] {
            let path = file(&dir, len);
            let content = Content::open(&path, MAX, &mut Default::default()).unwrap();
            fs::write(&path, vec![0; len + 1]).unwrap();
            assert_eq!(content.changed().map(|n| n.code), Some(Code::InputChanged));

            let path = file(&dir, len);
            let content = Content::open(&path, MAX, &mut Default::default()).unwrap();
            let later = SystemTime::now() + std::time::Duration::from_secs(60);
            File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
            assert_eq!(content.changed().map(|n| n.code), Some(Code::InputChanged));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_mapped_file_that_is_cut_short_reads_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, 1 << 20);
        let content = Content::open(&path, MAX, &mut Default::default()).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(10_000).unwrap();
        // the page with the new end is still the file's
        assert_eq!(black_box(content.bytes())[9_999], 0xa5);
        assert!(!matches!(&content.bytes, Bytes::Mapped(m) if m.torn()));
        assert!(black_box(content.bytes())[20_000..].iter().all(|b| *b == 0));
        assert!(matches!(&content.bytes, Bytes::Mapped(m) if m.torn()));
        assert_eq!(content.changed().map(|n| n.code), Some(Code::InputChanged));
    }

    #[cfg(unix)]
    #[test]
    fn cutting_files_while_many_threads_read_them_stops_none() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..4).map(|n| dir.path().join(n.to_string())).collect();
        for path in &paths {
            fs::write(path, vec![1; 4 << 20]).unwrap();
        }
        let stop = std::sync::atomic::AtomicBool::new(false);
        let told: usize = thread::scope(|scope| {
            let cutter = scope.spawn(|| {
                for round in 0..60 {
                    for path in &paths {
                        let file = File::options().write(true).open(path).unwrap();
                        file.set_len(if round % 2 == 0 { 70_000 } else { 4 << 20 }).unwrap();
                    }
                    thread::yield_now();
                }
                for path in &paths {
                    File::options().write(true).open(path).unwrap().set_len(4 << 20).unwrap();
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            let readers: Vec<_> = paths
                .iter()
                .map(|path| {
                    scope.spawn(|| {
                        let mut told = 0;
                        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                            let content = Content::open(path, MAX, &mut Default::default()).unwrap();
                            let sum: u64 = black_box(content.bytes()).chunks(512).map(|c| u64::from(c[0])).sum();
                            black_box(sum);
                            told += usize::from(content.changed().is_some());
                        }
                        let content = Content::open(path, MAX, &mut Default::default()).unwrap();
                        assert_eq!((content.bytes().len(), content.changed()), (4 << 20, None));
                        told
                    })
                })
                .collect();
            let told = readers.into_iter().map(|r| r.join().unwrap()).sum();
            cutter.join().unwrap();
            told
        });
        assert!(told > 0, "no reader noticed");
    }
}
