//! What enforcement costs, beside what there is to compare it with: `cargo run --release -p benches --bin enforce [DIR]`.
//!
//! Contenders take turns in one process, so that what disturbs one disturbs the others; what counts is processor time of the thread.

use std::{fs, hint::black_box, path::PathBuf};

use anyhow::{Context, Result};
use benches::{
    cpu,
    goal::{self, Goal, Must},
    guarded, loading, pages,
    paging::{Multiarch, Ours, Tables, X64},
    subject::Subject,
    table::{Table, median, number},
};
use clap::Parser;
use hvci_engine::addr::{Gpn, GpnRange};
use serde::Serialize;

// the allocator of the other programs
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure what enforcement costs, and compare.
#[derive(Debug, Parser)]
struct Args {
    /// A folder with drivers (.sys) and Linux modules (.ko) and their vmlinuz, to load besides those made in code.
    dir: Option<PathBuf>,
    /// How often everything is run; ratios are medians of as many.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Write every number to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    loads: Vec<loading::Measured>,
    pages: pages::Measured,
    guarded: guarded::Measured,
    paging: Vec<Contender>,
    goals: Vec<Goal>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut subjects = Subject::synthetic()?;
    if let Some(dir) = &args.dir {
        subjects.extend(Subject::real(dir)?);
    }
    let loads = loading::measure(&subjects, args.rounds)?;
    let driver = subjects.iter().find(|s| s.file.len() > 400 << 10).context("no driver of some size")?;
    let pages = pages::measure(driver, args.rounds)?;
    let guarded = guarded::measure(args.rounds)?;
    let paging = paging(args.rounds)?;
    let goals = [loading::goals(&loads), pages::goals(&pages), guarded::goals(&guarded), paging_goals(&paging)].concat();
    let report = Report { loads, pages, guarded, paging, goals };
    println!("{}\n{}", loading::table(&report.loads), loading::phase_table(&report.loads));
    println!("{}", pages::table(&report.pages));
    println!("{}\n{}", guarded::table(&report.guarded), paging_table(&report.paging));
    print!("{}", goal::table(&report.goals));
    if let Some(file) = &args.json {
        fs::write(file, serde_json::to_vec_pretty(&report)?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Pages of 1 GiB.
const GIB: u64 = 1 << 18;

/// One kind of second-level tables.
#[derive(Debug, Serialize)]
struct Contender {
    name: &'static str,
    /// Nanoseconds a page, by round: protect 60 KiB, 5 MiB, 1 GiB as a range; look up at random in 1 GiB.
    protect_60_kib: Vec<f64>,
    protect_5_mib: Vec<f64>,
    protect_1_gib: Vec<f64>,
    lookup: Vec<f64>,
}

/// Measures one round.
type Turn = Box<dyn FnMut(&mut Contender) -> Result<()>>;

fn paging(rounds: usize) -> Result<Vec<Contender>> {
    let mut all: Vec<(Contender, Turn)> = vec![turns::<Ours<false>>()?, turns::<Ours<true>>()?, turns::<Multiarch>()?, turns::<X64>()?];
    for _ in 0..rounds {
        for (contender, turn) in &mut all {
            turn(contender)?;
        }
    }
    Ok(all.into_iter().map(|(contender, _)| contender).collect())
}

/// A contender with nothing measured, and what measures one round.
fn turns<T: Tables + 'static>() -> Result<(Contender, Turn)> {
    let contender =
        Contender { name: T::NAME, protect_60_kib: Vec::new(), protect_5_mib: Vec::new(), protect_1_gib: Vec::new(), lookup: Vec::new() };
    let mut tables = T::with(GIB)?;
    let turn = move |measured: &mut Contender| {
        measured.protect_60_kib.push(protect(&mut tables, 15, 10_000)?);
        measured.protect_5_mib.push(protect(&mut tables, 1_280, 200)?);
        measured.protect_1_gib.push(protect(&mut tables, GIB, 4)?);
        let mut gpn = 0;
        measured.lookup.push(nanoseconds(1, 100_000, || {
            gpn = (gpn + 104_729) % GIB;
            tables.lookup(black_box(Gpn(gpn))).map(|frame| _ = black_box(frame)).context("not mapped")
        })?);
        Ok(())
    };
    Ok((contender, Box::new(turn)))
}

/// Nanoseconds a page: writing is taken from a range and given back, so often.
fn protect(tables: &mut impl Tables, pages: u64, times: u32) -> Result<f64> {
    let range = GpnRange { start: Gpn(0), pages };
    let mut writable = true;
    nanoseconds(pages, times, || {
        writable = !writable;
        tables.protect(black_box(range), writable)
    })
}

/// Nanoseconds of processor time for each of so many items, each time.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn nanoseconds(items: u64, times: u32, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let before = cpu::thread();
    for _ in 0..times {
        work()?;
    }
    Ok((cpu::thread() - before).as_secs_f64() * 1e9 / f64::from(times) / items as f64)
}

fn paging_table(contenders: &[Contender]) -> Table {
    let mut table = Table::new(1, ["ns a page", "protect 60 KiB", "5 MiB", "1 GiB", "look up"]);
    for c in contenders {
        let [a, b, d, e] = [&c.protect_60_kib, &c.protect_5_mib, &c.protect_1_gib, &c.lookup].map(|of| number(median(of)));
        table.push([c.name.to_owned(), a, b, d, e]);
    }
    table
}

fn paging_goals(contenders: &[Contender]) -> Vec<Goal> {
    let of = |name| contenders.iter().find(|c| c.name == name).map_or(&[][..], |c| &c.protect_1_gib);
    let ratio = |theirs, ours| of(theirs).iter().zip(of(ours)).map(|(theirs, ours)| theirs / ours).collect();
    let (plain, with_bits) = (Ours::<false>::NAME, Ours::<true>::NAME);
    vec![
        Goal::new("16", "1 GiB range protect / page_table_multiarch", Must::AtLeast(8.0), ratio(Multiarch::NAME, plain)),
        Goal::new("16", "1 GiB range protect / x86_64, page by page", Must::Shown, ratio(X64::NAME, plain)),
        Goal::new("16", "with accessed and dirty bits / page_table_multiarch", Must::Shown, ratio(Multiarch::NAME, with_bits)),
    ]
}
