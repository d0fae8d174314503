//! Names in images, for people.

use std::borrow::Cow;

/// A name as text: escaped where it is not printable. Nearly every one stands as it is.
pub(super) fn text_of(name: &[u8]) -> Cow<'_, str> {
    match core::str::from_utf8(name) {
        Ok(text) if name.iter().copied().all(is_plain) => Cow::Borrowed(text),
        _ => Cow::Owned(name.escape_ascii().to_string()),
    }
}

/// What nearly every name is of; escaping leaves it as it is.
pub(super) const fn is_plain(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_not_escaped_needs_it_not(name in prop::collection::vec(prop_oneof![any::<u8>(), 0x20..=0x7E_u8], 0..12)) {
            prop_assert_eq!(text_of(&name), name.escape_ascii().to_string());
        }
    }
}
