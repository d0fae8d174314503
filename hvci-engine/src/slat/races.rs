//! Walkers and writers at once: what no walker may ever see.

#![expect(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "tests")]

extern crate std;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::{thread, vec::Vec};

use super::{Encoding, Ept, MemoryType, Mode, Npt, Slat};
use crate::{
    access::{Access, MapGpaFlags},
    addr::{Frame, Gpa, Gpn, GpnRange},
};

const MBEC: Mode = Mode { mbec: true };
const RW: MapGpaFlags = MapGpaFlags(3);
const RO: MapGpaFlags = MapGpaFlags::READABLE;
const PAGES: u64 = 512;

fn pages(start: u64, pages: u64) -> GpnRange {
    GpnRange { start: Gpn(start), pages }
}

/// Runs `write` once, and `walk` over and over on two threads until that ends. How often they walked.
fn beside(write: impl FnOnce() + Send, walk: impl Fn() + Sync) -> u64 {
    let (done, walks) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let walkers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !done.load(SeqCst) {
                        walk();
                        walks.fetch_add(1, SeqCst);
                    }
                })
            })
            .collect();
        // not before both walk: on a busy machine the writer might else be done first
        while walks.load(SeqCst) < 2 && !walkers.iter().any(thread::ScopedJoinHandle::is_finished) {
            thread::yield_now();
        }
        let _ending = Ending(&done);
        write();
    });
    walks.load(SeqCst)
}

/// Says that it is over when it is dropped, by a panic too.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn never_widens<E: Encoding>(slat: &Slat<E>) {
    slat.map(pages(0, PAGES), Frame(PAGES), RO, MemoryType::WriteBack).unwrap();
    // page 7 stays as it is, while all around it is made writable and not, by splits and merges, as a page and as a range
    let walks = beside(
        || {
            for round in 0..400 {
                slat.protect(pages(8 + round % 500, 1), RW).unwrap();
                slat.protect(pages(0, 7), RW).unwrap();
                slat.protect(pages(0, PAGES), RO).unwrap();
                slat.protect(pages(PAGES - 1, 1), RW).unwrap();
                slat.protect(pages(PAGES - 1, 1), RO).unwrap();
            }
        },
        || {
            let leaf = slat.walk(Gpa(7 << 12), Access::Read, MBEC).unwrap();
            assert_eq!((leaf.frame, leaf.flags), (Frame(PAGES + 7), RO));
            assert!(slat.walk(Gpa(7 << 12), Access::Write, MBEC).is_err());
            let neighbour = slat.walk(Gpa(8 << 12), Access::Read, MBEC).unwrap();
            assert!(neighbour.flags == RO || neighbour.flags == RW);
            assert_eq!(neighbour.frame, Frame(PAGES + 8));
        },
    );
    assert!(walks > 0);
}

#[test]
fn nobody_sees_more_than_was_granted() {
    // a table for each split: a walker may be within those that were replaced
    let slat = Slat::<Ept>::new(1024);
    never_widens(&slat);
    assert!(slat.free_tables().1 >= 700, "few splits and merges: {slat:?}");
    never_widens(&Slat::<Npt>::new(1024));
    never_widens(&Slat::<Ept>::with_accessed_dirty(1024));
}

#[test]
fn what_was_taken_away_does_not_come_back() {
    let slat = Slat::<Ept>::with_accessed_dirty(8);
    // no frame is aligned, so nothing is merged and no walk can be in a table that was replaced
    slat.map(pages(0, PAGES), Frame(1), RW, MemoryType::WriteBack).unwrap();
    // odd from when writing was taken away to before it is given back: no walk that begins and ends meanwhile may write
    let taken = AtomicU64::new(0);
    let walks = beside(
        || {
            for round in 0..4_000 {
                slat.protect(pages(round % 3, 3), RO).unwrap();
                taken.fetch_add(1, SeqCst);
                for _ in 0..20 {
                    assert_eq!(slat.get(Gpn(2)).unwrap().flags, RO);
                }
                taken.fetch_add(1, SeqCst);
                slat.protect(pages(0, 5), RW).unwrap();
            }
        },
        || {
            let before = taken.load(SeqCst);
            let wrote = slat.walk(Gpa(2 << 12), Access::Write, MBEC).is_ok();
            assert!(!(wrote && before % 2 == 1 && taken.load(SeqCst) == before), "a write after writing was taken away");
        },
    );
    assert!(walks > 0);
}

#[test]
fn no_write_is_lost() {
    let slat = Slat::<Ept>::with_accessed_dirty(4096);
    // each round has pages that were never written; a write that is granted must be found, whatever the writer does at the time
    for round in 0..40 {
        let start = round * PAGES;
        slat.map(pages(start, PAGES), Frame((round + 1) * PAGES), RW, MemoryType::WriteBack).unwrap();
        beside(
            || {
                for n in 0..50 {
                    slat.protect(pages(start + n * 7 % PAGES, 5.min(PAGES - n * 7 % PAGES)), RO).unwrap();
                    slat.protect(pages(start, PAGES), RW).unwrap();
                }
            },
            || {
                let gpn = start + thread_number() % 8;
                let written = slat.walk(Gpa(gpn << 12), Access::Write, MBEC).is_ok();
                assert!(!written || slat.get(Gpn(gpn)).unwrap().dirty, "a write is lost");
            },
        );
    }
}

/// Something that differs from call to call and from thread to thread.
fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(3, SeqCst)
}
