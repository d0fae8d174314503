//! `hvci-sim eventlog`.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Args;
use corpus::source::escape;
use hvci_engine::{bytes::widen, digest::DigestAlg};
use loader_sim::measure::{
    Bank, Event, EventLog, MAX_LOG, check,
    data::EventData,
    event_type::Digested,
    pcrs::{self, Pcrs},
    replay,
};

const EXAMPLES: &str = "\
Examples:
  hvci-sim eventlog /sys/kernel/security/tpm0/binary_bios_measurements
  tpm2_pcrread > now.pcrs; hvci-sim eventlog boot.eventlog --pcrs now.pcrs

A ~ before what was measured: no digest covers these words, they are what the log says. A type is never covered.

Exit status: 0 nothing found, 1 a rule is broken or a PCR differs, 2 usage, I/O or no event log.";

/// Characters of what was measured, at most.
const SHOWN: usize = 72;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EventlogArgs {
    /// The log, as firmware and Linux have it
    #[arg(value_name = "FILE")]
    log: PathBuf,
    /// PCRs of the TPM, to compare: lines `NUMBER VALUE`, or what tpm2_pcrread prints
    #[arg(long, value_name = "FILE")]
    pcrs: Option<PathBuf>,
}

pub(crate) fn eventlog(args: &EventlogArgs) -> Result<ExitCode> {
    let name = args.log.display().to_string();
    let bytes = read(&args.log)?;
    let log = EventLog::read(&bytes).with_context(|| name.clone())?;
    let given = args.pcrs.as_deref().map(read_pcrs).transpose()?;

    let mut out = anstream::stdout().lock();
    let shown = shown_bank(&log);
    writeln!(out, " no  PCR  {:<32}  {:<12}  what", "type", shown.map_or("digest", DigestAlg::name))?;
    for event in &log.events {
        write_event(&mut out, event, shown)?;
    }
    let banks = replay(&log);
    if let Some(bank) = banks.iter().find(|bank| Some(bank.alg) == shown) {
        writeln!(out, "\nPCRs of the events, {}", bank.alg)?;
        for (pcr, value) in bank.pcrs.iter().enumerate() {
            let events = log.events.iter().filter(|e| widen(pcr) == u64::from(e.pcr) && e.is_extended());
            match events.count() {
                0 => {}
                count => writeln!(out, "{pcr:>3}  {}  {count} event{}", value.hex(), if count == 1 { "" } else { "s" })?,
            }
        }
    }
    writeln!(out)?;
    let mut found = 0_usize;
    for finding in check(&log) {
        writeln!(out, "refused: {}", escape(finding.to_string().as_bytes()))?;
        found = found.saturating_add(1);
    }
    if let Some(given) = &given {
        found = found.saturating_add(write_differences(&mut out, &log, &banks, given)?);
    }
    let names: Vec<&str> = banks.iter().map(|bank| bank.alg.name()).collect();
    let compared = if given.is_some() { "" } else { ", no PCRs to compare with" };
    writeln!(out, "{name}: {} events, banks {}, {found} found{compared}", log.events.len(), names.join(" "))?;
    Ok(if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// SHA-256 if there is one, the first otherwise.
fn shown_bank(log: &EventLog<'_>) -> Option<DigestAlg> {
    let mut algs = log.algorithms.iter().filter_map(|(alg, _)| alg.digest_alg());
    let first = algs.next()?;
    Some(if first == DigestAlg::Sha256 { first } else { algs.find(|alg| *alg == DigestAlg::Sha256).unwrap_or(first) })
}

fn write_event(out: &mut impl Write, event: &Event<'_>, bank: Option<DigestAlg>) -> Result<()> {
    let digest = match bank.and_then(|alg| event.digests.get(alg)) {
        _ if !event.is_extended() => String::new(),
        Some(digest) => digest.hex().chars().take(12).collect(),
        None => "missing".to_owned(),
    };
    let event_type = event.event_type.name().map_or_else(|| format!("{:#010x}", event.event_type.0), str::to_owned);
    let hint = if event.event_type.digested(event.data) == Digested::Elsewhere { "~" } else { "" };
    let words = escape(EventData::of(event).to_string().as_bytes());
    let cut = if words.chars().count() > SHOWN { "…" } else { "" };
    let words: String = words.chars().take(SHOWN).collect();
    let pcr = if event.pcr == u32::MAX { "-".to_owned() } else { event.pcr.to_string() };
    writeln!(out, "{:>3}  {pcr:>3}  {event_type:<32}  {digest:<12}  {hint}{words}{cut}", event.number)?;
    Ok(())
}

/// Says which PCRs differ; how many do.
fn write_differences(out: &mut impl Write, log: &EventLog<'_>, banks: &[Bank], given: &Pcrs) -> Result<usize> {
    let differences = pcrs::compare(log, banks, given);
    for difference in &differences {
        let (pcr, is) = (difference.pcr, difference.given);
        let Some(replayed) = difference.replayed else {
            writeln!(out, "differs: PCR {pcr}, bank {}, which the log is not about", is.alg())?;
            continue;
        };
        let last =
            difference.last_event.map_or_else(|| "no event of the log went into it".to_owned(), |n| format!("the last event is {n}"));
        writeln!(out, "differs: PCR {pcr}, {last}\n  is      {is}\n  events  {replayed}")?;
    }
    let list = |pcrs: Vec<u32>| pcrs.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let skipped: BTreeSet<u32> = given.keys().map(|(_, pcr)| *pcr).filter(|pcr| pcrs::not_compared(log, *pcr)).collect();
    if !skipped.is_empty() {
        writeln!(
            out,
            "not compared: PCR {}, which others than the firmware and what it starts extend or reset",
            list(skipped.into_iter().collect())
        )?;
    }
    let logged = (0..16).filter(|pcr| log.events.iter().any(|e| e.pcr == *pcr && e.is_extended()));
    let absent: Vec<u32> = logged.filter(|pcr| !given.keys().any(|(_, given)| given == pcr)).collect();
    if !absent.is_empty() {
        writeln!(out, "not given: PCR {}, so nothing vouches for its events", list(absent.clone()))?;
    }
    Ok(differences.len().saturating_add(absent.len()))
}

fn read_pcrs(path: &Path) -> Result<Pcrs> {
    let text = read(path)?;
    let text = String::from_utf8(text).with_context(|| path.display().to_string())?;
    pcrs::read(&text).with_context(|| path.display().to_string())
}

/// A file, of which no more is read than can be used.
fn read(path: &Path) -> Result<Vec<u8>> {
    let what = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    File::open(path).with_context(what)?.take(widen(MAX_LOG).saturating_add(1)).read_to_end(&mut bytes).with_context(what)?;
    Ok(bytes)
}
