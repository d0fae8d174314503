//! Page tables of other crates beside [`Slat`]: the same pages, the same frames, the same changes.
//!
//! Pages are mapped to the frames one further on, so that no large leaf fits and none comes about by a merge: what is measured is the work
//! on single pages. The peers' tables are ordinary long-mode ones in boxed pages and are never loaded into a processor; neither crate
//! flushes a TLB here.
//
// UNSAFETY: both crates have tables by physical address. Here that is the address of a boxed page, so whatever they make a pointer of came
// from a box, is aligned and was zeroed, and lives until the table that holds it is dropped.
#![expect(unsafe_code, reason = "page tables by physical address; see UNSAFETY above")]

use std::{cell::RefCell, ptr};

use anyhow::{Result, anyhow};
use hvci_engine::{
    access::{Access, MapGpaFlags},
    addr::{Frame, Gpa, Gpn, GpnRange, PAGE_SIZE},
    slat::{MemoryType, Mode, Slat},
};
use memory_addr::{PhysAddr, VirtAddr};
use page_table_multiarch::{MappingFlags, PagingHandler, x86_64::X64PageTable};
use x86_64::structures::paging::{
    FrameAllocator, MappedPageTable, Mapper, Page, PageTable, PageTableFlags, PhysFrame, Size4KiB, Translate, mapper::PageTableFrameMapping,
};

/// Tables that can be compared. Ranges are of pages, and lie within what was mapped.
pub trait Tables {
    /// What they are called.
    const NAME: &'static str;

    /// Tables with `pages` pages from page 0, readable and writable.
    ///
    /// # Errors
    /// What the crate says.
    fn with(pages: u64) -> Result<Self>
    where
        Self: Sized;

    /// Makes a range writable or not.
    ///
    /// # Errors
    /// What the crate says.
    fn protect(&mut self, range: GpnRange, writable: bool) -> Result<()>;

    /// The frame that a read of a page leads to.
    fn lookup(&mut self, gpn: Gpn) -> Option<Frame>;
}

const RW: MapGpaFlags = MapGpaFlags(MapGpaFlags::READABLE.0 | MapGpaFlags::WRITABLE.0);

/// The frame of a page.
const fn frame(gpn: Gpn) -> Frame {
    Frame(gpn.0 + 1)
}

/// The engine's.
#[derive(Debug)]
pub struct Ours<const ACCESSED_DIRTY: bool>(Slat);

impl<const ACCESSED_DIRTY: bool> Tables for Ours<ACCESSED_DIRTY> {
    const NAME: &'static str = if ACCESSED_DIRTY { "us, accessed and dirty bits" } else { "us" };

    fn with(pages: u64) -> Result<Self> {
        let tables = usize::try_from(pages.div_ceil(512) + pages.div_ceil(512 * 512) + 2)?;
        let slat = if ACCESSED_DIRTY { Slat::with_accessed_dirty(tables) } else { Slat::new(tables) };
        slat.map(GpnRange { start: Gpn(0), pages }, frame(Gpn(0)), RW, MemoryType::WriteBack)?;
        Ok(Self(slat))
    }

    fn protect(&mut self, range: GpnRange, writable: bool) -> Result<()> {
        Ok(self.0.protect(range, if writable { RW } else { MapGpaFlags::READABLE })?)
    }

    fn lookup(&mut self, gpn: Gpn) -> Option<Frame> {
        let leaf = self.0.walk(Gpa(gpn.0 * PAGE_SIZE), Access::Read, Mode { mbec: true }).ok()?;
        Some(leaf.frame)
    }
}

/// `page_table_multiarch`'s.
#[expect(missing_debug_implementations, reason = "nor has the crate one")]
pub struct Multiarch(X64PageTable<Boxes>);

impl Tables for Multiarch {
    const NAME: &'static str = "page_table_multiarch";

    fn with(pages: u64) -> Result<Self> {
        let mut table = X64PageTable::<Boxes>::try_new().map_err(|e| anyhow!("{e:?}"))?;
        let page = usize::try_from(PAGE_SIZE)?;
        let to = |at: VirtAddr| PhysAddr::from(at.as_usize() + page);
        let size = usize::try_from(pages)? * page;
        let flags = MappingFlags::READ | MappingFlags::WRITE;
        table.cursor().map_region(VirtAddr::from(0), to, size, flags, false).map_err(|e| anyhow!("{e:?}"))?;
        Ok(Self(table))
    }

    fn protect(&mut self, range: GpnRange, writable: bool) -> Result<()> {
        let flags = if writable { MappingFlags::READ | MappingFlags::WRITE } else { MappingFlags::READ };
        let bytes = |pages: u64| usize::try_from(pages * PAGE_SIZE);
        let start = VirtAddr::from(bytes(range.start.0)?);
        self.0.cursor().protect_region(start, bytes(range.pages)?, flags).map_err(|e| anyhow!("{e:?}"))
    }

    fn lookup(&mut self, gpn: Gpn) -> Option<Frame> {
        let (address, ..) = self.0.query(VirtAddr::from(usize::try_from(gpn.0 * PAGE_SIZE).ok()?)).ok()?;
        Some(Frame(u64::try_from(address.as_usize()).ok()? / PAGE_SIZE))
    }
}

/// Boxed pages.
struct Boxes;

#[derive(Clone)]
#[repr(C, align(4096))]
struct Zeros([u8; 4096]);

impl PagingHandler for Boxes {
    fn alloc_frames(num: usize, _: usize) -> Option<PhysAddr> {
        let page = (num == 1).then(|| Box::into_raw(Box::new(Zeros([0; 4096]))))?;
        Some(PhysAddr::from(page.expose_provenance()))
    }

    fn dealloc_frames(paddr: PhysAddr, _: usize) {
        let page = ptr::with_exposed_provenance_mut::<Zeros>(paddr.as_usize());
        // SAFETY: the table gives back, once, what `alloc_frames` gave it one by one.
        drop(unsafe { Box::from_raw(page) });
    }

    fn phys_to_virt(paddr: PhysAddr) -> VirtAddr {
        VirtAddr::from(paddr.as_usize())
    }
}

/// `x86_64`'s.
#[derive(Debug)]
pub struct X64 {
    root: Box<PageTable>,
    // boxed, so that they stay where they are; reached by address alone
    rest: Vec<*mut PageTable>,
}

struct Identity;

// SAFETY: every frame in the tables is one that `Leaking` or `X64::with` made of a box of a table.
unsafe impl PageTableFrameMapping for Identity {
    fn frame_to_pointer(&self, frame: PhysFrame) -> *mut PageTable {
        ptr::with_exposed_provenance_mut(usize::try_from(frame.start_address().as_u64()).unwrap_or(0))
    }
}

/// Allocates tables, and says which.
struct Leaking<'a>(&'a RefCell<Vec<*mut PageTable>>);

// SAFETY: every frame is a new box, which nobody else has.
unsafe impl FrameAllocator<Size4KiB> for Leaking<'_> {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let table = Box::into_raw(Box::new(PageTable::new()));
        self.0.borrow_mut().push(table);
        PhysFrame::from_start_address(x86_64::PhysAddr::new(u64::try_from(table.expose_provenance()).ok()?)).ok()
    }
}

impl X64 {
    fn flags(writable: bool) -> PageTableFlags {
        let flags = PageTableFlags::PRESENT | PageTableFlags::NO_EXECUTE;
        if writable { flags | PageTableFlags::WRITABLE } else { flags }
    }

    fn mapper(root: &mut PageTable) -> MappedPageTable<'_, Identity> {
        // SAFETY: the root and what it leads to are tables made in here, as `Identity` takes them to be.
        unsafe { MappedPageTable::new(root, Identity) }
    }

    fn page(gpn: Gpn) -> Page<Size4KiB> {
        Page::containing_address(x86_64::VirtAddr::new(gpn.0 * PAGE_SIZE))
    }
}

impl Tables for X64 {
    const NAME: &'static str = "x86_64";

    fn with(pages: u64) -> Result<Self> {
        let mut root = Box::new(PageTable::new());
        let rest = RefCell::new(Vec::new());
        let mut mapper = Self::mapper(&mut root);
        for gpn in (0..pages).map(Gpn) {
            let to = PhysFrame::containing_address(x86_64::PhysAddr::new(frame(gpn).0 * PAGE_SIZE));
            let parents = PageTableFlags::PRESENT | PageTableFlags::WRITABLE | PageTableFlags::USER_ACCESSIBLE;
            // SAFETY: the tables are in no processor, so nothing is aliased by them.
            let mapped = unsafe { mapper.map_to_with_table_flags(Self::page(gpn), to, Self::flags(true), parents, &mut Leaking(&rest)) };
            mapped.map_err(|e| anyhow!("{e:?}"))?.ignore();
        }
        Ok(Self { root, rest: rest.into_inner() })
    }

    fn protect(&mut self, range: GpnRange, writable: bool) -> Result<()> {
        let mut mapper = Self::mapper(&mut self.root);
        for gpn in range.iter() {
            // SAFETY: as in `with`.
            unsafe { mapper.update_flags(Self::page(gpn), Self::flags(writable)) }.map_err(|e| anyhow!("{e:?}"))?.ignore();
        }
        Ok(())
    }

    fn lookup(&mut self, gpn: Gpn) -> Option<Frame> {
        let at = Self::mapper(&mut self.root).translate_addr(x86_64::VirtAddr::new(gpn.0 * PAGE_SIZE))?;
        Some(Frame(at.as_u64() / PAGE_SIZE))
    }
}

impl Drop for X64 {
    fn drop(&mut self) {
        for table in self.rest.drain(..) {
            // SAFETY: each was made of a box by `Leaking`, and the root that leads to it is on its way out.
            drop(unsafe { Box::from_raw(table) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees<T: Tables>() {
        let mut tables = T::with(1030).unwrap();
        tables.protect(GpnRange { start: Gpn(3), pages: 700 }, false).unwrap();
        tables.protect(GpnRange { start: Gpn(0), pages: 1030 }, true).unwrap();
        let frames = [0, 511, 512, 1029, 1030, 1 << 20].map(|gpn| tables.lookup(Gpn(gpn)));
        assert_eq!(frames, [Some(1), Some(512), Some(513), Some(1030), None, None].map(|f| f.map(Frame)), "{}", T::NAME);
    }

    #[test]
    fn all_tables_are_of_the_same_pages() {
        agrees::<Ours<false>>();
        agrees::<Ours<true>>();
        agrees::<Multiarch>();
        agrees::<X64>();
    }
}
