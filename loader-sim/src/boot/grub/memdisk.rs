//! What is built into a GRUB image: its first commands, its prefix, and the FAT file system with its configuration (GRUB, `kernel.h`).
//!
//! ```text
//! section "mods"   "mimg", padding u32, offset u64, size u64; then modules of { type u32, size u32 with these 8 bytes, content }
//! ```
//!
//! Reads FAT12 and FAT16 as far as a file in the root folder needs it. Refuses nothing: what is not there, or not of this form, is `None`.

use hvci_engine::{
    bytes::{array, index, le16, le32, le64, slice},
    image::pe::Pe,
};

/// What the image brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Builtin<'a> {
    /// Its commands, before anything is read from a disk.
    pub(super) config: Option<&'a str>,
    /// The folder it looks for its configuration in.
    pub(super) prefix: Option<&'a str>,
    memdisk: Option<&'a [u8]>,
}

const MEMDISK: u32 = 1;
const CONFIG: u32 = 2;
const PREFIX: u32 = 3;
/// More modules than any image has.
const MAX_MODULES: usize = 4096;

impl<'a> Builtin<'a> {
    pub(super) fn of(image: &Pe<'a>) -> Self {
        image.section_content("mods").and_then(Self::read).unwrap_or_default()
    }

    fn read(section: &'a [u8]) -> Option<Self> {
        section.starts_with(b"mimg").then_some(())?;
        let (mut at, end) = (usize::try_from(le64(section, 8)?).ok()?, usize::try_from(le64(section, 16)?).ok()?);
        let mut builtin = Self::default();
        for _ in 0..MAX_MODULES {
            if at >= end {
                break;
            }
            let (Some(kind), Some(size)) = (le32(section, at), at.checked_add(4).and_then(|n| le32(section, n))) else { break };
            let content = at.checked_add(8).zip(index(size).checked_sub(8)).and_then(|(start, len)| slice(section, start, len));
            let Some(content) = content else { break };
            match kind {
                MEMDISK => builtin.memdisk = Some(content),
                CONFIG => builtin.config = text(content),
                PREFIX => builtin.prefix = text(content),
                _ => {}
            }
            at = at.checked_add(index(size))?;
        }
        Some(builtin)
    }

    /// A file in the root folder of its file system.
    pub(super) fn file(&self, name: &str) -> Option<Vec<u8>> {
        let (stem, extension) = name.trim_start_matches('/').split_once('.')?;
        let wanted = format!("{:<8}{:<3}", stem.to_ascii_uppercase(), extension.to_ascii_uppercase());
        fat_file(self.memdisk?, wanted.as_bytes())
    }
}

fn text(content: &[u8]) -> Option<&str> {
    let end = content.iter().position(|b| *b == 0).unwrap_or(content.len());
    std::str::from_utf8(content.get(..end)?).ok()
}

fn fat_file(disk: &[u8], wanted: &[u8]) -> Option<Vec<u8>> {
    let word = |at| le16(disk, at).map(usize::from);
    let [per_cluster] = array(disk, 13)?;
    let [fats] = array(disk, 16)?;
    let (sector, reserved, entries, per_fat) = (word(11)?, word(14)?, word(17)?, word(22)?);
    let total = match word(19)? {
        0 => index(le32(disk, 32)?),
        sectors => sectors,
    };
    let table = reserved.checked_mul(sector)?;
    let root = usize::from(fats).checked_mul(per_fat)?.checked_add(reserved)?.checked_mul(sector)?;
    let data = root.checked_add(entries.checked_mul(32)?)?;
    let cluster_len = usize::from(per_cluster).checked_mul(sector).filter(|len| *len != 0)?;
    let clusters = total.checked_mul(sector)?.checked_sub(data)?.checked_div(cluster_len)?;

    let folder = slice(disk, root, entries.checked_mul(32)?)?;
    let entry = folder.chunks_exact(32).take_while(|e| e.first() != Some(&0)).find(|e| e.starts_with(wanted))?;
    let (mut cluster, mut left) = (usize::from(le16(entry, 26)?), index(le32(entry, 28)?));
    if left > disk.len() {
        return None;
    }
    let mut content = Vec::with_capacity(left);
    while left > 0 {
        let start = cluster.checked_sub(2).filter(|n| *n < clusters)?.checked_mul(cluster_len)?.checked_add(data)?;
        let part = left.min(cluster_len);
        content.extend(slice(disk, start, part)?);
        left = left.checked_sub(part)?;
        // below 4085 clusters it is FAT12
        cluster = if clusters < 4085 {
            let at = table.checked_add(cluster.checked_add(cluster >> 1)?)?;
            let pair = word(at)?;
            if cluster & 1 == 0 { pair & 0xFFF } else { pair >> 4 }
        } else {
            word(table.checked_add(cluster.checked_mul(2)?)?)?
        };
    }
    Some(content)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// FAT12 of one-sector clusters with `content` in clusters 2, 4, 6, …
    fn fat(content: &[u8]) -> Vec<u8> {
        let mut disk = vec![0; 512 * 40];
        disk[11..13].copy_from_slice(&512_u16.to_le_bytes());
        (disk[13], disk[14], disk[16], disk[17], disk[19], disk[22]) = (1, 1, 1, 16, 40, 1);
        let entry = &mut disk[1024..1056];
        entry[..11].copy_from_slice(b"GRUB    CFG");
        entry[26] = 2;
        entry[28..32].copy_from_slice(&(content.len() as u32).to_le_bytes());
        for (n, part) in content.chunks(512).enumerate() {
            let cluster = 2 + 2 * n;
            let start = 1536 + (cluster - 2) * 512;
            disk[start..start + part.len()].copy_from_slice(part);
            // even clusters: the low twelve bits
            let next = (cluster + 2) as u16;
            disk[512 + cluster * 3 / 2..512 + cluster * 3 / 2 + 2].copy_from_slice(&next.to_le_bytes());
        }
        disk
    }

    fn section(memdisk: &[u8]) -> Vec<u8> {
        let mut section = b"mimg".to_vec();
        let mut modules = Vec::new();
        for (kind, content) in
            [(0_u32, &b"ELF"[..]), (MEMDISK, memdisk), (CONFIG, b"normal (memdisk)/grub.cfg\n\0\0"), (PREFIX, b"/EFI/debian\0")]
        {
            modules.extend(kind.to_le_bytes());
            modules.extend((content.len() as u32 + 8).to_le_bytes());
            modules.extend(content);
        }
        section.extend([0; 4]);
        section.extend(24_u64.to_le_bytes());
        section.extend((24 + modules.len() as u64).to_le_bytes());
        section.extend(modules);
        section
    }

    #[test]
    fn a_file_is_followed_through_the_table() {
        let content: Vec<u8> = (0..1300_u32).map(|n| (n % 251) as u8).collect();
        let section = section(&fat(&content));
        let builtin = Builtin::read(&section).unwrap();
        assert_eq!((builtin.config, builtin.prefix), (Some("normal (memdisk)/grub.cfg\n"), Some("/EFI/debian")));
        assert_eq!(builtin.file("/grub.cfg"), Some(content));
        assert_eq!(builtin.file("/other.cfg"), None);
    }

    proptest! {
        #[test]
        fn any_change_is_read_or_not(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut section = section(&fat(&[7; 1300]));
            let at = at.index(section.len());
            section[at] = byte;
            let _ = Builtin::read(&section).and_then(|b| b.file("grub.cfg"));
        }

        #[test]
        fn any_bytes_are_read_or_not(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Builtin::read(&bytes);
            let _ = fat_file(&bytes, b"GRUB    CFG");
        }
    }
}
