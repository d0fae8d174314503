//! `hvci-sim health`: what became of the machines each time they were attested.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufReader, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use loader_sim::attest::alert::Health;

use super::interrupt::Interrupt;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hvci-sim health
  hvci-sim health demo --json | collector
  hvci-sim vm start demo --attest-every 300 & hvci-sim health --watch

Exit status: 0 every machine was healthy when it was last attested, 1 one was not, 2 usage or I/O.")]
pub(crate) struct HealthArgs {
    /// Machines; all without
    names: Vec<String>,
    /// The folder of the machines
    #[arg(long, value_name = "DIR")]
    vms: Option<PathBuf>,
    /// One JSON object a line: every attestation and every alert
    #[arg(long)]
    json: bool,
    /// Go on as the machines are attested, until one is not healthy or it is interrupted
    #[arg(long)]
    watch: bool,
}

/// How often histories are looked at, to go on with them.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) fn health(args: &HealthArgs) -> Result<ExitCode> {
    let host = super::vm::host(args.vms.as_deref())?;
    let interrupt = args.watch.then(Interrupt::listen).transpose()?;
    let mut shown: BTreeMap<PathBuf, usize> = BTreeMap::new();
    loop {
        let names = if args.names.is_empty() { host.machines()? } else { args.names.clone() };
        let mut out = anstream::stdout().lock();
        let mut all = true;
        for name in &names {
            let path = |file: &str| host.root().join(name).join(file);
            let of_health = path("health.ndjson");
            let history = history(&of_health)?;
            all &= history.last().is_none_or(|last| last.healthy);
            if args.json {
                for path in [of_health, path("alerts.ndjson")] {
                    let text = fs::read(&path).unwrap_or_default();
                    // a line without an end is still being written
                    let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last.saturating_add(1));
                    let start = shown.insert(path, end).unwrap_or(0);
                    out.write_all(text.get(start..end).unwrap_or_default())?;
                }
            } else if shown.insert(of_health, history.len()) != Some(history.len()) {
                match history.last() {
                    None => writeln!(out, "{name:<20}  never attested")?,
                    Some(last) => writeln!(out, "{name:<20}  {}  {}", last.time, words(last))?,
                }
            }
        }
        out.flush()?;
        drop(out);
        match &interrupt {
            Some(interrupt) if all && !interrupt.within(LOOK)? => {}
            _ => return Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        }
    }
}

pub(super) fn history(path: &Path) -> Result<Vec<Health>> {
    match fs::File::open(path) {
        Ok(file) => Health::history(BufReader::new(file)).with_context(|| path.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

pub(super) fn words(health: &Health) -> String {
    if health.healthy {
        return "healthy".to_owned();
    }
    let codes: Vec<&str> = health.codes.iter().map(|code| code.alias()).collect();
    format!("NOT HEALTHY: {}", codes.join(", "))
}
