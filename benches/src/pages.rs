//! Single pages: their digests beside that of the whole image, and what it takes until one that comes back to memory executes
//! ([`Loader::on_memory`]): its digest, looked up and compared while it is locked, and its permission.

use std::hint::black_box;

use anyhow::{Context, Result, anyhow, ensure};
#[cfg(doc)]
use hvci_engine::load::Loader;
use hvci_engine::{
    access::{Access, MapGpaFlags},
    addr::{Gpa, Gpn, GpnRange, Gva, PAGE_SIZE, Vtl},
    crypto::{Job, digest, digest_jobs},
    digest::{Digest, DigestAlg},
    frames::Kind,
    host::{Host, MemoryIntercept},
};
use loader_sim::{
    cpu::{Cpu, registers::Registers},
    machine::View,
    paging::{PageTables, entry},
};
use serde::Serialize;

use crate::{
    cpu,
    goal::{Goal, Must},
    inputs::noise,
    loading::Machine,
    subject::Subject,
    table::{Table, median, number},
};

const PAGE: usize = 4096;
/// Zeros.
const NO_TABLES: Gpa = Gpa(0);
/// Of the guest's memory: its page tables.
const TABLES: GpnRange = GpnRange { start: Gpn(0x80), pages: 0x40 };
/// Images whose pages are hashed beside the whole.
const SIZES: [(&str, usize); 3] = [("60 KiB", 60 << 10), ("500 KiB", 500 << 10), ("4 MiB", 4 << 20)];

/// What was measured, by round.
#[derive(Debug, Default, Serialize)]
pub struct Measured {
    /// µs of an image: its digest, and the same with the digests of its pages in one pass. By size.
    pub whole: [Vec<f64>; 3],
    /// As [`whole`](Self::whole).
    pub both: [Vec<f64>; 3],
    /// µs of one page: its digest alone.
    pub digest: Vec<f64>,
    /// µs of a page of code that came back, with those beside it: until it executes.
    pub execute: Vec<f64>,
    /// The same of one that came alone.
    pub alone: Vec<f64>,
}

/// Measures in turn, so many rounds; pages are those of a driver's code.
///
/// # Errors
/// None that occurs.
pub fn measure(driver: &Subject, rounds: usize) -> Result<Measured> {
    let images = SIZES.map(|(_, len)| noise(len, 1));
    let mut paged = Paged::new(driver)?;
    let mut measured = Measured::default();
    for _ in 0..rounds {
        for ((image, whole), both) in images.iter().zip(&mut measured.whole).zip(&mut measured.both) {
            let times = u32::try_from((8 << 20) / image.len())?;
            whole.push(micros(times, || _ = black_box(digest(DigestAlg::Sha256, &[image]))));
            both.push(micros(times, || drop(black_box(with_pages(image)))));
        }
        measured.digest.push(paged.digests());
        measured.execute.push(paged.execute(true)?);
        measured.alone.push(paged.execute(false)?);
    }
    Ok(measured)
}

fn micros(times: u32, mut work: impl FnMut()) -> f64 {
    let before = cpu::thread();
    (0..times).for_each(|_| work());
    (cpu::thread() - before).as_secs_f64() * 1e6 / f64::from(times)
}

/// The digest of an image, then those of its pages.
fn with_pages(image: &[u8]) -> Vec<Digest> {
    let pieces = std::iter::once(image).chain(image.chunks(PAGE));
    let jobs: Vec<Job<'_>> = pieces.map(|piece| Job { alg: DigestAlg::Sha256, pieces: vec![piece] }).collect();
    digest_jobs(&jobs)
}

/// A guest whose driver's code goes and comes, all of it together.
struct Paged<'s> {
    machine: Machine<'s>,
    module: u32,
    /// Of each page of code: its address, where it is, and its bytes.
    code: Vec<(Gva, Gpa, [u8; PAGE])>,
    /// In whose page tables they are; and one that has none, so that nothing beside a page can be found.
    cpus: [Cpu; 2],
}

impl<'s> Paged<'s> {
    fn new(driver: &'s Subject) -> Result<Self> {
        let machine = Machine::new(driver)?;
        machine.place()?;
        let module = machine.attempt(&driver.file).outcome.map_err(|refusal| anyhow!("{}: {refusal}", driver.name))?;
        let mut code = Vec::new();
        for segment in module.segments.iter().filter(|s| s.kind == Kind::Code) {
            for (at, gpn) in (segment.start.0..).step_by(PAGE).map(Gva).zip(&segment.pages) {
                let gpa = gpn.and_then(|gpn| gpn.gpa()).context("no page")?;
                let mut bytes = [0; PAGE];
                machine.host.read(gpa, &mut bytes)?;
                code.push((at, gpa, bytes));
            }
        }
        ensure!(code.len() >= 16, "{}: {} pages of code", driver.name, code.len());
        let mut view = View::new(&machine.host, 0);
        let mut tables = PageTables::new(&mut view, TABLES)?;
        for (at, gpa, _) in &code {
            tables.map(&mut view, at.0, *gpa, PAGE_SIZE, entry::PRESENT)?;
        }
        let cpus = [tables.root(), NO_TABLES].map(|root| Cpu::new(0, Registers::kernel(0, 0, root.0)));
        Ok(Self { machine, module: module.id, code, cpus })
    }

    fn each(&self, took: f64) -> f64 {
        took / f64::from(u32::try_from(self.code.len()).unwrap_or(u32::MAX))
    }

    fn digests(&self) -> f64 {
        self.each(micros(20, || self.code.iter().for_each(|(.., page)| _ = black_box(digest(DigestAlg::Sha256, &[page])))))
    }

    /// Takes every page out and brings it back; what it takes until each executes.
    fn execute(&mut self, together: bool) -> Result<f64> {
        let mut took = 0.0;
        for _ in 0..20 {
            for (at, gpa, bytes) in &self.code {
                self.machine.loader.page_out(self.module, *at)?;
                self.machine.host.write(*gpa, bytes)?;
            }
            let Self { machine, code, cpus: [with_tables, without], .. } = self;
            let cpu = if together { with_tables } else { without };
            // there is no fault where a page executes already
            let executes = |gpa: &Gpa| machine.host.permission(Vtl::Vtl0, gpa.gpn()).contains(MapGpaFlags::KERNEL_EXECUTABLE);
            took += micros(1, || {
                for (at, gpa, _) in code.iter().filter(|(_, gpa, _)| !executes(gpa)) {
                    let (gva, access) = (Some(*at), Access::KernelExecute);
                    let intercept = MemoryIntercept { gpa: *gpa, gva, access, page_walk: false, cpl: 0, rip: *at };
                    black_box(machine.loader.on_memory(cpu, &intercept));
                }
            });
            ensure!(code.iter().all(|(_, gpa, _)| executes(gpa)), "a page that came back is refused");
        }
        Ok(self.each(took / 20.0))
    }
}

/// What each takes.
pub fn table(measured: &Measured) -> Table {
    let mut table = Table::new(1, ["pages, µs", "digest", "with pages / first executed"]);
    let images = SIZES.iter().zip(measured.whole.iter().zip(&measured.both)).map(|((name, _), of)| (*name, of));
    let pages = [("one page", (&measured.digest, &measured.alone)), ("one of three pages", (&measured.digest, &measured.execute))];
    for (name, (alone, with)) in images.chain(pages) {
        table.push([name.to_owned(), number(median(alone)), number(median(with))]);
    }
    table
}

/// Rows 5 and 6.
pub fn goals(measured: &Measured) -> Vec<Goal> {
    let ratio = |of: &[f64], to: &[f64]| of.iter().zip(to).map(|(of, to)| of / to).collect();
    let five = |what| format!("first execution of a page that came {what} / SHA-256 of a page");
    let mut goals = vec![
        Goal::new("5", five("with others"), Must::AtMost(1.25), ratio(&measured.execute, &measured.digest)),
        Goal::new("5", five("alone"), Must::AtMost(1.25), ratio(&measured.alone, &measured.digest)),
    ];
    for ((size, _), (whole, both)) in SIZES.iter().zip(measured.whole.iter().zip(&measured.both)) {
        let what = format!("digest and those of the pages / digest: {size}");
        goals.push(Goal::new("6", what, Must::AtMost(1.25), ratio(both, whole)));
    }
    goals
}
