//! The invariants of `docs/invariants.md`, as far as frames and transactions keep them: a test each. `mutants.rs` breaks the engine in ways that
//! these must notice.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests of a few pages")]

use std::sync::{Arc, Mutex};

use hvci_engine::{
    access::MapGpaFlags,
    addr::{Frame, Gpa, Gpn, GpnRange, Vtl},
    explore::{Explored, Space, explore},
    frames::{Change, FrameTable, Kind, State, Step, TRANSITIONS, Transaction},
    host::{Capabilities, Enforcer, Host, Partial, Vp},
    status::HvStatus,
    vsm::{
        Wire,
        hypercall::{Control, HypercallCode},
        input::{PARTITION_ID_SELF, VP_INDEX_SELF},
        partition::Partition,
        register::RegisterName,
        status_register::VsmPartitionConfig,
    },
};
use proptest::prelude::*;

/// Eight pages of memory: page n leads to frame n, but pages 6 and 7 to frames 0 and 1 again.
struct Ram {
    inner: Mutex<Inner>,
}

#[derive(Clone, Default)]
struct Inner {
    flags: [[MapGpaFlags; 8]; 2],
    bytes: [u8; 6],
    calls: Vec<Call>,
    /// The call of the host's, counted from 0, that fails; and every one after it, if so.
    fails: Option<(usize, bool)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Call {
    Protect(Vtl, Vec<u64>, MapGpaFlags),
    Quiesce(Vtl),
    Write(u64),
}

impl Ram {
    fn of(table: &FrameTable) -> Self {
        let ram = Self { inner: Mutex::new(Inner { bytes: [0xcc; 6], ..Inner::default() }) };
        for page in 0..8 {
            let kind = table.state(Frame(page % 6)).unwrap().kind;
            let mut inner = ram.inner.lock().unwrap();
            inner.flags[0][page as usize] = kind.allows(Vtl::Vtl0);
            inner.flags[1][page as usize] = kind.allows(Vtl::Vtl1);
        }
        ram
    }

    fn flags(&self) -> [[MapGpaFlags; 8]; 2] {
        self.inner.lock().unwrap().flags
    }

    fn calls(&self) -> Vec<Call> {
        self.inner.lock().unwrap().calls.clone()
    }

    fn call(&self, call: Call) -> Result<std::sync::MutexGuard<'_, Inner>, HvStatus> {
        let mut inner = self.inner.lock().unwrap();
        let number = inner.calls.len();
        inner.calls.push(call);
        match inner.fails {
            Some((at, for_good)) if at == number || for_good && number > at => Err(HvStatus::INSUFFICIENT_MEMORY),
            _ => Ok(inner),
        }
    }
}

impl Host for Ram {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }
    fn frame(&self, gpn: Gpn) -> Option<Frame> {
        (gpn.0 < 8).then_some(Frame(gpn.0 % 6))
    }
    fn aliases(&self, frame: Frame, each: &mut dyn FnMut(Gpn)) {
        (0..8).filter(|page| page % 6 == frame.0).for_each(|page| each(Gpn(page)));
    }
    fn protect(&self, vtl: Vtl, ranges: &[GpnRange], flags: MapGpaFlags) -> Result<(), Partial> {
        let pages: Vec<u64> = ranges.iter().flat_map(|r| r.iter()).map(|g| g.0).collect();
        let mut inner = self.call(Call::Protect(vtl, pages.clone(), flags)).map_err(|status| Partial { status, done: 0 })?;
        for page in pages {
            inner.flags[usize::from(vtl.number())][page as usize] = flags;
        }
        Ok(())
    }
    fn quiesce(&self, vtl: Vtl, _: &[GpnRange]) -> Result<(), HvStatus> {
        self.call(Call::Quiesce(vtl)).map(drop)
    }
    fn read(&self, _: Gpa, _: &mut [u8]) -> Result<(), HvStatus> {
        Ok(())
    }
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus> {
        assert!(bytes.len() == 4096 && gpa.offset() == 0);
        self.call(Call::Write(gpa.gpn().0))?.bytes[(gpa.gpn().0 % 6) as usize] = bytes[0];
        Ok(())
    }
}

fn table() -> FrameTable {
    let table = FrameTable::new(Frame(0), 6);
    table.frames().for_each(|frame| table.place(frame, Kind::Data).unwrap());
    table
}

/// Brings frame 0 to `kind`, owned by module 7.
fn at(kind: Kind) -> (FrameTable, Ram) {
    let table = table();
    if kind == Kind::Free {
        assert_eq!(change(&table, &Ram::of(&table), 7, Frame(0), Kind::Free), Step::Done);
    } else if kind != Kind::Data {
        assert_eq!(change(&table, &Ram::of(&table), 7, Frame(0), kind), Step::Done);
    }
    let ram = Ram::of(&table);
    (table, ram)
}

fn change(table: &FrameTable, ram: &Ram, owner: u32, frame: Frame, to: Kind) -> Step {
    finish(&mut Transaction::new(1, owner, &[Change { frame, from: None, to }]).unwrap(), table, ram)
}

fn finish(transaction: &mut Transaction, table: &FrameTable, ram: &Ram) -> Step {
    if transaction.run(table, ram) == Step::Inspect {
        transaction.approve();
        transaction.run(table, ram);
    }
    transaction.step()
}

fn explored(pages: usize, frames: usize, vps: usize, transactions: usize) -> Explored {
    explore(&Space { transactions, ..Space::new(pages, frames, vps) }, &mut |_, _| true)
}

fn unbroken(explored: &Explored) {
    if let Some(broken) = &explored.broken {
        panic!("{broken}");
    }
}

#[test]
fn i1_no_frame_is_writable_and_executable_through_any_path() {
    for kind in Kind::ALL {
        let views = kind.allows(Vtl::Vtl0) | kind.allows(Vtl::Vtl1);
        assert!(!views.is_writable_and_executable(), "{kind}");
    }
    let explored = explored(2, 1, 2, 1);
    unbroken(&explored);
    assert!(explored.executed && explored.states > 5_000, "{explored:?}");
}

#[test]
fn i1_holds_with_two_transactions_at_once() {
    let explored = explored(2, 1, 1, 2);
    unbroken(&explored);
    assert!(explored.executed && explored.states > 20_000, "{explored:?}");
}

#[test]
fn i1_a_page_that_is_being_mapped_cannot_be_claimed() {
    let (table, ram) = at(Kind::Data);
    let hold = table.hold(Frame(0)).unwrap();
    assert_eq!(hold.state(), State::of(Kind::Data));
    assert_eq!(change(&table, &ram, 7, Frame(0), Kind::Code), Step::Failed(HvStatus::OBJECT_IN_USE));
    drop(hold);
    let mut running = Transaction::new(1, 7, &[Change { frame: Frame(0), from: None, to: Kind::Code }]).unwrap();
    assert_eq!(running.run(&table, &ram), Step::Inspect);
    assert_eq!(table.hold(Frame(0)).err(), Some(HvStatus::OBJECT_IN_USE));
    running.approve();
    assert_eq!(running.run(&table, &ram), Step::Done);
}

/// Between a look at a frame and its claim another change may come: an overlay that was laid is not taken away by what found plain data.
#[test]
fn i1_a_frame_that_became_something_else_is_not_claimed() {
    for (was, is) in [(Kind::KernelData, Kind::Overlay), (Kind::Overlay, Kind::KernelData)] {
        let (table, ram) = at(is);
        let before = (table.state(Frame(0)), ram.flags());
        let change = |from| Transaction::new(1, 7, &[Change { frame: Frame(0), from, to: Kind::Data }]).unwrap().run(&table, &ram);
        assert_eq!(change(Some(was)), Step::Failed(HvStatus::OPERATION_DENIED));
        assert_eq!((table.state(Frame(0)), ram.flags()), before, "{was} and {is}");
        assert_eq!(change(Some(is)), Step::Done);
    }
}

#[test]
fn i2_bytes_that_are_not_approved_never_execute() {
    let (table, ram) = at(Kind::Data);
    let mut transaction = Transaction::new(1, 7, &[Change { frame: Frame(0), from: None, to: Kind::Code }]).unwrap();
    assert_eq!(transaction.run(&table, &ram), Step::Inspect);
    transaction.reject(HvStatus::ACCESS_DENIED);
    assert_eq!(transaction.run(&table, &ram), Step::Failed(HvStatus::ACCESS_DENIED));
    assert_eq!(table.state(Frame(0)), Some(State::of(Kind::Data)));
    assert!(ram.calls().iter().all(|c| !matches!(c, Call::Protect(_, _, flags) if flags.contains(MapGpaFlags::KERNEL_EXECUTABLE))));
}

#[test]
fn i3_frames_of_vtl1_have_no_path_from_vtl0() {
    let explored = explored(2, 2, 1, 1);
    unbroken(&explored);
    let (_, ram) = at(Kind::SecureOnly);
    assert_eq!([ram.flags()[0][0], ram.flags()[0][6]], [MapGpaFlags::NONE; 2]);
    // not even while it comes and goes
    for (from, to) in [(Kind::Data, Kind::SecureOnly), (Kind::SecureOnly, Kind::Data)] {
        let (table, ram) = at(from);
        assert_eq!(change(&table, &ram, 7, Frame(0), to), Step::Done);
        let given: Vec<Call> = ram.calls();
        let quiet = given.iter().position(|c| matches!(c, Call::Quiesce(_))).unwrap();
        let removed = |c: &Call| matches!(c, Call::Protect(Vtl::Vtl0, pages, MapGpaFlags::NONE) if *pages == [0, 6]);
        assert!(given[..quiet].iter().any(removed), "{given:?}");
        assert!(to != Kind::Data || ram.inner.lock().unwrap().bytes[0] == 0, "a secret came out");
    }
}

#[test]
fn i4_only_rows_of_the_table_change_a_state_and_only_for_the_owner() {
    for from in Kind::ALL.iter().filter(|k| TRANSITIONS.iter().any(|t| t.to == **k)) {
        if !TRANSITIONS.iter().any(|t| t.from == Kind::Data && t.to == *from) {
            continue;
        }
        for to in Kind::ALL {
            for owner in [7, 8] {
                let (table, ram) = at(*from);
                let (before, flags) = (table.state(Frame(0)).unwrap(), ram.flags());
                let step = change(&table, &ram, owner, Frame(0), *to);
                let allowed = TRANSITIONS.iter().any(|t| (t.from, t.to) == (*from, *to)) && (owner == 7 || !from.is_owned());
                assert_eq!(step == Step::Done, allowed, "{from} to {to} for {owner}");
                if !allowed {
                    assert_eq!((table.state(Frame(0)).unwrap(), ram.flags()), (before, flags), "{from} to {to} for {owner}");
                }
            }
        }
    }
}

#[test]
fn i5_what_depends_on_a_removal_comes_after_the_quiesce() {
    for t in TRANSITIONS.iter().filter(|t| TRANSITIONS.iter().any(|to| (to.from, to.to) == (Kind::Data, t.from)) || t.from == Kind::Data) {
        for grant_fails in [false, true] {
            let (table, ram) = at(t.from);
            if grant_fails {
                // the last grant
                let (table, rehearsal) = at(t.from);
                change(&table, &rehearsal, 7, Frame(0), t.to);
                ram.inner.lock().unwrap().fails = Some((rehearsal.calls().len() - 1, false));
            }
            change(&table, &ram, 7, Frame(0), t.to);
            in_order(t.name, &at(t.from).1.flags(), &ram.calls());
        }
    }
}

/// No permission is given by `calls`, to pages that have `flags`, while one that does not go with it may still be in a TLB.
fn in_order(what: &str, flags: &[[MapGpaFlags; 8]; 2], calls: &[Call]) {
    let (w, x) = (MapGpaFlags::WRITABLE, MapGpaFlags::KERNEL_EXECUTABLE);
    let (mut table, mut cached) = (flags[0], flags[0]);
    for call in calls {
        match call {
            Call::Protect(Vtl::Vtl0, pages, given) => {
                for page in pages {
                    for alias in (0..8).filter(|a| a % 6 == *page as usize % 6) {
                        let old = cached[alias];
                        assert!(!(old.contains(w) && given.contains(x) || old.contains(x) && given.contains(w)), "{what}: {calls:?}");
                    }
                    table[*page as usize] = *given;
                    cached[*page as usize] = cached[*page as usize] | *given;
                }
            }
            Call::Quiesce(Vtl::Vtl0) => cached = table,
            _ => {}
        }
    }
}

#[test]
fn i6_errors_leave_permissions_at_or_below_what_they_were() {
    for t in TRANSITIONS {
        if t.from != Kind::Data && !TRANSITIONS.iter().any(|to| (to.from, to.to) == (Kind::Data, t.from)) {
            continue;
        }
        for for_good in [false, true] {
            for number in 0.. {
                let (table, ram) = at(t.from);
                let (before, was) = (table.state(Frame(0)).unwrap(), ram.flags());
                ram.inner.lock().unwrap().fails = Some((number, for_good));
                let step = change(&table, &ram, 7, Frame(0), t.to);
                if ram.calls().len() <= number {
                    assert_eq!(step, Step::Done, "{} has no call {number}", t.name);
                    break;
                }
                let about =
                    format!("{} when call {number} fails{}: {:?}", t.name, if for_good { " and all after" } else { "" }, ram.calls());
                assert_eq!(step, Step::Failed(HvStatus::INSUFFICIENT_MEMORY), "{about}");
                let now = table.state(Frame(0)).unwrap();
                // a host that takes nothing back any more is left with what it was given last
                if !for_good || now == before && before.kind != Kind::Quarantined {
                    for (now, then) in ram.flags()[0].iter().zip(&was[0]) {
                        assert!(then.contains(*now), "{about}: {then} became {now}");
                    }
                }
                let paths = [ram.flags()[0][0], ram.flags()[0][6], ram.flags()[1][0], ram.flags()[1][6]];
                assert!(!paths.into_iter().fold(MapGpaFlags::NONE, |a, b| a | b).is_writable_and_executable(), "{about}");
                // exactly what it was, or nothing
                assert!(now == before || now == State { kind: Kind::Quarantined, owner: 7 }, "{about}: {now:?}");
                if now == before && !for_good {
                    assert_eq!(ram.flags()[0], was[0], "{about}");
                }
                assert!(
                    now != before || before.kind == Kind::Quarantined || ram.inner.lock().unwrap().bytes[0] == 0xcc,
                    "{about}: its bytes are gone"
                );
            }
        }
    }
}

#[test]
fn i6_what_was_quarantined_comes_back_scrubbed_and_by_its_owner_alone() {
    let (table, ram) = at(Kind::Code);
    // the scrub is done, the grant fails, and so does every call after it
    ram.inner.lock().unwrap().fails = Some((5, true));
    assert_eq!(change(&table, &ram, 7, Frame(0), Kind::Data), Step::Failed(HvStatus::INSUFFICIENT_MEMORY));
    assert_eq!(table.state(Frame(0)), Some(State { kind: Kind::Quarantined, owner: 7 }));
    let mut inner = ram.inner.lock().unwrap();
    (inner.fails, inner.bytes[0]) = (None, 0xcc);
    drop(inner);
    assert_eq!(change(&table, &ram, 8, Frame(0), Kind::Data), Step::Failed(HvStatus::ACCESS_DENIED));
    assert_eq!(change(&table, &ram, 7, Frame(0), Kind::Code), Step::Failed(HvStatus::OPERATION_DENIED));
    assert_eq!(change(&table, &ram, 7, Frame(0), Kind::Data), Step::Done);
    assert_eq!((table.state(Frame(0)), ram.inner.lock().unwrap().bytes[0]), (Some(State::of(Kind::Data)), 0));
}

/// A processor without registers.
struct Processor;

impl Vp for Processor {
    fn index(&self) -> u32 {
        0
    }
    fn register(&self, _: u32) -> Result<u128, HvStatus> {
        Err(HvStatus::INVALID_PARAMETER)
    }
    fn set_register(&mut self, _: u32, _: u128) -> Result<(), HvStatus> {
        Err(HvStatus::INVALID_PARAMETER)
    }
    fn inject(&mut self, _: u8, _: Option<u32>) {}
}

/// HvCallEnablePartitionVtl by VTL0, HvCallEnableVpVtl, and the choice of a configuration by VTL1: what each answers.
fn set_up(partition: &Partition) -> [HvStatus; 3] {
    let call = |caller, control: Control, input: &[u8]| partition.hypercall(&mut Processor, caller, control.0, input, &mut []).0;
    let mut levels = [0; 16];
    PARTITION_ID_SELF.put(&mut levels, 0);
    levels[8] = 1;
    let mut processor = [0; 0xF0];
    PARTITION_ID_SELF.put(&mut processor, 0);
    VP_INDEX_SELF.put(&mut processor, 8);
    processor[12] = 1;
    let config =
        VsmPartitionConfig(0).with_enable_vtl_protection(true).with_default_vtl_protection_mask(MapGpaFlags::DATA.0.to_le_bytes()[0]);
    let mut register = [0; 48];
    PARTITION_ID_SELF.put(&mut register, 0);
    VP_INDEX_SELF.put(&mut register, 8);
    RegisterName::VSM_PARTITION_CONFIG.0.put(&mut register, 16);
    config.0.put(&mut register, 32);
    [
        call(Vtl::Vtl0, Control::simple(HypercallCode::ENABLE_PARTITION_VTL), &levels),
        call(Vtl::Vtl0, Control::simple(HypercallCode::ENABLE_VP_VTL), &processor),
        call(Vtl::Vtl1, Control::rep(HypercallCode::SET_VP_REGISTERS, 1), &register),
    ]
}

#[test]
fn i8_the_end_of_boot_is_one_way() {
    let partition = || {
        let ram = Arc::new(Ram::of(&table()));
        Partition::new(ram, Frame(0), 6, &[GpnRange { start: Gpn(0), pages: 8 }], 1, 16).unwrap()
    };
    let booting = partition();
    assert_eq!(set_up(&booting), [HvStatus::SUCCESS; 3]);
    let mut before = Vec::new();
    booting.save(&mut |bytes| before.extend(bytes));
    assert_eq!(booting.restore(&before), Ok(()));
    booting.end_of_boot();
    assert_eq!(set_up(&booting)[2], HvStatus::ACCESS_DENIED);
    assert_eq!(booting.restore(&before), Err(HvStatus::OPERATION_DENIED));
    // whoever boots without VTL1 stays without it
    let without = partition();
    without.end_of_boot();
    assert_eq!(set_up(&without)[0], HvStatus::ACCESS_DENIED);
}

#[test]
fn i10_unloading_removes_execution_then_waits_then_scrubs_then_gives_back() {
    let (table, ram) = at(Kind::Code);
    assert_eq!(change(&table, &ram, 7, Frame(0), Kind::Data), Step::Done);
    let (read, data, vtl1) = (MapGpaFlags::READABLE, MapGpaFlags::DATA, Kind::Data.allows(Vtl::Vtl1));
    let pages = vec![0, 6];
    assert_eq!(
        ram.calls(),
        [
            Call::Protect(Vtl::Vtl0, pages.clone(), read),
            Call::Protect(Vtl::Vtl1, pages.clone(), read),
            Call::Quiesce(Vtl::Vtl0),
            Call::Quiesce(Vtl::Vtl1),
            Call::Write(0),
            Call::Protect(Vtl::Vtl0, pages.clone(), data),
            Call::Protect(Vtl::Vtl1, pages, vtl1),
        ]
    );
    assert_eq!(ram.inner.lock().unwrap().bytes[0], 0);
}

#[derive(Clone, Debug)]
enum Op {
    Change { owner: u32, frames: Vec<u64>, to: Kind, approve: bool },
    Hold(u64),
    Drop(usize),
    Fail(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop::sample::select(Kind::ALL);
    prop_oneof![
        8 => (0..3_u32, prop::collection::vec(0..8_u64, 0..4), kind, any::<bool>())
            .prop_map(|(owner, frames, to, approve)| Op::Change { owner, frames, to, approve }),
        1 => (0..8_u64).prop_map(Op::Hold),
        1 => (0..4_usize).prop_map(Op::Drop),
        1 => (0..12_usize).prop_map(Op::Fail),
    ]
}

proptest! {
    /// I4, I7 and I12: any sequence of operations against a model that knows states and rows and nothing of words and steps; twice, alike.
    #[test]
    fn i4_i7_i12_any_sequence_does_what_a_naive_model_does(ops in prop::collection::vec(op(), 1..40)) {
        prop_assert_eq!(play(&ops), play(&ops));
    }
}

fn play(ops: &[Op]) -> (Vec<Call>, Vec<u64>) {
    let table = table();
    let ram = Ram::of(&table);
    let mut model: Vec<State> = vec![State::of(Kind::Data); 6];
    let mut holds = Vec::new();
    for op in ops {
        match op {
            Op::Hold(frame) => {
                let hold = table.hold(Frame(*frame));
                assert_eq!(hold.is_ok(), *frame < 6);
                holds.extend(hold.ok().map(|h| (*frame, h)));
            }
            Op::Drop(number) if *number < holds.len() => drop(holds.swap_remove(*number)),
            Op::Drop(_) => {}
            Op::Fail(after) => {
                let mut inner = ram.inner.lock().unwrap();
                inner.fails = Some((inner.calls.len() + after, false));
            }
            Op::Change { owner, frames, to, approve } => {
                let changes: Vec<Change> = frames.iter().map(|f| Change { frame: Frame(*f), from: None, to: *to }).collect();
                let twice = frames.iter().enumerate().any(|(n, f)| frames[..n].contains(f));
                let Ok(mut transaction) = Transaction::new(3, *owner, &changes) else {
                    assert!(twice);
                    continue;
                };
                assert!(!twice);
                let possible = frames.iter().all(|f| {
                    model.get(*f as usize).is_some_and(|was| {
                        TRANSITIONS.iter().any(|t| (t.from, t.to) == (was.kind, *to))
                            && (!was.kind.is_owned() || was.owner == *owner)
                            && holds.iter().all(|(held, _)| held != f)
                    })
                });
                let failing = ram.inner.lock().unwrap().fails.is_some_and(|(at, _)| at >= ram_calls(&ram));
                let inspected = transaction.run(&table, &ram) == Step::Inspect;
                if inspected {
                    if *approve {
                        transaction.approve();
                    } else {
                        transaction.reject(HvStatus::ACCESS_DENIED);
                    }
                    transaction.run(&table, &ram);
                }
                let done = transaction.step() == Step::Done;
                assert!(!done || possible, "{op:?}");
                assert!(done || !possible || failing || inspected && !approve, "{op:?}: {:?}", transaction.step());
                for frame in frames.iter().filter(|f| **f < 6) {
                    let state = table.state(Frame(*frame)).unwrap();
                    assert!(!state.kind.is_held(), "{op:?}");
                    let was = &mut model[*frame as usize];
                    if done {
                        *was = State { kind: *to, owner: if to.is_owned() { *owner } else { 0 } };
                    } else if state != *was {
                        assert_eq!(state, State { kind: Kind::Quarantined, owner: *owner }, "{op:?}");
                        *was = state;
                    }
                }
            }
        }
        for (number, state) in model.iter().enumerate() {
            assert_eq!(table.state(Frame(number as u64)), Some(*state));
            for page in (0..8).filter(|p| p % 6 == number) {
                // what failed on the way back is narrower
                assert!(state.kind.allows(Vtl::Vtl0).contains(ram.flags()[0][page]), "{op:?}: {state:?} {}", ram.flags()[0][page]);
            }
        }
    }
    drop(holds);
    (ram.calls(), table.snapshot())
}

fn ram_calls(ram: &Ram) -> usize {
    ram.inner.try_lock().map_or(0, |inner| inner.calls.len())
}
