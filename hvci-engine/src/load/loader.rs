//! The load transaction: a signed file and pages of a guest in, pages that execute out, or everything as it was.
//!
//! ```text
//! copy ─► parse ─► relocate ─► lock ─► quiesce ─┬─► hash, signatures ─► policy ─┬─► grant ─► event
//!                                               └─► compare ────────────────────┘
//! ```
//!
//! - The file is copied once to where no guest writes, after its length was checked. Everything that is known of it comes of the copy.
//! - What the pages must hold is computed from the copy. They are locked through every alias and quiet before a byte of them is read, and every
//!   byte is compared, while the copy is hashed.
//! - Whatever else is wrong, a file that is not accepted is refused for that. Whatever the guest says it has checked already, nobody asks.
//! - A module has the addresses that it was loaded for to itself from the first step on; of two loads that race for an address or a page one
//!   wins, and the other is told [`HvStatus::OBJECT_IN_USE`].
//!
//! **Trusts** the host, the anchors and the table of exports that it was made with. **Refuses** whatever is not accepted, unknown included.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, PoisonError},
};

use super::{
    Expected, MAX_IMAGE, Part, Placement, Refusal, Symbols,
    clock::Clock,
    comparison::Comparison,
    elf, import_site,
    known::KnownFiles,
    linker::{Linker, exporters},
    module::{Life, Module, Sealed},
    paging::Out,
    patch::{Site, sites},
    pe,
    region::Region,
    verification::{Examined, Verification, Verifier},
};
use crate::{
    addr::{Gpn, GpnRange, Gva, PAGE_SIZE, Vtl},
    bytes::{index, widen},
    event::What,
    examine::{Examiner, Input, Parsed},
    finding::{Code, Note},
    frames::Kind,
    policy::{Judge, Profile, Verdict},
    signature::{
        block_list::BlockList,
        cache::Cache,
        catalog::CatalogIndex,
        trust::{Purposes, TrustStore},
    },
    status::HvStatus,
    sync::{Mutex, MutexGuard, RwLock},
    time::UnixTime,
    vsm::partition::{OWNER_VAULT, Partition},
};

/// Most modules at a time.
pub const MAX_MODULES: usize = 8192;

/// Where a guest page is asked for that holds a page of a module's code: it is to come when it is first executed ([`Loader::on_memory`]).
pub const NOT_THERE: Gpn = Gpn(u64::MAX);

/// The signed file.
#[derive(Clone, Copy, Debug)]
pub enum File<'a> {
    /// Bytes that no guest can write.
    Private(&'a [u8]),
    /// In memory of the guest.
    Guest {
        /// Its pages, in order.
        pages: &'a [Gpn],
        /// Its length in bytes.
        len: u64,
    },
}

/// Where the guest says that it put the module.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// A driver's image base; of a Linux module the first of its pages, with one class of sections behind the other.
    Base(Gva),
    /// Each section of a Linux module.
    Sections(&'a Placement),
}

/// What a guest asks for.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "a closure is part of it")]
pub struct Request<'a> {
    /// What the guest calls it.
    pub name: &'a str,
    /// The file.
    pub file: File<'a>,
    /// Where it is.
    pub place: Place<'a>,
    /// The guest page that a page of the module is in, or [`NOT_THERE`]. Decides nothing but which pages are looked at.
    pub pages: &'a dyn Fn(Gva) -> Option<Gpn>,
    /// The time now.
    pub time: UnixTime,
    /// `HV_VP_INDEX` of the processor that asks.
    pub vp: Option<u32>,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What the profile says of the file; `None` if it was not got that far.
    pub verdict: Option<Verdict>,
    /// Nanoseconds of each phase, in order; "unpack" is that of a compressed module, "compare" what was left to compare when the digest was there.
    pub phases: Vec<(&'static str, u64)>,
    /// The module that is loaded now, or why none is.
    pub outcome: Result<Arc<Module>, Refusal>,
}

/// How far a request has come.
struct Progress<'h> {
    clock: Clock<'h>,
    phases: Vec<(&'static str, u64)>,
    examined: Option<Examined>,
    /// Of the module, in order.
    pages: Vec<Option<Gpn>>,
}

impl Progress<'_> {
    /// Up to here it was this phase.
    fn over(&mut self, phase: &'static str) {
        self.phases.push((phase, self.clock.lap()));
    }
}

/// A module as it is laid out.
struct Laid<'a> {
    expected: Expected<'a>,
    /// the modules whose addresses are in it
    uses: BTreeSet<u32>,
    sites: BTreeMap<Gva, Site>,
}

/// Loads modules into a partition, and knows those that are.
pub struct Loader {
    pub(super) partition: Arc<Partition>,
    /// A load goes by what there is when it begins; the lock is not held while one verifies.
    trust: RwLock<Arc<TrustStore>>,
    catalogs: CatalogIndex,
    profile: Option<&'static Profile>,
    symbols: Box<dyn Symbols + Send + Sync>,
    cache: Cache,
    known: KnownFiles,
    modules: Mutex<Modules>,
    regions: Mutex<BTreeMap<u32, Region>>,
}

#[derive(Default)]
pub(super) struct Modules {
    pub(super) of: BTreeMap<u32, Arc<Module>>,
    pub(super) last: u32,
    /// Pages of code that are out, by their addresses.
    pub(super) out: BTreeMap<Gva, Out>,
}

impl Modules {
    /// An owner of frames: it names one module or region as long as the machine runs.
    fn next_owner(&mut self) -> Result<u32, HvStatus> {
        self.last = self.last.checked_add(1).filter(|id| *id < OWNER_VAULT).ok_or(HvStatus::INSUFFICIENT_MEMORY)?;
        Ok(self.last)
    }

    pub(super) fn remove(&mut self, id: u32) {
        self.of.remove(&id);
        self.out.retain(|_, out| out.module != id);
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("modules", &self.modules().of.len()).finish_non_exhaustive()
    }
}

impl Loader {
    /// Loads into `partition` what `profile` accepts; `None` for `hvci` where it is a driver and `linux-module` where it is a module.
    /// `symbols` is what the kernel exports.
    pub fn new(
        partition: Arc<Partition>,
        trust: TrustStore,
        catalogs: CatalogIndex,
        profile: Option<&'static Profile>,
        symbols: Box<dyn Symbols + Send + Sync>,
    ) -> Self {
        Self {
            partition,
            trust: RwLock::new(Arc::new(trust)),
            catalogs,
            profile,
            symbols,
            cache: Cache::with_signatures(),
            known: KnownFiles::default(),
            modules: Mutex::default(),
            regions: Mutex::default(),
        }
    }

    /// Forgets which files there were, and which signatures verified. For measuring loads of files that were not loaded before; what is
    /// remembered is always true.
    #[doc(hidden)]
    pub fn forget_files(&self) {
        self.known.forget();
        self.cache.forget_signatures();
    }

    /// The modules that are loaded, oldest first.
    pub fn modules_loaded(&self) -> Vec<Arc<Module>> {
        self.modules().of.values().filter(|m| m.life == Life::Live).cloned().collect()
    }

    /// Whose byte stands at an address that a module executes or keeps constant (invariant I9).
    pub fn provenance(&self, at: Gva) -> Option<(Arc<Module>, Part, u64)> {
        self.modules().of.values().filter(|m| m.life != Life::Loading).find_map(|module| {
            let (part, offset) = module.part_at(at)?;
            Some((Arc::clone(module), part.clone(), offset))
        })
    }

    /// The module whose verified code is in a guest page, by whoever owns the frame, whatever the guest's page tables say. A VMM finds by it
    /// who makes a VTL call.
    pub fn module_at(&self, gpn: Gpn) -> Option<Arc<Module>> {
        let state = self.partition.state(gpn).filter(|state| state.kind == Kind::Code)?;
        self.modules().of.get(&state.owner).cloned()
    }

    /// The guest page that an address of a module's code, constants or protected data is in; `None` for any other address, and for a page that is
    /// [out](Self::page_out). A VMM whose processor takes translations of some addresses from the hypervisor (Intel HLAT) gives it these: then the
    /// guest's page tables lead them nowhere else (HVPT).
    pub fn translation(&self, at: Gva) -> Option<Gpn> {
        let modules = self.modules();
        let sealed = |module: &Module| module.segments.iter().any(|s| s.kind.is_owned() && s.contains(at));
        modules.of.values().find(|module| module.life != Life::Loading && sealed(module))?.gpn_of(at)
    }

    /// Loads a module, or leaves everything as it was.
    pub fn load(&self, request: &Request<'_>) -> Attempt {
        let clock = Clock::of(self.partition.host());
        let mut progress = Progress { clock, phases: Vec::new(), examined: None, pages: Vec::new() };
        let outcome = self.try_load(request, &mut progress);
        let Progress { mut phases, examined, pages, .. } = progress;
        if let (Err(_), Some(examined)) = (&outcome, &examined) {
            phases.extend(examined.took.phases());
        }
        let (verdict, digest) = examined.map(|examined| (examined.verdict, examined.digest)).unzip();
        let (status, code) = match &outcome {
            Ok(_) => (HvStatus::SUCCESS, None),
            Err(refusal) => (refusal.status, Some(refusal.note.code)),
        };
        let what = What::Load {
            name: request.name.to_owned(),
            pages: GpnRange::of_pages(pages.into_iter().flatten()),
            digest: digest.flatten(),
            phases: phases.iter().map(|(phase, time)| (Cow::Borrowed(*phase), *time)).collect(),
        };
        self.partition.record(request.vp, Vtl::Vtl0, what, status, code);
        Attempt { verdict, phases, outcome }
    }

    fn try_load(&self, request: &Request<'_>, progress: &mut Progress<'_>) -> Result<Arc<Module>, Refusal> {
        let copy;
        let bytes = match request.file {
            File::Private(bytes) => bytes,
            File::Guest { pages, len } => {
                copy = self.copy(pages, len)?;
                progress.over("copy");
                &copy
            }
        };
        let input = Input::new(bytes, index(u32::try_from(MAX_IMAGE).unwrap_or(u32::MAX)));
        if !input.is_plain() {
            progress.over("unpack");
        }
        let trust = Arc::clone(&self.trust.read().unwrap_or_else(PoisonError::into_inner));
        let digests = trust.blocked().algorithms();
        let verifier = Verifier {
            known: &self.known,
            examiner: Examiner { cache: &self.cache, catalogs: &self.catalogs, digests: &digests },
            judge: Judge { trust: &trust, time: request.time, cache: &self.cache },
            profile: self.profile,
            host: self.partition.host(),
        };
        let verification = verifier.begin(&input);
        progress.phases.push(("parse", progress.clock.lap().saturating_sub(verification.took.known)));
        let laid = self.expected(&verification.parsed, verification.notes(), request.place);
        progress.over("relocate");

        let mut verification = Some(verification);
        let outcome = laid.and_then(|laid| self.seal(request, laid, &mut verification, progress));
        // whatever else is wrong with it, a file that is not accepted is refused for that
        if let Some(verification) = verification {
            progress.examined.insert(verification.run(|| {})).accepted()?;
        }
        outcome
    }

    /// Seals the module where it was laid out, if its file is accepted: nothing of it is granted before. The verification is taken when it runs.
    fn seal(
        &self,
        request: &Request<'_>,
        laid: Laid<'_>,
        verification: &mut Option<Verification<'_, '_>>,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Module>, Refusal> {
        let Laid { mut expected, uses, sites } = laid;
        let count = expected.segments.iter().map(|s| s.bytes.count()).sum();
        let mut changes = Vec::with_capacity(count);
        let mut absent = Vec::new();
        progress.pages.reserve_exact(count);
        for segment in &expected.segments {
            for (at, bytes) in segment.pages() {
                match (request.pages)(at) {
                    Some(NOT_THERE) if segment.kind == Kind::Code => {
                        absent.push((at, bytes));
                        progress.pages.push(None);
                    }
                    Some(gpn) if gpn != NOT_THERE => {
                        changes.push((gpn, segment.kind));
                        progress.pages.push(Some(gpn));
                    }
                    _ => return Err(Refusal::placement(format!("no guest page is said to hold {at}"))),
                }
            }
        }
        let absent = Out::of(&absent);
        let module = self.reserve(request.name, &mut expected, (uses, sites), &progress.pages)?;
        let mut refusal = None;
        let mut rewritten = BTreeSet::new();
        let inspect = || {
            let mut comparison = Comparison::new(&expected, &progress.pages, &module.sites, self.partition.host());
            // what stands there is locked and quiet: it is compared while the digest is calculated
            let examined = progress.examined.insert(verification.take().ok_or(HvStatus::OPERATION_DENIED)?.run(|| comparison.step()));
            let whole = examined.accepted().and_then(|()| Ok(comparison.finish()?));
            rewritten = whole.map_err(|why| refusal.insert(why).status)?;
            Ok(())
        };
        let claimed = progress.clock.lap();
        let transformed = self.partition.transform_timed(module.id, &changes, inspect);
        let sealed = transformed.map_err(|status| refusal.unwrap_or_else(|| Refusal::claim(status))).and_then(|took| {
            // where no page of it is there yet, nothing was to inspect
            if let Some(verification) = verification.take() {
                progress.examined.insert(verification.run(|| {})).accepted()?;
            }
            Ok(took)
        });
        let id = module.id;
        match sealed {
            Ok(took) => {
                let examined = progress.examined.as_ref();
                let digest = examined.and_then(|examined| examined.digest);
                let verified = examined.map(|examined| examined.took).unwrap_or_default();
                self.modules().out.extend(absent.into_iter().map(|(at, halves)| (at, Out { module: id, halves })));
                // nobody else has it: it need not be copied to be changed
                drop(module);
                let update = |module: &mut Module| {
                    module.digest = digest;
                    module.sites.iter_mut().filter(|(at, _)| rewritten.contains(at)).for_each(|(_, site)| site.stands_rewritten());
                };
                let settled = self.settle(id, update).map_err(Refusal::claim);
                let before = [took.lock, took.quiesce, took.inspect.max(verified.run())].into_iter().fold(0, u64::saturating_add);
                let granted = progress.clock.lap().saturating_sub(before);
                progress.phases.extend([("lock", claimed.saturating_add(took.lock)), ("quiesce", took.quiesce)]);
                progress.phases.extend(verified.phases());
                progress.phases.extend([("compare", took.inspect.saturating_sub(verified.run())), ("grant", granted)]);
                settled
            }
            Err(refusal) => {
                self.modules().of.remove(&id);
                Err(refusal)
            }
        }
    }

    /// Changes frames of `owner` whose bytes nobody has to look at, and records it.
    pub(super) fn change(&self, owner: u32, transition: String, changes: &[(Gpn, Kind)]) -> Result<(), HvStatus> {
        let result = self.partition.transform(owner, changes, || Err(HvStatus::OPERATION_DENIED));
        let what = What::Change { transition, pages: GpnRange::of_pages(changes.iter().map(|(gpn, _)| *gpn)) };
        let (status, code) = result.err().map_or((HvStatus::SUCCESS, None), |status| (status, Some(Code::MemProtection)));
        self.partition.record(None, Vtl::Vtl0, what, status, code);
        result
    }

    /// Takes a module for a change: nobody else changes it until it is put back.
    pub(super) fn take(&self, id: u32) -> Result<Arc<Module>, HvStatus> {
        let mut modules = self.modules();
        let module = modules.of.get_mut(&id).ok_or(HvStatus::NOT_FOUND)?;
        if module.life != Life::Live {
            return Err(HvStatus::OBJECT_IN_USE);
        }
        Arc::make_mut(module).life = Life::Changing;
        Ok(Arc::clone(module))
    }

    /// Gives a module that is being loaded or [taken](Self::take) back, as `update` leaves it.
    pub(super) fn settle(&self, id: u32, update: impl FnOnce(&mut Module)) -> Result<Arc<Module>, HvStatus> {
        let mut modules = self.modules();
        let Modules { of, out, .. } = &mut *modules;
        let settled = of.get_mut(&id).ok_or(HvStatus::NOT_FOUND)?;
        let segments = settled.segments.len();
        let module = Arc::make_mut(settled);
        module.life = Life::Live;
        update(module);
        if module.segments.len() < segments {
            // its initialisation is over: what is gone does not come back
            out.retain(|at, out| out.module != id || module.segments.iter().any(|s| s.contains(*at)));
        }
        Ok(Arc::clone(settled))
    }

    /// Has the addresses of a module belong to it, and what it imports from stay. Takes the names of the segments and of their parts.
    fn reserve(
        &self,
        name: &str,
        expected: &mut Expected<'_>,
        (uses, sites): (BTreeSet<u32>, BTreeMap<Gva, Site>),
        pages: &[Option<Gpn>],
    ) -> Result<Arc<Module>, Refusal> {
        let mut pages = pages.iter().copied();
        let segments: Vec<Sealed> = expected
            .segments
            .iter_mut()
            .map(|s| Sealed {
                name: core::mem::take(&mut s.name),
                start: s.start,
                kind: s.kind,
                discardable: s.discardable,
                pages: pages.by_ref().take(s.bytes.count()).collect(),
                parts: core::mem::take(&mut s.parts),
            })
            .collect();
        let mut modules = self.modules();
        if modules.of.len() >= MAX_MODULES {
            return Err(Refusal::claim(HvStatus::INSUFFICIENT_MEMORY));
        }
        if modules.of.values().any(|other| other.overlaps(&segments)) {
            return Err(Refusal::claim(HvStatus::OBJECT_IN_USE));
        }
        // unloaded meanwhile, or about to be
        if !uses.iter().all(|id| modules.of.get(id).is_some_and(|used| used.life == Life::Live)) {
            return Err(Refusal::claim(HvStatus::OBJECT_IN_USE));
        }
        let id = modules.next_owner().map_err(Refusal::claim)?;
        let (entry, exports, life) = (expected.entry, Arc::clone(&expected.exports), Life::Loading);
        let module = Arc::new(Module { id, name: name.to_owned(), digest: None, entry, segments, exports, uses, sites, life });
        modules.of.insert(id, Arc::clone(&module));
        Ok(module)
    }

    /// What must stand in memory, and what comes of it.
    fn expected<'a>(&self, parsed: &Parsed<'a>, notes: &[Note], place: Place<'_>) -> Result<Laid<'a>, Refusal> {
        let loaded = || exporters(self.modules().of.values());
        let linker = Linker::new(&*self.symbols, &loaded);
        let expected = match (parsed, place) {
            (Parsed::Pe(image), Place::Base(base)) => pe::examined(&image.pe, &image.imports, notes, base, &linker),
            (Parsed::Pe(_), Place::Sections(_)) => Err(Refusal::placement("a driver has one base, not a place for each section")),
            (Parsed::Elf(module), Place::Base(base)) => elf::examined(module, notes, &Placement::contiguous(module, base)?, &linker),
            (Parsed::Elf(module), Place::Sections(placement)) => elf::examined(module, notes, placement, &linker),
            (Parsed::No(_), _) => Err(Refusal::unsupported("no driver and no module")),
        }?;
        let sites = match (parsed, place) {
            (Parsed::Pe(image), Place::Base(base)) => import_site::sites(&image.pe, &image.imports, base, &expected.segments),
            _ => sites(&expected),
        };
        Ok(Laid { expected, uses: linker.into_used(), sites })
    }

    /// The file, out of the guest's reach. Its length is checked before anything is taken for it.
    fn copy(&self, pages: &[Gpn], len: u64) -> Result<Vec<u8>, Refusal> {
        if len > MAX_IMAGE {
            return Err(Refusal::too_large(format!("a file of {len} bytes")));
        }
        if widen(pages.len()) != len.div_ceil(PAGE_SIZE) {
            return Err(Refusal::placement(format!("{} pages for a file of {len} bytes", pages.len())));
        }
        let mut bytes = vec![0; index(u32::try_from(len).unwrap_or(u32::MAX))];
        for (gpn, page) in pages.iter().zip(bytes.chunks_mut(index(u32::try_from(PAGE_SIZE).unwrap_or(0)))) {
            let gpa = gpn.gpa().ok_or_else(|| Refusal::claim(HvStatus::INVALID_PARAMETER))?;
            self.partition.read_vtl0(gpa, page).map_err(Refusal::claim)?;
        }
        Ok(bytes)
    }

    /// Has modules that the key of this certificate signed be accepted, until the boot is over.
    ///
    /// # Errors
    /// [`HvStatus::ACCESS_DENIED`] when it is; [`HvStatus::INVALID_PARAMETER`] for no certificate.
    pub fn add_module_key(&self, der: &[u8], origin: &str) -> Result<(), HvStatus> {
        let mut trust = self.trust.write().unwrap_or_else(PoisonError::into_inner);
        if self.partition.is_booted() {
            return Err(HvStatus::ACCESS_DENIED);
        }
        Arc::make_mut(&mut trust).add_der(der, Purposes::MODULE, origin).map_err(|_| HvStatus::INVALID_PARAMETER)
    }

    /// Refuses from now on what `list` says; what is loaded stays. At any time, for it only takes away.
    ///
    /// # Errors
    /// [`HvStatus::OPERATION_DENIED`] for a list that is older than the one there is.
    pub fn replace_blocked(&self, list: BlockList) -> Result<(), HvStatus> {
        let mut trust = self.trust.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut trust).replace_blocked(list).map_err(|_| HvStatus::OPERATION_DENIED)
    }

    pub(super) fn next_owner(&self) -> Result<u32, HvStatus> {
        self.modules().next_owner()
    }

    pub(super) fn regions(&self) -> MutexGuard<'_, BTreeMap<u32, Region>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A panic of another thread leaves the table as sound as any: each entry is replaced whole.
    pub(super) fn modules(&self) -> MutexGuard<'_, Modules> {
        self.modules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
