//! systemd-boot and unified kernel images.

use std::process::Command;

use super::*;

/// An image with sections of this content, unsigned.
fn with_sections(name: &str, sections: &[(&'static str, &[u8])]) -> Vec<u8> {
    const CONST: u32 = 0x4000_0040;
    let plain = Image::of(FileKind::PeEfi, name);
    let more = sections.iter().map(|(section, content)| (*section, CONST, content.len()));
    let described = Image { sections: plain.sections.iter().copied().chain(more).collect(), file_alignment: 0x1000, ..plain };
    let mut image = described.build().unwrap();
    for (section, content) in sections {
        let pe = Pe::parse(&image).unwrap();
        let span = pe.sections().iter().find(|s| s.display_name() == *section).unwrap().file_span();
        let at = usize::try_from(span.offset).unwrap();
        image[at..at + content.len()].copy_from_slice(content);
    }
    image
}

/// An image that a boot loader takes for a Linux kernel.
fn kernel() -> Vec<u8> {
    let mut image = application(0);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image
}

fn unified(command_line: &str, signer: &Identity) -> Vec<u8> {
    let sections: [(&str, &[u8]); 3] = [(".osrel", b"ID=test\n"), (".cmdline", command_line.as_bytes()), (".linux", &kernel())];
    signed_over(&with_sections("stub", &sections), signer, DigestAlg::Sha256)
}

#[test]
fn a_unified_kernel_measures_its_sections() {
    let signer = identity("publisher");
    let mut store = own_store(certificates(&[&der(&signer)]), Vec::new());
    let image = unified("root=/dev/vda2 ro", &signer);
    let boot = start(&one(&image), &mut store, Strict);
    let kernel_of = boot.kernel().unwrap();
    assert_eq!((kernel_of.command_line.as_str(), kernel_of.lockdown), ("root=/dev/vda2 ro", true));
    assert_eq!(boot.stages[0].kind, StageKind::UnifiedKernel);
    // systemd 252, docs/TPM2_PCR_MEASUREMENTS.md: each section's name with its NUL, then its content, in the stub's order
    let pe = Pe::parse(&image).unwrap();
    let mut expected = Digest::new(DigestAlg::Sha256, &[0; 32]).unwrap();
    let mut extend = |measured: &[u8]| {
        let digest = crypto::digest(DigestAlg::Sha256, &[measured]);
        expected = crypto::digest(DigestAlg::Sha256, &[expected.as_bytes(), digest.as_bytes()]);
    };
    for section in [".linux", ".osrel", ".cmdline"] {
        extend(format!("{section}\0").as_bytes());
        extend(pe.section_content(section).unwrap());
    }
    // without an initrd there are no phases of one
    for phase in ["sysinit", "ready"] {
        extend(phase.as_bytes());
    }
    assert_eq!(pcr(&boot, 11), expected.hex());
    let log = EventLog::read(&boot.log).unwrap();
    let images: Vec<_> = log.events.iter().filter(|e| e.event_type == EventType::EV_EFI_BOOT_SERVICES_APPLICATION).collect();
    let digests = [&image, &kernel()].map(|image| authentihash(image, DigestForm::SectionSum, DigestAlg::Sha256));
    assert_eq!(images.iter().map(|e| e.digests.get(DigestAlg::Sha256).unwrap()).collect::<Vec<_>>(), digests);
    // the kernel within has no signature of its own: a changed one is a changed image
    let mut changed = image;
    let at = changed.windows(4).position(|w| w == b"HdrS").unwrap();
    changed[at + 0x400] ^= 1;
    assert!(start(&one(&changed), &mut store, Strict).kernel().is_none());
}

#[test]
fn systemd_boot_starts_the_entry_that_is_chosen_if_it_may() {
    let [signer, stranger] = ["publisher", "stranger"].map(identity);
    let mut store = own_store(certificates(&[&der(&signer)]), Vec::new());
    let loader = with_sections("loader", &[(".sdmagic", b"#### LoaderInfo: systemd-boot 252.39 ####\0")]);
    let mut disk = one(&signed_over(&loader, &signer, DigestAlg::Sha256));
    for (name, by) in [("a-6.1", &signer), ("b-6.5", &signer), ("z-bad", &stranger)] {
        disk.insert(&format!("/EFI/Linux/{name}.efi"), unified(name, by));
    }
    let chosen = |disk: &Disk, store: &mut VariableStore| {
        let boot = start(disk, store, Strict);
        (boot.kernel().map(|k| k.command_line.clone()), boot.stages.last().unwrap().path.clone())
    };
    assert_eq!(chosen(&disk, &mut store), (None, "\\efi\\linux\\z-bad.efi".to_owned()), "the last, which a stranger signed");
    disk.insert("/loader/loader.conf", b"timeout 3\ndefault a-*\n".to_vec());
    assert_eq!(chosen(&disk, &mut store).0.as_deref(), Some("a-6.1"));
    disk.insert("/loader/loader.conf", b"default b-6.5.efi\n".to_vec());
    assert_eq!(chosen(&disk, &mut store).0.as_deref(), Some("b-6.5"));
}

/// What systemd itself calculates for the sections of an image.
#[test]
fn pcr_11_is_what_systemd_measure_says() {
    const MEASURE: &str = "/usr/lib/systemd/systemd-measure";
    if !Path::new(MEASURE).exists() {
        eprintln!("skipped: no {MEASURE}; the package systemd has it");
        return;
    }
    let signer = identity("publisher");
    let mut store = own_store(certificates(&[&der(&signer)]), Vec::new());
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel();
    let all: [(&str, &[u8]); 6] = [
        (".osrel", b"ID=test\nVERSION_ID=1\n"),
        (".cmdline", b"root=/dev/vda2 ro"),
        (".linux", &kernel),
        (".initrd", &[0x42; 5000]),
        (".splash", b"BM and more"),
        (".pcrpkey", b"-----BEGIN PUBLIC KEY-----\n"),
    ];
    for count in [3, 4, 6] {
        let sections = &all[..count];
        let mut measure = Command::new(MEASURE);
        measure.args(["calculate", "--bank=sha256"]);
        for (name, content) in sections {
            let file = folder.path().join(name);
            fs::write(&file, content).unwrap();
            measure.arg(format!("--{}={}", name.trim_start_matches('.'), file.display()));
        }
        let phases = if count > 3 { "enter-initrd:leave-initrd:sysinit:ready" } else { "sysinit:ready" };
        let output = measure.arg(format!("--phase={phases}")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let expected = said.lines().find_map(|line| line.strip_prefix("11:sha256=")).unwrap_or_else(|| panic!("{said} {output:?}"));
        let boot = start(&one(&signed_over(&with_sections("stub", sections), &signer, DigestAlg::Sha256)), &mut store, Strict);
        assert!(boot.kernel().is_some());
        assert_eq!(pcr(&boot, 11), expected, "{count} sections");
    }
}

#[test]
fn linux_measures_the_initrd_that_the_stub_gives_it() {
    let signer = identity("publisher");
    let mut store = own_store(certificates(&[&der(&signer)]), Vec::new());
    let mut old = kernel();
    old[0x20E..0x210].copy_from_slice(&0x200_u16.to_le_bytes());
    old[0x400..0x40C].copy_from_slice(b"5.10.1 (me)\0");
    let mut new = old.clone();
    new[0x400..0x40C].copy_from_slice(b"6.1.0 (me) \0");
    for (kernel, measures) in [(&old, false), (&new, true), (&kernel(), true)] {
        let sections: [(&str, &[u8]); 2] = [(".linux", kernel), (".initrd", b"files")];
        let boot = start(&one(&signed_over(&with_sections("stub", &sections), &signer, DigestAlg::Sha256)), &mut store, Strict);
        let log = EventLog::read(&boot.log).unwrap();
        let digests: Vec<_> = log.events.iter().filter(|e| e.pcr == 9).map(|e| e.digests.get(DigestAlg::Sha256).unwrap()).collect();
        let expected = if measures { vec![crypto::digest(DigestAlg::Sha256, &[b"files"])] } else { Vec::new() };
        assert_eq!(digests, expected);
        assert_eq!(loader_sim::measure::check(&log), []);
    }
}

#[test]
fn an_entry_of_text_has_its_command_line_measured() {
    let signer = identity("publisher");
    let mut store = own_store(certificates(&[&der(&signer)]), Vec::new());
    let loader = with_sections("loader", &[(".sdmagic", b"#### LoaderInfo: systemd-boot 252.39 ####\0")]);
    let mut disk = one(&signed_over(&loader, &signer, DigestAlg::Sha256));
    for version in ["6.9", "6.10"] {
        disk.insert(&format!("/{version}/linux"), signed_over(&kernel(), &signer, DigestAlg::Sha256));
        let text = format!(
            "title Test\nversion {version}\nlinux /{version}/linux\ninitrd /{version}/initrd\noptions root=/dev/a\noptions quiet\n"
        );
        disk.insert(&format!("/loader/entries/test-{version}.conf"), text.into_bytes());
    }
    disk.insert("/loader/entries/test-7.0.conf", b"linux /7.0/linux\n".to_vec());
    let boot = start(&disk, &mut store, Strict);
    let options = "initrd=\\6.10\\initrd root=/dev/a quiet";
    assert_eq!(boot.kernel().unwrap().command_line, options, "the highest version that is there");
    let log = EventLog::read(&boot.log).unwrap();
    let measured: Vec<u8> = options.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let event = log.events.iter().find(|e| e.pcr == 12).unwrap();
    assert_eq!(event.digests.get(DigestAlg::Sha256), Some(crypto::digest(DigestAlg::Sha256, &[&measured])));
    // and of the kernel's image in PCR 4 firmware knows nothing of it
    assert_eq!(boot.stages.iter().map(|stage| stage.kind).collect::<Vec<_>>(), [StageKind::SystemdBoot, StageKind::Kernel]);
    disk.insert("/loader/loader.conf", b"default test-6.9\n".to_vec());
    assert!(start(&disk, &mut store, Strict).kernel().unwrap().command_line.contains("6.9"));
    let mut unsigned = disk;
    unsigned.insert("/6.9/linux", kernel());
    assert!(start(&unsigned, &mut store, Strict).kernel().is_none());
}
