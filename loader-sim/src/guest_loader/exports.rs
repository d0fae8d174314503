//! What modules export, as the guest's own loader finds it: the export table as `object` reads it, and of a Linux module its symbols, where
//! the engine reads the table that its kernel reads.

use std::collections::{BTreeMap, BTreeSet};

use hvci_engine::{
    addr::Gva,
    image::{elf::Elf, pe::Symbol},
    load::{Placement, Symbols},
};
use object::{
    Object, ObjectSymbol,
    read::{
        elf::ElfFile64,
        pe::{ExportTarget, PeFile64},
    },
};

use super::{
    GuestLoaderError, StubKernel,
    links::{Link, Links},
    wrong,
};

/// How many forwarders are followed.
const MAX_FORWARDERS: usize = 8;

/// [`StubKernel`], but for what modules at hand export.
#[derive(Clone, Debug, Default)]
pub struct PartialKernel {
    left: BTreeSet<Link>,
}

impl PartialKernel {
    /// Leaves to a file what it exports.
    pub fn leave_to(&mut self, file: &Links) {
        self.left.extend(file.exports.iter().cloned());
    }
}

impl Symbols for PartialKernel {
    fn resolve(&self, library: &[u8], symbol: Symbol<'_>) -> Option<Gva> {
        let link = match symbol {
            Symbol::Name(name) if library.is_empty() => Link::Symbol(name.to_vec()),
            _ => Link::Library(stem(library)),
        };
        if self.left.contains(&link) { None } else { StubKernel.resolve(library, symbol) }
    }
}

/// A kernel and the modules that the guest has loaded: what it binds the next one's imports to.
#[derive(Debug)]
pub struct Loaded<K> {
    kernel: K,
    drivers: BTreeMap<Vec<u8>, Vec<Exported>>,
    symbols: BTreeMap<Vec<u8>, Gva>,
}

/// Name, ordinal number, and what it leads to.
type Exported = (Option<Vec<u8>>, u16, Target);

#[derive(Clone, Debug)]
enum Target {
    At(Gva),
    Name(Vec<u8>, Vec<u8>),
    Ordinal(Vec<u8>, u16),
}

impl<K: Symbols> Loaded<K> {
    /// A guest that has loaded nothing.
    pub const fn new(kernel: K) -> Self {
        Self { kernel, drivers: BTreeMap::new(), symbols: BTreeMap::new() }
    }

    /// Adds the exports of a module that is loaded at `base`.
    ///
    /// # Errors
    /// [`GuestLoaderError`] for a table that cannot be read.
    pub fn add(&mut self, name: &str, file: &[u8], base: Gva) -> Result<(), GuestLoaderError> {
        if file.starts_with(b"MZ") {
            let pe = PeFile64::parse(file)?;
            let Some(table) = pe.export_table()? else { return Ok(()) };
            let exports = table.exports()?.into_iter().map(|export| {
                let target = match export.target {
                    ExportTarget::Address(address) => Target::At(Gva(base.0.wrapping_add(u64::from(address)))),
                    ExportTarget::ForwardByName(library, name) => Target::Name(library.to_vec(), name.to_vec()),
                    ExportTarget::ForwardByOrdinal(library, ordinal) => {
                        Target::Ordinal(library.to_vec(), u16::try_from(ordinal).unwrap_or(0))
                    }
                };
                (export.name.map(<[u8]>::to_vec), u16::try_from(export.ordinal).unwrap_or(0), target)
            });
            self.drivers.insert(stem(name.as_bytes()), exports.collect());
            return Ok(());
        }
        let placement = Placement::contiguous(&Elf::parse(file).map_err(|e| wrong(e.to_string()))?, base)?;
        let places: BTreeMap<usize, u64> = placement.sections.iter().map(|p| (p.section, p.address.0)).collect();
        for (name, (section, offset)) in exported(&ElfFile64::parse(file)?)? {
            let section = places.get(&section).ok_or_else(|| wrong("an export of a section that is not loaded"))?;
            self.symbols.insert(name, Gva(section.wrapping_add(offset)));
        }
        Ok(())
    }

    fn find(&self, library: &[u8], symbol: Symbol<'_>, more: usize) -> Option<Gva> {
        if let Some(address) = self.kernel.resolve(library, symbol) {
            return Some(address);
        }
        if library.is_empty() {
            let Symbol::Name(name) = symbol else { return None };
            return self.symbols.get(name).copied();
        }
        let is_it = |(name, ordinal, _): &&Exported| match symbol {
            Symbol::Name(wanted) => name.as_deref() == Some(wanted),
            Symbol::Ordinal(wanted) => *ordinal == wanted,
        };
        let more = more.checked_sub(1)?;
        match &self.drivers.get(&stem(library))?.iter().find(is_it)?.2 {
            Target::At(address) => Some(*address),
            Target::Name(library, name) => self.find(library, Symbol::Name(name), more),
            Target::Ordinal(library, ordinal) => self.find(library, Symbol::Ordinal(*ordinal), more),
        }
    }
}

impl<K: Symbols> Symbols for Loaded<K> {
    fn resolve(&self, library: &[u8], symbol: Symbol<'_>) -> Option<Gva> {
        self.find(library, symbol, MAX_FORWARDERS + 1)
    }
}

/// The names for which a module has an entry in a table of exports, with section and offset of what each is.
pub(super) fn exported(elf: &ElfFile64<'_>) -> Result<BTreeMap<Vec<u8>, (usize, u64)>, GuestLoaderError> {
    let entries: BTreeSet<&[u8]> =
        elf.symbols().filter_map(|s| s.name_bytes().ok()?.strip_prefix(b"__ksymtab_")).filter(|name| !name.is_empty()).collect();
    let mut exported = BTreeMap::new();
    for symbol in elf.symbols().filter(|s| s.is_definition() && s.is_global()) {
        let (name, Some(section)) = (symbol.name_bytes()?, symbol.section_index()) else { continue };
        if entries.contains(name) {
            exported.insert(name.to_vec(), (section.0, symbol.address()));
        }
    }
    Ok(exported)
}

/// A file name without extension, in small letters.
pub(super) fn stem(name: &[u8]) -> Vec<u8> {
    let name = name.iter().rposition(|b| *b == b'.').and_then(|dot| name.get(..dot)).unwrap_or(name);
    name.to_ascii_lowercase()
}
