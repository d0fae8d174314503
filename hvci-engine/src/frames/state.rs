//! What a frame can be, what each level may do with it then, and what it can become.
//!
//! Permissions follow from the state and stand nowhere else. A frame changes from one stable state to another only along a row of
//! [`TRANSITIONS`], and on the way is [`Kind::Locked`] or [`Kind::Hidden`]: nobody writes or executes it, and what could have done so before
//! has been waited for.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{access::MapGpaFlags, addr::Vtl};

macro_rules! kinds {
    ($( $(#[$doc:meta])* $name:ident = $number:literal $text:literal, $vtl0:expr, $vtl1:expr; )*) => {
        /// The kinds of state.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Kind { $( $(#[$doc])* $name = $number, )* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )* ];

            /// The kind with this number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $( $number => Some(Self::$name), )* _ => None }
            }

            /// Its number in a saved state. Permanent.
            pub const fn number(self) -> u8 {
                match self { $( Self::$name => $number, )* }
            }

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$name => $text, )* }
            }

            /// What `vtl` may do with such a frame, through whichever guest page. Devices may do what VTL0 may, but for execution.
            pub const fn allows(self, vtl: Vtl) -> MapGpaFlags {
                // a table for each level, not a jump for each kind: every access of a device asks
                match vtl {
                    Vtl::Vtl0 => match self { $( Self::$name => $vtl0, )* },
                    Vtl::Vtl1 => match self { $( Self::$name => $vtl1, )* },
                }
            }
        }
    };
}

const NONE: MapGpaFlags = MapGpaFlags::NONE;
const R: MapGpaFlags = MapGpaFlags::READABLE;
const RW: MapGpaFlags = MapGpaFlags(MapGpaFlags::READABLE.0 | MapGpaFlags::WRITABLE.0);
const RS: MapGpaFlags = MapGpaFlags(MapGpaFlags::READABLE.0 | MapGpaFlags::SUPERVISOR_SHADOW_STACK.0);
const DATA: MapGpaFlags = MapGpaFlags::DATA;
const CODE: MapGpaFlags = MapGpaFlags::CODE;

kinds! {
    /// Backs nothing.
    Free = 0 "free", NONE, NONE;
    /// Memory of VTL0 that nobody vouches for.
    Data = 1 "data", DATA, RW;
    /// On its way: held by a transaction, and still as it was.
    Locked = 2 "locked", R, R;
    /// On its way from or to something that VTL0 may not read.
    Hidden = 3 "hidden", NONE, R;
    /// Verified code of a module, its owner.
    Code = 4 "code", CODE, R;
    /// Verified constants of a module.
    RoData = 5 "read-only data", R, R;
    /// Data of a module that becomes [`RoData`](Self::RoData) when its initialisation is over.
    RoAfterInit = 6 "read-only after init", RW, RW;
    /// Data that is written only through the engine (kernel data protection).
    KernelData = 7 "protected kernel data", R, RW;
    /// A supervisor shadow stack.
    ShadowStack = 8 "shadow stack", RS, R;
    /// The bitmap of valid targets of indirect calls, written only through the engine.
    CfgBitmap = 9 "CFG bitmap", R, RW;
    /// Memory of VTL1: secrets, and what the secure kernel is made of.
    SecureOnly = 10 "secure only", NONE, RW;
    /// Shared with the host on purpose.
    Shared = 11 "shared", RW, RW;
    /// A page of the hypervisor's that lies over the guest's (TLFS "GPA overlay pages").
    Overlay = 12 "overlay", RW, RW;
    /// Registers of a device, not RAM.
    Device = 13 "device", RW, RW;
    /// Taken out of use because nothing can be said about it any more, until the owner of the change that failed gives it up, scrubbed.
    Quarantined = 14 "quarantined", NONE, NONE;
}

impl Kind {
    /// Whether a transaction holds it.
    pub const fn is_held(self) -> bool {
        matches!(self, Self::Locked | Self::Hidden)
    }

    /// Whether such a frame belongs to a module, a region or VTL1, which alone may give it up.
    pub const fn is_owned(self) -> bool {
        matches!(
            self,
            Self::Code
                | Self::RoData
                | Self::RoAfterInit
                | Self::KernelData
                | Self::ShadowStack
                | Self::CfgBitmap
                | Self::SecureOnly
                | Self::Quarantined
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a frame is, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct State {
    /// What it is.
    pub kind: Kind,
    /// The transaction that holds it, or the module or region that it belongs to; 0 for the others.
    pub owner: u32,
}

impl State {
    /// A state without an owner.
    pub const fn of(kind: Kind) -> Self {
        Self { kind, owner: 0 }
    }
}

/// What must happen to the bytes of a frame before its new state holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// Nothing.
    Keep,
    /// They are set to zero.
    Zero,
    /// They are found to be what was signed, while nobody can write them.
    Verify,
}

/// A way from one stable state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Its name in events.
    pub name: &'static str,
    /// From where.
    pub from: Kind,
    /// To where.
    pub to: Kind,
    /// What happens to the bytes.
    pub content: Content,
}

const fn row(name: &'static str, from: Kind, to: Kind, content: Content) -> Transition {
    Transition { name, from, to, content }
}

/// Every way there is.
pub const TRANSITIONS: &[Transition] = &[
    row("assign", Kind::Free, Kind::Data, Content::Zero),
    row("retire", Kind::Data, Kind::Free, Content::Zero),
    row("load code", Kind::Data, Kind::Code, Content::Verify),
    row("load constants", Kind::Data, Kind::RoData, Content::Verify),
    row("load data that will be constant", Kind::Data, Kind::RoAfterInit, Content::Verify),
    row("load data", Kind::Data, Kind::Data, Content::Verify),
    row("end of initialisation", Kind::RoAfterInit, Kind::RoData, Content::Keep),
    row("discard or unload code", Kind::Code, Kind::Data, Content::Zero),
    row("discard or unload constants", Kind::RoData, Kind::Data, Content::Zero),
    row("unload before the end of initialisation", Kind::RoAfterInit, Kind::Data, Content::Zero),
    row("protect kernel data", Kind::Data, Kind::KernelData, Content::Keep),
    row("unprotect kernel data", Kind::KernelData, Kind::Data, Content::Keep),
    row("make a shadow stack", Kind::Data, Kind::ShadowStack, Content::Zero),
    row("end a shadow stack", Kind::ShadowStack, Kind::Data, Content::Zero),
    row("protect the CFG bitmap", Kind::Data, Kind::CfgBitmap, Content::Zero),
    row("unprotect the CFG bitmap", Kind::CfgBitmap, Kind::Data, Content::Keep),
    row("take for VTL1", Kind::Data, Kind::SecureOnly, Content::Keep),
    row("give back to VTL0", Kind::SecureOnly, Kind::Data, Content::Zero),
    row("share with the host", Kind::Data, Kind::Shared, Content::Keep),
    row("unshare", Kind::Shared, Kind::Data, Content::Keep),
    row("overlay", Kind::Data, Kind::Overlay, Content::Keep),
    row("end an overlay", Kind::Overlay, Kind::Data, Content::Keep),
    row("quarantine data", Kind::Data, Kind::Quarantined, Content::Keep),
    row("quarantine code", Kind::Code, Kind::Quarantined, Content::Keep),
    row("give up what was quarantined", Kind::Quarantined, Kind::Data, Content::Zero),
];

impl Transition {
    /// The way from `from` to `to`, if there is one.
    pub fn between(from: Kind, to: Kind) -> Option<&'static Self> {
        TRANSITIONS.iter().find(|t| t.from == from && t.to == to)
    }

    /// What a frame is on this way: hidden if VTL0 must not read it before or after.
    pub const fn on_the_way(&self) -> Kind {
        let readable = self.from.allows(Vtl::Vtl0).contains(R) && self.to.allows(Vtl::Vtl0).contains(R);
        if readable { Kind::Locked } else { Kind::Hidden }
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_state_is_writable_and_executable_in_any_views() {
        for kind in Kind::ALL {
            let all = kind.allows(Vtl::Vtl0) | kind.allows(Vtl::Vtl1);
            assert!(!all.is_writable_and_executable(), "{kind}: {all}");
            assert!(!all.contains(MapGpaFlags::KERNEL_EXECUTABLE) || *kind == Kind::Code, "{kind} executes");
        }
    }

    #[test]
    fn what_vtl0_may_not_read_it_may_not_use_at_all() {
        for kind in Kind::ALL {
            let flags = kind.allows(Vtl::Vtl0);
            assert!(flags.contains(R) || flags == NONE, "{kind}: {flags}");
        }
        assert_eq!(Kind::SecureOnly.allows(Vtl::Vtl0), NONE);
    }

    #[test]
    fn ways_are_between_stable_states_and_lead_over_less() {
        let mut seen = BTreeSet::new();
        for t in TRANSITIONS {
            assert!(!t.from.is_held() && !t.to.is_held(), "{}", t.name);
            assert!(seen.insert((t.from, t.to)), "{} is there twice", t.name);
            let between = t.on_the_way();
            for vtl in [Vtl::Vtl0, Vtl::Vtl1] {
                let (before, on_the_way, after) = (t.from.allows(vtl), between.allows(vtl), t.to.allows(vtl));
                let risky = MapGpaFlags::WRITABLE | MapGpaFlags::EXECUTABLE | MapGpaFlags::SUPERVISOR_SHADOW_STACK;
                assert!(!on_the_way.intersects(risky), "{}", t.name);
                // VTL1 reads what it verifies and scrubs
                assert!(vtl == Vtl::Vtl1 || before.contains(on_the_way) && after.contains(on_the_way), "{}", t.name);
            }
        }
    }

    #[test]
    fn only_what_was_verified_becomes_code_and_code_is_scrubbed_before_it_is_writable() {
        for t in TRANSITIONS {
            assert!(t.to != Kind::Code || (t.from, t.content) == (Kind::Data, Content::Verify), "{}", t.name);
            let writable = t.to.allows(Vtl::Vtl0).contains(MapGpaFlags::WRITABLE);
            assert!(!matches!(t.from, Kind::Code | Kind::SecureOnly) || !writable || t.content == Content::Zero, "{}", t.name);
        }
    }

    #[test]
    fn numbers_are_permanent() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind.number()), Some(*kind));
        }
        assert_eq!((Kind::Code.number(), Kind::SecureOnly.number(), Kind::Quarantined.number()), (4, 10, 14));
        assert_eq!(Kind::from_number(15), None);
    }
}
