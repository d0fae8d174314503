//! Calls of imported functions that a Windows kernel makes direct ones while it loads a driver ("import optimisation"; since Windows 10 1903 also
//! under HVCI, where VTL1 does it): which they are, and the two forms of each.
//!
//! ```text
//! signed  48 FF 15 slot  0F 1F 44 00 00   call [slot]; nop          48 FF 25 slot  CC CC CC CC CC   jmp [slot]; int3 …
//! direct  4C 8B 15 slot  E8 target        mov r10, [slot]; call     4C 8B 15 slot  E9 target        mov r10, [slot]; jmp
//! ```
//!
//! Twelve bytes; `slot` is relative to the end of the first instruction, `target` to that of the site, both in 32 bits; any alignment is good, and
//! a target out of reach leaves the signed form. Sources: "Dynamic Value Relocation Table (DVRT) details", Denuvo Software Solutions (the shapes
//! before and after, what `IATIndex` says, when a call is made direct); LLVM pull request 126631 (what a compiler has to emit); what
//! `RtlpConstructImportRelocationFixup` does, in which six published listings of kernels agree (which bytes are written, reach, the order of
//! r10 and call also in the direct form); "Mitigating Spectre variant 2 with Retpoline on Windows", Microsoft (since when under HVCI).
//!
//! - A *site* is what the table of the signed image lists, stands in its code in the signed form, and goes through a slot of the image's own
//!   import address table that is constant. The target of the direct form is what the engine has computed for that slot: the address that the
//!   signed form takes from there, so the two forms call the same function. Nothing of it is the guest's.
//! - *A load* accepts each site in either form, whole: kernels rewrite before they ask.
//! - *A patch* makes a signed form direct, all twelve bytes at once, until the module's initialisation is over, and nothing else. The two
//!   forms differ in what is done when their seventh byte is reached: whoever is in the function that a site has called comes back to it and
//!   would call again. No sequence of writes mends that, as one with INT3 does for jump labels, so it has to be done before others use the
//!   module, and is never undone.
//!
//! **Refuses** the retpoline form (the same bytes, with the address of a stub behind the image, in pages that are no module's), the form
//! `mov r10, [slot]; call r10` (no source says when it is written), and the sites of the table's other symbols, indirect calls and switches,
//! whose one rewritten form is a retpoline: their bytes are the signed ones.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::collections::{BTreeMap, BTreeSet};

use super::{Segment, comparison::Difference, pages::PAGE, patch::Site};
use crate::{
    addr::{Gpa, Gva},
    bytes::{slice, widen},
    frames::Kind,
    host::Host,
    image::pe::{ImportTransfer, Imports, Pe},
    status::HvStatus,
};

/// Bytes of a site.
const LEN: usize = 12;
const CALL_SLOT: [u8; 3] = [0x48, 0xFF, 0x15];
const JUMP_SLOT: [u8; 3] = [0x48, 0xFF, 0x25];
const LOAD_R10: [u8; 3] = [0x4C, 0x8B, 0x15];
const NOP5: [u8; 5] = [0x0F, 0x1F, 0x44, 0x00, 0x00];
const INT3: [u8; 5] = [0xCC; 5];
const CALL: u8 = 0xE8;
const JUMP: u8 = 0xE9;
/// How many entries of a table are looked at; the largest drivers have a tenth of it.
const MAX_ENTRIES: usize = 1 << 18;

/// The sites of a driver that is loaded at `base`, of whose signed bytes `segments` came.
pub(super) fn sites(pe: &Pe<'_>, imports: &Imports<'_>, base: Gva, segments: &[Segment<'_>]) -> BTreeMap<Gva, Site> {
    let mut transfers = pe.import_transfers().take(MAX_ENTRIES).peekable();
    if transfers.peek().is_none() {
        return BTreeMap::new();
    }
    let slots: BTreeSet<u32> = imports.imports.iter().filter(|i| !i.delayed).map(|i| i.slot).collect();
    let image = Image { base, segments };
    let known = transfers.filter(|transfer| transfer.slot.is_some_and(|slot| slots.contains(&slot)));
    apart(known.filter_map(|transfer| image.site(transfer)).collect())
}

/// Of sites that share bytes the first: rewriting one would leave neither form of the other.
fn apart(mut sites: BTreeMap<Gva, Site>) -> BTreeMap<Gva, Site> {
    let mut end = 0;
    sites.retain(|at, _| {
        let is_free = at.0 >= end;
        if is_free {
            end = at.0.saturating_add(widen(LEN));
        }
        is_free
    });
    sites
}

/// Whether these can be the two forms of a site.
pub(super) fn are_forms(signed: &[u8], direct: &[u8]) -> bool {
    let ([a, b, c, slot @ .., f0, f1, f2, f3, f4], [x, y, z, same @ .., transfer, _, _, _, _]) = (signed, direct) else { return false };
    let shape = match [*a, *b, *c] {
        CALL_SLOT => [*f0, *f1, *f2, *f3, *f4] == NOP5 && *transfer == CALL,
        JUMP_SLOT => [*f0, *f1, *f2, *f3, *f4] == INT3 && *transfer == JUMP,
        _ => false,
    };
    shape && [*x, *y, *z] == LOAD_R10 && slot == same && signed.len() == LEN
}

struct Image<'s> {
    base: Gva,
    segments: &'s [Segment<'s>],
}

impl Image<'_> {
    fn site(&self, transfer: ImportTransfer) -> Option<(Gva, Site)> {
        let at = self.base.0.checked_add(u64::from(transfer.address))?;
        let slot = self.base.0.checked_add(u64::from(transfer.slot?))?;
        let signed: [u8; LEN] = self.read(Kind::Code, at)?;
        let [.., d0, d1, d2, d3, _, _, _, _, _] = signed;
        let to_slot = i64::from(i32::from_le_bytes([d0, d1, d2, d3]));
        if at.checked_add(7)?.checked_add_signed(to_slot)? != slot {
            return None;
        }
        let target = u64::from_le_bytes(self.read(Kind::RoData, slot)?);
        let distance = i32::try_from(target.wrapping_sub(at.checked_add(widen(LEN))?).cast_signed()).ok()?;
        let transfer = if transfer.is_call { CALL } else { JUMP };
        let direct = [&LOAD_R10[..], &[d0, d1, d2, d3], &[transfer], &distance.to_le_bytes()].concat();
        are_forms(&signed, &direct).then(|| (Gva(at), Site::import(signed.to_vec(), direct)))
    }

    /// Bytes that all lie in one segment of that kind.
    fn read<const N: usize>(&self, kind: Kind, at: u64) -> Option<[u8; N]> {
        let segment = self.segments.iter().rfind(|s| s.start.0 <= at).filter(|s| s.kind == kind)?;
        let into = usize::try_from(at.checked_sub(segment.start.0)?).ok()?;
        segment.bytes.get(into..into.checked_add(N)?)?.first_chunk().copied()
    }
}

/// Which sites of a module hold the direct form, found out page by page while the module is compared.
pub(super) struct Standing<'m> {
    sites: &'m BTreeMap<Gva, Site>,
    /// of which something that only the direct form has was seen, and what it was
    direct: BTreeMap<Gva, Difference>,
    /// of which a part that only the signed form has was seen
    signed: BTreeSet<Gva>,
}

impl<'m> Standing<'m> {
    pub(super) fn new(sites: &'m BTreeMap<Gva, Site>) -> Self {
        Self { sites, direct: BTreeMap::new(), signed: BTreeSet::new() }
    }

    /// Compares bytes at `at` and up, of one page, with what `host` has from `gpa` on, and takes either form of each site for the signed one. A page
    /// that is not there yet is to come as it is signed.
    ///
    /// # Errors
    /// As [`Host::read`].
    pub(super) fn compare(&mut self, at: Gva, expected: &[u8], gpa: Option<Gpa>, host: &dyn Host) -> Result<Option<(usize, u8)>, HvStatus> {
        let mut page = [0; PAGE];
        let found = page.get_mut(..expected.len()).ok_or(HvStatus::INVALID_PARAMETER)?;
        match gpa {
            Some(gpa) => host.read(gpa, found)?,
            None => found.copy_from_slice(expected),
        }
        self.sign(at, found);
        Ok(first_difference(found, expected))
    }

    /// Whether a site may have a byte in the page at `at`.
    pub(super) fn is_near(&self, at: Gva) -> bool {
        self.near(at).next().is_some()
    }

    /// The sites that may have a byte in the page at `at`.
    fn near(&self, at: Gva) -> impl Iterator<Item = (&'m Gva, [&'m [u8]; 2])> + use<'m> {
        let first = Gva(at.0.saturating_sub(widen(LEN).saturating_sub(1)));
        let end = Gva(at.0.saturating_add(widen(PAGE)));
        self.sites.range(first..end).filter_map(|(at, site)| Some((at, site.import_forms()?)))
    }

    /// Puts the signed form in place of the direct one, as far as it lies in the page at `at`.
    fn sign(&mut self, at: Gva, page: &mut [u8]) {
        for (site, forms) in self.near(at) {
            let Some(part) = Part::of(*site, forms, at, page) else { continue };
            let Some((into, (expected, found))) = (0..).zip(part.signed.iter().zip(part.direct)).find(|(_, (a, b))| a != b) else {
                // it is the same in both forms
                continue;
            };
            if part.found == part.direct {
                let differs = Difference::Differs { at: Gva(part.at.saturating_add(into)), expected: *expected, found: *found };
                self.direct.entry(*site).or_insert(differs);
                part.found.copy_from_slice(part.signed);
            } else if part.signed.len() < LEN {
                self.signed.insert(*site);
            }
        }
    }

    /// The sites that hold the direct form, in pages that are as expected otherwise.
    ///
    /// # Errors
    /// The first that holds a part of it.
    pub(super) fn whole(self) -> Result<BTreeSet<Gva>, Difference> {
        let whole = self.direct.into_iter().map(|(at, differs)| if self.signed.contains(&at) { Err(differs) } else { Ok(at) });
        whole.collect()
    }
}

/// The first byte of `found` that is not as expected.
fn first_difference(found: &[u8], expected: &[u8]) -> Option<(usize, u8)> {
    if found == expected {
        return None;
    }
    found.iter().zip(expected).enumerate().find(|(_, (found, expected))| found != expected).map(|(into, (found, _))| (into, *found))
}

/// As much of a site as lies in a page.
struct Part<'p> {
    at: u64,
    signed: &'p [u8],
    direct: &'p [u8],
    found: &'p mut [u8],
}

impl<'p> Part<'p> {
    fn of(site: Gva, forms: [&'p [u8]; 2], at: Gva, page: &'p mut [u8]) -> Option<Self> {
        let before = usize::try_from(at.0.saturating_sub(site.0)).ok()?;
        let into = usize::try_from(site.0.saturating_sub(at.0)).ok()?;
        let len = LEN.checked_sub(before)?.min(page.len().checked_sub(into)?);
        let [signed, direct] = forms.map(|form| slice(form, before, len));
        let found = page.get_mut(into..into.checked_add(len)?)?;
        Some(Self { at: site.0.max(at.0), signed: signed?, direct: direct?, found })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]
    #![expect(clippy::cast_possible_truncation, reason = "tests")]

    use proptest::prelude::*;

    use super::*;
    use crate::{
        image::pe::{
            Symbol,
            sample::{OPTIONAL, Sample},
        },
        load::{Symbols, pe},
    };

    const BASE: u64 = 0xFFFF_F800_0001_0000;
    /// Of the two functions that the sample imports.
    const ALLOCATE: u64 = BASE + 0x12_3456;
    const FIVE: u64 = BASE - 0x4000_0005;

    struct Kernel {
        allocate: u64,
    }

    impl Symbols for Kernel {
        fn resolve(&self, _: &[u8], symbol: Symbol<'_>) -> Option<Gva> {
            Some(Gva(if matches!(symbol, Symbol::Name(_)) { self.allocate } else { FIVE }))
        }
    }

    fn transfer(code: [u8; 3], address: u32, slot: u32, behind: [u8; 5]) -> Vec<u8> {
        [&code[..], &slot.wrapping_sub(address + 7).to_le_bytes(), &behind].concat()
    }

    /// A driver with these twelve bytes in its code, and these entries of a table: a function that it imports is called through 0x2050, another
    /// is jumped to through 0x2058.
    fn sample(code: &[(u32, Vec<u8>)], entries: &[u32]) -> Sample {
        let mut sample = Sample::with_load_config();
        sample.section(1, b".rdata\0\0", [0x200, 0x2000, 0x200, 0x600], 0x4000_0040);
        sample.set32(OPTIONAL + 28, (BASE >> 32) as u32);
        sample.directory(10, 0x1000, 0xE8);
        sample.set32(0x400, 0xE8);
        sample.bytes(0x458, &[0; 8]);
        sample.set32(0x490, 0);
        sample.set32(0x4E0, 0x1B0);
        sample.set16(0x4E4, 2);
        for (address, bytes) in code {
            sample.bytes((address - 0x1000 + 0x400) as usize, bytes);
        }
        let size = 8 + entries.len() as u32 * 4;
        for (at, word) in [1, 12 + size, 3, 0, size, 0x1000, size].iter().chain(entries).enumerate() {
            sample.set32(0x7B0 + at * 4, *word);
        }
        sample
    }

    /// Of the entries of a table.
    const IS_CALL: u32 = 0x1000;

    fn entry(address: u32, flags: u32, slot: u32) -> u32 {
        (address - 0x1000) | flags | (slot << 13)
    }

    fn call(address: u32) -> (u32, Vec<u8>) {
        (address, transfer(CALL_SLOT, address, 0x2050, NOP5))
    }

    fn sites_of(sample: &Sample, kernel: &Kernel) -> BTreeMap<Gva, Site> {
        let parsed = Pe::parse(&sample.0).unwrap();
        let expected = pe(&parsed, Gva(BASE), kernel).unwrap();
        sites(&parsed, &parsed.imports(), Gva(BASE), &expected.segments)
    }

    fn known(sample: &Sample) -> Vec<u64> {
        sites_of(sample, &Kernel { allocate: ALLOCATE }).keys().map(|at| at.0 - BASE).collect()
    }

    #[test]
    fn forms_are_of_the_image_and_of_what_was_bound() {
        let code = [call(0x1101), (0x1110, transfer(JUMP_SLOT, 0x1110, 0x2058, INT3))];
        let sample = sample(&code, &[entry(0x1101, IS_CALL, 0), entry(0x1110, 0, 1)]);
        let sites = sites_of(&sample, &Kernel { allocate: ALLOCATE });
        let forms: Vec<_> = sites.iter().map(|(at, site)| (at.0 - BASE, site.import_forms().unwrap())).collect();
        // 0x123456 - 0x110D and -0x40000005 - 0x111C
        let direct = [
            [0x4C, 0x8B, 0x15, 0x48, 0x0F, 0, 0, 0xE8, 0x49, 0x23, 0x12, 0x00],
            [0x4C, 0x8B, 0x15, 0x41, 0x0F, 0, 0, 0xE9, 0xDF, 0xEE, 0xFF, 0xBF],
        ];
        let signed = [
            [0x48, 0xFF, 0x15, 0x48, 0x0F, 0, 0, 0x0F, 0x1F, 0x44, 0, 0],
            [0x48, 0xFF, 0x25, 0x41, 0x0F, 0, 0, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC],
        ];
        assert_eq!(forms, [(0x1101, [&signed[0][..], &direct[0]]), (0x1110, [&signed[1], &direct[1]])]);
        for site in sites.values() {
            let [signed, direct] = site.import_forms().unwrap();
            let rewritten = site.step(0, direct).unwrap();
            for state in [site, &rewritten] {
                let bytes = state.to_bytes();
                assert_eq!(Site::from_bytes(&bytes).as_ref(), Some(state));
                assert!(!state.is_pending() && state.size() == 12);
                // a breakpoint; bytes of the opcodes and of what is behind them, and a slot in one form alone
                for at in [0, 1, 2, 3, 4, 8, 13, 16, 20] {
                    let mut other = bytes.clone();
                    other[at] ^= 2;
                    assert_eq!(Site::from_bytes(&other), None, "{at}");
                }
                assert_eq!(Site::from_bytes(&bytes[..bytes.len() - 2]), None);
            }
            // nothing but the direct form, whole, and once
            let mut foreign = direct.to_vec();
            foreign[8] ^= 1;
            for (offset, bytes) in
                [(0, signed), (0, &foreign), (0, &direct[..11]), (1, &direct[1..]), (7, &direct[7..]), (0, &[0xCC]), (0, &[])]
            {
                assert_eq!(site.step(offset, bytes), None, "{offset} {bytes:x?}");
            }
            for form in [signed, direct] {
                assert_eq!(rewritten.step(0, form), None);
            }
        }
    }

    #[test]
    fn what_is_no_site_of_the_image() {
        let good = |entries: &[u32]| sample(&[call(0x1100)], entries);
        let listed = entry(0x1100, IS_CALL, 0);
        assert_eq!(known(&good(&[listed, listed])), [0x1100]);
        // not listed, listed elsewhere, as a jump, with the other slot, the last one, which imports nothing, one that is not there
        for entries in [&[][..], &[entry(0x1101, IS_CALL, 0)], &[entry(0x1100, 0, 0)], &[entry(0x1100, IS_CALL, 1)]] {
            assert_eq!(known(&good(entries)), [0; 0], "{entries:x?}");
        }
        let through = |slot: u32, number: u32| {
            let code = (0x1100, transfer(CALL_SLOT, 0x1100, slot, NOP5));
            known(&sample(&[code], &[entry(0x1100, IS_CALL, number)]))
        };
        assert_eq!((through(0x2058, 1), through(0x2060, 2), through(0x2068, 3)), (vec![0x1100], vec![], vec![]));
        // bytes of the instruction, of its slot, and of the filler
        for at in 0..LEN {
            let mut other = good(&[listed]);
            other.0[0x500 + at] ^= 1;
            assert_eq!(known(&other), [0; 0], "{at}");
        }
        // outside the image, and over the end of the last page of its code
        let mut far = good(&[entry(0x1100, IS_CALL, 0), entry(0x1FF5, IS_CALL, 0)]);
        far.set32(0x7B0 + 20, 0xFFFF_F000);
        assert_eq!(known(&far), [0; 0]);
        // an import that is found when it is first called; a table that the driver may write
        let mut delayed = good(&[listed]);
        delayed.directory(1, 0, 0);
        delayed.directory(13, 0x1150, 0x40);
        delayed.bytes(0x550, &[0; 0x40]);
        for (at, value) in [(0, 1), (4, 0x2070), (12, 0x2050), (16, 0x2030)] {
            delayed.set32(0x550 + at, value);
        }
        assert_eq!(known(&delayed), [0; 0]);
        let mut writable = good(&[listed]);
        writable.section(1, b".data\0\0\0", [0x200, 0x2000, 0x200, 0x600], 0xC000_0040);
        assert_eq!(known(&writable), [0; 0]);
        let mut constant = good(&[listed]);
        constant.section(0, b".text\0\0\0", [0x1F0, 0x1000, 0x200, 0x400], 0x4000_0040);
        constant.set32(OPTIONAL + 16, 0);
        assert_eq!(known(&constant), [0; 0], "no code");
    }

    #[test]
    fn of_two_that_overlap_the_first_counts() {
        let jump = |address| (address, transfer(JUMP_SLOT, address, 0x2058, INT3));
        let both = sample(&[jump(0x1100), jump(0x110C)], &[entry(0x1100, 0, 1), entry(0x110C, 0, 1)]);
        assert_eq!(known(&both), [0x1100, 0x110C]);
        let sites: BTreeMap<Gva, Site> = [0_u64, 11, 12, 23, 24].into_iter().map(|at| (Gva(at), Site::import(vec![], vec![]))).collect();
        assert_eq!(apart(sites).keys().map(|at| at.0).collect::<Vec<_>>(), [0, 12, 24]);
    }

    #[test]
    fn a_target_is_in_reach_or_there_is_no_direct_form() {
        let sample = sample(&[call(0x1100)], &[entry(0x1100, IS_CALL, 0)]);
        let end = BASE + 0x110C;
        for (allocate, count) in
            [(end + 0x7FFF_FFFF, 1), (end + 0x8000_0000, 0), (end - 0x8000_0000, 1), (end - 0x8000_0001, 0), (end, 1), (0, 0)]
        {
            assert_eq!(sites_of(&sample, &Kernel { allocate }).len(), count, "{allocate:#x}");
        }
    }

    /// Two pages with a site that begins `split` bytes before the second; where a byte of its target is that of the filler, both forms
    /// have it.
    fn straddling(split: usize, target: [u8; 4]) -> (BTreeMap<Gva, Site>, [Vec<u8>; 2]) {
        let signed = transfer(CALL_SLOT, 0x1100, 0x2050, NOP5);
        let mut direct = transfer(LOAD_R10, 0x1100, 0x2050, [CALL, 0, 0, 0, 0]);
        direct[8..].copy_from_slice(&target);
        let at = Gva(BASE + (PAGE - split) as u64);
        let forms = [signed.clone(), direct.clone()];
        (BTreeMap::from([(at, Site::import(signed, direct))]), forms)
    }

    /// What is said of the two pages, with these bytes at the site.
    fn stands(sites: &BTreeMap<Gva, Site>, split: usize, bytes: &[u8], signed: &[u8]) -> Option<Result<usize, Difference>> {
        let image = |bytes: &[u8]| {
            let mut image = vec![0xCC; 2 * PAGE];
            image[PAGE - split..PAGE - split + LEN].copy_from_slice(bytes);
            image
        };
        let (mut found, expected) = (image(bytes), image(signed));
        let mut standing = Standing::new(sites);
        for (number, page) in found.chunks_mut(PAGE).enumerate() {
            standing.sign(Gva(BASE + (number * PAGE) as u64), page);
        }
        (found == expected).then(|| standing.whole().map(|sites| sites.len()))
    }

    #[test]
    fn a_form_counts_whole_in_whichever_pages_it_lies() {
        for target in [[0x49, 0x23, 0x12, 0x00], [0x1F, 0x44, 0, 0], [0xFF; 4]] {
            for split in 0..=LEN {
                let (sites, [signed, direct]) = straddling(split, target);
                assert_eq!(stands(&sites, split, &signed, &signed), Some(Ok(0)), "{split}");
                assert_eq!(stands(&sites, split, &direct, &signed), Some(Ok(1)), "{split}");
                // the head of one, the tail of the other
                for (head, tail) in [(&signed, &direct), (&direct, &signed)] {
                    let mixed = [&head[..split], &tail[split..]].concat();
                    let expected = if mixed == signed {
                        Some(Ok(0))
                    } else if mixed == direct {
                        Some(Ok(1))
                    } else {
                        let at = (0..LEN).find(|at| mixed[*at] != signed[*at]).unwrap();
                        let place = Gva(BASE + (PAGE - split + at) as u64);
                        Some(Err(Difference::Differs { at: place, expected: signed[at], found: direct[at] }))
                    };
                    assert_eq!(stands(&sites, split, &mixed, &signed), expected, "{split} {mixed:x?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_but_the_two_forms_is_accepted(split in 0..=LEN, at in 0..LEN, value: u8, direct: bool, target: [u8; 4]) {
            let (sites, [signed, rewritten]) = straddling(split, target);
            let mut bytes = if direct { rewritten.clone() } else { signed.clone() };
            bytes[at] = value;
            let accepted = matches!(stands(&sites, split, &bytes, &signed), Some(Ok(_)));
            prop_assert_eq!(accepted, bytes == signed || bytes == rewritten);
        }
    }
}
