//! Pages of code that are out of memory, or not in it yet: verified when they are first executed.
//!
//! ```text
//! page out:    Code ─► its digest is kept ─► executes no more ─► scrubbed ─► the guest's
//! not there:   the digest of what the signed file says of it, when the module is loaded
//! execution of a page that is out ─► lock ─► quiesce ─► digest, equal? ─► Code
//! ```
//!
//! A kernel that pages drivers out, or reads them in page by page, tells nobody when one comes back: it executes it, in whichever guest page it
//! is by then, and the second-level table refuses that. One that holds what belongs at that address becomes code; any other stays data, and the
//! guest gets its #GP. Where the address is mapped to is the guest's business, as for any code.
//!
//! Only code goes out. Constants of which the bytes are the guest's until somebody executes them would be no constants; nobody faults on reading.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::{iter, sync::Arc};

use super::{
    Loader,
    guest_tables::page_of,
    loader::Modules,
    module::Life,
    pages::{PAGE, page_jobs},
};
#[cfg(doc)]
use crate::vsm::partition::Partition;
use crate::{
    access::Access,
    addr::{Gpn, GpnRange, Gva, Vtl},
    crypto,
    digest::Digest,
    event::What,
    finding::Code,
    frames::{Kind, State},
    host::{Action, Enforcer, MemoryIntercept, Vp},
    status::HvStatus,
};

/// SHA-256 of each half of a page, side by side: one alone leaves half of a processor idle, and a guest waits for it.
pub(super) type Halves = [Digest; 2];

/// How many pages come in together, at most.
const TOGETHER: usize = 3;

/// What is known of a page that is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Out {
    /// Whose it is.
    pub(super) module: u32,
    /// SHA-256 of each half of what it must hold when it comes.
    pub(super) halves: Halves,
}

impl Out {
    /// The digests of pages that are not there yet.
    pub(super) fn of(pages: &[(Gva, &[u8; PAGE])]) -> Vec<(Gva, Halves)> {
        pages.iter().map(|(at, _)| *at).zip(page_digests(pages.iter().map(|(_, page)| *page))).collect()
    }
}

/// Pages on their way in, whose module nobody else changes meanwhile.
struct Coming {
    module: u32,
    /// The one that is executed, and those behind it that are out too.
    pages: Vec<(Gva, Halves)>,
    /// For the event.
    transition: String,
}

/// A page that is said to have come.
struct Come {
    at: Gva,
    gpn: Gpn,
    halves: Halves,
}

impl Loader {
    /// Takes a page of a module's code out of memory: it executes no more, is scrubbed, and is the guest's again. Until it is
    /// [back](Self::on_memory), no instruction in it is [patched](Self::patch).
    ///
    /// # Errors
    /// [`HvStatus::ACCESS_DENIED`] for an address that is not in code of that module that is in memory; [`HvStatus::OPERATION_DENIED`] for a page
    /// that an earlier change left half-way; as [`Partition::transform`]. Nothing is changed then, or the page is quarantined.
    pub fn page_out(&self, id: u32, at: Gva) -> Result<(), HvStatus> {
        let module = self.take(id)?;
        let page = at.page();
        let result = match module.segments.iter().find(|s| s.kind == Kind::Code && s.contains(at)).and_then(|_| module.gpn_of(at)) {
            // quarantined by a change that failed half-way: what stands there now is no code
            Some(gpn) if self.partition.state(gpn) != Some(State { kind: Kind::Code, owner: id }) => Err(HvStatus::OPERATION_DENIED),
            Some(gpn) => {
                // sealed: nobody changes it before it is out
                let halves = self.digests(iter::once(gpn)).and_then(|of| of.first().copied().ok_or(HvStatus::INVALID_PARAMETER));
                halves.and_then(|halves| self.change(id, format!("page out: {}", module.name), &[(gpn, Kind::Data)]).map(|()| halves))
            }
            None => Err(HvStatus::ACCESS_DENIED),
        };
        if let Ok(halves) = result {
            self.modules().out.insert(page, Out { module: id, halves });
        }
        self.settle(id, |module| {
            if result.is_ok() {
                module.set_page(page, None);
            }
        })?;
        result.map(drop)
    }

    /// Answers an access of VTL0 that the second-level table refused, in place of the [`Partition`]: execution of a page that is out has it
    /// verified, and if it is what belongs there, the processor goes on.
    pub fn on_memory(&self, vp: &mut dyn Vp, intercept: &MemoryIntercept) -> Action {
        if let MemoryIntercept { gpa, gva: Some(at), access: Access::KernelExecute, page_walk: false, .. } = *intercept {
            match self.coming(at) {
                // another processor has it verified, or something else happens to its module
                Err(_) => return Action::Resume,
                Ok(Some(coming)) => {
                    if self.page_in(coming, gpa.gpn(), vp).is_ok() {
                        return Action::Resume;
                    }
                }
                Ok(None) => {}
            }
        }
        self.partition.on_memory(vp, intercept)
    }

    /// Takes the module of a page that is out for a change. `None` if there is no such page at this address.
    fn coming(&self, at: Gva) -> Result<Option<Coming>, HvStatus> {
        let at = at.page();
        let mut modules = self.modules();
        let Modules { of, out, .. } = &mut *modules;
        let Some(Out { module: id, .. }) = out.get(&at).copied() else { return Ok(None) };
        let Some(module) = of.get_mut(&id) else { return Ok(None) };
        if module.life != Life::Live {
            return Err(HvStatus::OBJECT_IN_USE);
        }
        let module = Arc::make_mut(module);
        module.life = Life::Changing;
        let behind = out.range(at..).zip((at.0..).step_by(PAGE)).take(TOGETHER);
        let pages =
            behind.take_while(|((page, out), next)| page.0 == *next && out.module == id).map(|((page, out), _)| (*page, out.halves));
        Ok(Some(Coming { module: id, pages: pages.collect(), transition: ["page in: ", &module.name].concat() }))
    }

    fn page_in(&self, coming: Coming, gpn: Gpn, vp: &dyn Vp) -> Result<(), HvStatus> {
        let Coming { module: id, pages, transition } = coming;
        let is_data = |gpn: &Gpn| self.partition.state(*gpn).is_some_and(|state| state.kind == Kind::Data);
        let mut come = Vec::with_capacity(TOGETHER);
        for (at, halves) in pages {
            let place = if come.is_empty() { Some(gpn) } else { page_of(vp, &self.partition, at).filter(is_data) };
            come.extend(place.map(|gpn| Come { at, gpn, halves }));
        }
        let mut kept = Vec::with_capacity(TOGETHER);
        let mut result = self.admit(id, &come, &mut kept);
        if result.is_err() && come.len() > 1 {
            // whatever is wrong with the others, the guest waits for one
            come.truncate(1);
            result = self.admit(id, &come, &mut kept);
        }
        let mut modules = self.modules();
        let Modules { of, out, .. } = &mut *modules;
        if let Some(module) = of.get_mut(&id) {
            let module = Arc::make_mut(module);
            module.life = Life::Live;
            for (at, gpn) in kept {
                module.set_page(at, Some(gpn));
                out.remove(&at);
            }
        }
        drop(modules);
        let what = What::Change { transition, pages: GpnRange::of_pages(come.iter().map(|page| page.gpn)) };
        let (status, code) = match result {
            Ok(()) => (HvStatus::SUCCESS, None),
            Err(status) => (status, Some(Code::MemMismatch)),
        };
        self.partition.record(Some(vp.index()), Vtl::Vtl0, what, status, code);
        result
    }

    /// Makes pages code if each holds what belongs there, all of them or none. Adds to `kept` those that are the module's from now on.
    fn admit(&self, id: u32, come: &[Come], kept: &mut Vec<(Gva, Gpn)>) -> Result<(), HvStatus> {
        let is_quarantined = |gpn| self.partition.state(gpn) == Some(State { kind: Kind::Quarantined, owner: id });
        let new: Vec<&Come> = come.iter().filter(|page| !is_quarantined(page.gpn)).collect();
        let changes: Vec<(Gpn, Kind)> = come.iter().map(|page| (page.gpn, Kind::Code)).collect();
        let inspect = || {
            let same = self.digests(come.iter().map(|page| page.gpn))?.iter().eq(come.iter().map(|page| &page.halves));
            if same { Ok(()) } else { Err(HvStatus::ACCESS_DENIED) }
        };
        let result = self.partition.transform(id, &changes, inspect);
        // what a failing host has left half-way now is the module's, which gives it up when it is unloaded
        kept.extend(new.iter().filter(|page| result.is_ok() || is_quarantined(page.gpn)).map(|page| (page.at, page.gpn)));
        result
    }

    /// Of each page, as it stands.
    fn digests(&self, gpns: impl ExactSizeIterator<Item = Gpn>) -> Result<Vec<Halves>, HvStatus> {
        let mut pages = vec![[0; PAGE]; gpns.len()];
        for (page, gpn) in pages.iter_mut().zip(gpns) {
            self.partition.host().read(gpn.gpa().ok_or(HvStatus::INVALID_PARAMETER)?, page)?;
        }
        Ok(page_digests(pages.iter()))
    }
}

fn page_digests<'p>(pages: impl Iterator<Item = &'p [u8; PAGE]>) -> Vec<Halves> {
    let digests = crypto::digest_jobs(&page_jobs(pages.flat_map(|page| page.chunks(PAGE / 2))));
    digests.as_chunks().0.to_vec()
}
