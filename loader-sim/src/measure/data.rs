//! What an event says was measured, by its type (PFP 1.05 §10.2, §10.4, §10.5).
//!
//! All of it is a claim until its digest has been compared. What a type's structure does not fit is kept as bytes and said to be so.

use std::fmt;

use hvci_engine::{
    bytes::{array, index, le16, le32, le64, slice, widen},
    uefi::Guid,
};

use super::{device_path, event_type::EventType, log::Event};

pub(super) const SPEC_ID_03: &[u8; 16] = b"Spec ID Event03\0";
pub(super) const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";

/// `UEFI_VARIABLE_DATA`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable<'a> {
    /// The vendor's namespace.
    pub guid: Guid,
    /// The name.
    pub name: String,
    /// The value.
    pub value: &'a [u8],
}

impl Variable<'_> {
    /// `UEFI_VARIABLE_DATA`, as it stands in an event, which is what the digest is of.
    pub fn to_bytes(&self) -> Vec<u8> {
        let name = utf16(&self.name);
        let mut bytes = self.guid.0.to_vec();
        for len in [name.len() >> 1, self.value.len()] {
            bytes.extend(widen(len).to_le_bytes());
        }
        bytes.extend(name);
        bytes.extend(self.value);
        bytes
    }
}

/// What an event of type `EV_NO_ACTION` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAction<'a> {
    /// A header: signature of one of the three formats.
    SpecId(&'a [u8]),
    /// From which locality the TPM was started.
    StartupLocality(u8),
    /// Something else.
    Unknown(&'a [u8]),
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventData<'a> {
    /// A UEFI variable or, of an authority, one entry of it.
    Variable(Variable<'a>),
    /// An image that was started: `UEFI_IMAGE_LOAD_EVENT`.
    Image {
        /// Where it was loaded.
        location: u64,
        /// Its length in memory.
        length: u64,
        /// The device path as text; empty when it came from memory.
        path: String,
    },
    /// The four bytes, or `WBCL`.
    Separator(&'a [u8]),
    /// Not extended.
    NoAction(NoAction<'a>),
    /// Text: an action, what a boot loader says, a version.
    Text(String),
    /// A region of memory: `UEFI_PLATFORM_FIRMWARE_BLOB`, the second form with a description.
    Firmware {
        /// Where it is.
        base: u64,
        /// How long.
        length: u64,
        /// What it is.
        description: String,
    },
    /// Identifier and data of each `TCG_PCClientTaggedEvent`.
    Tags(Vec<(u32, &'a [u8])>),
    /// `UEFI_GPT_DATA`.
    Gpt {
        /// The disk.
        disk: Guid,
        /// Partitions in use.
        partitions: u64,
    },
    /// The type is known, and the data is not of its form.
    Unreadable(&'a [u8]),
    /// The type is not known, or has no form.
    Unknown(&'a [u8]),
}

impl<'a> EventData<'a> {
    /// Reads what `event` says. Takes time linear in its length.
    pub fn of(event: &Event<'a>) -> Self {
        use EventType as T;
        let data = event.data;
        let known = match event.event_type {
            T::EV_EFI_VARIABLE_DRIVER_CONFIG | T::EV_EFI_VARIABLE_BOOT | T::EV_EFI_VARIABLE_BOOT2 | T::EV_EFI_VARIABLE_AUTHORITY => {
                variable(data)
            }
            T::EV_EFI_BOOT_SERVICES_APPLICATION | T::EV_EFI_BOOT_SERVICES_DRIVER | T::EV_EFI_RUNTIME_SERVICES_DRIVER => image(data),
            T::EV_SEPARATOR => Some(Self::Separator(data)),
            T::EV_NO_ACTION => Some(Self::NoAction(no_action(data))),
            T::EV_EFI_ACTION | T::EV_ACTION | T::EV_IPL | T::EV_OMIT_BOOT_DEVICE_EVENTS => ascii(data).map(Self::Text),
            T::EV_S_CRTM_VERSION => ascii(data).or_else(|| utf16_text(data)).map(Self::Text),
            T::EV_EFI_PLATFORM_FIRMWARE_BLOB => firmware(data, 0, String::new()),
            T::EV_EFI_PLATFORM_FIRMWARE_BLOB2 => described_firmware(data),
            T::EV_EVENT_TAG => tags(data),
            T::EV_EFI_GPT_EVENT | T::EV_EFI_GPT_EVENT2 => gpt(data),
            _ => return Self::Unknown(data),
        };
        known.unwrap_or(Self::Unreadable(data))
    }
}

impl fmt::Display for EventData<'_> {
    /// In words, on one line if what the guest chose is escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(v) if (1..=8).contains(&v.value.len()) => write!(f, "{} = {}", v.name, hex::encode(v.value)),
            Self::Variable(v) => write!(f, "{}, {} bytes", v.name, v.value.len()),
            Self::Image { path, length, .. } if path.is_empty() => write!(f, "image of {length} bytes from memory"),
            Self::Image { path, .. } => f.write_str(path),
            Self::Separator(data) => write!(f, "{}", if *data == b"WBCL" { "WBCL".to_owned() } else { bytes_text(data) }),
            Self::NoAction(NoAction::SpecId(_)) => f.write_str("header"),
            Self::NoAction(NoAction::StartupLocality(locality)) => write!(f, "started from locality {locality}"),
            Self::NoAction(NoAction::Unknown(data)) => write!(f, "not extended, {} bytes", data.len()),
            Self::Text(text) if text.trim_end_matches('\0').is_empty() => f.write_str("nothing"),
            Self::Text(text) => f.write_str(text.trim_end_matches('\0')),
            Self::Firmware { base, length, description } => {
                write!(f, "{description}{}{length:#x} bytes at {base:#x}", if description.is_empty() { "" } else { ", " })
            }
            Self::Tags(tags) => {
                for (n, (id, data)) in tags.iter().enumerate() {
                    write!(f, "{}tag {id:#010x}, {} bytes", if n == 0 { "" } else { "; " }, data.len())?;
                }
                Ok(())
            }
            Self::Gpt { disk, partitions } => write!(f, "disk {disk}, {partitions} partitions"),
            Self::Unreadable(data) => write!(f, "not of the type's form: {}", bytes_text(data)),
            Self::Unknown(data) => write!(f, "unknown: {}", bytes_text(data)),
        }
    }
}

fn bytes_text(data: &[u8]) -> String {
    match data.get(..16) {
        Some(start) if data.len() > 16 => format!("{}… ({} bytes)", hex::encode(start), data.len()),
        _ if data.is_empty() => "nothing".to_owned(),
        _ => hex::encode(data),
    }
}

/// Whether `data` is a header's, of any format.
fn no_action(data: &[u8]) -> NoAction<'_> {
    if data.starts_with(b"Spec ID Event") {
        return NoAction::SpecId(data);
    }
    match data.strip_prefix(STARTUP_LOCALITY) {
        Some([locality]) => NoAction::StartupLocality(*locality),
        _ => NoAction::Unknown(data),
    }
}

fn variable(data: &[u8]) -> Option<EventData<'_>> {
    let guid = Guid(array(data, 0)?);
    let name_len = usize::try_from(le64(data, 16)?).ok()?.checked_mul(2)?;
    let value_len = usize::try_from(le64(data, 24)?).ok()?;
    let name = slice(data, 32, name_len)?;
    let value_at = name_len.checked_add(32)?;
    let value = slice(data, value_at, value_len)?;
    if value_at.checked_add(value_len)? != data.len() {
        return None;
    }
    Some(EventData::Variable(Variable { guid, name: utf16_text(name)?, value }))
}

fn image(data: &[u8]) -> Option<EventData<'_>> {
    let path_len = usize::try_from(le64(data, 24)?).ok()?;
    let path = data.get(32..).filter(|path| path.len() == path_len)?;
    Some(EventData::Image { location: le64(data, 0)?, length: le64(data, 8)?, path: device_path::text(path)? })
}

fn firmware(data: &[u8], at: usize, description: String) -> Option<EventData<'_>> {
    let fields = data.get(at..).filter(|fields| fields.len() == 16)?;
    Some(EventData::Firmware { base: le64(fields, 0)?, length: le64(fields, 8)?, description })
}

fn described_firmware(data: &[u8]) -> Option<EventData<'_>> {
    let len = usize::from(*data.first()?);
    firmware(data, len.checked_add(1)?, ascii(slice(data, 1, len)?)?)
}

/// TCG_PCClientTaggedEvent (PFP 1.05 §10.4.2.1): identifier, length, data.
pub fn tagged(id: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    [&id.to_le_bytes(), &len.to_le_bytes(), data].concat()
}

fn tags(data: &[u8]) -> Option<EventData<'_>> {
    let mut tags = Vec::new();
    let mut at = 0_usize;
    while at < data.len() {
        let id = le32(data, at)?;
        let len = index(le32(data, at.checked_add(4)?)?);
        let start = at.checked_add(8)?;
        tags.push((id, slice(data, start, len)?));
        at = start.checked_add(len)?;
    }
    Some(EventData::Tags(tags))
}

/// `EFI_PARTITION_TABLE_HEADER` (92 bytes, UEFI 2.10 §5.3.2), the number of partitions, their entries.
fn gpt(data: &[u8]) -> Option<EventData<'_>> {
    let partitions = data.starts_with(b"EFI PART").then(|| le64(data, 92))??;
    let entry = u64::from(le32(data, 84)?);
    let entries = widen(data.len().checked_sub(100)?);
    (partitions.checked_mul(entry)? == entries).then_some(EventData::Gpt { disk: Guid(array(data, 56)?), partitions })
}

/// Printable ASCII or UTF-8, zeros only behind it.
fn ascii(data: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(data).ok()?;
    let trimmed = text.trim_end_matches('\0');
    let printable = !trimmed.is_empty() && !trimmed.contains('\0');
    printable.then(|| text.to_owned())
}

/// As UTF-16LE, without a zero behind it.
pub(crate) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// UTF-16LE, if it is.
pub(crate) fn utf16_text(data: &[u8]) -> Option<String> {
    if !data.len().is_multiple_of(2) {
        return None;
    }
    let units = data.chunks_exact(2).filter_map(|unit| le16(unit, 0));
    char::decode_utf16(units).collect::<Result<String, _>>().ok()
}
