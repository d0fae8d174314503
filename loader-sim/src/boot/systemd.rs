//! systemd-boot, which chooses a unified kernel image, and systemd-stub within one (systemd 252, `src/boot/efi`).
//!
//! The stub measures its sections into PCR 11, each by its name and then its content, and starts the kernel in it, which the firmware measures.

use hvci_engine::image::pe::Pe;

use super::{Booting, End, Fault, Program, StageKind, kernel, shim};
use crate::measure::EventType;

/// Sections that the stub measures, in its order.
const SECTIONS: [&str; 7] = [".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"];

/// systemd-boot: the entry that `loader.conf` says, else the last of `\EFI\Linux`.
pub(super) fn run_boot(booting: &mut Booting<'_, '_>, stage: usize, shim: Option<&shim::Running>) -> Result<End, Fault> {
    let disk = booting.disk;
    let wanted = disk.read("/loader/loader.conf")?.and_then(|conf| default_entry(&String::from_utf8_lossy(&conf)));
    let mut kernels: Vec<&str> = disk.files("/EFI/Linux").filter(|path| path.ends_with(".efi")).collect();
    kernels.sort_unstable();
    let is_wanted =
        |path: &&&str| wanted.as_deref().is_some_and(|wanted| path.rsplit('/').next().is_some_and(|name| matches(name, wanted)));
    let Some(chosen) = kernels.iter().rev().find(is_wanted).or_else(|| kernels.last()) else {
        return Ok(booting.stopped(stage, "systemd-boot finds no unified kernel image in \\EFI\\Linux"));
    };
    let path = chosen.replace('/', "\\");
    let bytes = disk.read(chosen)?.unwrap_or_default();
    match shim {
        Some(shim) => shim.start(booting, StageKind::of(Program::of(&bytes)), &path, bytes),
        None => booting.firmware_starts(&path, bytes, true),
    }
}

/// The stub: measures, and starts its kernel.
pub(super) fn run_stub(
    booting: &mut Booting<'_, '_>,
    stage: usize,
    path: &str,
    image: &Pe<'_>,
    shim: Option<&shim::Running>,
) -> Result<End, Fault> {
    for section in SECTIONS {
        let Some(content) = image.section_content(section) else { continue };
        let name: Vec<u8> = section.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        booting.recorder.of(11, EventType::EV_IPL, format!("{section}\0").as_bytes(), &name)?;
        booting.recorder.of(11, EventType::EV_IPL, content, &name)?;
    }
    let Some(inner) = image.section_content(".linux") else { return Ok(booting.stopped(stage, "the unified kernel has no kernel")) };
    let command_line =
        image.section_content(".cmdline").map(|text| String::from_utf8_lossy(text).trim_end_matches(['\0', '\n']).to_owned());
    if let Ok(kernel) = Pe::parse(inner) {
        // the stub vouches for it to the firmware: it is part of what was verified
        let facts = booting.facts(inner);
        booting.measure_image(stage, &kernel, &facts, &[])?;
    }
    booting.exit_boot_services()?;
    let secure = booting.secure_boot && shim.is_none_or(shim::Running::is_secure);
    Ok(kernel::start(path.to_owned(), inner.to_vec(), command_line.unwrap_or_default(), secure, true))
}

fn default_entry(conf: &str) -> Option<String> {
    conf.lines()
        .find_map(|line| line.trim().strip_prefix("default").filter(|rest| rest.starts_with([' ', '\t'])))
        .map(|rest| rest.trim().to_lowercase())
}

/// `*` stands for any text.
fn matches(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern || name.strip_suffix(".efi") == Some(pattern),
        Some((start, end)) => name.len() >= start.len().saturating_add(end.len()) && name.starts_with(start) && name.ends_with(end),
    }
}
