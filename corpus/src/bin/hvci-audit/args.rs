//! The command line.

use std::path::PathBuf;

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser},
};
use corpus::report::Format;
use hvci_engine::{finding::Severity, policy::profile, time::UnixTime};

/// Audit driver corpora: who signed each driver, EFI image and kernel module, would it load, and why.
#[derive(Debug, Parser)]
#[command(name = "hvci-audit", version, about, max_term_width = 120, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  hvci-audit scan --starter                              audit a starter corpus that is made on the spot
  hvci-audit scan drivers/ --profile hvci                would these load with memory integrity on?
  hvci-audit scan linux-image.deb --kernel vmlinuz       are these modules signed by their kernel's own key?
  hvci-audit scan C/ -o human -o ndjson=all.ndjson -o sarif=hvci.sarif
  hvci-audit explain WinDivert64.sys                     everything about one file
  hvci-audit explain HVCI-SIG-005                        what a finding means
Exit status: 0 nothing at or above --fail-on, 1 findings, 2 usage, input/output or internal error.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Audit files, folders and packages
    Scan(ScanArgs),
    /// Judge saved facts again, under another profile, trust or time
    Judge(JudgeArgs),
    /// Show everything about one file, or what a finding code means
    Explain(ExplainArgs),
    /// Make a signed corpus, good and bad, with the verdicts it should get
    Synth(SynthArgs),
    /// Get a real corpus by package name with apt-get, pip or npm
    Fetch(FetchArgs),
    /// Print the JSON schema of a format
    Schema {
        /// Which format
        #[arg(value_enum, default_value_t = SchemaOf::Report)]
        of: SchemaOf,
    },
    /// Print a shell's completion script
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    Man {
        /// Where to
        dir: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SchemaOf {
    /// The `json` document; each line of `ndjson` is one of its records
    Report,
    /// A line of `facts`
    Facts,
}

#[derive(Args, Debug)]
pub(crate) struct ScanArgs {
    /// Files, folders, and packages to look inside of (.deb .whl .zip .nupkg .cab .msi .tar.*)
    #[arg(value_name = "PATH|PACKAGE", required_unless_present_any = ["starter", "files_from"])]
    pub(crate) paths: Vec<PathBuf>,
    /// Audit a starter corpus that is made on the spot, with its own trust
    #[arg(long, conflicts_with_all = ["paths", "files_from", "kernel", "roots", "catalog"])]
    pub(crate) starter: bool,
    /// Read paths from a file, one a line or separated by NUL; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) files_from: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) judging: JudgingArgs,
    /// Catalogs that may speak for files
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) catalog: Vec<PathBuf>,
    /// Threads; 0 is one for each processor
    #[arg(long, short, default_value_t = 0, value_name = "N")]
    pub(crate) jobs: usize,
    /// Do not look at files larger than this, packed or unpacked (K, M, G)
    #[arg(long, default_value = "512M", value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_size: u64,
    /// Calculate every digest of every file, not only those that its signatures need
    #[arg(long)]
    pub(crate) all_digests: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Args, Debug)]
pub(crate) struct JudgeArgs {
    /// Facts that `scan -o facts=FILE` saved; `-` is standard input
    pub(crate) facts: PathBuf,
    #[command(flatten)]
    pub(crate) judging: JudgingArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// A file, or a finding code such as HVCI-SIG-004 or authentihash-mismatch
    #[arg(value_name = "FILE|CODE")]
    pub(crate) what: PathBuf,
    #[command(flatten)]
    pub(crate) judging: JudgingArgs,
    /// Catalogs that may speak for the file
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) catalog: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct SynthArgs {
    /// Where to; must be empty or not exist
    pub(crate) dir: PathBuf,
    /// What all keys and bytes are made from: the same seed gives the same corpus
    #[arg(long, default_value_t = corpus::synth::DEFAULT_SEED)]
    pub(crate) seed: u64,
}

#[derive(Args, Debug)]
pub(crate) struct FetchArgs {
    /// Which corpus
    #[arg(value_parser = fetch_names())]
    pub(crate) name: String,
    /// Where to
    pub(crate) dir: PathBuf,
}

/// Whose rules, whose trust, which time.
#[derive(Args, Debug)]
pub(crate) struct JudgingArgs {
    /// Whose rules decide; auto takes those of the loader that would meet the file
    #[arg(long, short, default_value = "auto", value_parser = PossibleValuesParser::new(profile_names()))]
    pub(crate) profile: String,
    /// A kernel (vmlinuz, vmlinux or unified kernel image) whose built-in keys may sign modules
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Vec<PathBuf>,
    /// More trust anchors, for uefi, module, user and timestamp; PURPOSE= for one use (kernel, uefi, shim, module, user, timestamp, list).
    /// A root list of Windows (authroot.stl) limits what windows-user and timestamps trust its roots for
    #[arg(long, value_name = "[PURPOSE=]FILE|DIR")]
    pub(crate) roots: Vec<String>,
    /// What is refused in spite of a good signature: a list of authentihashes and certificates in JSON, or drivers.json of LOLDrivers
    #[arg(long, value_name = "FILE")]
    pub(crate) block: Option<PathBuf>,
    /// Trust only what --roots and --kernel give, not the anchors that ship with the program
    #[arg(long)]
    pub(crate) no_builtin_roots: bool,
    /// The time the verdicts are for: 2026-11-24, 2026-11-24T12:00:00Z or @seconds [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) time: Option<UnixTime>,
}

#[derive(Args, Debug)]
pub(crate) struct OutputArgs {
    /// A report: human, json, ndjson, csv, sarif or facts, to standard output or a file; repeatable
    #[arg(short, long = "output", value_name = "FORMAT[=FILE]", default_value = "human", value_parser = parse_output)]
    pub(crate) output: Vec<Output>,
    /// Exit with 1 when a finding is at least this bad; unknown verdicts count as errors
    #[arg(long, value_enum, default_value_t = FailOn::Error)]
    pub(crate) fail_on: FailOn,
    /// Show warnings and notes of accepted files too
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// No progress bar
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
    pub(crate) file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum FailOn {
    Error,
    Warning,
    Note,
    Never,
}

impl FailOn {
    pub(crate) fn threshold(self) -> Option<Severity> {
        match self {
            Self::Error => Some(Severity::Error),
            Self::Warning => Some(Severity::Warning),
            Self::Note => Some(Severity::Note),
            Self::Never => None,
        }
    }
}

fn fetch_names() -> PossibleValuesParser {
    PossibleValuesParser::new(corpus::fetch::NAMES.map(|(name, what)| PossibleValue::new(name).help(what)))
}

fn profile_names() -> Vec<&'static str> {
    std::iter::once("auto").chain(profile::ALL.iter().map(|p| p.name)).collect()
}

fn parse_time(text: &str) -> Result<UnixTime, String> {
    UnixTime::try_from(text.to_owned())
}

fn parse_output(text: &str) -> Result<Output, String> {
    let (name, file) = match text.split_once('=') {
        Some((name, file)) if !file.is_empty() => (name, Some(PathBuf::from(file))),
        Some(_) => return Err("a file name belongs behind the =".to_owned()),
        None => (text, None),
    };
    let format = Format::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = Format::ALL.iter().map(|(n, _)| *n).collect();
        format!("{name:?} is no format; there are {}", names.join(", "))
    })?;
    Ok(Output { format, file })
}

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match text.get(digits.len()..).unwrap_or_default().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        unit => return Err(format!("{unit:?} is no unit; there are K, M and G")),
    };
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(|| format!("{text:?} is no size; give for example 512M"))
}
