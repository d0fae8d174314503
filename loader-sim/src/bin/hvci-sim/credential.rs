//! `hvci-sim vm credential`: credentials that a machine keeps.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use corpus::source::escape;
use hvci_engine::vault::{Function, Opened, UsePolicy};
use loader_sim::{
    attest::DbxInfo,
    lsa::Lsa,
    vm::{self, Host, Options},
};
use zeroize::Zeroizing;

const EXAMPLES: &str = "\
Examples:
  printf %s 'a password' > password.txt
  hvci-sim vm credential demo add alice@EXAMPLE.ORG --password-file password.txt
  hvci-sim vm credential demo list

The machine is started for it, and stopped again. Its key is released once in a start, while the PCRs are as they were approved.

Exit status: 0 done, 2 usage, I/O, or the vault refuses.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CredentialArgs {
    /// The machine
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add a user's credential
    Add {
        /// USER@DOMAIN
        #[arg(value_name = "USER@DOMAIN")]
        user: String,
        /// A file with the password; a newline at its end is no part of it
        #[arg(long, value_name = "FILE")]
        password_file: PathBuf,
    },
    /// List them
    List,
    /// Keep them under a new key
    Rotate,
    /// Remove one
    Remove {
        /// Its handle, as the list shows it
        #[arg(value_name = "HANDLE", value_parser = number)]
        handle: u64,
    },
}

fn number(text: &str) -> Result<u64, std::num::ParseIntError> {
    text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16))
}

pub(crate) fn credential(host: &Host, args: &CredentialArgs) -> Result<ExitCode> {
    let program = env::current_exe()?;
    let dbx_info = DbxInfo::default();
    let options = Options { time: vm::now()?, program: &program, dbx_info: &dbx_info, challenge: None };
    let mut said = Vec::new();
    let started = vm::start(host, &args.name, &options, |running| running.with_credentials(|lsa| run(lsa, &args.command, &mut said)))?;
    if started.boot.kernel().is_none() {
        bail!("{} did not start: hvci-sim vm start {} says why", args.name, args.name);
    }
    anstream::stdout().write_all(&said)?;
    Ok(ExitCode::SUCCESS)
}

fn run(lsa: &mut Lsa, command: &Command, out: &mut impl Write) -> Result<()> {
    if let Opened::Lost(why) = &lsa.opened {
        writeln!(out, "what was kept is lost: {why}; it is put aside as vault.lost")?;
    }
    match command {
        Command::Add { user, password_file } => {
            let (user, domain) = user_of(user)?;
            let password = password_of(password_file)?;
            let handle = lsa.add_logon(user, domain, (0, password.as_bytes()), &UsePolicy::default(), true)?;
            writeln!(out, "added {}@{}: {handle:#x}", escape(user.as_bytes()), escape(domain.as_bytes()))?;
        }
        Command::List => {
            let listed = lsa.list()?;
            for one in &listed {
                let (user, domain) = (escape(one.user.as_bytes()), escape(one.domain.as_bytes()));
                writeln!(out, "{:#x}  {user}@{domain}, used {} times", one.handle, one.uses)?;
            }
            if listed.is_empty() {
                writeln!(out, "no credentials")?;
            }
        }
        Command::Rotate => {
            lsa.vault().rotate()?;
            writeln!(out, "kept under a new key")?;
        }
        Command::Remove { handle } => {
            lsa.word(Function::REMOVE, &[&[*handle]])?;
            writeln!(out, "removed {handle:#x}")?;
        }
    }
    Ok(())
}

/// The password in a file, without the newline that editors and `echo` put behind it.
pub(crate) fn password_of(file: &Path) -> Result<Zeroizing<String>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = Zeroizing::new(text);
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Zeroizing::new(line.strip_suffix('\r').unwrap_or(line).to_owned()))
}

/// USER@DOMAIN.
pub(crate) fn user_of(text: &str) -> Result<(&str, &str)> {
    text.rsplit_once('@')
        .filter(|(user, domain)| !user.is_empty() && !domain.is_empty())
        .with_context(|| format!("{text:?} is not USER@DOMAIN"))
}
