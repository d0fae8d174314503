//! The model: a machine small enough that every state of it can be visited, driven by the engine's own table and transactions.
//!
//! What is the model's: guest pages with a second-level permission each, or one large leaf over them; a TLB a processor, whose entries go
//! stale; one slice of memory that a device holds; for each frame whether its bytes are what was signed. What is the engine's, and the very
//! code that ships: [`FrameTable`] and [`Transaction`].

use alloc::{vec, vec::Vec};
use core::fmt;

use spin::Mutex;

use crate::{
    access::MapGpaFlags,
    addr::{Frame, Gpa, Gpn, GpnRange, Vtl},
    frames::{Change, FrameTable, Kind, Step, Transaction},
    host::{Capabilities, Host, Partial},
    status::HvStatus,
};

/// The most pages, frames, processors and transactions of a [`Space`].
pub const MOST: [usize; 4] = [PAGES, FRAMES, VPS, RUNNING];
const PAGES: usize = 5;
const FRAMES: usize = 4;
const VPS: usize = 3;
const RUNNING: usize = 2;

const R: MapGpaFlags = MapGpaFlags::READABLE;
const W: MapGpaFlags = MapGpaFlags::WRITABLE;
const KX: MapGpaFlags = MapGpaFlags::KERNEL_EXECUTABLE;

/// How large the machine is, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Space {
    /// The frame behind each guest page.
    pub frames_of_pages: Vec<u64>,
    /// Virtual processors.
    pub vps: usize,
    /// Whether a device takes slices of memory.
    pub device: bool,
    /// Whether the first pages can be mapped by one large leaf: as many as lead to frames 0, 1, 2… in order.
    pub large_leaf: bool,
    /// How many transactions run at once.
    pub transactions: usize,
    /// What transactions may do: each with the module it is for.
    pub menu: Vec<(u32, Vec<Change>)>,
    /// A mistake of the machine's or the protocol's that must be found.
    pub bug: Option<Bug>,
}

/// Mistakes that the exploration must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// Nothing is flushed after permissions were removed.
    NoFlush,
    /// Bytes are looked at before they are locked.
    VerifyBeforeLock,
    /// Only one of the pages that lead to a frame is restricted.
    OneAlias,
    /// Slices that devices hold are not waited for.
    NoDeviceWait,
    /// Memory of an unloaded module is given back before executable translations of it are flushed.
    GrantBeforeFlush,
    /// Only the processor that asks is flushed.
    FlushOneVp,
}

impl Bug {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::NoFlush, Self::VerifyBeforeLock, Self::OneAlias, Self::NoDeviceWait, Self::GrantBeforeFlush, Self::FlushOneVp];

    /// Its name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoFlush => "no-flush",
            Self::VerifyBeforeLock => "verify-before-lock",
            Self::OneAlias => "one-alias",
            Self::NoDeviceWait => "no-device-wait",
            Self::GrantBeforeFlush => "grant-before-flush",
            Self::FlushOneVp => "flush-one-vp",
        }
    }
}

impl Space {
    /// Loads and unloads of one module in frame 0, on `pages` guest pages that lead to `frames` frames in turn.
    ///
    /// # Panics
    /// If it is larger than [`MOST`].
    pub fn new(pages: usize, frames: usize, vps: usize) -> Self {
        assert!(pages <= PAGES && frames <= FRAMES && vps <= VPS && (1..=pages).contains(&frames), "the model has no such size");
        let behind = |page: usize| (page % frames) as u64;
        let frame = |n: u64, to| Change { frame: Frame(n), from: None, to };
        let mut menu = vec![(1, vec![frame(0, Kind::Code)]), (1, vec![frame(0, Kind::Data)])];
        if frames > 1 {
            menu.push((1, vec![frame(0, Kind::Code), frame(1, Kind::RoData)]));
            menu.push((0, vec![frame(1, Kind::SecureOnly)]));
            menu.push((0, vec![frame(1, Kind::Data)]));
        }
        Self {
            frames_of_pages: (0..pages).map(behind).collect(),
            vps,
            device: true,
            large_leaf: frames > 1,
            transactions: 1,
            menu,
            bug: None,
        }
    }

    fn pages(&self) -> usize {
        self.frames_of_pages.len()
    }

    fn frames(&self) -> usize {
        self.frames_of_pages.iter().max().map_or(0, |f| *f as usize + 1)
    }

    /// The pages of the large leaf.
    fn leaf(&self) -> usize {
        self.frames_of_pages.iter().enumerate().take_while(|(page, frame)| *page as u64 == **frame).count()
    }
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A processor caches the translation of a page.
    Walk(u8, u8),
    /// A processor forgets one: that of a page, or behind the last that of the large leaf.
    Evict(u8, u8),
    /// A processor writes through what it has cached: what was signed, or something else.
    Write(u8, u8, bool),
    /// A device is given a slice of a page.
    Take(u8),
    /// The device writes to it.
    WriteSlice,
    /// The device gives it back.
    Release,
    /// Equal pages become one large leaf.
    Merge,
    /// A transaction of the menu begins.
    Begin(u8),
    /// The transaction in this place takes its next step, for one frame.
    Advance(u8, Step),
    /// The flush that was put off happens: only with [`Bug::GrantBeforeFlush`].
    LateFlush,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Walk(vp, page) => write!(f, "VP {vp} caches page {page}"),
            Self::Evict(vp, page) => write!(f, "VP {vp} forgets translation {page}"),
            Self::Write(vp, page, good) => write!(f, "VP {vp} writes {} to page {page}", if *good { "the image" } else { "its own code" }),
            Self::Take(page) => write!(f, "a device is given page {page}"),
            Self::WriteSlice => f.write_str("the device writes"),
            Self::Release => f.write_str("the device gives its page back"),
            Self::Merge => f.write_str("equal pages become one leaf"),
            Self::Begin(choice) => write!(f, "transaction {choice} of the menu begins"),
            Self::Advance(place, step) => write!(f, "engine, transaction {place}: {step:?}"),
            Self::LateFlush => f.write_str("the flush that was put off"),
        }
    }
}

/// One state of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    words: [u64; FRAMES],
    memory: Memory,
    running: [Option<Running>; RUNNING],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Running {
    choice: u8,
    transaction: Transaction,
    /// With [`Bug::VerifyBeforeLock`]: what a look at the wrong time saw.
    seen: Option<bool>,
}

/// What a processor has cached: a translation a page, and behind them that of the large leaf.
type Tlb = [Option<MapGpaFlags>; PAGES + 1];

/// What the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Memory {
    /// Of each page. Those of a large leaf are equal.
    flags: [MapGpaFlags; PAGES],
    large: bool,
    /// Of each processor. Processors are alike: they are kept in order.
    tlb: [Tlb; VPS],
    /// Page and permission of the slice that the device has.
    slice: Option<(u8, MapGpaFlags)>,
    /// Of each frame: whether its bytes are what was signed.
    good: [bool; FRAMES],
    late: bool,
}

impl Machine {
    /// The start: all frames are data with the bytes of the image, nothing is cached.
    pub fn new(space: &Space) -> Self {
        let table = FrameTable::new(Frame(0), space.frames());
        for frame in table.frames() {
            // the frames were just made
            let _ = table.place(frame, Kind::Data);
        }
        let mut machine = Self {
            words: [0; FRAMES],
            memory: Memory {
                flags: [MapGpaFlags::NONE; PAGES],
                large: space.large_leaf,
                tlb: [[None; PAGES + 1]; VPS],
                slice: None,
                good: [true; FRAMES],
                late: false,
            },
            running: [None, None],
        };
        machine.memory.flags[..space.pages()].fill(MapGpaFlags::DATA);
        machine.keep(&table);
        machine
    }

    fn table(&self, space: &Space) -> FrameTable {
        FrameTable::from_snapshot(Frame(0), &self.words[..space.frames()])
    }

    fn keep(&mut self, table: &FrameTable) {
        self.words[..table.len()].copy_from_slice(&table.snapshot());
    }

    /// Everything that can happen now.
    pub fn actions(&self, space: &Space) -> Vec<Action> {
        let byte = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
        let memory = &self.memory;
        let mut found = Vec::new();
        let pages = 0..space.pages();
        for (vp, tlb) in memory.tlb.iter().take(space.vps).enumerate() {
            for page in pages.clone() {
                let cached = [tlb[page], Memory::covering(space, tlb, page)];
                if cached.iter().flatten().any(|flags| flags.contains(W)) {
                    found.extend([true, false].map(|good| Action::Write(byte(vp), byte(page), good)));
                }
                if cached == [None, None] && memory.flags[page] != MapGpaFlags::NONE {
                    found.push(Action::Walk(byte(vp), byte(page)));
                }
            }
            found.extend((0..tlb.len()).filter(|slot| tlb[*slot].is_some()).map(|slot| Action::Evict(byte(vp), byte(slot))));
        }
        match memory.slice {
            None if space.device => {
                found.extend(pages.filter(|p| memory.flags[*p].contains(R)).map(|p| Action::Take(byte(p))));
            }
            None => {}
            Some((_, flags)) => {
                found.push(Action::Release);
                if flags.contains(W) {
                    found.push(Action::WriteSlice);
                }
            }
        }
        let leaf = &memory.flags[..space.leaf()];
        if space.large_leaf && !memory.large && leaf.windows(2).all(|pair| pair[0] == pair[1]) {
            found.push(Action::Merge);
        }
        if memory.late {
            found.push(Action::LateFlush);
        }
        for (place, running) in self.running.iter().take(space.transactions).enumerate() {
            match running {
                Some(running) => found.push(Action::Advance(byte(place), running.transaction.step())),
                None => {
                    // places are alike: the first free one begins
                    if self.running[..place].iter().all(Option::is_some) {
                        found.extend((0..space.menu.len()).map(|choice| Action::Begin(byte(choice))));
                    }
                }
            }
        }
        found
    }

    /// What is after `action`.
    pub fn after(&self, space: &Space, action: Action) -> Self {
        let mut next = self.clone();
        let memory = &mut next.memory;
        match action {
            Action::Walk(vp, page) => {
                let slot = memory.slot(space, usize::from(page));
                memory.tlb[usize::from(vp)][slot] = Some(memory.flags[usize::from(page)]);
            }
            Action::Evict(vp, slot) => memory.tlb[usize::from(vp)][usize::from(slot)] = None,
            Action::Write(_, page, good) => memory.good[space.frames_of_pages[usize::from(page)] as usize] = good,
            Action::Take(page) => {
                memory.slice = Some((page, memory.flags[usize::from(page)].without(MapGpaFlags::EXECUTABLE)));
            }
            Action::WriteSlice => {
                if let Some((page, _)) = memory.slice {
                    memory.good[space.frames_of_pages[usize::from(page)] as usize] = false;
                }
            }
            Action::Release => memory.slice = None,
            Action::Merge => memory.large = true,
            Action::LateFlush => {
                memory.flush();
                memory.late = false;
            }
            Action::Begin(choice) => next.begin(space, choice),
            Action::Advance(place, _) => next.advance(space, usize::from(place)),
        }
        // which processor is which makes no other state, but for the one that alone is flushed
        let alike = usize::from(space.bug == Some(Bug::FlushOneVp));
        next.memory.tlb[alike..space.vps].sort_unstable();
        next
    }

    fn begin(&mut self, space: &Space, choice: u8) {
        let (owner, changes) = &space.menu[usize::from(choice)];
        let Some(place) = self.running.iter().position(Option::is_none) else { return };
        let id = place as u32 + 1;
        let Ok(transaction) = Transaction::new(id, *owner, changes) else { return };
        let seen = (space.bug == Some(Bug::VerifyBeforeLock)).then(|| self.memory.is_good(changes));
        self.running[place] = Some(Running { choice, transaction, seen });
    }

    fn advance(&mut self, space: &Space, place: usize) {
        let Some(mut running) = self.running[place].take() else { return };
        let table = self.table(space);
        if running.transaction.step() == Step::Inspect {
            if running.seen.unwrap_or_else(|| self.memory.is_good(&space.menu[usize::from(running.choice)].1)) {
                running.transaction.approve();
            } else {
                running.transaction.reject(HvStatus::ACCESS_DENIED);
            }
        } else {
            let unloading = space.menu[usize::from(running.choice)].1.iter().all(|c| c.to == Kind::Data);
            let host = ModelHost { space, unloading, memory: Mutex::new(self.memory) };
            running.transaction.perform(&table, &host, 1);
            self.memory = host.memory.into_inner();
            self.keep(&table);
        }
        self.running[place] = match running.transaction.step() {
            Step::Done | Step::Failed(_) => None,
            _ => Some(running),
        };
    }

    /// What is wrong with this state: the first of the invariants that it breaks.
    pub fn violation(&self, space: &Space) -> Option<&'static str> {
        let table = self.table(space);
        for (number, frame) in table.frames().enumerate() {
            let paths = self.memory.paths(space, number);
            if paths.is_writable_and_executable() {
                return Some("I1: a frame can be written and executed");
            }
            if paths.contains(KX) && !self.memory.good[number] {
                return Some("I2: bytes that were not verified can be executed");
            }
            if table.state(frame).is_some_and(|s| s.kind == Kind::SecureOnly) && paths != MapGpaFlags::NONE {
                return Some("I3: VTL0 reaches a frame of VTL1");
            }
        }
        None
    }

    /// Whether any frame can be executed: shows that the exploration got anywhere.
    pub fn executes(&self) -> bool {
        self.memory.flags.iter().any(|f| f.contains(KX))
    }
}

impl Memory {
    /// Where a walk of this page is cached.
    fn slot(&self, space: &Space, page: usize) -> usize {
        if self.large && page < space.leaf() { PAGES } else { page }
    }

    /// A cached large leaf that covers the page.
    fn covering(space: &Space, tlb: &Tlb, page: usize) -> Option<MapGpaFlags> {
        if page < space.leaf() { tlb[PAGES] } else { None }
    }

    /// Every way to a frame together: second-level entries, TLBs, the device's slice.
    fn paths(&self, space: &Space, frame: usize) -> MapGpaFlags {
        let mut all = MapGpaFlags::NONE;
        for page in (0..space.pages()).filter(|p| space.frames_of_pages[*p] as usize == frame) {
            all = all | self.flags[page];
            for tlb in &self.tlb {
                let cached = [tlb[page], Self::covering(space, tlb, page)];
                all = cached.into_iter().flatten().fold(all, |a, b| a | b);
            }
            if let Some((_, flags)) = self.slice.filter(|(p, _)| usize::from(*p) == page) {
                all = all | flags;
            }
        }
        all
    }

    fn is_good(&self, changes: &[Change]) -> bool {
        changes.iter().all(|c| self.good[c.frame.0 as usize])
    }

    fn flush(&mut self) {
        for tlb in &mut self.tlb {
            tlb.fill(None);
        }
    }
}

struct ModelHost<'s> {
    space: &'s Space,
    unloading: bool,
    memory: Mutex<Memory>,
}

impl Host for ModelHost<'_> {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    fn frame(&self, gpn: Gpn) -> Option<Frame> {
        self.space.frames_of_pages.get(gpn.0 as usize).map(|f| Frame(*f))
    }

    fn aliases(&self, frame: Frame, each: &mut dyn FnMut(Gpn)) {
        let pages = self.space.frames_of_pages.iter().enumerate().filter(|(_, f)| **f == frame.0).map(|(p, _)| Gpn(p as u64));
        let seen = if self.space.bug == Some(Bug::OneAlias) { 1 } else { usize::MAX };
        pages.take(seen).for_each(each);
    }

    fn protect(&self, vtl: Vtl, ranges: &[GpnRange], flags: MapGpaFlags) -> Result<(), Partial> {
        if vtl == Vtl::Vtl1 {
            return Ok(());
        }
        let mut memory = self.memory.lock();
        for gpn in ranges.iter().flat_map(|r| r.iter()) {
            // a part of the large leaf: it is split, which is seen by nobody
            memory.large &= gpn.0 as usize >= self.space.leaf();
            memory.flags[gpn.0 as usize] = flags;
        }
        Ok(())
    }

    fn quiesce(&self, vtl: Vtl, _: &[GpnRange]) -> Result<(), HvStatus> {
        if vtl == Vtl::Vtl1 {
            return Ok(());
        }
        let mut memory = self.memory.lock();
        if memory.slice.is_some() && !matches!(self.space.bug, Some(Bug::NoDeviceWait | Bug::NoFlush)) {
            return Err(HvStatus::OBJECT_IN_USE);
        }
        match self.space.bug {
            Some(Bug::NoFlush) => {}
            Some(Bug::FlushOneVp) => memory.tlb[0].fill(None),
            Some(Bug::GrantBeforeFlush) if self.unloading => memory.late = true,
            _ => memory.flush(),
        }
        Ok(())
    }

    fn read(&self, _: Gpa, buffer: &mut [u8]) -> Result<(), HvStatus> {
        buffer.fill(0);
        Ok(())
    }

    fn write(&self, gpa: Gpa, _: &[u8]) -> Result<(), HvStatus> {
        let frame = self.frame(gpa.gpn()).ok_or(HvStatus::INVALID_PARAMETER)?;
        self.memory.lock().good[frame.0 as usize] = false;
        Ok(())
    }
}
