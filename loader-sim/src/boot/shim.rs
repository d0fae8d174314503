//! Shim 16.1: keeps SbatLevel, asks it of itself, mirrors the machine owner's keys, and starts the next image if it may (rhboot/shim, `shim.c`,
//! `mok.c`, `sbat_var.c`).
//!
//! ```text
//! section .vendor_cert   sizes of what is authorised and deauthorised, u32 each, then their offsets; certificate or lists, lists
//! section .sbatlevel     version u32 = 0, offsets of the previous and the latest level, u32 each, from behind the version
//! ```

use hvci_engine::{
    bytes::{array, index, le32, slice},
    facts::Facts,
    image::{pe::Pe, sbat::SbatLevel},
    policy::{
        Decision,
        secure_boot::{BootVerdict, SbatUse, Shim},
    },
    signature::{
        cert::Certificate,
        signature_list::{Entry, SignatureDatabase, SignatureList, SignatureType},
    },
    uefi::Guid,
};

use super::{Asked, Booting, End, Fault, Stage, StageKind, firmware::load_option, reason};
use crate::{
    firmware::variable::{Attributes, GLOBAL, SHIM},
    measure::device_path,
};

/// Shim's own list of what is refused.
pub(super) const VENDOR_DBX: &str = "vendor dbx";
const NEXT: &str = "grubx64.efi";
const MOK_MANAGER: &str = "mmx64.efi";
const FALLBACK: &str = "fbx64.efi";

/// Shim while it runs: it stays, to be asked by what it starts.
pub(super) struct Running {
    policy: Shim,
    secure: bool,
    folder: String,
}

/// Shim's part of a boot, started from `path`.
pub(super) fn run(booting: &mut Booting<'_, '_>, stage: usize, image: &Pe<'_>, path: &str) -> Result<End, Fault> {
    let vendor = Vendor::of(image);
    let level = match keep_sbat_level(booting, stage, image)? {
        Ok(level) => level,
        Err(why) => return Ok(End::PoweredOff { stage, reason: format!("shim: SbatLevel cannot be read: {why}") }),
    };
    let state = |booting: &Booting<'_, '_>, name: &str| booting.variables.get(name, SHIM).map(|v| v.data.clone());
    let not_verifying = state(booting, "MokSBState");
    let secure = booting.secure_boot && not_verifying.as_deref() != Some(&[1]);
    let ignore_db = state(booting, "MokDBState").as_deref() == Some(&[1]);
    let behaviour = booting.policy.behaviour();
    let mok = |booting: &Booting<'_, '_>, name: &str| state(booting, name).unwrap_or_default();
    let (list, list_x) = (mok(booting, "MokList"), mok(booting, "MokListX"));
    // of what nobody can read nobody knows what it refuses
    let refused = |name, bytes: &[u8]| match SignatureDatabase::read(bytes) {
        Err(error) if secure => Err(format!("shim: {name} of what is refused cannot be read, so nothing may start: {error}")),
        read => Ok(read.unwrap_or_default()),
    };
    let (own_refused, refused_x) = match (refused("its own list", &vendor.deauthorised), refused("MokListX", &list_x)) {
        (Ok(own), Ok(x)) => (own, x),
        (Err(reason), _) | (_, Err(reason)) => return Ok(booting.stopped(stage, reason)),
    };
    let mok_list = mirrored(vendor.authorised, &list);
    let cache = &booting.cache;
    let policy = Shim {
        behaviour,
        db: (!ignore_db).then(|| booting.policy.db().clone()),
        refused: [
            Shim::database(VENDOR_DBX, own_refused, cache),
            booting.policy.dbx().clone(),
            Shim::database("MokListX", refused_x, cache),
        ],
        mok_list: Shim::database("MokListRT", SignatureDatabase::read(&mok_list).unwrap_or_default(), cache),
        sbat_level: level.components.clone(),
    };
    let own = booting.stages.get(stage).map(|s| s.sbat.clone()).unwrap_or_default();
    if secure && let Some((component, least)) = policy.outdated(&own) {
        let what = format!("{} is {}, SbatLevel wants {least}", component.name, component.generation);
        return Ok(End::PoweredOff { stage, reason: format!("shim: SBAT self-check failed: {what} [HVCI-BOOT-009]") });
    }

    let recorder = &mut booting.recorder;
    recorder.content(14, "MokList", &mok_list)?;
    recorder.content(14, "MokListX", &mirrored(vendor.deauthorised, &list_x))?;
    if let Some(value) = not_verifying {
        recorder.authority("MokSBState", SHIM, &value)?;
        recorder.content(14, "MokSBState", &value)?;
    }
    let text = booting.variables.get("SbatLevel", SHIM).map(|v| v.data.clone()).unwrap_or_default();
    booting.recorder.authority("SbatLevel", SHIM, &text)?;
    booting.recorder.content(14, "MokListTrusted", &[1])?;

    let folder = path.rsplit_once('\\').map_or("", |(folder, _)| folder).to_owned();
    let running = Running { policy, secure, folder: folder.clone() };
    let fallback = format!("{folder}\\{FALLBACK}");
    // only from the place that firmware takes without a boot option
    let next =
        if folder.eq_ignore_ascii_case("\\EFI\\BOOT") && booting.disk.exists(&fallback) { fallback } else { format!("{folder}\\{NEXT}") };
    match booting.disk.read(&next)? {
        Some(bytes) => running.start(booting, &next, &bytes, ""),
        None => Ok(booting.stopped(stage, format!("shim: {next} is not on the disk [HVCI-BOOT-011]"))),
    }
}

impl Running {
    /// Whether it verifies what it starts.
    pub(super) fn is_secure(&self) -> bool {
        self.secure
    }

    /// Decides about an image and measures what the decision rests on; the stage, and whether it may start.
    pub(super) fn verify(
        &self,
        booting: &mut Booting<'_, '_>,
        kind: StageKind,
        path: &str,
        facts: &Facts,
        sbat: SbatUse,
    ) -> Result<(usize, BootVerdict), Fault> {
        let verdict = self.policy.authorise(facts, sbat, &booting.cache);
        if let Some(authority) = &verdict.authority {
            booting.measure_authority(authority)?;
        }
        let stage = booting.push(Stage::new(kind, path, Asked::Shim, facts, Some(verdict.clone())));
        Ok((stage, verdict))
    }

    /// Starts an image, if it may.
    pub(super) fn start(&self, booting: &mut Booting<'_, '_>, path: &str, bytes: &[u8], options: &str) -> Result<End, Fault> {
        let loaded = booting.load(path, bytes, options);
        let kind = StageKind::of(loaded.program);
        let stage = if self.secure {
            let (stage, verdict) = self.verify(booting, kind, path, &loaded.facts, SbatUse::Required)?;
            if verdict.decision != Decision::Accept {
                return self.refused(booting, stage, path, &verdict);
            }
            stage
        } else {
            booting.push(Stage::new(kind, path, Asked::Nobody, &loaded.facts, None))
        };
        booting.run(stage, &loaded, &device_path::of_file(path), Some(self))
    }

    /// What shim does then: its key manager, if it is there and may start itself.
    fn refused(&self, booting: &mut Booting<'_, '_>, stage: usize, path: &str, verdict: &BootVerdict) -> Result<End, Fault> {
        let manager = format!("{}\\{MOK_MANAGER}", self.folder);
        if path != manager
            && let Some(bytes) = booting.disk.read(&manager)?
        {
            self.start(booting, &manager, &bytes, "")?;
        }
        Ok(booting.stopped(stage, format!("shim: Security Violation for {path}: {}", reason(verdict))))
    }
}

/// Fallback: makes a boot option of each `BOOTX64.CSV`, and starts the machine again.
pub(super) fn run_fallback(booting: &mut Booting<'_, '_>, stage: usize, path: &str) -> Result<End, Fault> {
    let disk = booting.disk;
    let lists = disk.files("/EFI").filter(|file| file.ends_with("/bootx64.csv"));
    let mut number = 0x10_u16;
    let mut order = Vec::new();
    for file in lists.take(16) {
        let text = disk.read(file)?.unwrap_or_default();
        // UTF-16 lines: file, title, options, description
        let units: Vec<u16> = text.chunks_exact(2).filter_map(|pair| array(pair, 0)).map(u16::from_le_bytes).collect();
        let text = String::from_utf16_lossy(&units);
        let Some((name, rest)) = text.trim_start_matches('\u{FEFF}').lines().next().and_then(|line| line.split_once(',')) else { continue };
        let title = rest.split(',').next().unwrap_or_default();
        let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder).replace('/', "\\");
        let option = load_option(title, &device_path::of_disk(&format!("{folder}\\{name}")));
        booting.variables.set(&format!("Boot{number:04X}"), GLOBAL, Attributes(0x07), &option)?;
        order.extend(number.to_le_bytes());
        number = number.saturating_add(1);
    }
    if order.is_empty() {
        return Ok(booting.stopped(stage, format!("{path}: no BOOTX64.CSV says what to start")));
    }
    order.extend(booting.variables.get("BootOrder", GLOBAL).map(|v| v.data.clone()).unwrap_or_default());
    booting.variables.set("BootOrder", GLOBAL, Attributes(0x07), &order)?;
    Ok(booting.stopped(stage, "fallback made boot options and starts the machine again: start it once more"))
}

/// Raises SbatLevel to the level that shim brings, if that is later, and reads it.
fn keep_sbat_level(booting: &mut Booting<'_, '_>, stage: usize, image: &Pe<'_>) -> Result<Result<SbatLevel, String>, Fault> {
    let own = image.section_content(".sbatlevel").and_then(previous_level);
    let read = |text: &[u8]| SbatLevel::read(text);
    let stored = booting.variables.get("SbatLevel", SHIM).map(|v| v.data.clone());
    let known = stored.as_deref().and_then(|text| read(text).ok());
    let candidate = own.and_then(|text| Some((text, read(text).ok()?)));
    match (known, candidate) {
        (Some(known), Some((_, candidate))) if known.date >= candidate.date => Ok(Ok(known)),
        (known, Some((text, candidate))) => {
            // what cannot be read is replaced too
            booting.variables.set("SbatLevel", SHIM, Attributes::NV.and(Attributes::BS), text)?;
            if known.is_some() || stored.is_some() {
                booting.note(stage, format!("SbatLevel is raised to {}", candidate.date));
            }
            Ok(Ok(candidate))
        }
        (Some(known), None) => Ok(Ok(known)),
        (None, None) => Ok(match stored {
            Some(_) => Err("it is malformed [HVCI-BOOT-008]".to_owned()),
            None => Ok(SbatLevel { date: 0, components: Vec::new() }),
        }),
    }
}

/// The text of the level that shim enforces unless it is told to take its latest.
fn previous_level(section: &[u8]) -> Option<&[u8]> {
    let body = section.get(4..).filter(|_| le32(section, 0) == Some(0))?;
    let text = body.get(index(le32(body, 0)?)..)?;
    text.get(..text.iter().position(|b| *b == 0)?)
}

/// What shim was built with.
#[derive(Debug, Default)]
struct Vendor {
    /// As lists.
    authorised: Vec<u8>,
    deauthorised: Vec<u8>,
}

impl Vendor {
    fn of(image: &Pe<'_>) -> Self {
        image.section_content(".vendor_cert").and_then(Self::read).unwrap_or_default()
    }

    fn read(section: &[u8]) -> Option<Self> {
        let field = |at| le32(section, at).map(index);
        let authorised = slice(section, field(8)?, field(0)?)?;
        let deauthorised = slice(section, field(12)?, field(4)?)?;
        let authorised = match Certificate::parse(authorised) {
            Ok(_) => {
                let entry = Entry { owner: SHIM, data: authorised.to_vec() };
                SignatureDatabase::new(vec![SignatureList::new(SignatureType::X509, vec![entry]).ok()?]).to_bytes()
            }
            Err(_) => authorised.to_vec(),
        };
        Some(Self { authorised, deauthorised: deauthorised.to_vec() })
    }
}

/// MokListRT, MokListXRT: the vendor's lists first; one entry of zeros where there would be nothing.
fn mirrored(mut vendor: Vec<u8>, own: &[u8]) -> Vec<u8> {
    vendor.extend(own);
    if vendor.is_empty() {
        let zeros = Entry { owner: Guid(SHIM.0), data: vec![0; 32] };
        let list = SignatureList::new(SignatureType::SHA256, vec![zeros]);
        return list.map(|list| SignatureDatabase::new(vec![list]).to_bytes()).unwrap_or_default();
    }
    vendor
}
