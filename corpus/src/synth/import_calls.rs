//! Calls of imported functions that a kernel may make direct ones, and the table that lists them (`IMAGE_LOAD_CONFIG_DIRECTORY64`,
//! `IMAGE_DYNAMIC_RELOCATION_TABLE` of version 1 and `IMAGE_IMPORT_CONTROL_TRANSFER_DYNAMIC_RELOCATION` of the Windows SDK, `winnt.h`).

use object::write::pe::SectionRange;

use super::{
    Error, Result,
    layout::{to_u32, to_usize},
};

/// Bytes of a load configuration that ends with the place of the table.
pub(super) const LOAD_CONFIG: u32 = 0xE8;
const TABLE_OFFSET: usize = 0xE0;
const TABLE_SECTION: usize = 0xE4;
/// IMAGE_DYNAMIC_RELOCATION_GUARD_IMPORT_CONTROL_TRANSFER
const SYMBOL: u64 = 3;

/// A call of an imported function: twelve bytes, as compilers write them for it (`/d2guardretpoline`).
#[derive(Clone, Copy, Debug)]
pub struct ImportCall {
    /// Index of its section, which is in front of that of the import table.
    pub section: usize,
    /// Where it is in that section.
    pub offset: u32,
    /// Index of the function in what the image imports.
    pub function: u32,
    /// Whether it is a call; else a jump.
    pub is_call: bool,
}

/// A load configuration and the table behind it, to stand `at` bytes into the section of this number. Writes the calls into the sections in front.
pub(super) fn tables(
    calls: &[ImportCall],
    sections: &mut [(SectionRange, Vec<u8>)],
    iat: u32,
    (number, at): (usize, u32),
) -> Result<Vec<u8>> {
    let mut entries = Vec::new();
    for call in calls {
        let (range, content) = sections.get_mut(call.section).ok_or(Error::NotApplicable("an import's call behind its table"))?;
        let address = range.virtual_address + call.offset;
        let distance = (iat + call.function * 8).wrapping_sub(address + 7).to_le_bytes();
        let (code, behind) = if call.is_call { ([0x48, 0xFF, 0x15], [0x0F, 0x1F, 0x44, 0, 0]) } else { ([0x48, 0xFF, 0x25], [0xCC; 5]) };
        let place = content.get_mut(to_usize(call.offset)..to_usize(call.offset) + 12);
        place.ok_or(Error::NotApplicable("an import's call in no section"))?.copy_from_slice(&[&code[..], &distance, &behind].concat());
        entries.push((address, (call.function << 13) | (u32::from(call.is_call) << 12) | (address & 0xFFF)));
    }
    entries.sort_unstable();
    let blocks: Vec<u8> = entries.chunk_by(|(a, _), (b, _)| a >> 12 == b >> 12).flat_map(block).collect();
    let size = to_u32(blocks.len());
    let header = [&1_u32.to_le_bytes()[..], &(size + 12).to_le_bytes(), &SYMBOL.to_le_bytes(), &size.to_le_bytes()].concat();

    let mut config = vec![0; to_usize(LOAD_CONFIG)];
    config[..4].copy_from_slice(&LOAD_CONFIG.to_le_bytes());
    config[TABLE_OFFSET..TABLE_OFFSET + 4].copy_from_slice(&(at + LOAD_CONFIG).to_le_bytes());
    let number = u16::try_from(number).map_err(|_| Error::NotApplicable("too many sections"))?;
    config[TABLE_SECTION..TABLE_SECTION + 2].copy_from_slice(&number.to_le_bytes());
    Ok([config, header, blocks].concat())
}

fn block(entries: &[(u32, u32)]) -> Vec<u8> {
    let page = entries.first().map_or(0, |(address, _)| address & !0xFFF);
    [page, 8 + 4 * to_u32(entries.len())].into_iter().chain(entries.iter().map(|(_, entry)| *entry)).flat_map(u32::to_le_bytes).collect()
}
