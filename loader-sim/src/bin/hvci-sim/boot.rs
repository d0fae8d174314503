//! `hvci-sim boot`: starts a machine from files, and says what every stage decided.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use corpus::source::escape;
use hvci_engine::{
    digest::DigestAlg,
    policy::{Decision, secure_boot::Behaviour},
};
use loader_sim::{
    boot::{Boot, Disk, End, Machine, Stage, boot as start},
    firmware::{flash::Flash, store::VariableStore},
};

use super::what_if::{WhatIfArgs, what_if};

const EXAMPLES: &str = "\
Examples:
  hvci-audit fetch debian-boot files/boot; hvci-audit fetch debian-kernel files/kernel
  hvci-sim boot files
  hvci-sim boot esp/ --vars OVMF_VARS_4M.ms.fd --behaviour edk2-compat --explain --log boot.eventlog
  hvci-sim boot fleet/ --what-if --dbx DBXUpdate.bin --without-ca 'Microsoft Corporation UEFI CA 2011'

IMAGE is a folder with the files of a system partition (EFI/BOOT/BOOTX64.EFI …), or one with Debian's packages unpacked below it.

Exit status: 0 an operating system runs (with --what-if: no machine stops starting), 1 the boot ended before, 2 usage or I/O.";

/// Where OVMF's packages put the variables with Microsoft's keys.
pub(crate) const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd";

/// Whose rules decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rules {
    /// The specification's, read to its end
    Strict,
    /// Those of edk2's firmware and of shim as they are, gaps included
    Edk2Compat,
}

impl From<Rules> for loader_sim::vm::Rules {
    fn from(rules: Rules) -> Self {
        match rules {
            Rules::Strict => Self::Strict,
            Rules::Edk2Compat => Self::Edk2Compat,
        }
    }
}

impl From<Rules> for Behaviour {
    fn from(rules: Rules) -> Self {
        match rules {
            Rules::Strict => Self::Strict,
            Rules::Edk2Compat => Self::Edk2,
        }
    }
}

/// What a machine starts from.
#[derive(Clone, Debug, Args)]
pub(crate) struct Source {
    /// Its disk: a folder
    #[arg(value_name = "IMAGE")]
    pub(crate) image: PathBuf,
    /// Its UEFI variables, a *_VARS*.fd of OVMF [default: those of the package ovmf with Microsoft's keys]
    #[arg(long, value_name = "FILE.fd")]
    pub(crate) vars: Option<PathBuf>,
    /// Whose rules decide
    #[arg(long, value_enum, default_value_t = Rules::Strict)]
    pub(crate) behaviour: Rules,
    /// What is measured as its firmware, for example OVMF_CODE_4M.secboot.fd
    #[arg(long, value_name = "FILE.fd")]
    pub(crate) firmware: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BootArgs {
    #[command(flatten)]
    from: Source,
    /// Say of each stage everything that was looked at
    #[arg(long)]
    explain: bool,
    /// Where to write the event log
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    #[command(flatten)]
    what_if: WhatIfArgs,
}

impl Source {
    /// Starts the machine with what `change` makes of its variables, with nobody's TPM; the banks are those of OVMF with a software TPM.
    pub(crate) fn boot(&self, change: impl FnOnce(VariableStore) -> VariableStore) -> Result<Boot> {
        const BANKS: [DigestAlg; 4] = [DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha384, DigestAlg::Sha512];
        let disk = Disk::of_folder(&self.image).with_context(|| format!("cannot start from {}", self.image.display()))?;
        let mut variables = change(self.variables()?);
        let firmware = match &self.firmware {
            Some(path) => fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
            None => b"hvci-sim firmware".to_vec(),
        };
        let machine =
            Machine { disk: &disk, variables: &mut variables, behaviour: self.behaviour.into(), banks: &BANKS, firmware: &firmware };
        Ok(start(machine, &mut ())?)
    }

    pub(crate) fn variables(&self) -> Result<VariableStore> {
        let path = match &self.vars {
            Some(path) => path.as_path(),
            None if Path::new(OVMF_VARIABLES).exists() => Path::new(OVMF_VARIABLES),
            None => bail!("no variables to start with: give --vars FILE.fd, or install the package ovmf, which has {OVMF_VARIABLES}"),
        };
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Flash::read(bytes).with_context(|| path.display().to_string())?.variables().clone())
    }
}

pub(crate) fn boot(args: &BootArgs) -> Result<ExitCode> {
    if args.what_if.is_asked() {
        return what_if(&args.from, &args.what_if);
    }
    let boot = args.from.boot(|store| store)?;
    if let Some(path) = &args.log {
        fs::write(path, &boot.log).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut out = anstream::stdout().lock();
    write_boot(&mut out, &boot, args.explain)?;
    Ok(if boot.kernel().is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every stage, and the end.
pub(crate) fn write_boot(out: &mut impl Write, boot: &Boot, explain: bool) -> Result<()> {
    writeln!(out, "Secure Boot {}", if boot.secure_boot { "on" } else { "off" })?;
    for stage in &boot.stages {
        write_stage(out, stage, explain)?;
    }
    match &boot.end {
        End::Running(kernel) => {
            let lockdown = if kernel.lockdown { "integrity" } else { "none" };
            let log = if kernel.event_log { "" } else { ", without the firmware's event log" };
            writeln!(out, "runs: {}, lockdown {lockdown}{log}", escape(kernel.command_line.as_bytes()))?;
        }
        End::Stopped { reason, .. } => writeln!(out, "stopped: {}", escape(reason.as_bytes()))?,
        End::PoweredOff { reason, .. } => writeln!(out, "powered off: {}", escape(reason.as_bytes()))?,
    }
    Ok(())
}

fn write_stage(out: &mut impl Write, stage: &Stage, explain: bool) -> Result<()> {
    let digest: String = stage.authentihash.map(|d| d.hex().chars().take(12).collect()).unwrap_or_default();
    write!(out, "{:<14}  {digest:<12}  {}", stage.kind, escape(stage.path.as_bytes()))?;
    let Some(verdict) = &stage.verdict else {
        writeln!(out, "\n{:14}  not verified", "")?;
        return write_notes(out, stage);
    };
    let decision = if verdict.decision == Decision::Accept { "accepts" } else { "REFUSES" };
    write!(out, "\n{:14}  {} {decision}", "", stage.asked)?;
    if let Some(authority) = &verdict.authority {
        let by = if verdict.decision == Decision::Accept { "by" } else { "because of" };
        write!(out, " {by} {} of {}", escape(authority.subject.as_bytes()), authority.database)?;
        if let Some(signer) = &authority.signer {
            write!(out, ", signed by {}", escape(signer.as_bytes()))?;
        }
        if let Some(number) = authority.signature.filter(|_| stage.signatures > 1) {
            write!(out, ", signature {} of {}", number.saturating_add(1), stage.signatures)?;
        }
    }
    match stage.events.as_slice() {
        [] => {}
        [event] => write!(out, ", PCR 4 event {event}")?,
        events => write!(out, ", PCR 4 events {}", events.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))?,
    }
    writeln!(out)?;
    if explain {
        if let Some(digest) = &stage.authentihash {
            writeln!(out, "{:14}    authentihash {digest}", "")?;
        }
        if let Some(authority) = &verdict.authority {
            writeln!(out, "{:14}    entry        {} of {}, owner {}", "", authority.kind, authority.database, authority.entry.owner)?;
        }
        let sbat: Vec<String> = stage.sbat.iter().map(|c| format!("{} {}", c.name, c.generation)).collect();
        if !sbat.is_empty() {
            writeln!(out, "{:14}    SBAT         {}", "", escape(sbat.join(", ").as_bytes()))?;
        }
    }
    for finding in verdict.findings.iter().filter(|_| explain || verdict.decision != Decision::Accept) {
        let number = finding.signature.map(|n| format!("signature {}: ", n.saturating_add(1))).unwrap_or_default();
        let detail = if finding.detail.is_empty() { String::new() } else { format!(": {}", finding.detail) };
        let line = format!("{}[{}] {number}{}{detail}", finding.severity, finding.code.id(), finding.code.title());
        writeln!(out, "{:14}    {}", "", escape(line.as_bytes()))?;
    }
    write_notes(out, stage)
}

fn write_notes(out: &mut impl Write, stage: &Stage) -> Result<()> {
    for note in &stage.notes {
        writeln!(out, "{:14}    {}", "", escape(note.as_bytes()))?;
    }
    Ok(())
}
