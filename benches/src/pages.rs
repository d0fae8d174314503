//! Single pages: their digests beside that of the whole image, and what it would cost to verify one when it is first executed.
//!
//! The engine compares every page when a module is loaded, so nothing is verified at first execution: that row is put together here from what
//! the engine has, and nothing in it does so.

use std::{hint::black_box, sync::Arc};

use anyhow::{Context, Result};
use hvci_engine::{
    addr::Gpn,
    crypto::{Job, digest, digest_jobs},
    digest::{Digest, DigestAlg},
    frames::Kind,
    host::Host,
    status::HvStatus,
    vsm::partition::Partition,
};
use loader_sim::host::{Config, SimHost};
use serde::Serialize;

use crate::{
    cpu,
    goal::{Goal, Must},
    inputs::noise,
    table::{Table, median, number},
};

const PAGE: usize = 4096;
/// Images whose pages are hashed beside the whole.
const SIZES: [(&str, usize); 3] = [("60 KiB", 60 << 10), ("500 KiB", 500 << 10), ("4 MiB", 4 << 20)];
/// Pages that are executed for the first time, one by one.
const COUNT: u64 = 64;

/// What was measured, by round.
#[derive(Debug, Default, Serialize)]
pub struct Measured {
    /// µs of an image: its digest, and the same with the digests of its pages in one pass. By size.
    pub whole: [Vec<f64>; 3],
    /// As [`whole`](Self::whole).
    pub both: [Vec<f64>; 3],
    /// µs of one page: its digest alone.
    pub digest: Vec<f64>,
    /// µs of one page: its digest looked up and compared while it is locked, and the page made executable.
    pub execute: Vec<f64>,
}

/// Measures in turn, so many rounds.
///
/// # Errors
/// None that occurs.
pub fn measure(rounds: usize) -> Result<Measured> {
    let images = SIZES.map(|(_, len)| noise(len, 1));
    let machine = Machine::new()?;
    let mut measured = Measured::default();
    for _ in 0..rounds {
        for ((image, whole), both) in images.iter().zip(&mut measured.whole).zip(&mut measured.both) {
            let times = u32::try_from((8 << 20) / image.len())?;
            whole.push(micros(times, || _ = black_box(digest(DigestAlg::Sha256, &[image]))));
            both.push(micros(times, || drop(black_box(with_pages(image)))));
        }
        measured.digest.push(machine.digests());
        measured.execute.push(machine.execute()?);
    }
    Ok(measured)
}

fn micros(times: u32, mut work: impl FnMut()) -> f64 {
    let before = cpu::thread();
    (0..times).for_each(|_| work());
    (cpu::thread() - before).as_secs_f64() * 1e6 / f64::from(times)
}

/// The digest of an image, then those of its pages.
fn with_pages(image: &[u8]) -> Vec<Digest> {
    let pieces = std::iter::once(image).chain(image.chunks(PAGE));
    let jobs: Vec<Job<'_>> = pieces.map(|piece| Job { alg: DigestAlg::Sha256, pieces: vec![piece] }).collect();
    digest_jobs(&jobs)
}

/// A guest with pages of which the digests are known.
struct Machine {
    host: Arc<SimHost>,
    partition: Arc<Partition>,
    bytes: Vec<u8>,
    table: Vec<Digest>,
}

impl Machine {
    fn new() -> Result<Self> {
        let (host, partition) = SimHost::with_partition(&Config { pages: 2 * COUNT, records: 16, ..Config::default() })?;
        let bytes = noise(usize::try_from(COUNT)? * PAGE, 2);
        let table = bytes.chunks(PAGE).map(|page| digest(DigestAlg::Sha256, &[page])).collect();
        Ok(Self { host, partition, bytes, table })
    }

    fn digests(&self) -> f64 {
        micros(20, || self.bytes.chunks(PAGE).for_each(|page| _ = black_box(digest(DigestAlg::Sha256, &[page])))) / 64.0
    }

    /// Makes every page executable, one at a time, and all of them data again.
    fn execute(&self) -> Result<f64> {
        let mut took = 0.0;
        for _ in 0..20 {
            for (gpn, page) in (0..COUNT).map(Gpn).zip(self.bytes.chunks(PAGE)) {
                self.host.write(gpn.gpa().context("no page")?, page)?;
            }
            let mut result = Ok(());
            took +=
                micros(1, || result = (0..COUNT).map(Gpn).zip(&self.table).try_for_each(|(gpn, known)| self.make_executable(gpn, known)));
            result?;
            let back: Vec<_> = (0..COUNT).map(|gpn| (Gpn(gpn), Kind::Data)).collect();
            self.partition.transform(1, &back, || Err(HvStatus::OPERATION_DENIED))?;
        }
        Ok(took / 20.0 / 64.0)
    }

    fn make_executable(&self, gpn: Gpn, known: &Digest) -> Result<(), HvStatus> {
        let inspect = || {
            let mut page = [0; PAGE];
            self.host.read(gpn.gpa().ok_or(HvStatus::INVALID_PARAMETER)?, &mut page)?;
            if digest(DigestAlg::Sha256, &[&page]) == *known { Ok(()) } else { Err(HvStatus::ACCESS_DENIED) }
        };
        self.partition.transform(1, &[(gpn, Kind::Code)], inspect).map(drop)
    }
}

/// What each takes.
pub fn table(measured: &Measured) -> Table {
    let mut table = Table::new(1, ["pages, µs", "digest", "with pages / first executed"]);
    let images = SIZES.iter().zip(measured.whole.iter().zip(&measured.both)).map(|((name, _), of)| (*name, of));
    for (name, (alone, with)) in images.chain([("one page", (&measured.digest, &measured.execute))]) {
        table.push([name.to_owned(), number(median(alone)), number(median(with))]);
    }
    table
}

/// Rows 5 and 6.
pub fn goals(measured: &Measured) -> Vec<Goal> {
    let ratio = |of: &[f64], to: &[f64]| of.iter().zip(to).map(|(of, to)| of / to).collect();
    let five = "first execution of a page, of pieces (not built) / SHA-256 of a page";
    let mut goals = vec![Goal::new("5", five, Must::AtMost(1.25), ratio(&measured.execute, &measured.digest))];
    for ((size, _), (whole, both)) in SIZES.iter().zip(measured.whole.iter().zip(&measured.both)) {
        let what = format!("digest and those of the pages / digest: {size}");
        goals.push(Goal::new("6", what, Must::AtMost(1.25), ratio(both, whole)));
    }
    goals
}
