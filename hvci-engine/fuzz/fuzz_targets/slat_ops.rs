//! Second-level tables: operations in any order on few tables, with a TLB beside. Eight bytes are one operation.
#![no_main]

use hvci_engine::{
    access::{Access, MapGpaFlags},
    addr::{Frame, Gpa, Gpn, GpnRange, PAGE_SIZE},
    slat::{Encoding, Ept, Leaf, MemoryType, Mode, Npt, Slat, Tlb},
};
use libfuzzer_sys::fuzz_target;

const TABLES: usize = 24;
const MODE: Mode = Mode { mbec: true };

fuzz_target!(|data: &[u8]| {
    let Some((which, operations)) = data.split_first() else { return };
    match which % 4 {
        0 => run(Slat::<Ept>::new(TABLES), operations),
        1 => run(Slat::<Ept>::with_accessed_dirty(TABLES), operations),
        2 => run(Slat::<Npt>::new(TABLES), operations),
        _ => run(Slat::<Npt>::with_accessed_dirty(TABLES), operations),
    }
});

fn run<E: Encoding>(slat: Slat<E>, operations: &[u8]) {
    let mut tlb = Tlb::new(16);
    for operation in operations.chunks_exact(8).take(256) {
        let &[what, scale, start, start_low, len, len_low, frame, flags] = operation else { return };
        // pages, 2 MiB and 1 GiB, and now and then numbers that are far too large
        let unit = match scale % 8 {
            0..=2 => 1_u64,
            3 | 4 => 512,
            5 | 6 => 512 * 512,
            _ => 1 << 30,
        };
        let page = u64::from(start) * unit + u64::from(start_low % 4);
        let range = GpnRange { start: Gpn(page), pages: u64::from(len % 8) * unit + u64::from(len_low) };
        let first = Frame(if frame < 200 { page + u64::from(frame % 4) * 512 } else { page ^ u64::from(frame) << 33 });
        let (flags, mapped) = (MapGpaFlags(u32::from(flags)), |slat: &Slat<E>| sum(slat).0);
        let before = snapshot(&slat);
        let answer = match what % 8 {
            0 | 1 => {
                let count = mapped(&slat);
                let answer = slat.map(range, first, flags, MemoryType::WriteBack);
                assert_eq!(mapped(&slat), count + if answer.is_ok() { range.pages } else { 0 });
                answer
            }
            2 => {
                let count = mapped(&slat);
                let answer = slat.unmap(range);
                assert_eq!(mapped(&slat), count - if answer.is_ok() { range.pages } else { 0 });
                answer
            }
            3 | 4 => {
                let frames = sum(&slat);
                let answer = slat.protect(range, flags);
                // pages and frames stay what they are
                assert_eq!(sum(&slat), frames);
                if answer.is_ok() {
                    assert!(slat.leaves(range).all(|(_, leaf)| leaf.flags == flags));
                }
                answer
            }
            5 => {
                let frames = sum(&slat);
                let answer = slat.merge(range).map(drop);
                assert_eq!(sum(&slat), frames);
                answer
            }
            6 => {
                slat.reclaim();
                tlb.flush(range);
                Ok(())
            }
            _ => {
                let gpa = Gpa(page.wrapping_mul(PAGE_SIZE));
                let access = Access::ALL[usize::from(len % 4)];
                _ = tlb.access(&slat, gpa, access, MODE);
                let walked = slat.walk(gpa, access, MODE);
                let leaf = slat.get(gpa.gpn());
                assert_eq!(walked.is_ok(), leaf.is_some_and(|leaf: Leaf| leaf.allows(access, MODE)));
                Ok(())
            }
        };
        if answer.is_err() {
            assert_eq!(snapshot(&slat), before, "an error changed something");
        }
    }
}

/// How many pages are mapped, and how far all of them together are from their frames.
fn sum<E: Encoding>(slat: &Slat<E>) -> (u64, u64) {
    slat.leaves(ALL).fold((0, 0), |(pages, sum), (range, leaf)| {
        let difference = leaf.frame.0.wrapping_sub(range.start.0);
        (pages + range.pages, sum.wrapping_add(difference.wrapping_mul(range.pages)))
    })
}

fn snapshot<E: Encoding>(slat: &Slat<E>) -> (Vec<(GpnRange, Leaf)>, (usize, usize)) {
    (slat.leaves(ALL).collect(), slat.free_tables())
}

const ALL: GpnRange = GpnRange { start: Gpn(0), pages: 1 << 36 };
