//! What an event says of itself, for people and for rules that look at it: never a reason to trust it.

use std::fmt;

use hvci_engine::{
    bytes::{array, index, le16, le32, le64, slice},
    signature::signature_list::Guid,
};

use super::{
    event::{Event, EventType},
    replay::startup_locality,
};

/// UEFI_VARIABLE_DATA (Platform Firmware Profile 1.06 §10.2.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable<'a> {
    /// VariableName: who gave the name.
    pub vendor: Guid,
    /// UnicodeName.
    pub name: String,
    /// VariableData.
    pub data: &'a [u8],
}

/// An event's data, as far as its type says how to read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// The header of the log.
    SpecId,
    /// The locality that the TPM was started from.
    StartupLocality(u8),
    /// A UEFI variable, or an entry of one.
    Variable(Variable<'a>),
    /// UEFI_IMAGE_LOAD_EVENT: a program that was started, by its device path.
    Image {
        /// Where it was loaded to.
        location: u64,
        /// Its length in memory.
        length: u64,
        /// The file's path as the loader was given it, and the other nodes of the device path.
        path: String,
    },
    /// UEFI_PLATFORM_FIRMWARE_BLOB: firmware at an address.
    Blob {
        /// Where it is.
        base: u64,
        /// How long it is.
        length: u64,
    },
    /// The end of one part of the boot.
    Separator(u32),
    /// TCG_PCClientTaggedEvent.
    Tagged {
        /// taggedEventID.
        id: u32,
        /// taggedEventData.
        data: &'a [u8],
    },
    /// Words.
    Text(String),
    /// Its type says nothing about its data, or they are not so.
    Unknown,
}

impl<'a> Content<'a> {
    /// Reads an event's data.
    pub fn of(event: &Event<'a>) -> Self {
        let data = event.data;
        let read = match event.kind {
            EventType::NO_ACTION if data.starts_with(b"Spec ID Event") => Some(Self::SpecId),
            EventType::NO_ACTION => startup_locality(event).map(Self::StartupLocality),
            EventType::EFI_VARIABLE_DRIVER_CONFIG
            | EventType::EFI_VARIABLE_BOOT
            | EventType::EFI_VARIABLE_BOOT2
            | EventType::EFI_VARIABLE_AUTHORITY
            | EventType::EFI_SPDM_DEVICE_POLICY
            | EventType::EFI_SPDM_DEVICE_AUTHORITY => variable(data).map(Self::Variable),
            EventType::EFI_BOOT_SERVICES_APPLICATION | EventType::EFI_BOOT_SERVICES_DRIVER | EventType::EFI_RUNTIME_SERVICES_DRIVER => {
                image(data)
            }
            EventType::EFI_PLATFORM_FIRMWARE_BLOB if data.len() == 16 => blob(data),
            EventType::EFI_PLATFORM_FIRMWARE_BLOB2 => {
                data.split_first().and_then(|(len, rest)| rest.get(usize::from(*len)..)).filter(|rest| rest.len() == 16).and_then(blob)
            }
            EventType::SEPARATOR if data.len() == 4 => le32(data, 0).map(Self::Separator),
            EventType::EVENT_TAG => tagged(data),
            EventType::S_CRTM_VERSION => utf16(data).map(Self::Text),
            EventType::EFI_ACTION | EventType::ACTION | EventType::IPL | EventType::POST_CODE | EventType::SEPARATOR => {
                ascii(data).map(Self::Text)
            }
            _ => None,
        };
        read.unwrap_or(Self::Unknown)
    }
}

fn variable(data: &[u8]) -> Option<Variable<'_>> {
    let vendor = Guid(array(data, 0)?);
    let name_bytes = usize::try_from(le64(data, 16)?).ok()?.checked_mul(2)?;
    let value = usize::try_from(le64(data, 24)?).ok()?;
    let name = slice(data, 32, name_bytes)?;
    let rest = data.get(32_usize.checked_add(name_bytes)?..)?;
    // nothing may be in it that the name and the value do not explain
    (rest.len() == value).then(|| Variable { vendor, name: utf16_lossy(name), data: rest })
}

fn image<'a>(data: &[u8]) -> Option<Content<'a>> {
    let (location, length) = (le64(data, 0)?, le64(data, 8)?);
    let path = usize::try_from(le64(data, 24)?).ok()?;
    let path = slice(data, 32, path).filter(|path| path.len() + 32 == data.len())?;
    Some(Content::Image { location, length, path: device_path(path)? })
}

fn blob<'a>(data: &[u8]) -> Option<Content<'a>> {
    Some(Content::Blob { base: le64(data, 0)?, length: le64(data, 8)? })
}

fn tagged(data: &[u8]) -> Option<Content<'_>> {
    let (id, len) = (le32(data, 0)?, index(le32(data, 4)?));
    data.get(8..).filter(|rest| rest.len() == len).map(|data| Content::Tagged { id, data })
}

/// EFI_DEVICE_PATH_PROTOCOL (UEFI 2.10 §10.3): the names of files, and a word for every other node.
fn device_path(mut bytes: &[u8]) -> Option<String> {
    let mut nodes = Vec::new();
    while let Some([kind, sub, ..]) = bytes.first_chunk::<4>() {
        let len = usize::from(le16(bytes, 2)?);
        let node = bytes.get(4..len)?;
        match (kind, sub) {
            (0x7F, 0xFF) => return Some(nodes.join("/")),
            (0x04, 0x04) => nodes.push(utf16_lossy(node)),
            (0x04, 0x06 | 0x07) => nodes.push(format!("Fv({})", Guid(array(node, 0)?))),
            (0x04, 0x01) => nodes.push(format!("HD({})", le32(node, 0)?)),
            (0x02, 0x01) => nodes.push("Acpi".to_owned()),
            (0x01, 0x01) => nodes.push(format!("Pci({:x},{:x})", node.get(1)?, node.first()?)),
            (0x01, 0x03) => nodes.push("MemoryMapped".to_owned()),
            _ => nodes.push(format!("{kind:#x}.{sub:#x}")),
        }
        bytes = bytes.get(len..)?;
    }
    // a loader that has the image in memory gives no path
    bytes.is_empty().then(|| nodes.join("/"))
}

fn utf16_lossy(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes.chunks_exact(2).filter_map(|unit| le16(unit, 0)).take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

fn utf16(bytes: &[u8]) -> Option<String> {
    bytes.len().is_multiple_of(2).then(|| utf16_lossy(bytes))
}

fn ascii(bytes: &[u8]) -> Option<String> {
    let text = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    text.iter().all(|byte| (0x20..0x7F).contains(byte) || byte.is_ascii_whitespace()).then(|| String::from_utf8_lossy(text).into_owned())
}

/// For a person; what the guest wrote is as it wrote it, control characters and all.
impl fmt::Display for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpecId => f.write_str("header of the log"),
            Self::StartupLocality(locality) => write!(f, "the TPM was started from locality {locality}"),
            Self::Variable(Variable { name, data, .. }) => write!(f, "{}, {} bytes", name, data.len()),
            Self::Image { location, length, path } if path.is_empty() => write!(f, "{length} bytes at {location:#x}"),
            Self::Image { path, .. } => f.write_str(path),
            Self::Blob { base, length } => write!(f, "{length} bytes at {base:#x}"),
            Self::Separator(value) => write!(f, "{value:#010x}"),
            Self::Tagged { id, data } => write!(f, "tag {id:#010x}, {} bytes", data.len()),
            Self::Text(text) => f.write_str(text),
            Self::Unknown => f.write_str("–"),
        }
    }
}
