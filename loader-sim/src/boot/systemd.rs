//! systemd-boot, which chooses an entry, and systemd-stub within a unified kernel image (systemd 252, `src/boot/efi`; `docs/TPM2_PCR_MEASUREMENTS.md`).
//!
//! | who | measures | PCR |
//! |---|---|---|
//! | systemd-boot | the command line of an entry that gives one | 12 |
//! | systemd-stub | each section of the image, its name and then its content | 11 |
//! | systemd-stub | a command line that is not the image's own, which it takes where Secure Boot is off | 12 |
//! | Linux, of its initrd | the content, if it comes from the stub | 9 |
//! | systemd-pcrphase, when it runs | how far the start came | 11 |
//!
//! Credentials and system extensions beside an image are not read: the archives that the stub makes of them would be in PCR 12 and 13.

use hvci_engine::image::pe::Pe;

use super::{Booting, End, Fault, Loaded, kernel, shim};
use crate::measure::{
    EventType,
    data::{tagged, utf16},
};

/// Sections that the stub measures, in its order.
const SECTIONS: [&str; 7] = [".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"];
/// What systemd measures of a start that comes to its end (systemd-pcrphase.service(8)); the first two in the initrd.
const PHASES: [&str; 4] = ["enter-initrd", "leave-initrd", "sysinit", "ready"];
const INITRD_PHASES: usize = 2;
/// Linux, `drivers/firmware/efi/libstub/efistub.h`.
const INITRD_EVENT: u32 = 0x8F3B_22EC;
/// The first Linux that measures its initrd.
const MEASURES_INITRD: (u32, u32) = (5, 17);

/// An entry of the menu.
#[derive(Debug)]
struct Entry {
    /// The name of its file, in lower case, by which `loader.conf` chooses.
    id: String,
    image: String,
    /// Of a Boot Loader Specification Type #1 entry; a unified kernel image has its own.
    options: Option<String>,
}

/// systemd-boot: the entry that `loader.conf` says, else the highest version.
pub(super) fn run_boot(booting: &mut Booting<'_, '_>, stage: usize, shim: Option<&shim::Running>) -> Result<End, Fault> {
    let disk = booting.disk;
    let wanted = disk.read("/loader/loader.conf")?.and_then(|conf| default_entry(&String::from_utf8_lossy(&conf)));
    let mut entries = Vec::new();
    for path in disk.files("/EFI/Linux").filter(|path| path.ends_with(".efi")) {
        entries.push(Entry { id: file_name(path).to_owned(), image: path.to_owned(), options: None });
    }
    for path in disk.files("/loader/entries").filter(|path| path.ends_with(".conf")) {
        let text = disk.read(path)?.unwrap_or_default();
        entries.extend(entry_of(file_name(path), &String::from_utf8_lossy(&text)));
    }
    // one whose file is not there is not shown
    entries.retain(|entry| disk.exists(&entry.image));
    entries.sort_by_cached_key(|entry| std::cmp::Reverse(version_of(&entry.id)));
    let is_wanted = |entry: &&Entry| wanted.as_deref().is_some_and(|wanted| matches(&entry.id, wanted));
    let Some(chosen) = entries.iter().find(is_wanted).or_else(|| entries.first()) else {
        return Ok(booting.stopped(stage, "systemd-boot finds no entry in \\EFI\\Linux and \\loader\\entries"));
    };
    if let Some(options) = &chosen.options {
        measure_command_line(booting, options)?;
    }
    let options = chosen.options.as_deref().unwrap_or_default();
    let path = chosen.image.replace('/', "\\");
    let bytes = disk.read(&chosen.image)?.unwrap_or_default();
    match shim {
        Some(shim) => shim.start(booting, &path, &bytes, options),
        None => booting.firmware_starts(&path, &bytes, options, true),
    }
}

/// The stub: measures, and starts its kernel.
pub(super) fn run_stub(
    booting: &mut Booting<'_, '_>,
    stage: usize,
    loaded: &Loaded<'_>,
    image: &Pe<'_>,
    shim: Option<&shim::Running>,
) -> Result<End, Fault> {
    for section in SECTIONS {
        let Some(content) = image.section_content(section) else { continue };
        let name = utf16(&format!("{section}\0"));
        booting.recorder.of(11, EventType::EV_IPL, format!("{section}\0").as_bytes(), &name)?;
        booting.recorder.of(11, EventType::EV_IPL, content, &name)?;
    }
    let Some(inner) = image.section_content(".linux") else { return Ok(booting.stopped(stage, "the unified kernel has no kernel")) };
    let built_in = image.section_content(".cmdline").map(|text| String::from_utf8_lossy(text).trim_end_matches(['\0', '\n']).to_owned());
    let takes_given = !loaded.options.is_empty() && (built_in.is_none() || !booting.secure_boot);
    let command_line = if takes_given { loaded.options.to_owned() } else { built_in.unwrap_or_default() };
    if takes_given {
        measure_command_line(booting, &command_line)?;
    }
    if let Ok(kernel) = Pe::parse(inner) {
        // the stub vouches for it to the firmware: it is part of what was verified
        let facts = booting.facts(inner);
        booting.measure_image(stage, &kernel, &facts, &[])?;
    }
    let initrd = image.section_content(".initrd");
    if let Some(initrd) = initrd.filter(|_| kernel::version(inner).is_none_or(|version| version >= MEASURES_INITRD)) {
        booting.recorder.of(9, EventType::EV_EVENT_TAG, initrd, &tagged(INITRD_EVENT, b"Linux initrd\0"))?;
    }
    booting.exit_boot_services()?;
    let first = if initrd.is_some() { 0 } else { INITRD_PHASES };
    for phase in PHASES.iter().skip(first) {
        booting.recorder.of(11, EventType::EV_IPL, phase.as_bytes(), format!("{phase}\0").as_bytes())?;
    }
    let secure = booting.secure_boot && shim.is_none_or(shim::Running::is_secure);
    Ok(kernel::start(loaded.path.to_owned(), inner.to_vec(), command_line, secure, true))
}

/// The text as a program of the firmware has it, without a NUL, and in the log with one.
fn measure_command_line(booting: &mut Booting<'_, '_>, command_line: &str) -> Result<(), Fault> {
    let measured = utf16(command_line);
    let logged = utf16(&format!("{command_line}\0"));
    Ok(booting.recorder.of(12, EventType::EV_IPL, &measured, &logged)?)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// A Type #1 entry that starts Linux (UAPI.1 Boot Loader Specification): its initrds are options too.
fn entry_of(id: &str, text: &str) -> Option<Entry> {
    let values = |wanted: &'static str| {
        text.lines().filter_map(move |line| {
            let (key, value) = line.trim().split_once([' ', '\t'])?;
            (key == wanted).then(|| value.trim())
        })
    };
    let image = values("linux").next_back()?.to_owned();
    let initrds = values("initrd").map(|path| format!("initrd={}", path.replace('/', "\\")));
    let options = initrds.chain(values("options").map(str::to_owned)).collect::<Vec<_>>().join(" ");
    Some(Entry { id: id.to_owned(), image, options: Some(options) })
}

/// Numbers in a name compare as numbers (UAPI.10 Version Format Specification).
fn version_of(id: &str) -> Vec<(String, u128)> {
    let mut parts = Vec::new();
    let mut rest = id;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (words, behind) = rest.split_at(text);
        let digits = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
        let (number, behind) = behind.split_at(digits);
        parts.push((words.to_owned(), number.parse().unwrap_or(u128::MAX)));
        rest = behind;
    }
    parts
}

fn default_entry(conf: &str) -> Option<String> {
    conf.lines()
        .find_map(|line| line.trim().strip_prefix("default").filter(|rest| rest.starts_with([' ', '\t'])))
        .map(|rest| rest.trim().to_lowercase())
}

/// `*` stands for any text.
fn matches(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern || name.strip_suffix(".efi") == Some(pattern) || name.strip_suffix(".conf") == Some(pattern),
        Some((start, end)) => name.len() >= start.len().saturating_add(end.len()) && name.starts_with(start) && name.ends_with(end),
    }
}
