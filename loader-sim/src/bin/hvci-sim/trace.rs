//! `hvci-sim replay` and `hvci-sim shrink`.

use std::{
    fs::File,
    io::{BufReader, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Args;
use corpus::source::escape;
use loader_sim::trace::{Difference, Trace, replay, shrink};

use super::scenario::write_trace;

const REPLAY_EXAMPLES: &str = "\
Examples:
  hvci-sim replay race.trace

Plays the inputs again and compares all that comes of them with what stands in the trace, byte for byte.

Exit status: 0 the same, 1 something is not, which is shown, 2 usage or I/O.";

const SHRINK_EXAMPLES: &str = "\
Examples:
  hvci-sim shrink race.trace --shows HVCI-MEM-001 -o small.trace
  hvci-sim shrink race.trace --shows '\"broken\"' -o small.trace           an invariant that does not hold
  hvci-sim shrink race.trace --shows HVCI-MEM-005 --shows '\"r15\":24589'   both, each in some line

Leaves inputs out and shortens runs as long as each TEXT still stands in a line of what comes of the rest.

Exit status: 0 written, 1 the trace itself does not show it, 2 usage or I/O.";

#[derive(Debug, Args)]
#[command(after_help = REPLAY_EXAMPLES)]
pub(crate) struct ReplayArgs {
    /// The trace
    #[arg(value_name = "FILE")]
    trace: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = SHRINK_EXAMPLES)]
pub(crate) struct ShrinkArgs {
    /// The trace
    #[arg(value_name = "FILE")]
    trace: PathBuf,
    /// What must still be seen: text of an event, or of another line that comes of an input
    #[arg(long, value_name = "TEXT", required = true)]
    shows: Vec<String>,
    /// The smaller trace
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replays at most
    #[arg(long, value_name = "N", default_value_t = 2000)]
    replays: u32,
}

pub(crate) fn replay_trace(args: &ReplayArgs) -> Result<ExitCode> {
    let trace = read(&args.trace)?;
    let replayed = replay(&trace).context("cannot make the machine")?;
    let mut out = anstream::stdout().lock();
    let path = args.trace.display();
    if let Some(Difference { line, recorded, played }) = &replayed.difference {
        writeln!(out, "{path}: line {line} differs")?;
        for (what, text) in [("recorded", recorded), ("played", played)] {
            writeln!(out, "  {what:<8}  {}", escape(text.as_deref().unwrap_or("nothing").as_bytes()))?;
        }
    }
    if trace.edited {
        writeln!(out, "{path}: the inputs are not those that were recorded")?;
    }
    if replayed.difference.is_some() || trace.edited {
        return Ok(ExitCode::FAILURE);
    }
    writeln!(out, "{path}: {} inputs, {} events, the same", trace.steps.len(), trace.events().count())?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn shrink_trace(args: &ShrinkArgs) -> Result<ExitCode> {
    let trace = read(&args.trace)?;
    let shows = |trace: &Trace| args.shows.iter().all(|text| trace.outputs().any(|line| line.contains(text)));
    let mut out = anstream::stdout().lock();
    let Some(shrunk) = shrink(&trace, args.replays, &shows).context("cannot make the machine")? else {
        writeln!(out, "{}: what comes of it does not show {}", args.trace.display(), args.shows.join(" and "))?;
        return Ok(ExitCode::FAILURE);
    };
    write_trace(&args.output, &shrunk.trace)?;
    let minimal = if shrunk.minimal { "none of them can be left out" } else { "the replays were used up before all was tried" };
    writeln!(
        out,
        "{}: {} inputs of {}, {minimal}; {} replays",
        args.output.display(),
        shrunk.trace.steps.len(),
        trace.steps.len(),
        shrunk.replays
    )?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Trace> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Trace::read(&mut BufReader::new(file)).with_context(|| path.display().to_string())
}
