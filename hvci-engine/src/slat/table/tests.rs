#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::{
    access::Access,
    addr::Gpa,
    slat::{Npt, Violation, ViolationKind},
};

const RW: MapGpaFlags = MapGpaFlags(3);
const RO: MapGpaFlags = MapGpaFlags::READABLE;
const MBEC: Mode = Mode { mbec: true };
const TWO_MIB: u64 = 512;
const ONE_GIB: u64 = 512 * 512;

fn pages(start: u64, pages: u64) -> GpnRange {
    GpnRange { start: Gpn(start), pages }
}

/// Ranges with first frame, flags and size of leaf.
fn dump<E: Encoding>(slat: &Slat<E>) -> Vec<(u64, u64, u64, u32, u64)> {
    slat.leaves(pages(0, 1 << 36)).map(|(r, l)| (r.start.0, r.pages, l.frame.0, l.flags.0, l.size.pages())).collect()
}

fn map<E: Encoding>(slat: &Slat<E>, start: u64, count: u64, frame: u64) -> Result<(), SlatError> {
    slat.map(pages(start, count), Frame(frame), RW, MemoryType::WriteBack)
}

#[test]
fn the_largest_leaves_that_fit_are_used() {
    let slat = Slat::<Ept>::new(16);
    map(&slat, ONE_GIB - 513, ONE_GIB + 1026, 5 * ONE_GIB - 513).unwrap();
    assert_eq!(
        dump(&slat),
        [
            (ONE_GIB - 513, 1, 5 * ONE_GIB - 513, 3, 1),
            (ONE_GIB - 512, 512, 5 * ONE_GIB - 512, 3, TWO_MIB),
            (ONE_GIB, ONE_GIB, 5 * ONE_GIB, 3, ONE_GIB),
            (2 * ONE_GIB, 512, 6 * ONE_GIB, 3, TWO_MIB),
            (2 * ONE_GIB + 512, 1, 6 * ONE_GIB + 512, 3, 1),
        ]
    );
    // a frame that is not aligned as its page is makes small leaves of everything
    let odd = Slat::<Ept>::new(16);
    map(&odd, 0, 1024, 1).unwrap();
    assert_eq!(dump(&odd), [(0, 1024, 1, 3, 1)]);
}

#[test]
fn nothing_changes_when_something_is_in_the_way() {
    let slat = Slat::<Ept>::new(16);
    map(&slat, 0x300, 1, 7).unwrap();
    let before = (dump(&slat), slat.free_tables());
    assert_eq!(map(&slat, 0, 0x400, 0x1000), Err(SlatError::AlreadyMapped(Gpn(0x300))));
    assert_eq!(slat.protect(pages(0x300, 2), RO), Err(SlatError::NotMapped(Gpn(0x301))));
    assert_eq!(slat.unmap(pages(0x2ff, 2)), Err(SlatError::NotMapped(Gpn(0x2ff))));
    assert_eq!(map(&slat, 1 << 36, 1, 0), Err(SlatError::OutOfRange(pages(1 << 36, 1))));
    assert_eq!(map(&slat, 0, 2, (1 << 40) - 1), Err(SlatError::OutOfRange(pages(0, 2))));
    assert_eq!(slat.protect(pages(0, u64::MAX), RO), Err(SlatError::OutOfRange(pages(0, u64::MAX))));
    let bad = CannotRepresent::Flags(MapGpaFlags::WRITABLE);
    assert_eq!(slat.protect(pages(0x300, 1), MapGpaFlags::WRITABLE), Err(bad.into()));
    assert_eq!((dump(&slat), slat.free_tables()), before);
    // of nothing there is nothing to do
    assert_eq!([slat.unmap(pages(5, 0)), slat.protect(pages(5, 0), RO), map(&slat, 5, 0, 0)], [Ok(()); 3]);
    assert_eq!((dump(&slat), slat.free_tables()), before);
}

#[test]
fn a_page_of_a_gibibyte_is_protected_and_made_whole_again() {
    let slat = Slat::<Ept>::new(8);
    map(&slat, 0, ONE_GIB, ONE_GIB).unwrap();
    assert_eq!(slat.free_tables(), (6, 0));
    slat.protect(pages(0x1234, 1), RO).unwrap();
    assert_eq!(slat.free_tables(), (4, 0));
    assert_eq!(
        dump(&slat),
        [
            (0, 0x1200, ONE_GIB, 3, TWO_MIB),
            (0x1200, 0x34, ONE_GIB + 0x1200, 3, 1),
            (0x1234, 1, ONE_GIB + 0x1234, 1, 1),
            (0x1235, 0x1cb, ONE_GIB + 0x1235, 3, 1),
            (0x1400, ONE_GIB - 0x1400, ONE_GIB + 0x1400, 3, TWO_MIB),
        ]
    );
    // what is so already splits nothing
    slat.protect(pages(0x2001, 1), RW).unwrap();
    assert_eq!(slat.free_tables(), (4, 0));
    slat.protect(pages(0x1234, 1), RW).unwrap();
    assert_eq!(dump(&slat), [(0, ONE_GIB, ONE_GIB, 3, ONE_GIB)]);
    assert_eq!(slat.free_tables(), (4, 2));
    assert_eq!(slat.reclaim(), 2);
    assert_eq!(slat.free_tables(), (6, 0));
}

#[test]
fn tables_that_run_out_are_an_error_that_changes_nothing() {
    let slat = Slat::<Ept>::new(3);
    map(&slat, 0, ONE_GIB, 0).unwrap();
    let before = dump(&slat);
    let out = |needed, free| Err(SlatError::OutOfTables { needed, free });
    assert_eq!(slat.protect(pages(1, 1), RO), out(2, 1));
    assert_eq!(slat.protect(pages(1, ONE_GIB - 2), RO), out(3, 1));
    assert_eq!(slat.unmap(pages(1, 1)), out(2, 1));
    assert_eq!(map(&slat, ONE_GIB, 2 * TWO_MIB, 1), out(3, 1));
    // a bound on tables bounds the time, whatever the range
    assert_eq!(map(&slat, ONE_GIB, (1 << 36) - ONE_GIB, ONE_GIB + 1), out(3, 1));
    assert_eq!(dump(&slat), before);
    // to the limit of what two megabytes take
    slat.protect(pages(TWO_MIB, TWO_MIB), RO).unwrap();
    assert_eq!(slat.free_tables(), (0, 0));
    assert_eq!(Slat::<Ept>::new(0).free_tables(), (0, 0));
}

#[test]
fn empty_tables_are_replaced_and_come_back() {
    let slat = Slat::<Ept>::new(8);
    map(&slat, 0, 1024, 1).unwrap();
    assert_eq!(slat.free_tables(), (3, 0));
    slat.unmap(pages(0, 512)).unwrap();
    assert_eq!(slat.free_tables(), (3, 1));
    slat.unmap(pages(512, 511)).unwrap();
    assert_eq!(slat.free_tables(), (3, 1));
    slat.unmap(pages(1023, 1)).unwrap();
    assert_eq!((dump(&slat), slat.free_tables()), (Vec::new(), (3, 4)));
    slat.reclaim();
    assert_eq!(slat.free_tables(), (7, 0));
    // a whole subtree at once
    map(&slat, 0, 1024, 1).unwrap();
    slat.unmap(pages(0, 1024)).unwrap();
    assert_eq!((slat.reclaim(), slat.free_tables()), (4, (7, 0)));
}

#[test]
fn a_page_that_may_not_be_touched_is_still_mapped() {
    let slat = Slat::<Ept>::new(8);
    slat.map(pages(0, 512), Frame(0), MapGpaFlags::NONE, MemoryType::Uncacheable).unwrap();
    let leaf = slat.get(Gpn(3)).unwrap();
    assert_eq!((leaf.frame, leaf.flags, leaf.size), (Frame(3), MapGpaFlags::NONE, LeafSize::TwoMib));
    slat.protect(pages(3, 1), RO).unwrap();
    assert_eq!(slat.get(Gpn(4)).unwrap().flags, MapGpaFlags::NONE);
    assert_eq!(slat.walk(Gpa(0x4000), Access::Read, MBEC).unwrap_err().kind, ViolationKind::Permission);
    assert_eq!(slat.walk(Gpa(0x3000), Access::Read, MBEC).unwrap().frame, Frame(3));
    assert_eq!(map(&slat, 4, 1, 9), Err(SlatError::AlreadyMapped(Gpn(4))));
}

#[test]
fn merging_takes_what_is_alike_and_follows() {
    let slat = Slat::<Ept>::new(16);
    for gpn in 0..512 {
        map(&slat, gpn, 1, 512 + gpn).unwrap();
        map(&slat, 512 + gpn, 1, 512 + (gpn ^ 1)).unwrap();
        map(&slat, 1024 + gpn, 1, 1 + gpn).unwrap();
    }
    assert_eq!(slat.merge(pages(0, 511)), Ok(0));
    assert_eq!(slat.merge(pages(0, 1536)), Ok(1));
    assert_eq!(dump(&slat).first(), Some(&(0, 512, 512, 3, 512)));
    assert_eq!(dump(&slat).last(), Some(&(1024, 512, 1, 3, 1)));
    assert_eq!(slat.merge(pages(1 << 36, 1)), Err(SlatError::OutOfRange(pages(1 << 36, 1))));
}

#[test]
fn accessed_and_dirty_bits_are_carried_over() {
    let slat = Slat::<Ept>::with_accessed_dirty(8);
    map(&slat, 0, 512, 512).unwrap();
    let bits = |gpn| slat.get(Gpn(gpn)).map(|l| (l.accessed, l.dirty, l.size.pages()));
    assert_eq!(bits(0), Some((false, false, 512)));
    slat.walk(Gpa(0x1000), Access::Read, MBEC).unwrap();
    assert_eq!(bits(0), Some((true, false, 512)));
    assert!(slat.walk(Gpa(0x1000), Access::Write, MBEC).unwrap().dirty);
    slat.protect(pages(7, 1), RO).unwrap();
    assert_eq!([bits(7), bits(8)], [Some((true, true, 1)); 2]);
    // all are alike, and nothing is left to set
    slat.protect(pages(7, 1), RW).unwrap();
    assert_eq!(bits(7), Some((true, true, 512)));
    // a violation sets nothing, and where something is left to set nothing is merged
    map(&slat, 512, 512, 1024).unwrap();
    slat.protect(pages(519, 1), RO).unwrap();
    assert!(slat.walk(Gpa(519 << 12), Access::Write, MBEC).is_err());
    assert_eq!(bits(519), Some((false, false, 1)));
    slat.protect(pages(519, 1), RW).unwrap();
    assert_eq!(bits(519), Some((false, false, 1)));
}

#[test]
fn without_such_bits_a_walk_writes_nothing() {
    let slat = Slat::<Ept>::new(8);
    map(&slat, 0, 1, 1).unwrap();
    slat.walk(Gpa(0), Access::Write, MBEC).unwrap();
    assert_eq!(slat.get(Gpn(0)).map(|l| (l.accessed, l.dirty)), Some((false, false)));
}

#[test]
fn violations_say_what_and_why() {
    let slat = Slat::<Ept>::new(8);
    slat.map(pages(0, 1), Frame(1), MapGpaFlags::DATA, MemoryType::WriteBack).unwrap();
    slat.map(pages(1, 1), Frame(2), MapGpaFlags::CODE, MemoryType::WriteBack).unwrap();
    let raised = |gpa, access, mbec| {
        let Violation { qualification, kind, .. } = slat.walk(Gpa(gpa), access, Mode { mbec }).unwrap_err();
        (qualification.0, kind)
    };
    assert_eq!(raised(0xfff, Access::KernelExecute, true), (0b101_1100, ViolationKind::Permission));
    assert_eq!(raised(0xfff, Access::UserExecute, false), (0b001_1100, ViolationKind::Permission));
    assert_eq!(raised(0x1000, Access::Write, true), (0b110_1010, ViolationKind::Permission));
    assert_eq!(raised(0x2000, Access::Read, true), (0b1, ViolationKind::NotPresent));
    assert_eq!(raised(1 << 48, Access::Write, true), (0b10, ViolationKind::NotPresent));
    assert_eq!(raised(u64::MAX, Access::Read, true), (0b1, ViolationKind::NotPresent));
    let seen = slat.walk(Gpa(0x1000), Access::Write, MBEC).unwrap_err().qualification;
    assert_eq!([seen.of_linear(false).0, seen.of_linear(true).0], [0b1_1110_1010, 0b0_1110_1010]);
    assert_eq!(slat.walk(Gpa(0x1fff), Access::UserExecute, MBEC).unwrap().frame, Frame(2));
}

#[test]
fn what_no_processor_would_use_is_a_misconfiguration() {
    for (level, entry, why) in [
        (1, 0x1002, Misconfiguration::WriteOnly),
        (1, 0x1017, Misconfiguration::MemoryType),
        (2, 0x1047, Misconfiguration::Reserved),
        (3, 0x4000_1087, Misconfiguration::Reserved),
        (4, 0x0fff_f007, Misconfiguration::Table),
    ] {
        let slat = Slat::<Ept>::new(8);
        map(&slat, 0, 1, 1).unwrap();
        slat.corrupt(Gpn(0), level, entry);
        assert_eq!(slat.walk(Gpa(0), Access::Read, MBEC).unwrap_err().kind, ViolationKind::Misconfigured(why));
        assert_eq!(slat.protect(pages(0, 1), RO), Err(why.into()));
        assert_eq!(dump(&slat), []);
    }
}

#[test]
fn what_one_level_forbids_no_other_gives_back() {
    let walk = |entry| {
        let slat = Slat::<Ept>::new(8);
        slat.map(pages(0, 1), Frame(1), MapGpaFlags(0xf), MemoryType::WriteBack).unwrap();
        slat.corrupt(Gpn(0), 3, entry);
        (slat.get(Gpn(0)).map(|l| l.flags), slat.walk(Gpa(0), Access::Write, MBEC).is_ok())
    };
    assert_eq!(walk(Ept::table(2)), (Some(MapGpaFlags(0xf)), true));
    assert_eq!(walk(Ept::table(2) & !2), (Some(MapGpaFlags(0xd)), false));
    assert_eq!(walk(Ept::table(2) & !0x404), (Some(MapGpaFlags(3)), true));
    // NX of any level counts, and so does a user bit that is missing: then GMET has nothing to trap
    let nested = |entry| {
        let slat = Slat::<Npt>::new(8);
        slat.map(pages(0, 1), Frame(1), MapGpaFlags::DATA, MemoryType::WriteBack).unwrap();
        slat.corrupt(Gpn(0), 3, entry);
        slat.get(Gpn(0)).map(|l| l.flags)
    };
    assert_eq!(nested(Npt::table(2)), Some(MapGpaFlags::DATA));
    assert_eq!(nested(Npt::table(2) | 1 << 63), Some(RW));
    assert_eq!(nested(Npt::table(2) & !4), Some(MapGpaFlags::DATA | MapGpaFlags::KERNEL_EXECUTABLE));
}

#[test]
fn nested_tables_split_and_merge_as_extended_ones() {
    let slat = Slat::<Npt>::with_accessed_dirty(8);
    slat.map(pages(0, ONE_GIB), Frame(ONE_GIB), MapGpaFlags::DATA, MemoryType::WriteBack).unwrap();
    slat.walk(Gpa(0), Access::Write, MBEC).unwrap();
    slat.protect(pages(3, 1), MapGpaFlags::CODE).unwrap();
    assert_eq!(slat.walk(Gpa(0x3000), Access::KernelExecute, MBEC).unwrap().frame, Frame(ONE_GIB + 3));
    assert!(slat.walk(Gpa(0x2000), Access::KernelExecute, MBEC).is_err());
    let refused = MapGpaFlags::READABLE | MapGpaFlags::KERNEL_EXECUTABLE;
    assert_eq!(slat.protect(pages(3, 1), refused), Err(CannotRepresent::Flags(refused).into()));
    slat.protect(pages(3, 1), MapGpaFlags::DATA).unwrap();
    assert_eq!(dump(&slat), [(0, ONE_GIB, ONE_GIB, 11, ONE_GIB)]);
    assert!(slat.get(Gpn(5)).unwrap().dirty);
}
