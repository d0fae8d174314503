//! `hvci-sim load`.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use corpus::{
    block,
    report::render_verdict,
    source::escape,
    trust::{self, KernelKeys},
};
use hvci_engine::{
    access::MapGpaFlags,
    addr::Vtl,
    examine::Input,
    finding::Severity,
    load::{Attempt, Loader, MAX_IMAGE, Module, Symbols},
    policy::Profile,
    signature::{cache::Cache, catalog::CatalogIndex, trust::TrustStore},
    time::UnixTime,
    vsm::partition::Partition,
};
use loader_sim::{
    guest_loader::{self, Guest, Links, PartialKernel, Tried},
    host::{Config, SimHost},
    vm,
};

use crate::turns::in_turn;

const EXAMPLES: &str = "\
Examples:
  hvci-sim load WinDivert64.sys
  hvci-sim load --kernel /boot/vmlinuz-6.1.0-48-amd64 ext4.ko.xz nf_tables.ko
  hvci-sim load --kernel /boot/vmlinuz-6.1.0-48-amd64 mii.ko usbnet.ko
  hvci-sim load --roots kernel=ca.pem my.sys --trace events.ndjson

Each file is placed by the guest's own loader, with imports bound to a kernel that exports every symbol, and then handed to the engine, which
verifies the file, locks the pages, compares every byte and makes code executable. What a file exports, the kernel does not: files that import
it are loaded behind it, in whatever order they are given.

Exit status: 0 everything is loaded, 1 something is refused, 2 usage or I/O.";

/// RAM of the guest: 2 GiB, taken as it is used.
const PAGES: u64 = 1 << 19;
/// The first page that modules are put into.
const FIRST: u64 = 0x100;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LoadArgs {
    /// Drivers (.sys) and Linux modules (.ko, also compressed)
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    judging: JudgingArgs,
    /// Processors of the guest; each loads files of its own at the same time, once those that they import from are loaded
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    vps: u32,
    /// Writes every event to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// Whose rules, who is trusted, and when.
#[derive(Debug, Args)]
pub(crate) struct JudgingArgs {
    /// Whose rules, instead of hvci for drivers and linux-module for modules
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// A kernel image whose built-in keys are trusted for modules
    #[arg(long, value_name = "FILE")]
    kernel: Vec<PathBuf>,
    /// Further trusted certificates, as for hvci-audit
    #[arg(long, value_name = "[PURPOSE=]FILE|DIR")]
    roots: Vec<String>,
    /// Catalogs that may speak for a file
    #[arg(long, value_name = "FILE|DIR")]
    catalog: Vec<PathBuf>,
    /// What is refused in spite of a good signature, as for hvci-audit
    #[arg(long, value_name = "FILE")]
    block: Option<PathBuf>,
    /// The time that the verdicts are for, instead of now
    #[arg(long, value_name = "DATE", value_parser = |text: &str| UnixTime::parse(text).ok_or("a date like 2026-01-31 or 2026-01-31T12:00:00Z"))]
    time: Option<UnixTime>,
}

impl JudgingArgs {
    /// The keys of the kernels, which need not be found again for another loader.
    pub(crate) fn kernel_keys(&self) -> Result<Vec<KernelKeys>> {
        self.kernel.iter().map(|kernel| KernelKeys::read(kernel)).collect()
    }

    /// A loader into `partition` by these rules, which has seen no certificate yet.
    pub(crate) fn loader(&self, keys: &[KernelKeys], partition: &Arc<Partition>, kernel: Box<dyn Symbols + Send + Sync>) -> Result<Loader> {
        let profile = match &self.profile {
            Some(name) => Some(Profile::find(name).with_context(|| format!("no profile is called {name}"))?),
            None => None,
        };
        let mut store = TrustStore::builtin();
        trust::add_roots(&mut store, &self.roots)?;
        for kernel in keys {
            kernel.add_to(&mut store);
        }
        if let Some(file) = &self.block {
            store.replace_blocked(block::read(file)?).map_err(|_| anyhow!("{}: older than the list there is", file.display()))?;
        }
        let mut catalogs = CatalogIndex::default();
        let cache = Cache::default();
        self.catalog.iter().try_for_each(|path| trust::add_catalogs(&mut catalogs, path, &cache))?;
        Ok(Loader::new(Arc::clone(partition), store, catalogs, profile, kernel))
    }

    /// The time that verdicts are for.
    pub(crate) fn time(&self) -> Result<UnixTime> {
        now_or(self.time)
    }
}

/// The time that was given, or now.
pub(crate) fn now_or(time: Option<UnixTime>) -> Result<UnixTime> {
    if let Some(time) = time {
        return Ok(time);
    }
    vm::now().context("give --time")
}

pub(crate) fn load(args: &LoadArgs) -> Result<ExitCode> {
    let config = Config { pages: PAGES, vps: args.vps, records: 1 << 20, ..Config::default() };
    let (host, partition) = SimHost::with_partition(&config).context("cannot make the guest")?;
    // where a file goes does not depend on which processor is faster
    let independent = vec![BTreeSet::new(); args.files.len()];
    let examined = in_turn(&independent, args.vps, |index, _| examine(&args.files[index]));
    let (mut links, mut starts, mut next, mut kernel) = (Vec::new(), Vec::new(), FIRST, PartialKernel::default());
    for (path, examined) in args.files.iter().zip(examined) {
        let (file, pages) = examined?;
        kernel.leave_to(&file);
        links.push(file);
        starts.push(next);
        next += pages;
        if next > PAGES {
            bail!("{}: the guest's memory is full; load fewer files at a time", path.display());
        }
    }
    let loader = args.judging.loader(&args.judging.kernel_keys()?, &partition, Box::new(kernel.clone()))?;
    let time = args.judging.time()?;
    let guest = Guest::new(&host, &loader, time, kernel);
    let tried = in_turn(&Links::order(&links), args.vps, |index, vp| {
        let path = &args.files[index];
        guest.load(&name_of(path), &read(path)?, starts[index], vp).with_context(|| path.display().to_string())
    });
    let tried = tried.into_iter().collect::<Result<Vec<Tried>>>()?;

    // the engine's numbers are in the order in which loads were begun
    let loaded = tried.iter().filter_map(|tried| Some(tried.attempt.outcome.as_ref().ok()?.id));
    let numbers: BTreeMap<u32, usize> = loaded.zip(1..).collect();
    let mut out = BufWriter::new(anstream::stdout().lock());
    let mut all = true;
    for (path, tried) in args.files.iter().zip(&tried) {
        all &= tried.attempt.outcome.is_ok();
        show(&mut out, path, tried, &host, &numbers)?;
    }
    out.flush()?;
    if let Some(trace) = &args.trace {
        let mut file = BufWriter::new(fs::File::create(trace).with_context(|| format!("cannot make {}", trace.display()))?);
        let (events, dropped) = partition.take_events();
        if dropped > 0 {
            eprintln!("hvci-sim: {dropped} events came too fast and are not in the trace");
        }
        for event in events {
            serde_json::to_writer(&mut file, &event)?;
            writeln!(file)?;
        }
        file.flush().with_context(|| format!("cannot write {}", trace.display()))?;
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What a file exports and imports, and how many pages it takes: none, if the guest cannot place it.
fn examine(path: &Path) -> Result<(Links, u64)> {
    let file = read(path)?;
    let input = Input::new(&file, usize::try_from(MAX_IMAGE)?);
    let base = guest_loader::region_of(input.bytes());
    // neither where it is nor what its imports are changes how many pages it takes
    let pages = guest_loader::place(input.bytes(), base).map_or(0, |memory| guest_loader::pages_of(&memory, base));
    Ok((Links::of(&name_of(path), input.bytes()), pages))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn name_of(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

fn show(out: &mut dyn Write, path: &Path, tried: &Tried, host: &SimHost, numbers: &BTreeMap<u32, usize>) -> Result<()> {
    let Attempt { verdict, phases, outcome } = &tried.attempt;
    if let Some(verdict) = verdict {
        render_verdict(out, &path.display().to_string(), verdict, false)?;
    }
    match outcome {
        Ok(module) => show_module(out, module, host, numbers)?,
        Err(refusal) => {
            // those of the verdict stand above
            if verdict.as_ref().is_none_or(|v| v.findings.iter().all(|f| f.code != refusal.note.code || f.severity < Severity::Unknown)) {
                writeln!(out, "  error[{}] {}", refusal.note.code, refusal.note.code.title())?;
                writeln!(out, "      {}", escape(refusal.note.detail.as_bytes()))?;
                writeln!(out, "      help: {}", refusal.note.code.advice())?;
            }
            if let Some(guest) = &tried.guest {
                writeln!(out, "  {guest}")?;
            }
            writeln!(out, "  not loaded: {}; every page is as it was", refusal.status)?;
        }
    }
    let micros = |nanos: u64| format!("{}.{:01}", nanos / 1000, nanos % 1000 / 100);
    if outcome.is_ok() {
        let each: Vec<String> = phases.iter().map(|(phase, nanos)| format!("{phase} {}", micros(*nanos))).collect();
        writeln!(out, "  µs: {}; {} in all", each.join(", "), micros(phases.iter().map(|(_, nanos)| nanos).sum()))?;
    }
    Ok(())
}

fn show_module(out: &mut dyn Write, module: &Module, host: &SimHost, numbers: &BTreeMap<u32, usize>) -> Result<()> {
    let digest = module.digest.as_ref().map(|d| format!(", {d}")).unwrap_or_default();
    writeln!(out, "  sealed as module {}{digest}", numbers[&module.id])?;
    for segment in &module.segments {
        let flags = segment.pages.iter().flatten().next().map_or(MapGpaFlags::NONE, |gpn| host.permission(Vtl::Vtl0, *gpn));
        let has = |flag, letter| if flags.contains(flag) { letter } else { '-' };
        let rights: String =
            [has(MapGpaFlags::READABLE, 'r'), has(MapGpaFlags::WRITABLE, 'w'), has(MapGpaFlags::KERNEL_EXECUTABLE, 'x')].iter().collect();
        let name = escape(segment.name.as_bytes());
        let gone = if segment.discardable { ", discarded after init" } else { "" };
        writeln!(
            out,
            "    {:#018x}  {:>5} page{}  {rights}  {:<16} {}{gone}",
            segment.start.0,
            segment.pages.len(),
            if segment.pages.len() == 1 { " " } else { "s" },
            name,
            segment.kind
        )?;
    }
    if let Some(entry) = module.entry {
        writeln!(out, "    entry {entry}, {} patch sites", module.patch_sites().count())?;
    }
    if !module.uses.is_empty() {
        let uses: BTreeSet<usize> = module.uses.iter().map(|id| numbers[id]).collect();
        let uses: Vec<String> = uses.iter().map(usize::to_string).collect();
        writeln!(out, "    imports from module {}", uses.join(", "))?;
    }
    Ok(())
}
