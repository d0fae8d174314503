//! Device paths as text (UEFI 2.10 §10.6). Nodes that have no short form here are shown as `Path(type,subtype,bytes)`.

use std::fmt::Write;

use hvci_engine::{
    bytes::{array, le16, le32, slice},
    uefi::Guid,
};

use super::data::{utf16, utf16_text};

/// The text of a device path; `None` if the nodes do not end where the bytes do, or within them.
pub(super) fn text(path: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut at = 0_usize;
    while at < path.len() {
        let [kind, subtype] = array(path, at)?;
        let len = usize::from(le16(path, at.checked_add(2)?)?);
        let body = slice(path, at.checked_add(4)?, len.checked_sub(4)?)?;
        at = at.checked_add(len)?;
        if kind == 0x7F {
            // the end of an instance or of all
            text.push_str(if subtype == 0xFF { "" } else { "," });
            continue;
        }
        if !text.is_empty() {
            text.push('/');
        }
        match node(kind, subtype, body) {
            Some(known) => text.push_str(&known),
            // cannot fail: it is a string
            None => write!(text, "Path({kind},{subtype},{})", hex::encode(body)).ok()?,
        }
    }
    Some(text)
}

fn node(kind: u8, subtype: u8, body: &[u8]) -> Option<String> {
    Some(match (kind, subtype) {
        (1, 1) => {
            let [function, device] = array(body, 0)?;
            format!("Pci({device:#x},{function:#x})")
        }
        (2, 1) if le32(body, 0)? == 0x0A03_41D0 => format!("PciRoot({:#x})", le32(body, 4)?),
        (3, 1) => {
            let [channel, drive] = array(body, 0)?;
            format!("Ata({channel},{drive},{})", le16(body, 2)?)
        }
        (3, 2) => format!("Scsi({:#x},{:#x})", le16(body, 0)?, le16(body, 2)?),
        (3, 5) => {
            let [port, interface] = array(body, 0)?;
            format!("USB({port:#x},{interface:#x})")
        }
        (3, 18) => format!("Sata({:#x},{:#x},{:#x})", le16(body, 0)?, le16(body, 2)?, le16(body, 4)?),
        (3, 23) => format!("NVMe({:#x})", le32(body, 0)?),
        (4, 1) => match (array::<2>(body, 36)?, le32(body, 0)?) {
            ([2, 2], number) => format!("HD({number},GPT,{})", Guid(array(body, 20)?)),
            ([1, 1], number) => format!("HD({number},MBR,{:#010x})", le32(body, 20)?),
            _ => return None,
        },
        (4, 4) => utf16_text(body)?.trim_end_matches('\0').to_owned(),
        (4, 6) => format!("FvFile({})", Guid(array(body, 0)?)),
        (4, 7) => format!("Fv({})", Guid(array(body, 0)?)),
        _ => return None,
    })
}

/// `\EFI\BOOT\BOOTX64.EFI` on the first disk of the machine: `PciRoot(0x0)/Pci(0x2,0x0)` and the file.
pub fn of_disk(file: &str) -> Vec<u8> {
    let mut path = vec![2, 1, 12, 0, 0xD0, 0x41, 0x03, 0x0A, 0, 0, 0, 0];
    path.extend([1, 1, 6, 0, 0, 2]);
    path.extend(of_file(file));
    path
}

/// A file alone, as a boot loader gives it.
pub fn of_file(file: &str) -> Vec<u8> {
    let text = utf16(&format!("{file}\0"));
    let mut path = vec![4, 4];
    // a path that is longer than a node can be is cut: nothing starts from it
    path.extend(u16::try_from(text.len().saturating_add(4)).unwrap_or(u16::MAX).to_le_bytes());
    path.extend(text);
    path.extend([0x7F, 0xFF, 4, 0]);
    path
}

/// The file that a device path ends with; `None` if it ends with something else.
pub fn file(path: &[u8]) -> Option<String> {
    let mut at = 0_usize;
    let mut file = None;
    while let Some([kind, subtype]) = array(path, at) {
        let len = usize::from(le16(path, at.checked_add(2)?)?);
        let body = slice(path, at.checked_add(4)?, len.checked_sub(4)?)?;
        at = at.checked_add(len)?;
        match (kind, subtype) {
            (4, 4) => file = Some(utf16_text(body)?.trim_end_matches('\0').to_owned()),
            (0x7F, _) => return file,
            _ => {}
        }
    }
    None
}
