//! `hvci-sim attest`: the verifier at the command line. It has files, and nothing of the machine.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use corpus::source::escape;
use hvci_engine::{bytes::widen, time::UnixTime};
use loader_sim::attest::{
    Appraisal, DbxInfo, Machine, Reference, Verifier,
    alert::{self, alerts},
    evidence::{MAX_EVIDENCE, NONCE},
    result::Ear,
};

const EXAMPLES: &str = "\
Examples:
  hvci-sim attest verify --vm web-1 --evidence evidence.json --reference reference.toml --machines machines.json --nonce 5a5a...
  hvci-sim attest verify ... --format alerts >> alerts.ndjson
  hvci-sim attest verify ... --format jwt --key verifier.p8

MACHINES is what the host knows of its machines, by name: {\"web-1\": {\"profile\": \"linux\", \"ak_name\": \"000b...\", \"reset_count\": 7, ...}}.
A ~ before a path: no digest covers it, it is what the log says.

Exit status: 0 healthy, 1 not, 2 usage or I/O.";

/// How long a result holds, in seconds, unless it is said.
pub(super) const LIFETIME: u32 = 300;
/// Digits of a digest that are shown.
const SHOWN: usize = 12;

#[derive(Debug, Subcommand)]
pub(crate) enum AttestCommand {
    /// Appraise the evidence that a machine sent, and name each component that failed
    Verify(VerifyArgs),
    /// Challenge machines and appraise their answers over HTTP, on this machine alone
    Serve(super::attest_serve::ServeArgs),
    /// Start a machine, and have it answer a verifier's challenge
    Quote(super::attest_quote::QuoteArgs),
}

/// What a verifier knows before it is sent anything.
#[derive(Debug, Args)]
pub(crate) struct Known {
    /// What a healthy start is made of, TOML
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// What the host knows of its machines, JSON
    #[arg(long, value_name = "FILE")]
    machines: PathBuf,
    /// Microsoft's list of what dbx revokes (dbx_info_msft_latest.json)
    #[arg(long, value_name = "FILE")]
    dbx_info: Option<PathBuf>,
}

impl Known {
    pub(crate) fn verifier(&self) -> Result<Verifier> {
        let reference = fs::read_to_string(&self.reference).with_context(|| name(&self.reference))?;
        let reference = Reference::read(&reference).with_context(|| name(&self.reference))?;
        let machines = fs::read(&self.machines).with_context(|| name(&self.machines))?;
        let machines: BTreeMap<String, Machine> = serde_json::from_slice(&machines).with_context(|| name(&self.machines))?;
        let dbx_info = match &self.dbx_info {
            Some(path) => DbxInfo::read(&fs::read(path).with_context(|| name(path))?).with_context(|| name(path))?,
            None => DbxInfo::default(),
        };
        Ok(Verifier::new(reference, dbx_info, machines))
    }
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// An EAT Attestation Result as JSON, which nobody signed
    Ear,
    /// The same, signed with --key
    Jwt,
    /// Alerts, one a line
    Alerts,
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VerifyArgs {
    /// Which machine was challenged
    #[arg(long, value_name = "NAME")]
    vm: String,
    /// What it sent, JSON
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
    #[command(flatten)]
    known: Known,
    /// What it was challenged with
    #[arg(long, value_name = "HEX", value_parser = nonce)]
    nonce: Nonce,
    /// The time of the appraisal; now unless given
    #[arg(long, value_name = "DATE", value_parser = |text: &str| UnixTime::parse(text).ok_or("a date like 2026-01-31 or 2026-01-31T12:00:00Z"))]
    time: Option<UnixTime>,
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The verifier's key: P-256, PKCS #8 as DER
    #[arg(long, value_name = "FILE", required_if_eq("format", "jwt"))]
    key: Option<PathBuf>,
    /// Seconds that a result holds
    #[arg(long, value_name = "SECONDS", default_value_t = LIFETIME)]
    lifetime: u32,
}

#[derive(Clone, Debug)]
struct Nonce(Vec<u8>);

fn nonce(text: &str) -> Result<Nonce, String> {
    let bytes = hex::decode(text).map_err(|error| error.to_string())?;
    if NONCE.contains(&bytes.len()) { Ok(Nonce(bytes)) } else { Err(format!("{} to {} bytes", NONCE.start(), NONCE.end())) }
}

pub(crate) fn attest(command: &AttestCommand) -> Result<ExitCode> {
    match command {
        AttestCommand::Verify(args) => verify(args),
        AttestCommand::Serve(args) => super::attest_serve::serve(args),
        AttestCommand::Quote(args) => super::attest_quote::quote(args),
    }
}

fn verify(args: &VerifyArgs) -> Result<ExitCode> {
    let verifier = args.known.verifier()?;
    let mut evidence = Vec::new();
    // no more is read than can be used
    let file = File::open(&args.evidence).with_context(|| name(&args.evidence))?;
    file.take(widen(MAX_EVIDENCE).saturating_add(1)).read_to_end(&mut evidence).with_context(|| name(&args.evidence))?;

    let now = super::load::now_or(args.time)?;
    let appraisal = verifier.appraise_answer(&args.vm, &evidence, &args.nonce.0, now);
    let mut out = anstream::stdout().lock();
    match args.format {
        Format::Text => write_text(&mut out, &appraisal)?,
        Format::Alerts => alert::write(&mut out, &alerts(&appraisal))?,
        Format::Ear => writeln!(out, "{}", serde_json::to_string_pretty(&Ear::of(&appraisal, args.lifetime))?)?,
        Format::Jwt => {
            let Some(key) = &args.key else { bail!("--format jwt needs --key") };
            let token = Ear::of(&appraisal, args.lifetime).sign(&fs::read(key).with_context(|| name(key))?)?;
            writeln!(out, "{token}")?;
        }
    }
    Ok(if appraisal.healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_text(out: &mut impl Write, appraisal: &Appraisal) -> Result<()> {
    writeln!(out, "stage         PCR  event  authentihash  verdict           what")?;
    for component in &appraisal.components {
        let stage = component.stage.map_or("?", |stage| stage.name());
        let event = component.event.map_or_else(|| "-".to_owned(), |event| event.to_string());
        let digest: String = component.authentihash.map(|digest| digest.hex()).unwrap_or_default().chars().take(SHOWN).collect();
        let verdict = serde_json::to_value(component.verdict)?;
        let verdict = verdict.as_str().unwrap_or_default();
        let path = if component.path.is_empty() { String::new() } else { format!("~{}", escape(component.path.as_bytes())) };
        let what = [component.name.as_deref().unwrap_or_default(), &path].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>();
        writeln!(out, "{stage:<12}  {:>3}  {event:>5}  {digest:<12}  {verdict:<16}  {}", component.pcr, what.join("  "))?;
    }
    writeln!(out)?;
    for (part, claims) in &appraisal.claims.0 {
        for (name, claim) in claims {
            let value = serde_json::to_value(claim)?;
            let value = if value.is_null() { "not measured".to_owned() } else { value.to_string() };
            writeln!(out, "{part:<16}  {name:<40}  {}", escape(value.as_bytes()))?;
        }
    }
    writeln!(out)?;
    for finding in &appraisal.findings {
        let severity = finding.code.default_severity();
        let pcr = finding.pcr.map(|pcr| format!(", PCR {pcr}")).unwrap_or_default();
        let event = finding.event.map(|event| format!(", event {event}")).unwrap_or_default();
        writeln!(out, "{severity}[{}]{pcr}{event}: {}", finding.code, finding.code.title())?;
        writeln!(out, "    {}", escape(finding.detail.as_bytes()))?;
        for expected in appraisal.expected.iter().filter(|expected| expected.code == finding.code) {
            writeln!(out, "    expected until {}: {}", expected.until, escape(expected.reason.as_bytes()))?;
        }
    }
    let verdict = if appraisal.healthy() { "healthy" } else { "not healthy" };
    let first = appraisal.first_divergent_event.map(|event| format!(", first divergent event {event}")).unwrap_or_default();
    writeln!(out, "{}: {verdict}, {} found{first}", appraisal.vm, appraisal.findings.len())?;
    Ok(())
}
