//! The version resource (Windows' VS_VERSIONINFO, StringFileInfo, StringTable, String): its numbers, and a string by its key.
//!
//! Blocks within blocks, each with its own length. A length that is too great ends what can be read; no more than [`MAX_BLOCKS`] of one block's children are
//! looked at.

use crate::bytes;

/// Children of a block, and characters of a string, that are looked at.
const MAX_BLOCKS: usize = 64;
const MAX_STRING: usize = 256;

/// What a version resource says: the numbers of its `VS_FIXEDFILEINFO`, most significant first, and a string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionInfo {
    /// `dwFileVersionMS`, `dwFileVersionLS`.
    pub file: [u16; 4],
    /// `dwProductVersionMS`, `dwProductVersionLS`.
    pub product: [u16; 4],
    /// InternalName, in whichever language comes first.
    pub internal_name: Option<String>,
}

impl VersionInfo {
    /// The value of a VS_VERSIONINFO: behind three 16-bit fields and the key `VS_VERSION_INFO` in UTF-16, at a multiple of 4.
    pub(super) fn read(data: &[u8]) -> Option<Self> {
        const SIGNATURE: u32 = 0xFEEF_04BD;
        let fixed = data.get(40..)?;
        if bytes::le32(fixed, 0)? != SIGNATURE {
            return None;
        }
        // each 32-bit field holds two numbers, the more significant one in its upper half
        let four = |at: usize| -> Option<[u16; 4]> {
            let number = |n: usize| bytes::le16(fixed, at.checked_add(n)?);
            Some([number(2)?, number(0)?, number(6)?, number(4)?])
        };
        Some(Self { file: four(8)?, product: four(16)?, internal_name: string(data, "InternalName") })
    }
}

/// A string of a VS_VERSIONINFO: in the first StringTable of its StringFileInfo (Windows' VS_VERSIONINFO, VarFileInfo, StringTable, String).
fn string(data: &[u8], wanted: &str) -> Option<String> {
    let info = children(Block::read(data)?).find(|block| block.is("StringFileInfo"))?;
    let table = children(info).next()?;
    let string = children(table).find(|block| block.is(wanted))?;
    let units = string.value.chunks_exact(2).filter_map(|unit| bytes::le16(unit, 0)).take_while(|unit| *unit != 0);
    char::decode_utf16(units.take(MAX_STRING)).collect::<Result<String, _>>().ok()
}

/// A block of a version resource: its length, its value's, its type, a key in UTF-16 that a zero ends, value and children at multiples of 4.
#[derive(Clone, Copy)]
struct Block<'a> {
    key: &'a [u8],
    value: &'a [u8],
    rest: &'a [u8],
    /// With it, and what pads it.
    len: usize,
}

impl<'a> Block<'a> {
    fn read(data: &'a [u8]) -> Option<Self> {
        let len = usize::from(bytes::le16(data, 0)?);
        let (value_len, is_text) = (usize::from(bytes::le16(data, 2)?), bytes::le16(data, 4)? == 1);
        let block = data.get(..len)?;
        let body = block.get(6..)?;
        let end = body.chunks_exact(2).position(|unit| unit == [0, 0])?.checked_mul(2)?;
        let value_at = end.checked_add(8)?.checked_next_multiple_of(4)?;
        // a text's length is in characters
        let value_len = if is_text { value_len.checked_mul(2)? } else { value_len };
        let value_end = value_at.checked_add(value_len)?.min(len);
        let value = block.get(value_at.min(value_end)..value_end)?;
        let rest = block.get(value_end.checked_next_multiple_of(4)?..).unwrap_or_default();
        Some(Self { key: body.get(..end)?, value, rest, len: len.checked_next_multiple_of(4)? })
    }

    fn is(&self, key: &str) -> bool {
        self.key.chunks_exact(2).filter_map(|unit| bytes::le16(unit, 0)).eq(key.encode_utf16())
    }
}

fn children<'a>(block: Block<'a>) -> impl Iterator<Item = Block<'a>> {
    let mut rest = block.rest;
    core::iter::from_fn(move || {
        let child = Block::read(rest)?;
        rest = rest.get(child.len..).unwrap_or_default();
        Some(child)
    })
    .take(MAX_BLOCKS)
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// A block of a version resource.
    fn block(key: &str, value: &[u8], text: u16, children: &[u8]) -> Vec<u8> {
        let key: Vec<u8> = key.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        let mut bytes = [&[0; 6][..], &key].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(children);
        let len = u16::try_from(bytes.len()).unwrap();
        let value_len = u16::try_from(value.len()).unwrap() / (1 + text);
        bytes[..6].copy_from_slice(&[len.to_le_bytes(), value_len.to_le_bytes(), text.to_le_bytes()].concat());
        bytes
    }

    #[test]
    fn strings_of_the_version_resource_are_found_wherever_they_stand() {
        let text = |text: &str| text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let strings = [block("CompanyName", &text("X"), 1, &[]), block("InternalName", &text("boot.exe"), 1, &[])].concat();
        let info = block("StringFileInfo", &[], 1, &block("040904B0", &[], 1, &strings));
        let other = block("VarFileInfo", &[], 1, &block("Translation", &[9, 4, 0xB0, 4], 0, &[]));
        for children in [[&info[..], &other].concat(), [&other[..], &info].concat()] {
            let resource = block("VS_VERSION_INFO", &[7; 52], 0, &children);
            assert_eq!(string(&resource, "InternalName").as_deref(), Some("boot.exe"));
            assert_eq!(string(&resource, "Nothing"), None);
            // no prefix and no change of a length makes it read what is not there
            for end in 0..resource.len() {
                let _ = string(&resource[..end], "InternalName");
            }
            for at in 0..resource.len() {
                for value in [0, 1, 0x7F, 0xFF] {
                    let mut changed = resource.clone();
                    changed[at] = value;
                    let _ = string(&changed, "InternalName");
                }
            }
        }
    }
}
