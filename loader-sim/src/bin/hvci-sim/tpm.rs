//! `hvci-sim tpm`, and the process that holds a TPM of libtpms.

use std::{os::fd::AsFd as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use loader_sim::vtpm::{
    self, Tpm, libtpms,
    socket::{ServeError, Server},
};

use super::interrupt::Interrupt;

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
pub(crate) struct At {
    /// Serve on this port of 127.0.0.1 and the next
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=65534))]
    port: Option<u16>,
    /// Serve on this Unix socket
    #[arg(long, value_name = "SOCK")]
    path: Option<PathBuf>,
}

/// A socket on which a TPM can be served.
pub(crate) struct Listening {
    server: Server,
    /// How tpm2-tools find it.
    pub(crate) tcti: String,
    stop: Interrupt,
}

impl At {
    pub(crate) fn listen(&self) -> Result<Listening> {
        // the end is an orderly one: sockets, processes and folders go
        let stop = Interrupt::listen()?;
        let (server, tcti) = match (&self.path, self.port) {
            (Some(path), _) => (Server::unix(path), format!("swtpm:path={}", path.display())),
            (None, port) => {
                let port = port.unwrap_or_default();
                (Server::tcp(port), format!("swtpm:host=127.0.0.1,port={port}"))
            }
        };
        let server = server.with_context(|| format!("cannot serve on {tcti}"))?;
        Ok(Listening { server, tcti, stop })
    }
}

impl Listening {
    /// Serves until a signal comes, or a client asks for the end.
    pub(crate) fn serve(&self, tpm: &mut dyn Tpm) -> Result<(), ServeError> {
        self.server.serve(tpm, Some(self.stop.as_fd()))
    }
}

/// Which TPM.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Backend {
    /// A TPM of this program, with the commands that boot, attestation and sealing need
    Embedded,
    /// The reference TPM 2.0 in a process of its own; needs the package libtpms0
    Libtpms,
    /// A swtpm process; needs the package swtpm
    Swtpm,
}

impl From<Backend> for vtpm::Backend {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Embedded => Self::Embedded,
            Backend::Libtpms => Self::Libtpms,
            Backend::Swtpm => Self::Swtpm,
        }
    }
}

pub(crate) fn tpm(command: &TpmCommand) -> Result<ExitCode> {
    let TpmCommand::Serve(args) = command;
    let listening = args.at.listen()?;
    let mut tpm = vtpm::manufacture(args.backend.into(), &std::env::current_exe()?)?;
    eprintln!("serving; for tpm2-tools: export TPM2TOOLS_TCTI={}", listening.tcti);
    listening.serve(tpm.as_mut())?;
    Ok(ExitCode::SUCCESS)
}

/// A worker, until its client goes.
pub(crate) fn worker() -> Result<ExitCode> {
    libtpms::worker::serve().context("a TPM worker")?;
    Ok(ExitCode::SUCCESS)
}
