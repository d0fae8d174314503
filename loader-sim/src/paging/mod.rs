//! The guest's own page tables: four levels of 64-bit entries (Intel SDM volume 3, "4-level paging"; AMD64 APM volume 2, 5.3).
//!
//! Every entry is read through the [`Bus`], and accessed and dirty bits are set through it: what the second-level table says about the pages
//! that hold page tables is obeyed. Not modelled: five levels, PCIDs, protection keys, shadow stacks, memory types.

mod build;
mod tlb;

use hvci_engine::{
    access::Access,
    addr::{Gpa, PAGE_SHIFT, PAGE_SIZE},
};

pub use self::build::{BuildError, PageTables};
pub(crate) use self::tlb::Tlb;
use crate::bus::{Bus, Fault};

/// Bits of a page-table entry.
pub mod entry {
    /// The entry is in use.
    pub const PRESENT: u64 = 1;
    /// Stores are allowed.
    pub const WRITABLE: u64 = 1 << 1;
    /// User mode has access.
    pub const USER: u64 = 1 << 2;
    /// The entry was used in a translation.
    pub const ACCESSED: u64 = 1 << 5;
    /// The page was written to; in the last entry of a walk.
    pub const DIRTY: u64 = 1 << 6;
    /// The entry maps a 2 MiB or 1 GiB page.
    pub const LARGE: u64 = 1 << 7;
    /// The translation outlives a write to CR3, with CR4.PGE.
    pub const GLOBAL: u64 = 1 << 8;
    /// No instruction is fetched from there, with EFER.NXE.
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// The bits of the address.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Bits of a page fault's error code.
pub mod error_code {
    /// The translation exists, and forbids the access.
    pub const PRESENT: u32 = 1;
    /// A store.
    pub const WRITE: u32 = 1 << 1;
    /// An access of user mode.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit is set in an entry.
    pub const RESERVED: u32 = 1 << 3;
    /// An instruction fetch, with EFER.NXE or CR4.SMEP.
    pub const FETCH: u32 = 1 << 4;
}

/// What of the processor's registers a translation depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// CR3.
    pub cr3: u64,
    /// CR0.WP: the kernel too may not write to read-only pages.
    pub write_protect: bool,
    /// EFER.NXE.
    pub no_execute: bool,
    /// CR4.SMEP: the kernel executes no user page.
    pub smep: bool,
    /// CR4.SMAP: the kernel accesses no user page, but with RFLAGS.AC.
    pub smap: bool,
    /// CR4.PGE.
    pub global: bool,
}

/// An access to be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is done. The two kinds of fetches are the same here.
    pub access: Access,
    /// Whether it is an access of user mode.
    pub user: bool,
    /// Whether SMAP does not apply: RFLAGS.AC is set and the access is an explicit one.
    pub smap_off: bool,
}

impl Request {
    const fn is_fetch(self) -> bool {
        matches!(self.access, Access::KernelExecute | Access::UserExecute)
    }

    const fn is_write(self) -> bool {
        matches!(self.access, Access::Write)
    }
}

/// Where a virtual page lies and what may be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The first byte of the 4 KiB page.
    pub page: Gpa,
    /// log2 of the bytes that the last entry maps: 12, 21 or 30.
    pub shift: u32,
    /// Every entry allows stores.
    pub writable: bool,
    /// Every entry allows user mode.
    pub user: bool,
    /// An entry forbids fetches.
    pub no_execute: bool,
    /// The dirty bit is set.
    pub dirty: bool,
    /// The global bit is set and in force.
    pub global: bool,
}

impl Translation {
    /// Whether the access is allowed.
    pub const fn allows(&self, request: Request, controls: &Controls) -> bool {
        if request.is_fetch() {
            let mode = if request.user { self.user } else { !(self.user && controls.smep) };
            return mode && !self.no_execute;
        }
        let mode = if request.user { self.user } else { !(self.user && controls.smap) || request.smap_off };
        mode && (!request.is_write() || self.writable || !request.user && !controls.write_protect)
    }
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// A page fault, with its error code.
    Page(u32),
    /// The second-level translation refused an access to an entry.
    Bus(Fault),
}

/// The four levels, with the shift of the address bits that index them.
const LEVELS: [u32; 4] = [39, 30, 21, PAGE_SHIFT];

/// Whether bits 63 to 47 of a virtual address are the same.
pub const fn is_canonical(address: u64) -> bool {
    matches!(address >> 47, 0 | 0x1_ffff)
}

/// Walks the tables, and sets accessed and dirty bits if the access is allowed, from the root on.
///
/// # Errors
/// [`WalkError`]. After [`WalkError::Bus`] on a store, bits of higher levels may be set; that changes no meaning.
pub fn translate<B: Bus + ?Sized>(bus: &mut B, controls: &Controls, address: u64, request: Request) -> Result<Translation, WalkError> {
    let mut walk = [(Gpa(0), 0); LEVELS.len()];
    let mut table = controls.cr3 & entry::ADDRESS;
    let mut rights = (true, true, false);
    let mut depth = 0;
    loop {
        let shift = LEVELS[depth];
        let gpa = entry_address(table, address, shift);
        let mut bytes = [0; 8];
        bus.load(gpa, Access::Read, true, &mut bytes).map_err(WalkError::Bus)?;
        let value = u64::from_le_bytes(bytes);
        walk[depth] = (gpa, value);
        if value & entry::PRESENT == 0 {
            return Err(fault(0, request, controls));
        }
        let leaf = shift == PAGE_SHIFT || value & entry::LARGE != 0;
        if value & reserved(shift, leaf, controls) != 0 {
            return Err(fault(error_code::PRESENT | error_code::RESERVED, request, controls));
        }
        rights.0 &= value & entry::WRITABLE != 0;
        rights.1 &= value & entry::USER != 0;
        rights.2 |= value & entry::NO_EXECUTE != 0;
        if !leaf {
            table = value & entry::ADDRESS;
            depth += 1;
            continue;
        }
        let inside = (1 << shift) - 1;
        let translation = Translation {
            page: Gpa((value & entry::ADDRESS & !inside) | (address & inside & !(PAGE_SIZE - 1))),
            shift,
            writable: rights.0,
            user: rights.1,
            no_execute: rights.2,
            dirty: value & entry::DIRTY != 0 || request.is_write(),
            global: value & entry::GLOBAL != 0 && controls.global,
        };
        if !translation.allows(request, controls) {
            return Err(fault(error_code::PRESENT, request, controls));
        }
        mark(bus, &walk[..=depth], request)?;
        return Ok(translation);
    }
}

/// Sets the accessed bits of a walk, and the dirty bit of its last entry for a store.
fn mark<B: Bus + ?Sized>(bus: &mut B, walk: &[(Gpa, u64)], request: Request) -> Result<(), WalkError> {
    for (depth, &(gpa, value)) in walk.iter().enumerate() {
        let dirty = if request.is_write() && depth + 1 == walk.len() { entry::DIRTY } else { 0 };
        let marked = value | entry::ACCESSED | dirty;
        if marked != value {
            bus.store(gpa, true, &marked.to_le_bytes()).map_err(WalkError::Bus)?;
        }
    }
    Ok(())
}

/// Where the entry of an address is in a table.
const fn entry_address(table: u64, address: u64, shift: u32) -> Gpa {
    Gpa(table + ((address >> shift) & 0x1ff) * 8)
}

/// The bits that must be zero in an entry.
const fn reserved(shift: u32, leaf: bool, controls: &Controls) -> u64 {
    let size = match shift {
        39 => entry::LARGE,
        // bit 12 of a large page is PAT
        30 | 21 if leaf => ((1 << shift) - 1) & !0x1fff,
        _ => 0,
    };
    size | if controls.no_execute { 0 } else { entry::NO_EXECUTE }
}

fn fault(bits: u32, request: Request, controls: &Controls) -> WalkError {
    let fetch = request.is_fetch() && (controls.no_execute || controls.smep);
    let bit = |set, bit| if set { bit } else { 0 };
    WalkError::Page(bits | bit(request.is_write(), error_code::WRITE) | bit(request.user, error_code::USER) | bit(fetch, error_code::FETCH))
}

#[cfg(test)]
mod tests {
    use hvci_engine::addr::{Gpn, GpnRange};

    use super::*;
    use crate::testing::FlatBus;

    const CONTROLS: Controls = Controls { cr3: 0, write_protect: true, no_execute: true, smep: true, smap: true, global: true };
    const VA: u64 = 0xffff_8000_1234_5000;

    fn request(access: Access, user: bool) -> Request {
        Request { access, user, smap_off: false }
    }

    /// A page at [`VA`] to GPA 0x9000 whose entry has these bits, under tables that allow everything.
    fn mapped(bits: u64) -> (FlatBus, PageTables, Controls) {
        let mut bus = FlatBus::new(64);
        let mut tables = PageTables::new(&mut bus, GpnRange::new(Gpn(16), 16).unwrap()).unwrap();
        tables.map(&mut bus, VA, Gpa(0x9000), PAGE_SIZE, bits).unwrap();
        let controls = Controls { cr3: tables.root().0, ..CONTROLS };
        (bus, tables, controls)
    }

    fn outcome(bits: u64, access: Access, user: bool, change: impl Fn(&mut Controls)) -> Result<u64, u32> {
        let (mut bus, _, mut controls) = mapped(bits);
        change(&mut controls);
        match translate(&mut bus, &controls, VA + 0x123, request(access, user)) {
            Ok(t) => Ok(t.page.0),
            Err(WalkError::Page(code)) => Err(code),
            Err(WalkError::Bus(fault)) => panic!("{fault:?}"),
        }
    }

    #[test]
    fn every_fault_bit() {
        use Access::{KernelExecute, Read, UserExecute, Write};
        use entry::{NO_EXECUTE as NX, PRESENT as P, USER as U, WRITABLE as W};
        let same = |_: &mut Controls| ();
        let ok = Ok(0x9000);
        // not present
        for (access, user, code) in [(Read, false, 0), (Write, false, 2), (Read, true, 4), (Write, true, 6), (UserExecute, true, 0x14)] {
            assert_eq!(outcome(0, access, user, same), Err(code), "{access}");
        }
        assert_eq!(outcome(0, KernelExecute, false, |c| (c.no_execute, c.smep) = (false, false)), Err(0));
        assert_eq!(outcome(0, KernelExecute, false, |c| c.no_execute = false), Err(0x10));
        // the kernel
        assert_eq!(outcome(P, Read, false, same), ok);
        assert_eq!(outcome(P, Write, false, same), Err(3));
        assert_eq!(outcome(P, Write, false, |c| c.write_protect = false), ok);
        assert_eq!(outcome(P, KernelExecute, false, same), ok);
        assert_eq!(outcome(P | NX, KernelExecute, false, same), Err(0x11));
        // the kernel in user pages
        assert_eq!(outcome(P | U, KernelExecute, false, same), Err(0x11));
        assert_eq!(outcome(P | U, KernelExecute, false, |c| c.smep = false), ok);
        assert_eq!(outcome(P | U | W, Read, false, same), Err(1));
        assert_eq!(outcome(P | U | W, Write, false, same), Err(3));
        assert_eq!(outcome(P | U | W, Write, false, |c| c.smap = false), ok);
        // a cleared CR0.WP does not lift SMAP
        assert_eq!(outcome(P | U | W, Write, false, |c| c.write_protect = false), Err(3));
        // user mode
        assert_eq!(outcome(P | W, Read, true, same), Err(5));
        assert_eq!(outcome(P | U, Read, true, same), ok);
        assert_eq!(outcome(P | U, Write, true, |c| c.write_protect = false), Err(7));
        assert_eq!(outcome(P | U | W, Write, true, same), ok);
        assert_eq!(outcome(P | U | NX, UserExecute, true, same), Err(0x15));
        assert_eq!(outcome(P, UserExecute, true, same), Err(0x15));
        // reserved
        assert_eq!(outcome(P | W | NX, Read, false, |c| c.no_execute = false), Err(9));
        assert_eq!(outcome(P | W | NX, Write, true, |c| c.no_execute = false), Err(0xf));
    }

    #[test]
    fn smap_ends_with_ac() {
        let (mut bus, _, controls) = mapped(entry::PRESENT | entry::USER);
        let request = Request { access: Access::Read, user: false, smap_off: true };
        assert!(translate(&mut bus, &controls, VA, request).is_ok());
    }

    #[test]
    fn reserved_bits_of_large_entries() {
        let (mut bus, tables, controls) = mapped(entry::PRESENT);
        let walk = tables.entries(&mut bus, VA).unwrap();
        let mut with = |depth: usize, value: u64| {
            bus.store(walk[depth], true, &value.to_le_bytes()).unwrap();
            translate(&mut bus, &controls, VA, request(Access::Read, false)).map(|t| (t.page.0, t.shift))
        };
        let bits = entry::PRESENT | entry::LARGE;
        assert_eq!(with(2, 0x4020_0000 | bits), Ok((0x4034_5000, 21)));
        assert_eq!(with(2, 0x4020_1000 | bits), Ok((0x4034_5000, 21)), "bit 12 is PAT");
        assert_eq!(with(2, 0x4020_2000 | bits), Err(WalkError::Page(9)));
        assert_eq!(with(1, 0xc000_0000 | bits), Ok((0xd234_5000, 30)));
        assert_eq!(with(1, 0xc020_0000 | bits), Err(WalkError::Page(9)));
        assert_eq!(with(0, 0x4000_0000 | bits), Err(WalkError::Page(9)));
    }

    #[test]
    fn rights_are_those_of_every_level() {
        use entry::{NO_EXECUTE as NX, PRESENT as P, USER as U, WRITABLE as W};
        for depth in 0..4 {
            for (cleared, set, access, user, code) in
                [(W, 0, Access::Write, true, 7), (U, 0, Access::Read, true, 5), (0, NX, Access::UserExecute, true, 0x15)]
            {
                let (mut bus, tables, controls) = mapped(P | U | W);
                let at = tables.entries(&mut bus, VA).unwrap()[depth];
                assert!(translate(&mut bus, &controls, VA, request(access, user)).is_ok());
                let value = (bus.qword(at) & !cleared) | set;
                bus.store(at, true, &value.to_le_bytes()).unwrap();
                assert_eq!(translate(&mut bus, &controls, VA, request(access, user)), Err(WalkError::Page(code)));
            }
        }
    }

    #[test]
    fn a_walk_marks_what_it_used() {
        let (mut bus, tables, controls) = mapped(entry::PRESENT | entry::WRITABLE);
        let walk = tables.entries(&mut bus, VA).unwrap();
        let marks = |bus: &FlatBus| [0, 1, 2, 3].map(|depth: usize| bus.qword(walk[depth]) & (entry::ACCESSED | entry::DIRTY));
        assert_eq!(marks(&bus), [0; 4]);
        // refused: nothing is marked
        translate(&mut bus, &controls, VA, request(Access::Read, true)).unwrap_err();
        assert_eq!(marks(&bus), [0; 4]);
        translate(&mut bus, &controls, VA, request(Access::Read, false)).unwrap();
        assert_eq!(marks(&bus), [0x20; 4]);
        translate(&mut bus, &controls, VA, request(Access::Write, false)).unwrap();
        assert_eq!(marks(&bus), [0x20, 0x20, 0x20, 0x60]);
        // nothing to mark: no store
        bus.protect(walk[3].gpn(), false, true);
        assert!(translate(&mut bus, &controls, VA, request(Access::Write, false)).is_ok());
    }

    #[test]
    fn tables_in_protected_pages() {
        let (mut bus, tables, controls) = mapped(entry::PRESENT | entry::WRITABLE);
        let walk = tables.entries(&mut bus, VA).unwrap();
        let read = request(Access::Read, false);
        bus.protect(walk[2].gpn(), false, true);
        let refused = Fault { gpa: walk[2], access: Access::Write, page_walk: true };
        assert_eq!(translate(&mut bus, &controls, VA, read), Err(WalkError::Bus(refused)));
        bus.hide(walk[2].gpn());
        let refused = Fault { gpa: walk[2], access: Access::Read, page_walk: true };
        assert_eq!(translate(&mut bus, &controls, VA, read), Err(WalkError::Bus(refused)));
    }

    #[test]
    fn addresses_are_canonical_or_not() {
        assert_eq!([0, 0x7fff_ffff_ffff, 1 << 47, !0 << 47, (!0 << 47) - 1].map(is_canonical), [true, true, false, true, false]);
    }
}
