//! Where images come from: paths are walked, files read or mapped, packages looked into.
//!
//! ```text
//! paths ─walk─► Found ─content─► bytes ─kind─► image | package ─container─► Member …
//! ```
//!
//! Everything read here is untrusted, names included. Nothing that is wrong with one file stops the others: it becomes a
//! [`Note`](hvci_engine::finding::Note) on that file. Nothing is ever written.

pub mod container;
pub mod content;
pub mod kind;
mod map;
pub mod walk;

/// A name out of a directory or package as it may be shown: control characters, bidirectional overrides and bytes that are no UTF-8
/// are escaped (`\x1b`, `\u{202e}`), everything else stands as it is. For display only, never to open or write something.
pub fn escape(name: &[u8]) -> String {
    // nearly every name
    if let Ok(plain) = std::str::from_utf8(name)
        && plain.bytes().all(|b| matches!(b, b' '..=b'~'))
    {
        return plain.to_owned();
    }
    let mut shown = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\0'..='\x1f' | '\x7f'..='\u{9f}' => shown.push_str(&format!("\\x{:02x}", u32::from(c))),
                // invisible or reordering: line and paragraph separators, marks, embeddings, overrides, isolates, byte order mark
                '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                    shown.extend(c.escape_unicode());
                }
                c => shown.push(c),
            }
        }
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_move_the_cursor_or_reorder_text() {
        assert_eq!(escape(b"a/\x1b[2J\n..\xff\xc3"), "a/\\x1b[2J\\x0a..\\xff\\xc3");
        assert_eq!(escape("sys.\u{202e}exe é ☃".as_bytes()), "sys.\\u{202e}exe é ☃");
    }
}
