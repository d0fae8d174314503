//! Walks: what a processor does with the tables, and what it says when it cannot (Intel SDM volume 3, "EPT Violations" and "Exit
//! Qualification for EPT Violations").

use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed},
};

use super::{
    entry::{Encoding, Kind, Leaf, LeafSize, Misconfiguration, Mode},
    span::{self, Span},
    table::{ROOT, Slat},
};
use crate::{
    access::{Access, MapGpaFlags},
    addr::{Gpa, Gpn},
};

/// An access that the tables do not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[error("{access} at {gpa}: {kind}")]
pub struct Violation {
    /// Where.
    pub gpa: Gpa,
    /// What.
    pub access: Access,
    /// What a processor says about it.
    pub qualification: ExitQualification,
    /// Why not.
    pub kind: ViolationKind,
}

/// Why an access is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum ViolationKind {
    /// Nothing is mapped there.
    #[error("not mapped")]
    NotPresent,
    /// The page is mapped, but not for that.
    #[error("not permitted")]
    Permission,
    /// The walk met an entry that processors refuse to use.
    #[error("misconfigured: {0}")]
    Misconfigured(Misconfiguration),
}

/// Exit qualification for EPT violations, in Intel's layout whatever the encoding: bits 0 to 2 read, write, fetch; 3 to 5 what all entries
/// of the walk together allow: read, write, execute in kernel mode; 6 execute in user mode, if the two are told apart; 7 a linear address
/// led there; 8 it was the access to what that translates to, not one to the guest's page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExitQualification(pub u64);

impl ExitQualification {
    fn new(access: Access, allowed: MapGpaFlags, mode: Mode) -> Self {
        let access = match access {
            Access::Read => 1,
            Access::Write => 1 << 1,
            Access::KernelExecute | Access::UserExecute => 1 << 2,
        };
        let rights = [
            (MapGpaFlags::READABLE, 1 << 3),
            (MapGpaFlags::WRITABLE, 1 << 4),
            (MapGpaFlags::KERNEL_EXECUTABLE, 1 << 5),
            (MapGpaFlags::USER_EXECUTABLE, if mode.mbec { 1 << 6 } else { 0 }),
        ];
        Self(rights.into_iter().filter(|(flag, _)| allowed.contains(*flag)).fold(access, |all, (_, bit)| all | bit))
    }

    /// With bits 7 and 8, which a walk does not know: a linear address led there, by way of which the guest's page tables were accessed, or
    /// what it translates to.
    #[must_use]
    pub const fn of_linear(self, page_walk: bool) -> Self {
        Self(self.0 | 1 << 7 | if page_walk { 0 } else { 1 << 8 })
    }
}

/// The end of a way through the tables.
pub(super) struct Found<'a> {
    cell: &'a AtomicU64,
    entry: u64,
    /// The entry, with the rights that all entries on the way have.
    effective: u64,
    size: LeafSize,
    /// The pages that the entry maps.
    pub(super) span: Span,
}

impl Found<'_> {
    /// What it says about a page and those behind it, once these bits are set in it.
    #[inline]
    pub(super) fn leaf<E: Encoding>(&self, gpn: u64, mode: Mode, marks: u64) -> Leaf {
        E::decode(self.effective | marks, self.size, mode).onwards(gpn.saturating_sub(self.span.start))
    }
}

/// Where there is no leaf.
pub(super) struct Nothing {
    /// The pages for which that is so, by the same entry.
    pub(super) span: Span,
    kind: ViolationKind,
}

impl<E: Encoding> Slat<E> {
    /// What is mapped at a page, with execution in kernel and user mode told apart.
    #[inline]
    pub fn get(&self, gpn: Gpn) -> Option<Leaf> {
        self.find(gpn.0).ok().map(|found| found.leaf::<E>(gpn.0, Mode { mbec: true }, 0))
    }

    /// Translates one access as a processor does. If the tables have accessed and dirty bits, those are set; processors then count what
    /// they read from the guest's page tables as written, which is for the caller to say.
    ///
    /// # Errors
    /// [`Violation`]: it is not allowed. No bit of the leaf is set then.
    #[inline]
    pub fn walk(&self, gpa: Gpa, access: Access, mode: Mode) -> Result<Leaf, Violation> {
        let gpn = gpa.gpn().0;
        let violation = |kind, allowed| Violation { gpa, access, qualification: ExitQualification::new(access, allowed, mode), kind };
        let marks = match (self.has_accessed_dirty(), access) {
            (false, _) => 0,
            (true, Access::Write) => E::ACCESSED | E::DIRTY,
            (true, _) => E::ACCESSED,
        };
        loop {
            let found = self.find(gpn).map_err(|nothing| violation(nothing.kind, MapGpaFlags::NONE))?;
            let leaf = found.leaf::<E>(gpn, mode, marks);
            if !leaf.allows(access, mode) {
                return Err(violation(ViolationKind::Permission, leaf.flags));
            }
            // of the whole entry: if a permission has changed meanwhile, it is looked at again
            let marked = found.entry | marks;
            if marked == found.entry || found.cell.compare_exchange(found.entry, marked, Relaxed, Relaxed).is_ok() {
                return Ok(leaf);
            }
        }
    }

    /// The leaf of a page.
    #[inline(always)]
    pub(super) fn find(&self, gpn: u64) -> Result<Found<'_>, Nothing> {
        if gpn >= Span::ALL.end {
            return Err(Nothing { span: Span { start: Span::ALL.end, end: u64::MAX }, kind: ViolationKind::NotPresent });
        }
        let mut number = ROOT;
        let mut rights = E::RIGHTS;
        // of numbers known beforehand, so that it is unrolled and no level is calculated with
        for level in [4, 3, 2, 1] {
            let nothing = |kind| Nothing { span: span::covered(gpn, level), kind };
            let misconfigured = |why| nothing(ViolationKind::Misconfigured(why));
            let cell = self.table(number).map_err(misconfigured)?.cell(span::index(gpn, level));
            let entry = cell.load(Acquire);
            rights &= entry ^ E::INVERTED;
            match E::kind(entry, level).map_err(misconfigured)? {
                Kind::Table(below) => number = below,
                Kind::Empty => return Err(nothing(ViolationKind::NotPresent)),
                Kind::Leaf => {
                    let size = LeafSize::at(level).ok_or_else(|| misconfigured(Misconfiguration::Reserved))?;
                    let effective = entry & !E::RIGHTS | (rights ^ E::INVERTED) & E::RIGHTS;
                    return Ok(Found { cell, entry, effective, size, span: span::covered(gpn, level) });
                }
            }
        }
        // no format has a table below the last
        let misconfigured = ViolationKind::Misconfigured(Misconfiguration::Table);
        Err(Nothing { span: span::covered(gpn, 1), kind: misconfigured })
    }
}
