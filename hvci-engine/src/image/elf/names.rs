//! Names of sections (gABI chapter 4, "String Table").
//!
//! Trusts nothing: an offset may be any number, a name need not end, and may be of any bytes.

use std::borrow::Cow;

use crate::image::shown::{is_plain, text_of};

/// How much of a name is shown: 65,535 sections can share one name of megabytes.
const MAX_SHOWN: usize = 64;

/// The bytes of the section that holds section names.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Names<'a> {
    bytes: &'a [u8],
    /// The same as text, if every name in it can be shown as it stands; nearly always.
    plain: Option<&'a str>,
}

impl<'a> Names<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        // to the end whatever comes, because then many bytes are looked at at once
        let all_plain = bytes.iter().fold(true, |all, b| all & (*b == 0 || is_plain(*b)));
        Self { bytes, plain: core::str::from_utf8(bytes).ok().filter(|_| all_plain) }
    }

    /// Whether the table ends as it must.
    pub(super) fn is_terminated(&self) -> bool {
        self.bytes.last() == Some(&0)
    }

    /// Whether the name at `at` is `name`.
    #[inline]
    pub(super) fn is_called(&self, at: usize, name: &str) -> bool {
        is_called(self.bytes, at, name)
    }

    /// Whether the name at `at` begins with `start`, which has no zero byte.
    #[inline]
    pub(super) fn begins(&self, at: usize, start: &[u8]) -> bool {
        self.bytes.get(at..).is_some_and(|name| name.starts_with(start))
    }

    /// The name at `at` for people: escaped where it is not printable, cut off at 64 bytes.
    pub(super) fn shown(&self, at: usize) -> Cow<'a, str> {
        match self.plain.and_then(|text| text.get(at..)) {
            Some(rest) => {
                let longest = rest.get(..MAX_SHOWN).unwrap_or(rest);
                let end = longest.bytes().position(|b| b == 0);
                Cow::Borrowed(end.and_then(|end| longest.get(..end)).unwrap_or(longest))
            }
            None => shown(self.bytes, at),
        }
    }
}

/// Whether the name at `at` is `name`, without looking at more of the table of names than that.
#[inline]
pub(super) fn is_called(names: &[u8], at: usize, name: &str) -> bool {
    let rest = names.get(at..).and_then(|rest| rest.strip_prefix(name.as_bytes()));
    rest.is_some_and(|rest| rest.first() == Some(&0))
}

/// Shows any name of any table.
fn shown(names: &[u8], at: usize) -> Cow<'_, str> {
    let rest = names.get(at..).unwrap_or_default();
    let longest = rest.get(..MAX_SHOWN).unwrap_or(rest);
    let end = longest.iter().position(|b| *b == 0);
    let shown = end.and_then(|end| longest.get(..end)).unwrap_or(longest);
    text_of(shown)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_tables_are_known_as_such() {
        for (table, plain) in
            [(&b"\0.text\0__ex_table\0"[..], true), (b"", true), (b"\0a b\0", false), (b"\0\xc3\xa9\0", false), (b"\x1b", false)]
        {
            assert_eq!(Names::new(table).plain.is_some(), plain, "{table:?}");
        }
    }

    proptest! {
        #[test]
        fn names_of_plain_tables_are_shown_as_any_other(
            mut table in proptest::collection::vec(prop_oneof![Just(0), Just(b'.'), b'a'..=b'z'], 0..200),
            other in proptest::option::of((any::<proptest::sample::Index>(), any::<u8>())),
        ) {
            if let Some((at, byte)) = other.filter(|_| !table.is_empty()) {
                let at = at.index(table.len());
                table.splice(at..=at, [byte]);
            }
            for at in (0..=table.len()).chain([usize::MAX]) {
                prop_assert_eq!(Names::new(&table).shown(at), shown(&table, at));
            }
        }
    }
}
