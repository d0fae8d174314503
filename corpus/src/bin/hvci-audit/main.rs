//! `hvci-audit`: audit driver corpora from the command line. Parses, calls the library, renders.

mod args;
mod commands;
mod explain;
mod output;
mod progress;

use std::{io, process::ExitCode};

use clap::Parser;

use crate::args::{Cli, Command};

// records are made on one thread and dropped on another, which the system's allocator is slow at
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Scan(args) => commands::scan(args),
        Command::Judge(args) => commands::judge(args),
        Command::Explain(args) => explain::explain(args),
        Command::Synth(args) => commands::synth(&args),
        Command::Fetch(args) => commands::fetch(&args),
        Command::Schema { of } => commands::schema(of),
        Command::Completions { shell } => commands::completions(shell),
        Command::Man { dir } => commands::man(&dir),
    };
    match outcome {
        Ok(code) => code,
        // whoever read our output has seen enough
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("hvci-audit: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json = cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(io::ErrorKind::BrokenPipe)
    })
}
