//! `hvci-sim`: the simulated machine at the command line. Parses, calls the libraries, renders.

mod attack;
mod attest;
mod attest_quote;
mod attest_serve;
mod bench;
mod boot;
mod credential;
mod eventlog;
mod explore;
mod health;
mod interrupt;
mod load;
mod pcr;
mod scenario;
mod synth;
mod tls;
#[cfg(unix)]
mod tpm;
mod trace;
mod turns;
mod vars;
mod vault;
mod vm;
mod what_if;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A simulated machine under the engine's second-level page tables.
#[derive(Debug, Parser)]
#[command(name = "hvci-sim", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Visit every state that the engine's protocol and a hostile guest can reach together
    Explore(explore::ExploreArgs),
    /// Try attacks of a guest's own code under the engine
    Attack(attack::AttackArgs),
    /// Measure what loads cost, phase by phase
    Bench(bench::BenchArgs),
    /// Load drivers and Linux modules into a guest under the engine
    Load(load::LoadArgs),
    /// Run a scripted machine: drivers, programs on several processors, devices, attacks
    Run(scenario::RunArgs),
    /// Run one and keep all that reached the machine, and what came of it
    Record(scenario::RecordArgs),
    /// Play a trace again and compare what comes of it, byte for byte
    Replay(trace::ReplayArgs),
    /// Make a trace small that shows something
    Shrink(trace::ShrinkArgs),
    /// Start a machine from its files: what each stage of the boot decides, and why
    Boot(boot::BootArgs),
    /// Make a Windows-style boot chain and variables that start it
    Synth(synth::SynthArgs),
    /// Show what was measured when a machine started, replay it, and say what is wrong with it
    Eventlog(eventlog::EventlogArgs),
    /// Judge what a machine proves of its start
    #[command(subcommand)]
    Attest(attest::AttestCommand),
    /// Predict the PCRs of a boot, and compare two
    #[command(subcommand)]
    Pcr(pcr::PcrCommand),
    /// Make, start and attest Trusted Launch machines
    Vm(vm::VmArgs),
    /// Say how healthy machines are
    Health(health::HealthArgs),
    /// Show and change the UEFI variables of a machine: keys, revocations, Secure Boot
    #[command(subcommand)]
    Vars(vars::VarsCommand),
    /// Use credentials that no guest can read: a demonstration, and clients of NTLM and Kerberos
    #[command(subcommand)]
    Vault(vault::VaultCommand),
    /// Virtual TPMs
    #[cfg(unix)]
    #[command(subcommand)]
    Tpm(tpm::TpmCommand),
    /// The process that holds a TPM of libtpms
    #[cfg(unix)]
    #[command(hide = true)]
    TpmWorker,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Explore(args) => explore::explore(&args),
        Command::Attack(args) => attack::attack(&args),
        Command::Attest(command) => attest::attest(&command),
        Command::Bench(args) => bench::bench(&args),
        Command::Load(args) => load::load(&args),
        Command::Run(args) => scenario::run(&args),
        Command::Record(args) => scenario::record(&args),
        Command::Replay(args) => trace::replay_trace(&args),
        Command::Shrink(args) => trace::shrink_trace(&args),
        Command::Synth(args) => synth::synth(&args),
        Command::Boot(args) => boot::boot(&args),
        Command::Eventlog(args) => eventlog::eventlog(&args),
        Command::Pcr(command) => pcr::pcr(&command),
        Command::Vm(args) => vm::vm(&args),
        Command::Health(args) => health::health(&args),
        Command::Vars(command) => vars::vars(&command),
        Command::Vault(command) => vault::vault(&command),
        #[cfg(unix)]
        Command::Tpm(command) => tpm::tpm(&command),
        #[cfg(unix)]
        Command::TpmWorker => tpm::worker(),
    };
    outcome.unwrap_or_else(|error| {
        // whoever read our output has seen enough
        if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        eprintln!("hvci-sim: {error:#}");
        ExitCode::from(2)
    })
}
