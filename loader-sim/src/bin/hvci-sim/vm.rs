//! `hvci-sim vm`: Trusted Launch machines.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use corpus::source::escape;
use hvci_engine::finding::Severity;
use loader_sim::{
    attest::{
        Appraisal, DbxInfo,
        alert::{self, Alert},
    },
    measure::EventLog,
    vm::{self, Guest, Host, KeyState, Options, Profile, Rules, Running, SecurityType, Sources, Started, VmError},
    vtpm::{Backend, socket::ServeError},
};

use super::{
    boot::{OVMF_VARIABLES, write_boot},
    health,
    interrupt::Interrupt,
};

const EXAMPLES: &str = "\
Examples:
  hvci-audit fetch debian-boot files/boot; hvci-audit fetch debian-kernel files/kernel
  hvci-sim vm create demo --secure-boot on --vtpm on --hvci on --credential-guard off --image files
  hvci-sim vm start demo
  hvci-sim vm tpm-socket demo --path /tmp/demo.tpm

Machines are in the folder --vms, else $HVCI_VMS, else ~/.local/share/hvci-sim/vms.";

const START_EXAMPLES: &str = "\
Boots the machine from its own disk, loads its drivers, has its TPM quoted and appraised, and stops it in order.
With --attest-every it stays on, and is challenged again and again, until it is interrupted or needs somebody.

Exit status: 0 it runs and is healthy, 1 it did not start or is not healthy, 2 usage or I/O.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VmArgs {
    /// The folder of the machines
    #[arg(long, value_name = "DIR", global = true)]
    vms: Option<PathBuf>,
    #[command(subcommand)]
    command: VmCommand,
}

#[derive(Debug, Subcommand)]
enum VmCommand {
    /// Make a machine
    Create(Box<CreateArgs>),
    /// Start a machine, have it attested, and stop it
    #[command(after_help = START_EXAMPLES)]
    Start(StartArgs),
    /// Change what a machine is made with
    Set(SetArgs),
    /// Use, keep and remove credentials of a machine with Credential Guard
    Credential(super::credential::CredentialArgs),
    /// Approve how a machine started last, so that its vault's key is released when it starts so again
    Approve(NameArgs),
    /// Show a machine
    Show(NameArgs),
    /// List the machines
    List,
    /// What a verifier must know of the machines before they start: JSON for `attest serve --machines`
    Known,
    /// Remove a machine, with its disk and its TPM
    Delete(NameArgs),
    /// Start a machine and serve its TPM to tpm2-tools, until it is interrupted
    TpmSocket(TpmSocketArgs),
}

#[derive(Debug, Args)]
struct NameArgs {
    /// The machine
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl From<Switch> for bool {
    fn from(switch: Switch) -> Self {
        switch == Switch::On
    }
}

/// What can be changed later.
#[derive(Debug, Args)]
struct Parts {
    /// Start only what is signed and not revoked [default: on]
    #[arg(long, value_enum, value_name = "on|off")]
    secure_boot: Option<Switch>,
    /// A TPM of its own [default: on]
    #[arg(long, value_enum, value_name = "on|off")]
    vtpm: Option<Switch>,
    /// Execute in the kernel only what the engine verified [default: on]
    #[arg(long, value_enum, value_name = "on|off")]
    hvci: Option<Switch>,
    /// Keep credentials in VTL1 [default: on]
    #[arg(long, value_enum, value_name = "on|off")]
    credential_guard: Option<Switch>,
    /// Whose rules firmware and shim decide by [default: strict]
    #[arg(long, value_enum)]
    behaviour: Option<super::boot::Rules>,
}

impl Parts {
    fn apply(&self, profile: &mut Profile) {
        let set = |part: &mut bool, switch: Option<Switch>| *part = switch.map_or(*part, bool::from);
        set(&mut profile.secure_boot, self.secure_boot);
        set(&mut profile.vtpm, self.vtpm);
        set(&mut profile.hvci, self.hvci);
        set(&mut profile.credential_guard, self.credential_guard);
        if let Some(rules) = self.behaviour {
            profile.behaviour = rules.into();
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Security {
    TrustedLaunch,
    Standard,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum GuestKind {
    Linux,
    Windows,
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// The machine's name
    name: String,
    /// Its disk: a folder with a system partition (EFI/BOOT/BOOTX64.EFI …), or with Debian's packages unpacked below it; it is copied
    #[arg(long, value_name = "DIR")]
    image: PathBuf,
    /// A profile, which the options below change
    #[arg(long, value_name = "FILE.toml")]
    profile: Option<PathBuf>,
    #[command(flatten)]
    parts: Parts,
    /// Whether it can have any of that; chosen now and never again
    #[arg(long, value_enum, default_value_t = Security::TrustedLaunch)]
    security_type: Security,
    /// Kind of guest
    #[arg(long, value_enum)]
    guest: Option<GuestKind>,
    /// Which TPM
    #[arg(long, value_enum)]
    tpm: Option<super::tpm::Backend>,
    /// Its UEFI variables, a *_VARS*.fd of OVMF [default: those of the package ovmf with Microsoft's keys]
    #[arg(long, value_name = "FILE.fd")]
    vars: Option<PathBuf>,
    /// A driver that its operating system loads; may be given several times
    #[arg(long, value_name = "FILE")]
    driver: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct StartArgs {
    /// The machine
    name: String,
    /// Say of each stage everything that was looked at
    #[arg(long)]
    explain: bool,
    /// What is known of revoked images: dbx_info in Microsoft's JSON
    #[arg(long, value_name = "FILE.json")]
    dbx_info: Option<PathBuf>,
    /// Leave it on, and attest it again every so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    attest_every: Option<u64>,
}

#[derive(Debug, Args)]
struct SetArgs {
    /// The machine
    name: String,
    #[command(flatten)]
    parts: Parts,
    /// Whether it can have any of that, which cannot be changed
    #[arg(long, value_enum)]
    security_type: Option<Security>,
}

#[derive(Debug, Args)]
struct TpmSocketArgs {
    /// The machine
    name: String,
    #[command(flatten)]
    at: super::tpm::At,
}

pub(crate) fn vm(args: &VmArgs) -> Result<ExitCode> {
    let host = host(args.vms.as_deref())?;
    match &args.command {
        VmCommand::Create(args) => create(&host, args),
        VmCommand::Start(args) => start(&host, args),
        VmCommand::Set(args) => set(&host, args),
        VmCommand::Credential(args) => super::credential::credential(&host, args),
        VmCommand::Approve(args) => {
            let approved = vm::approve(&host, &args.name)?;
            let mut out = anstream::stdout().lock();
            writeln!(out, "approved: the key of {}'s vault is released at a start with", args.name)?;
            approved.iter().try_for_each(|(pcr, value)| writeln!(out, "  PCR {pcr:<2} {value}"))?;
            writeln!(out, "what was approved before is revoked at its next start")?;
            Ok(ExitCode::SUCCESS)
        }
        VmCommand::Show(args) => show(&host, &args.name),
        VmCommand::List => list(&host),
        VmCommand::Known => {
            let mut machines = BTreeMap::new();
            for name in host.machines()? {
                let machine = vm::next_start(&host, &name)?;
                machines.insert(name, machine);
            }
            writeln!(anstream::stdout(), "{}", serde_json::to_string_pretty(&machines)?)?;
            Ok(ExitCode::SUCCESS)
        }
        VmCommand::Delete(args) => {
            vm::delete(&host, &args.name)?;
            writeln!(anstream::stdout(), "{} is gone", args.name)?;
            Ok(ExitCode::SUCCESS)
        }
        VmCommand::TpmSocket(args) => tpm_socket(&host, args),
    }
}

pub(crate) fn host(given: Option<&Path>) -> Result<Host> {
    let place = match (given, env::var_os("HVCI_VMS"), env::var_os("HOME")) {
        (Some(given), ..) => given.to_owned(),
        (None, Some(from), _) => from.into(),
        (None, None, Some(home)) => Path::new(&home).join(".local/share/hvci-sim/vms"),
        (None, None, None) => bail!("no folder for the machines: give --vms DIR"),
    };
    Ok(Host::new(place))
}

fn create(host: &Host, args: &CreateArgs) -> Result<ExitCode> {
    let mut profile = match &args.profile {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            toml::from_str(&text).with_context(|| path.display().to_string())?
        }
        None => {
            let on = matches!(args.security_type, Security::TrustedLaunch);
            Profile {
                generation: 2,
                security_type: args.security_type.into(),
                secure_boot: on,
                vtpm: on,
                hvci: on,
                credential_guard: on,
                guest: Guest::default(),
                behaviour: Rules::default(),
                tpm: Backend::default(),
                vault: hvci_engine::vault::UsePolicy::default(),
            }
        }
    };
    args.parts.apply(&mut profile);
    if let Some(guest) = args.guest {
        profile.guest = match guest {
            GuestKind::Linux => Guest::Linux,
            GuestKind::Windows => Guest::Windows,
        };
    }
    profile.tpm = args.tpm.map_or(profile.tpm, Backend::from);
    let vars = args.vars.clone().unwrap_or_else(|| OVMF_VARIABLES.into());
    let variables = fs::read(&vars).with_context(|| {
        let hint = if args.vars.is_none() { "; the package ovmf has it, or give --vars FILE.fd" } else { "" };
        format!("cannot read {}{hint}", vars.display())
    })?;
    let program = env::current_exe()?;
    let sources = Sources { image: &args.image, variables, drivers: &args.driver, program: &program };
    vm::create(host, &args.name, &profile, &sources).with_context(|| format!("cannot make {}", args.name))?;
    let mut out = anstream::stdout().lock();
    writeln!(out, "made {}: {}", args.name, words(&profile))?;
    writeln!(out, "  in {}", host.root().join(&args.name).display())?;
    Ok(ExitCode::SUCCESS)
}

impl From<Security> for SecurityType {
    fn from(security: Security) -> Self {
        match security {
            Security::TrustedLaunch => Self::TrustedLaunch,
            Security::Standard => Self::Standard,
        }
    }
}

/// What a machine is made with, on one line.
fn words(profile: &Profile) -> String {
    if profile.security_type == SecurityType::Standard {
        return "standard, without Trusted Launch".to_owned();
    }
    let switch = |on| if on { "on" } else { "off" };
    format!(
        "Secure Boot {}, vTPM {}, HVCI {}, Credential Guard {}",
        switch(profile.secure_boot),
        switch(profile.vtpm),
        switch(profile.hvci),
        switch(profile.credential_guard)
    )
}

fn set(host: &Host, args: &SetArgs) -> Result<ExitCode> {
    let profile = vm::change(host, &args.name, |profile| {
        if let Some(security) = args.security_type {
            profile.security_type = security.into();
        }
        args.parts.apply(profile);
    })?;
    writeln!(anstream::stdout(), "{}: {}", args.name, words(&profile))?;
    Ok(ExitCode::SUCCESS)
}

fn show(host: &Host, name: &str) -> Result<ExitCode> {
    let folder = host.open(name)?;
    let profile = folder.profile()?;
    let mut out = anstream::stdout().lock();
    writeln!(out, "{name}: {}", words(&profile))?;
    write!(out, "{}", toml::to_string(&profile)?)?;
    let history = health::history(&folder.path("health.ndjson"))?;
    match history.last() {
        None => writeln!(out, "never attested")?,
        Some(last) => {
            let bad = history.iter().filter(|h| !h.healthy).count();
            writeln!(out, "attested {} times, {bad} not healthy; last {} {}", history.len(), last.time, health::words(last))?;
        }
    }
    if let Some(bytes) = folder.read("boot.eventlog")?
        && let Ok(log) = EventLog::read(&bytes)
    {
        writeln!(out, "last start: {} events in {}", log.events.len(), folder.path("boot.eventlog").display())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(host: &Host) -> Result<ExitCode> {
    let mut out = anstream::stdout().lock();
    for name in host.machines()? {
        match host.open(&name).and_then(|folder| folder.profile()) {
            Ok(profile) => writeln!(out, "{name:<20}  {}", words(&profile))?,
            Err(error) => writeln!(out, "{name:<20}  {}", escape(error.to_string().as_bytes()))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn start(host: &Host, args: &StartArgs) -> Result<ExitCode> {
    let dbx_info = match &args.dbx_info {
        Some(path) => {
            let json = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            DbxInfo::read(&json).with_context(|| path.display().to_string())?
        }
        None => DbxInfo::default(),
    };
    let program = env::current_exe()?;
    let options = Options { time: vm::now()?, program: &program, dbx_info: &dbx_info, challenge: None };
    let started = match args.attest_every {
        None => vm::start(host, &args.name, &options, |_| Ok(()))?,
        Some(seconds) => {
            let interrupt = Interrupt::listen()?;
            let stay = |running: &mut Running<'_>| stay(running, &interrupt, Duration::from_secs(seconds)).map_err(guest);
            vm::start(host, &args.name, &options, stay)?
        }
    };
    write_started(&mut anstream::stdout().lock(), &started, args.explain)?;
    Ok(if started.is_healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Attests a machine that is on at an interval, a line each time, until it is interrupted or something is wrong.
fn stay(running: &mut Running<'_>, interrupt: &Interrupt, interval: Duration) -> Result<()> {
    loop {
        let time = vm::now()?;
        if running.alerts().iter().any(Alert::needs_attention) {
            return Ok(());
        }
        let suppressed = running.alerts().iter().flat_map(|alert| &alert.suppressed_by).map(|expected| expected.code.alias());
        let suppressed: Vec<&str> = suppressed.collect();
        let words = if suppressed.is_empty() { "nothing wrong".to_owned() } else { format!("as is expected: {}", suppressed.join(", ")) };
        writeln!(anstream::stdout(), "{time}  {words}")?;
        if interrupt.within(interval)? {
            return Ok(());
        }
        running.attest(vm::now()?)?;
    }
}

fn guest(error: anyhow::Error) -> VmError {
    error.downcast().unwrap_or_else(|error| VmError::Guest(error.to_string()))
}

fn write_started(out: &mut impl Write, started: &Started, explain: bool) -> Result<()> {
    write_boot(out, &started.boot, explain)?;
    // what Windows started by itself stands among the stages
    let stages = started.boot.kernel().map_or(0, |kernel| kernel.modules().len());
    for driver in started.drivers.iter().skip(stages) {
        let name = escape(driver.path.as_bytes());
        let signer = driver.signer.as_deref().map_or_else(|| "unsigned".to_owned(), |s| format!("signed by {}", escape(s.as_bytes())));
        match &driver.refused {
            None => writeln!(out, "driver          loaded   {name}, {signer}")?,
            Some(refusal) => {
                writeln!(out, "driver          REFUSED  {name}, {signer}")?;
                let detail = if refusal.detail.is_empty() { String::new() } else { format!(": {}", refusal.detail) };
                writeln!(out, "                  [{}] {}{}", refusal.code.id(), refusal.code.title(), escape(detail.as_bytes()))?;
            }
        }
    }
    match &started.vault_key {
        None | Some(KeyState::New) => {}
        Some(KeyState::Released) => writeln!(out, "vault           its key is released")?,
        Some(KeyState::NotReleased(why)) => writeln!(out, "vault           CLOSED: {why}")?,
        Some(KeyState::Lost(why)) => writeln!(out, "vault           LOST: {why}; a new one is made when a credential is added")?,
    }
    match &started.appraisal {
        None if started.profile.vtpm => {}
        None => writeln!(out, "no vTPM: nobody outside can be shown how it started")?,
        Some(appraisal) => write_appraisal(out, appraisal)?,
    }
    for alert in &started.alerts {
        write_alert(out, alert)?;
    }
    Ok(())
}

/// Whether it is healthy, and what is wrong.
pub(crate) fn write_appraisal(out: &mut impl Write, appraisal: &Appraisal) -> Result<()> {
    let clock = appraisal.clock.map(|c| format!(", start {}", c.reset_count)).unwrap_or_default();
    writeln!(out, "attested: {}{clock}", if appraisal.healthy() { "healthy" } else { "NOT HEALTHY" })?;
    for finding in &appraisal.findings {
        let weight = finding.code.default_severity();
        if weight < Severity::Unknown {
            continue;
        }
        let pcr = finding.pcr.map(|pcr| format!("PCR {pcr}")).unwrap_or_default();
        let event = finding.event.map(|event| format!(" event {event}")).unwrap_or_default();
        let place = format!("{pcr}{event}");
        let colon = if place.is_empty() { "" } else { ": " };
        writeln!(out, "  [{}] {}", finding.code.id(), finding.code.title())?;
        writeln!(out, "      {place}{colon}{}", escape(finding.detail.as_bytes()))?;
    }
    Ok(())
}

fn write_alert(out: &mut impl Write, alert: &Alert) -> Result<()> {
    let severity = format!("{:?}", alert.severity).to_lowercase();
    let suppressed = if alert.suppressed_by.is_empty() { "" } else { ", suppressed" };
    writeln!(out, "alert [{severity}{suppressed}]: {} ({})", alert.reason, alert.advice)?;
    for expected in &alert.suppressed_by {
        writeln!(out, "  {} is expected until {}: {}", expected.code, expected.until, escape(expected.reason.as_bytes()))?;
    }
    if matches!(alert.kind, alert::Kind::TpmFailed | alert::Kind::VaultClosed | alert::Kind::ExpectationUnmatched) {
        for finding in &alert.findings {
            writeln!(out, "  [{}] {}: {}", finding.code.id(), finding.code.title(), escape(finding.detail.as_bytes()))?;
        }
    }
    for component in &alert.components {
        let report = &component.report;
        let digest: String = report.authentihash.map(|d| d.hex().chars().take(12).collect()).unwrap_or_default();
        let name = report.name.as_deref().unwrap_or_default();
        let verdict = serde_json::to_value(report.verdict)?;
        writeln!(
            out,
            "  {} {} {digest}: {}",
            escape(name.as_bytes()),
            escape(report.path.as_bytes()),
            verdict.as_str().unwrap_or_default()
        )?;
        writeln!(out, "      {}", escape(report.cause.as_bytes()))?;
    }
    Ok(())
}

fn tpm_socket(host: &Host, args: &TpmSocketArgs) -> Result<ExitCode> {
    let listening = args.at.listen()?;
    let (program, dbx_info) = (env::current_exe()?, DbxInfo::default());
    let options = Options { time: vm::now()?, program: &program, dbx_info: &dbx_info, challenge: None };
    let serve = |running: &mut Running<'_>| {
        let tpm = running.tpm().ok_or(VmError::NoTpm)?;
        eprintln!("serving the TPM of {}; for tpm2-tools: export TPM2TOOLS_TCTI={}", args.name, listening.tcti);
        listening.serve(tpm).map_err(|error| match error {
            ServeError::Tpm(failed) => failed.into(),
            ServeError::Io(error) => VmError::Io(error),
        })
    };
    let started = vm::start(host, &args.name, &options, serve)?;
    for alert in &started.alerts {
        write_alert(&mut anstream::stderr().lock(), alert)?;
    }
    Ok(if started.is_healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
