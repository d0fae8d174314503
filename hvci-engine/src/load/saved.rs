//! The table of modules and regions as bytes, for snapshots and migration: the other half of what a partition saves.
//!
//! ```text
//! "HVCILOAD" | version u16 | zero u16 | reached u32
//! | modules u32 | a module: id u32, name, digest, entry u64, segments, exports, uses, sites
//! | pages that are out u32 | one: address u64, module u32, digest of each half
//! | regions u32 | a region: id u32, kind u8, base u64, cookie u64, pages
//! ```
//!
//! Little-endian; a text or list has its length in front of it, in 32 bits. Like a partition's, a state says how far its machine had come and is
//! refused by one that has come farther, and is checked for form, not for origin: it holds the cookies of regions, and whoever can write it can
//! have any bytes of a site patched into code. It belongs where the partition's is.
//!
//! It is taken over as a whole, and only if it fits the frames that the partition has restored before: what a segment or region says that its
//! pages are, and whose, they must be. Lists grow with the bytes that are there, never by what a length says.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Exports, Loader, MAX_MODULES, MAX_REGION_PAGES, MAX_REGIONS, Part,
    expected::is_kernel_range,
    module::{Life, Module, Sealed},
    paging::Out,
    patch::Site,
    region::Region,
};
use crate::{
    addr::{Gpn, Gva, PAGE_SIZE},
    bytes::widen,
    digest::Digest,
    frames::{Kind, State},
    status::HvStatus,
    vsm::partition::{OWNER_VAULT, Partition},
};

const MAGIC: [u8; 8] = *b"HVCILOAD";
const VERSION: u16 = 3;
/// In place of the number of a page that is out.
const OUT: u64 = u64::MAX;
/// What a segment may be.
const SEGMENTS: [Kind; 5] = [Kind::Code, Kind::RoData, Kind::RoAfterInit, Kind::Data, Kind::KernelData];
const REGIONS: [Kind; 3] = [Kind::KernelData, Kind::CfgBitmap, Kind::ShadowStack];

impl Loader {
    /// Saves the table of modules and regions. The partition saves the frames; nothing may change either between the two.
    ///
    /// # Errors
    /// [`HvStatus::OBJECT_IN_USE`] while a module is being loaded or changed.
    pub fn save(&self, sink: &mut dyn FnMut(&[u8])) -> Result<(), HvStatus> {
        let regions = self.regions();
        let modules = self.modules();
        if modules.of.values().any(|module| module.life != Life::Live) {
            return Err(HvStatus::OBJECT_IN_USE);
        }
        let mut to = Writer(MAGIC.to_vec());
        to.0.extend(VERSION.to_le_bytes());
        to.0.extend([0; 2]);
        to.u32(modules.last);
        to.len(modules.of.len());
        modules.of.values().for_each(|module| to.module(module));
        to.len(modules.out.len());
        for (at, out) in &modules.out {
            to.u64(at.0);
            to.u32(out.module);
            out.halves.iter().for_each(|digest| to.text(digest.to_string().as_bytes()));
        }
        to.len(regions.len());
        regions.iter().for_each(|(id, region)| to.region(*id, region));
        sink(&to.0);
        Ok(())
    }

    /// Takes over a saved table, in place of the one there is. The partition is restored first.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] for what is none of a known version or does not fit the partition's frames,
    /// [`HvStatus::OPERATION_DENIED`] for one that is older than what this machine has reached, [`HvStatus::OBJECT_IN_USE`] while a module is
    /// being loaded or changed: nothing is changed then.
    pub fn restore(&self, source: &[u8]) -> Result<(), HvStatus> {
        let saved = Saved::parse(source).ok_or(HvStatus::INVALID_PARAMETER)?;
        let mut regions = self.regions();
        let mut modules = self.modules();
        if saved.reached < modules.last {
            return Err(HvStatus::OPERATION_DENIED);
        }
        if modules.of.values().any(|module| module.life != Life::Live) {
            return Err(HvStatus::OBJECT_IN_USE);
        }
        if !saved.is_sound() || !saved.fits(&self.partition) {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        modules.last = saved.reached;
        modules.of = saved.modules.into_iter().map(|(id, module)| (id, Arc::new(module))).collect();
        modules.out = saved.out;
        *regions = saved.regions;
        Ok(())
    }
}

struct Saved {
    reached: u32,
    modules: BTreeMap<u32, Module>,
    out: BTreeMap<Gva, Out>,
    regions: BTreeMap<u32, Region>,
}

impl Saved {
    /// `None` for what no engine of this version has saved.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        if from.array()? != MAGIC || u16::from_le_bytes(from.array()?) != VERSION || from.array()? != [0; 2] {
            return None;
        }
        let reached = from.u32()?;
        let modules = from.list(MAX_MODULES, Reader::module)?;
        let out = from.list(usize::MAX, Reader::out)?.into_iter().collect();
        let regions = from.list(MAX_REGIONS, Reader::region)?;
        let ids: Vec<u32> = modules.iter().map(|module| module.id).chain(regions.iter().map(|(id, _)| *id)).collect();
        let known: BTreeSet<u32> = ids.iter().copied().collect();
        let is_owner = |id: &u32| (1..=reached.min(OWNER_VAULT.saturating_sub(1))).contains(id);
        if !from.0.is_empty() || known.len() != ids.len() || !known.iter().all(is_owner) {
            return None;
        }
        let modules = modules.into_iter().map(|module| (module.id, module)).collect();
        Some(Self { reached, modules, out, regions: regions.into_iter().collect() })
    }

    /// Whether a loader could have come to have this table.
    fn is_sound(&self) -> bool {
        // what it imports from was there before it
        let uses = |module: &Module| module.uses.iter().all(|id| *id < module.id && self.modules.contains_key(id));
        let is_code = |module: &Module, at: Gva, len: u64| {
            let end = at.0.checked_add(len);
            let holds =
                |s: &Sealed| s.kind == Kind::Code && s.contains(at) && end.is_some_and(|end| end <= s.start.0.saturating_add(s.size()));
            module.segments.iter().any(holds)
        };
        let sites = |module: &Module| module.sites.iter().all(|(at, site)| is_code(module, *at, site.size()));
        let exports =
            |module: &Module| module.exports.addresses().all(|at| module.segments.iter().any(|s| !s.discardable && s.contains(at)));
        let mut ranges: Vec<(u64, u64)> =
            self.modules.values().flat_map(|m| &m.segments).map(|s| (s.start.0, s.start.0.saturating_add(s.size()))).collect();
        let kernel = |(start, end): &(u64, u64)| {
            start.is_multiple_of(PAGE_SIZE) && start < end && is_kernel_range(*start, end.saturating_sub(*start))
        };
        let possible = ranges.iter().all(kernel);
        ranges.sort_unstable();
        let apart = ranges.iter().zip(ranges.iter().skip(1)).all(|((_, end), (start, _))| end <= start);
        let in_order = |module: &Module| module.segments.is_sorted_by_key(|s| s.start);
        // what is out is code, and what must come back is known of all of it
        let absent: BTreeSet<(Gva, u32)> = self.modules.values().flat_map(|m| m.pages_out().map(|at| (at, m.id))).collect();
        let only_code =
            self.modules.values().flat_map(|m| &m.segments).all(|s| s.kind == Kind::Code || s.pages.iter().all(Option::is_some));
        let known = absent == self.out.iter().map(|(at, out)| (*at, out.module)).collect();
        only_code
            && known
            && possible
            && apart
            && self.modules.values().all(|module| uses(module) && in_order(module) && sites(module) && exports(module))
    }

    /// Whether each frame that a module or region owns is what it says, and nobody else's.
    fn fits(&self, partition: &Partition) -> bool {
        let sealed = |m: &Module| m.segments.iter().flat_map(|s| s.pages.iter().flatten().map(|gpn| (s.kind, *gpn))).collect::<Vec<_>>();
        let segments = self.modules.values().flat_map(|m| sealed(m).into_iter().map(|(kind, gpn)| (m.id, kind, gpn)));
        let regions = self.regions.iter().flat_map(|(id, region)| region.pages.iter().map(|gpn| (*id, region.kind, *gpn)));
        let mut frames = BTreeSet::new();
        segments.chain(regions).all(|(owner, kind, gpn)| {
            let Some((frame, state)) = partition.frame_state(gpn) else { return false };
            // writable data is the guest's, and may have become something else
            !kind.is_owned() || state == State { kind, owner } && frames.insert(frame)
        })
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    /// Nothing that a loader holds has 2³² of anything.
    fn len(&mut self, len: usize) {
        self.u32(u32::try_from(len).unwrap_or(u32::MAX));
    }

    fn text(&mut self, text: &[u8]) {
        self.len(text.len());
        self.0.extend(text);
    }

    fn pages(&mut self, pages: impl ExactSizeIterator<Item = u64>) {
        self.len(pages.len());
        pages.for_each(|number| self.u64(number));
    }

    fn module(&mut self, module: &Module) {
        let Module { id, name, digest, entry, segments, exports, uses, sites, life: _ } = module;
        self.u32(*id);
        self.text(name.as_bytes());
        self.text(digest.as_ref().map(ToString::to_string).unwrap_or_default().as_bytes());
        // 0 is no address of a kernel's
        self.u64(entry.map_or(0, |entry| entry.0));
        self.len(segments.len());
        for segment in segments {
            self.text(segment.name.as_bytes());
            self.u64(segment.start.0);
            self.0.extend([segment.kind.number(), u8::from(segment.discardable)]);
            self.pages(segment.pages.iter().map(|gpn| gpn.map_or(OUT, |gpn| gpn.0)));
            self.len(segment.parts.len());
            for part in &segment.parts {
                self.text(part.section.as_bytes());
                self.u64(part.offset);
                self.u64(part.len);
            }
        }
        self.text(&exports.to_bytes());
        self.len(uses.len());
        uses.iter().for_each(|id| self.u32(*id));
        self.len(sites.len());
        for (at, site) in sites {
            self.u64(at.0);
            self.text(&site.to_bytes());
        }
    }

    fn region(&mut self, id: u32, region: &Region) {
        self.u32(id);
        self.0.push(region.kind.number());
        self.u64(region.base.0);
        self.u64(region.cookie);
        self.pages(region.pages.iter().map(|gpn| gpn.0));
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (now, later) = self.0.split_at_checked(len)?;
        self.0 = later;
        Some(now)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn len(&mut self) -> Option<usize> {
        usize::try_from(self.u32()?).ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.len()?;
        self.take(len)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn list<T>(&mut self, most: usize, mut one: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.len().filter(|count| *count <= most)?;
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(one(self)?);
        }
        Some(list)
    }

    fn pages(&mut self) -> Option<Vec<Gpn>> {
        self.list(usize::MAX, |from| from.u64().map(Gpn))
    }

    fn kind(&mut self, known: &[Kind]) -> Option<Kind> {
        let [number] = self.array()?;
        Kind::from_number(number).filter(|kind| known.contains(kind))
    }

    fn module(&mut self) -> Option<Module> {
        let (id, name, digest, entry) = (self.u32()?, self.text()?, self.text()?, self.u64()?);
        let digest = if digest.is_empty() { None } else { Some(Digest::try_from(digest).ok()?) };
        let segments = self.list(usize::MAX, Self::segment)?;
        let exports = Arc::new(Exports::from_bytes(self.bytes()?)?);
        let uses = self.list(MAX_MODULES, Self::u32)?;
        let sites = self.list(usize::MAX, |from| Some((Gva(from.u64()?), Site::from_bytes(from.bytes()?)?)))?;
        Some(Module {
            id,
            name,
            digest,
            entry: (entry != 0).then_some(Gva(entry)),
            segments,
            exports,
            uses: uses.into_iter().collect(),
            sites: sites.into_iter().collect(),
            life: Life::Live,
        })
    }

    fn segment(&mut self) -> Option<Sealed> {
        let (name, start, kind) = (self.text()?, Gva(self.u64()?), self.kind(&SEGMENTS)?);
        let discardable = self.flag()?;
        let (pages, parts) = (self.pages()?, self.list(usize::MAX, Self::part)?);
        let pages = pages.into_iter().map(|gpn| Some(gpn).filter(|gpn| gpn.0 != OUT)).collect();
        let sealed = Sealed { name: name.into(), start, kind, discardable, pages, parts };
        let inside = |part: &Part| part.offset.checked_add(part.len).is_some_and(|end| end <= sealed.size());
        sealed.parts.iter().all(inside).then_some(sealed)
    }

    fn part(&mut self) -> Option<Part> {
        Some(Part { section: self.text()?.into(), offset: self.u64()?, len: self.u64()? })
    }

    fn flag(&mut self) -> Option<bool> {
        let [flag] = self.array()?;
        (flag < 2).then_some(flag == 1)
    }

    fn out(&mut self) -> Option<(Gva, Out)> {
        let (at, module) = (Gva(self.u64()?), self.u32()?);
        let mut half = || Digest::try_from(self.text()?).ok();
        Some((at, Out { module, halves: [half()?, half()?] }))
    }

    fn region(&mut self) -> Option<(u32, Region)> {
        let (id, kind, base, cookie) = (self.u32()?, self.kind(&REGIONS)?, Gva(self.u64()?), self.u64()?);
        let pages = self.pages().filter(|pages| !pages.is_empty() && widen(pages.len()) <= MAX_REGION_PAGES)?;
        Some((id, Region { kind, pages, base, cookie }))
    }
}
