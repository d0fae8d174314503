//! `hvci-sim explore`.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::{Args, builder::PossibleValuesParser};
use hvci_engine::explore::{Bug, Explored, MOST, Space, explore as visit};
use indicatif::{ProgressBar, ProgressStyle};

const EXAMPLES: &str = "\
Examples:
  hvci-sim explore                       the machine of the tests: 3 pages, 2 frames, 2 processors
  hvci-sim explore --bugs                the six seeded mistakes, and the shortest way to see each
  hvci-sim explore --bug one-alias       one of them
  hvci-sim explore --vps 1 --transactions 2
  hvci-sim explore --pages 4 --vps 2 --large-leaf    minutes, and some gigabytes

Exit status: 0 as it should be, 1 an invariant is broken (with --bugs: a mistake was not found), 2 usage.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ExploreArgs {
    /// Guest pages; those behind the frames are aliases
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=MOST[0] as i64))]
    pages: u8,
    /// Frames behind them
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=MOST[1] as i64))]
    frames: u8,
    /// Virtual processors
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=MOST[2] as i64))]
    vps: u8,
    /// Transactions at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=MOST[3] as i64))]
    transactions: u8,
    /// Without a device that takes slices of memory
    #[arg(long)]
    no_device: bool,
    /// With a large leaf that is split and merged
    #[arg(long)]
    large_leaf: bool,
    /// Put a mistake in
    #[arg(long, value_name = "NAME", conflicts_with = "bugs", value_parser = PossibleValuesParser::new(Bug::ALL.map(Bug::name)))]
    bug: Option<String>,
    /// Put each of the six mistakes in, one after the other
    #[arg(long)]
    bugs: bool,
}

pub(crate) fn explore(args: &ExploreArgs) -> Result<ExitCode> {
    anyhow::ensure!(args.frames <= args.pages, "--frames {} needs at least as many --pages", args.frames);
    let mut out = io::stdout().lock();
    if args.bugs {
        let mut missed = 0;
        writeln!(out, "{:<20} {:>10}  {:>5}  broken", "mistake", "states", "steps")?;
        for bug in Bug::ALL {
            let explored = run(args, Some(bug));
            match &explored.broken {
                Some(broken) => {
                    writeln!(out, "{:<20} {:>10}  {:>5}  {}", bug.name(), explored.states, broken.actions.len(), broken.invariant)?;
                }
                None => {
                    missed += 1;
                    writeln!(out, "{:<20} {:>10}  {:>5}  NOT FOUND", bug.name(), explored.states, "–")?;
                }
            }
            out.flush()?;
        }
        return Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let bug = args.bug.as_deref().and_then(|name| Bug::ALL.into_iter().find(|bug| bug.name() == name));
    let explored = run(args, bug);
    writeln!(out, "{} states, {} actions", explored.states, explored.edges)?;
    match &explored.broken {
        Some(broken) => {
            writeln!(out, "{broken}")?;
            Ok(ExitCode::FAILURE)
        }
        None => {
            let executed = if explored.executed { "" } else { "; nothing was ever executable" };
            writeln!(out, "no invariant is broken{executed}")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run(args: &ExploreArgs, bug: Option<Bug>) -> Explored {
    let space = Space {
        device: !args.no_device,
        large_leaf: args.large_leaf && args.frames > 1,
        transactions: args.transactions.into(),
        bug,
        ..Space::new(args.pages.into(), args.frames.into(), args.vps.into())
    };
    // how many there are is known at the end
    let bar = if io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.set_style(
        ProgressStyle::with_template("{spinner} {human_pos} states, {per_sec}, {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    bar.enable_steady_tick(Duration::from_millis(200));
    let explored = visit(&space, &mut |states, _| {
        bar.set_position(states as u64);
        true
    });
    bar.finish_and_clear();
    explored
}
