//! `.modinfo`: `key=value` strings, each ended by a zero byte (Linux `include/linux/moduleparam.h`, `__MODULE_INFO`).

use core::ffi::CStr;

/// What a module says of itself. A key that stands twice counts where it stands first, as for the kernel (`get_modinfo`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModInfo<'a> {
    bytes: &'a [u8],
}

impl<'a> ModInfo<'a> {
    /// Over the bytes of a `.modinfo` section.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// First value of `key`, as it stands.
    pub fn get(&self, key: &str) -> Option<&'a [u8]> {
        self.strings().find_map(|entry| entry.strip_prefix(key.as_bytes())?.strip_prefix(b"="))
    }

    /// First value of `key` as text; what is not text becomes U+FFFD, what is longer than 256 bytes is cut off.
    pub fn text(&self, key: &str) -> Option<String> {
        self.get(key).map(text)
    }

    /// Name that the module registers under.
    pub fn name(&self) -> Option<String> {
        self.text("name")
    }

    /// `MODULE_VERSION`; most modules have none.
    pub fn version(&self) -> Option<String> {
        self.text("version")
    }

    /// Kernel release and options that it was built for.
    pub fn vermagic(&self) -> Option<String> {
        self.text("vermagic")
    }

    /// `MODULE_LICENSE`.
    pub fn license(&self) -> Option<String> {
        self.text("license")
    }

    /// [`Self::version`] and [`Self::vermagic`] in one pass.
    pub(super) fn version_and_vermagic(&self) -> (Option<String>, Option<String>) {
        let (mut version, mut vermagic) = (None, None);
        for string in self.strings() {
            if let Some(value) = string.strip_prefix(b"version=") {
                version = version.or(Some(value));
            } else if let Some(value) = string.strip_prefix(b"vermagic=") {
                vermagic = vermagic.or(Some(value));
            }
        }
        (version.map(text), vermagic.map(text))
    }

    /// Every `key=value`, in order; strings without `=` are passed over.
    pub fn entries(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.strings().filter_map(|entry| {
            let at = entry.iter().position(|b| *b == b'=')?;
            let (key, value) = entry.split_at_checked(at)?;
            Some((key, value.get(1..)?))
        })
    }

    /// What stands between zero bytes. Aliases make it long, so that the zeros are looked for many bytes at a time.
    fn strings(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.bytes;
        core::iter::from_fn(move || {
            let string = match CStr::from_bytes_until_nul(rest) {
                Ok(string) => string.to_bytes(),
                Err(_) if rest.is_empty() => return None,
                Err(_) => rest,
            };
            rest = rest.get(string.len().saturating_add(1)..).unwrap_or_default();
            Some(string)
        })
    }
}

/// What is not text becomes U+FFFD, what is longer than 256 bytes is cut off.
fn text(value: &[u8]) -> String {
    let value = value.get(..MAX_TEXT).unwrap_or(value);
    core::str::from_utf8(value).map_or_else(|_| String::from_utf8_lossy(value).into_owned(), str::to_owned)
}

const MAX_TEXT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_of_a_key_counts() {
        let info = ModInfo::new(b"\0license=GPL\0noise\0name=a\0name=b\0depends=\0version=1=2");
        assert_eq!(info.license().as_deref(), Some("GPL"));
        assert_eq!(info.name().as_deref(), Some("a"));
        assert_eq!(info.get("depends"), Some(&b""[..]));
        assert_eq!(info.version().as_deref(), Some("1=2"));
        assert_eq!(info.vermagic(), None);
        assert_eq!(info.entries().count(), 5);
        assert_eq!(info.get("licens"), None);
        for text in
            [&b"version=1\0version=2\0vermagic=6.1 SMP\0vermagic=x"[..], b"vermagic=\xff\0version=", b"version", b"aversion=1\0", b""]
        {
            let info = ModInfo::new(text);
            assert_eq!(info.version_and_vermagic(), (info.version(), info.vermagic()), "{text:?}");
        }
    }
}
