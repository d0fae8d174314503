//! The commands but `explain`: arguments in, library called, exit status out.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader},
    num::NonZero,
    path::Path,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::CommandFactory;
use corpus::{
    block, fetch,
    report::{Audited, FactsLine, ReportDocument, Summary},
    scan::{Context, Watcher, is_for_another, scan as scan_walk},
    source::walk::{walk, walk_list},
    synth, trust,
};
use hvci_engine::{
    digest::DigestAlg,
    facts::{Facts, FileKind, SCHEMA_VERSION},
    finding::{Code, Note},
    policy::{Judge, Profile},
    signature::{cache::Cache, catalog::CatalogIndex, trust::TrustStore},
    time::UnixTime,
};

use crate::{
    args::{Cli, FetchArgs, JudgeArgs, JudgingArgs, OutputArgs, ScanArgs, SchemaOf, SynthArgs},
    output::Outputs,
    progress::Progress,
};

/// The digests of `--all-digests`.
const ALL_DIGESTS: &[DigestAlg] = &[DigestAlg::Md5, DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha384, DigestAlg::Sha512];

pub(crate) fn scan(mut args: ScanArgs) -> Result<ExitCode> {
    // kept until the scan is over
    let starter = if args.starter { Some(starter(&mut args)?) } else { None };
    let cache = Cache::default();
    let mut catalogs = CatalogIndex::default();
    for path in &args.catalog {
        trust::add_catalogs(&mut catalogs, path, &cache)?;
    }
    let trust = trust_of(&args.judging)?;
    let mut digests = trust.blocked().algorithms();
    digests.extend(ALL_DIGESTS.iter().filter(|_| args.all_digests));
    digests.sort_unstable();
    digests.dedup();
    let context = Context {
        profile: profile(&args.judging.profile),
        trust,
        catalogs,
        time: args.judging.time.map_or_else(now, Ok)?,
        cache,
        digests,
        max_size: args.max_size,
        jobs: jobs(args.jobs),
        base: starter.as_ref().map(|_| args.paths.iter().map(|p| p.display().to_string()).collect()),
        named: args.paths.iter().filter(|p| p.is_file()).cloned().collect::<HashSet<_>>(),
    };
    let progress = Progress::start(args.files_from.is_none().then(|| args.paths.clone()), args.output.quiet);
    let found = match &args.files_from {
        Some(list) => walk_list(open_list(list)?),
        None => walk(args.paths.clone()),
    };
    let summary = report(&args.output, progress, |watcher| scan_walk(found, &context, watcher))?;
    drop(starter);
    Ok(exit(&summary, &args.output))
}

pub(crate) fn judge(args: JudgeArgs) -> Result<ExitCode> {
    let trust = trust_of(&args.judging)?;
    let cache = Cache::default();
    let judge = Judge { trust: &trust, time: args.judging.time.map_or_else(now, Ok)?, cache: &cache };
    let profile = profile(&args.judging.profile);
    let lines = open_list(&args.facts)?;
    let summary = report(&args.output, Progress::start(None, args.output.quiet), |watcher| {
        let mut summary = Summary::default();
        for (number, line) in lines.lines().enumerate() {
            let line = line.with_context(|| format!("cannot read {}", args.facts.display()))?;
            let place =
                || format!("{}, line {}: make the facts again with `hvci-audit scan -o facts=FILE`", args.facts.display(), number + 1);
            let FactsLine { path, facts } = match read_facts(&line) {
                Ok(facts) => facts,
                // the first line tells whether these are facts at all; a bad line later costs only itself
                Err(why) if number == 0 => return Err(anyhow::anyhow!(why)).with_context(place),
                Err(why) => {
                    let mut facts = Facts::new(0, FileKind::Flat);
                    facts.notes.push(Note::new(Code::InputFacts, why));
                    FactsLine { path: format!("{}, line {}", args.facts.display(), number + 1), facts }
                }
            };
            if is_for_another(&facts, profile) {
                summary.skipped += 1;
                continue;
            }
            let verdict = judge.judge(&facts, profile);
            let audited = Audited { path, facts, verdict };
            summary.add(&audited);
            watcher.record(&audited)?;
            watcher.advance(1, audited.facts.size);
        }
        Ok(summary)
    })?;
    Ok(exit(&summary, &args.output))
}

fn read_facts(line: &str) -> Result<FactsLine, String> {
    let read: FactsLine = serde_json::from_str(line).map_err(|e| e.to_string())?;
    match read.facts.schema_version {
        SCHEMA_VERSION => Ok(read),
        other => Err(format!("facts of schema {other}, this program reads {SCHEMA_VERSION}")),
    }
}

pub(crate) fn synth(args: &SynthArgs) -> Result<ExitCode> {
    let written = synth::write(&args.dir, args.seed)?;
    anstream::println!("{written}");
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn fetch(args: &FetchArgs) -> Result<ExitCode> {
    let manifest = fetch::fetch(&args.name, &args.dir, &mut |line| anstream::eprintln!("{line}"))?;
    let files = args.dir.join(fetch::FILES);
    anstream::println!(
        "{} files in {}; {} says what each is",
        manifest.files.len(),
        files.display(),
        args.dir.join("manifest.json").display()
    );
    let kernels = manifest.files.iter().filter(|e| e.file.rsplit('/').next().is_some_and(|n| n.starts_with("vmlinuz")));
    let kernels: Vec<String> = kernels.map(|e| format!(" --kernel {}", args.dir.join(&e.file).display())).collect();
    match args.name.as_str() {
        "trust" => anstream::println!("trust them with\n  hvci-audit scan PATH --roots {}", files.display()),
        _ => anstream::println!("scan them with\n  hvci-audit scan {}{}", files.display(), kernels.concat()),
    }
    for missing in &manifest.missing {
        anstream::eprintln!("hvci-audit: {} could not be had: {}", missing.package, missing.reason);
    }
    Ok(if manifest.missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

pub(crate) fn schema(of: SchemaOf) -> Result<ExitCode> {
    let schema = match of {
        SchemaOf::Report => schemars::schema_for!(ReportDocument),
        SchemaOf::Facts => schemars::schema_for!(FactsLine),
    };
    let mut out = anstream::stdout();
    serde_json::to_writer_pretty(&mut out, &schema)?;
    io::Write::write_all(&mut out, b"\n")?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<ExitCode> {
    clap_complete::generate(shell, &mut Cli::command(), "hvci-audit", &mut io::stdout());
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(dir: &Path) -> Result<ExitCode> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir).with_context(|| format!("cannot write manual pages into {}", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The profile of this name; `None` for `auto`.
pub(crate) fn profile(name: &str) -> Option<&'static Profile> {
    Profile::find(name)
}

/// The trust of `--roots` and `--kernel`, with what ships unless that is not wanted.
pub(crate) fn trust_of(args: &JudgingArgs) -> Result<TrustStore> {
    let mut store = if args.no_builtin_roots { TrustStore::empty() } else { TrustStore::builtin() };
    trust::add_roots(&mut store, &args.roots)?;
    for kernel in &args.kernel {
        trust::KernelKeys::read(kernel)?.add_to(&mut store);
    }
    if let Some(file) = &args.block {
        store.replace_blocked(block::read(file)?).map_err(|_| anyhow!("{}: older than the list there is", file.display()))?;
    }
    Ok(store)
}

/// The time now.
pub(crate) fn now() -> Result<UnixTime> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970; give --time")?;
    Ok(UnixTime(i64::try_from(since.as_secs())?))
}

/// Makes the starter corpus in a folder that is gone afterwards, and points the scan at it.
fn starter(args: &mut ScanArgs) -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("hvci-starter-").tempdir().context("cannot make a folder for the starter corpus")?;
    let layout = synth::write_starter(dir.path(), synth::DEFAULT_SEED)?;
    args.paths = vec![layout.images];
    args.judging.roots.extend(layout.roots);
    args.judging.roots.extend(layout.root_lists.iter().map(|l| l.display().to_string()));
    args.catalog.extend(layout.catalogs);
    args.judging.kernel.extend(layout.kernels);
    args.judging.time = args.judging.time.or(Some(layout.time));
    Ok(dir)
}

struct ToOutputs<'p> {
    outputs: Outputs,
    progress: &'p Progress,
    bytes: u64,
}

impl Watcher for ToOutputs<'_> {
    fn record(&mut self, audited: &Audited) -> io::Result<()> {
        if self.outputs.on_terminal {
            let outputs = &mut self.outputs;
            self.progress.suspended(|| outputs.record(audited))
        } else {
            self.outputs.record(audited)
        }
    }

    fn advance(&mut self, files: u64, bytes: u64) {
        self.progress.advance(files, bytes, &mut self.bytes);
    }
}

fn report(args: &OutputArgs, progress: Progress, run: impl FnOnce(&mut dyn Watcher) -> Result<Summary>) -> Result<Summary> {
    let mut watcher = ToOutputs { outputs: Outputs::open(args)?, progress: &progress, bytes: 0 };
    let summary = run(&mut watcher)?;
    let mut outputs = watcher.outputs;
    drop(progress);
    outputs.finish(&summary)?;
    Ok(summary)
}

fn exit(summary: &Summary, args: &OutputArgs) -> ExitCode {
    if summary.fails(args.fail_on.threshold()) { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

fn jobs(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(1, NonZero::get),
        n => n,
    }
}

fn open_list(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    if path.is_dir() {
        bail!("{} is a folder; a file belongs here", path.display());
    }
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Box::new(BufReader::new(file)))
}
