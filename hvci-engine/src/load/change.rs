//! Changes of a module that is loaded: the end of its initialisation, its end, protection of its data, and patches of its code.
//!
//! A module is [taken](Loader::take) for a change and [settled](Loader::settle) after it, so that no two changes of one meet.

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
    module::{Module, Sealed},
    patch::Site,
};
#[cfg(doc)]
use crate::vsm::partition::Partition;
use crate::{
    addr::{Gpa, Gpn, GpnRange, Gva, PAGE_SIZE, Vtl},
    bytes::widen,
    event::What,
    finding::Code,
    frames::{Kind, State},
    status::HvStatus,
};

impl Loader {
    /// The initialisation of a module is over: what only it needed is scrubbed and executes no more; what it made is constant.
    ///
    /// # Errors
    /// [`HvStatus::NOT_FOUND`] for no module that is loaded; as [`Partition::transform`], and nothing is changed then.
    pub fn end_of_initialisation(&self, id: u32) -> Result<(), HvStatus> {
        let module = self.take(id)?;
        let ended = |s: &Sealed| match s.kind {
            kind if s.discardable => kind.is_owned().then_some(Kind::Data),
            Kind::RoAfterInit => Some(Kind::RoData),
            _ => None,
        };
        self.finish(&module, "end of initialisation", &ended, |module| {
            module.segments.retain(|s| !s.discardable);
            let mut sites = core::mem::take(&mut module.sites);
            // imports are optimised before others use a module
            let stays = |at: Gva| module.segments.iter().any(|s| s.contains(at));
            sites.retain(|at, site| site.import_forms().is_none() && stays(*at));
            module.sites = sites;
            module.segments.iter_mut().filter(|s| s.kind == Kind::RoAfterInit).for_each(|s| s.kind = Kind::RoData);
        })
    }

    /// Unloads a module: it executes no more, then what stood in its pages is gone, then they are the guest's again. If the host fails, what is
    /// scrubbed already is quarantined, for this module; called again, this ends what was begun, whichever change of the module failed.
    ///
    /// # Errors
    /// [`HvStatus::OBJECT_IN_USE`] for one that another imports from; as [`end_of_initialisation`](Self::end_of_initialisation).
    pub fn unload(&self, id: u32) -> Result<(), HvStatus> {
        let module = self.take(id)?;
        // from here on no load binds to it
        if self.modules().of.values().any(|other| other.uses.contains(&id)) {
            self.settle(id, |_| {})?;
            return Err(HvStatus::OBJECT_IN_USE);
        }
        // of the guest's data only what a change of this module took out of use
        let quarantined = |gpn| self.partition.state(gpn) == Some(State { kind: Kind::Quarantined, owner: id });
        let result = self.transform(&module, "unload", &|s, gpn| (s.kind.is_owned() || quarantined(gpn)).then_some(Kind::Data));
        match result {
            Ok(()) => self.modules().remove(id),
            Err(_) => drop(self.settle(id, |_| {})),
        }
        result
    }

    /// Has the module's writable segment that holds `at` be written through the engine alone from now on (static kernel data protection,
    /// `MmProtectDriverSection`).
    ///
    /// # Errors
    /// [`HvStatus::ACCESS_DENIED`] if it is no writable data of that module; else as [`end_of_initialisation`](Self::end_of_initialisation).
    pub fn protect_section(&self, id: u32, at: Gva) -> Result<(), HvStatus> {
        let module = self.take(id)?;
        let chosen = |s: &Sealed| s.kind == Kind::Data && s.contains(at);
        if !module.segments.iter().any(&chosen) {
            self.settle(id, |_| {})?;
            return Err(HvStatus::ACCESS_DENIED);
        }
        self.finish(&module, "protect kernel data", &|s| chosen(s).then_some(Kind::KernelData), |module| {
            module.segments.iter_mut().filter(|s| chosen(s)).for_each(|s| s.kind = Kind::KernelData);
        })
    }

    /// Writes `bytes` into a site of two forms that the module lists, `offset` bytes from its start `site`, if that is the next step of a
    /// change from one form to the other: of a jump label one of three, of an import the whole direct form, until the end of initialisation.
    ///
    /// # Errors
    /// [`HvStatus::ACCESS_DENIED`] for anything else: nothing is written then; as [`end_of_initialisation`](Self::end_of_initialisation).
    pub fn patch(&self, id: u32, site: Gva, offset: u64, bytes: &[u8], vp: Option<u32>) -> Result<(), HvStatus> {
        let module = self.take(id)?;
        let result = self.try_patch(&module, site, offset, bytes);
        let settled = self.settle(id, |module| {
            if let Ok((next, _)) = &result {
                module.sites.insert(site, next.clone());
            }
        });
        let result = result.and_then(|done| settled.map(|_| done));
        let (status, code) = match &result {
            Ok(_) => (HvStatus::SUCCESS, None),
            Err(status) => (*status, Some(Code::MemPatch)),
        };
        let pages = result.as_ref().map(|(_, pages)| pages.clone()).unwrap_or_default();
        let what = What::Patch { module: module.name.clone(), site, offset, pages: GpnRange::of_pages(pages.into_iter()) };
        self.partition.record(vp, Vtl::Vtl0, what, status, code);
        result.map(drop)
    }

    /// The site as it is then, and the pages that were written to.
    fn try_patch(&self, module: &Module, site: Gva, offset: u64, bytes: &[u8]) -> Result<(Site, Vec<Gpn>), HvStatus> {
        let next = module.sites.get(&site).and_then(|known| known.step(offset, bytes)).ok_or(HvStatus::ACCESS_DENIED)?;
        let place = |byte: u64| {
            let at = Gva(site.0.checked_add(offset)?.checked_add(byte)?);
            let gpa = module.gpn_of(at)?.gpa()?.0.checked_add(at.0 % PAGE_SIZE)?;
            Some(Gpa(gpa))
        };
        let places: Option<Vec<Gpa>> = (0..widen(bytes.len())).map(place).collect();
        let places = places.ok_or(HvStatus::ACCESS_DENIED)?;
        // a site may lie in two pages, and two pages anywhere
        let mut pieces = Vec::new();
        let mut rest = bytes;
        for run in places.chunk_by(|a, b| a.gpn() == b.gpn()) {
            let (now, later) = rest.split_at_checked(run.len()).ok_or(HvStatus::ACCESS_DENIED)?;
            let at = *run.first().ok_or(HvStatus::ACCESS_DENIED)?;
            let mut before = vec![0; now.len()];
            self.partition.host().read(at, &mut before)?;
            pieces.push((at, now, before));
            rest = later;
        }
        for (number, (at, now, _)) in pieces.iter().enumerate() {
            if let Err(status) = self.partition.host().write(*at, now) {
                // both pages or none; a host that cannot write there again has failed by more than this patch
                for (at, _, before) in pieces.iter().take(number) {
                    self.partition.host().write(*at, before)?;
                }
                return Err(status);
            }
        }
        let mut pages: Vec<Gpn> = places.iter().map(|gpa| gpa.gpn()).collect();
        pages.dedup();
        Ok((next, pages))
    }

    /// Changes the segments of a module that is [taken](Self::take), and gives it back as `update` leaves it.
    fn finish(
        &self,
        module: &Arc<Module>,
        name: &str,
        to: &dyn Fn(&Sealed) -> Option<Kind>,
        update: impl FnOnce(&mut Module),
    ) -> Result<(), HvStatus> {
        let result = self.transform(module, name, &|s, _| to(s));
        self.settle(module.id, |module| {
            if result.is_ok() {
                update(module);
            }
        })?;
        result
    }

    fn transform(&self, module: &Module, name: &str, to: &dyn Fn(&Sealed, Gpn) -> Option<Kind>) -> Result<(), HvStatus> {
        // a page that is out is the guest's already
        let pages = module.segments.iter().flat_map(|s| s.pages.iter().flatten().map(move |gpn| (s, *gpn)));
        let changes: Vec<(Gpn, Kind)> = pages.filter_map(|(s, gpn)| Some((gpn, to(s, gpn)?))).collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.change(module.id, format!("{name}: {}", module.name), &changes)
    }
}
