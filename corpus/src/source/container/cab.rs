//! Cabinets ([MS-CAB]): members share a folder's one compressed stream, which is read once from its start.
//!
//! The `cab` crate unpacks a folder anew for each of its members (quadratic) and indexes out of bounds for members that claim to start
//! behind the folder's end. So the directory is read here, and the crate sees each folder as a cabinet with one member, the whole stream.

use std::io::{self, Cursor, Read, Seek, SeekFrom};

use hvci_engine::bytes::{index, le16, le32, slice};

use super::{Fault, Kind, Place, Visit, escape};
use crate::source::kind::Format;

const PREVIOUS: u16 = 1;
const NEXT: u16 = 2;
const RESERVE: u16 = 4;
/// CFFILE.iFolder from here: the member continues from or into another cabinet of a set.
const FIRST_SPANNING: u16 = 0xfffd;

/// A CFFOLDER: coffCabStart, cCFData, typeCompress.
#[derive(Clone, Copy)]
struct Folder {
    start: u32,
    blocks: u16,
    compression: u16,
}

/// A CFFILE: cbFile, uoffFolderStart, iFolder, szName.
struct File<'a> {
    size: u32,
    start: u32,
    folder: u16,
    name: &'a [u8],
}

pub(super) fn visit(visit: &mut Visit<'_>, data: &[u8], place: &Place) -> Result<(), Fault> {
    let cut = || Fault::Broken("its directory is cut off".to_owned());
    let (folders, reserved) = folders(data).ok_or_else(cut)?;
    let mut files = Vec::new();
    let mut at = le32(data, 16).map(index).ok_or_else(cut)?;
    for _ in 0..le16(data, 28).ok_or_else(cut)? {
        let Some((file, next)) = file(data, at) else { break };
        files.push(file);
        at = next;
    }
    let missing = usize::from(le16(data, 28).ok_or_else(cut)?).saturating_sub(files.len());
    files.sort_by_key(|f| (f.folder, f.start));
    for group in files.chunk_by(|a, b| a.folder == b.folder) {
        let Some(folder) = group.first().and_then(|file| folders.get(usize::from(file.folder))) else {
            for file in group {
                let spanning = file.folder >= FIRST_SPANNING;
                let detail = if spanning { "continues in another cabinet of its set" } else { "lies in no folder" };
                visit.fault(&place.member(file.name), Kind::Other, detail.to_owned())?;
            }
            continue;
        };
        match members(visit, data, place, *folder, reserved, group) {
            Ok(()) => {}
            // the next folder has its own stream
            Err(Fault::Broken(detail)) => visit.fault(&place.path, Kind::Package(Format::Cab), detail)?,
            Err(ended) => return Err(ended),
        }
    }
    if missing > 0 { Err(Fault::Broken(format!("{missing} members are missing from its directory"))) } else { Ok(()) }
}

/// The folders, and the bytes reserved in each CFDATA.
fn folders(data: &[u8]) -> Option<(Vec<Folder>, u8)> {
    let flags = le16(data, 30)?;
    let mut at = 36_usize;
    let (mut per_folder, mut per_block) = (0, 0);
    if flags & RESERVE != 0 {
        let [a, b, folder, block] = slice(data, at, 4)? else { return None };
        at = 40 + usize::from(u16::from_le_bytes([*a, *b]));
        (per_folder, per_block) = (usize::from(*folder), *block);
    }
    for flag in [PREVIOUS, PREVIOUS, NEXT, NEXT] {
        if flags & flag != 0 {
            at += data.get(at..)?.iter().position(|b| *b == 0)? + 1;
        }
    }
    let count = le16(data, 26)?;
    let folder = |n: u16| {
        let at = at + usize::from(n) * (8 + per_folder);
        Some(Folder { start: le32(data, at)?, blocks: le16(data, at + 4)?, compression: le16(data, at + 6)? })
    };
    Some(((0..count).map_while(folder).collect(), per_block))
}

/// The CFFILE at `at`, and where the next one stands.
fn file(data: &[u8], at: usize) -> Option<(File<'_>, usize)> {
    let name_at = at.checked_add(16)?;
    let name = data.get(name_at..)?.split(|b| *b == 0).next()?;
    let file = File { size: le32(data, at)?, start: le32(data, at + 4)?, folder: le16(data, at + 8)?, name };
    Some((file, name_at + name.len() + 1))
}

/// The members of one folder, in the order of where they start.
fn members(visit: &mut Visit<'_>, data: &[u8], place: &Place, folder: Folder, reserved: u8, files: &[File<'_>]) -> Result<(), Fault> {
    if folder.blocks == 0 {
        return Err(Fault::Broken("its folder has no data".to_owned()));
    }
    let directory = one_member(folder, reserved).ok_or_else(|| Fault::Broken("its folder starts too far".to_owned()))?;
    let mut cabinet = cab::Cabinet::new(Joined { directory: &directory, data, at: 0 })?;
    let mut stream = visit.metered(cabinet.read_file("x")?);
    let mut at = 0_u64;
    for file in files {
        // installers give files of the same content the same place ("smart cabbing"): read it again
        if u64::from(file.start) < at {
            drop(stream);
            stream = visit.metered(cabinet.read_file("x")?);
            at = 0;
        }
        let gap = u64::from(file.start) - at;
        if io::copy(&mut stream.by_ref().take(gap), &mut io::sink())? < gap {
            return Err(Fault::Broken(format!("{}: starts behind its folder's end", escape(file.name))));
        }
        let mut content = stream.by_ref().take(u64::from(file.size));
        visit.stream(place, file.name, Some(u64::from(file.size)), &mut content)?;
        at = u64::from(file.start) + u64::from(file.size) - content.limit();
    }
    Ok(())
}

/// A directory that names the whole stream of one folder as the member `x`, for the bytes of the cabinet to follow.
fn one_member(folder: Folder, reserved: u8) -> Option<Vec<u8>> {
    const LEN: u32 = 36 + 4 + 8 + 16 + 2;
    let mut out = Vec::with_capacity(index(LEN));
    out.extend_from_slice(b"MSCF\0\0\0\0\0\0\0\0\0\0\0\0");
    out.extend_from_slice(&48_u32.to_le_bytes());
    out.extend_from_slice(&[0, 0, 0, 0, 3, 1, 1, 0, 1, 0]);
    out.extend_from_slice(&RESERVE.to_le_bytes());
    out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, reserved]);
    out.extend_from_slice(&folder.start.checked_add(LEN)?.to_le_bytes());
    out.extend_from_slice(&folder.blocks.to_le_bytes());
    out.extend_from_slice(&folder.compression.to_le_bytes());
    out.extend_from_slice(&u32::MAX.to_le_bytes());
    out.extend_from_slice(&[0; 12]);
    out.extend_from_slice(b"x\0");
    Some(out)
}

/// One byte string behind the other, seekable.
struct Joined<'a> {
    directory: &'a [u8],
    data: &'a [u8],
    at: u64,
}

impl Read for Joined<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let split = self.directory.len() as u64;
        let (part, from) = if self.at < split { (self.directory, self.at) } else { (self.data, self.at - split) };
        let mut cursor = Cursor::new(part);
        cursor.set_position(from);
        let n = cursor.read(buf)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Joined<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let end = (self.directory.len() + self.data.len()) as u64;
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => end.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
