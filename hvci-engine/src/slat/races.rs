//! Walkers and writers at once: what no walker may ever see.

#![expect(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "tests")]

extern crate std;

use core::{
    hint,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};
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

/// Runs `write` and `walk` at the same time, so often, each time with what `prepare` made, and asks `check` when both are done, with what
/// `walk` answered. The writer waits a little longer each time, so that they meet in every way.
fn together(rounds: u64, prepare: impl Fn(), write: impl Fn(), walk: impl Fn() -> bool + Sync, check: impl Fn(bool)) {
    let (begun, ended, answer) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let until = |counter: &AtomicU64, round| {
        let mut spins = 0;
        while counter.load(SeqCst) < round {
            spins += 1;
            if spins < 10_000 { hint::spin_loop() } else { thread::yield_now() }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            // by a panic on either side the other goes on to its end
            let _ending = Last(&ended);
            for round in 1..=rounds {
                until(&begun, round);
                answer.store(walk(), SeqCst);
                ended.store(round, SeqCst);
            }
        });
        let _ending = Last(&begun);
        for round in 1..=rounds {
            prepare();
            begun.store(round, SeqCst);
            (0..round % 128).for_each(|_| hint::spin_loop());
            write();
            until(&ended, round);
            check(answer.load(SeqCst));
        }
    });
}

/// Says that every round is over when it is dropped.
struct Last<'a>(&'a AtomicU64);

impl Drop for Last<'_> {
    fn drop(&mut self) {
        self.0.store(u64::MAX, SeqCst);
    }
}

#[test]
fn what_was_taken_away_does_not_come_back_and_no_write_is_lost() {
    for (size, repeated) in [(1, 0), (1, 32), (PAGES, 0)] {
        // a leaf that nobody has written to: of one page, whose permission changes in place, or large, which is split for it
        let slat = Slat::<Ept>::with_accessed_dirty(8);
        let gpn = Gpn(size - 1);
        together(
            60_000,
            || {
                if slat.get(gpn).is_some() {
                    slat.unmap(pages(0, size)).unwrap();
                    slat.reclaim();
                }
                slat.map(pages(0, size), Frame(PAGES), RW, MemoryType::WriteBack).unwrap();
            },
            || {
                // as it is already: a write of the same entry, beside the walker's
                (0..repeated).for_each(|_| slat.protect(pages(0, size), RW).unwrap());
                slat.protect(pages(gpn.0, 1), RO).unwrap();
            },
            || slat.walk(Gpa(gpn.0 << 12), Access::Write, MBEC).is_ok(),
            |written| {
                let leaf = slat.get(gpn).unwrap();
                assert_eq!((leaf.flags, leaf.frame, leaf.size.pages()), (RO, Frame(PAGES + gpn.0), 1));
                assert!(leaf.dirty || !written, "a write is lost");
            },
        );
    }
}
