//! The scan: files in, records out, in parallel and in order.
//!
//! ```text
//! walk ─► units (some files) ─► threads: read, examine, judge ─► records in the order of the walk ─► sinks
//! ```
//!
//! Files are examined in batches, because the engine hashes a batch in interleaved lanes. The threads walk and write too, one at a time: whoever
//! has records while nobody writes. Only as many units are under way as the threads need, so memory does not grow with the corpus.
//! **Invariant:** the records and their order depend on the files and the arguments, never on the number of threads.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashSet},
    io,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Context as _;
use hvci_engine::{
    digest::DigestAlg,
    examine::{Examiner, Input},
    facts::{Facts, FileKind},
    finding::{Code, Note},
    policy::{Judge, Profile},
    signature::{cache::Cache, catalog::CatalogIndex, trust::TrustStore},
    time::UnixTime,
};
use rayon::{ScopeFifo, prelude::*};

use crate::{
    report::{Audited, Summary},
    source::{
        container::{self, Limits, Member},
        content::Content,
        kind::{Kind, sniff},
        walk::{Found, Walk},
    },
};

/// How many files make a batch, and how many bytes: enough neighbours for the digest lanes, and little enough for memory.
const BATCH_FILES: usize = 64;
const BATCH_BYTES: u64 = 12 << 20;
/// Up to this size the largest file of a batch does not count, so that the files after it keep it company in the digest lanes too.
const NOT_COUNTED: u64 = 32 << 20;
/// As few files as a batch is parted into at the end, so that every thread has something to do until then.
const FEW_FILES: usize = 8;

/// Everything that a scan is made with.
#[derive(Debug)]
pub struct Context {
    /// Whose rules; `None` for those of each file's own loader.
    pub profile: Option<&'static Profile>,
    /// Who is trusted for what.
    pub trust: TrustStore,
    /// Catalogs that may speak for files.
    pub catalogs: CatalogIndex,
    /// The time the verdicts are for.
    pub time: UnixTime,
    /// What was learned from earlier files.
    pub cache: Cache,
    /// Digests to calculate besides the needed ones.
    pub digests: Vec<DigestAlg>,
    /// Largest file or member that is looked at, in bytes.
    pub max_size: u64,
    /// Number of threads, at least one.
    pub jobs: usize,
    /// A folder whose name is left out of paths, because it means nothing to anybody.
    pub base: Option<String>,
    /// Paths that were named one by one: these are reported even if they are no images.
    pub named: HashSet<PathBuf>,
}

/// Watches a scan as it goes on, from one thread at a time.
pub trait Watcher: Send {
    /// One more record, or a failure to write it.
    ///
    /// # Errors
    /// Whatever ends the scan.
    fn record(&mut self, audited: &Audited) -> io::Result<()>;

    /// So many more files of so many bytes were dealt with, images or not.
    fn advance(&mut self, files: u64, bytes: u64);
}

/// Scans what `walk` finds.
///
/// # Errors
/// The watcher's.
pub fn scan(walk: Walk, context: &Context, watcher: &mut dyn Watcher) -> anyhow::Result<Summary> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(context.jobs).thread_name(|i| format!("scan-{i}")).build()?;
    let mut desk = Desk { walk, early: BTreeMap::new(), begun: 0, next: (0, 0), summary: Summary::default(), watcher, result: Ok(()) };
    let run = Run { context, waiting: AtomicUsize::new(0), sent: Mutex::default() };
    pool.scope_fifo(|scope| {
        run.walk_on(&mut desk, scope);
        run.sent().desk = Some(desk);
        // by now they may all be done
        run.tell(scope, None);
    });
    let desk = run.sent().desk.take().context("nobody has the desk")?;
    desk.result?;
    Ok(desk.summary)
}

/// A scan that goes on.
struct Run<'s> {
    context: &'s Context,
    /// Units that no thread has taken yet.
    waiting: AtomicUsize,
    sent: Mutex<Sent<'s>>,
}

/// Pieces that were not told yet, and the desk, unless a thread is at it.
#[derive(Default)]
struct Sent<'s> {
    pieces: Vec<Piece>,
    desk: Option<Desk<'s>>,
}

/// What one thread at a time is at: it walks, and tells the watcher.
struct Desk<'s> {
    walk: Walk,
    /// Pieces that came before one that is to be told first.
    early: BTreeMap<(u64, u64), Piece>,
    /// How many units were begun.
    begun: u64,
    /// The unit and the piece of it that is told next.
    next: (u64, u64),
    summary: Summary,
    watcher: &'s mut dyn Watcher,
    result: io::Result<()>,
}

impl<'s> Run<'s> {
    fn sent(&self) -> MutexGuard<'_, Sent<'s>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins as many units as the threads need.
    fn walk_on<'r>(&'r self, desk: &mut Desk<'s>, scope: &ScopeFifo<'r>) {
        // a unit that waits is a list of paths, and lets nobody starve while a thread writes
        let under_way = u64::try_from(self.context.jobs.saturating_mul(4)).unwrap_or(u64::MAX);
        while desk.result.is_ok() && desk.begun - desk.next.0 < under_way {
            let Some(unit) = unit_of(&mut desk.walk) else { return };
            self.spawn(scope, (desk.begun, 0), unit);
            desk.begun += 1;
        }
    }

    /// Has a thread of the pool deal with `files`, and another one with what is more than a batch of them.
    fn spawn<'r>(&'r self, scope: &ScopeFifo<'r>, (unit, part): (u64, u64), files: Unit) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        scope.spawn_fifo(move |scope| {
            // nothing waits behind it: another thread may have nothing to do
            let last = self.waiting.fetch_sub(1, Ordering::Relaxed) == 1;
            let enough = if last && self.context.jobs > 1 { files.len().div_ceil(2).max(FEW_FILES) } else { BATCH_FILES };
            let mut deliver = |piece| self.tell(scope, Some(piece));
            Worker { context: self.context, deliver: &mut deliver, unit, part, enough }
                .run(files, &mut |rest, part| self.spawn(scope, (unit, part), rest));
        });
    }

    /// Tells of what was sent, unless another thread is at it: that one tells of this too.
    fn tell<'r>(&'r self, scope: &ScopeFifo<'r>, piece: Option<Piece>) {
        let mut sent = self.sent();
        sent.pieces.extend(piece);
        let Some(mut desk) = sent.desk.take() else { return };
        loop {
            let pieces = std::mem::take(&mut sent.pieces);
            if pieces.is_empty() {
                sent.desk = Some(desk);
                return;
            }
            drop(sent);
            pieces.into_iter().for_each(|piece| desk.take(piece));
            self.walk_on(&mut desk, scope);
            sent = self.sent();
        }
    }
}

impl Desk<'_> {
    fn take(&mut self, piece: Piece) {
        self.early.insert((piece.unit, piece.part), piece);
        while let Some(piece) = self.early.remove(&self.next) {
            self.next = if piece.last { (self.next.0 + 1, 0) } else { (self.next.0, self.next.1 + 1) };
            if self.result.is_ok() {
                self.result = piece.tell(&mut self.summary, self.watcher);
            }
        }
    }
}

/// Files that are dealt with together, if they are not too large for that.
type Unit = Vec<Found>;

/// The next unit of `walk`; `None` at its end.
fn unit_of(walk: &mut Walk) -> Option<Unit> {
    let unit: Unit = walk.take(BATCH_FILES).collect();
    (!unit.is_empty()).then_some(unit)
}

/// Part of a unit's records. A unit has several where it is large, or a package in it is.
struct Piece {
    unit: u64,
    part: u64,
    last: bool,
    records: Vec<Audited>,
    skipped: u64,
    files: u64,
    bytes: u64,
}

impl Piece {
    fn tell(self, summary: &mut Summary, watcher: &mut dyn Watcher) -> io::Result<()> {
        for audited in &self.records {
            summary.add(audited);
            watcher.record(audited)?;
        }
        summary.skipped += self.skipped;
        watcher.advance(self.files, self.bytes);
        Ok(())
    }
}

thread_local! {
    /// Where the files of a unit are read to, kept for the next unit: memory that is given back must be cleared when it is got again.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// For the files of most units that are read and not mapped.
pub const ROOM_BYTES: usize = 4 << 20;

struct Worker<'c, 'd> {
    context: &'c Context,
    /// Takes the pieces as they come.
    deliver: &'d mut dyn FnMut(Piece),
    unit: u64,
    part: u64,
    /// How many files make a batch.
    enough: usize,
}

/// A file or member that waits for the others of its batch.
enum Waiting<'b> {
    File { path: String, content: Content<'b>, named: bool },
    Member { path: String, bytes: Vec<u8>, notes: Vec<Note> },
    Fault { path: String, size: u64, notes: Vec<Note> },
}

impl Waiting<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::File { content, .. } => content.bytes(),
            Self::Member { bytes, .. } => bytes,
            Self::Fault { .. } => &[],
        }
    }
}

impl Worker<'_, '_> {
    /// Deals with files of `unit` until they are enough for a batch. Those that are left go to `hand_over`, with the number of their first
    /// piece.
    fn run(mut self, unit: Unit, hand_over: &mut dyn FnMut(Unit, u64)) {
        // a thread that helps out with another unit meanwhile finds none, and makes its own
        let mut room = ROOM.take();
        if room.is_empty() {
            // a page of it costs nothing before it is used
            room = vec![0; ROOM_BYTES];
        }
        let mut free = room.as_mut_slice();
        let mut batch = Vec::with_capacity(unit.len());
        let (mut skipped, mut files, mut bytes) = (0_u64, 0_u64, 0_u64);
        let (mut read, mut largest, mut taken) = (0_u64, 0_u64, 0_usize);
        let mut unit = unit.into_iter();
        let mut last = true;
        while let Some(found) = unit.next() {
            files += 1;
            taken += 1;
            let Found { path, display, result } = found;
            let display = match self.context.base.as_deref().and_then(|base| display.strip_prefix(base)) {
                Some(rest) => rest.trim_start_matches('/').to_owned(),
                None => display,
            };
            let opened = result.and_then(|()| Content::open_found(&path, self.context.max_size, &mut free));
            let content = match opened {
                Ok(content) => content,
                Err(note) => {
                    batch.push(Waiting::Fault { path: display, size: 0, notes: vec![note] });
                    continue;
                }
            };
            bytes += content.bytes().len() as u64;
            read += content.bytes().len() as u64;
            largest = largest.max(content.bytes().len() as u64);
            let named = self.context.named.contains(&path);
            match sniff(content.bytes(), &display) {
                Kind::Package(format) => {
                    // what came before it in the walk must be written before its members
                    self.flush(
                        std::mem::take(&mut batch),
                        (std::mem::take(&mut skipped), std::mem::take(&mut files), std::mem::take(&mut bytes)),
                        false,
                    );
                    self.package(&content, &display, format);
                }
                Kind::Other if !named && self.context.catalogs.is_empty() => skipped += 1,
                _ => batch.push(Waiting::File { path: display, content, named }),
            }
            if (read - largest.min(NOT_COUNTED) >= BATCH_BYTES || taken >= self.enough) && !unit.as_slice().is_empty() {
                hand_over(unit.collect(), self.part + 1);
                last = false;
                break;
            }
        }
        self.flush(batch, (skipped, files, bytes), last);
        ROOM.set(room);
    }

    /// Members are judged a few batches at a time on every thread, while the package is read on by this one alone.
    fn package(&mut self, content: &Content<'_>, name: &str, format: crate::source::kind::Format) {
        let flat_too = !self.context.catalogs.is_empty();
        let keep = move |_: &str, kind: Kind| kind.is_image() || (flat_too && kind == Kind::Other);
        let mut batches: Vec<Vec<Waiting<'_>>> = vec![Vec::new()];
        let (mut bytes, mut skipped) = (0_u64, 0_u64);
        let limits = Limits::new(self.context.max_size);
        let _ = container::visit(content.bytes(), name, format, limits, &keep, &mut |member| {
            let Member { path, kind, bytes: body, notes } = member;
            if body.is_empty() && notes.is_empty() {
                skipped += u64::from(kind == Kind::Other);
                return ControlFlow::Continue(());
            }
            bytes += body.len() as u64;
            let waiting =
                if body.is_empty() { Waiting::Fault { path, size: 0, notes } } else { Waiting::Member { path, bytes: body, notes } };
            let full = batches
                .last()
                .is_none_or(|b| b.len() >= BATCH_FILES || b.iter().map(|w| w.bytes().len() as u64).sum::<u64>() > BATCH_BYTES);
            if full {
                if batches.len() >= self.context.jobs {
                    self.flush_batches(std::mem::take(&mut batches), (std::mem::take(&mut skipped), 0, 0));
                }
                batches.push(Vec::new());
            }
            if let Some(batch) = batches.last_mut() {
                batch.push(waiting);
            }
            ControlFlow::Continue(())
        });
        if let Some(note) = content.changed() {
            batches.push(vec![Waiting::Fault { path: name.to_owned(), size: bytes, notes: vec![note] }]);
        }
        self.flush_batches(batches, (skipped, 0, 0));
    }

    fn flush_batches(&mut self, batches: Vec<Vec<Waiting<'_>>>, counts: (u64, u64, u64)) {
        let context = self.context;
        let records: Vec<(Vec<Audited>, u64)> = batches.into_par_iter().map(|batch| audit(batch, context)).collect();
        let skipped = records.iter().map(|(_, s)| s).sum::<u64>() + counts.0;
        self.send(records.into_iter().flat_map(|(r, _)| r).collect(), (skipped, counts.1, counts.2), false);
    }

    fn flush(&mut self, batch: Vec<Waiting<'_>>, counts: (u64, u64, u64), last: bool) {
        let (records, skipped) = audit(batch, self.context);
        self.send(records, (counts.0 + skipped, counts.1, counts.2), last);
    }

    fn send(&mut self, records: Vec<Audited>, (skipped, files, bytes): (u64, u64, u64), last: bool) {
        let piece = Piece { unit: self.unit, part: self.part, last, records, skipped, files, bytes };
        self.part += 1;
        (self.deliver)(piece);
    }
}

/// Examines and judges a batch. Returns the records, and how many of the batch turned out to be no images.
fn audit(batch: Vec<Waiting<'_>>, context: &Context) -> (Vec<Audited>, u64) {
    let examiner = Examiner { cache: &context.cache, catalogs: &context.catalogs, digests: &context.digests };
    let cap = usize::try_from(context.max_size).unwrap_or(usize::MAX);
    let examine = |waiting: &[&Waiting<'_>]| {
        let inputs: Vec<Input<'_>> = waiting.iter().map(|w| Input::new(w.bytes(), cap)).collect();
        examiner.examine_all(&inputs)
    };
    let all: Vec<&Waiting<'_>> = batch.iter().filter(|w| !matches!(w, Waiting::Fault { .. })).collect();
    // a fault of ours must not cost the other files their verdicts
    let facts = catch_unwind(AssertUnwindSafe(|| examine(&all))).unwrap_or_else(|_| {
        all.iter()
            .map(|one| {
                catch_unwind(AssertUnwindSafe(|| examine(&[one]))).ok().and_then(|mut f| f.pop()).unwrap_or_else(|| {
                    let mut facts = Facts::new(one.bytes().len(), FileKind::Flat);
                    facts.notes.push(Note::new(Code::InputInternal, ""));
                    facts
                })
            })
            .collect()
    });
    let mut facts = facts.into_iter();
    let judge = Judge { trust: &context.trust, time: context.time, cache: &context.cache };
    let (mut records, mut skipped) = (Vec::with_capacity(batch.len()), 0);
    for waiting in batch {
        let (path, mut facts, notes, named) = match waiting {
            Waiting::Fault { path, size, notes } => {
                let mut facts = Facts::new(0, FileKind::Flat);
                facts.size = size;
                (path, facts, notes, true)
            }
            Waiting::Member { path, notes, .. } => (path, facts.next().unwrap_or_else(|| Facts::new(0, FileKind::Flat)), notes, false),
            Waiting::File { path, content, named } => {
                let notes = content.changed().into_iter().collect();
                (path, facts.next().unwrap_or_else(|| Facts::new(0, FileKind::Flat)), notes, named)
            }
        };
        facts.notes.extend(notes);
        if !named && (is_beside_the_point(&facts, &path) || is_for_another(&facts, context.profile)) {
            skipped += 1;
            continue;
        }
        let verdict = judge.judge(&facts, context.profile);
        records.push(Audited { path, facts, verdict });
    }
    (records, skipped)
}

/// A file that the chosen profile does not judge, such as a library beside the drivers, unless something is wrong with it as a file.
pub fn is_for_another(facts: &Facts, profile: Option<&Profile>) -> bool {
    let whole = !facts.notes.iter().any(|n| n.code.id().starts_with("HVCI-INP"));
    whole && profile.is_some_and(|p| !p.kinds.contains(&facts.kind))
}

/// Programs and libraries that a walk comes across: ELF files that are no modules, PKCS#7 that is no catalog, flat files that no catalog lists.
fn is_beside_the_point(facts: &Facts, path: &str) -> bool {
    let harmless = |n: &Note| matches!(n.code, Code::InputNotImage | Code::ImageUnsupported);
    let other = match facts.kind {
        FileKind::ElfOther => !Path::new(path).extension().is_some_and(|e| e.eq_ignore_ascii_case("ko")),
        FileKind::Flat => true,
        _ => false,
    };
    other && facts.signatures.is_empty() && facts.notes.iter().all(harmless)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::source::walk::walk;

    /// What was told, and after how many records the output is full.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Told {
        paths: Vec<String>,
        files: u64,
        bytes: u64,
        room: Option<usize>,
    }

    impl Watcher for Told {
        fn record(&mut self, audited: &Audited) -> io::Result<()> {
            if self.room == Some(self.paths.len()) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.paths.push(audited.path.clone());
            Ok(())
        }

        fn advance(&mut self, files: u64, bytes: u64) {
            self.files += files;
            self.bytes += bytes;
        }
    }

    fn context(jobs: usize) -> Context {
        Context {
            profile: None,
            trust: TrustStore::empty(),
            catalogs: CatalogIndex::default(),
            time: UnixTime(0),
            cache: Cache::default(),
            digests: Vec::new(),
            max_size: 1 << 30,
            jobs,
            base: None,
            named: HashSet::new(),
        }
    }

    #[test]
    fn a_unit_that_is_too_large_is_parted_and_told_in_order_by_any_number_of_threads() {
        const LEN: u64 = 5 << 20;
        let dir = tempfile::tempdir().unwrap();
        for n in 0..70_u64 {
            let file = dir.path().join(format!("{n:02}.ko"));
            std::fs::write(&file, b"\x7fELF").unwrap();
            // eleven batches' worth of holes, three of them in the last unit
            if n % 8 < 3 {
                File::options().write(true).open(&file).unwrap().set_len(LEN).unwrap();
            }
        }
        for jobs in [1, 2, 5] {
            let mut told = Told::default();
            let summary = scan(walk([dir.path().to_owned()]), &context(jobs), &mut told).unwrap();
            assert!(told.paths.is_sorted() && told.paths.len() == 70, "{told:?}");
            assert_eq!((summary.files, told.files, told.bytes), (70, 70, 27 * LEN + 43 * 4));

            let mut full = Told { room: Some(40), ..Told::default() };
            assert!(scan(walk([dir.path().to_owned()]), &context(jobs), &mut full).is_err());
            assert_eq!(full.paths, told.paths[..40]);
        }
    }
}
