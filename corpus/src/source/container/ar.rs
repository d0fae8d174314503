//! `ar` archives, the outer layer of Debian packages: `deb(5)`, `ar(5)`.
//!
//! A member is a 60-byte header of text fields and its bytes, padded to an even offset. Both long-name forms are read (GNU `//` table,
//! BSD `#1/n`).

use super::{Fault, Place, Visit};

const MAGIC: usize = 8;
const HEADER: usize = 60;

pub(super) fn visit(visit: &mut Visit<'_>, data: &[u8], place: &Place) -> Result<(), Fault> {
    let mut rest = data.get(MAGIC..).unwrap_or_default();
    let mut long_names: &[u8] = &[];
    while !rest.is_empty() {
        let Some((header, body)) = rest.split_at_checked(HEADER).filter(|(h, _)| h.ends_with(b"`\n")) else {
            return Err(Fault::Broken(format!("no member header at offset {}", data.len() - rest.len())));
        };
        let field = header[..16].trim_ascii_end();
        let Some(size) = number(&header[48..58]) else {
            return Err(Fault::Broken(format!("{}: its length is no number", super::escape(field))));
        };
        let whole = size <= body.len();
        let (member, behind) = body.split_at(size.min(body.len()));
        rest = if size % 2 == 1 { behind.get(1..).unwrap_or_default() } else { behind };
        match (field, field.strip_prefix(b"#1/").and_then(number), field.strip_prefix(b"/").and_then(number)) {
            (b"//", ..) => long_names = member,
            // symbol tables
            (b"/" | b"/SYM64/", ..) => {}
            (_, Some(len), _) => {
                let (name, member) = member.split_at(len.min(member.len()));
                visit.slice(place, name.trim_ascii_end(), member)?;
            }
            (_, _, Some(at)) => {
                let name = long_names.get(at..).unwrap_or_default().split(|b| *b == b'\n').next().unwrap_or_default();
                visit.slice(place, name.strip_suffix(b"/").unwrap_or(name), member)?;
            }
            _ => visit.slice(place, field.strip_suffix(b"/").unwrap_or(field), member)?,
        }
        if !whole {
            return Err(Fault::Broken(format!("{}: ends after {} of {size} bytes", super::escape(field), member.len())));
        }
    }
    Ok(())
}

fn number(field: &[u8]) -> Option<usize> {
    str::from_utf8(field.trim_ascii()).ok()?.parse().ok()
}
