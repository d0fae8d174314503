//! Zip archives (PKWARE APPNOTE 6.3): wheels, NuGet packages.
//!
//! The central directory decides what the members are, as for every installer. Where it is missing or broken, the local headers are read
//! from the start for as long as they hold. Encrypted members and methods other than *stored* and *deflate* are said, not read.

use std::io::{Cursor, Read};

use hvci_engine::finding::{Code, Note};
use zip::{ZipArchive, read::read_zipfile_from_stream, result::ZipError};

use super::{Fault, Kind, Member, Place, Visit, say};
use crate::source::kind::Format;

pub(super) fn visit(visit: &mut Visit<'_>, data: &[u8], place: &Place) -> Result<(), Fault> {
    let mut archive = match ZipArchive::new(Cursor::new(data)) {
        Ok(archive) => archive,
        Err(err) => return local_headers(visit, data, place, &err),
    };
    if archive.has_duplicate_names() {
        let note = Note::new(Code::InputContainer, "several members have the same name; only the last of them is read");
        let kind = Kind::Package(Format::Zip);
        visit.emit(Member { path: place.path.clone(), kind, bytes: Vec::new(), notes: vec![note] })?;
    }
    for index in 0..archive.len() {
        let outcome = match archive.by_index_data(index) {
            Ok(entry) if entry.is_dir() => continue,
            Ok(entry) if entry.encrypted() => Err((entry.name_raw().to_vec(), "encrypted".to_owned())),
            Ok(entry) => Ok((entry.name_raw().to_vec(), entry.size())),
            Err(err) => Err((index.to_string().into_bytes(), say(&err))),
        };
        let (name, size) = match outcome {
            Ok(member) => member,
            Err((name, detail)) => {
                visit.fault(&place.member(&name), Kind::Other, detail)?;
                continue;
            }
        };
        let read = match archive.by_index(index) {
            Ok(file) => {
                let mut stream = visit.metered(file);
                visit.stream(place, &name, Some(size), &mut stream)
            }
            Err(err) => Err(Fault::Broken(say(&err))),
        };
        match read {
            Ok(()) => {}
            // members stand by themselves: the next one may be whole
            Err(Fault::Broken(detail)) => visit.fault(&place.member(&name), Kind::Other, detail)?,
            Err(ended) => return Err(ended),
        }
    }
    Ok(())
}

fn local_headers(visit: &mut Visit<'_>, mut data: &[u8], place: &Place, why: &ZipError) -> Result<(), Fault> {
    while let Ok(Some(file)) = read_zipfile_from_stream(&mut data) {
        if file.is_dir() {
            continue;
        }
        let (name, size) = (file.name_raw().to_vec(), file.size());
        let mut stream = visit.metered(file);
        visit.stream(place, &name, Some(size), &mut stream)?;
        // read to its end, or the next header is not found
        std::io::copy(&mut stream.by_ref(), &mut std::io::sink())?;
    }
    Err(Fault::Broken(say(why)))
}
