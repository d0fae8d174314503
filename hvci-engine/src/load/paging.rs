//! Pages of code that are out of memory, or not in it yet: verified when they are first executed.
//!
//! ```text
//! page out:    Code ─► its digest is kept ─► executes no more ─► scrubbed ─► the guest's
//! not there:   the digest of what the signed file says of it, when the module is loaded
//! execution of a page that is out ─► lock ─► quiesce ─► SHA-256, equal? ─► Code
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

use std::sync::Arc;

use super::{
    Loader,
    module::Life,
    pages::{PAGE, page_jobs},
};
#[cfg(doc)]
use crate::vsm::partition::Partition;
use crate::{
    access::Access,
    addr::{Gpn, GpnRange, Gva, Vtl},
    crypto,
    digest::{Digest, DigestAlg},
    event::What,
    finding::Code,
    frames::{Kind, State},
    host::{Action, Enforcer, MemoryIntercept, Vp},
    status::HvStatus,
};

/// What is known of a page that is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Out {
    /// Whose it is.
    pub(super) module: u32,
    /// SHA-256 of what it must hold when it comes.
    pub(super) digest: Digest,
}

impl Out {
    /// The digests of pages that are not there yet.
    pub(super) fn of(pages: &[(Gva, &[u8; PAGE])]) -> Vec<(Gva, Digest)> {
        let digests = crypto::digest_jobs(&page_jobs(pages.iter().map(|(_, page)| page.as_slice())));
        pages.iter().map(|(at, _)| *at).zip(digests).collect()
    }
}

/// A page on its way in, whose module nobody else changes meanwhile.
struct Coming {
    at: Gva,
    out: Out,
    /// For the event.
    transition: String,
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
                let digest = self.digest(gpn);
                digest.and_then(|digest| self.change(id, format!("page out: {}", module.name), &[(gpn, Kind::Data)]).map(|()| digest))
            }
            None => Err(HvStatus::ACCESS_DENIED),
        };
        if let Ok(digest) = result {
            self.modules().out.insert(page, Out { module: id, digest });
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
                    if self.page_in(coming, gpa.gpn(), vp.index()).is_ok() {
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
        let Some(out) = modules.out.get(&at).copied() else { return Ok(None) };
        let Some(module) = modules.of.get_mut(&out.module) else { return Ok(None) };
        if module.life != Life::Live {
            return Err(HvStatus::OBJECT_IN_USE);
        }
        let module = Arc::make_mut(module);
        module.life = Life::Changing;
        Ok(Some(Coming { at, out, transition: ["page in: ", &module.name].concat() }))
    }

    fn page_in(&self, coming: Coming, gpn: Gpn, vp: u32) -> Result<(), HvStatus> {
        let Coming { at, out, transition } = coming;
        let quarantined = Some(State { kind: Kind::Quarantined, owner: out.module });
        let before = self.partition.state(gpn);
        let inspect = || if self.digest(gpn)? == out.digest { Ok(()) } else { Err(HvStatus::ACCESS_DENIED) };
        let result = self.partition.transform(out.module, &[(gpn, Kind::Code)], inspect);
        // what a failing host has left half-way now is the module's, which gives it up when it is unloaded
        let kept = result.is_ok() || before != quarantined && self.partition.state(gpn) == quarantined;
        let mut modules = self.modules();
        if let Some(module) = modules.of.get_mut(&out.module) {
            let module = Arc::make_mut(module);
            module.life = Life::Live;
            if kept {
                module.set_page(at, Some(gpn));
                modules.out.remove(&at);
            }
        }
        drop(modules);
        let what = What::Change { transition, pages: vec![GpnRange { start: gpn, pages: 1 }] };
        let (status, code) = match result {
            Ok(()) => (HvStatus::SUCCESS, None),
            Err(status) => (status, Some(Code::MemMismatch)),
        };
        self.partition.record(Some(vp), Vtl::Vtl0, what, status, code);
        result
    }

    fn digest(&self, gpn: Gpn) -> Result<Digest, HvStatus> {
        let mut page = [0; PAGE];
        self.partition.host().read(gpn.gpa().ok_or(HvStatus::INVALID_PARAMETER)?, &mut page)?;
        Ok(crypto::digest(DigestAlg::Sha256, &[&page]))
    }
}
