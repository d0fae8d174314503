//! `hvci-sim tpm`, and the process that holds a TPM of libtpms.

use std::{
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use loader_sim::vtpm::{
    Tpm,
    embedded::EmbeddedTpm,
    libtpms::{self, LibtpmsTpm},
    socket::Server,
    swtpm::SwtpmTpm,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

#[derive(Debug, Subcommand)]
pub(crate) enum TpmCommand {
    /// Serve a new TPM to tpm2-tools, until it is interrupted
    #[command(after_help = "\
Example:
  hvci-sim tpm serve --path /tmp/tpm &
  export TPM2TOOLS_TCTI=swtpm:path=/tmp/tpm
  tpm2_startup -c
  tpm2_pcrread sha256

The TPM is on, and waits for TPM2_Startup. Its state is gone with the command.
With --port N control is on port N+1, as the TCTI swtpm:host=127.0.0.1,port=N expects it; every user of the host reaches a port.
With --path SOCK it is on SOCK.ctrl, and only the user who serves reaches it.")]
    Serve(ServeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Whose TPM
    #[arg(long, value_enum, default_value_t = Backend::Embedded)]
    backend: Backend,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct At {
    /// Serve on this port of 127.0.0.1 and the next
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=65534))]
    port: Option<u16>,
    /// Serve on this Unix socket
    #[arg(long, value_name = "SOCK")]
    path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Backend {
    /// A TPM of this program, with the commands that boot, attestation and sealing need
    Embedded,
    /// The reference TPM 2.0 in a process of its own; needs the package libtpms0
    Libtpms,
    /// A swtpm process; needs the package swtpm
    Swtpm,
}

pub(crate) fn tpm(command: &TpmCommand) -> Result<ExitCode> {
    let TpmCommand::Serve(args) = command;
    // the end is an orderly one: sockets, processes and folders go
    let (stop, interrupted) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, interrupted.try_clone()?)?;
    }
    let mut tpm: Box<dyn Tpm> = match args.backend {
        Backend::Embedded => Box::new(EmbeddedTpm::new()?),
        Backend::Libtpms => Box::new(LibtpmsTpm::start(&std::env::current_exe()?)?),
        Backend::Swtpm => Box::new(SwtpmTpm::start()?),
    };
    let (server, tcti) = match (&args.at.path, args.at.port) {
        (Some(path), _) => (Server::unix(path), format!("swtpm:path={}", path.display())),
        (None, port) => {
            let port = port.unwrap_or_default();
            (Server::tcp(port), format!("swtpm:host=127.0.0.1,port={port}"))
        }
    };
    let server = server.with_context(|| format!("cannot serve on {tcti}"))?;
    eprintln!("serving; for tpm2-tools: export TPM2TOOLS_TCTI={tcti}");
    server.serve(tpm.as_mut(), Some(stop.as_fd()))?;
    Ok(ExitCode::SUCCESS)
}

/// A worker, until its client goes.
pub(crate) fn worker() -> Result<ExitCode> {
    libtpms::worker::serve().context("a TPM worker")?;
    Ok(ExitCode::SUCCESS)
}
