//! `hvci-sim vars`: the UEFI variables of a machine.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use corpus::source::escape;
use hvci_engine::{
    signature::{
        cert::Certificate,
        signature_list::{Entry, SignatureDatabase, SignatureType},
    },
    uefi::{EfiTime, Guid},
};
use loader_sim::firmware::{
    flash::Flash,
    store::Change,
    variable::{Attributes, Database, Variable, vendor_name, well_known},
};

const SHOW_EXAMPLES: &str = "\
Examples:
  hvci-sim vars show /usr/share/OVMF/OVMF_VARS_4M.ms.fd

Exit status: 0 shown, 2 usage or I/O.";

const SET_EXAMPLES: &str = "\
Examples:
  hvci-sim vars set OVMF_VARS_4M.ms.fd dbx DBXUpdate.bin --append -o NEW.fd   a signed update of Microsoft's
  hvci-sim vars set OVMF_VARS_4M.fd MokList mok.esl -o NEW.fd                 as shim does it

For PK, KEK, db, dbx and dbt UPDATE.bin begins with an EFI_VARIABLE_AUTHENTICATION_2; it was signed either for appending or for replacing.
For MokList, MokListX and SbatLevel it is the new value. A value of no bytes deletes.

Exit status: 0 applied and NEW.fd written, 1 refused, 2 usage or I/O.";

#[derive(Debug, Subcommand)]
pub(crate) enum VarsCommand {
    /// Show every variable, and each entry of the signature databases
    Show(ShowArgs),
    /// Apply an update as the firmware would
    Set(SetArgs),
}

#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
pub(crate) struct ShowArgs {
    /// OVMF's variables
    #[arg(value_name = "FILE.fd")]
    file: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = SET_EXAMPLES)]
pub(crate) struct SetArgs {
    /// OVMF's variables
    #[arg(value_name = "FILE.fd")]
    file: PathBuf,
    /// PK, KEK, db, dbx, dbt, MokList, MokListX or SbatLevel
    #[arg(value_name = "NAME")]
    name: String,
    /// What to write
    #[arg(value_name = "UPDATE.bin")]
    update: PathBuf,
    /// Add to what is there (EFI_VARIABLE_APPEND_WRITE)
    #[arg(long)]
    append: bool,
    /// Where to write the variables
    #[arg(short, long, value_name = "NEW.fd")]
    output: PathBuf,
}

pub(crate) fn vars(command: &VarsCommand) -> Result<ExitCode> {
    match command {
        VarsCommand::Show(args) => show(args),
        VarsCommand::Set(args) => set(args),
    }
}

fn show(args: &ShowArgs) -> Result<ExitCode> {
    let flash = read(&args.file)?;
    let store = flash.variables();
    let mut out = anstream::stdout().lock();
    let on = if store.secure_boot() { "on" } else { "off" };
    let mode = if store.setup_mode() { "setup mode: no PK" } else { "user mode" };
    writeln!(out, "Secure Boot {on}, {mode}; {} variables", store.variables().len())?;
    let database = |v: &Variable| Database::of(&v.name(), v.vendor);
    let (databases, others): (Vec<_>, Vec<_>) = store.variables().iter().partition(|v| database(v).is_some());
    for variable in databases {
        heading(&mut out, variable)?;
        match SignatureDatabase::read(&variable.data) {
            Ok(lists) => lists.entries().try_for_each(|(kind, entry)| writeln!(out, "  {}", describe(kind, entry)))?,
            Err(e) => writeln!(out, "  cannot be read: {e}")?,
        }
    }
    for variable in others {
        heading(&mut out, variable)?;
        if variable.name() == "SbatLevel" {
            let text = variable.data.split(|b| matches!(b, b'\n' | 0)).filter(|line| !line.is_empty());
            text.into_iter().try_for_each(|line| writeln!(out, "  {}", escape(line)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn heading(out: &mut impl Write, variable: &Variable) -> Result<()> {
    let (name, size) = (variable.name(), variable.data.len());
    let time = if variable.time == EfiTime::default() { String::new() } else { format!(", signed {}", variable.time) };
    writeln!(out, "{}  [{}]  {}, {size} bytes{time}", escape(name.as_bytes()), vendor(variable.vendor), variable.attributes)?;
    Ok(())
}

fn vendor(guid: Guid) -> String {
    vendor_name(guid).map_or_else(|| guid.to_string(), str::to_owned)
}

fn describe(kind: SignatureType, entry: &Entry) -> String {
    let what = match (kind, kind.tbs_digest()) {
        (SignatureType::X509, _) => match Certificate::parse(&entry.data) {
            Ok(certificate) => escape(certificate.subject().as_bytes()),
            Err(e) => format!("no certificate: {e}"),
        },
        (_, Some(alg)) => match (entry.data.get(..alg.len()), entry.data.last_chunk()) {
            (Some(hash), Some(time)) if EfiTime(*time).instant().is_some() => {
                format!("{} revoked since {}", hex::encode(hash), EfiTime(*time))
            }
            (hash, _) => format!("{} revoked", hex::encode(hash.unwrap_or_default())),
        },
        _ if entry.data.len() > 64 => format!("{}… ({} bytes)", hex::encode(&entry.data[..32]), entry.data.len()),
        _ => hex::encode(&entry.data),
    };
    format!("{kind}  {what}  [{}]", vendor(entry.owner))
}

fn set(args: &SetArgs) -> Result<ExitCode> {
    let flash = read(&args.file)?;
    let update = fs::read(&args.update).with_context(|| format!("cannot read {}", args.update.display()))?;
    let (vendor, attributes) = well_known(&args.name)
        .with_context(|| format!("{:?} is none of PK, KEK, db, dbx, dbt, MokList, MokListX, SbatLevel", args.name))?;
    let attributes = if args.append { attributes.and(Attributes::APPEND) } else { attributes };
    let mut store = flash.variables().clone();
    let was_on = store.secure_boot();
    let outcome = store.set(&args.name, vendor, attributes, &update).and_then(|applied| Ok((applied, flash.with(&store)?)));
    let mut out = anstream::stdout().lock();
    let (applied, bytes) = match outcome {
        Ok(done) => done,
        Err(refused) => {
            writeln!(out, "refused  {}  {}", args.name, escape(refused.to_string().as_bytes()))?;
            return Ok(ExitCode::FAILURE);
        }
    };
    fs::write(&args.output, bytes).with_context(|| format!("cannot write {}", args.output.display()))?;
    let change = match applied.change {
        Change::Written => "written".to_owned(),
        Change::Deleted => "deleted".to_owned(),
        Change::Appended(new) => format!("{new} {} new", if Database::of(&args.name, vendor).is_some() { "entries" } else { "bytes" }),
    };
    writeln!(out, "applied  {}  {change}", args.name)?;
    if let Some(signer) = applied.signer {
        writeln!(out, "  signed by {}", escape(signer.as_bytes()))?;
    }
    if store.secure_boot() != was_on {
        writeln!(out, "  Secure Boot is now {}", if store.secure_boot() { "on" } else { "off" })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Flash> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Flash::read(bytes).with_context(|| path.display().to_string())
}
