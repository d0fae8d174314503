//! One record for every decision: what was asked or tried, by whom, about which frames, and what came of it.
//!
//! Records go to a bounded ring. A guest that floods it loses records of its own doing, never memory: how many were dropped is counted.

#![forbid(unsafe_code)]

use alloc::{borrow::Cow, collections::VecDeque, string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::{
    access::{Access, MapGpaFlags},
    addr::{Gpa, GpnRange, Gva, Vtl},
    digest::Digest,
    finding::Code,
    status::HvStatus,
};

/// Version of the records' form. Fields are added, never changed; a new number says that some were.
pub const SCHEMA_VERSION: u32 = 1;

/// A record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 0, without gaps but where records were dropped.
    pub sequence: u64,
    /// The host's clock, in nanoseconds; 0 where it has none.
    pub at: u64,
    /// `HV_VP_INDEX` of the processor that asked or tried, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vp: Option<u32>,
    /// Who asked or tried.
    pub vtl: Vtl,
    /// What happened.
    pub what: What,
    /// What came of it.
    pub status: HvStatus,
    /// Why it was refused, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum What {
    /// A level was made usable, for the partition or on a processor.
    EnableVtl {
        /// The level.
        target: Vtl,
    },
    /// Memory was to be protected.
    Protect {
        /// Which pages.
        pages: Vec<GpnRange>,
        /// What VTL0 was to be allowed.
        flags: MapGpaFlags,
    },
    /// Frames were to change.
    Change {
        /// The name of the row of the transition table, or of what takes several of them, and whose frames they are.
        transition: String,
        /// Which pages.
        pages: Vec<GpnRange>,
    },
    /// A module was to be loaded.
    Load {
        /// Its name.
        name: String,
        /// Which pages.
        pages: Vec<GpnRange>,
        /// The digest that its signature is over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<Digest>,
        /// Nanoseconds of each phase, in order.
        phases: Vec<(Cow<'static, str>, u64)>,
    },
    /// An instruction of a module was to be changed.
    Patch {
        /// The module's name.
        module: String,
        /// The instruction.
        site: Gva,
        /// From which of its bytes on.
        offset: u64,
        /// The pages that were written to.
        pages: Vec<GpnRange>,
    },
    /// Memory that only the engine writes was to be written.
    RegionWrite {
        /// The region.
        region: u32,
        /// From where in it.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// An access of a processor that the second-level table refused.
    Access {
        /// Where.
        gpa: Gpa,
        /// The virtual address that led there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gva: Option<Gva>,
        /// What was tried.
        access: Access,
        /// By which instruction.
        rip: Gva,
        /// Whether it was the walk of the guest's page tables, not the access itself.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        page_walk: bool,
    },
    /// An access of a device or of the VMM that was refused.
    DeviceAccess {
        /// Where.
        gpa: Gpa,
        /// How many bytes.
        len: u64,
        /// What was tried.
        access: Access,
    },
    /// A write to a pinned register.
    RegisterWrite {
        /// `HV_REGISTER_NAME`.
        register: u32,
        /// What it was.
        old: u64,
        /// What it was to be.
        new: u64,
    },
    /// A credential of the vault was used, or was to be.
    Credential {
        /// What for.
        operation: Cow<'static, str>,
        /// Which.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        credential: Option<u64>,
        /// The module whose code asked, by authentihash.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        caller: Option<Digest>,
        /// For which service.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// From here on, boot is over.
    EndOfBoot,
}

/// The latest records, at most as many as it was made for.
#[derive(Clone, Debug)]
pub struct Ring {
    records: VecDeque<Event>,
    capacity: usize,
    next: u64,
    dropped: u64,
}

impl Ring {
    /// An empty ring for `capacity` records, at least one.
    pub fn new(capacity: usize) -> Self {
        Self { records: VecDeque::new(), capacity: capacity.max(1), next: 0, dropped: 0 }
    }

    /// Appends a record; its `sequence` is set here. The oldest makes room, but not for a use of a credential that was refused: whoever is refused
    /// could flush out the records of what was not.
    pub fn push(&mut self, event: Event) {
        if self.records.len() == self.capacity {
            self.dropped = self.dropped.saturating_add(1);
            if event.code.is_some() && matches!(event.what, What::Credential { .. }) {
                self.next = self.next.saturating_add(1);
                return;
            }
            self.records.pop_front();
        }
        self.records.push_back(Event { sequence: self.next, ..event });
        self.next = self.next.saturating_add(1);
    }

    /// Takes the records out, oldest first.
    pub fn drain(&mut self) -> Vec<Event> {
        self.records.drain(..).collect()
    }

    /// The records, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Event> {
        self.records.iter()
    }

    /// How many were dropped because nobody took them in time.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::addr::Gpn;

    fn event(what: What) -> Event {
        Event { sequence: 0, at: 5, vp: Some(1), vtl: Vtl::Vtl0, what, status: HvStatus::ACCESS_DENIED, code: None }
    }

    #[test]
    fn a_flood_costs_the_oldest_records_and_is_counted() {
        let mut ring = Ring::new(3);
        for _ in 0..5 {
            ring.push(event(What::EndOfBoot));
        }
        assert_eq!(ring.dropped(), 2);
        assert_eq!(ring.drain().iter().map(|e| e.sequence).collect::<Vec<_>>(), [2, 3, 4]);
        ring.push(event(What::EndOfBoot));
        assert_eq!(ring.iter().map(|e| e.sequence).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn refused_uses_of_credentials_flush_nothing_out() {
        let mut ring = Ring::new(2);
        let used = |code| Event {
            code,
            ..event(What::Credential { operation: "ntlm-response".into(), credential: Some(1), caller: None, target: None })
        };
        ring.push(used(None));
        (0..5).for_each(|_| ring.push(used(Some(Code::VaultCaller))));
        assert_eq!((ring.dropped(), ring.drain().iter().map(|e| e.sequence).collect::<Vec<_>>()), (4, vec![0, 1]));
        ring.push(used(None));
        assert_eq!(ring.drain()[0].sequence, 6);
    }

    #[test]
    fn the_form_is_stable() {
        let text = |what| serde_json::to_string(&event(what)).unwrap();
        assert_eq!(
            text(What::Access { gpa: Gpa(0x5000), gva: None, access: Access::KernelExecute, rip: Gva(0x10), page_walk: false }),
            r#"{"sequence":0,"at":5,"vp":1,"vtl":"vtl0","what":{"kind":"access","gpa":20480,"access":"kernel-execute","rip":16},"status":6}"#
        );
        let pages = vec![GpnRange { start: Gpn(16), pages: 2 }];
        let protect = text(What::Protect { pages, flags: MapGpaFlags::DATA });
        assert!(protect.contains(r#""what":{"kind":"protect","pages":[{"start":16,"pages":2}],"flags":11}"#), "{protect}");
        let back: Event = serde_json::from_str(&protect).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), protect);
    }
}
