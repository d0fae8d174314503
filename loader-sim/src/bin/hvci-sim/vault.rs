//! `hvci-sim vault`: credentials that no guest can read, used.

use std::{
    fs,
    io::{self, BufRead, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use corpus::source::escape;
use hvci_engine::vault::{Etype, UsePolicy};
use loader_sim::{
    lsa::{
        Lsa, Options,
        demo::{self, Searched},
        kerberos, ntlm, search, secrets_of,
    },
    vm,
};

use super::credential::{password_of, user_of};

const DEMO_EXAMPLES: &str = "\
A guest's program logs a user on and answers NTLM and Kerberos with a vault. Then everything that is not VTL1's is searched for every secret, as it is, in
UTF-16, in hexadecimal, in base64; and so is the memory of the same guest without a vault.

Exit status: 0 nothing is found but where it must be, 1 something is, 2 usage or I/O.";

const NTLM_EXAMPLES: &str = "\
Writes a NEGOTIATE_MESSAGE in base64, a line; reads a CHALLENGE_MESSAGE; writes the AUTHENTICATE_MESSAGE. Each further line that is read is a message of the
session, and is answered with its signature.

Example:
  hvci-sim vault ntlm alice@EXAMPLE --password-file password.txt --target cifs/files.example.org";

const SEARCH_EXAMPLES: &str = "\
The password, its NT hash and its Kerberos keys are looked for as they are, in UTF-16, hexadecimal and base64, and as a list of numbers.

Example:
  hvci-sim vault search alice@EXAMPLE.ORG --password-file password.txt lsass.dmp test.log

Exit status: 0 nothing is found, 1 something is, 2 usage or I/O.";

const KERBEROS_EXAMPLES: &str = "\
Writes an AS-REQ in base64, a line; reads the AS-REP; writes a TGS-REQ for the target; reads the TGS-REP; writes the AP-REQ.

Example:
  hvci-sim vault kerberos alice@EXAMPLE.ORG --password-file password.txt --target cifs/files.example.org --etype 18";

#[derive(Debug, Subcommand)]
pub(crate) enum VaultCommand {
    /// Log a user on, use the credential, and look for it everywhere
    #[command(after_help = DEMO_EXAMPLES)]
    Demo,
    /// Look for what a user's password comes to in files: dumps, logs, whatever may have it
    #[command(after_help = SEARCH_EXAMPLES)]
    Search(SearchArgs),
    /// The client of NTLM, with a credential in a vault
    #[command(after_help = NTLM_EXAMPLES)]
    Ntlm(NtlmArgs),
    /// The client of Kerberos, with a credential in a vault
    #[command(after_help = KERBEROS_EXAMPLES)]
    Kerberos(KerberosArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// USER@DOMAIN
    #[arg(value_name = "USER@DOMAIN")]
    user: String,
    /// A file with the password; a newline at its end is no part of it
    #[arg(long, value_name = "FILE")]
    password_file: PathBuf,
    /// Where to look
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct ClientArgs {
    /// USER@DOMAIN
    #[arg(value_name = "USER@DOMAIN")]
    user: String,
    /// A file with the password; a newline at its end is no part of it
    #[arg(long, value_name = "FILE")]
    password_file: PathBuf,
    /// The service's principal name
    #[arg(long, value_name = "SPN")]
    target: String,
    /// MD5 of the channel's binding, 32 hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = binding)]
    channel_binding: Option<[u8; 16]>,
}

#[derive(Debug, Args)]
pub(crate) struct NtlmArgs {
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct KerberosArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The encryption type: 17 to 20
    #[arg(long, value_name = "NUMBER", default_value = "18", value_parser = etype)]
    etype: Etype,
}

fn binding(text: &str) -> Result<[u8; 16]> {
    hex::decode(text)?.try_into().map_err(|_| anyhow::anyhow!("a channel's binding has 32 hexadecimal digits"))
}

fn etype(text: &str) -> Result<Etype> {
    Etype::from_number(text.parse()?).context("17 and 18 are AES with SHA-1, 19 and 20 with SHA-2; no other is used")
}

pub(crate) fn vault(command: &VaultCommand) -> Result<ExitCode> {
    match command {
        VaultCommand::Demo => show(),
        VaultCommand::Search(args) => search_files(args),
        VaultCommand::Ntlm(args) => ntlm(&args.client),
        VaultCommand::Kerberos(args) => kerberos(&args.client, args.etype),
    }
}

fn show() -> Result<ExitCode> {
    let shown = demo::show()?;
    let mut out = anstream::stdout().lock();
    writeln!(out, "A guest with a vault, in which a program like LSASS logs a user on")?;
    for (step, what) in &shown.steps {
        writeln!(out, "  {step:<10} {what}")?;
    }
    writeln!(out, "\n{} secrets are looked for, as they are, in UTF-16, hexadecimal and base64", shown.secrets)?;
    writeln!(out, "  {:<52} {:>9}  found", "where", "bytes")?;
    for searched in shown.outside.iter().chain([&shown.inside, &shown.without]) {
        writeln!(out, "  {:<52} {:>9}  {}", searched.place, searched.bytes, found(searched))?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "Not guarded: what is typed in before it is handed over, service tickets that are sent, and what code within an allowed caller"
    )?;
    writeln!(out, "asks for. Passing challenges to it is reduced (by rate, service, channel and a record of each), not removed.")?;
    let as_promised = shown.as_promised();
    if !as_promised {
        writeln!(out, "\nNOT as promised: a secret is where none may be, or the search does not find those that are there")?;
    }
    Ok(ExitCode::from(u8::from(!as_promised)))
}

fn search_files(args: &SearchArgs) -> Result<ExitCode> {
    let (user, domain) = user_of(&args.user)?;
    let password = password_of(&args.password_file)?;
    let needles = secrets_of(user, domain, &password);
    let mut out = anstream::stdout().lock();
    let (mut bytes, mut places) = (0, 0);
    for path in &args.files {
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        bytes += content.len();
        for one in search(&content, &needles) {
            places += 1;
            writeln!(out, "{}: {} ({}) at {:#x}", escape(path.display().to_string().as_bytes()), one.name, one.form, one.at)?;
        }
    }
    writeln!(out, "{} secrets, {bytes} bytes: found in {places} places", needles.len())?;
    Ok(ExitCode::from(u8::from(places > 0)))
}

fn found(searched: &Searched) -> String {
    let mut names: Vec<String> = searched.found.iter().map(|found| format!("{} ({})", found.name, found.form)).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// A guest with the user's credential in its vault.
fn logged_on(args: &ClientArgs) -> Result<(Lsa, u64)> {
    let (user, domain) = user_of(&args.user)?;
    let password = password_of(&args.password_file)?;
    let mut lsa = Lsa::boot(Options { time: vm::now()?, ..Options::default() })?;
    let credential = lsa.add_logon(user, domain, (0, password.as_bytes()), &UsePolicy::default(), false)?;
    Ok((lsa, credential))
}

fn ntlm(args: &ClientArgs) -> Result<ExitCode> {
    let (mut lsa, credential) = logged_on(args)?;
    let mut lines = Lines(io::stdin().lock());
    say(&ntlm::negotiate())?;
    let challenge = lines.must("the CHALLENGE_MESSAGE")?;
    let target = ntlm::Target { name: &args.target, channel_binding: args.channel_binding.unwrap_or_default() };
    let exchange = ntlm::authenticate(&mut lsa, credential, user_of(&args.user)?, &challenge, target)?;
    say(&exchange.authenticate)?;
    let mut sequence = 0;
    while let Some(message) = lines.next()? {
        say(&ntlm::sign(&mut lsa, exchange.session, sequence, &message)?)?;
        sequence += 1;
    }
    Ok(ExitCode::SUCCESS)
}

fn kerberos(args: &ClientArgs, etype: Etype) -> Result<ExitCode> {
    let (mut lsa, credential) = logged_on(args)?;
    let mut lines = Lines(io::stdin().lock());
    let (user, realm) = user_of(&args.user)?;
    say(&kerberos::as_request(&mut lsa, credential, (user, realm), etype, 1)?)?;
    let tgt = kerberos::reply(&mut lsa, credential, &lines.must("the AS-REP")?)?;
    say(&kerberos::tgs_request(&mut lsa, &tgt, realm, &args.target, etype, 2)?)?;
    let ticket = kerberos::reply(&mut lsa, tgt.session, &lines.must("the TGS-REP")?)?;
    say(&kerberos::ap_request(&mut lsa, &ticket, etype, args.channel_binding.unwrap_or_default(), 0)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a message, a line.
fn say(message: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", STANDARD.encode(message))?;
    Ok(out.flush()?)
}

/// Messages, a line each.
struct Lines<R>(R);

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(STANDARD.decode(line.trim()).context("what was read is no base64")?))
    }

    fn must(&mut self, what: &str) -> Result<Vec<u8>> {
        match self.next()? {
            Some(message) => Ok(message),
            None => bail!("{what} is missing: it is read from standard input, a line of base64"),
        }
    }
}
