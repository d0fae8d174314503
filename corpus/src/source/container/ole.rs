//! Compound files ([MS-CFB]): Windows Installer packages, whose streams hold cabinets and executables.

use std::io::Cursor;

use super::{Fault, Kind, Place, Visit};

/// The signature over the package itself: SignedData, but no catalog.
const OWN_SIGNATURES: [&str; 2] = ["\u{5}DigitalSignature", "\u{5}MsiDigitalSignatureEx"];

pub(super) fn visit(visit: &mut Visit<'_>, data: &[u8], place: &Place) -> Result<(), Fault> {
    let mut file = cfb::CompoundFile::open(Cursor::new(data))?;
    let streams: Vec<_> = file.walk().filter(cfb::Entry::is_stream).map(|e| (e.path().to_path_buf(), e.len())).collect();
    for (path, size) in streams {
        if path.file_name().is_some_and(|n| OWN_SIGNATURES.iter().any(|own| n == *own)) {
            continue;
        }
        let name: String = path.to_string_lossy().trim_start_matches(['/', '\\']).chars().flat_map(installer_characters).collect();
        let read = match file.open_stream(&path) {
            Ok(stream) => {
                // streams may share their sectors
                let mut stream = visit.metered(stream);
                visit.stream(place, name.as_bytes(), Some(size), &mut stream)
            }
            Err(err) => Err(err.into()),
        };
        match read {
            Ok(()) => {}
            Err(Fault::Broken(detail)) => visit.fault(&place.member(name.as_bytes()), Kind::Other, detail)?,
            Err(ended) => return Err(ended),
        }
    }
    Ok(())
}

/// Windows Installer packs two characters of a stream's name into one code point from U+3800, and one into one from U+4800; U+4840 marks
/// tables (Wine `dlls/msi/table.c`, `mime2utf`).
fn installer_characters(c: char) -> impl Iterator<Item = char> {
    const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._";
    let digit = |n: u32| DIGITS.get((n & 0x3f) as usize).map(|b| char::from(*b));
    let pair = match u32::from(c) {
        n @ 0x3800..0x4800 => [digit(n), digit((n - 0x3800) >> 6)],
        n @ 0x4800..0x4840 => [digit(n), None],
        0x4840 => [Some('!'), None],
        _ => [Some(c), None],
    };
    pair.into_iter().flatten()
}
