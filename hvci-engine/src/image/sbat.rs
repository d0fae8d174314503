//! SBAT, revocation by generation (rhboot/shim, `SBAT.md`): the `.sbat` section of an image and the level that shim keeps in `SbatLevel`.
//!
//! ```text
//! section   name,generation,vendor,package,version,url    one component a line
//! level     sbat,1,2025021800                             then name,generation of each component that has one
//! ```
//!
//! Stricter than shim, which reads a generation with `atoi` (what is no number is 0, 65541 may be 5): refuses generations that are no number,
//! other numbers of columns, a component twice, NUL and CR within the text, and anything that is not ASCII.

use crate::{
    facts::SbatComponent,
    finding::{Code, Note},
};

/// The columns of a section's line.
const COLUMNS: usize = 6;
/// More components than any image has.
const MAX_COMPONENTS: usize = 256;

/// The least generations that may start: what SbatLevel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SbatLevel {
    /// `YYYYMMDDNN`; a level is replaced by a later one only.
    pub date: u64,
    /// The least generation of each component; of `sbat` itself first.
    pub components: Vec<SbatComponent>,
}

impl SbatLevel {
    /// Reads the variable's value.
    ///
    /// # Errors
    /// [`Code::BootSbatMalformed`].
    pub fn read(data: &[u8]) -> Result<Self, Note> {
        let mut components = Vec::new();
        let mut date = None;
        for (number, line) in lines(data)?.into_iter().enumerate() {
            let wrong = || malformed(format!("line {} of the level is {line:?}", number.saturating_add(1)));
            let fields: Vec<&str> = line.split(',').collect();
            let (name, generation) = match (number, fields.as_slice()) {
                (0, ["sbat", generation, stamp]) if stamp.len() == 10 => {
                    date = Some(self::number(stamp).ok_or_else(wrong)?);
                    ("sbat", *generation)
                }
                (1.., [name, generation]) => (*name, *generation),
                _ => return Err(wrong()),
            };
            add(&mut components, name, generation).map_err(|problem| malformed(format!("{problem} in {line:?}")))?;
        }
        let date = date.ok_or_else(|| malformed("the level is empty".to_owned()))?;
        Ok(Self { date, components })
    }
}

/// Reads the content of an `.sbat` section.
///
/// # Errors
/// [`Code::BootSbatMalformed`].
pub(super) fn section(data: &[u8]) -> Result<Vec<SbatComponent>, Note> {
    let mut components = Vec::new();
    for line in lines(data)? {
        let fields: Vec<&str> = line.split(',').collect();
        let [name, generation, ..] = fields.as_slice() else {
            return Err(malformed(format!("a line is {line:?}")));
        };
        if fields.len() != COLUMNS {
            return Err(malformed(format!("{} columns, not {COLUMNS}, in {line:?}", fields.len())));
        }
        add(&mut components, name, generation).map_err(|problem| malformed(format!("{problem} in {line:?}")))?;
    }
    if components.first().is_none_or(|first| first.name != "sbat") {
        return Err(malformed("the first component is not sbat".to_owned()));
    }
    Ok(components)
}

/// Lines of text that zeros may follow; the last one may end without a newline.
fn lines(data: &[u8]) -> Result<Vec<&str>, Note> {
    let end = data.iter().rposition(|b| *b != 0).map_or(0, |last| last.saturating_add(1));
    let text = data.get(..end).unwrap_or_default();
    if let Some(odd) = text.iter().find(|b| !(b' '..=b'~').contains(*b) && **b != b'\n') {
        return Err(malformed(format!("byte {odd:#04x} is no text")));
    }
    let text = core::str::from_utf8(text).map_err(|_| malformed("it is no text".to_owned()))?;
    let lines: Vec<&str> = text.strip_suffix('\n').unwrap_or(text).split('\n').collect();
    if lines.len() > MAX_COMPONENTS {
        return Err(malformed(format!("more than {MAX_COMPONENTS} lines")));
    }
    Ok(lines)
}

fn add(components: &mut Vec<SbatComponent>, name: &str, generation: &str) -> Result<(), &'static str> {
    let generation = number(generation).and_then(|n| u32::try_from(n).ok()).ok_or("no generation")?;
    if name.is_empty() {
        return Err("no component");
    }
    if components.iter().any(|known| known.name == name) {
        return Err("a component twice");
    }
    components.push(SbatComponent { name: name.to_owned(), generation });
    Ok(())
}

/// Decimal digits without a sign or zeros before them.
fn number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok())?
}

fn malformed(detail: String) -> Note {
    Note::new(Code::BootSbatMalformed, detail)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEVEL: &[u8] = b"sbat,1,2025021800\nshim,4\ngrub,5\n";
    const SECTION: &[u8] = b"sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n\
        grub,5,Free Software Foundation,grub,2.06,https://www.gnu.org/software/grub/\n";

    fn of(list: &[SbatComponent]) -> Vec<(&str, u32)> {
        list.iter().map(|c| (c.name.as_str(), c.generation)).collect()
    }

    #[test]
    fn what_shim_writes_is_read() {
        let level = SbatLevel::read(LEVEL).unwrap();
        assert_eq!((level.date, of(&level.components)), (2_025_021_800, vec![("sbat", 1), ("shim", 4), ("grub", 5)]));
        assert_eq!(SbatLevel::read(&LEVEL[..LEVEL.len() - 1]).unwrap(), level, "without the last newline");
        let padded = [SECTION, &[0; 300]].concat();
        assert_eq!(of(&section(&padded).unwrap()), [("sbat", 1), ("grub", 5)]);
    }

    #[test]
    fn what_atoi_would_take_is_refused() {
        for bad in ["abc", "", "-5", "+5", "5x", " 5", "05", "4294967301", "18446744073709551617"] {
            let text = format!("sbat,1,v,p,1,u\ngrub,{bad},v,p,1,u\n");
            assert!(section(text.as_bytes()).is_err(), "{bad:?}");
            assert!(SbatLevel::read(format!("sbat,1,2025021800\ngrub,{bad}\n").as_bytes()).is_err(), "{bad:?}");
        }
        assert_eq!(section(b"sbat,1,v,p,1,u\ngrub,65541,v,p,1,u\n").unwrap()[1].generation, 65_541, "not 5");
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in [
            &b""[..],
            b"\n",
            b"sbat,1,v,p,1\n",
            b"sbat,1,v,p,1,u,more\n",
            b"grub,5,v,p,1,u\n",
            b"sbat,1,v,p,1,u\r\n",
            b"sbat,1,v,p,1,u\n\ngrub,5,v,p,1,u\n",
            b"sbat,1,v,p,1,u\0grub,5,v,p,1,u\n",
            b"sbat,1,v,p,1,u\n,5,v,p,1,u\n",
            b"sbat,1,v,p,1,u\ngrub,5,v,p,1,u\ngrub,4,v,p,1,u\n",
            b"\xEF\xBB\xBFsbat,1,v,p,1,u\n",
        ] {
            assert!(section(bad).is_err(), "{:?}", bad.escape_ascii().to_string());
        }
        for bad in
            [&b""[..], b"sbat,1\n", b"sbat,1,202502180\n", b"shim,4\n", b"sbat,1,2025021800\nshim\n", b"sbat,1,2025021800\nshim,4,5\n"]
        {
            assert!(SbatLevel::read(bad).is_err(), "{:?}", bad.escape_ascii().to_string());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(data in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = (SbatLevel::read(&data), section(&data));
        }

        #[test]
        fn a_changed_byte_never_lowers_a_level(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut data = LEVEL.to_vec();
            let at = at.index(data.len());
            data[at] = byte;
            if let Ok(level) = SbatLevel::read(&data) {
                prop_assert_eq!(level.components.len(), 3);
            }
        }
    }
}
