//! Zip archives (PKWARE APPNOTE 6.3): wheels, NuGet packages.
//!
//! The central directory decides what the members are, as for every installer. Where it is missing or broken, the local headers are read
//! from the start for as long as they hold. Encrypted members and methods other than *stored* and *deflate* are said, not read.

use std::io::{Cursor, Read};

use zip::{
    ZipReadOptions,
    read::{Config, read_zipfile_from_stream},
    result::ZipError,
    unstable::read::ZipIterable,
};

use super::{Fault, Kind, Place, Visit, say};

pub(super) fn visit(visit: &mut Visit<'_>, data: &[u8], place: &Place) -> Result<(), Fault> {
    // unlike `ZipArchive`: members of the same name are all seen, and nothing is allocated for members that are only claimed
    let mut archive = match ZipIterable::try_new(Cursor::new(data), Config::default()) {
        Ok(archive) => archive,
        Err(err) => return local_headers(visit, data, place, &err),
    };
    for entry in archive.files().map_err(|err| Fault::Broken(say(&err)))? {
        let entry = entry.map_err(|err| Fault::Broken(say(&err)))?;
        if entry.is_dir() {
            continue;
        }
        let (name, size, encrypted) = (entry.name_raw().to_vec(), entry.size(), entry.encrypted());
        let mut body = Cursor::new(data);
        let read = match entry.with_reader(&mut body, ZipReadOptions::new()) {
            _ if encrypted => Err(Fault::Broken("encrypted".to_owned())),
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
