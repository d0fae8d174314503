//! `hvci-sim eventlog`: what was measured when a machine started.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use corpus::source::escape;
use hvci_engine::digest::{Digest, DigestAlg};
use loader_sim::measure::{
    check::check,
    content::Content,
    event::{Algorithm, Event},
    log::{Log, read},
    pcr_file,
    replay::{Pcrs, replay},
};

const EXAMPLES: &str = "\
Examples:
  hvci-sim eventlog /sys/kernel/security/tpm0/binary_bios_measurements
  tpm2_pcrread sha256 > pcrs && hvci-sim eventlog eventlog.bin --pcrs pcrs

Exit status: 0 nothing is wrong, 1 something is, or the PCRs are others, 2 no log, usage or I/O.";

/// The last PCR of the firmware, which measures into each of them.
const FIRMWARE: usize = 7;
/// Bytes of a digest that are shown of each event.
const SHOWN: usize = 12;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EventlogArgs {
    /// The log, as the firmware and Linux give it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What the TPM's PCRs are: lines of number and value, as tpm2_pcrread prints them
    #[arg(long, value_name = "FILE")]
    pcrs: Option<PathBuf>,
}

pub(crate) fn eventlog(args: &EventlogArgs) -> Result<ExitCode> {
    let bytes = fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let log = read(&bytes).with_context(|| format!("{} is no event log", args.file.display()))?;
    let expected = args.pcrs.as_deref().map(pcrs_of).transpose()?.unwrap_or_default();
    let banks = replay(&log);
    let mut out = io::stdout().lock();
    events(&log, &mut out)?;
    // the bank that everybody uses, if it is there
    if let Some(bank) = banks.iter().find(|bank| bank.alg == DigestAlg::Sha256).or_else(|| banks.first()) {
        pcrs(bank, &mut out)?;
    }
    let faults = check(&log);
    for fault in &faults {
        writeln!(out, "{fault}")?;
    }
    let mut wrong = faults.len();
    for (pcr, value) in &expected {
        let found = banks.iter().find(|bank| bank.alg == value.alg());
        let Some(found) = found else {
            writeln!(out, "PCR {pcr}: the log has no {} bank", value.alg())?;
            wrong += 1;
            continue;
        };
        match found.last[*pcr] {
            _ if found.values[*pcr] == *value => {}
            // what the started system measures by itself, such as IMA into PCR 10
            None if *pcr > FIRMWARE => writeln!(out, "PCR {pcr} is {value}, of which the log says nothing")?,
            last => {
                let last =
                    last.map_or_else(|| "no event went into it".to_owned(), |event| format!("event {event} is the last that went into it"));
                writeln!(out, "PCR {pcr} is {value}, and not what the log says, {}; {last}", found.values[*pcr].hex())?;
                wrong += 1;
            }
        }
    }
    let agree = if expected.is_empty() { String::new() } else { format!(", {} PCRs compared", expected.len()) };
    let said = if wrong == 0 { "nothing is wrong".to_owned() } else { format!("{wrong} wrong") };
    writeln!(out, "{} events{agree}: {said}", log.events.len())?;
    Ok(ExitCode::from(u8::from(wrong > 0)))
}

fn pcrs_of(path: &Path) -> Result<Vec<(usize, Digest)>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    pcr_file::parse(&text).map_err(|why| anyhow!("{}: {why}", path.display()))
}

fn events(log: &Log<'_>, out: &mut impl Write) -> Result<()> {
    let sha256 = Algorithm::of(DigestAlg::Sha256);
    let bank = log
        .banks
        .iter()
        .map(|bank| bank.algorithm)
        .find(|bank| Some(*bank) == sha256)
        .or_else(|| log.banks.first().map(|bank| bank.algorithm));
    writeln!(out, "event  pcr  {:<33} {:<24}  what", "type", bank.map_or(String::new(), |bank| bank.to_string()))?;
    for event in &log.events {
        let digest = bank.filter(|_| event.is_measured()).and_then(|bank| event.digest(bank));
        let digest = digest.map_or_else(|| "–".to_owned(), |digest| hex::encode(digest.get(..SHOWN).unwrap_or(digest)));
        let pcr = if event.pcr == u32::MAX { "–".to_owned() } else { event.pcr.to_string() };
        writeln!(out, "{:>5}  {pcr:>3}  {:<33} {digest:<24}  {}", event.number, event.kind.to_string(), what(event))?;
    }
    Ok(())
}

/// Within a line of a terminal.
fn what(event: &Event<'_>) -> String {
    const WIDTH: usize = 100;
    let text = escape(Content::of(event).to_string().as_bytes());
    match text.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

fn pcrs(bank: &Pcrs, out: &mut impl Write) -> Result<()> {
    writeln!(out, "\n  pcr  {:<64}  last event", bank.alg.name())?;
    for (pcr, (value, last)) in bank.values.iter().zip(&bank.last).enumerate() {
        if let Some(last) = last {
            writeln!(out, "{pcr:>5}  {:<64}  {last}", value.hex())?;
        }
    }
    writeln!(out)?;
    Ok(())
}
