//! Linux modules, their appended signatures, and a kernel image with built-in keys (gABI chapter 4; Linux `scripts/sign-file.c`,
//! `include/linux/module_signature.h`, `Documentation/arch/x86/boot.rst`, `certs/system_certificates.S`).

use std::io::Write;

use der::oid::ObjectIdentifier;
use hvci_engine::{digest::DigestAlg, facts::FileKind};
use lzma_rust2::{CheckType, XzOptions, XzWriter};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionFlags, SectionKind, elf,
    write::{Object, Relocation, SectionId, Symbol, SymbolSection},
};
use rand_core::RngCore;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::{
    Error, Result,
    authenticode::set_checksum,
    certificate::Identity,
    der::Node,
    key::stream,
    layout::{Layout, read32, to_u32, to_usize, write, write32},
    oid, pe,
    signed_data::Signing,
};

/// What a signed module ends in.
const MAGIC: &[u8] = b"~Module signature appended~\n";

/// An x86-64 module called `name`, with a section that is writable and executable if `writable_code`.
///
/// # Errors
/// None that occurs.
pub fn module(name: &str, writable_code: bool) -> Result<Vec<u8>> {
    let (mut object, _) = sections(name);
    if writable_code {
        let id = object.add_section(Vec::new(), b".text.patch".into(), SectionKind::Text);
        object.append_section_data(id, &[0x90; 64], 16);
        object.section_mut(id).flags = SectionFlags::Elf { sh_flags: u64::from(elf::SHF_ALLOC | elf::SHF_EXECINSTR | elf::SHF_WRITE) };
    }
    Ok(object.write()?)
}

/// A module that exports these symbols, each 16 bytes further on in its code, and has the addresses of those in `.data.imports`
/// (`include/linux/export.h`, `struct kernel_symbol` with distances of 32 bits).
///
/// # Errors
/// None that occurs.
pub fn linked_module(name: &str, exports: &[&str], imports: &[&str]) -> Result<Vec<u8>> {
    let (mut object, text) = sections(name);
    let symbol = |name: &str, value, kind, scope, section| Symbol {
        name: name.as_bytes().to_vec(),
        value,
        size: 0,
        kind,
        scope,
        weak: false,
        section,
        flags: object::SymbolFlags::None,
    };
    let (data, global) = (object::SymbolKind::Data, object::SymbolScope::Dynamic);
    if !exports.is_empty() {
        let strings = object.add_section(Vec::new(), b"__ksymtab_strings".into(), SectionKind::ReadOnlyData);
        // the name space that all of them are in
        object.append_section_data(strings, b"\0", 1);
        let strings_symbol = object.section_symbol(strings);
        let table = object.add_section(Vec::new(), b"__ksymtab".into(), SectionKind::ReadOnlyData);
        for (value, export) in (0_u64..).step_by(16).zip(exports) {
            let at = object.append_section_data(table, &[0; 12], 4);
            let name_at = object.append_section_data(strings, format!("{export}\0").as_bytes(), 1);
            let target = object.add_symbol(symbol(export, value, object::SymbolKind::Text, global, SymbolSection::Section(text)));
            let entry = format!("__ksymtab_{export}");
            object.add_symbol(symbol(&entry, at, data, object::SymbolScope::Compilation, SymbolSection::Section(table)));
            for (offset, symbol, addend) in [(0, target, 0), (4, strings_symbol, name_at.cast_signed()), (8, strings_symbol, 0)] {
                let flags = RelocationFlags::Elf { r_type: elf::R_X86_64_PC32 };
                object.add_relocation(table, Relocation { offset: at + offset, symbol, addend, flags })?;
            }
        }
    }
    if !imports.is_empty() {
        let slots = object.add_section(Vec::new(), b".data.imports".into(), SectionKind::Data);
        for import in imports {
            let offset = object.append_section_data(slots, &[0; 8], 8);
            let symbol = object.add_symbol(symbol(import, 0, object::SymbolKind::Unknown, global, SymbolSection::Undefined));
            let flags = RelocationFlags::Elf { r_type: elf::R_X86_64_64 };
            object.add_relocation(slots, Relocation { offset, symbol, addend: 0, flags })?;
        }
    }
    Ok(object.write()?)
}

/// The sections of a module called `name`, and the number of its code.
fn sections(name: &str) -> (Object<'static>, SectionId) {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let info = format!(
        "license=GPL\0name={name}\0version=1.0\0srcversion=0123456789ABCDEF0123456\0depends=\0vermagic=6.1.0-synthetic SMP preempt mod_unload modversions \0"
    );
    let text = object.add_section(Vec::new(), b".text".into(), SectionKind::Text);
    object.append_section_data(text, &code(name, 0x600), 16);
    object.add_symbol(Symbol {
        name: b"init_module".into(),
        value: 0,
        size: 0x40,
        kind: object::SymbolKind::Text,
        scope: object::SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(text),
        flags: object::SymbolFlags::None,
    });
    for (section, kind, content) in [
        (".rodata", SectionKind::ReadOnlyData, code("rodata", 0x100)),
        (".data", SectionKind::Data, code("data", 0x80)),
        (".modinfo", SectionKind::ReadOnlyData, info.into_bytes()),
    ] {
        let id = object.add_section(Vec::new(), section.into(), kind);
        object.append_section_data(id, &content, 16);
    }
    (object, text)
}

/// How sign-file signs: SHA-256 or more, no certificates, no signed attributes.
pub fn signing(key: &Identity) -> Signing<'_> {
    Signing { certificates: Vec::new(), attributes: None, ..Signing::new(key, &[]) }
}

/// A module with its signature.
///
/// # Errors
/// A key that cannot sign so.
pub fn signed(module: &[u8], signing: &Signing<'_>) -> Result<Vec<u8>> {
    Ok(append(module, &signing.detached(module)?))
}

/// A module with `pkcs7` behind it.
pub fn append(module: &[u8], pkcs7: &[u8]) -> Vec<u8> {
    append_with(module, pkcs7, [0, 0, 2, 0, 0, 0, 0, 0], to_u32(pkcs7.len()))
}

/// A module with `pkcs7` and a trailer of these fields behind it: `algo hash id_type signer_len key_id_len pad[3]` and `sig_len`.
pub fn append_with(module: &[u8], pkcs7: &[u8], fields: [u8; 8], sig_len: u32) -> Vec<u8> {
    [module, pkcs7, &fields, &sig_len.to_be_bytes(), MAGIC].concat()
}

/// A module "signed" with ML-DSA, which most kernels do not know, by octets that are no signature but have the length of one (FIPS 204,
/// table 2).
///
/// # Errors
/// An algorithm that is not ML-DSA.
pub fn ml_dsa(module: &[u8], key: &Identity, algorithm: ObjectIdentifier) -> Result<Vec<u8>> {
    let len = match algorithm {
        oid::ML_DSA_44 => 2420,
        oid::ML_DSA_65 => 3309,
        oid::ML_DSA_87 => 4627,
        _ => return Err(Error::NotApplicable("no ML-DSA")),
    };
    let signing = Signing { digest: DigestAlg::Sha512, ..signing(key) };
    let mut root = Node::parse(&signing.detached(module)?)?;
    let info = root.at_mut(&[1, 0])?.children_mut()?.last_mut().ok_or(Error::NotApplicable("no SignerInfo"))?.at_mut(&[0])?;
    *info.at_mut(&[3])? = Node::sequence(vec![Node::oid(algorithm)]);
    *info.at_mut(&[4])? = Node::octets(code("ml-dsa", len));
    Ok(append(module, &root.encode()))
}

/// An `.xz` with the options that the kernel's own decompressor takes, or with a check that it does not know.
///
/// # Errors
/// None that occurs.
pub fn xz(content: &[u8], kernel_options: bool) -> Result<Vec<u8>> {
    let mut options = XzOptions::with_preset(6);
    options.lzma_options.dict_size = 1 << 20;
    options.check_type = if kernel_options { CheckType::Crc32 } else { CheckType::Sha256 };
    let packed = |source| Error::Io { path: "in memory".into(), source };
    let mut writer = XzWriter::new(Vec::new(), options).map_err(packed)?;
    writer.write_all(content).map_err(packed)?;
    writer.finish().map_err(packed)
}

/// A `.gz`.
///
/// # Errors
/// None that occurs.
pub fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let packed = |source| Error::Io { path: "in memory".into(), source };
    writer.write_all(content).map_err(packed)?;
    writer.finish().map_err(packed)
}

/// A `.zst`.
pub fn zstd(content: &[u8]) -> Vec<u8> {
    compress_to_vec(content, CompressionLevel::Fastest)
}

/// A bzImage with an EFI stub whose compressed kernel has these keys built in, the first being the module signing key.
///
/// # Errors
/// None that occurs.
pub fn vmlinuz(keys: &[&Identity]) -> Result<Vec<u8>> {
    // sectors of real-mode code behind the boot sector, and what stands in front of the payload
    const SETUP: u8 = 3;
    const STUB: usize = 0x40;
    let payload = xz(&vmlinux(keys)?, true)?;
    let image = pe::Image {
        sections: vec![(".setup", pe::CONST, 0x600), (".text", pe::CODE, STUB + payload.len())],
        relocations: Vec::new(),
        directories: 6,
        ..pe::Image::of(FileKind::PeEfi, "vmlinuz")
    };
    let mut bytes = image.build()?;
    write(&mut bytes, 0x1F1, &[SETUP])?;
    write(&mut bytes, 0x1FE, &[0x55, 0xAA, 0xEB, 0x6A])?;
    write(&mut bytes, 0x202, b"HdrS\x0F\x02")?;
    write32(&mut bytes, 0x248, to_u32(STUB))?;
    write32(&mut bytes, 0x24C, to_u32(payload.len()))?;
    write(&mut bytes, (usize::from(SETUP) + 1) * 512 + STUB, &payload)?;
    set_checksum(&mut bytes)?;
    Ok(bytes)
}

/// A unified kernel image of `kernel` (UAPI Group Specification 5): what systemd-stub starts, in sections of one EFI image.
///
/// # Errors
/// None that occurs.
pub fn unified(kernel: &[u8]) -> Result<Vec<u8>> {
    const RELEASE: &[u8] = b"ID=synthetic\nPRETTY_NAME=Synthetic\n";
    const COMMAND_LINE: &[u8] = b"root=/dev/synthetic ro\0";
    let texts = [(".osrel", RELEASE), (".cmdline", COMMAND_LINE), (".linux", kernel)];
    let mut sections = vec![(".text", pe::CODE, 0x1000), (".rdata", pe::CONST, 0x200)];
    let first = sections.len();
    sections.extend(texts.map(|(name, content)| (name, pe::CONST, content.len())));
    let image = pe::Image { sections, relocations: Vec::new(), ..pe::Image::of(FileKind::PeEfi, "unified") };
    let mut bytes = image.build()?;
    let layout = Layout::of(&bytes)?;
    for (index, (_, content)) in texts.iter().enumerate() {
        let at = to_usize(read32(&bytes, layout.section(first + index) + 20)?);
        write(&mut bytes, at, content)?;
    }
    set_checksum(&mut bytes)?;
    Ok(bytes)
}

/// A kernel as far as its built-in certificate list: certificates, length of the first, length of all.
fn vmlinux(keys: &[&Identity]) -> Result<Vec<u8>> {
    use der::Encode;
    let mut list = Vec::new();
    let mut first = 0;
    for key in keys {
        list.extend(key.certificate.to_der()?);
        first = if first == 0 { list.len() } else { first };
    }
    let len = list.len();
    list.resize(len.next_multiple_of(8), 0);
    for value in [first, len] {
        list.extend(u64::from(to_u32(value)).to_le_bytes());
    }
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    for (section, kind, content) in [
        (".text", SectionKind::Text, code("vmlinux", 0x4000)),
        (".rodata", SectionKind::ReadOnlyData, b"Linux version 6.1.0-synthetic (synth@example) #1 SMP\n\0".to_vec()),
        (".init.data", SectionKind::Data, list),
    ] {
        let id = object.add_section(Vec::new(), section.into(), kind);
        object.append_section_data(id, &content, 16);
    }
    let mut bytes = object.write()?;
    write(&mut bytes, 16, &elf::ET_EXEC.to_le_bytes())?;
    Ok(bytes)
}

fn code(name: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream(0, name).fill_bytes(&mut bytes);
    bytes
}
