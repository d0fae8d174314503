//! `tar` streams: POSIX.1-2017 `pax` (ustar and extended headers) and the GNU long names.
//!
//! The crate yields raw entries; long names are read here because its own reading of them has no bound. Refused: sparse members, and
//! extended headers whose `size` contradicts the header (parsers disagree about what follows: CVE-2025-62518).

use std::io::Read;

use tar::{Archive, Entry, EntryType, PaxExtensions};

use super::{Fault, Place, Visit};

/// Largest extended header or long name read.
const MAX_EXTENSION: u64 = 1 << 20;

pub(super) fn visit(visit: &mut Visit<'_>, stream: impl Read, place: &Place) -> Result<(), Fault> {
    let mut archive = Archive::new(stream);
    let mut name: Option<Vec<u8>> = None;
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let size = entry.size();
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let mut long = extension(&mut entry)?;
                long.truncate(long.iter().position(|b| *b == 0).unwrap_or(long.len()));
                name = Some(long);
            }
            EntryType::XHeader => {
                let bytes = extension(&mut entry)?;
                for record in PaxExtensions::new(&bytes) {
                    let record = record?;
                    match record.key_bytes() {
                        b"path" => name = Some(record.value_bytes().to_vec()),
                        b"size" => return Err(Fault::Broken("a member's size stands in an extended header".to_owned())),
                        key if key.starts_with(b"GNU.sparse") => return Err(Fault::Broken("sparse members are not read".to_owned())),
                        _ => {}
                    }
                }
            }
            EntryType::Regular | EntryType::Continuous => {
                let name = name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                if !name.ends_with(b"/") {
                    visit.stream(place, &name, Some(size), &mut entry)?;
                }
            }
            EntryType::GNUSparse => return Err(Fault::Broken("sparse members are not read".to_owned())),
            EntryType::GNULongLink | EntryType::XGlobalHeader => {}
            // directories, links, devices
            _ => name = None,
        }
    }
    Ok(())
}

fn extension(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, Fault> {
    let size = entry.size();
    if size > MAX_EXTENSION {
        return Err(Fault::Broken(format!("an extended header of {size} bytes")));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    Ok(bytes)
}
