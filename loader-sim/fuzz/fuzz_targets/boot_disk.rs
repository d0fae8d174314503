//! A disk that a machine starts from: GRUB's script, systemd-boot's entries, fallback's lists, the partition table. However the boot ends, its log is
//! one, and what can be verified of it holds.
#![no_main]

use std::sync::LazyLock;

use corpus::synth::pe::Image;
use hvci_engine::{digest::DigestAlg, facts::FileKind, policy::secure_boot::Behaviour};
use libfuzzer_sys::fuzz_target;
use loader_sim::{
    boot::{Disk, Machine, boot},
    firmware::store::VariableStore,
    measure::{EventLog, check},
};

/// A program that is told by one section, whose content is the fuzzer's.
fn program(section: &'static str, content: &[u8]) -> Vec<u8> {
    let plain = Image::of(FileKind::PeEfi, "program");
    let sections = plain.sections.iter().copied().chain([(section, corpus::synth::pe::CONST, content.len().max(1))]).collect();
    let mut image = Image { sections, file_alignment: 0x200, ..plain }.build().expect("an image");
    let pe = hvci_engine::image::pe::Pe::parse(&image).expect("an image");
    let span = pe.sections().iter().find(|s| s.display_name() == section).expect("its section").file_span();
    let at = span.offset as usize;
    image[at..at + content.len()].copy_from_slice(content);
    image
}

static KERNEL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut image = Image::of(FileKind::PeEfi, "kernel").build().expect("an image");
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image
});

const FILES: [&str; 7] = [
    "/EFI/debian/grub.cfg",
    "/EFI/BOOT/grub.cfg",
    "/loader/loader.conf",
    "/loader/entries/one.conf",
    "/loader/entries/two.conf",
    "/EFI/debian/BOOTX64.CSV",
    "/gpt.img",
];

// The first byte says which program starts, then files: which, a length of two bytes, content; the last is the program's section.
fuzz_target!(|data: &[u8]| {
    let Some((first, mut rest)) = data.split_first() else { return };
    let mut disk = Disk::default();
    disk.insert("/vmlinuz", KERNEL.clone());
    while let Some(([which, high, low], behind)) = rest.split_first_chunk::<3>() {
        let Some(file) = FILES.get(usize::from(*which)) else { break };
        let (content, behind) = behind.split_at(behind.len().min(usize::from(u16::from_be_bytes([*high, *low]))));
        disk.insert(file, content.to_vec());
        rest = behind;
    }
    let rest = &rest[..rest.len().min(4096)];
    let started = match first % 3 {
        0 => program("mods", rest),
        1 => program(".sdmagic", b"#### LoaderInfo: systemd-boot 252 ####"),
        _ => program(".linux", rest),
    };
    disk.insert("/EFI/BOOT/BOOTX64.EFI", started);
    let mut variables = VariableStore::default();
    let machine = Machine {
        disk: &disk,
        variables: &mut variables,
        behaviour: Behaviour::Strict,
        banks: &[DigestAlg::Sha256],
        firmware: b"firmware",
    };
    let boot = boot(machine, &mut ()).expect("a boot ends, and is no fault");
    let log = EventLog::read(&boot.log).expect("its log is one");
    assert_eq!(check(&log), [], "{:?}", boot.end);
});
