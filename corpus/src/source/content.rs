//! The bytes of one file: read below [`MAP_FROM`], mapped above; and whether they stayed what they were.
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

/// Files of at least this many bytes are mapped: below, reading is faster than the page faults of a mapping.
pub const MAP_FROM: u64 = 64 << 10;

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
    /// The content of the regular file at `path`, of at most `max_size` bytes. `buffer` is reused from file to file.
    ///
    /// # Errors
    /// A note that says why there is nothing to look at: unreadable, no regular file, empty, too large.
    pub fn open(path: &Path, max_size: u64, buffer: &'b mut Vec<u8>) -> Result<Self, Note> {
        let unreadable = |err: io::Error| Note::new(Code::InputUnreadable, err.to_string());
        regular(std::fs::metadata(path).map_err(unreadable)?.file_type())?;
        let mut file = open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        // the path may lead elsewhere by now
        regular(metadata.file_type())?;
        let before = Stamp::from(&metadata);
        if before.len > max_size {
            return Err(Note::new(Code::InputTooLarge, format!("{} bytes, the limit is {max_size}", before.len)));
        }
        let mapped = if before.len >= MAP_FROM { Mapping::new(&file, before.len) } else { None };
        let bytes = match mapped {
            Some(mapping) => Bytes::Mapped(mapping),
            None => {
                buffer.clear();
                // one more byte, to see whether it grew; files of proc(5) have no length before they are read
                let most = if before.len == 0 { max_size } else { before.len };
                (&mut file).take(most.saturating_add(1)).read_to_end(buffer).map_err(unreadable)?;
                if buffer.len() as u64 > max_size {
                    return Err(Note::new(Code::InputTooLarge, format!("more than {max_size} bytes")));
                }
                Bytes::Read(buffer)
            }
        };
        let content = Self { bytes, file, before };
        if content.bytes().is_empty() { Err(Note::new(Code::InputEmpty, "0 bytes")) } else { Ok(content) }
    }

    /// The bytes. Of a mapped file that another process writes to they may differ from one look to the next.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Read(bytes) => bytes,
            Bytes::Mapped(mapping) => mapping.bytes(),
        }
    }

    /// Whether the file was written to since it was opened. Ask when done with the bytes: if it was, nothing concluded from them holds.
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
