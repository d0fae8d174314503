//! The guest of a scenario: its kernel, drivers and programs in memory, as a boot loader leaves them.
//!
//! Its own pages stand behind each other from page 16 on, those of drivers behind them or where the scenario says; its kernel maps its own at
//! [`KERNEL`] plus their address, code without W, drivers and the pool with W and X: that is nobody's business but the engine's.

use std::{collections::BTreeMap, path::Path};

use hvci_engine::{
    access::Access,
    addr::{Gpa, Gpn, GpnRange, Gva, PAGE_SIZE},
    examine::Input as Unpacked,
    load::{Function, MAX_IMAGE},
};
use iced_x86::code_asm::r15;

use super::{Scenario, ScenarioError, driver, format::DriverEntry, machine, program};
use crate::{
    attack::assemble,
    bus::{Bus, Fault},
    cpu::{INTERRUPT_GATE, gate},
    device::MMIO,
    guest_loader,
    memory::{PAGE, page_offset},
    paging::{PageTables, entry},
    trace::{Input, Machine, limits},
};

/// Where the guest's kernel has its own memory.
const KERNEL: u64 = 0xFFFF_8000_0000_0000;
/// Where it has other pages of drivers' frames.
const ALIASES: u64 = 0xFFFF_9000_0000_0000;
/// Where it has the registers of the device.
const DEVICE: u64 = 0xFFFF_A000_0000_0000;
/// The first page of the guest's own.
const FIRST: u64 = 16;
/// Pages for page tables, and of the pool.
const TABLES: u64 = 160;
const POOL: u64 = 4;
/// Pages of a driver, and of its file: what a list of one page holds.
const MOST: u64 = PAGE_SIZE / 8;
/// Of the pages of a driver's own: the name, the number that it was loaded as, the block of the call that unloads it.
const NAME: u64 = 0x100;
pub(super) const NUMBER: u64 = 0x200;
pub(super) const UNLOAD: u64 = 0x300;
/// Handlers of exceptions store this and the vector in R15.
pub(super) const CAUGHT: u64 = 0xCA06_0000;
/// The vector whose handler returns.
pub(super) const INTERRUPT: u8 = 32;
const HANDLER: u64 = 32;

/// Something that a scenario has a name for: its address in programs and in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) gva: u64,
    pub(super) gpa: u64,
}

impl Place {
    const fn own(page: u64) -> Self {
        Self { gva: KERNEL + page * PAGE_SIZE, gpa: page * PAGE_SIZE }
    }
}

/// The guest in memory.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) machine: Machine,
    /// Has it booted.
    pub(super) boot: Vec<Input>,
    names: BTreeMap<String, Place>,
    /// Of each driver: argument blocks and its name.
    blocks: BTreeMap<String, Place>,
    programs: BTreeMap<String, Place>,
    stacks: Vec<Place>,
    idt: Place,
    root: Gpa,
}

impl Layout {
    pub(super) fn new(scenario: &Scenario, folder: &Path) -> Result<Self, ScenarioError> {
        let pages = *scenario.pages.get_ref();
        let full = || scenario.source().wrong(scenario.pages.span(), format!("{pages} pages are too few for what is in them"));
        let mut next = FIRST;
        let mut take = |count: u64| {
            let first = next;
            next += count;
            if next > pages { Err(full()) } else { Ok(first) }
        };
        let handlers = Place::own(take(1)?);
        let code = scenario.programs.iter().map(|_| take(1).map(Place::own)).collect::<Result<Vec<_>, _>>()?;
        let data = scenario.programs.iter().map(|_| take(1).map(Place::own)).collect::<Result<Vec<_>, _>>()?;
        let idt = Place::own(take(1)?);
        let stacks = (0..*scenario.vps.get_ref()).map(|_| take(1).map(Place::own)).collect::<Result<Vec<_>, _>>()?;
        let pool = Place::own(take(POOL)?);
        let tables = GpnRange { start: Gpn(take(TABLES)?), pages: TABLES };
        let mut drivers = Vec::new();
        for entry in &scenario.drivers {
            let file = driver::file(scenario, entry, folder)?;
            let read = take((file.len() as u64).div_ceil(PAGE_SIZE))?;
            drivers.push(Driver { entry, file, read, blocks: take(3)?, at: 0, base: 0, pages: 0, placed: BTreeMap::new() });
        }
        let own = next;
        for driver in &mut drivers {
            driver.place(scenario, &mut next, own)?;
        }

        let mut memory = Memory { pages: BTreeMap::new() };
        let device = Place { gva: DEVICE, gpa: MMIO.0 };
        let mut names = BTreeMap::from([("pool".to_owned(), pool), ("device".to_owned(), device)]);
        let mut guest = PageTables::new(&mut memory, tables).map_err(machine)?;
        let (p, w, nx) = (entry::PRESENT, entry::WRITABLE, entry::NO_EXECUTE);
        let mut map = |memory: &mut Memory, place: Place, count: u64, bits: u64| {
            guest.map(memory, place.gva, Gpa(place.gpa), count * PAGE_SIZE, bits).map_err(machine)
        };
        for place in std::iter::once(&handlers).chain(&code) {
            map(&mut memory, *place, 1, p)?;
        }
        for place in data.iter().chain(&stacks).chain([&idt]) {
            map(&mut memory, *place, 1, p | w | nx)?;
        }
        map(&mut memory, pool, POOL, p | w)?;
        map(&mut memory, device, 1, p | w | nx)?;
        let mut aliases = Vec::new();
        let mut blocks = BTreeMap::new();
        for driver in &drivers {
            let name = driver.entry.name.get_ref();
            let place = Place { gva: driver.base, gpa: driver.at * PAGE_SIZE };
            map(&mut memory, place, driver.pages, p | w)?;
            map(&mut memory, Place::own(driver.blocks), 3, p | w | nx)?;
            if driver.entry.alias {
                let alias = (pages + aliases.len() as u64) * PAGE_SIZE;
                let alias = Place { gva: ALIASES + alias, gpa: alias };
                map(&mut memory, alias, driver.pages, p | w)?;
                names.insert(format!("{name}.alias"), alias);
                if aliases.len() as u64 + driver.pages > limits::LIST as u64 {
                    return Err(scenario.source().wrong(driver.entry.name.span(), format!("more than {} pages of aliases", limits::LIST)));
                }
                aliases.extend((driver.at..).map(Gpn).take(usize::try_from(driver.pages).unwrap_or(0)));
            }
            driver.write(&mut memory);
            names.insert(name.clone(), place);
            blocks.insert(name.clone(), Place::own(driver.blocks));
        }
        let mut layout = Self {
            machine: Machine::new(pages, *scenario.vps.get_ref(), scenario.time),
            boot: Vec::new(),
            names,
            blocks,
            programs: BTreeMap::new(),
            stacks,
            idt,
            root: guest.root(),
        };
        layout.machine.aliases = aliases;
        layout.machine.engine = scenario.engine;
        layout.machine.trust = driver::anchors(scenario, folder)?;
        exceptions(&mut memory, handlers, idt)?;
        for ((program, code), data) in scenario.programs.iter().zip(&code).zip(&data) {
            let assembled = program::assemble(scenario, program, code.gva, *data, &layout)?;
            memory.write(code.gpa, &assembled.code);
            memory.write(data.gpa, &assembled.blocks);
            layout.programs.insert(program.name.get_ref().clone(), *code);
        }
        layout.boot = memory.inputs();
        let verified = std::iter::once(&handlers).chain(&code).map(|place| Gpa(place.gpa).gpn()).collect();
        layout.boot.push(Input::Boot { code: verified });
        Ok(layout)
    }

    /// Has a processor stand before a program; `None` if there is no such processor or program.
    pub(super) fn start(&self, vp: u32, program: &str) -> Option<Input> {
        let stack = self.stacks.get(usize::try_from(vp).ok()?)?;
        let program = self.programs.get(program)?;
        let rsp = Gva(stack.gva + PAGE_SIZE - 0x100);
        Some(Input::Start { vp, rip: Gva(program.gva), rsp, cr3: self.root, idt: Gva(self.idt.gva) })
    }

    /// What `NAME`, `NAME+OFFSET` or a number means.
    pub(super) fn place(&self, text: &str) -> Result<Place, String> {
        let (name, offset) = text.split_once('+').unwrap_or((text, "0"));
        let offset = number(offset)?;
        let place = match self.names.get(name) {
            Some(place) => *place,
            None => {
                let known = self.names.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                let at = number(name).map_err(|_| format!("{name} is no number and none of {known}"))?;
                Place { gva: at, gpa: at }
            }
        };
        Ok(Place { gva: place.gva.wrapping_add(offset), gpa: place.gpa.wrapping_add(offset) })
    }

    /// The argument blocks of a driver.
    pub(super) fn blocks(&self, driver: &str) -> Result<Place, String> {
        self.blocks.get(driver).copied().ok_or_else(|| format!("no driver is called {driver}"))
    }
}

/// A number in decimal, or in hexadecimal behind `0x`.
pub(super) fn number(text: &str) -> Result<u64, String> {
    let plain = text.replace('_', "");
    let parsed = match plain.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => plain.parse(),
    };
    parsed.map_err(|_| format!("{text} is no number"))
}

struct Driver<'s> {
    entry: &'s DriverEntry,
    file: Vec<u8>,
    /// The first page that the guest has read the file into, and of its argument blocks and lists.
    read: u64,
    blocks: u64,
    /// Where it is placed.
    at: u64,
    base: u64,
    pages: u64,
    placed: guest_loader::Memory,
}

impl Driver<'_> {
    /// Finds a place for it behind `next` and what the guest's loader makes of it there. Pages below `own` are the guest's.
    fn place(&mut self, scenario: &Scenario, next: &mut u64, own: u64) -> Result<(), ScenarioError> {
        let source = scenario.source();
        let span = self.entry.name.span();
        let wrong = |what: String| source.wrong(span.clone(), format!("{}: {what}", self.entry.name.get_ref()));
        let input = Unpacked::new(&self.file, usize::try_from(MAX_IMAGE).unwrap_or(0));
        self.at = self.entry.at.as_ref().map_or(*next, |at| *at.get_ref());
        if self.at < own {
            return Err(wrong(format!("pages below {own:#x} are the guest's own")));
        }
        if self.at >= *scenario.pages.get_ref() {
            return Err(wrong(format!("page {:#x} is no RAM; give more pages", self.at)));
        }
        let behind = guest_loader::region_of(input.bytes()).0 + self.at * PAGE_SIZE;
        self.base = self.entry.base.as_ref().map_or(behind, |base| *base.get_ref());
        if !self.base.is_multiple_of(PAGE_SIZE) || self.base.checked_add(MAX_IMAGE).is_none() || self.base < KERNEL {
            return Err(wrong(format!("{:#x} is no address of a page in the kernel's half", self.base)));
        }
        // the engine says what it is all the same
        self.placed = guest_loader::place(input.bytes(), Gva(self.base)).unwrap_or_default();
        let read = (self.file.len() as u64).div_ceil(PAGE_SIZE);
        self.pages = if self.placed.is_empty() { read.max(1) } else { guest_loader::pages_of(&self.placed, Gva(self.base)) };
        if self.pages > MOST || read > MOST {
            return Err(wrong(format!("it, or its file, has more than {MOST} pages")));
        }
        let end = self.at + self.pages;
        if end > *scenario.pages.get_ref() {
            return Err(wrong(format!("its {} pages from {:#x} on are not all RAM; give more pages", self.pages, self.at)));
        }
        *next = end.max(*next);
        Ok(())
    }

    /// Writes what the guest's loader leaves: the file, the module in its place, and the arguments of the calls that load and unload it.
    fn write(&self, memory: &mut Memory) {
        let list = |from: u64, count: u64| (from..from + count).flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        memory.write(self.read * PAGE_SIZE, &self.file);
        for (start, bytes) in &self.placed {
            memory.write(self.at * PAGE_SIZE + start.wrapping_sub(self.base), bytes);
        }
        let name = self.entry.name.get_ref();
        let gpa = self.blocks * PAGE_SIZE;
        let (file, module) = (gpa + PAGE_SIZE, gpa + 2 * PAGE_SIZE);
        let len = self.file.len() as u64;
        let load = [Function::VALIDATE_MODULE.0, gpa + NAME, name.len() as u64, file, len, self.base, module, self.pages];
        memory.write(gpa, &words(&load));
        memory.write(gpa + NAME, name.as_bytes());
        memory.write(gpa + UNLOAD, &words(&[Function::UNLOAD_MODULE.0]));
        memory.write(file, &list(self.read, len.div_ceil(PAGE_SIZE)));
        memory.write(module, &list(self.at, self.pages));
    }
}

/// Handlers that say which exception it was and halt, and one of an interrupt that returns.
fn exceptions(memory: &mut Memory, handlers: Place, idt: Place) -> Result<(), ScenarioError> {
    for vector in 0..=INTERRUPT {
        let offset = u64::from(vector) * HANDLER;
        let address = handlers.gva + offset;
        let code = assemble(address, &|a| {
            if vector == INTERRUPT {
                return a.iretq();
            }
            a.mov(r15, CAUGHT | u64::from(vector))?;
            program::halt(a)
        })
        .map_err(machine)?;
        memory.write(handlers.gpa + offset, &code);
        memory.write(idt.gpa + u64::from(vector) * 16, &gate(address, INTERRUPT_GATE));
    }
    Ok(())
}

/// Memory before there is a machine.
struct Memory {
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl Memory {
    fn page(&mut self, gpa: u64) -> &mut [u8; PAGE] {
        self.pages.entry(gpa / PAGE_SIZE).or_insert_with(|| Box::new([0; PAGE]))
    }

    fn write(&mut self, gpa: u64, bytes: &[u8]) {
        let mut at = gpa;
        let mut rest = bytes;
        while !rest.is_empty() {
            let offset = page_offset(at);
            let (now, later) = rest.split_at(rest.len().min(PAGE - offset));
            self.page(at)[offset..offset + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            rest = later;
        }
    }

    /// What writes it into memory that is zero: a piece of each page from the first byte to the last that is not.
    fn inputs(&self) -> Vec<Input> {
        let piece = |page: &u64, bytes: &[u8; PAGE]| {
            let start = bytes.iter().position(|byte| *byte != 0)?;
            let end = bytes.iter().rposition(|byte| *byte != 0)?;
            Some(Input::Write { gpa: Gpa(page * PAGE_SIZE + start as u64), bytes: bytes[start..=end].to_vec(), assigned: false })
        };
        self.pages.iter().filter_map(|(page, bytes)| piece(page, bytes)).collect()
    }
}

impl Bus for Memory {
    fn load(&mut self, gpa: Gpa, _: Access, _: bool, bytes: &mut [u8]) -> Result<(), Fault> {
        let offset = page_offset(gpa.0);
        bytes.copy_from_slice(&self.page(gpa.0)[offset..offset + bytes.len()]);
        Ok(())
    }

    fn check_store(&mut self, _: Gpa, _: usize) -> Result<(), Fault> {
        Ok(())
    }

    fn store(&mut self, gpa: Gpa, _: bool, bytes: &[u8]) -> Result<(), Fault> {
        self.write(gpa.0, bytes);
        Ok(())
    }
}
