//! Modules and drivers for attacks, signed with keys that the engine trusts: what a publisher with a good signature can try.

use std::sync::LazyLock;

use anyhow::{Context, Result};
use corpus::synth::{
    authenticode::{self, Authenticode, Entry, Table},
    certificate::{Identity, Template},
    elf,
    key::{Key, KeyKind},
    layout::Layout,
    oid,
    pe::Image,
    signed_data::Signing,
    timestamp::Stamp,
};
use hvci_engine::{facts::FileKind, time::UnixTime};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionFlags, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    elf::{R_X86_64_64, R_X86_64_PC32, R_X86_64_PC64, SHF_ALLOC, SHF_EXECINSTR},
    write::{Object, Relocation, SectionId, Symbol, SymbolId, SymbolSection},
};

/// Whose keys these are.
struct Keys {
    module: Identity,
    driver: Identity,
    stranger: Identity,
    timestamps: Identity,
}

static KEYS: LazyLock<std::result::Result<Keys, String>> = LazyLock::new(|| {
    let key = Key::derive(7, "module", KeyKind::Rsa(2048)).map_err(|e| e.to_string())?;
    let issue = |subject, usages: &[_]| Template::leaf(subject, usages).issue(&key, None).map_err(|e| e.to_string());
    let driver = &[oid::EKU_WHQL, oid::EKU_CODE_SIGNING];
    Ok(Keys {
        module: issue("CN=module key", &[])?,
        driver: issue("CN=driver publisher", driver)?,
        stranger: issue("CN=nobody", driver)?,
        timestamps: issue("CN=timestamps", &[oid::EKU_TIMESTAMPING])?,
    })
});

fn keys() -> Result<&'static Keys> {
    KEYS.as_ref().map_err(|error| anyhow::anyhow!("no key: {error}"))
}

/// The key of the guest's kernel that signs its modules.
pub(crate) fn module_key() -> Result<&'static Identity> {
    Ok(&keys()?.module)
}

/// Who signs drivers for Windows.
pub(crate) fn driver_key() -> Result<&'static Identity> {
    Ok(&keys()?.driver)
}

/// Who proves when a driver was signed.
pub(super) fn timestamp_key() -> Result<&'static Identity> {
    Ok(&keys()?.timestamps)
}

/// Somebody whose key nobody trusts.
pub(crate) fn stranger() -> Result<&'static Identity> {
    Ok(&keys()?.stranger)
}

/// Where a module makes VTL calls.
pub(crate) const VTL_CALL_SECTION: &str = ".text.vtl_call";

/// Where the module's jump label is: over the end of its first page.
pub(super) const SITE: u64 = 0xFFE;
/// Where the module's code refers to its data.
pub(super) const REFERENCE: u64 = 0x43;
const NOP5: [u8; 5] = [0x0F, 0x1F, 0x44, 0, 0];

/// A Linux module in the making: its first instruction returns.
pub(crate) struct Module {
    object: Object<'static>,
    pub(super) text: SectionId,
    pub(super) data: SectionId,
}

impl Module {
    /// With code, data, constants, and one jump label.
    pub(crate) fn new() -> Result<Self> {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let text = object.add_section(Vec::new(), b".text".into(), SectionKind::Text);
        let mut code = vec![0xCC; 0x1800];
        code[0] = 0xC3;
        // lea rax, [data]; what is relocated must be zero, here and where attacks have something relocated
        code[0x40..0x90].fill(0);
        code[0x40..0x43].copy_from_slice(&[0x48, 0x8D, 0x05]);
        code[0xFFE..0x1003].copy_from_slice(&NOP5);
        object.append_section_data(text, &code, 16);
        let data = object.add_section(Vec::new(), b".data".into(), SectionKind::Data);
        object.append_section_data(data, &[0; 0x100], 16);
        let constants = object.add_section(Vec::new(), b".rodata".into(), SectionKind::ReadOnlyData);
        object.append_section_data(constants, b"constants of the module", 16);
        let info = object.add_section(Vec::new(), b".modinfo".into(), SectionKind::ReadOnlyData);
        object.append_section_data(info, b"license=GPL\0name=good\0vermagic=6.1.0-synthetic SMP preempt mod_unload modversions \0", 1);
        let table = object.add_section(Vec::new(), b"__jump_table".into(), SectionKind::Data);
        object.append_section_data(table, &[0; 16], 8);
        object.add_symbol(Symbol {
            name: b"init_module".into(),
            value: 0,
            size: 0x40,
            kind: SymbolKind::Text,
            scope: SymbolScope::Dynamic,
            weak: false,
            section: SymbolSection::Section(text),
            flags: SymbolFlags::None,
        });
        let mut module = Self { object, text, data };
        module.relocate(text, REFERENCE, data, R_X86_64_PC32, 0x10 - 4)?;
        module.relocate(data, 0x20, text, R_X86_64_64, 0)?;
        module.relocate(table, 0, text, R_X86_64_PC32, SITE.cast_signed())?;
        module.relocate(table, 4, text, R_X86_64_PC32, 0x1100)?;
        module.relocate(table, 8, data, R_X86_64_PC64, 0)?;
        Ok(module)
    }

    /// A relocation of this ELF type against the start of a section.
    pub(super) fn relocate(&mut self, section: SectionId, offset: u64, target: SectionId, kind: u32, addend: i64) -> Result<()> {
        let symbol = self.object.section_symbol(target);
        self.relocate_symbol(section, offset, symbol, kind, addend)
    }

    /// The same against a symbol.
    pub(super) fn relocate_symbol(&mut self, section: SectionId, offset: u64, symbol: SymbolId, kind: u32, addend: i64) -> Result<()> {
        let flags = RelocationFlags::Elf { r_type: kind };
        Ok(self.object.add_relocation(section, Relocation { offset, symbol, addend, flags })?)
    }

    /// A symbol of another module's, or one with an absolute value.
    pub(super) fn symbol(&mut self, name: &str, section: SymbolSection, value: u64) -> SymbolId {
        self.object.add_symbol(Symbol {
            name: name.into(),
            value,
            size: 0,
            kind: SymbolKind::Data,
            scope: SymbolScope::Dynamic,
            weak: false,
            section,
            flags: SymbolFlags::None,
        })
    }

    /// A further section with code.
    pub(super) fn add_code(&mut self, name: &str, code: &[u8]) -> SectionId {
        let id = self.object.add_section(Vec::new(), name.into(), SectionKind::Text);
        self.object.append_section_data(id, code, 16);
        self.object.section_mut(id).flags = SectionFlags::Elf { sh_flags: u64::from(SHF_ALLOC | SHF_EXECINSTR) };
        id
    }

    /// With a function that makes a VTL call and returns, in a section of its own.
    pub(crate) fn with_vtl_call(mut self) -> Self {
        self.add_code(VTL_CALL_SECTION, &[0x0F, 0x01, 0xC1, 0xC3]);
        self
    }

    /// The file, without a signature.
    pub(crate) fn unsigned(self) -> Result<Vec<u8>> {
        Ok(self.object.write()?)
    }

    /// The signed file.
    pub(crate) fn signed(self) -> Result<Vec<u8>> {
        sign(&self.unsigned()?)
    }
}

/// Signs a module as the kernel's build does.
pub(crate) fn sign(module: &[u8]) -> Result<Vec<u8>> {
    Ok(elf::signed(module, &elf::signing(module_key()?))?)
}

/// A good driver, not yet built.
pub(crate) fn driver(name: &str) -> Image {
    Image::of(FileKind::PeDriver, name)
}

/// Builds a driver, lets its headers be forged, and signs it.
pub(crate) fn signed_driver(image: &Image, forge: impl FnOnce(&mut [u8], &Layout)) -> Result<Vec<u8>> {
    let mut bytes = image.build()?;
    let layout = Layout::of(&bytes)?;
    forge(&mut bytes, &layout);
    Ok(authenticode::signed(&bytes, driver_key()?, &[])?)
}

/// A good driver whose signature is timestamped.
pub(super) fn stamped_driver(name: &str, time: UnixTime) -> Result<Vec<u8>> {
    let image = driver(name).build()?;
    let stamps = vec![Stamp::new(timestamp_key()?, &[], time)];
    let blob = Authenticode::new(Signing { stamps, ..Signing::new(driver_key()?, &[]) }).sign(&image)?;
    Ok(Table { entries: vec![Entry::pkcs7(blob)], ..Table::split(&image)? }.join()?)
}

/// Sets a field of a header.
pub(super) fn set(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}

/// The field of a header.
pub(super) fn get(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(*bytes.get(at..).and_then(<[u8]>::first_chunk).context("no such field")?))
}
