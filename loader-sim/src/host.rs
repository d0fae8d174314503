//! The VMM's half of the machine: [`SimHost`] is the engine's [`Host`] over guest memory, a second-level table for each level, and the TLBs of
//! the processors and of the IOMMU, in which what was true stays until it is flushed.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hvci_engine::{
    access::{Access, MapGpaFlags},
    addr::{Frame, Gpa, Gpn, GpnRange, Vtl},
    embed::{Epochs, Pin},
    host::{Capabilities, Host, Partial},
    slat::{Ept, MemoryType, Mode, Slat, SlatError, Tlb},
    status::HvStatus,
    vsm::partition::Partition,
};

use crate::memory::GuestMemory;

/// Translations that a processor, or the IOMMU, remembers.
const TLB_ENTRIES: usize = 1536;
/// How long a change waits for what devices and the emulator hold.
const DRAIN: Duration = Duration::from_millis(20);

/// What the host's clock says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// The time of the machine that runs the simulation.
    #[default]
    Real,
    /// A microsecond more whenever it is read: the same calls see the same times.
    Counting,
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pages of RAM, each with a frame of its own, from GPA 0 on.
    pub pages: u64,
    /// Processors.
    pub vps: u32,
    /// Further pages, behind those: each is backed by the frame of another.
    pub aliases: Vec<Gpn>,
    /// What the VMM says that it can do.
    pub capabilities: Capabilities,
    /// Events that wait to be taken, at most.
    pub records: usize,
    /// Its clock.
    pub clock: Clock,
}

impl Default for Config {
    /// 256 MiB, two processors.
    fn default() -> Self {
        Self { pages: 1 << 16, vps: 2, aliases: Vec::new(), capabilities: Capabilities::ALL, records: 4096, clock: Clock::Real }
    }
}

/// The engine's host.
pub struct SimHost {
    memory: GuestMemory,
    /// Of the pages behind the RAM.
    aliases: Vec<Gpn>,
    views: [Slat<Ept>; 2],
    /// Of each processor, for VTL0, and last that of the IOMMU, which walks VTL0's table for assigned devices.
    tlbs: Vec<Mutex<Tlb>>,
    /// What the VMM's own devices and its emulator hold.
    epochs: Arc<Epochs>,
    capabilities: Capabilities,
    started: Instant,
    /// How often the clock was read, if that is what it counts.
    readings: Option<AtomicU64>,
    /// Calls that may change something, and which of them fails with what: tests of what an error leaves behind.
    calls: AtomicU64,
    failing: Mutex<Option<(u64, HvStatus)>>,
}

impl std::fmt::Debug for SimHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimHost").field("frames", &self.memory.frames()).field("aliases", &self.aliases).finish_non_exhaustive()
    }
}

impl SimHost {
    /// The host of a machine in which every page is readable, writable and, as firmware may leave it, executable.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] for an alias of no RAM; [`HvStatus::INSUFFICIENT_MEMORY`] for too much of it.
    pub fn new(config: &Config) -> Result<Self, HvStatus> {
        if config.aliases.iter().any(|of| of.0 >= config.pages) {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let memory = GuestMemory::new(config.pages)?;
        // a table for each 512 pages, those above them, and as many again that wait to be reclaimed
        let tables = usize::try_from(config.pages / 256 + 64).map_err(|_| HvStatus::INSUFFICIENT_MEMORY)?;
        let views = [Slat::new(tables), Slat::new(tables)];
        let firmware = MapGpaFlags::DATA | MapGpaFlags::KERNEL_EXECUTABLE;
        for view in &views {
            view.map(GpnRange { start: Gpn(0), pages: config.pages }, Frame(0), firmware, MemoryType::WriteBack).map_err(status)?;
            for (at, of) in (config.pages..).zip(&config.aliases) {
                view.map(GpnRange { start: Gpn(at), pages: 1 }, Frame(of.0), firmware, MemoryType::WriteBack).map_err(status)?;
            }
        }
        Ok(Self {
            memory,
            aliases: config.aliases.clone(),
            views,
            tlbs: (0..=config.vps).map(|_| Mutex::new(Tlb::new(TLB_ENTRIES))).collect(),
            epochs: Arc::default(),
            capabilities: config.capabilities,
            started: Instant::now(),
            readings: (config.clock == Clock::Counting).then(AtomicU64::default),
            calls: AtomicU64::new(0),
            failing: Mutex::new(None),
        })
    }

    /// A machine under enforcement.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`Partition::new`].
    pub fn with_partition(config: &Config) -> Result<(Arc<Self>, Arc<Partition>), HvStatus> {
        let host = Arc::new(Self::new(config)?);
        let frames = usize::try_from(config.pages).map_err(|_| HvStatus::INSUFFICIENT_MEMORY)?;
        let ram = [GpnRange { start: Gpn(0), pages: config.pages.saturating_add(host.aliases.len() as u64) }];
        let partition = Partition::new(Arc::clone(&host) as Arc<dyn Host>, Frame(0), frames, &ram, config.vps, config.records)?;
        Ok((host, Arc::new(partition)))
    }

    /// Has the `n`th call from now that may change something fail with `status`; `None`: none fails any more.
    pub fn fail_call(&self, n: Option<u64>, status: HvStatus) {
        self.calls.store(0, Ordering::SeqCst);
        *lock(&self.failing) = n.map(|n| (n, status));
    }

    /// How many such calls there were since then.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// What `vtl` may do with a page now, by its table.
    pub fn permission(&self, vtl: Vtl, gpn: Gpn) -> MapGpaFlags {
        // so that no table is reclaimed meanwhile
        let _tlb = self.tlbs.first().map(lock);
        self.view(vtl).get(gpn).map_or(MapGpaFlags::NONE, |leaf| leaf.flags)
    }

    /// An access of processor `vp` in VTL0 to one page, as its TLB has it.
    ///
    /// # Errors
    /// [`HvStatus::ACCESS_DENIED`] if it is refused, [`HvStatus::INVALID_VP_INDEX`] for no processor.
    pub fn access(&self, vp: u32, gpa: Gpa, access: Access) -> Result<Frame, HvStatus> {
        self.accessing(vp, gpa, access, Ok)
    }

    /// Reads, or fetches, within a page as processor `vp` in VTL0.
    ///
    /// # Errors
    /// As [`access`](Self::access).
    pub fn load(&self, vp: u32, gpa: Gpa, access: Access, bytes: &mut [u8]) -> Result<(), HvStatus> {
        self.accessing(vp, gpa, access, |frame| self.memory.read(frame, gpa.offset(), bytes))
    }

    /// Writes within a page as processor `vp` in VTL0.
    ///
    /// # Errors
    /// As [`access`](Self::access); nothing is written then.
    pub fn store(&self, vp: u32, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus> {
        self.accessing(vp, gpa, Access::Write, |frame| self.memory.write(frame, gpa.offset(), bytes))
    }

    /// A request of an assigned device to the IOMMU, for one page. It lets no device execute.
    ///
    /// # Errors
    /// [`HvStatus::ACCESS_DENIED`] if it is refused.
    pub fn iommu(&self, gpa: Gpa, access: Access) -> Result<Frame, HvStatus> {
        self.through_iommu(gpa, access, Ok)
    }

    /// Has an assigned device read within a page.
    ///
    /// # Errors
    /// As [`iommu`](Self::iommu).
    pub fn dma_load(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), HvStatus> {
        self.through_iommu(gpa, Access::Read, |frame| self.memory.read(frame, gpa.offset(), bytes))
    }

    /// Has an assigned device write within a page.
    ///
    /// # Errors
    /// As [`iommu`](Self::iommu); nothing is written then.
    pub fn dma_store(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus> {
        self.through_iommu(gpa, Access::Write, |frame| self.memory.write(frame, gpa.offset(), bytes))
    }

    /// Keeps changes of permissions waiting for as long as it is held: for memory that the VMM itself uses.
    pub(crate) fn pin(&self) -> Pin {
        self.epochs.pin()
    }

    fn through_iommu<T>(&self, gpa: Gpa, access: Access, run: impl FnOnce(Frame) -> Result<T, HvStatus>) -> Result<T, HvStatus> {
        match (access, self.tlbs.last()) {
            (Access::Read | Access::Write, Some(tlb)) => self.translating(tlb, gpa, access, run),
            _ => Err(HvStatus::ACCESS_DENIED),
        }
    }

    fn accessing<T>(&self, vp: u32, gpa: Gpa, access: Access, run: impl FnOnce(Frame) -> Result<T, HvStatus>) -> Result<T, HvStatus> {
        let (_, processors) = self.tlbs.split_last().ok_or(HvStatus::INVALID_VP_INDEX)?;
        let tlb = usize::try_from(vp).ok().and_then(|vp| processors.get(vp)).ok_or(HvStatus::INVALID_VP_INDEX)?;
        self.translating(tlb, gpa, access, run)
    }

    /// Uses the frame of a page while the TLB is held, so that a flush waits for the use.
    fn translating<T>(
        &self,
        tlb: &Mutex<Tlb>,
        gpa: Gpa,
        access: Access,
        run: impl FnOnce(Frame) -> Result<T, HvStatus>,
    ) -> Result<T, HvStatus> {
        let mode = Mode { mbec: self.capabilities.mbec };
        let mut tlb = lock(tlb);
        let leaf = tlb.access(self.view(Vtl::Vtl0), gpa, access, mode).map_err(|_| HvStatus::ACCESS_DENIED)?;
        run(leaf.frame)
    }

    const fn view(&self, vtl: Vtl) -> &Slat<Ept> {
        match vtl {
            Vtl::Vtl0 => &self.views[0],
            Vtl::Vtl1 => &self.views[1],
        }
    }

    fn call(&self) -> Result<(), HvStatus> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        match *lock(&self.failing) {
            Some((n, status)) if n == number => Err(status),
            _ => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn status(error: SlatError) -> HvStatus {
    match error {
        SlatError::OutOfTables { .. } => HvStatus::INSUFFICIENT_MEMORY,
        _ => HvStatus::INVALID_PARAMETER,
    }
}

impl Host for SimHost {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn frame(&self, gpn: Gpn) -> Option<Frame> {
        match gpn.0.checked_sub(self.memory.frames()) {
            None => Some(Frame(gpn.0)),
            Some(behind) => self.aliases.get(usize::try_from(behind).ok()?).map(|of| Frame(of.0)),
        }
    }

    fn aliases(&self, frame: Frame, each: &mut dyn FnMut(Gpn)) {
        if frame.0 < self.memory.frames() {
            each(Gpn(frame.0));
        }
        (self.memory.frames()..).zip(&self.aliases).filter(|(_, of)| of.0 == frame.0).for_each(|(at, _)| each(Gpn(at)));
    }

    fn protect(&self, vtl: Vtl, ranges: &[GpnRange], flags: MapGpaFlags) -> Result<(), Partial> {
        self.call().map_err(|status| Partial { status, done: 0 })?;
        for (done, range) in ranges.iter().enumerate() {
            self.view(vtl).protect(*range, flags).map_err(|error| Partial { status: status(error), done })?;
        }
        Ok(())
    }

    fn quiesce(&self, vtl: Vtl, ranges: &[GpnRange]) -> Result<(), HvStatus> {
        self.call()?;
        if vtl == Vtl::Vtl0 {
            self.epochs.synchronize(DRAIN)?;
        }
        // walks are made with a TLB in hand: none is under way
        let mut tlbs: Vec<MutexGuard<'_, Tlb>> = self.tlbs.iter().map(lock).collect();
        if vtl == Vtl::Vtl0 {
            tlbs.iter_mut().for_each(|tlb| ranges.iter().for_each(|range| tlb.flush(*range)));
        }
        self.view(vtl).reclaim();
        Ok(())
    }

    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), HvStatus> {
        let frame = self.frame(gpa.gpn()).ok_or(HvStatus::INVALID_PARAMETER)?;
        self.memory.read(frame, gpa.offset(), buffer)
    }

    fn words(&self, gpn: Gpn) -> Option<&[AtomicU64; 512]> {
        self.memory.words(self.frame(gpn)?)
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus> {
        self.call()?;
        let frame = self.frame(gpa.gpn()).ok_or(HvStatus::INVALID_PARAMETER)?;
        self.memory.write(frame, gpa.offset(), bytes)
    }

    fn now(&self) -> u64 {
        match &self.readings {
            Some(readings) => readings.fetch_add(1, Ordering::SeqCst).saturating_mul(1000),
            None => u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX),
        }
    }
}
