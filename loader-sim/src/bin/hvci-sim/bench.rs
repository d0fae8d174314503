//! `hvci-sim bench`: what a load costs, phase by phase.

use std::{
    fs,
    io::{self, Write},
    iter, mem,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use corpus::trust::KernelKeys;
use hdrhistogram::Histogram;
use hvci_engine::{
    access::Access,
    addr::{Gpa, Gpn, Gva, PAGE_SIZE},
    examine::Input,
    load::{File, Loader, MAX_IMAGE, Place, Request},
    time::UnixTime,
};
use loader_sim::{
    guest_loader::{self, StubKernel},
    host::{Config, SimHost},
};

use super::load::JudgingArgs;

const EXAMPLES: &str = "\
Examples:
  hvci-sim bench WinDivert64.sys
  hvci-sim bench --kernel vmlinuz nf_tables.ko --rounds 2000 --at-once 2

Each file is loaded and unloaded again and again: by a loader that knows it from two loads before (known), by one that knows the certificates and
not the file (warm), and by one that knows nothing (cold); alone and while two processors refill their TLBs from all over memory (storm), and as
many at once as is said. Quantiles of the whole load, and of each phase by itself, in microseconds of the machine that runs it, not of a guest.

Exit status: 0 measured, 1 a file is refused, 2 usage or I/O.";

/// RAM of the guest: 1 GiB, taken as it is used.
const PAGES: u64 = 1 << 18;
/// The first page that modules are put into.
const FIRST: u64 = 0x100;
/// Processors that touch memory in a storm.
const STORM: u32 = 2;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// Drivers and Linux modules that the profile accepts
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    judging: JudgingArgs,
    /// Loads of each file under each condition
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rounds: u32,
    /// Most loads at once
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=32))]
    at_once: u32,
}

#[derive(Clone, Copy)]
struct Condition {
    loader: Knows,
    storm: bool,
    at_once: u32,
}

/// What a loader knows already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Knows {
    /// The file.
    File,
    /// Who signed it.
    Signer,
    Nothing,
}

/// Nanoseconds of whole loads, and of each phase in order.
struct Latencies(Vec<(&'static str, Histogram<u64>)>);

impl Latencies {
    fn record(&mut self, phases: &[(&'static str, u64)]) -> Result<()> {
        let whole = ("load", phases.iter().map(|(_, nanos)| nanos).sum());
        for (column, (phase, nanos)) in iter::once(&whole).chain(phases).enumerate() {
            if column == self.0.len() {
                self.0.push((phase, Histogram::new(3)?));
            }
            let (of, histogram) = &mut self.0[column];
            ensure!(of == phase, "loads of one file differ in their phases: {of} and {phase}");
            histogram.record(*nanos)?;
        }
        Ok(())
    }

    fn add(&mut self, other: Self) -> Result<()> {
        if self.0.is_empty() {
            self.0 = other.0;
            return Ok(());
        }
        for ((_, sum), (_, histogram)) in self.0.iter_mut().zip(&other.0) {
            sum.add(histogram)?;
        }
        Ok(())
    }
}

pub(crate) fn bench(args: &BenchArgs) -> Result<ExitCode> {
    let (keys, time) = (args.judging.kernel_keys()?, args.judging.time()?);
    let mut out = io::stdout().lock();
    for path in &args.files {
        let file = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        writeln!(out, "{}, {} bytes, {} rounds, µs", path.display(), file.len(), args.rounds)?;
        let mut is_first = true;
        let conditions = [
            (Knows::File, false, 1),
            (Knows::Signer, false, 1),
            (Knows::Nothing, false, 1),
            (Knows::Signer, true, 1),
            (Knows::Signer, false, args.at_once),
            (Knows::Signer, true, args.at_once),
        ];
        for (loader, storm, at_once) in conditions.into_iter().take(if args.at_once > 1 { 6 } else { 4 }) {
            let condition = Condition { loader, storm, at_once };
            let Some(latencies) = measure(args, &keys, (path, &file), time, condition)? else { return Ok(ExitCode::from(1)) };
            if mem::take(&mut is_first) {
                head(&mut out, &latencies)?;
            }
            show(&mut out, condition, &latencies)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `None` for a file that is refused, which is said then.
fn measure(
    args: &BenchArgs,
    keys: &[KernelKeys],
    (path, file): (&Path, &[u8]),
    time: UnixTime,
    condition: Condition,
) -> Result<Option<Latencies>> {
    let config = Config { pages: PAGES, vps: condition.at_once + STORM, records: 16, ..Config::default() };
    let (host, partition) = SimHost::with_partition(&config).context("cannot make the guest")?;
    let loader = args.judging.loader(keys, &partition, Box::new(StubKernel))?;
    let placed = place(path, file, condition.at_once)?;
    // the first load of a loader is a cold one, and a file is known that was loaded twice
    for _ in 0..2 {
        if let Err(refusal) = once(&host, &loader, file, time, &placed, 0)? {
            eprintln!("hvci-sim: {}: {refusal}; hvci-sim load says more", path.display());
            return Ok(None);
        }
    }
    let mut all = Latencies(Vec::new());
    let over = AtomicBool::new(false);
    let start = Barrier::new(usize::try_from(condition.at_once)?);
    thread::scope(|scope| {
        for vp in (0..STORM).filter(|_| condition.storm) {
            let (host, over) = (&host, &over);
            scope.spawn(move || storm(host, condition.at_once + vp, over));
        }
        let loads: Vec<_> = (0..condition.at_once)
            .map(|vp| {
                let (host, partition, loader, placed, start) = (&host, &partition, &loader, &placed, &start);
                scope.spawn(move || -> Result<Latencies> {
                    let mut latencies = Latencies(Vec::new());
                    start.wait();
                    for _ in 0..args.rounds {
                        let fresh;
                        let loader = match condition.loader {
                            Knows::File => loader,
                            Knows::Signer => {
                                loader.forget_files();
                                loader
                            }
                            Knows::Nothing => {
                                fresh = args.judging.loader(keys, partition, Box::new(StubKernel))?;
                                &fresh
                            }
                        };
                        match once(host, loader, file, time, placed, vp)? {
                            Ok(phases) => latencies.record(&phases)?,
                            Err(refusal) => bail!("{}: {refusal}", path.display()),
                        }
                    }
                    Ok(latencies)
                })
            })
            .collect();
        let loads: Vec<_> = loads.into_iter().map(|load| load.join().unwrap_or_else(|_| bail!("a load did not end"))).collect();
        over.store(true, Ordering::Relaxed);
        loads.into_iter().try_for_each(|load| all.add(load?))
    })?;
    Ok(Some(all))
}

/// What the guest's loader makes of the file for each of those that load at once, and where.
struct Placed {
    copies: Vec<(Gpn, Gva, guest_loader::Memory)>,
}

fn place(path: &Path, file: &[u8], at_once: u32) -> Result<Placed> {
    let input = Input::new(file, usize::try_from(MAX_IMAGE)?);
    let kernel = guest_loader::region_of(input.bytes());
    let pages = guest_loader::pages_of(&guest_loader::place(input.bytes(), kernel)?, kernel);
    let copy = |number: u32| -> Result<_> {
        let at = FIRST + u64::from(number) * pages;
        if at + pages > PAGES {
            bail!("{}: too large for the guest's memory", path.display());
        }
        let base = Gva(kernel.0 + at * PAGE_SIZE);
        Ok((Gpn(at), base, guest_loader::place(input.bytes(), base)?))
    };
    Ok(Placed { copies: (0..at_once).map(copy).collect::<Result<_>>()? })
}

/// Nanoseconds of each phase of a load; or why the engine refuses.
fn once(
    host: &SimHost,
    loader: &Loader,
    file: &[u8],
    time: UnixTime,
    placed: &Placed,
    vp: u32,
) -> Result<Result<Vec<(&'static str, u64)>, hvci_engine::load::Refusal>> {
    let (at, base, memory) = placed.copies.get(usize::try_from(vp)?).context("no place for this load")?;
    guest_loader::put(host, memory, *base, *at)?;
    let pages = |gva: Gva| Some(Gpn(at.0 + gva.0.checked_sub(base.0)? / PAGE_SIZE));
    let request = Request { name: "bench", file: File::Private(file), place: Place::Base(*base), pages: &pages, time, vp: Some(vp) };
    let attempt = loader.load(&request);
    match attempt.outcome {
        Ok(module) => {
            loader.unload(module.id)?;
            Ok(Ok(attempt.phases))
        }
        Err(refusal) => Ok(Err(refusal)),
    }
}

/// A processor that reads from all over memory, so that its TLB is filled and refilled.
fn storm(host: &SimHost, vp: u32, over: &AtomicBool) {
    let mut word = u64::from(vp) + 1;
    while !over.load(Ordering::Relaxed) {
        // xorshift64
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        // refused or not, it is a walk
        let _ = host.access(vp, Gpa(word % PAGES * PAGE_SIZE), Access::Read);
    }
}

fn head(out: &mut dyn Write, latencies: &Latencies) -> Result<()> {
    write!(out, "  {:<5} {:<6} {:>7}      ", "file", "memory", "at once")?;
    latencies.0.iter().try_for_each(|(phase, _)| write!(out, " {phase:>9}"))?;
    writeln!(out)?;
    Ok(())
}

fn show(out: &mut dyn Write, condition: Condition, latencies: &Latencies) -> Result<()> {
    let loader = match condition.loader {
        Knows::File => "known",
        Knows::Signer => "warm",
        Knows::Nothing => "cold",
    };
    let memory = if condition.storm { "storm" } else { "quiet" };
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        write!(out, "  {loader:<5} {memory:<6} {:>7} {name:>5}", condition.at_once)?;
        for (_, histogram) in &latencies.0 {
            let nanos = histogram.value_at_quantile(quantile);
            write!(out, " {:>9}", format!("{}.{:02}", nanos / 1000, nanos % 1000 / 10))?;
        }
        writeln!(out)?;
    }
    Ok(())
}
