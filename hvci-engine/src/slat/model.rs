//! Tables beside the simplest thing that could be one: a map from page to what is mapped there.

#![expect(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "tests")]

use alloc::{collections::BTreeMap, vec::Vec};

use proptest::prelude::*;

use super::{CannotRepresent, Encoding, Ept, Leaf, MemoryType, Mode, Npt, Slat, SlatError, Tlb, ViolationKind};
use crate::{
    access::{Access, MapGpaFlags},
    addr::{Frame, Gpa, Gpn, GpnRange},
};

/// Pages of the model: around the border of two gibibytes, so that every level is met.
const FIRST: u64 = (1 << 18) - 1024;
const PAGES: u64 = 2048;
/// Few enough to run out, now and then.
const TABLES: usize = 9;
const MBEC: Mode = Mode { mbec: true };
/// Whatever both formats can represent, and one that neither can.
const FLAGS: [MapGpaFlags; 6] =
    [MapGpaFlags::NONE, MapGpaFlags::READABLE, MapGpaFlags::DATA, MapGpaFlags::CODE, MapGpaFlags(3), MapGpaFlags::WRITABLE];

#[derive(Clone, Debug)]
enum Operation {
    Map(GpnRange, Frame, MapGpaFlags, MemoryType),
    Unmap(GpnRange),
    Protect(GpnRange, MapGpaFlags),
    Merge(GpnRange),
    Reclaim,
    Walk(Gpn, Access),
}

fn operation() -> impl Strategy<Value = Operation> {
    // borders of leaves are where things go wrong
    let border = (0..=PAGES / 512).prop_map(|n| n * 512);
    let point = prop_oneof![border, 0..=PAGES];
    let range = (point.clone(), point).prop_map(|(a, b)| GpnRange { start: Gpn(FIRST + a.min(b)), pages: a.max(b) - a.min(b) });
    let flags = prop::sample::select(&FLAGS[..]);
    let memory = prop_oneof![Just(MemoryType::WriteBack), Just(MemoryType::Uncacheable)];
    let skew = prop_oneof![3 => Just(0_u64), 1 => Just(512), 1 => 0..4_u64];
    let access = prop::sample::select(&Access::ALL[..]);
    prop_oneof![
        4 => (range.clone(), skew, flags.clone(), memory).prop_map(|(r, skew, f, m)| Operation::Map(r, Frame(r.start.0 + skew), f, m)),
        2 => range.clone().prop_map(Operation::Unmap),
        5 => (range.clone(), flags).prop_map(|(r, f)| Operation::Protect(r, f)),
        1 => range.prop_map(Operation::Merge),
        1 => Just(Operation::Reclaim),
        3 => (0..PAGES, access).prop_map(|(gpn, access)| Operation::Walk(Gpn(FIRST + gpn), access)),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Page {
    frame: Frame,
    flags: MapGpaFlags,
    memory: MemoryType,
    /// A write by this page: it must be found dirty. Others may be too, whose leaf was theirs.
    written: bool,
}

#[derive(Debug, Default)]
struct Model(BTreeMap<u64, Page>);

impl Model {
    /// What the tables must answer, but for a lack of tables; the model is changed if that is `Ok`.
    fn apply(&mut self, operation: &Operation) -> Result<(), SlatError> {
        let refused =
            |flags: MapGpaFlags| (flags == MapGpaFlags::WRITABLE).then_some(SlatError::CannotRepresent(CannotRepresent::Flags(flags)));
        match *operation {
            Operation::Map(range, first, flags, memory) => {
                if let Some(why) = refused(flags) {
                    return Err(why);
                }
                if let Some(taken) = range.iter().find(|g| self.0.contains_key(&g.0)) {
                    return Err(SlatError::AlreadyMapped(taken));
                }
                let page = |gpn: Gpn| Page { frame: Frame(first.0 + gpn.0 - range.start.0), flags, memory, written: false };
                self.0.extend(range.iter().map(|gpn| (gpn.0, page(gpn))));
            }
            Operation::Unmap(range) => {
                self.mapped(range)?;
                self.0.retain(|gpn, _| !range.contains(Gpn(*gpn)));
            }
            Operation::Protect(range, flags) => {
                if let Some(why) = refused(flags) {
                    return Err(why);
                }
                self.mapped(range)?;
                range.iter().for_each(|gpn| self.0.get_mut(&gpn.0).unwrap().flags = flags);
            }
            Operation::Merge(_) | Operation::Reclaim | Operation::Walk(..) => {}
        }
        Ok(())
    }

    fn mapped(&self, range: GpnRange) -> Result<(), SlatError> {
        range.iter().find(|g| !self.0.contains_key(&g.0)).map_or(Ok(()), |hole| Err(SlatError::NotMapped(hole)))
    }

    fn check<E: Encoding>(&self, slat: &Slat<E>) {
        for gpn in FIRST..FIRST + PAGES {
            let leaf = slat.get(Gpn(gpn));
            let page = self.0.get(&gpn);
            let said = |leaf: &Leaf| (leaf.frame, leaf.flags, leaf.memory);
            assert_eq!(leaf.as_ref().map(said), page.map(|p| (p.frame, p.flags, p.memory)), "{gpn:#x}");
            if let (Some(page), true) = (page, slat.has_accessed_dirty()) {
                assert!(!page.written || leaf.unwrap().dirty, "a write to {gpn:#x} is lost");
            }
        }
    }
}

fn run<E: Encoding>(slat: &Slat<E>, operations: &[Operation]) {
    let mut model = Model::default();
    for operation in operations {
        let before = dump(slat);
        let answer = match *operation {
            Operation::Map(range, first, flags, memory) => slat.map(range, first, flags, memory),
            Operation::Unmap(range) => slat.unmap(range),
            Operation::Protect(range, flags) => slat.protect(range, flags),
            Operation::Merge(range) => slat.merge(range).map(drop),
            Operation::Reclaim => {
                slat.reclaim();
                assert_eq!(slat.free_tables().1, 0);
                Ok(())
            }
            Operation::Walk(gpn, access) => {
                walk(slat, &mut model, gpn, access);
                Ok(())
            }
        };
        match answer {
            Err(SlatError::OutOfTables { needed, free }) => {
                assert!(needed > free && free == slat.free_tables().0);
            }
            // which of several reasons is told is not the point, but that there is one
            Err(SlatError::AlreadyMapped(_)) => assert!(matches!(model.apply(operation), Err(SlatError::AlreadyMapped(_)))),
            _ => assert_eq!(answer, model.apply(operation)),
        }
        if answer.is_err() {
            assert_eq!(dump(slat), before, "an error changed something");
        }
        model.check(slat);
    }
    // nothing is lost: when everything is gone, all tables are there again
    for range in slat.leaves(GpnRange { start: Gpn(0), pages: 1 << 36 }).map(|(range, _)| range).collect::<Vec<_>>() {
        slat.unmap(range).unwrap();
    }
    slat.reclaim();
    assert_eq!(slat.free_tables(), (TABLES - 1, 0));
}

fn walk<E: Encoding>(slat: &Slat<E>, model: &mut Model, gpn: Gpn, access: Access) {
    let gpa = Gpa(gpn.gpa().unwrap().0 + 0xabc);
    let walked = slat.walk(gpa, access, MBEC);
    // an empty TLB is no other way of walking
    assert_eq!(Tlb::new(4).access(slat, gpa, access, MBEC).map(|l| l.frame).ok(), walked.map(|l| l.frame).ok());
    match (model.0.get_mut(&gpn.0), walked) {
        (None, Err(violation)) => assert_eq!(violation.kind, ViolationKind::NotPresent),
        (Some(page), Err(violation)) => {
            assert_eq!((violation.kind, page.flags.allows(access)), (ViolationKind::Permission, false));
        }
        (page, Ok(leaf)) => {
            let page = page.unwrap();
            assert!(page.flags.allows(access));
            assert_eq!((leaf.frame, leaf.flags, leaf.memory), (page.frame, page.flags, page.memory));
            page.written |= access == Access::Write;
        }
    }
}

fn dump<E: Encoding>(slat: &Slat<E>) -> Vec<(GpnRange, Leaf)> {
    slat.leaves(GpnRange { start: Gpn(0), pages: 1 << 36 }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn extended_tables_do_as_the_model(operations in prop::collection::vec(operation(), 1..24)) {
        run(&Slat::<Ept>::new(TABLES), &operations);
    }

    #[test]
    fn extended_tables_with_bits_do_as_the_model(operations in prop::collection::vec(operation(), 1..24)) {
        run(&Slat::<Ept>::with_accessed_dirty(TABLES), &operations);
    }

    #[test]
    fn nested_tables_do_as_the_model(operations in prop::collection::vec(operation(), 1..24)) {
        run(&Slat::<Npt>::with_accessed_dirty(TABLES), &operations);
    }

    #[test]
    fn no_entry_makes_a_decoder_panic_or_lie(entry: u64, level in 1_u32..=4) {
        any_entry::<Ept>(entry, level);
        any_entry::<Npt>(entry, level);
    }
}

fn any_entry<E: Encoding>(entry: u64, level: u32) {
    let Some(size) = super::LeafSize::at(level) else { return };
    let leaf = E::decode(entry, size, MBEC);
    // what it says can be said again, or cannot be said in this format at all
    if let Ok(again) = E::encode(&leaf) {
        assert_eq!(E::decode(again, size, MBEC), leaf);
    }
    let slat = Slat::<E>::new(8);
    slat.map(GpnRange { start: Gpn(0), pages: 1 }, Frame(1), MapGpaFlags::DATA, MemoryType::WriteBack).unwrap();
    slat.corrupt(Gpn(0), level, entry);
    for access in Access::ALL {
        _ = slat.walk(Gpa(0), access, MBEC);
    }
    _ = slat.protect(GpnRange { start: Gpn(0), pages: 1 }, MapGpaFlags::READABLE);
    _ = slat.unmap(GpnRange { start: Gpn(0), pages: 1 });
    _ = slat.merge(GpnRange { start: Gpn(0), pages: 512 });
}
