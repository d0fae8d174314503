//! What an access of a device costs that the engine is asked about, and what it costs where the engine is off.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Result;
use hvci_engine::{
    access::Access,
    addr::{Gpa, PAGE_SIZE, Vtl},
    host::Enforcer,
    status::HvStatus,
};
use loader_sim::host::{Config, SimHost};
use serde::Serialize;

use crate::{
    cpu,
    goal::{Goal, Must},
    table::{Table, median, number},
};

/// 256 MiB of RAM: the words of its frames do not fit in the first-level cache.
const PAGES: u64 = 1 << 16;
/// Words that a device reads at a time: a cache line.
const LINE: usize = 8;
/// Accesses of a round.
const TIMES: u32 = 200_000;

/// Nanoseconds an access, by round; each access to another page.
#[derive(Debug, Default, Serialize)]
pub struct Measured {
    /// The engine's check of a line.
    pub check: Vec<f64>,
    /// Reading one word for each page, of a table as large as that of the frames: what no check can do without.
    pub word: Vec<f64>,
    /// Reading a line of memory, with no word of an engine in the code.
    pub without: Vec<f64>,
    /// Reading it where there may be an engine and is none.
    pub off: Vec<f64>,
    /// Reading it where the engine is asked.
    pub on: Vec<f64>,
}

/// A VMM's memory: a line for each page.
struct Memory {
    lines: Vec<[AtomicU64; LINE]>,
    engine: Option<Arc<dyn Enforcer>>,
}

impl Memory {
    #[inline(never)]
    fn read(&self, gpa: Gpa) -> Result<u64, HvStatus> {
        self.line(gpa).ok_or(HvStatus::INVALID_PARAMETER)
    }

    /// As a VMM has it that may embed an engine.
    #[inline(never)]
    fn read_guarded(&self, gpa: Gpa) -> Result<u64, HvStatus> {
        if let Some(engine) = &self.engine {
            engine.check(Vtl::Vtl0, gpa, 64, Access::Read)?;
        }
        self.line(gpa).ok_or(HvStatus::INVALID_PARAMETER)
    }

    #[inline(always)]
    fn line(&self, gpa: Gpa) -> Option<u64> {
        let line = usize::try_from(gpa.0 / PAGE_SIZE).ok().and_then(|at| self.lines.get(at))?;
        Some(line.iter().fold(0, |sum, word| sum ^ word.load(Ordering::Relaxed)))
    }
}

/// Measures in turn, so many rounds.
///
/// # Errors
/// None that occurs.
pub fn measure(rounds: usize) -> Result<Measured> {
    let config = Config { pages: PAGES, records: 16, ..Config::default() };
    let (_host, partition) = SimHost::with_partition(&config)?;
    let engine: Arc<dyn Enforcer> = partition;
    let memory = |engine| Memory { lines: (0..PAGES).map(|_| Default::default()).collect(), engine };
    let (off, on) = (memory(None), memory(Some(Arc::clone(&engine))));
    let words: Vec<AtomicU64> = (0..PAGES).map(|_| AtomicU64::new(3)).collect();
    let mut measured = Measured::default();
    for _ in 0..rounds {
        measured.check.push(each(|gpa| black_box(&engine).check(Vtl::Vtl0, gpa, 64, Access::Read).is_ok()));
        measured.word.push(each(|gpa| {
            let word = usize::try_from(gpa.0 / PAGE_SIZE).ok().and_then(|at| black_box(&words).get(at));
            word.is_some_and(|word| word.load(Ordering::SeqCst) & 0xFF == 3)
        }));
        measured.without.push(each(|gpa| black_box(&off).read(gpa).is_ok()));
        measured.off.push(each(|gpa| black_box(&off).read_guarded(gpa).is_ok()));
        measured.on.push(each(|gpa| black_box(&on).read_guarded(gpa).is_ok()));
    }
    Ok(measured)
}

/// Nanoseconds of processor time an access.
fn each(mut access: impl FnMut(Gpa) -> bool) -> f64 {
    let mut page = 0;
    let mut pass = || {
        let before = cpu::thread();
        for _ in 0..TIMES {
            page = (page + 40_503) % PAGES;
            assert!(access(black_box(Gpa(page * PAGE_SIZE + 64))), "refused");
        }
        (cpu::thread() - before).as_secs_f64() * 1e9 / f64::from(TIMES)
    };
    // the caches are as this one leaves them
    pass();
    pass()
}

/// What each takes.
pub fn table(measured: &Measured) -> Table {
    let mut table = Table::new(1, ["ns an access of 64 bytes, at random in 256 MiB", ""]);
    for (name, of) in [
        ("the check alone", &measured.check),
        ("reading one word of a table of as many", &measured.word),
        ("an access, no engine in the code", &measured.without),
        ("an access, the engine off", &measured.off),
        ("an access, the engine on", &measured.on),
    ] {
        table.push([name.to_owned(), number(median(of))]);
    }
    table
}

/// The check on the device path, and an engine that is off.
pub fn goals(measured: &Measured) -> Vec<Goal> {
    let ratio = |of: &[f64], to: &[f64]| of.iter().zip(to).map(|(of, to)| of / to).collect();
    let more = measured.off.iter().zip(&measured.without).map(|(off, without)| off - without).collect();
    vec![
        Goal::new("–", "check on the device path, ns", Must::AtMost(10.0), measured.check.clone()),
        Goal::new("–", "check / reading one word of its table", Must::Shown, ratio(&measured.check, &measured.word)),
        Goal::new("–", "access with the engine off / without one", Must::Shown, ratio(&measured.off, &measured.without)),
        Goal::new("–", "an engine that is off, ns an access", Must::Shown, more),
    ]
}
