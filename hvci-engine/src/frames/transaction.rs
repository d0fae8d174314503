//! The protocol by which frames change: one step at a time, so that what is explored exhaustively is what runs.
//!
//! ```text
//! claim ─► restrict ─► quiesce ─► inspect ─► scrub ─► open ─► settle ─► done
//!   │          │          │          │                 │ a grant fails
//!   │          │          │          │      restrict again ─► quiesce again
//!   └──────────┴──────────┴──────────┴──► reopen ◄───────────────┘
//!                                            └─► restore ─► failed
//! ```
//!
//! Nothing is looked at before it is quiet (removal of W and KX from every alias, then every TLB and device), and nothing is granted before
//! it was looked at. Frames are held from the first step to the last, so that no other transaction can change what this one is about to
//! grant. **Invariant:** a transaction that fails leaves every permission at or below what it was, and restores exact states, not
//! defaults; what cannot be restored is quarantined.

use alloc::vec::Vec;
use core::ops::Range;

use super::{Content, FrameTable, Kind, State, Transition};
use crate::{
    access::MapGpaFlags,
    addr::{Frame, Gpn, GpnRange, PAGE_SHIFT, Vtl},
    host::Host,
    status::HvStatus,
};

/// Each has a view of its own.
const LEVELS: [Vtl; 2] = [Vtl::Vtl0, Vtl::Vtl1];

/// What a transaction shall do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Take the frames in the table.
    Claim,
    /// Remove what their way forbids, from every alias.
    Restrict,
    /// Wait until nobody uses an older permission.
    Quiesce,
    /// For the caller: look at the bytes, then [`Transaction::approve`] or [`Transaction::reject`].
    Inspect,
    /// Set to zero what must be.
    Scrub,
    /// Grant what the new states allow, to every alias.
    Open,
    /// Give the frames their new states, and let them go.
    Settle,
    /// Over; it is so.
    Done,
    /// Undoing a grant that failed: remove it.
    RestrictAgain,
    /// Undoing a grant: wait.
    QuiesceAgain,
    /// Undoing: grant what the old states allowed.
    Reopen,
    /// Undoing: give the frames the states they had, and let them go.
    Restore,
    /// Over; it was not to be.
    Failed(HvStatus),
}

/// What shall become of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// Which.
    pub frame: Frame,
    /// What it must be when it is claimed; `None`: anything from which a transition leads there.
    pub from: Option<Kind>,
    /// What it shall be.
    pub to: Kind,
}

/// Changes that happen together or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transaction {
    id: u32,
    owner: u32,
    items: Vec<Item>,
    step: Step,
    /// How many items are through with the step.
    at: usize,
    failure: Option<HvStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Item {
    frame: Frame,
    from: Option<Kind>,
    to: Kind,
    /// What it was; `None` before it is claimed.
    was: Option<State>,
    /// What happens to its bytes, and what it is while the transaction has it: by its way, which is known when it is claimed.
    content: Content,
    held: Kind,
    scrubbed: bool,
}

impl Item {
    const fn new(change: &Change) -> Self {
        Self {
            frame: change.frame,
            from: change.from,
            to: change.to,
            was: None,
            content: Content::Keep,
            held: Kind::Hidden,
            scrubbed: false,
        }
    }

    fn claimed(&mut self, was: State) {
        let way = Transition::between(was.kind, self.to);
        self.was = Some(was);
        self.content = way.map_or(Content::Keep, |t| t.content);
        self.held = way.map_or(Kind::Hidden, Transition::on_the_way);
    }

    const fn content(&self) -> Content {
        self.content
    }

    const fn held(&self) -> Kind {
        self.held
    }

    /// What it is when the transaction of `owner` has failed. Bytes that are gone can be nothing they were.
    fn back(&self, owner: u32) -> State {
        match self.was {
            Some(was) if !self.scrubbed => was,
            _ => State { kind: Kind::Quarantined, owner },
        }
    }
}

impl Transaction {
    /// Changes on behalf of the module or region `owner`, which gets the frames that become owned and must be the owner of those that are.
    /// `id` names the transaction in the table: no two at the same time have the same.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] if a frame is named twice.
    pub fn new(id: u32, owner: u32, changes: &[Change]) -> Result<Self, HvStatus> {
        let mut items: Vec<Item> = changes.iter().map(Item::new).collect();
        items.sort_unstable_by_key(|i| i.frame);
        if items.windows(2).any(|pair| matches!(pair, [a, b] if a.frame == b.frame)) {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        Ok(Self { id, owner, items, step: Step::Claim, at: 0, failure: None })
    }

    /// What comes next.
    pub const fn step(&self) -> Step {
        self.step
    }

    /// The bytes are what they should be: go on.
    ///
    /// # Panics
    /// If it is not at [`Step::Inspect`].
    pub fn approve(&mut self) {
        assert_eq!(self.step, Step::Inspect, "approved without inspection");
        self.enter(Step::Scrub);
    }

    /// The bytes are not what they should be: undo, and fail with `status`.
    ///
    /// # Panics
    /// If it is not at [`Step::Inspect`].
    pub fn reject(&mut self, status: HvStatus) {
        assert_eq!(self.step, Step::Inspect, "rejected without inspection");
        self.fail(status, Step::Reopen);
    }

    /// Does the next step, for at most `batch` frames if it is one that goes frame by frame. Returns what comes then.
    pub fn perform(&mut self, table: &FrameTable, host: &dyn Host, batch: usize) -> Step {
        let end = self.at.saturating_add(batch.max(1)).min(self.items.len());
        let range = self.at..end;
        match self.step {
            Step::Claim => match self.claim(table, range) {
                Ok(()) => self.proceed(end, Step::Restrict),
                Err(status) => {
                    // those that were not claimed are not ours to give back
                    self.items.retain(|item| item.was.is_some());
                    self.fail(status, Step::Reopen);
                }
            },
            Step::Restrict => match self.protect(host, range, Item::held) {
                Ok(()) => self.proceed(end, Step::Quiesce),
                Err(status) => self.fail(status, Step::Reopen),
            },
            Step::Quiesce => match self.quiesce(host) {
                Ok(()) if self.items.iter().any(|i| i.content() == Content::Verify) => self.enter(Step::Inspect),
                Ok(()) => self.enter(Step::Scrub),
                Err(status) => self.fail(status, Step::Reopen),
            },
            Step::Scrub => match self.scrub(host, range) {
                Ok(()) => self.proceed(end, Step::Open),
                Err(status) => self.fail(status, Step::Reopen),
            },
            Step::Open => match self.open(host, range) {
                Ok(()) => self.proceed(end, Step::Settle),
                Err(status) => self.fail(status, Step::RestrictAgain),
            },
            Step::Settle => {
                let owner = self.owner;
                self.settle(table, range, |i| State { kind: i.to, owner: if i.to.is_owned() { owner } else { 0 } });
                self.proceed(end, Step::Done);
            }
            Step::RestrictAgain => match self.protect(host, range, Item::held) {
                Ok(()) => self.proceed(end, Step::QuiesceAgain),
                Err(_) => self.give_up(),
            },
            Step::QuiesceAgain => match self.quiesce(host) {
                Ok(()) => self.enter(Step::Reopen),
                Err(_) => self.give_up(),
            },
            Step::Reopen => {
                // narrower than it may be, if the host fails here
                let _ = self.protect(host, range, |i| i.back(self.owner).kind);
                self.proceed(end, Step::Restore);
            }
            Step::Restore => {
                self.settle(table, range, |i| i.back(self.owner));
                self.proceed(end, Step::Failed(self.failure.unwrap_or(HvStatus::OPERATION_DENIED)));
            }
            Step::Inspect | Step::Done | Step::Failed(_) => {}
        }
        self.step
    }

    /// Does every step up to one that is the caller's, or the end.
    pub fn run(&mut self, table: &FrameTable, host: &dyn Host) -> Step {
        loop {
            match self.step {
                Step::Inspect | Step::Done | Step::Failed(_) => return self.step,
                _ => self.perform(table, host, usize::MAX),
            };
        }
    }

    fn proceed(&mut self, done: usize, next: Step) {
        self.at = done;
        if done == self.items.len() {
            self.enter(next);
        }
    }

    fn enter(&mut self, step: Step) {
        (self.step, self.at) = (step, 0);
    }

    fn fail(&mut self, status: HvStatus, next: Step) {
        self.failure.get_or_insert(status);
        self.enter(next);
    }

    /// The host can neither grant nor remove: nothing may be done with these frames any more.
    fn give_up(&mut self) {
        for item in &mut self.items {
            item.scrubbed = true;
        }
        self.enter(Step::Reopen);
    }

    fn claim(&mut self, table: &FrameTable, range: Range<usize>) -> Result<(), HvStatus> {
        let (id, owner) = (self.id, self.owner);
        for item in self.items.get_mut(range).unwrap_or_default() {
            item.claimed(table.claim(item.frame, id, owner, item.from, item.to)?);
        }
        Ok(())
    }

    fn scrub(&mut self, host: &dyn Host, range: Range<usize>) -> Result<(), HvStatus> {
        const ZEROS: [u8; 1 << PAGE_SHIFT] = [0; 1 << PAGE_SHIFT];
        for item in self.items.get_mut(range).unwrap_or_default() {
            if item.content() != Content::Zero {
                continue;
            }
            // also if it fails half-way
            item.scrubbed = true;
            let mut any = None;
            host.aliases(item.frame, &mut |gpn| any = any.or(Some(gpn)));
            // a frame that no page leads to is written when one does
            any.and_then(Gpn::gpa).map_or(Ok(()), |gpa| host.write(gpa, &ZEROS))?;
        }
        Ok(())
    }

    /// Lets frames go.
    ///
    /// # Panics
    /// If they are not held by this transaction, which would be a mistake of the table's.
    fn settle(&self, table: &FrameTable, range: Range<usize>, state: impl Fn(&Item) -> State) {
        for item in self.items.get(range).unwrap_or_default() {
            let settled = table.settle(item.frame, self.id, state(item));
            assert_eq!(settled, Ok(()), "{} was taken from its transaction", item.frame);
        }
    }

    fn quiesce(&self, host: &dyn Host) -> Result<(), HvStatus> {
        let ranges = pages(host, self.items.iter().map(|i| i.frame));
        for vtl in LEVELS {
            host.quiesce(vtl, &ranges)?;
        }
        Ok(())
    }

    /// Has every alias of the frames obey the kind of each.
    fn protect(&self, host: &dyn Host, range: Range<usize>, kind: impl Fn(&Item) -> Kind) -> Result<(), HvStatus> {
        self.permit(host, range, |item| LEVELS.map(|vtl| Some(kind(item).allows(vtl))))
    }

    /// The same for what the frames become. A level that may do with one what it may do on the way is not asked for again.
    fn open(&self, host: &dyn Host, range: Range<usize>) -> Result<(), HvStatus> {
        self.permit(host, range, |item| LEVELS.map(|vtl| Some(item.to.allows(vtl)).filter(|allowed| *allowed != item.held().allows(vtl))))
    }

    /// Has every alias of the frames allow each level what is said; `None` for what it allows already.
    fn permit(&self, host: &dyn Host, range: Range<usize>, allowed: impl Fn(&Item) -> [Option<MapGpaFlags>; 2]) -> Result<(), HvStatus> {
        let mut each: Vec<([Option<MapGpaFlags>; 2], Vec<GpnRange>)> = Vec::new();
        for item in self.items.get(range).unwrap_or_default() {
            let one = allowed(item);
            if one.iter().all(Option::is_none) {
                continue;
            }
            if !each.iter().any(|(known, _)| *known == one) {
                each.push((one, Vec::new()));
            }
            for (_, ranges) in each.iter_mut().filter(|(known, _)| *known == one) {
                host.aliases(item.frame, &mut |gpn| GpnRange::append(ranges, gpn));
            }
        }
        for (one, ranges) in each {
            let ranges = ordered(ranges);
            for (vtl, flags) in LEVELS.into_iter().zip(one) {
                flags.map_or(Ok(()), |flags| host.protect(vtl, &ranges, flags)).map_err(|partial| partial.status)?;
            }
        }
        Ok(())
    }
}

/// Every guest page of the frames, as few ranges as there can be.
fn pages(host: &dyn Host, frames: impl Iterator<Item = Frame>) -> Vec<GpnRange> {
    let mut ranges = Vec::new();
    for frame in frames {
        host.aliases(frame, &mut |gpn| GpnRange::append(&mut ranges, gpn));
    }
    ordered(ranges)
}

/// The same pages as as few ranges as there can be.
fn ordered(ranges: Vec<GpnRange>) -> Vec<GpnRange> {
    if ranges.is_sorted_by(|a, b| a.start.0.saturating_add(a.pages) <= b.start.0) {
        return ranges;
    }
    let mut all: Vec<Gpn> = ranges.into_iter().flat_map(GpnRange::iter).collect();
    all.sort_unstable();
    all.dedup();
    GpnRange::of_pages(all.into_iter())
}
