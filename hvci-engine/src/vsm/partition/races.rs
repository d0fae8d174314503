//! Several processors of a guest at once, under shuttle: transforms, protection hypercalls, snapshots, and accesses by what a TLB remembers.
//!
//! [`Guest`] is the least machine in which a mistake shows: pages of which two lead to one frame, tables for both levels, and a TLB for each
//! processor that believes what it remembers until it is flushed. Each call of the host goes page by page and processor by processor, and
//! between any two another thread may go on. W^X of every frame, over all tables and TLBs, is looked at after each.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "tests of a few pages"
)]

extern crate std;

use alloc::{boxed::Box, collections::BTreeMap, sync::Arc, vec, vec::Vec};
use std::sync::{MutexGuard, PoisonError};

use shuttle::thread;

use super::*;
use crate::{
    addr::{Gva, PAGE_SIZE},
    host::Partial,
    sync::scheduled::{check, yield_now},
    vsm::{
        hypercall::{Control, HypercallCode},
        input::PARTITION_ID_SELF,
        wire::Wire,
    },
};

const SCHEDULES: usize = 1_000;
const VPS: usize = 2;

/// A guest: page n leads to frame n, but the last page to frame 0 again.
pub(crate) struct Guest(std::sync::Mutex<State>);

struct State {
    /// What each level may do with each page, by the tables.
    flags: Vec<[MapGpaFlags; 2]>,
    bytes: Vec<Vec<u8>>,
    /// What each processor remembers of VTL0's table.
    tlbs: [BTreeMap<usize, MapGpaFlags>; VPS],
    /// Calls that may change something, and from which on they fail: it alone, or every one.
    calls: usize,
    failing: Option<(usize, bool)>,
}

impl State {
    fn frame(&self, page: usize) -> usize {
        page % self.bytes.len()
    }

    /// No frame can be written and executed over all that leads to it, and no processor could do so at once.
    fn assert_wx(&self) {
        let mut frames = vec![MapGpaFlags::NONE; self.bytes.len()];
        for (page, flags) in self.flags.iter().enumerate() {
            let cached = self.tlbs.iter().filter_map(|tlb| tlb.get(&page));
            let frame = self.frame(page);
            frames[frame] = cached.fold(frames[frame] | flags[0] | flags[1], |all, flags| all | *flags);
        }
        for (frame, all) in frames.iter().enumerate() {
            assert!(!all.is_writable_and_executable(), "frame {frame} is writable and executable: {all}");
        }
    }
}

/// A processor that exits for an intercept.
pub(crate) struct Processor(pub(crate) u32);

impl Vp for Processor {
    fn index(&self) -> u32 {
        self.0
    }
    fn register(&self, _: u32) -> Result<u128, HvStatus> {
        Err(HvStatus::INVALID_PARAMETER)
    }
    fn set_register(&mut self, _: u32, _: u128) -> Result<(), HvStatus> {
        Err(HvStatus::INVALID_PARAMETER)
    }
    fn inject(&mut self, _: u8, _: Option<u32>) {}
}

impl Guest {
    /// A guest of `frames` frames with one page more, under a partition. Every processor remembers every page.
    pub(crate) fn new(frames: usize) -> (Arc<Self>, Arc<Partition>) {
        let state = State {
            flags: vec![[MapGpaFlags::NONE; 2]; frames + 1],
            bytes: vec![vec![0; PAGE_SIZE as usize]; frames],
            tlbs: core::array::from_fn(|_| BTreeMap::new()),
            calls: 0,
            failing: None,
        };
        let guest = Arc::new(Self(std::sync::Mutex::new(state)));
        let partition = guest.partition();
        (guest, partition)
    }

    /// Another partition over this memory.
    fn partition(self: &Arc<Self>) -> Arc<Partition> {
        let pages = self.state().flags.len();
        let ram = [GpnRange { start: Gpn(0), pages: pages as u64 }];
        let partition = Partition::new(Arc::<Self>::clone(self), Frame(0), pages - 1, &ram, VPS as u32, 16).unwrap();
        let mut state = self.state();
        for page in 0..pages {
            let flags = state.flags[page][0];
            for tlb in &mut state.tlbs {
                tlb.insert(page, flags);
            }
        }
        drop(state);
        Arc::new(partition)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, page: u64, bytes: &[u8]) {
        let mut state = self.state();
        let frame = state.frame(page as usize);
        state.bytes[frame][..bytes.len()].copy_from_slice(bytes);
    }

    /// Has the call of this number from now on fail, and if so all that follow; `None`: none. How many there were since the last time.
    pub(crate) fn fail(&self, failing: Option<(usize, bool)>) -> usize {
        let mut state = self.state();
        state.failing = failing;
        core::mem::take(&mut state.calls)
    }

    fn call(&self) -> Result<(), HvStatus> {
        let mut state = self.state();
        let number = state.calls;
        state.calls += 1;
        let fails = state.failing.is_some_and(|(from, for_good)| number == from || for_good && number > from);
        if fails { Err(HvStatus::INSUFFICIENT_MEMORY) } else { Ok(()) }
    }

    fn pages(&self) -> u64 {
        self.state().flags.len() as u64
    }

    /// What VTL0's table allows of a page.
    pub(crate) fn allowed(&self, page: u64) -> MapGpaFlags {
        self.state().flags[page as usize][0]
    }

    /// Has a processor try once: by what it remembers, or else by the table. The first byte of the page, if it could; for a write, afterwards.
    pub(crate) fn access(&self, partition: &Partition, vp: usize, page: u64, access: Access) -> Option<u8> {
        yield_now();
        let mut state = self.state();
        let index = page as usize;
        if !state.tlbs[vp].get(&index).is_some_and(|flags| flags.allows(access)) {
            let flags = state.flags[index][0];
            if !flags.allows(access) {
                state.tlbs[vp].remove(&index);
                drop(state);
                let gpa = Gpa(page * PAGE_SIZE);
                let intercept = MemoryIntercept { gpa, gva: None, access, page_walk: false, cpl: 0, rip: Gva(0) };
                partition.on_memory(&mut Processor(vp as u32), &intercept);
                return None;
            }
            state.tlbs[vp].insert(index, flags);
            state.assert_wx();
        }
        let frame = state.frame(index);
        if access == Access::Write {
            state.bytes[frame][0] = EVIL;
        }
        Some(state.bytes[frame][0])
    }
}

impl Host for Guest {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }
    fn frame(&self, gpn: Gpn) -> Option<Frame> {
        let state = self.state();
        let page = usize::try_from(gpn.0).ok().filter(|page| *page < state.flags.len())?;
        Some(Frame(state.frame(page) as u64))
    }
    fn aliases(&self, frame: Frame, each: &mut dyn FnMut(Gpn)) {
        let state = self.state();
        (0..state.flags.len()).filter(|page| state.frame(*page) as u64 == frame.0).for_each(|page| each(Gpn(page as u64)));
    }
    fn protect(&self, vtl: Vtl, ranges: &[GpnRange], flags: MapGpaFlags) -> Result<(), Partial> {
        self.call().map_err(|status| Partial { status, done: 0 })?;
        for gpn in ranges.iter().flat_map(|range| range.iter()) {
            yield_now();
            let mut state = self.state();
            state.flags[gpn.0 as usize][usize::from(vtl.number())] = flags;
            state.assert_wx();
        }
        Ok(())
    }
    fn quiesce(&self, vtl: Vtl, ranges: &[GpnRange]) -> Result<(), HvStatus> {
        self.call()?;
        for vp in 0..VPS {
            if vtl == Vtl::Vtl0 {
                yield_now();
                let mut state = self.state();
                for gpn in ranges.iter().flat_map(|range| range.iter()) {
                    state.tlbs[vp].remove(&(gpn.0 as usize));
                }
            }
        }
        Ok(())
    }
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), HvStatus> {
        yield_now();
        let (state, at) = (self.state(), gpa.offset() as usize);
        let frame = state.frame(gpa.gpn().0 as usize);
        buffer.copy_from_slice(&state.bytes[frame][at..at + buffer.len()]);
        Ok(())
    }
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus> {
        self.call()?;
        yield_now();
        let (mut state, at) = (self.state(), gpa.offset() as usize);
        let frame = state.frame(gpa.gpn().0 as usize);
        state.bytes[frame][at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// What is verified, and what an attacker writes.
const GOOD: u8 = 0xC3;
const EVIL: u8 = 0xCC;

fn prepared() -> (Arc<Guest>, Arc<Partition>) {
    let (guest, partition) = Guest::new(FRAMES as usize);
    (0..FRAMES).for_each(|page| guest.put(page, &[GOOD]));
    (guest, partition)
}

const FRAMES: u64 = 3;
/// Another page of frame 0.
const ALIAS: u64 = FRAMES;

/// Has pages become code, if each holds what it should.
fn load(guest: &Guest, partition: &Partition, owner: u32, pages: &[u64]) -> Result<(), HvStatus> {
    let changes: Vec<(Gpn, Kind)> = pages.iter().map(|page| (Gpn(*page), Kind::Code)).collect();
    let inspect = || {
        for page in pages {
            let mut byte = [0];
            guest.read(Gpa(page * PAGE_SIZE), &mut byte)?;
            if byte != [GOOD] {
                return Err(HvStatus::ACCESS_DENIED);
            }
        }
        Ok(())
    };
    partition.transform(owner, &changes, inspect)
}

/// Has a processor write to the page and execute it, over and over. What executes is what was verified.
fn attack(guest: &Guest, partition: &Partition, vp: usize, page: u64) {
    for _ in 0..2 {
        guest.access(partition, vp, page, Access::Write);
        let executed = guest.access(partition, vp, page, Access::KernelExecute);
        assert!(executed.is_none_or(|byte| byte == GOOD), "unverified code executes");
    }
}

/// VTL1 is on, with MBEC, and protects.
fn with_vtl1(partition: &Partition) {
    let mut levels = partition.levels.lock();
    (levels.vtl1, levels.mbec) = (true, true);
    levels.config = VsmPartitionConfig(1 | 0b1011 << 1);
}

fn protect(partition: &Partition, flags: MapGpaFlags, page: u64) -> HvStatus {
    let mut input = [0; 24];
    PARTITION_ID_SELF.put(&mut input, 0);
    flags.0.put(&mut input, 8);
    page.put(&mut input, 16);
    let control = Control::rep(HypercallCode::MODIFY_VTL_PROTECTION_MASK, 1);
    partition.hypercall(&mut Processor(0), Vtl::Vtl1, control.0, &input, &mut []).0
}

/// Every frame is at rest, and every page of it has what its kind allows.
pub(crate) fn assert_settled(guest: &Guest, partition: &Partition) {
    for page in 0..guest.pages() {
        let kind = partition.kind(Gpn(page)).unwrap();
        assert!(!kind.is_held(), "page {page} is held by nobody");
        assert_eq!(guest.allowed(page), kind.allows(Vtl::Vtl0), "page {page} is {kind}");
    }
}

/// Runs these at once, and what each came to.
fn at_once<T: Send + 'static>(tasks: Vec<Box<dyn FnOnce() -> T + Send>>) -> Vec<T> {
    let running: Vec<_> = tasks.into_iter().map(thread::spawn).collect();
    running.into_iter().map(|task| task.join().unwrap()).collect()
}

/// A closure over a guest and its partition, for [`at_once`].
macro_rules! task {
    (|$guest:ident, $partition:ident| $body:expr) => {{
        let ($guest, $partition) = (Arc::clone(&$guest), Arc::clone(&$partition));
        Box::new(move || $body)
    }};
}

#[test]
fn of_transforms_that_overlap_one_wins_and_the_rest_is_as_it_was() {
    check(SCHEDULES, || {
        let (guest, partition) = prepared();
        let results = at_once(vec![
            task!(|guest, partition| load(&guest, &partition, 7, &[0, 1])),
            task!(|guest, partition| load(&guest, &partition, 8, &[2, ALIAS])),
            task!(|guest, partition| load(&guest, &partition, 9, &[1, 2])),
        ]);
        // each overlaps each
        let winners: Vec<usize> = (0..3).filter(|task| results[*task].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{results:?}");
        let of_winner: &[u64] = [&[0, 1, ALIAS][..], &[0, 2, ALIAS], &[1, 2]][winners[0]];
        for page in 0..=FRAMES {
            let kind = if of_winner.contains(&page) { Kind::Code } else { Kind::Data };
            assert_eq!(partition.kind(Gpn(page)), Some(kind), "page {page} of {results:?}");
        }
        assert_settled(&guest, &partition);
    });
}

#[test]
fn what_executes_was_verified_whatever_processors_remember() {
    check(SCHEDULES, || {
        let (guest, partition) = prepared();
        let results = at_once(vec![
            task!(|guest, partition| load(&guest, &partition, 7, &[0, 1])),
            task!(|guest, partition| {
                attack(&guest, &partition, 0, ALIAS);
                Ok(())
            }),
            task!(|guest, partition| {
                attack(&guest, &partition, 1, 0);
                Ok(())
            }),
        ]);
        // rejected for what was written before, or loaded
        let kind = if results[0].is_ok() { Kind::Code } else { Kind::Data };
        assert_eq!(partition.kind(Gpn(0)), Some(kind), "{results:?}");
        assert_settled(&guest, &partition);
    });
}

#[test]
fn a_load_and_hypercalls_for_its_pages_have_one_winner() {
    check(SCHEDULES, || {
        let (guest, partition) = prepared();
        with_vtl1(&partition);
        let results = at_once(vec![
            task!(|guest, partition| load(&guest, &partition, 7, &[0, 1]).err().unwrap_or(HvStatus::SUCCESS)),
            task!(|guest, partition| {
                // nothing for its processor to do but to remember
                guest.access(&partition, 1, ALIAS, Access::Write);
                protect(&partition, MapGpaFlags::READABLE, ALIAS)
            }),
            task!(|guest, partition| {
                guest.access(&partition, 0, 1, Access::Read);
                protect(&partition, MapGpaFlags::NONE, 1)
            }),
        ]);
        let kinds = [0, 1].map(|page| partition.kind(Gpn(page)).unwrap());
        let ok = |task: usize| results[task] == HvStatus::SUCCESS;
        match kinds {
            [Kind::Code, Kind::Code] => assert!(ok(0) && !ok(1) && !ok(2), "{results:?}"),
            _ => {
                assert!(!ok(0) && (ok(1) || ok(2)) || results[0] == HvStatus::ACCESS_DENIED, "{results:?}");
                assert_eq!(kinds, [if ok(1) { Kind::KernelData } else { Kind::Data }, if ok(2) { Kind::SecureOnly } else { Kind::Data }]);
            }
        }
        assert_settled(&guest, &partition);
    });
}

#[test]
fn of_protections_that_follow_each_other_the_last_one_holds() {
    check(SCHEDULES, || {
        let (guest, partition) = prepared();
        with_vtl1(&partition);
        let results = at_once(vec![
            task!(|guest, partition| {
                guest.access(&partition, 0, ALIAS, Access::Write);
                protect(&partition, MapGpaFlags::READABLE, ALIAS)
            }),
            task!(|guest, partition| {
                guest.access(&partition, 1, 0, Access::Write);
                protect(&partition, MapGpaFlags::DATA, 0)
            }),
        ]);
        let allowed = [HvStatus::SUCCESS, HvStatus::OBJECT_IN_USE, HvStatus::OPERATION_DENIED];
        assert!(results[0] == HvStatus::SUCCESS && allowed.contains(&results[1]), "{results:?}");
        assert_settled(&guest, &partition);
    });
}

#[test]
fn a_snapshot_of_a_transform_has_no_frame_on_its_way() {
    check(SCHEDULES, || {
        let (guest, partition) = prepared();
        let saved = at_once(vec![
            task!(|guest, partition| {
                load(&guest, &partition, 7, &[0, 1]).unwrap();
                Vec::new()
            }),
            task!(|guest, partition| {
                // the guest runs on
                guest.access(&partition, 0, 2, Access::Write);
                let mut saved = Vec::new();
                partition.save(&mut |bytes| saved.extend_from_slice(bytes));
                saved
            }),
        ]);
        // a new machine takes it over; what was on its way can be used for nothing there
        let (copy, other) = prepared();
        assert_eq!(other.restore(&saved[1]), Ok(()));
        for page in 0..2 {
            let kind = other.kind(Gpn(page)).unwrap();
            assert!(matches!(kind, Kind::Data | Kind::Quarantined | Kind::Code), "page {page}: {kind}");
        }
        assert_settled(&copy, &other);
    });
}

#[test]
fn a_machine_is_restored_as_a_whole_or_not_at_all() {
    check(SCHEDULES, || {
        let (guest, partition) = prepared();
        let mut saved = Vec::new();
        partition.save(&mut |bytes| saved.extend_from_slice(bytes));
        let results = at_once(vec![
            task!(|guest, partition| load(&guest, &partition, 7, &[0, 1])),
            Box::new({
                let partition = Arc::clone(&partition);
                move || partition.restore(&saved)
            }),
            task!(|guest, partition| {
                attack(&guest, &partition, 1, 2);
                Ok(())
            }),
        ]);
        // the state is older than a load that has begun
        let refused = [HvStatus::OPERATION_DENIED, HvStatus::OBJECT_IN_USE];
        assert!(results[1].is_ok() || refused.contains(&results[1].unwrap_err()), "{results:?}");
        let kind = if results[0].is_ok() { Kind::Code } else { Kind::Data };
        assert_eq!([0, 1, 2].map(|page| partition.kind(Gpn(page))), [Some(kind), Some(kind), Some(Kind::Data)], "{results:?}");
        assert_settled(&guest, &partition);
    });
}
