//! Secrets as the engine has them for the length of one operation: wiped when they go, and nothing to see in `Debug`.

use core::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The longest key.
pub const MAX_KEY: usize = 32;

/// A key of 16 or 32 bytes.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key {
    bytes: [u8; MAX_KEY],
    len: usize,
}

impl Key {
    /// A key with these bytes; `None` for more than [`MAX_KEY`].
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut key = Self { bytes: [0; MAX_KEY], len: bytes.len() };
        key.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(key)
    }

    /// What it is.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl From<[u8; 16]> for Key {
    fn from(mut bytes: [u8; 16]) -> Self {
        let mut key = Self { bytes: [0; MAX_KEY], len: 16 };
        key.bytes.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        bytes.zeroize();
        key
    }
}

impl From<[u8; 32]> for Key {
    fn from(mut bytes: [u8; 32]) -> Self {
        let key = Self { bytes, len: 32 };
        bytes.zeroize();
        key
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.len)
    }
}

/// Bytes of a credential in its frame.
pub(super) const RECORD: usize = 128;

/// What a credential is made of, as it stands in its frame.
///
/// | bytes | of a logon | of everything else |
/// |---|---|---|
/// | 0..16 | NT hash | the key, 16 or 32 bytes |
/// | 16..32, 32..64 | AES-128 and AES-256 with SHA-1 (encryption types 17, 18) | |
/// | 64..80, 80..112 | AES-128 and AES-256 with SHA-2 (encryption types 19, 20) | |
pub(super) struct Record(pub(super) Zeroizing<[u8; RECORD]>);

impl Record {
    pub(super) fn empty() -> Self {
        Self(Zeroizing::new([0; RECORD]))
    }

    /// With this key first.
    pub(super) fn of(key: &Key) -> Self {
        let mut record = Self::empty();
        record.put(0, key);
        record
    }

    /// Puts a key at its place.
    pub(super) fn put(&mut self, at: usize, key: &Key) {
        self.0.iter_mut().skip(at).zip(key.as_bytes()).for_each(|(to, from)| *to = *from);
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Record")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_to_be_seen_of_a_secret() {
        let key = Key::from([0xA5; 32]);
        let record = Record::of(&key);
        for text in [format!("{key:?} {record:?}"), format!("{:#?}", (key.clone(), &record))] {
            assert!(!text.contains("165") && !text.to_lowercase().contains("a5"), "{text}");
        }
        assert!(record.0.starts_with(&[0xA5; 32]) && Key::new(&[0; 33]).is_none());
    }
}
