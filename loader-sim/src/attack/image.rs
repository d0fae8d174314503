//! 46 to 58: files that are signed well and made badly.

use anyhow::{Context, Result, ensure};
use corpus::synth::{
    authenticode::{Authenticode, Entry, Table, nested},
    mutate::Mutation,
    pe::Image,
    signed_data::Signing,
};
use hvci_engine::{digest::DigestAlg, frames::Kind, load::Function};
use object::{
    elf::{R_X86_64_64, R_X86_64_PC32},
    pe::IMAGE_SCN_MEM_EXECUTE,
    write::SymbolSection,
};

use super::{
    Attack, Guest, attack, forge,
    guest::{DATA, MODULE},
};

/// Offsets in a section header of a PE image.
const VIRTUAL_SIZE: usize = 8;
const VIRTUAL_ADDRESS: usize = 12;
const RAW_SIZE: usize = 16;
const RAW_POINTER: usize = 20;

pub(super) const ATTACKS: &[Attack] = &[
    attack(46, "image/overlapping-sections", "load a driver whose sections overlap in memory", "HV_STATUS 0x6, HVCI-IMG-005", |guest| {
        let file = forge::signed_driver(&forge::driver("overlap"), |bytes, layout| {
            forge::set(bytes, layout.section(1) + VIRTUAL_ADDRESS, 0x1000);
        })?;
        guest.submit(&file)
    }),
    attack(47, "image/raw-beyond-virtual", "execute bytes of a section that lie behind its VirtualSize", "#GP, HVCI-MEM-006", |guest| {
        let file = forge::signed_driver(&forge::driver("tail"), |bytes, layout| {
            forge::set(bytes, layout.section(0) + VIRTUAL_SIZE, 0x1000);
        })?;
        let loaded = guest.submit(&file)?;
        ensure!(loaded == "goes through", "the load: {loaded}");
        // a guest's loader may put the tail there all the same
        guest.write(MODULE.1 + 0x2000, &[0xC3])?;
        guest.call_to(0, MODULE.0 + 0x2000)
    }),
    attack(48, "image/low-alignment", "load a driver whose sections are aligned to 32 bytes", "HV_STATUS 0x6, HVCI-IMG-012", |guest| {
        let image = Image { section_alignment: 0x20, file_alignment: 0x20, relocations: Vec::new(), ..forge::driver("low") };
        guest.submit(&forge::signed_driver(&image, |_, _| {})?)
    }),
    attack(
        48,
        "image/section-count",
        "load a driver with more section headers than SizeOfHeaders has room for",
        "HV_STATUS 0x6, HVCI-IMG-002",
        |guest| {
            let file = forge::signed_driver(&forge::driver("count"), |bytes, layout| forge::set(bytes, layout.size_of_headers, 0x180))?;
            guest.submit(&file)
        },
    ),
    attack(
        49,
        "image/writable-code",
        "load a driver with a section that is writable and executable",
        "HV_STATUS 0x6, HVCI-IMG-011",
        |guest| {
            let mut image = forge::driver("wx");
            image.sections[2].1 |= IMAGE_SCN_MEM_EXECUTE;
            guest.submit(&forge::signed_driver(&image, |_, _| {})?)
        },
    ),
    attack(
        50,
        "image/imports-in-code",
        "load a driver whose import address table is in a section with code",
        "HV_STATUS 0x6, HVCI-IMG-013",
        |guest| {
            let image = Image { import_section: 0, ..forge::driver("iat") };
            guest.submit(&forge::signed_driver(&image, |_, _| {})?)
        },
    ),
    attack(51, "image/relocated-header", "load a driver that has its own headers relocated", "HV_STATUS 0x6, HVCI-MEM-003", |guest| {
        relocated(guest, 0)
    }),
    attack(51, "image/relocation-outside", "load a driver that has memory behind it relocated", "HV_STATUS 0x6, HVCI-MEM-003", |guest| {
        relocated(guest, 0x4000_0000)
    }),
    attack(
        52,
        "image/relocated-code",
        "load a driver whose code is relocated, at two bases",
        "goes through, goes through, one digest",
        |guest| {
            let image = Image { relocations: vec![(0, 0x10), (0, 0x108), (2, 0x10)], ..forge::driver("relocated") };
            let file = forge::signed_driver(&image, |_, _| {})?;
            let first = guest.submit(&file)?;
            let digest = |guest: &Guest| guest.engine.loader.modules_loaded().last().and_then(|module| module.digest);
            let here = digest(guest);
            let mut other = Guest::new()?;
            let arguments = other.present_at(&file, MODULE.0 + 0x20_0000)?;
            let second = other.ask(Function::VALIDATE_MODULE, &arguments)?;
            Ok(format!("{first}, {second}, {}", if here.is_some() && here == digest(&other) { "one digest" } else { "TWO digests" }))
        },
    ),
    attack(53, "image/data-behind-table", "load a driver with data behind its certificate table", "HV_STATUS 0x6, HVCI-SIG-006", |guest| {
        mutated(guest, "data-behind-table")
    }),
    attack(
        53,
        "image/data-in-entry",
        "load a driver with data behind the signature, in its entry",
        "HV_STATUS 0x6, HVCI-SIG-005",
        |guest| mutated(guest, "entry-grown"),
    ),
    attack(53, "image/section-over-table", "load a driver that maps its certificate table", "HV_STATUS 0x6, HVCI-SIG-007", |guest| {
        mutated(guest, "section-over-table")
    }),
    attack(
        54,
        "image/downgrade",
        "load a driver with a strong signature that is of another file, nested in a weak one by nobody",
        "HV_STATUS 0x6, HVCI-POL-001",
        |guest| {
            let image = forge::driver("nested").build()?;
            let other = Authenticode::new(Signing::new(forge::driver_key()?, &[])).sign(&forge::driver("other").build()?)?;
            let mut weak = Authenticode::new(Signing { digest: DigestAlg::Sha1, ..Signing::new(forge::stranger()?, &[]) });
            weak.signing.unsigned.push(nested(&other)?);
            let blob = weak.sign(&image)?;
            guest.submit(&Table { entries: vec![Entry::pkcs7(blob)], ..Table::split(&image)? }.join()?)
        },
    ),
    attack(55, "image/section-size", "load a module whose section's size overflows its offset", "HV_STATUS 0x6, HVCI-IMG-004", |guest| {
        elf_field(guest, 32, u64::MAX - 0x100)
    }),
    attack(55, "image/section-offset", "load a module whose section lies beyond the file", "HV_STATUS 0x6, HVCI-IMG-004", |guest| {
        elf_field(guest, 24, 1 << 40)
    }),
    attack(
        55,
        "image/symbol-index",
        "load a module with a relocation against a symbol that is none",
        "HV_STATUS 0x6, HVCI-MEM-003",
        |guest| {
            let mut file = forge::Module::new()?.unsigned()?;
            // r_info of the first entry of the first SHT_RELA section: the symbol is in its upper half
            let sections = sections(&file)?;
            let rela = sections.iter().find(|at| field(&file, **at + 4, 4).ok() == Some(4)).context("no relocations")?;
            let entry = usize::try_from(field(&file, rela + 24, 8)?)?;
            file.get_mut(entry + 12..entry + 16).context("no entry")?.fill(0xFF);
            guest.submit(&forge::sign(&file)?)
        },
    ),
    attack(55, "image/two-texts", "load a module with two sections called .text", "goes through, both sealed", |guest| {
        let mut module = forge::Module::new()?;
        module.add_code(".text", &[0xC3; 0x40]);
        let observed = guest.submit(&module.signed()?)?;
        let code = guest.segment(Kind::Code)?;
        let texts = code.parts.iter().filter(|part| part.section == ".text").count();
        Ok(format!("{observed}, {}", if texts == 2 { "both sealed" } else { "NOT both sealed" }))
    }),
    attack(
        56,
        "image/unknown-code-section",
        "change a byte of code in a section of a name that no kernel knows",
        "HV_STATUS 0x6, HVCI-MEM-001",
        |guest| {
            let mut module = forge::Module::new()?;
            module.add_code(".own.code", &[0xC3; 0x40]);
            let file = module.signed()?;
            let arguments = guest.present(&file)?;
            let loaded = guest.ask(Function::VALIDATE_MODULE, &arguments)?;
            ensure!(loaded == "goes through", "unchanged: {loaded}");
            let code = guest.segment(Kind::Code)?;
            let at = code.parts.iter().find(|part| part.section == ".own.code").context("no such section")?.offset;
            let mut other = Guest::new()?;
            let arguments = other.present(&file)?;
            other.write(MODULE.1 + at + 0x20, &[0x90])?;
            other.ask(Function::VALIDATE_MODULE, &arguments)
        },
    ),
    attack(
        57,
        "image/absolute-target",
        "load a module that relocates a call to an address of its own choice",
        "HV_STATUS 0x6, HVCI-MEM-003",
        |guest| {
            let mut module = forge::Module::new()?;
            let symbol = module.symbol("elsewhere", SymbolSection::Absolute, 0xFFFF_FFFF_C060_0000);
            let (text, data) = (module.text, module.data);
            module.relocate_symbol(text, 0x81, symbol, R_X86_64_PC32, -4)?;
            module.relocate_symbol(data, 0x40, symbol, R_X86_64_64, 0)?;
            guest.submit(&module.signed()?)
        },
    ),
    attack(58, "image/giant", "ask for a load of a file of 2^40 bytes", "HV_STATUS 0xb", |guest| {
        guest.ask(Function::VALIDATE_MODULE, &[DATA.1, 4, DATA.1, 1 << 40, MODULE.0, DATA.1, 16])
    }),
];

/// A driver whose first block of relocations is about the page at `address`.
fn relocated(guest: &mut Guest, address: u32) -> Result<String> {
    let mut found = Ok(());
    let file = forge::signed_driver(&forge::driver("header"), |bytes, layout| {
        found = (|| {
            let last = layout.section(layout.section_count - 1);
            let table = usize::try_from(forge::get(bytes, last + RAW_POINTER)?)?;
            ensure!(forge::get(bytes, last + RAW_SIZE)? > 0 && bytes.get(last..last + 6) == Some(b".reloc"), "no table of relocations");
            forge::set(bytes, table, address);
            Ok(())
        })();
    })?;
    found?;
    guest.submit(&file)
}

fn mutated(guest: &mut Guest, name: &str) -> Result<String> {
    let file = forge::signed_driver(&forge::driver("mutated"), |_, _| {})?;
    guest.submit(&Mutation::find(name).context("no such mutation")?.apply(&file, &file)?)
}

/// A module with another value in a field of 64 bits of its first section's header.
fn elf_field(guest: &mut Guest, offset: usize, value: u64) -> Result<String> {
    let mut file = forge::Module::new()?.unsigned()?;
    let at = *sections(&file)?.get(1).context("no section")? + offset;
    file.get_mut(at..at + 8).context("no section")?.copy_from_slice(&value.to_le_bytes());
    guest.submit(&forge::sign(&file)?)
}

/// Where the section headers of an ELF file are.
fn sections(file: &[u8]) -> Result<Vec<usize>> {
    let (at, count) = (usize::try_from(field(file, 0x28, 8)?)?, usize::try_from(field(file, 0x3C, 2)?)?);
    Ok((0..count).map(|index| at + 64 * index).collect())
}

fn field(bytes: &[u8], at: usize, len: usize) -> Result<u64> {
    let mut word = [0; 8];
    word.get_mut(..len).context("too long")?.copy_from_slice(bytes.get(at..at + len).context("no such field")?);
    Ok(u64::from_le_bytes(word))
}
