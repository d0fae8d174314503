//! Debian packages: an `ar` archive whose first member is `debian-binary` (deb(5)).
//!
//! A member is a 60-byte header of text fields and its bytes, padded to an even offset. Long names do not occur in packages: the GNU and
//! BSD forms of `ar` for them are not read.

use super::{Fault, Place, Visit, escape};

const MAGIC: usize = 8;
const HEADER: usize = 60;

pub(super) fn visit(visit: &mut Visit<'_>, data: &[u8], place: &Place) -> Result<(), Fault> {
    let mut rest = data.get(MAGIC..).unwrap_or_default();
    while !rest.is_empty() {
        let Some((header, body)) = rest.split_at_checked(HEADER).filter(|(h, _)| h.ends_with(b"`\n")) else {
            return Err(Fault::Broken(format!("no member header at offset {}", data.len() - rest.len())));
        };
        let field = header[..16].trim_ascii_end();
        let Some(size) = number(&header[48..58]) else {
            return Err(Fault::Broken(format!("{}: its length is no number", escape(field))));
        };
        let whole = size <= body.len();
        let (member, behind) = body.split_at(size.min(body.len()));
        rest = if size % 2 == 1 { behind.get(1..).unwrap_or_default() } else { behind };
        visit.slice(place, field.strip_suffix(b"/").unwrap_or(field), member)?;
        if !whole {
            return Err(Fault::Broken(format!("{}: ends after {} of {size} bytes", escape(field), member.len())));
        }
    }
    Ok(())
}

fn number(field: &[u8]) -> Option<usize> {
    str::from_utf8(field.trim_ascii()).ok()?.parse().ok()
}
