//! ELF headers, sections, `.modinfo`, lint.
#![no_main]

use hvci_engine::image::elf::Elf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(elf) = Elf::parse(data) else { return };
    elf.kind();
    elf.facts();
    elf.notes();
    elf.lint();
    elf.section(".text");
    if let Some(info) = elf.modinfo() {
        info.entries().for_each(drop);
        assert_eq!(info.text("name"), info.name());
        info.version();
        info.vermagic();
        info.license();
    }
});
