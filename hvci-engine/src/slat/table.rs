//! The tables of one view, and the operations that change them.
//!
//! **Walkers** take no lock. **Writers** take one, which also holds the books of the arena: which tables are free, how many entries of each
//! are in use. A table is filled before the one store that makes it reachable.
//!
//! **Nothing widens.** A split fills a table with the leaf's own permissions and puts it in the leaf's place by one compare-exchange; a
//! merge puts a leaf in the place of 512 equal ones by one store. Before and after, every page has the same permissions.
//!
//! **Replaced tables stay as they are** until [`Slat::reclaim`]: a walker may be within. It reads what was true when it began, as from a
//! TLB that has not been flushed.
//!
//! **Accessed and dirty bits** are set by walkers with a compare-exchange of the whole entry, so that none brings back a permission that
//! has gone meanwhile. In a table that has such bits writers change permissions by compare-exchange too, and no bit is lost; a split gives
//! the leaf's bits to each of its parts; leaves are merged only when a walker has nothing left to set in them. In a table without, walkers
//! never write, and writers store.

use alloc::{boxed::Box, vec::Vec};
use core::{
    fmt,
    marker::PhantomData,
    sync::atomic::{
        AtomicU64,
        Ordering::{Relaxed, Release},
    },
};

use spin::Mutex;

use super::{
    entry::{CannotRepresent, Encoding, Kind, LARGE, Leaf, LeafSize, MemoryType, Misconfiguration, Mode, low_frame_bits},
    ept::Ept,
    span::{self, Backing, ENTRIES, ROOT_LEVEL, Span},
};
use crate::{
    access::MapGpaFlags,
    addr::{Frame, Gpn, GpnRange, PAGE_SHIFT},
    bytes::widen,
};

/// Why tables could not be changed. They are as they were before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlatError {
    /// Pages beyond 48 bits of address, which is what four levels reach, or frames beyond 52.
    #[error("{0} is beyond what the tables reach")]
    OutOfRange(GpnRange),
    /// A page is mapped already.
    #[error("{0} is mapped already")]
    AlreadyMapped(Gpn),
    /// A page is not mapped.
    #[error("{0} is not mapped")]
    NotMapped(Gpn),
    /// More tables would be needed than there are. [`Slat::reclaim`] may help.
    #[error("{needed} more tables are needed, {free} are free")]
    OutOfTables {
        /// How many, at least.
        needed: usize,
        /// How many there are.
        free: usize,
    },
    /// The encoding has no such entry.
    #[error(transparent)]
    CannotRepresent(#[from] CannotRepresent),
    /// An entry stands in the tables that nothing in here writes.
    #[error("the tables are corrupt: {0}")]
    Misconfigured(#[from] Misconfiguration),
}

/// Four levels of tables of 512 entries, in memory that is set aside when it is made.
pub struct Slat<E = Ept> {
    arena: Box<[Table]>,
    accessed_dirty: bool,
    books: Mutex<Books>,
    encoding: PhantomData<E>,
}

/// One page of entries.
#[repr(align(4096))]
pub(super) struct Table([AtomicU64; ENTRIES]);

/// The number of the root in the arena.
pub(super) const ROOT: u64 = 0;

impl Table {
    /// The entry with this index, of which only as many bits count as there are entries.
    #[expect(clippy::indexing_slicing, reason = "less than the length, by the mask")]
    pub(super) const fn cell(&self, index: usize) -> &AtomicU64 {
        &self.0[index & (ENTRIES - 1)]
    }

    /// The entries of a span, in a table of level 1.
    fn cells(&self, span: Span) -> &[AtomicU64] {
        let first = span::index(span.start, 1);
        let len = usize::try_from(span.len()).unwrap_or(ENTRIES);
        self.0.get(first..).map_or(&[][..], |cells| cells.get(..len).unwrap_or(cells))
    }
}

/// Which tables are used for what.
#[derive(Debug)]
struct Books {
    /// By table: how many of its entries are not empty.
    used: Box<[u16]>,
    /// All zeros, reachable from nowhere.
    free: Vec<u64>,
    /// Reachable from nowhere, but a walker may be within.
    retired: Vec<u64>,
}

impl Books {
    fn used(&self, table: u64) -> u16 {
        usize::try_from(table).ok().and_then(|t| self.used.get(t)).copied().unwrap_or_default()
    }

    fn set_used(&mut self, table: u64, count: u16) {
        if let Some(used) = usize::try_from(table).ok().and_then(|t| self.used.get_mut(t)) {
            *used = count;
        }
    }

    fn add(&mut self, table: u64, count: usize) {
        self.set_used(table, self.used(table).saturating_add(u16::try_from(count).unwrap_or(u16::MAX)));
    }

    fn remove(&mut self, table: u64, count: usize) {
        self.set_used(table, self.used(table).saturating_sub(u16::try_from(count).unwrap_or(u16::MAX)));
    }

    fn is_full(&self, table: u64) -> bool {
        usize::from(self.used(table)) == ENTRIES
    }

    fn check(&self, needed: usize) -> Result<(), SlatError> {
        let free = self.free.len();
        if needed <= free { Ok(()) } else { Err(SlatError::OutOfTables { needed, free }) }
    }

    fn take(&mut self) -> Result<u64, SlatError> {
        self.free.pop().ok_or(SlatError::OutOfTables { needed: 1, free: 0 })
    }

    fn retire(&mut self, table: u64) {
        self.set_used(table, 0);
        self.retired.push(table);
    }
}

impl<E: Encoding> Slat<E> {
    /// Tables that map nothing, without accessed and dirty bits. There will never be more than `tables` of them, 4 KiB each and at least
    /// the root.
    pub fn new(tables: usize) -> Self {
        Self::with_bits(tables, false)
    }

    /// As [`new`](Self::new), with accessed and dirty bits (EPTP bit 6).
    pub fn with_accessed_dirty(tables: usize) -> Self {
        Self::with_bits(tables, true)
    }

    fn with_bits(tables: usize, accessed_dirty: bool) -> Self {
        let arena: Box<[Table]> = (0..tables.max(1)).map(|_| Table([const { AtomicU64::new(0) }; ENTRIES])).collect();
        // from the end, so that the lowest is taken first
        let free: Vec<u64> = (1..widen(arena.len())).rev().collect();
        let books = Books { used: arena.iter().map(|_| 0).collect(), retired: Vec::with_capacity(free.len()), free };
        Self { arena, accessed_dirty, books: Mutex::new(books), encoding: PhantomData }
    }

    /// Maps a range of pages to as many successive frames, with the largest leaves that alignment permits. Takes time in the number of
    /// leaves.
    ///
    /// # Errors
    /// [`SlatError`], for all pages or none.
    pub fn map(&self, range: GpnRange, first: Frame, flags: MapGpaFlags, memory: MemoryType) -> Result<(), SlatError> {
        let template = E::encode(&Leaf::new(Frame(0), flags, memory, LeafSize::FourKib))?;
        let (span, backing) =
            Span::of(range).and_then(|span| Some((span, Backing::new(span, first)?))).ok_or(SlatError::OutOfRange(range))?;
        let mut books = self.books.lock();
        let free = books.free.len();
        books.check(self.plan_map(Some(ROOT), ROOT_LEVEL, span, backing, free)?)?;
        self.fill(&mut books, ROOT, ROOT_LEVEL, span, backing, template)
    }

    /// Takes a range of pages out, splitting leaves that reach beyond. Tables without a page left are replaced.
    ///
    /// What was written by a walker at this very moment may not be found dirty; who wants to know takes writing away first.
    ///
    /// # Errors
    /// [`SlatError`], for all pages or none.
    pub fn unmap(&self, range: GpnRange) -> Result<(), SlatError> {
        let span = Span::of(range).ok_or(SlatError::OutOfRange(range))?;
        let mut books = self.books.lock();
        let needed = self.plan_change(&books, ROOT, ROOT_LEVEL, span, |_| true)?;
        books.check(needed)?;
        self.clear(&mut books, ROOT, ROOT_LEVEL, span)
    }

    /// Sets what is allowed with a range of pages, splitting leaves that reach beyond and merging those that become alike.
    ///
    /// Each page changes at once; walkers may see some of the range changed and some not yet.
    ///
    /// # Errors
    /// [`SlatError`], for all pages or none.
    pub fn protect(&self, range: GpnRange, flags: MapGpaFlags) -> Result<(), SlatError> {
        let permissions = E::permissions(flags)?;
        let span = Span::of(range).ok_or(SlatError::OutOfRange(range))?;
        let mut books = self.books.lock();
        let needed = self.plan_change(&books, ROOT, ROOT_LEVEL, span, |entry| entry & E::PERMISSIONS != permissions)?;
        books.check(needed)?;
        self.set(&mut books, ROOT, ROOT_LEVEL, span, permissions)
    }

    /// Puts one leaf in the place of every 512 in the range that are alike and whose frames follow each other. With accessed and dirty bits
    /// only where those are set, as far as they ever will be. How many tables that replaced.
    ///
    /// # Errors
    /// [`SlatError::OutOfRange`].
    pub fn merge(&self, range: GpnRange) -> Result<usize, SlatError> {
        let span = Span::of(range).ok_or(SlatError::OutOfRange(range))?;
        let mut books = self.books.lock();
        let before = books.retired.len();
        self.merge_in(&mut books, ROOT, ROOT_LEVEL, span)?;
        Ok(books.retired.len().saturating_sub(before))
    }

    /// Makes replaced tables available again. How many.
    ///
    /// The caller knows that every walk that began before they were replaced has ended: it calls this after a flush of all processors, or
    /// whatever else waits for them. A walker that is within nevertheless sees pages vanish, or those of others.
    pub fn reclaim(&self) -> usize {
        let books = &mut *self.books.lock();
        let count = books.retired.len();
        for table in books.retired.drain(..) {
            for cell in self.table(table).into_iter().flat_map(|t| &t.0) {
                cell.store(0, Relaxed);
            }
            books.free.push(table);
        }
        count
    }

    /// The table with a number that stands in an entry.
    pub(super) fn table(&self, number: u64) -> Result<&Table, Misconfiguration> {
        usize::try_from(number).ok().and_then(|n| self.arena.get(n)).ok_or(Misconfiguration::Table)
    }

    /// How many tables mapping the span takes, or, as soon as that is too many, more than are free. With no table, all is empty.
    fn plan_map(&self, table: Option<u64>, level: u32, span: Span, backing: Backing, free: usize) -> Result<usize, SlatError> {
        let table = match table {
            Some(number) => Some(self.table(number)?),
            None if level == 1 => return Ok(0),
            None => None,
        };
        let mut needed: usize = 0;
        for part in span.parts(level) {
            let kind = table.map_or(Ok(Kind::Empty), |t| E::kind(t.cell(part.index).load(Relaxed), level))?;
            let more = match kind {
                Kind::Leaf => return Err(SlatError::AlreadyMapped(Gpn(part.span.start))),
                Kind::Empty if backing.fits(&part, level) => 0,
                Kind::Empty => self.plan_map(None, level.saturating_sub(1), part.span, backing, free)?.saturating_add(1),
                Kind::Table(below) => self.plan_map(Some(below), level.saturating_sub(1), part.span, backing, free)?,
            };
            needed = needed.saturating_add(more);
            if needed > free {
                break;
            }
        }
        Ok(needed)
    }

    /// Maps the span, in a table all or none of which is reachable. Nothing of it is mapped, and there are tables enough.
    fn fill(&self, books: &mut Books, number: u64, level: u32, span: Span, backing: Backing, template: u64) -> Result<(), SlatError> {
        let table = self.table(number)?;
        let leaf = |gpn| template | backing.frame(gpn) << PAGE_SHIFT;
        if level == 1 {
            let cells = table.cells(span);
            for (gpn, cell) in (span.start..).zip(cells) {
                cell.store(leaf(gpn), Relaxed);
            }
            books.add(number, cells.len());
            return Ok(());
        }
        for part in span.parts(level) {
            let cell = table.cell(part.index);
            let below = level.saturating_sub(1);
            match E::kind(cell.load(Relaxed), level)? {
                Kind::Table(existing) => {
                    self.fill(books, existing, below, part.span, backing, template)?;
                    continue;
                }
                _ if backing.fits(&part, level) => cell.store(leaf(part.span.start) | LARGE, Relaxed),
                _ => {
                    let fresh = books.take()?;
                    self.fill(books, fresh, below, part.span, backing, template)?;
                    cell.store(E::table(fresh), Release);
                }
            }
            books.add(number, 1);
        }
        Ok(())
    }

    /// How many tables it takes to split the leaves that reach beyond the span and that `changes` says are to be changed.
    fn plan_change(
        &self,
        books: &Books,
        number: u64,
        level: u32,
        span: Span,
        changes: impl Fn(u64) -> bool + Copy,
    ) -> Result<usize, SlatError> {
        if level == 1 && books.is_full(number) {
            return Ok(0);
        }
        let table = self.table(number)?;
        let mut needed: usize = 0;
        for part in span.parts(level) {
            let entry = table.cell(part.index).load(Relaxed);
            let more = match E::kind(entry, level)? {
                Kind::Empty => return Err(SlatError::NotMapped(Gpn(part.span.start))),
                Kind::Leaf if part.whole || !changes(entry) => 0,
                Kind::Leaf => splits(level, part.span),
                Kind::Table(below) => self.plan_change(books, below, level.saturating_sub(1), part.span, changes)?,
            };
            needed = needed.saturating_add(more);
        }
        Ok(needed)
    }

    /// Gives the leaves of the span these permissions. All of it is mapped, and there are tables enough.
    fn set(&self, books: &mut Books, number: u64, level: u32, span: Span, permissions: u64) -> Result<(), SlatError> {
        let table = self.table(number)?;
        if level == 1 {
            self.set_cells(table.cells(span), permissions);
            return Ok(());
        }
        for part in span.parts(level) {
            let cell = table.cell(part.index);
            let entry = cell.load(Relaxed);
            let below = match E::kind(entry, level)? {
                Kind::Empty => continue,
                Kind::Leaf if part.whole => {
                    self.set_cells(core::slice::from_ref(cell), permissions);
                    continue;
                }
                Kind::Leaf if entry & E::PERMISSIONS == permissions => continue,
                Kind::Leaf => self.split(books, cell, level)?,
                Kind::Table(below) => below,
            };
            self.set(books, below, level.saturating_sub(1), part.span, permissions)?;
            self.try_merge(books, cell, below, level, part.span)?;
        }
        Ok(())
    }

    fn set_cells(&self, cells: &[AtomicU64], permissions: u64) {
        let changed = |entry| entry & !E::PERMISSIONS | permissions;
        if !self.accessed_dirty {
            // the lock keeps writers out and walkers do not write: a load and a store lose nothing
            for cell in cells {
                cell.store(changed(cell.load(Relaxed)), Relaxed);
            }
            return;
        }
        for cell in cells {
            let mut entry = cell.load(Relaxed);
            while let Err(now) = cell.compare_exchange_weak(entry, changed(entry), Relaxed, Relaxed) {
                entry = now;
            }
        }
    }

    /// Puts a table of leaves that say the same in the place of a leaf of a level. Its number.
    fn split(&self, books: &mut Books, cell: &AtomicU64, level: u32) -> Result<u64, SlatError> {
        let number = books.take()?;
        let table = self.table(number)?;
        let below = level.saturating_sub(1);
        let mut entry = cell.load(Relaxed);
        loop {
            let mut part = if below == 1 { entry & !LARGE } else { entry };
            for child in &table.0 {
                child.store(part, Relaxed);
                part = part.wrapping_add(frame_step(below));
            }
            // it fails if a walker set an accessed or dirty bit, which the parts must have too
            match cell.compare_exchange(entry, E::table(number), Release, Relaxed) {
                Ok(_) => break,
                Err(now) => entry = now,
            }
        }
        books.add(number, ENTRIES);
        Ok(number)
    }

    /// Takes the pages of the span out. All of it is mapped, and there are tables enough.
    fn clear(&self, books: &mut Books, number: u64, level: u32, span: Span) -> Result<(), SlatError> {
        let table = self.table(number)?;
        if level == 1 {
            let cells = table.cells(span);
            for cell in cells {
                cell.store(0, Relaxed);
            }
            books.remove(number, cells.len());
            return Ok(());
        }
        for part in span.parts(level) {
            let cell = table.cell(part.index);
            let below = match E::kind(cell.load(Relaxed), level)? {
                Kind::Empty => continue,
                Kind::Leaf if part.whole => {
                    cell.store(0, Relaxed);
                    books.remove(number, 1);
                    continue;
                }
                Kind::Leaf => self.split(books, cell, level)?,
                Kind::Table(below) => below,
            };
            if !part.whole {
                self.clear(books, below, level.saturating_sub(1), part.span)?;
                if books.used(below) > 0 {
                    continue;
                }
            }
            cell.store(0, Relaxed);
            books.remove(number, 1);
            self.retire(books, below, level.saturating_sub(1))?;
        }
        Ok(())
    }

    /// Retires a table of a level and all below it.
    fn retire(&self, books: &mut Books, number: u64, level: u32) -> Result<(), SlatError> {
        if level > 1 {
            for cell in &self.table(number)?.0 {
                if let Kind::Table(below) = E::kind(cell.load(Relaxed), level)? {
                    self.retire(books, below, level.saturating_sub(1))?;
                }
            }
        }
        books.retire(number);
        Ok(())
    }

    fn merge_in(&self, books: &mut Books, number: u64, level: u32, span: Span) -> Result<(), SlatError> {
        let table = self.table(number)?;
        for part in span.parts(level) {
            let cell = table.cell(part.index);
            if let Kind::Table(below) = E::kind(cell.load(Relaxed), level)? {
                if level > 2 {
                    self.merge_in(books, below, level.saturating_sub(1), part.span)?;
                }
                if part.whole {
                    self.try_merge(books, cell, below, level, part.span)?;
                }
            }
        }
        Ok(())
    }

    /// Puts a leaf of a level in the place of a table, if its entries are alike. Those at the edges of the span, which has just been changed, are
    /// the first to differ.
    fn try_merge(&self, books: &mut Books, cell: &AtomicU64, number: u64, level: u32, span: Span) -> Result<(), SlatError> {
        if LeafSize::at(level).is_none() || !books.is_full(number) {
            return Ok(());
        }
        let (table, below) = (self.table(number)?, level.saturating_sub(1));
        let first = table.cell(0).load(Relaxed);
        let nth = |n: u64| first.wrapping_add(frame_step(below).wrapping_mul(n));
        let is_nth = |(n, cell): (u64, &AtomicU64)| cell.load(Relaxed) == nth(n);
        let probe = |gpn: u64| {
            let index = span::index(gpn, below);
            is_nth((widen(index), table.cell(index)))
        };
        // and the table's last entry
        let edges = [span.start, span.start.wrapping_sub(1), span.end, u64::MAX];
        let alike = E::kind(first, below)? == Kind::Leaf
            && first & low_frame_bits(level) == 0
            && edges.into_iter().all(probe)
            && (0..).zip(&table.0).all(is_nth);
        if alike && !(self.accessed_dirty && walker_may_set::<E>(first)) {
            cell.store(first | LARGE, Relaxed);
            books.retire(number);
        }
        Ok(())
    }

    /// Overwrites the entry of a page at a level, to see what a walk makes of it.
    #[cfg(test)]
    pub(super) fn corrupt(&self, gpn: Gpn, at: u32, entry: u64) {
        let (mut number, mut level) = (ROOT, ROOT_LEVEL);
        while let (true, Ok(table)) = (level > at, self.table(number)) {
            let Ok(Kind::Table(below)) = E::kind(table.cell(span::index(gpn.0, level)).load(Relaxed), level) else { return };
            (number, level) = (below, level.saturating_sub(1));
        }
        if let Ok(table) = self.table(number) {
            table.cell(span::index(gpn.0, level)).store(entry, Relaxed);
        }
    }
}

impl<E> Slat<E> {
    /// Whether walks set accessed and dirty bits.
    pub const fn has_accessed_dirty(&self) -> bool {
        self.accessed_dirty
    }

    /// How many tables are free, and how many more will be after [`reclaim`](Self::reclaim).
    pub fn free_tables(&self) -> (usize, usize) {
        let books = self.books.lock();
        (books.free.len(), books.retired.len())
    }
}

impl<E> fmt::Debug for Slat<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (free, retired) = self.free_tables();
        f.debug_struct("Slat").field("tables", &self.arena.len()).field("free", &free).field("retired", &retired).finish()
    }
}

/// What to add to an entry of a level to get the one behind it.
const fn frame_step(level: u32) -> u64 {
    1_u64.wrapping_shl(span::shift(level).saturating_add(PAGE_SHIFT))
}

/// How many tables it takes to split a leaf of a level so that the span can be told from the rest.
fn splits(level: u32, span: Span) -> usize {
    let below = level.saturating_sub(1);
    span.parts(below).filter(|p| !p.whole).fold(1, |sum: usize, part| sum.saturating_add(splits(below, part.span)))
}

/// Whether a walk might yet set an accessed or a dirty bit in a leaf.
fn walker_may_set<E: Encoding>(entry: u64) -> bool {
    let leaf = E::decode(entry, LeafSize::FourKib, Mode { mbec: true });
    let reachable = leaf.flags.intersects(MapGpaFlags::READABLE | MapGpaFlags::EXECUTABLE);
    reachable && !(leaf.accessed && (leaf.dirty || !leaf.flags.contains(MapGpaFlags::WRITABLE)))
}

#[cfg(test)]
mod tests;
