//! Writes page tables, for scenarios and tests.

use std::fmt;

use hvci_engine::{
    access::Access,
    addr::{Gpa, GpnRange, PAGE_SHIFT, PAGE_SIZE},
};

use super::{LEVELS, entry, entry_address};
use crate::{
    bus::{Bus, Fault},
    memory::PAGE,
};

/// Why a mapping was not made, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// The pages for tables are used up.
    OutOfPages,
    /// An address or a length is no multiple of the page size, or they overflow.
    Misaligned,
    /// Something is mapped there by a larger page, or no table leads there.
    NoTable,
    /// Memory could not be reached.
    Bus(Fault),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfPages => f.write_str("no pages are left for page tables"),
            Self::Misaligned => f.write_str("an address or a length is not a multiple of the page size"),
            Self::NoTable => f.write_str("no page table leads there"),
            Self::Bus(fault) => write!(f, "page table: {} refused at {}", fault.access, fault.gpa),
        }
    }
}

impl std::error::Error for BuildError {}

/// An address space whose tables are taken from a range of guest pages, one after the other.
#[derive(Clone, Debug)]
pub struct PageTables {
    pages: GpnRange,
    used: u64,
    root: Gpa,
}

impl PageTables {
    /// An empty address space.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn new<B: Bus + ?Sized>(bus: &mut B, pages: GpnRange) -> Result<Self, BuildError> {
        let mut tables = Self { pages, used: 0, root: Gpa(0) };
        tables.root = tables.take(bus)?;
        Ok(tables)
    }

    /// The value of CR3.
    pub const fn root(&self) -> Gpa {
        self.root
    }

    /// Maps `len` bytes at the virtual `address` to those at `gpa` in 4 KiB pages, with the given bits of [`entry`] in each last entry.
    /// The entries above allow everything. What was mapped there is replaced; a mapping without [`entry::PRESENT`] takes it away.
    ///
    /// # Errors
    /// [`BuildError`]; pages before the one that failed are mapped.
    pub fn map<B: Bus + ?Sized>(&mut self, bus: &mut B, address: u64, gpa: Gpa, len: u64, bits: u64) -> Result<(), BuildError> {
        self.map_pages(bus, (address, gpa, len), PAGE_SHIFT, bits)
    }

    /// [`map`](Self::map) in pages of 2 MiB.
    ///
    /// # Errors
    /// As there.
    pub fn map_large<B: Bus + ?Sized>(&mut self, bus: &mut B, address: u64, gpa: Gpa, len: u64, bits: u64) -> Result<(), BuildError> {
        self.map_pages(bus, (address, gpa, len), 21, bits | entry::LARGE)
    }

    /// Where the entries are that translate an address, from the root on: four, or fewer if a large page ends the walk.
    ///
    /// # Errors
    /// [`BuildError::NoTable`] if a table is missing.
    pub fn entries<B: Bus + ?Sized>(&self, bus: &mut B, address: u64) -> Result<Vec<Gpa>, BuildError> {
        let mut table = self.root.0;
        let mut entries = Vec::with_capacity(LEVELS.len());
        for shift in LEVELS {
            let gpa = entry_address(table, address, shift);
            entries.push(gpa);
            let value = load(bus, gpa)?;
            if shift == PAGE_SHIFT || value & entry::LARGE != 0 {
                break;
            }
            if value & entry::PRESENT == 0 {
                return Err(BuildError::NoTable);
            }
            table = value & entry::ADDRESS;
        }
        Ok(entries)
    }

    fn map_pages<B: Bus + ?Sized>(
        &mut self,
        bus: &mut B,
        (address, gpa, len): (u64, Gpa, u64),
        shift: u32,
        bits: u64,
    ) -> Result<(), BuildError> {
        let size = 1 << shift;
        let end = address.checked_add(len).and_then(|_| gpa.0.checked_add(len)).filter(|end| *end <= 1 << 52);
        if (address | gpa.0 | len) % size != 0 || end.is_none() {
            return Err(BuildError::Misaligned);
        }
        for offset in (0..len).step_by(1 << shift) {
            let at = self.last_entry(bus, address + offset, shift)?;
            let value = (gpa.0 + offset) | bits;
            bus.store(at, true, &value.to_le_bytes()).map_err(BuildError::Bus)?;
        }
        Ok(())
    }

    /// The entry that maps a page of this size, after the tables above it were made.
    fn last_entry<B: Bus + ?Sized>(&mut self, bus: &mut B, address: u64, last: u32) -> Result<Gpa, BuildError> {
        let mut table = self.root.0;
        for shift in LEVELS {
            let gpa = entry_address(table, address, shift);
            if shift == last {
                return Ok(gpa);
            }
            let value = load(bus, gpa)?;
            table = if value & entry::PRESENT == 0 {
                let next = self.take(bus)?;
                let value = next.0 | entry::PRESENT | entry::WRITABLE | entry::USER;
                bus.store(gpa, true, &value.to_le_bytes()).map_err(BuildError::Bus)?;
                next.0
            } else if value & entry::LARGE != 0 {
                return Err(BuildError::NoTable);
            } else {
                value & entry::ADDRESS
            };
        }
        Err(BuildError::NoTable)
    }

    fn take<B: Bus + ?Sized>(&mut self, bus: &mut B) -> Result<Gpa, BuildError> {
        if self.used == self.pages.pages {
            return Err(BuildError::OutOfPages);
        }
        let page = Gpa((self.pages.start.0 + self.used) * PAGE_SIZE);
        bus.store(page, true, &[0; PAGE]).map_err(BuildError::Bus)?;
        self.used += 1;
        Ok(page)
    }
}

fn load<B: Bus + ?Sized>(bus: &mut B, gpa: Gpa) -> Result<u64, BuildError> {
    let mut bytes = [0; 8];
    bus.load(gpa, Access::Read, true, &mut bytes).map_err(BuildError::Bus)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use hvci_engine::addr::Gpn;

    use super::*;
    use crate::{
        paging::{Controls, Request, translate},
        testing::FlatBus,
    };

    #[test]
    fn built_tables_translate() {
        let mut bus = FlatBus::new(64);
        let mut tables = PageTables::new(&mut bus, GpnRange::new(Gpn(8), 6).unwrap()).unwrap();
        tables.map(&mut bus, 0x1f_f000, Gpa(0x3000), 0x1000, entry::PRESENT).unwrap();
        tables.map_large(&mut bus, 0x4000_0000, Gpa(0x80_0000), 0x40_0000, entry::PRESENT).unwrap();
        let controls = Controls { cr3: 0x8000, write_protect: true, no_execute: true, smep: false, smap: false, global: false };
        let mut at = |address| {
            let request = Request { access: Access::Read, user: false, smap_off: false };
            translate(&mut bus, &controls, address, request).ok().map(|t| t.page.0)
        };
        assert_eq!(at(0x1f_fabc), Some(0x3000));
        assert_eq!(at(0x20_0000), None);
        assert_eq!(at(0x403a_b123), Some(0xba_b000));
        // five tables so far; the next mapping needs three
        assert_eq!(tables.map(&mut bus, 0x7f00_0000_0000, Gpa(0), 0x1000, 1), Err(BuildError::OutOfPages));
        assert_eq!(tables.map(&mut bus, 0x4000_1000, Gpa(0), 0x1000, 1), Err(BuildError::NoTable));
        assert_eq!(tables.map(&mut bus, 0x1001, Gpa(0), 0x1000, 1), Err(BuildError::Misaligned));
        assert_eq!(tables.map(&mut bus, 0x1000, Gpa(!0xfff), 0x1000, 1), Err(BuildError::Misaligned));
        assert_eq!(tables.entries(&mut bus, 0x4000_0000).unwrap().len(), 3);
    }
}
