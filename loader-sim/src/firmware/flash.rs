//! OVMF's `*_VARS*.fd`: a firmware volume (PI 1.8 vol. 3 §3.2.1) with an authenticated variable store (edk2 `VariableFormat.h`) at its start.
//!
//! ```text
//! EFI_FIRMWARE_VOLUME_HEADER  zeros[16], GUID, FvLength u64, "_FVH", Attributes u32, HeaderLength u16, Checksum u16, …
//! VARIABLE_STORE_HEADER       GUID, Size u32, Format u8 = 0x5A, State u8 = 0xFE, Reserved[6]
//! AUTHENTICATED_VARIABLE_HEADER, at multiples of 4
//!     StartId u16 = 0x55AA, State u8, Reserved u8, Attributes u32, MonotonicCount u64, TimeStamp[16], PubKeyIndex u32,
//!     NameSize u32, DataSize u32, VendorGuid[16]      then the name with its NUL, then the data
//! ```
//!
//! A bit of State is cleared when something is so; `0x3F` is a variable, `0x3E` one that is being replaced and counts unless its successor is
//! there, all else is gone or was never finished. What follows the store, the area of fault-tolerant writes among it, is kept as it is.
//! Refuses headers that are not these, and sizes that leave the store. Without changes the same bytes are written; with changes the store is
//! packed, as firmware does when it is full.

use hvci_engine::{
    bytes::{array, index, le16, le32, le64, slice},
    uefi::{EfiTime, Guid},
};

use super::{
    Refused, Status,
    store::VariableStore,
    variable::{Attributes, Variable},
};

const NV_DATA: Guid = Guid::new(0xfff1_2b8d, 0x7696, 0x4c8b, [0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50]);
const AUTHENTICATED_STORE: Guid = Guid::new(0xaaf3_2c78, 0x947b, 0x439a, [0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92]);
/// Shortest header of a volume: one row of the block map and the empty one.
const VOLUME_HEADER: usize = 72;
const STORE_HEADER: usize = 28;
const HEADER: usize = 60;
const START: u16 = 0x55AA;
const ADDED: u8 = 0x3F;
const IN_TRANSITION: u8 = 0x3E;
const ERASED: u8 = 0xFF;

/// Why bytes are no flash file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at offset {offset:#x}")]
pub struct FlashError {
    /// What is wrong.
    pub what: &'static str,
    /// Where.
    pub offset: usize,
}

/// A read flash file.
#[derive(Clone, Debug)]
pub struct Flash {
    bytes: Vec<u8>,
    /// Where variables begin, and where the store ends.
    area: (usize, usize),
    variables: VariableStore,
}

impl Flash {
    /// Reads a file.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn read(bytes: Vec<u8>) -> Result<Self, FlashError> {
        let fail = |what, offset| FlashError { what, offset };
        if array(&bytes, 16).map(Guid) != Some(NV_DATA) || slice(&bytes, 40, 4) != Some(b"_FVH") {
            return Err(fail("no firmware volume for variables", 0));
        }
        let volume = le64(&bytes, 32).and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= bytes.len());
        let volume = volume.ok_or_else(|| fail("a firmware volume that is longer than the file", 32))?;
        let header = le16(&bytes, 48).map(usize::from).filter(|n| (VOLUME_HEADER..=volume).contains(n) && n.is_multiple_of(4));
        let header = header.ok_or_else(|| fail("a wrong HeaderLength", 48))?;
        let words = bytes[..header].chunks_exact(2).filter_map(|word| le16(word, 0));
        if words.fold(0_u16, u16::wrapping_add) != 0 {
            return Err(fail("a wrong checksum of the volume's header", 50));
        }
        if array(&bytes, header).map(Guid) != Some(AUTHENTICATED_STORE) {
            return Err(fail("no authenticated variable store", header));
        }
        let size = le32(&bytes, header + 16).map(index).unwrap_or_default();
        let end = header.checked_add(size).filter(|end| *end <= volume && size >= STORE_HEADER);
        let end = end.ok_or_else(|| fail("a variable store that is larger than its volume, or smaller than its header", header + 16))?;
        if slice(&bytes, header + 20, 2) != Some(&[0x5A, 0xFE]) {
            return Err(fail("a variable store that is not formatted and healthy", header + 20));
        }
        let area = (header + STORE_HEADER, end);
        let variables = VariableStore::new(read_variables(&bytes[..end], area.0)?);
        Ok(Self { bytes, area, variables })
    }

    /// The variables.
    pub fn variables(&self) -> &VariableStore {
        &self.variables
    }

    /// How many bytes there are for variables.
    pub fn capacity(&self) -> usize {
        self.area.1 - self.area.0
    }

    /// The file with these variables instead.
    ///
    /// # Errors
    /// EFI_OUT_OF_RESOURCES when they have no room.
    pub fn with(&self, variables: &VariableStore) -> Result<Vec<u8>, Refused> {
        let mut bytes = self.bytes.clone();
        if *variables == self.variables {
            return Ok(bytes);
        }
        let mut packed = Vec::new();
        for variable in variables.variables() {
            write_variable(variable, &mut packed);
        }
        let area = &mut bytes[self.area.0..self.area.1];
        let Some(front) = area.get_mut(..packed.len()) else {
            let reason = format!("the variables have {} bytes, the store has room for {}", packed.len(), area.len());
            return Err(Refused::new(Status::OutOfResources, reason));
        };
        front.copy_from_slice(&packed);
        area[packed.len()..].fill(ERASED);
        Ok(bytes)
    }
}

/// The variables that count, from `at` to the end of `bytes`.
fn read_variables(bytes: &[u8], mut at: usize) -> Result<Vec<Variable>, FlashError> {
    let mut found: Vec<(u8, Variable)> = Vec::new();
    while let Some(header) = slice(bytes, at, HEADER).filter(|h| le16(h, 0) == Some(START)) {
        let fail = |what| FlashError { what, offset: at };
        let state = header[2];
        let size = |offset| le32(header, offset).filter(|n| *n != u32::MAX && state != ERASED).map_or(0, index);
        let (name_len, data_len) = (size(36), size(40));
        let beyond = || fail("a variable that is longer than the store");
        let name = slice(bytes, at + HEADER, name_len).ok_or_else(beyond)?;
        let data = slice(bytes, at + HEADER + name_len, data_len).ok_or_else(beyond)?;
        if state == ADDED || state == IN_TRANSITION {
            let mut name: Vec<u16> = name.chunks_exact(2).filter_map(|unit| le16(unit, 0)).collect();
            if !name_len.is_multiple_of(2) || name.pop() != Some(0) || name.is_empty() || name.contains(&0) {
                return Err(fail("a variable whose name is no text that ends with NUL"));
            }
            let field = || fail("a variable header");
            let variable = Variable {
                name,
                vendor: Guid(array(header, 44).ok_or_else(field)?),
                attributes: Attributes(le32(header, 4).ok_or_else(field)?),
                time: EfiTime(array(header, 16).ok_or_else(field)?),
                legacy: (le64(header, 8).ok_or_else(field)?, le32(header, 32).ok_or_else(field)?),
                data: data.to_vec(),
            };
            found.push((state, variable));
        }
        at = (at + HEADER + name_len + data_len).next_multiple_of(4);
    }
    let added = |v: &Variable| found.iter().any(|(state, other)| *state == ADDED && (&other.name, other.vendor) == (&v.name, v.vendor));
    Ok(found.iter().filter(|(state, v)| *state == ADDED || !added(v)).map(|(_, v)| v.clone()).collect())
}

fn write_variable(variable: &Variable, out: &mut Vec<u8>) {
    let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let name: Vec<u8> = variable.name.iter().chain([&0]).flat_map(|unit| unit.to_le_bytes()).collect();
    out.extend(START.to_le_bytes());
    out.extend([ADDED, 0]);
    out.extend(variable.attributes.0.to_le_bytes());
    out.extend(variable.legacy.0.to_le_bytes());
    out.extend(variable.time.0);
    out.extend(variable.legacy.1.to_le_bytes());
    out.extend(len(name.len()));
    out.extend(len(variable.data.len()));
    out.extend(variable.vendor.0);
    out.extend(name);
    out.extend(&variable.data);
    out.resize(out.len().next_multiple_of(4), ERASED);
}
