//! `hvci-sim pcr`: the PCRs of a boot before it happens, and where two boots differ.

use std::{fs, io::Write, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use corpus::source::escape;
use hvci_engine::digest::DigestAlg;
use loader_sim::measure::{Bank, Event, EventLog, data::EventData, pcrs, replay};

use super::boot::{Source, write_boot};

const PREDICT_EXAMPLES: &str = "\
Examples:
  hvci-sim pcr predict files --vars OVMF_VARS_4M.ms.fd
  hvci-sim pcr predict files --log next.eventlog > next.pcrs
  tpm2_pcrread sha256 > now.pcrs; hvci-sim pcr diff now.pcrs next.pcrs

PCR 0 has the firmware: give it with --firmware. PCR 1 has boot options, which firmware makes by itself.

Exit status: 0 predicted, 1 the boot would not come to its end, 2 usage or I/O.";

const DIFF_EXAMPLES: &str = "\
Examples:
  hvci-sim pcr diff before.eventlog after.eventlog    PCRs, and the first event of each that differs
  hvci-sim pcr diff before.pcrs after.pcrs            PCRs alone

Exit status: 0 no PCR differs, 1 some do, 2 usage or I/O.";

#[derive(Debug, Subcommand)]
pub(crate) enum PcrCommand {
    /// Predict the PCRs of a boot from its files and variables alone
    Predict(PredictArgs),
    /// Say which PCRs of two boots differ, and from which event on
    Diff(DiffArgs),
}

#[derive(Debug, Args)]
#[command(after_help = PREDICT_EXAMPLES)]
pub(crate) struct PredictArgs {
    #[command(flatten)]
    source: Source,
    /// Which bank
    #[arg(long, default_value = "sha256", value_parser = bank)]
    bank: DigestAlg,
    /// Where to write the event log of the boot
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = DIFF_EXAMPLES)]
pub(crate) struct DiffArgs {
    /// An event log, or PCRs as `pcr predict` and tpm2_pcrread print them
    #[arg(value_name = "BEFORE")]
    before: PathBuf,
    /// Another
    #[arg(value_name = "AFTER")]
    after: PathBuf,
}

fn bank(name: &str) -> Result<DigestAlg, String> {
    let banks = [DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha384, DigestAlg::Sha512];
    banks
        .into_iter()
        .find(|alg| alg.name().replace('-', "") == name.replace('-', ""))
        .ok_or_else(|| "one of sha1, sha256, sha384, sha512".to_owned())
}

pub(crate) fn pcr(command: &PcrCommand) -> Result<ExitCode> {
    match command {
        PcrCommand::Predict(args) => predict(args),
        PcrCommand::Diff(args) => diff(args),
    }
}

fn predict(args: &PredictArgs) -> Result<ExitCode> {
    let boot = args.source.boot(|store| store)?;
    if let Some(path) = &args.log {
        fs::write(path, &boot.log).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if boot.kernel().is_none() {
        write_boot(&mut anstream::stderr().lock(), &boot, false)?;
    }
    let log = EventLog::read(&boot.log)?;
    let mut out = anstream::stdout().lock();
    for bank in replay(&log).iter().filter(|bank| bank.alg == args.bank) {
        writeln!(out, "{}:", bank.alg.name().replace('-', "_"))?;
        for (number, value) in bank.pcrs.iter().enumerate().take(16) {
            writeln!(out, "  {number:<2}: 0x{}", value.hex().to_uppercase())?;
        }
    }
    Ok(if boot.kernel().is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn diff(args: &DiffArgs) -> Result<ExitCode> {
    let [before, after] = [&args.before, &args.after].map(|path| fs::read(path).with_context(|| format!("cannot read {}", path.display())));
    let (before, after) = (before?, after?);
    let mut out = anstream::stdout().lock();
    if let (Ok(a), Ok(b)) = (EventLog::read(&before), EventLog::read(&after)) {
        return diff_logs(&mut out, &a, &b);
    }
    let read = |bytes: &[u8], path: &PathBuf| {
        let text = std::str::from_utf8(bytes).ok().with_context(|| format!("{}: neither an event log nor PCRs", path.display()))?;
        pcrs::read(text).with_context(|| path.display().to_string())
    };
    let (a, b) = (read(&before, &args.before)?, read(&after, &args.after)?);
    let both: Vec<_> = a.iter().filter_map(|(place, value)| Some((place, value, b.get(place)?))).collect();
    if both.is_empty() {
        bail!("the two have no PCR of one bank in common");
    }
    let differ: Vec<_> = both.iter().filter(|(_, a, b)| a != b).collect();
    for ((alg, pcr), a, b) in &differ {
        writeln!(out, "PCR {pcr:<2} {alg}\n  before  {}\n  after   {}", a.hex(), b.hex())?;
    }
    writeln!(out, "{} of {} PCRs differ", differ.len(), both.len())?;
    Ok(if differ.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn diff_logs(out: &mut impl Write, before: &EventLog<'_>, after: &EventLog<'_>) -> Result<ExitCode> {
    let (a, b) = (replay(before), replay(after));
    let Some((a, b)) = a.iter().rev().find_map(|a| Some((a, b.iter().find(|b| b.alg == a.alg)?))) else {
        bail!("the two logs have no bank in common");
    };
    let mut differ = 0_usize;
    for (number, (was, is)) in a.pcrs.iter().zip(&b.pcrs).enumerate().filter(|(_, (was, is))| was != is) {
        differ = differ.saturating_add(1);
        writeln!(out, "PCR {number}")?;
        let pcr = u32::try_from(number)?;
        match first_difference(before, after, pcr, a) {
            (Some(was), Some(is)) => write_pair(out, ["before", "after"], [was, is], a)?,
            (Some(only), None) => writeln!(out, "  only before: {}", shown(only, a))?,
            (None, Some(only)) => writeln!(out, "  only after:  {}", shown(only, a))?,
            (None, None) => writeln!(out, "  before  {}\n  after   {}", was.hex(), is.hex())?,
        }
    }
    writeln!(out, "{differ} PCR{}", if differ == 1 { " differs" } else { "s differ" })?;
    Ok(if differ == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The first event of the PCR that the other log has not at the same place.
fn first_difference<'l, 'b>(
    before: &'l EventLog<'b>,
    after: &'l EventLog<'b>,
    pcr: u32,
    bank: &Bank,
) -> (Option<&'l Event<'b>>, Option<&'l Event<'b>>) {
    let of = |log: &'l EventLog<'b>| log.events.iter().filter(move |e| e.pcr == pcr && e.is_extended()).collect::<Vec<_>>();
    let (a, b) = (of(before), of(after));
    let same = a.iter().zip(&b).take_while(|(a, b)| a.digests.get(bank.alg) == b.digests.get(bank.alg)).count();
    (a.get(same).copied(), b.get(same).copied())
}

fn write_pair(out: &mut impl Write, labels: [&str; 2], events: [&Event<'_>; 2], bank: &Bank) -> Result<()> {
    for (label, event) in labels.iter().zip(events) {
        writeln!(out, "  {label:<7} {}", shown(event, bank))?;
    }
    Ok(())
}

fn shown(event: &Event<'_>, bank: &Bank) -> String {
    let digest: String = event.digests.get(bank.alg).map(|d| d.hex().chars().take(12).collect()).unwrap_or_default();
    let words = escape(EventData::of(event).to_string().as_bytes());
    format!("event {:>3}  {digest}  {}", event.number, words.chars().take(90).collect::<String>())
}
