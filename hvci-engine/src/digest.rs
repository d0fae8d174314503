//! Digest algorithms and values: vocabulary only, the computing is in [`crate::crypto`].

use alloc::{
    format,
    string::{String, ToString},
    vec,
};
use core::fmt;

use serde::{Deserialize, Serialize};

/// A digest algorithm that signatures of images are made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DigestAlg {
    /// 16 bytes; broken, still verified, graded weak.
    Md5,
    /// 20 bytes; broken for collisions, still verified, graded weak.
    Sha1,
    /// 28 bytes; Linux modules only.
    Sha224,
    /// 32 bytes.
    Sha256,
    /// 48 bytes.
    Sha384,
    /// 64 bytes.
    Sha512,
    /// 32 bytes; Linux modules only.
    Sha3_256,
    /// 48 bytes; Linux modules only.
    Sha3_384,
    /// 64 bytes; Linux modules only.
    Sha3_512,
}

impl DigestAlg {
    /// Every algorithm, weakest first.
    pub const ALL: [Self; 9] =
        [Self::Md5, Self::Sha1, Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512, Self::Sha3_256, Self::Sha3_384, Self::Sha3_512];

    /// Length of a value in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an algorithm is no collection")]
    pub const fn len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha224 => 28,
            Self::Sha256 | Self::Sha3_256 => 32,
            Self::Sha384 | Self::Sha3_384 => 48,
            Self::Sha512 | Self::Sha3_512 => 64,
        }
    }

    /// The name in reports: `sha256`, `sha3-256`, …
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Sha3_256 => "sha3-256",
            Self::Sha3_384 => "sha3-384",
            Self::Sha3_512 => "sha3-512",
        }
    }

    /// The algorithm called `name` in reports.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }
}

impl fmt::Display for DigestAlg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A digest value with its algorithm. Written `sha256:9f86d0…`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    alg: DigestAlg,
    bytes: [u8; 64],
}

impl Digest {
    /// The value `bytes` of `alg`; `None` when the length is not the algorithm's.
    pub fn new(alg: DigestAlg, bytes: &[u8]) -> Option<Self> {
        let mut value = [0; 64];
        value.get_mut(..alg.len())?.copy_from_slice(Some(bytes).filter(|b| b.len() == alg.len())?);
        Some(Self { alg, bytes: value })
    }

    /// Which algorithm made it.
    pub const fn alg(&self) -> DigestAlg {
        self.alg
    }

    /// The value, [`DigestAlg::len`] bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.alg.len()).unwrap_or_default()
    }

    /// The value in lower-case hexadecimal, without the algorithm.
    pub fn hex(&self) -> String {
        let bytes = self.as_bytes();
        let mut text = vec![0; bytes.len().saturating_mul(2)];
        // cannot fail: the length fits, and hexadecimal digits are text
        hex::encode_to_slice(bytes, &mut text).map_or_else(|_| String::new(), |()| String::from_utf8(text).unwrap_or_default())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.alg, self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(d: Digest) -> Self {
        d.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.split_once(':')
            .and_then(|(alg, value)| Self::new(DigestAlg::from_name(alg)?, &hex::decode(value).ok()?))
            .ok_or_else(|| format!("{text:?} is no digest: expected ALGORITHM:HEX, for example sha256:e3b0…"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_lengths_are_checked() {
        for alg in DigestAlg::ALL {
            let d = Digest::new(alg, &vec![0xA5; alg.len()]).unwrap();
            assert_eq!(Digest::try_from(d.to_string()), Ok(d));
            assert_eq!(Digest::new(alg, &vec![0; alg.len() + 1]), None);
        }
        assert!(Digest::try_from("sha256:abcd".to_owned()).is_err());
    }
}
