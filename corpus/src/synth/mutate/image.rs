//! Changes to headers, sections and the certificate table.

use crate::synth::{
    Error, Result,
    authenticode::{Entry, Table, set_checksum},
    layout::{Layout, read32, to_u32, to_usize, write, write32},
};

const SMUGGLED: &[u8] = b"!smuggled bytes that no signature covers: a second payload here!";

pub(super) fn content_byte(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    let mut image = image.to_vec();
    let at = first_section(&image)? + 7;
    *image.get_mut(at).ok_or(Error::NotApplicable("no bytes in the first section"))? ^= 1;
    set_checksum(&mut image)?;
    Ok(image)
}

pub(super) fn checksum(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    let mut image = image.to_vec();
    let at = Layout::of(&image)?.checksum;
    let value = read32(&image, at)?;
    write32(&mut image, at, value ^ 0x1234)?;
    Ok(image)
}

pub(super) fn few_directories(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    let mut image = image.to_vec();
    let at = Layout::of(&image)?.directory_count;
    write32(&mut image, at, 4)?;
    set_checksum(&mut image)?;
    Ok(image)
}

pub(super) fn section_over_table(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    let mut image = image.to_vec();
    let layout = Layout::of(&image)?;
    let table = layout.table(&image)?;
    let header = layout.section(layout.section_count.saturating_sub(1));
    let start = to_usize(read32(&image, header + 20)?);
    let len = to_u32(table.end.saturating_sub(start));
    for field in [8, 16] {
        write32(&mut image, header + field, len)?;
    }
    // the image in memory grows with its last section
    let end = (read32(&image, header + 12)? + len).next_multiple_of(0x1000);
    write32(&mut image, layout.optional + 56, end)?;
    set_checksum(&mut image)?;
    Ok(image)
}

pub(super) fn signature_of_another(image: &[u8], other: &[u8]) -> Result<Vec<u8>> {
    Table { entries: Table::split(other)?.entries, ..Table::split(image)? }.join()
}

pub(super) fn truncated_headers(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    let layout = Layout::of(image)?;
    Ok(super::truncated(image, layout.section(1).saturating_sub(20)).to_vec())
}

pub(super) fn truncated_section(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    let layout = Layout::of(image)?;
    let header = layout.section(layout.section_count.saturating_sub(1));
    Ok(super::truncated(image, to_usize(read32(image, header + 20)?) + 16).to_vec())
}

pub(super) fn truncated_table(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    let table = signed(image)?;
    Ok(super::truncated(image, table.start + 100).to_vec())
}

pub(super) fn entry_grown(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit(image, |table| {
        first(table)?.content.extend(SMUGGLED);
        Ok(())
    })
}

pub(super) fn entry_gap(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    let mut table = Table::split(image)?;
    let entry = first(&mut table)?;
    // at most seven zeros inside the entry, so that four bytes are left between it and the next multiple of 8
    let len = (8 + entry.content.len() + 4).next_multiple_of(8) - 4;
    entry.content.resize(len - 8, 0);
    let end = table.image.len() + 8 + entry_len(&table)?;
    let mut image = table.join()?;
    write(&mut image, end, b"gap!")?;
    set_checksum(&mut image)?;
    Ok(image)
}

pub(super) fn directory_grown(image: &[u8], other: &[u8]) -> Result<Vec<u8>> {
    let mut image = directory_past_end(image, other)?;
    image.extend([0; 64]);
    set_checksum(&mut image)?;
    Ok(image)
}

pub(super) fn directory_past_end(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    let mut image = image.to_vec();
    let table = signed(&image)?;
    let at = directory(&image)?;
    write32(&mut image, at + 4, to_u32(table.len() + 64))?;
    set_checksum(&mut image)?;
    Ok(image)
}

pub(super) fn data_behind_table(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit(image, |table| {
        first(table)?;
        table.behind = SMUGGLED.to_vec();
        Ok(())
    })
}

pub(super) fn table_with_data(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    let len = signed(image)?.len();
    let mut image = image.to_vec();
    // no length that an entry could have
    image.extend([0; 8]);
    image.extend(SMUGGLED);
    let at = directory(&image)?;
    write32(&mut image, at + 4, to_u32(len + 8 + SMUGGLED.len()))?;
    set_checksum(&mut image)?;
    Ok(image)
}

pub(super) fn revision(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit(image, |table| {
        first(table)?.revision = 0x0100;
        Ok(())
    })
}

pub(super) fn entry_of_other_type(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit(image, |table| {
        first(table)?;
        table.entries.push(Entry { revision: 0x0200, kind: 0x0EF1, content: vec![0x11; 24] });
        Ok(())
    })
}

pub(super) fn entry_length_zero(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    entry_length(image, 0)
}

pub(super) fn entry_length_huge(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    entry_length(image, 0xFFFF_FFF8)
}

fn entry_length(image: &[u8], value: u32) -> Result<Vec<u8>> {
    let mut image = image.to_vec();
    let start = signed(&image)?.start;
    write32(&mut image, start, value)?;
    set_checksum(&mut image)?;
    Ok(image)
}

/// Takes the certificate table apart, changes it and puts it back.
pub(super) fn edit(image: &[u8], change: impl FnOnce(&mut Table) -> Result<()>) -> Result<Vec<u8>> {
    let mut table = Table::split(image)?;
    change(&mut table)?;
    table.join()
}

/// The first PKCS#7 entry.
pub(super) fn first(table: &mut Table) -> Result<&mut Entry> {
    table.entries.iter_mut().find(|e| e.kind == 2).ok_or(Error::NotApplicable("the image is not signed"))
}

fn entry_len(table: &Table) -> Result<usize> {
    table.entries.first().map(|e| e.content.len()).ok_or(Error::NotApplicable("the image is not signed"))
}

fn signed(image: &[u8]) -> Result<core::ops::Range<usize>> {
    let table = Layout::of(image)?.table(image)?;
    if table.is_empty() { Err(Error::NotApplicable("the image is not signed")) } else { Ok(table) }
}

fn directory(image: &[u8]) -> Result<usize> {
    Layout::of(image)?.certificate_directory.ok_or(Error::NotApplicable("no directory for a certificate table"))
}

fn first_section(image: &[u8]) -> Result<usize> {
    Ok(to_usize(read32(image, Layout::of(image)?.section(0) + 20)?))
}
