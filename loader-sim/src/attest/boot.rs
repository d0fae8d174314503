//! What a log says of a start, as far as digests cover it: keys, authorities, images, shim's lists, what Windows and the engine measured.
//!
//! Takes a log that [`check`](crate::measure::check()) has looked at: there the data of PCR 7 and of tagged events is compared with its
//! digests. Device paths and names of what is measured elsewhere are hints. Nothing here is true unless the PCRs are as quoted.

use std::collections::BTreeMap;

use hvci_engine::{
    digest::{Digest, DigestAlg},
    image::sbat::SbatLevel,
    signature::{
        cert::Certificate,
        signature_list::{SignatureDatabase, SignatureType},
    },
};

use super::evidence::Profile;
use crate::{
    firmware::variable::{IMAGE_SECURITY, SHIM, well_known},
    measure::{
        Event, EventLog, EventType,
        data::{EventData, Variable, utf16_text},
        event_type::Digested,
        wbcl::tag,
    },
};

/// The bank that components are known by.
pub(super) const BANK: DigestAlg = DigestAlg::Sha256;

const SETTINGS_PCR: u32 = 12;
pub(super) const MODULES_PCR: u32 = 13;
const MOK_PCR: u32 = 14;
/// Aggregations within aggregations that are looked into.
const MAX_DEPTH: usize = 4;

/// An entry by which something was allowed to start.
#[derive(Debug)]
pub(super) struct Authority {
    pub(super) event: usize,
    /// `db`, or which of shim's: `Shim`, `vendor_db`, `MokListRT`.
    pub(super) variable: String,
    pub(super) entry: Entry,
}

#[derive(Debug)]
pub(super) enum Entry {
    /// A certificate.
    Certificate(Box<Certificate>),
    /// The digest of an image.
    Digest(Digest),
    /// Neither, or of a variable that nobody knows.
    Unknown,
}

/// Something that was started.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) event: usize,
    pub(super) pcr: u32,
    pub(super) authentihash: Option<Digest>,
    /// A hint.
    pub(super) path: String,
}

/// A start.
#[derive(Debug, Default)]
pub(super) struct Boot<'a> {
    /// Secure Boot's variables: event and value.
    pub(super) variables: BTreeMap<String, (usize, &'a [u8])>,
    pub(super) authorities: Vec<Authority>,
    pub(super) sbat_level: Option<SbatLevel>,
    sbat_measured: bool,
    pub(super) images: Vec<Image>,
    /// shim's lists: event, name, digest of the value.
    pub(super) mok: Vec<(usize, String, Option<Digest>)>,
    /// What has no place in a start: event, PCR, what.
    pub(super) strange: Vec<(usize, u32, String)>,
    /// What firmware says that weakens it: event, words.
    pub(super) weak: Vec<(usize, String)>,
    /// Settings by tag; `None` where the log contradicts itself or cannot be read.
    pub(super) settings: BTreeMap<u32, Option<u64>>,
    /// Drivers that were loaded, and what Windows started before them.
    pub(super) modules: Vec<Module<'a>>,
}

/// An image that was loaded by the operating system.
#[derive(Debug)]
pub(super) struct Module<'a> {
    pub(super) event: usize,
    /// Its authentihash, of whatever algorithm.
    pub(super) authentihash: &'a [u8],
    pub(super) path: String,
}

impl<'a> Boot<'a> {
    /// What `log` says.
    pub(super) fn of(log: &EventLog<'a>, profile: Profile) -> Self {
        let mut boot = Self::default();
        let mut exited = false;
        // what is measured behind the separator may be anybody's
        let end = |pcr| log.events.iter().position(|e| e.pcr == pcr && e.event_type == EventType::EV_SEPARATOR);
        let (sealed, loaded) = (end(SETTINGS_PCR), end(MODULES_PCR));
        for (n, event) in log.events.iter().enumerate().filter(|(_, event)| event.is_extended()) {
            let data = EventData::of(event);
            if exited && event.pcr < 8 && !(event.pcr == 5 && event.event_type == EventType::EV_EFI_ACTION) {
                boot.strange.push((event.number, event.pcr, "behind ExitBootServices".to_owned()));
            }
            match event.pcr {
                7 => boot.keys(event, &data),
                2 | 4 => boot.image(event, data),
                5 if matches!(&data, EventData::Text(text) if text.starts_with("Exit Boot Services Invocation")) => exited = true,
                SETTINGS_PCR if sealed.is_some_and(|sealed| n < sealed) => boot.settings(event),
                MODULES_PCR if loaded.is_some_and(|loaded| n > loaded) => {
                    boot.strange.push((event.number, event.pcr, "behind the end of what was loaded".to_owned()));
                }
                MODULES_PCR => boot.modules(event),
                MOK_PCR if profile == Profile::Linux => match data {
                    EventData::Text(name) if event.event_type == EventType::EV_IPL => {
                        boot.mok.push((event.number, name.trim_end_matches('\0').to_owned(), event.digests.get(BANK)));
                    }
                    data => boot.strange.push((event.number, event.pcr, data.to_string())),
                },
                _ => {}
            }
        }
        boot
    }

    fn keys(&mut self, event: &Event<'a>, data: &EventData<'a>) {
        if let EventData::Text(text) = data
            && event.event_type == EventType::EV_EFI_ACTION
        {
            // "UEFI Debug Mode", "DMA Protection Disabled" (PFP 1.05 §3.3.4.8): what there is to say here is bad
            self.weak.push((event.number, text.clone()));
        }
        let EventData::Variable(variable) = data else { return };
        if event.event_type == EventType::EV_EFI_VARIABLE_DRIVER_CONFIG {
            // one of the same name in another namespace is another
            if well_known(&variable.name).is_some_and(|(vendor, _)| vendor == variable.guid) {
                self.variables.insert(variable.name.clone(), (event.number, variable.value));
            }
        } else if (variable.guid, variable.name.as_str()) == (SHIM, "SbatLevel") {
            // shim measures it once; what comes behind may be anybody's
            match (self.sbat_measured, SbatLevel::read(variable.value)) {
                (false, Ok(level)) => self.sbat_level = Some(level),
                (false, Err(note)) => self.strange.push((event.number, event.pcr, note.detail)),
                (true, _) => self.strange.push((event.number, event.pcr, "a second SbatLevel".to_owned())),
            }
            self.sbat_measured = true;
        } else {
            self.authorities.push(Authority { event: event.number, variable: variable.name.clone(), entry: entry(variable) });
        }
    }

    fn image(&mut self, event: &Event<'a>, data: EventData<'a>) {
        match (event.event_type, data) {
            (EventType::EV_SEPARATOR, _) => {}
            (EventType::EV_EFI_ACTION, EventData::Text(text)) if event.pcr == 4 && text == "Calling EFI Application from Boot Option" => {}
            (
                EventType::EV_EFI_BOOT_SERVICES_APPLICATION
                | EventType::EV_EFI_BOOT_SERVICES_DRIVER
                | EventType::EV_EFI_RUNTIME_SERVICES_DRIVER,
                data,
            ) => {
                let path = if let EventData::Image { path, .. } = data { path } else { String::new() };
                self.images.push(Image { event: event.number, pcr: event.pcr, authentihash: event.digests.get(BANK), path });
            }
            (_, data) => self.strange.push((event.number, event.pcr, data.to_string())),
        }
    }

    fn settings(&mut self, event: &Event<'a>) {
        each_tag(event, &mut |id, data, _| {
            let value = number(data);
            self.settings.entry(id).and_modify(|known| *known = known.filter(|known| Some(*known) == value)).or_insert(value);
        });
    }

    fn modules(&mut self, event: &Event<'a>) {
        let mut path = String::new();
        each_tag(event, &mut |id, data, within| match id {
            tag::FILE_PATH => path = utf16_text(data).unwrap_or_default().trim_end_matches('\0').to_owned(),
            tag::AUTHENTICODE_HASH if within == Some(tag::LOADED_MODULE) => {
                self.modules.push(Module { event: event.number, authentihash: data, path: std::mem::take(&mut path) });
            }
            _ => {}
        });
    }

    /// The authorities that stand before the image at `event` and behind the one before it. Of the order of events of two PCRs nothing but the
    /// log speaks, so this is a hint of who authorised it; an authority is measured once, so that there may be none.
    pub(super) fn authorities_by_order(&self, event: usize) -> impl Iterator<Item = &Authority> {
        let before = self.images.iter().rev().map(|image| image.event).find(|earlier| *earlier < event);
        self.authorities.iter().filter(move |authority| authority.event < event && before.is_none_or(|before| authority.event > before))
    }

    /// SHA-256 digests of images in the dbx that the firmware had.
    pub(super) fn revoked(&self) -> Vec<Digest> {
        let dbx = self.variables.get("dbx").and_then(|(_, value)| SignatureDatabase::read(value).ok());
        let entries = |dbx: SignatureDatabase| {
            let images = dbx.entries().filter(|(kind, _)| *kind == SignatureType::SHA256);
            images.filter_map(|(_, entry)| Digest::new(BANK, &entry.data)).collect()
        };
        dbx.map(entries).unwrap_or_default()
    }
}

/// db and lists of shim's have an owner before the entry; shim's own certificate stands by itself (shim up to 15).
fn entry(variable: &Variable<'_>) -> Entry {
    let of_shim = variable.guid == SHIM || variable.guid == IMAGE_SECURITY;
    let bytes = match variable.name.as_str() {
        "db" if variable.guid == IMAGE_SECURITY => variable.value.get(16..),
        "MokListRT" | "vendor_db" if of_shim => variable.value.get(16..),
        "Shim" if of_shim => Some(variable.value),
        _ => None,
    };
    let Some(bytes) = bytes else { return Entry::Unknown };
    match Digest::new(BANK, bytes) {
        Some(digest) => Entry::Digest(digest),
        None => Certificate::parse(bytes).map_or(Entry::Unknown, |certificate| Entry::Certificate(Box::new(certificate))),
    }
}

/// Every tag of an event whose data is digested, and in which aggregation.
fn each_tag<'a>(event: &Event<'a>, visit: &mut impl FnMut(u32, &'a [u8], Option<u32>)) {
    if event.event_type != EventType::EV_EVENT_TAG || event.event_type.digested(event.data) != Digested::Data {
        return;
    }
    nested(event, None, 0, visit);
}

fn nested<'a>(event: &Event<'a>, within: Option<u32>, depth: usize, visit: &mut impl FnMut(u32, &'a [u8], Option<u32>)) {
    let EventData::Tags(tags) = EventData::of(event) else { return };
    for (id, data) in tags {
        if id & tag::AGGREGATION == 0 {
            visit(id, data, within);
        } else if depth < MAX_DEPTH {
            nested(&Event { data, ..*event }, Some(id), depth.saturating_add(1), visit);
        }
    }
}

/// A little-endian number of up to eight bytes, as Windows writes settings.
fn number(data: &[u8]) -> Option<u64> {
    let mut bytes = [0; 8];
    let len = Some(data.len()).filter(|len| matches!(len, 1 | 4 | 8))?;
    bytes.get_mut(..len)?.copy_from_slice(data);
    Some(u64::from_le_bytes(bytes))
}
