//! Code that a kernel rewrites: the sites of a Linux module's jump labels, while it runs, and those of a driver's [imports](super::import_site).
//! The order in which a jump label is changed:
//!
//! ```text
//! whole ─ first byte: INT3 ─► breakpoint ─ bytes 1..n of a form ─► tail ─ first byte of that form ─► whole
//! ```
//!
//! (Linux `text_poke_bp_batch`, arch/x86/kernel/alternative.c; `struct jump_entry`, include/linux/jump_label.h: three relative words.) A site
//! is what the signed module's own table says; its two forms, a NOP or a jump to the table's target, are computed when it is loaded. The guest
//! says which site and which of its bytes, and nothing else is ever written.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::collections::BTreeMap;

use super::{Expected, Segment, import_site::are_forms};
use crate::{addr::Gva, bytes::widen, frames::Kind};

/// Bytes of a `struct jump_entry`: code, target, key.
const ENTRY: usize = 16;
const INT3: u8 = 0xCC;
const NOP2: &[u8] = &[0x66, 0x90];
const NOP5: &[u8] = &[0x0F, 0x1F, 0x44, 0x00, 0x00];
const JMP8: u8 = 0xEB;
const JMP32: u8 = 0xE9;

/// Code that has two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    order: Order,
    /// A NOP and a jump, or the signed form and the direct one; of the same length.
    forms: [Vec<u8>; 2],
    state: State,
}

/// In which steps a form is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// A jump label: INT3, tail, first byte; from any form to any.
    Breakpoint,
    /// An import: the second form at once, and never the first again.
    Once,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is the form of this number.
    Whole(usize),
    /// Its first byte is INT3, behind it the tail of this form.
    Breakpoint(usize),
}

impl Site {
    /// An import, in its signed form.
    pub(super) const fn import(signed: Vec<u8>, direct: Vec<u8>) -> Self {
        Self { order: Order::Once, forms: [signed, direct], state: State::Whole(0) }
    }

    /// The forms of an import: signed and direct.
    pub(super) fn import_forms(&self) -> Option<[&[u8]; 2]> {
        (self.order == Order::Once).then(|| self.forms.each_ref().map(Vec::as_slice))
    }

    /// Was found to hold its second form.
    pub(super) const fn stands_rewritten(&mut self) {
        self.state = State::Whole(1);
    }

    /// Whether `bytes` may be written `offset` bytes into the site now; and what it is then.
    pub(super) fn step(&self, offset: u64, bytes: &[u8]) -> Option<Self> {
        let to = |state| Some(Self { order: self.order, forms: self.forms.clone(), state });
        if self.order == Order::Once {
            let [_, direct] = &self.forms;
            return if (self.state, offset, bytes) == (State::Whole(0), 0, direct) { to(State::Whole(1)) } else { None };
        }
        match (self.state, offset, bytes) {
            (State::Whole(form), 0, [INT3]) => to(State::Breakpoint(form)),
            (State::Breakpoint(_), 1, tail) => to(State::Breakpoint(self.forms.iter().position(|form| form.get(1..) == Some(tail))?)),
            (State::Breakpoint(form), 0, [first]) if self.forms.get(form)?.first() == Some(first) => to(State::Whole(form)),
            _ => None,
        }
    }

    /// Bytes of the site.
    pub(super) fn size(&self) -> u64 {
        widen(self.forms.first().map_or(0, Vec::len))
    }

    /// State (bit 0 the form, bit 1 a breakpoint), then both forms one behind the other.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let state = match self.state {
            State::Whole(form) => u8::from(form != 0),
            State::Breakpoint(form) => u8::from(form != 0) | 2,
        };
        [&[state][..], &self.forms.concat()].concat()
    }

    /// `None` for what no site is.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (state, forms) = bytes.split_first()?;
        let (nop, jump) = forms.split_at_checked(forms.len() / 2)?;
        let order = match (nop, jump) {
            (NOP2, [JMP8, _]) | (NOP5, [JMP32, _, _, _, _]) => Order::Breakpoint,
            (signed, direct) if are_forms(signed, direct) => Order::Once,
            _ => return None,
        };
        let form = usize::from(state & 1);
        let state = match (state, order) {
            (0 | 1, _) => State::Whole(form),
            (2 | 3, Order::Breakpoint) => State::Breakpoint(form),
            _ => return None,
        };
        Some(Self { order, forms: [nop.to_vec(), jump.to_vec()], state })
    }

    /// Whether a change of it is begun and not ended.
    pub(super) const fn is_pending(&self) -> bool {
        matches!(self.state, State::Breakpoint(_))
    }
}

/// The sites of a module: those of `__jump_table` that are in its code and hold one of their forms.
pub(super) fn sites(expected: &Expected<'_>) -> BTreeMap<Gva, Site> {
    let tables = expected.segments.iter().flat_map(|s| s.parts.iter().filter(|p| p.section == "__jump_table").map(move |p| (s, p)));
    let mut sites = BTreeMap::new();
    for (segment, part) in tables {
        let bytes = usize::try_from(part.offset).ok().zip(usize::try_from(part.len).ok()).and_then(|(at, len)| {
            let end = at.checked_add(len)?;
            segment.bytes.get(at..end)
        });
        let bytes = bytes.unwrap_or_default();
        let base = segment.start.0.wrapping_add(part.offset);
        for (at, entry) in (base..).step_by(ENTRY).zip(bytes.as_chunks::<ENTRY>().0) {
            if let Some((code, site)) = site(expected, at, entry) {
                sites.insert(code, site);
            }
        }
    }
    sites
}

fn site(expected: &Expected<'_>, at: u64, entry: &[u8; ENTRY]) -> Option<(Gva, Site)> {
    let [c0, c1, c2, c3, t0, t1, t2, t3, ..] = *entry;
    let code = at.wrapping_add_signed(i64::from(i32::from_le_bytes([c0, c1, c2, c3])));
    let target = at.wrapping_add(4).wrapping_add_signed(i64::from(i32::from_le_bytes([t0, t1, t2, t3])));
    let segment = expected.segments.iter().find(|s| s.kind == Kind::Code && at_in(s, code).is_some())?;
    let into = at_in(segment, code)?;
    let stands = |form: &[u8]| into.checked_add(form.len()).and_then(|end| segment.bytes.get(into..end)).as_deref() == Some(form);
    // the target is code of the same module
    expected.segments.iter().find(|s| s.kind == Kind::Code && at_in(s, target).is_some())?;
    let near = target.wrapping_sub(code.wrapping_add(2)).cast_signed();
    let far = target.wrapping_sub(code.wrapping_add(5)).cast_signed();
    let short = i8::try_from(near).ok().map(|near| [NOP2.to_vec(), vec![JMP8, near.cast_unsigned()]]);
    let long = i32::try_from(far).ok().map(|far| [NOP5.to_vec(), [&[JMP32][..], &far.to_le_bytes()].concat()]);
    let forms = [short, long].into_iter().flatten().find(|forms| forms.iter().any(|form| stands(form)))?;
    let form = forms.iter().position(|form| stands(form))?;
    Some((Gva(code), Site { order: Order::Breakpoint, forms, state: State::Whole(form) }))
}

/// Offset of `address` in a segment.
fn at_in(segment: &Segment<'_>, address: u64) -> Option<usize> {
    let into = address.checked_sub(segment.start.0).filter(|into| *into < segment.size())?;
    usize::try_from(into).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions, clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::load::{Pages, Part};

    const CODE: u64 = 0xFFFF_FFFF_C000_0000;
    const TABLE: u64 = CODE + 0x2000;

    fn expected(entries: &[(u64, u64)], code: &[(usize, &[u8])]) -> Expected<'static> {
        let mut text = vec![0x90; 0x2000];
        for (at, bytes) in code {
            text[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        let mut table = Vec::new();
        for (number, (site, target)) in entries.iter().enumerate() {
            let at = TABLE + 16 * number as u64;
            table.extend(i32::try_from((CODE + site).wrapping_sub(at).cast_signed()).unwrap().to_le_bytes());
            table.extend(i32::try_from((CODE + target).wrapping_sub(at + 4).cast_signed()).unwrap().to_le_bytes());
            table.extend([0; 8]);
        }
        let len = table.len() as u64;
        table.resize(0x1000, 0);
        let segment = |start, kind, bytes, parts| Segment {
            name: "".into(),
            start: Gva(start),
            kind,
            discardable: false,
            bytes: Pages::computed(bytes),
            parts,
        };
        let part = Part { section: "__jump_table".into(), offset: 0, len };
        let segments = vec![segment(CODE, Kind::Code, text, Vec::new()), segment(TABLE, Kind::RoAfterInit, table, vec![part])];
        Expected { segments, entry: None, security_cookie: None, exports: std::sync::Arc::default() }
    }

    #[test]
    fn a_site_is_where_the_table_says_and_one_of_two_forms_stands() {
        let code: &[(usize, &[u8])] = &[(0x10, NOP5), (0x20, &[JMP8, 0x1E]), (0xFFE, &[JMP32, 0xFD, 0xF0, 0xFF, 0xFF])];
        let sites = sites(&expected(&[(0x10, 0x100), (0x20, 0x40), (0xFFE, 0x100), (0x50, 0x100), (0x10, 0x5000)], code));
        assert_eq!(sites.keys().map(|at| at.0 - CODE).collect::<Vec<_>>(), [0x10, 0x20, 0xFFE], "0x50 is neither, 0x5000 no code");
        assert_eq!(sites[&Gva(CODE + 0x20)].forms, [NOP2.to_vec(), vec![JMP8, 0x1E]]);
        assert_eq!(sites[&Gva(CODE + 0xFFE)].state, State::Whole(1));
    }

    #[test]
    fn a_site_is_saved_as_it_is() {
        let sites = sites(&expected(&[(0x10, 0x100), (0x20, 0x40)], &[(0x10, NOP5), (0x20, &[JMP8, 0x1E])]));
        for site in sites.values() {
            for state in [site.clone(), site.step(0, &[INT3]).unwrap()] {
                let bytes = state.to_bytes();
                assert_eq!(Site::from_bytes(&bytes), Some(state));
                assert_eq!(Site::from_bytes(&bytes[..bytes.len() - 1]), None);
                assert_eq!(Site::from_bytes(&[&[4], &bytes[1..]].concat()), None, "no state");
                assert_eq!(Site::from_bytes(&[&bytes[..1], &[0x90], &bytes[2..]].concat()), None, "no form");
            }
        }
        assert_eq!((Site::from_bytes(&[]), Site::from_bytes(&[0])), (None, None));
    }

    #[test]
    fn only_the_three_steps_in_their_order() {
        let sites = sites(&expected(&[(0x10, 0x100)], &[(0x10, NOP5)]));
        let jump = [JMP32, 0xEB, 0, 0, 0];
        let whole = sites[&Gva(CODE + 0x10)].clone();
        for (offset, bytes) in [(0, &jump[..]), (1, &jump[1..]), (0, &jump[..1]), (0, &[][..]), (1, &[INT3]), (u64::MAX, &[INT3])] {
            assert_eq!(whole.step(offset, bytes), None, "{offset} {bytes:x?}");
        }
        let breakpoint = whole.step(0, &[INT3]).unwrap();
        assert!(breakpoint.is_pending() && !whole.is_pending());
        for (offset, bytes) in [(0, &jump[..1]), (0, &[INT3]), (1, &[0x1F, 0x44, 0, 1]), (1, &jump[1..4]), (2, &jump[2..]), (1, &[][..])] {
            assert_eq!(breakpoint.step(offset, bytes), None, "{offset} {bytes:x?}");
        }
        // given up
        assert_eq!(breakpoint.step(0, &NOP5[..1]), Some(whole));
        let tail = breakpoint.step(1, &jump[1..]).unwrap();
        assert_eq!(tail.step(0, &NOP5[..1]), None, "head and tail of two forms");
        assert_eq!(tail.step(0, &jump[..1]).unwrap().state, State::Whole(1));
    }
}
