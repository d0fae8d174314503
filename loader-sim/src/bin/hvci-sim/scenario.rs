//! `hvci-sim run` and `hvci-sim record`.

use std::{
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Args;
use corpus::source::escape;
use loader_sim::{
    scenario::{Played, Row, Scenario, play},
    trace::Trace,
};

const RUN_EXAMPLES: &str = "\
Examples:
  hvci-sim run race.toml
  hvci-sim run race.toml --seed 12           another schedule
  hvci-sim run race.toml --seeds 200         two hundred of them; what came of each step, and how often

docs/scenarios.md describes scenarios; loader-sim/scenarios has some.

Exit status: 0 everything is as expected, 1 something is not, or an invariant does not hold, 2 usage, the scenario, or I/O.";

const RECORD_EXAMPLES: &str = "\
Examples:
  hvci-sim record race.toml -o race.trace
  hvci-sim record race.toml --seed 12 -o race.trace --events race.ndjson

A trace holds everything that reached the machine from outside and what came of it. It replays without the scenario and the files that it names.
Attacks of the catalogue run in guests of their own and are not in it.

Exit status: 0 recorded, 2 usage, the scenario, or I/O.";

/// Schedules of one call.
const MOST_SEEDS: u64 = 100_000;

#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(crate) struct RunArgs {
    /// The scenario
    #[arg(value_name = "SCENARIO.toml")]
    scenario: PathBuf,
    /// The seed of the schedule, instead of the scenario's own
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How many seeds to run, from that one on
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=MOST_SEEDS))]
    seeds: u64,
}

#[derive(Debug, Args)]
#[command(after_help = RECORD_EXAMPLES)]
pub(crate) struct RecordArgs {
    /// The scenario
    #[arg(value_name = "SCENARIO.toml")]
    scenario: PathBuf,
    /// The trace
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The seed of the schedule, instead of the scenario's own
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Writes every event to this file too, one JSON object a line
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
}

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let (scenario, folder) = read(&args.scenario)?;
    let first = args.seed.unwrap_or(scenario.seed);
    let mut out = BufWriter::new(anstream::stdout().lock());
    let mut all = true;
    if args.seeds == 1 {
        let played = played(&args.scenario, &scenario, folder, first)?;
        all = show(&mut out, &played)?;
    } else {
        // row, result, count, the first seed; in the order of their first seeds
        let mut seen: Vec<(usize, Row, u64, u64)> = Vec::new();
        for seed in (0..args.seeds).map(|more| first.wrapping_add(more)) {
            let played = played(&args.scenario, &scenario, folder, seed)?;
            for broken in &played.broken {
                all = false;
                writeln!(out, "BROKEN with seed {seed}: {broken}")?;
            }
            for (at, row) in played.rows.into_iter().enumerate() {
                all &= row.as_expected;
                match seen.iter_mut().find(|(of, other, ..)| (*of, other) == (at, &row)) {
                    Some((_, _, count, _)) => *count += 1,
                    None => seen.push((at, row, 1, seed)),
                }
            }
        }
        seen.sort_by_key(|(at, ..)| *at);
        writeln!(out, "{:>3}  {:>6}  {:>10}  what, and what came of it", "no", "times", "first seed")?;
        for (at, row, count, seed) in seen {
            writeln!(out, "{:>3}  {count:>6}  {seed:>10}  {} → {}", at + 1, escape(row.what.as_bytes()), observed(&row))?;
        }
    }
    out.flush()?;
    Ok(ExitCode::from(u8::from(!all)))
}

pub(crate) fn record(args: &RecordArgs) -> Result<ExitCode> {
    let (scenario, folder) = read(&args.scenario)?;
    let seed = args.seed.unwrap_or(scenario.seed);
    let Played { trace, .. } = played(&args.scenario, &scenario, folder, seed)?;
    write_trace(&args.output, &trace)?;
    if let Some(path) = &args.events {
        let mut file = create(path)?;
        trace.events().try_for_each(|event| writeln!(file, "{event}")).with_context(|| format!("cannot write {}", path.display()))?;
        file.flush().with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut out = anstream::stdout().lock();
    writeln!(out, "{}: {} inputs, {} events, seed {seed}", args.output.display(), trace.steps.len(), trace.events().count())?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a trace to a file.
pub(crate) fn write_trace(path: &Path, trace: &Trace) -> Result<()> {
    let mut file = create(path)?;
    trace.write(&mut file).and_then(|()| file.flush()).with_context(|| format!("cannot write {}", path.display()))
}

fn create(path: &Path) -> Result<BufWriter<fs::File>> {
    Ok(BufWriter::new(fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?))
}

/// A scenario, and the folder that the files which it names are in.
fn read(path: &Path) -> Result<(Scenario, &Path)> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let scenario = Scenario::parse(&text).with_context(|| path.display().to_string())?;
    Ok((scenario, path.parent().unwrap_or_else(|| Path::new(""))))
}

fn played(path: &Path, scenario: &Scenario, folder: &Path, seed: u64) -> Result<Played> {
    play(scenario, folder, seed).with_context(|| path.display().to_string())
}

/// A table of steps and attacks. Whether everything is as expected.
fn show(out: &mut dyn Write, played: &Played) -> Result<bool> {
    let whats: Vec<String> = played.rows.iter().map(|row| escape(row.what.as_bytes()).to_string()).collect();
    let width = whats.iter().map(String::len).max().unwrap_or(0).max(4);
    writeln!(out, "{:>3}  {:<width$}  what came of it", "no", "what")?;
    let mut differing = 0;
    for ((number, row), what) in (1..).zip(&played.rows).zip(&whats) {
        writeln!(out, "{number:>3}  {what:<width$}  {}", observed(row))?;
        if !row.as_expected {
            differing += 1;
            writeln!(out, "     DIFFERS: line {} of the scenario expects {}", row.line, escape(row.expected.as_bytes()))?;
        }
    }
    for broken in &played.broken {
        writeln!(out, "BROKEN: {broken}")?;
    }
    writeln!(out, "{} done, {differing} not as expected; {} inputs", played.rows.len(), played.trace.steps.len())?;
    Ok(differing == 0 && played.broken.is_empty())
}

fn observed(row: &Row) -> String {
    if row.codes.is_empty() { row.result.clone() } else { format!("{}  [{}]", row.result, row.codes.join(" ")) }
}
