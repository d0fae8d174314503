//! What VTL0 asks of the engine by a VTL call: an argument block, with the function numbers of Linux's LVBS (`VSM_VTL_CALL_FUNC_ID_*`), and from
//! 0x20000 on numbers of the engine's own for what LVBS does not have.
//!
//! A list of pages is an array of u64 page numbers at a GPA. Every word is the guest's and may be anything: lists are bounded before they are
//! read, and are read once, out of the guest's reach.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use super::{File, Loader, MAX_IMAGE, MAX_REGION_PAGES, Place, Request};
use crate::{
    addr::{Gpa, Gpn, Gva, PAGE_SIZE},
    frames::Kind,
    status::HvStatus,
    time::UnixTime,
    vsm::secure_call::{BLOCK, Words},
};

/// The longest name of a module.
const MAX_NAME: u64 = 255;
/// Pages of the longest file, and of the largest module.
const MAX_PAGES: u64 = MAX_IMAGE / PAGE_SIZE;

/// A function of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function(pub u64);

impl Function {
    /// The boot is over. No arguments.
    pub const SIGNAL_END_OF_BOOT: Self = Self(0x1_FFE3);
    /// Writable data of a module is written by the engine alone from now on: module, address in it.
    pub const PROTECT_MEMORY: Self = Self(0x1_FFE4);
    /// A certificate whose key signs modules, until the boot is over: GPA, length.
    pub const LOAD_KDATA: Self = Self(0x1_FFE5);
    /// Loads a module: GPA and length of its name, GPA of the list of the file's pages, length of the file, address of the module's first
    /// page, GPA of the list of its pages, number of these. For a page of code that is to come when it is first executed: 2⁶⁴ - 1.
    /// Answers the module's number.
    pub const VALIDATE_MODULE: Self = Self(0x1_FFE6);
    /// The initialisation of a module is over: module.
    pub const FREE_MODULE_INIT: Self = Self(0x1_FFE7);
    /// Unloads a module: module. One that another imports from is in use.
    pub const UNLOAD_MODULE: Self = Self(0x1_FFE8);
    /// Changes a site: module, its address, offset, number of bytes (at most 16), bytes in two words.
    pub const PATCH_TEXT: Self = Self(0x1_FFEB);
    /// Has pages be written through the engine alone: 0 for a pool, 1 for a bitmap of call targets, 2 for a shadow stack; GPA of the list of its
    /// pages, number of these, first address, cookie. Answers the region's number.
    pub const PROTECT_REGION: Self = Self(0x2_0000);
    /// Writes into a pool: region, cookie, offset, GPA of the bytes, number of bytes (at most a page).
    pub const WRITE_REGION: Self = Self(0x2_0001);
    /// Makes an address in sealed code a valid target of indirect calls: region, cookie, address.
    pub const MARK_CALL_TARGET: Self = Self(0x2_0002);
    /// Gives a page of code back to VTL0, until it is executed again in whichever page the guest has put it: module, address in it.
    pub const PAGE_OUT: Self = Self(0x2_0004);
    /// Gives a region back to VTL0: region, cookie.
    pub const RELEASE_REGION: Self = Self(0x2_0003);
}

/// The kinds of region, by number.
const REGIONS: [Kind; 3] = [Kind::KernelData, Kind::CfgBitmap, Kind::ShadowStack];

impl Loader {
    /// Answers a VTL call of processor `vp`: a status, and what the function answers.
    pub fn call(&self, block: &[u8; BLOCK], vp: u32, time: UnixTime) -> (HvStatus, u64) {
        let mut words = Words::of(block);
        let mut next = || words.next();
        let function = Function(next());
        let result = match function {
            Function::SIGNAL_END_OF_BOOT => {
                self.partition.end_of_boot();
                Ok(0)
            }
            Function::PROTECT_MEMORY => number(next()).and_then(|id| self.protect_section(id, Gva(next()))).map(|()| 0),
            Function::LOAD_KDATA => self.load_key(Gpa(next()), next()).map(|()| 0),
            Function::VALIDATE_MODULE => {
                let name = (Gpa(next()), next());
                let file = (Gpa(next()), next());
                let base = Gva(next());
                let pages = (Gpa(next()), next());
                self.validate(name, file, base, pages, vp, time)
            }
            Function::FREE_MODULE_INIT => number(next()).and_then(|id| self.end_of_initialisation(id)).map(|()| 0),
            Function::PAGE_OUT => number(next()).and_then(|id| self.page_out(id, Gva(next()))).map(|()| 0),
            Function::UNLOAD_MODULE => number(next()).and_then(|id| self.unload(id)).map(|()| 0),
            Function::PATCH_TEXT => {
                let (id, site, offset, len, words) = (next(), next(), next(), next(), [next(), next()].map(u64::to_le_bytes));
                let bytes = usize::try_from(len).ok().and_then(|len| words.as_flattened().get(..len)).ok_or(HvStatus::INVALID_PARAMETER);
                bytes.and_then(|bytes| self.patch(number(id)?, Gva(site), offset, bytes, Some(vp))).map(|()| 0)
            }
            Function::PROTECT_REGION => {
                let (kind, list, count, base, cookie) = (next(), Gpa(next()), next(), Gva(next()), next());
                let kind = usize::try_from(kind).ok().and_then(|kind| REGIONS.get(kind)).ok_or(HvStatus::INVALID_PARAMETER);
                kind.and_then(|kind| self.protect_region(*kind, &self.page_list(list, count, MAX_REGION_PAGES)?, base, cookie))
                    .map(u64::from)
            }
            Function::WRITE_REGION => {
                let (id, cookie, offset, bytes, len) = (next(), next(), next(), Gpa(next()), next());
                let len = if len > PAGE_SIZE { Err(HvStatus::INVALID_PARAMETER) } else { Ok(len) };
                let bytes = len.and_then(|len| self.partition.copy_vtl0(bytes, len));
                bytes.and_then(|bytes| self.write_region(number(id)?, cookie, offset, &bytes, Some(vp))).map(|()| 0)
            }
            Function::MARK_CALL_TARGET => {
                let (id, cookie, target) = (next(), next(), Gva(next()));
                number(id).and_then(|id| self.mark_call_target(id, cookie, target, Some(vp))).map(|()| 0)
            }
            Function::RELEASE_REGION => {
                let (id, cookie) = (next(), next());
                number(id).and_then(|id| self.release_region(id, cookie)).map(|()| 0)
            }
            // those of LVBS that the engine does not have, and those that nobody has
            _ => Err(HvStatus::FEATURE_UNAVAILABLE),
        };
        match result {
            Ok(value) => (HvStatus::SUCCESS, value),
            Err(status) => (status, 0),
        }
    }

    fn validate(
        &self,
        (name, name_len): (Gpa, u64),
        (file, len): (Gpa, u64),
        base: Gva,
        (pages, count): (Gpa, u64),
        vp: u32,
        time: UnixTime,
    ) -> Result<u64, HvStatus> {
        if name_len > MAX_NAME {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let name = self.partition.copy_vtl0(name, name_len)?;
        let file = self.page_list(file, len.div_ceil(PAGE_SIZE), MAX_PAGES)?;
        let pages = self.page_list(pages, count, MAX_PAGES)?;
        let request = Request {
            name: &String::from_utf8_lossy(&name),
            file: File::Guest { pages: &file, len },
            place: Place::Base(base),
            pages: &|at| pages.get(usize::try_from(at.0.checked_sub(base.0)?.checked_div(PAGE_SIZE)?).ok()?).copied(),
            time,
            vp: Some(vp),
        };
        self.load(&request).outcome.map(|module| u64::from(module.id)).map_err(|refusal| refusal.status)
    }

    fn load_key(&self, gpa: Gpa, len: u64) -> Result<(), HvStatus> {
        if len > PAGE_SIZE {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        self.add_module_key(&self.partition.copy_vtl0(gpa, len)?, "VTL0 during boot")
    }

    fn page_list(&self, gpa: Gpa, count: u64, most: u64) -> Result<Vec<Gpn>, HvStatus> {
        if count > most {
            return Err(HvStatus::INSUFFICIENT_MEMORY);
        }
        let bytes = self.partition.copy_vtl0(gpa, count.saturating_mul(8))?;
        Ok(bytes.as_chunks().0.iter().map(|word| Gpn(u64::from_le_bytes(*word))).collect())
    }
}

fn number(word: u64) -> Result<u32, HvStatus> {
    u32::try_from(word).map_err(|_| HvStatus::NOT_FOUND)
}
