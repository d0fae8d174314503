//! The load path beside what it cannot do without: one SHA-256 of the file and one RSA verification with a parsed key (the bound).
//!
//! Only a load that says so has a loader that knows the file; each other one has forgotten all files.
//!
//! A load is [`Loader::load`] into the simulated machine, whose memory, second-level tables and TLBs are part of what is measured: [`Measured`]
//! has the phases, of which "lock", "quiesce" and "grant" are the host's and the frame table's, "hash" and "compare" read the guest's memory,
//! and the others have no host. The guest's own loader and the unload stand outside. What counts is processor time.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
};

use anyhow::{Context, Result, anyhow, ensure};
use aws_lc_rs::digest::SHA256;
use corpus::source::content::{Content, MAP_FROM};
use hvci_engine::{
    access::MapGpaFlags,
    addr::{Frame, Gpa, Gpn, GpnRange, Gva, PAGE_SIZE, Vtl},
    crypto,
    digest::DigestAlg,
    frames::Kind,
    host::{Capabilities, Host, Partial},
    load::{Attempt, File, Loader, Place, Request},
    status::HvStatus,
    vsm::partition::Partition,
};
use loader_sim::{
    guest_loader::{self, Memory},
    host::{Config, SimHost},
};
use serde::Serialize;

use crate::{
    cpu,
    goal::{Goal, Must},
    subject::{Subject, Verification},
    table::{Table, median, number, quantile},
};

/// RAM of the guest, and the first page of it that a module is put into.
const PAGES: u64 = 1 << 14;
const FIRST: Gpn = Gpn(0x100);
/// Where a Windows kernel puts drivers, and a Linux kernel modules.
const DRIVERS: Gva = Gva(0xFFFF_F800_1000_0000);
const MODULES: Gva = Gva(0xFFFF_FFFF_C000_0000);
/// Row 2 is for files of about 60 KiB, 500 KiB and 4 MiB: below this it is one of the second size, and from the other on one of the third.
const LARGE: usize = 1 << 20;
const LARGEST: usize = 4 << 20;
/// Up to here a file is a usual driver, and the goals are narrow.
const USUAL: usize = 101 << 10;

/// A machine in which one module is loaded again and again.
#[derive(Debug)]
pub struct Machine<'s> {
    subject: &'s Subject,
    pub(crate) host: Arc<SimHost>,
    pub(crate) loader: Loader,
    base: Gva,
    memory: Memory,
}

impl<'s> Machine<'s> {
    /// A machine that has loaded nothing yet.
    ///
    /// # Errors
    /// The guest's own loader cannot place the file.
    pub fn new(subject: &'s Subject) -> Result<Self> {
        Self::with_host(subject, |host| host)
    }

    /// The same with a host of the partition's between it and the simulated one.
    fn with_host<H: Host + 'static>(subject: &'s Subject, between: impl FnOnce(Arc<SimHost>) -> Arc<H>) -> Result<Self> {
        let config = Config { pages: PAGES, records: 16, ..Config::default() };
        let host = Arc::new(SimHost::new(&config)?);
        let ram = [GpnRange { start: Gpn(0), pages: PAGES }];
        let between: Arc<dyn Host> = between(Arc::clone(&host));
        let partition = Partition::new(between, Frame(0), usize::try_from(PAGES)?, &ram, config.vps, config.records)?;
        let loader = subject.loader(Arc::new(partition));
        let base = if subject.file.starts_with(b"MZ") { DRIVERS } else { MODULES };
        let memory = guest_loader::place(&subject.file, base)?;
        ensure!(guest_loader::pages_of(&memory, base) + FIRST.0 <= PAGES, "{}: too large for the guest", subject.name);
        Ok(Self { subject, host, loader, base, memory })
    }

    /// What the guest's own loader does before it asks.
    pub(crate) fn place(&self) -> Result<()> {
        guest_loader::put(&*self.host, &self.memory, self.base, FIRST)?;
        Ok(())
    }

    pub(crate) fn attempt(&self, file: &[u8]) -> Attempt {
        let pages = |at: Gva| Some(Gpn(FIRST.0 + at.0.checked_sub(self.base.0)? / PAGE_SIZE));
        let place = Place::Base(self.base);
        self.loader.load(&Request { name: "bench", file: File::Private(file), place, pages: &pages, time: self.subject.time, vp: Some(0) })
    }

    /// Loads the subject's file and unloads it. Says what a load took, in µs of processor time, and by phase.
    fn timed(&self, load: impl FnOnce(&Self) -> Result<Attempt>) -> Result<(f64, Vec<(&'static str, u64)>)> {
        self.place()?;
        let before = cpu::thread();
        let attempt = load(self)?;
        let took = cpu::thread() - before;
        let module = attempt.outcome.map_err(|refusal| anyhow!("{}: {refusal}", self.subject.name))?;
        self.loader.unload(module.id)?;
        Ok((took.as_secs_f64() * 1e6, attempt.phases))
    }

    /// Loads `file` and unloads it.
    ///
    /// # Errors
    /// It is refused.
    pub fn load(&self, file: &[u8]) -> Result<()> {
        self.timed(|machine| Ok(machine.attempt(file))).map(drop)
    }
}

/// What loads of one subject took, µs.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// Of the subject.
    pub name: String,
    /// Length of the file.
    pub bytes: usize,
    /// Whether one RSA verification is all that the file asks for: it has one signature and no timestamp.
    pub one_signature: bool,
    /// Every load of the image in memory.
    pub loads: Vec<f64>,
    /// Medians by round: of these loads, and of loads of the file on disk, read or mapped as it is opened.
    pub load: Vec<f64>,
    /// As [`load`](Self::load).
    pub mapped: Vec<f64>,
    /// The same by a loader that knows the file.
    pub again: Vec<f64>,
    /// Medians by round: SHA-256 of the file by the engine, and by aws-lc.
    pub hash: Vec<f64>,
    /// As [`hash`](Self::hash).
    pub hash_aws: Vec<f64>,
    /// Medians by round: the RSA verification.
    pub rsa: Vec<f64>,
    /// Medians by round: opening the file and looking at every page of it.
    pub open: Vec<f64>,
    /// Nanoseconds by the clock of the wall, of each load.
    pub phases: Vec<(&'static str, Vec<f64>)>,
    /// Medians by round: changing entries of the second-level tables, where a page next to the module keeps the large pages split.
    pub tables: Vec<f64>,
    /// The same where there are none but large pages, and the unload after which it is so again.
    pub splitting: Vec<f64>,
    /// Waiting for the simulated processors.
    pub quiesce: Vec<f64>,
}

/// A subject on its way through the rounds.
struct Contender<'s> {
    machine: Machine<'s>,
    /// Its loader knows the file.
    knowing: Machine<'s>,
    /// Where the file is read to.
    room: Vec<u8>,
    verification: Verification,
    path: std::path::PathBuf,
    replay: Replay,
    measured: Measured,
}

/// Loads each subject in turn with its bound, so many rounds.
///
/// # Errors
/// One is refused.
pub fn measure(subjects: &[Subject], rounds: usize) -> Result<Vec<Measured>> {
    let dir = tempfile::tempdir()?;
    let mut all = Vec::new();
    for (index, subject) in subjects.iter().enumerate() {
        let path = dir.path().join(index.to_string());
        fs::write(&path, &subject.file)?;
        let machine = Machine::new(subject)?;
        // the first load of a loader is a cold one
        machine.load(&subject.file)?;
        let knowing = Machine::new(subject)?;
        // and it knows a file that it has loaded twice
        (0..2).try_for_each(|_| knowing.load(&subject.file))?;
        let replay = Replay::of(subject)?;
        let empty = Vec::new;
        let verification = subject.signature()?;
        let measured = Measured {
            name: subject.name.clone(),
            bytes: subject.file.len(),
            one_signature: verification.alone,
            loads: empty(),
            load: empty(),
            mapped: empty(),
            again: empty(),
            hash: empty(),
            hash_aws: empty(),
            rsa: empty(),
            open: empty(),
            phases: Vec::new(),
            tables: empty(),
            splitting: empty(),
            quiesce: empty(),
        };
        let room = vec![1; usize::try_from(MAP_FROM)? + 1];
        all.push(Contender { machine, knowing, room, verification, path, replay, measured });
    }
    for _ in 0..rounds {
        all.iter_mut().try_for_each(Contender::round)?;
    }
    Ok(all.into_iter().map(|contender| contender.measured).collect())
}

impl Contender<'_> {
    fn round(&mut self) -> Result<()> {
        let Self { machine, knowing, room, verification, path, replay, measured } = self;
        let file = machine.subject.file.as_slice();
        let times = (20_000_000 / file.len()).clamp(4, 100);
        let mut turns: [Vec<f64>; 7] = Default::default();
        for time in 0..=times {
            machine.loader.forget_files();
            let (load, phases) = machine.timed(|machine| Ok(machine.attempt(file)))?;
            machine.loader.forget_files();
            let mut from_file = |machine: &Machine<'_>| machine.timed(|machine| with_file(path, room, |bytes| machine.attempt(bytes)));
            let ((mapped, _), (again, _)) = (from_file(machine)?, from_file(knowing)?);
            let open = micros(|| with_file(path, room, |bytes| bytes.iter().step_by(4096).fold(0, |sum, byte| sum ^ byte)))?;
            let hash = micros(|| Ok(crypto::digest(DigestAlg::Sha256, &[file])))?;
            let hash_aws = micros(|| Ok(aws_lc_rs::digest::digest(&SHA256, file)))?;
            let rsa = micros(|| Ok(verification.verifies()))?;
            // in the first one the caches are as another subject left them
            if time > 0 {
                measured.loads.push(load);
                add(&mut measured.phases, &phases);
                for (turn, took) in turns.iter_mut().zip([load, mapped, again, hash, hash_aws, rsa, open]) {
                    turn.push(took);
                }
            }
        }
        let [load, mapped, again, hash, hash_aws, rsa, open] = turns.map(|of| median(&of));
        measured.load.push(load);
        measured.mapped.push(mapped);
        measured.again.push(again);
        measured.hash.push(hash);
        measured.hash_aws.push(hash_aws);
        measured.rsa.push(rsa);
        measured.open.push(open);
        let part = replay.run(&machine.host)?;
        measured.tables.push(part.tables);
        measured.splitting.push(part.splitting);
        measured.quiesce.push(part.quiesce);
        Ok(())
    }
}

/// Opens the file as the audit does one that it has found: small ones are read, into memory that it has for them, large ones mapped.
fn with_file<T>(path: &Path, mut room: &mut [u8], look: impl FnOnce(&[u8]) -> T) -> Result<T> {
    let content = Content::open_found(path, u64::MAX, &mut room).map_err(|note| anyhow!(note.detail))?;
    Ok(look(content.bytes()))
}

fn micros<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let before = cpu::thread();
    std::hint::black_box(work()?);
    Ok((cpu::thread() - before).as_secs_f64() * 1e6)
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a load")]
fn add(phases: &mut Vec<(&'static str, Vec<f64>)>, took: &[(&'static str, u64)]) {
    for (phase, nanos) in took {
        match phases.iter_mut().find(|(known, _)| known == phase) {
            Some((_, all)) => all.push(*nanos as f64),
            None => phases.push((phase, vec![*nanos as f64])),
        }
    }
}

/// What a load and the unload after it ask of their host, in order.
#[derive(Default)]
struct Replay {
    load: Vec<Call>,
    unload: Vec<Call>,
}

enum Call {
    Protect(Vtl, Vec<GpnRange>, MapGpaFlags),
    Quiesce(Vtl, Vec<GpnRange>),
}

/// What the simulated host's part of a load is, µs.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Changing entries of the second-level tables, where a page next to the module keeps the large pages split.
    tables: f64,
    /// The same where there are none but large pages, and the unload, after which it is so again.
    splitting: f64,
    /// Waiting for the simulated processors.
    quiesce: f64,
}

impl Replay {
    fn of(subject: &Subject) -> Result<Self> {
        let mut recorder = None;
        let machine =
            Machine::with_host(subject, |host| Arc::clone(recorder.insert(Arc::new(Recorder { host, calls: Mutex::default() }))))?;
        let recorder = recorder.context("no host")?;
        machine.place()?;
        // without those that made the machine
        recorder.taken();
        let module = machine.attempt(&subject.file).outcome.map_err(|refusal| anyhow!("{}: {refusal}", subject.name))?;
        let load = recorder.taken();
        machine.loader.unload(module.id)?;
        Ok(Self { load, unload: recorder.taken() })
    }

    /// In a machine in which nothing is loaded, and nothing is afterwards.
    fn run(&self, host: &SimHost) -> Result<Part> {
        const TIMES: u32 = 100;
        let each =
            |calls: &dyn Fn() -> Result<()>| -> Result<f64> { Ok(micros(|| (0..TIMES).try_for_each(|_| calls()))? / f64::from(TIMES)) };
        let make = |calls: &[Call], which: fn(&Call) -> bool| calls.iter().filter(|call| which(call)).try_for_each(|call| call.make(host));
        let waits: fn(&Call) -> bool = |call| matches!(call, Call::Quiesce(..));
        let all = each(&|| make(&self.load, |_| true).and_then(|()| make(&self.unload, |_| true)))?;
        let waiting = each(&|| make(&self.load, waits).and_then(|()| make(&self.unload, waits)))?;
        let quiesce = each(&|| make(&self.load, waits))?;
        let neighbour = [GpnRange { start: Gpn(FIRST.0 - 1), pages: 1 }];
        let keep = |flags| {
            let both = [Vtl::Vtl0, Vtl::Vtl1];
            both.into_iter().try_for_each(|vtl| Call::Protect(vtl, neighbour.to_vec(), flags).make(host))
        };
        keep(MapGpaFlags::READABLE)?;
        // tables that are replaced, by large pages within the module, are used again after a wait
        let tables = each(&|| make(&self.load, |_| true))? - quiesce;
        make(&self.unload, |_| true)?;
        keep(Kind::Data.allows(Vtl::Vtl0))?;
        Ok(Part { tables, splitting: all - waiting, quiesce })
    }
}

impl Call {
    fn make(&self, host: &SimHost) -> Result<()> {
        match self {
            Self::Protect(vtl, ranges, flags) => host.protect(*vtl, ranges, *flags).map_err(|partial| partial.status)?,
            Self::Quiesce(vtl, ranges) => host.quiesce(*vtl, ranges)?,
        }
        Ok(())
    }
}

/// Remembers what it passes on to the simulated host.
struct Recorder {
    host: Arc<SimHost>,
    calls: Mutex<Vec<Call>>,
}

impl Recorder {
    fn taken(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls())
    }

    fn calls(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for Recorder {
    fn capabilities(&self) -> Capabilities {
        self.host.capabilities()
    }

    fn frame(&self, gpn: Gpn) -> Option<Frame> {
        self.host.frame(gpn)
    }

    fn aliases(&self, frame: Frame, each: &mut dyn FnMut(Gpn)) {
        self.host.aliases(frame, each);
    }

    fn protect(&self, vtl: Vtl, ranges: &[GpnRange], flags: MapGpaFlags) -> Result<(), Partial> {
        self.calls().push(Call::Protect(vtl, ranges.to_vec(), flags));
        self.host.protect(vtl, ranges, flags)
    }

    fn quiesce(&self, vtl: Vtl, ranges: &[GpnRange]) -> Result<(), HvStatus> {
        self.calls().push(Call::Quiesce(vtl, ranges.to_vec()));
        self.host.quiesce(vtl, ranges)
    }

    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), HvStatus> {
        self.host.read(gpa, buffer)
    }

    fn words(&self, gpn: Gpn) -> Option<&[AtomicU64; 512]> {
        self.host.words(gpn)
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus> {
        self.host.write(gpa, bytes)
    }

    fn now(&self) -> u64 {
        self.host.now()
    }
}

impl Measured {
    /// µs by round: the faster SHA-256 of the file.
    fn fastest_hash(&self) -> &[f64] {
        if median(&self.hash) < median(&self.hash_aws) { &self.hash } else { &self.hash_aws }
    }

    /// µs by round: one SHA-256 of the file, by whichever is faster, and one RSA verification.
    pub fn bound(&self) -> Vec<f64> {
        self.fastest_hash().iter().zip(&self.rsa).map(|(hash, rsa)| hash + rsa).collect()
    }
}

/// Loads and what they consist of, µs.
pub fn table(measured: &[Measured]) -> Table {
    let head = ["load, µs of processor time", "SHA-256", "aws-lc", "RSA", "bound", "p50", "p99", "from file", "again", "tables", "split"];
    let mut table = Table::new(1, head);
    for m in measured {
        let p99 = quantile(&m.loads, 0.99).unwrap_or(f64::NAN);
        let [hash, aws, rsa, bound, load, mapped, again, tables, split] =
            [&m.hash, &m.hash_aws, &m.rsa, &m.bound(), &m.loads, &m.mapped, &m.again, &m.tables, &m.splitting].map(|of| number(median(of)));
        table.push([m.name.clone(), hash, aws, rsa, bound, load, number(p99), mapped, again, tables, split]);
    }
    table
}

/// The phases of loads, µs.
pub fn phase_table(measured: &[Measured]) -> Table {
    const COLUMNS: [&str; 10] =
        ["phase, µs by the clock, p50", "parse", "hash", "signature", "policy", "relocate", "lock", "quiesce", "compare", "grant"];
    let mut table = Table::new(1, COLUMNS);
    for m in measured {
        let of = |phase| m.phases.iter().find(|(known, _)| *known == phase).map_or(f64::NAN, |(_, nanos)| median(nanos) / 1e3);
        let mut row = COLUMNS.map(|phase| number(of(phase)));
        row[0].clone_from(&m.name);
        table.push(row);
    }
    table
}

/// What a row is for one subject, and must be.
type Rule<'r> = &'r dyn Fn(&Measured) -> Option<(Must, Vec<f64>)>;

/// Rows 1 to 4 and 17.
pub fn goals(measured: &[Measured]) -> Vec<Goal> {
    let ratio = |of: &[f64], to: &[f64]| of.iter().zip(to).map(|(of, to)| of / to).collect::<Vec<f64>>();
    let mut goals = Vec::new();
    let mut each = |row, what: &str, of: Rule<'_>| {
        for m in measured {
            goals.extend(of(m).map(|(must, values)| Goal::new(row, format!("{what}: {}", m.name), must, values)));
        }
    };
    each("1", "load / bound", &|m| {
        let must = if m.bytes <= USUAL && m.one_signature { Must::AtMost(1.15) } else { Must::Shown };
        Some((must, ratio(&m.load, &m.bound())))
    });
    each("2", "load from file / bound", &|m| {
        let must = match m.bytes {
            _ if !m.one_signature => Must::Shown,
            len if len <= USUAL => Must::AtMost(1.25),
            len if len < LARGE => Must::AtMost(1.2),
            len if len >= LARGEST => Must::AtMost(1.12),
            _ => Must::Shown,
        };
        Some((must, ratio(&m.mapped, &m.bound())))
    });
    each("3", "p99 / p50 of a load", &|m| Some((Must::AtMost(2.0), vec![quantile(&m.loads, 0.99)? / median(&m.loads)])));
    each("4", "load from file, file known / SHA-256 + file", &|m| {
        let bound: Vec<f64> = m.fastest_hash().iter().zip(&m.open).map(|(hash, open)| hash + open).collect();
        Some((Must::AtMost(1.1), ratio(&m.again, &bound)))
    });
    let percent = |of: &[f64], to: &[f64]| ratio(of, to).into_iter().map(|part| part * 100.0).collect();
    each("17", "second-level tables, % of a load", &|m| Some((Must::AtMost(1.0), percent(&m.tables, &m.load))));
    goals
}
