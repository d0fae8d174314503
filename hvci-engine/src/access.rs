//! What is done to memory, and what may be: [`Access`] and [`MapGpaFlags`], the TLFS's `HV_MAP_GPA_FLAGS`.

use core::{fmt, ops};

use serde::{Deserialize, Serialize};

/// A kind of access to a byte of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch at CPL 0 to 2.
    KernelExecute,
    /// An instruction fetch at CPL 3.
    UserExecute,
}

impl Access {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::KernelExecute, Self::UserExecute];

    /// The permission that it takes.
    pub const fn needs(self) -> MapGpaFlags {
        match self {
            Self::Read => MapGpaFlags::READABLE,
            Self::Write => MapGpaFlags::WRITABLE,
            Self::KernelExecute => MapGpaFlags::KERNEL_EXECUTABLE,
            Self::UserExecute => MapGpaFlags::USER_EXECUTABLE,
        }
    }

    /// `HV_INTERCEPT_ACCESS_TYPE`: 0 read, 1 write, 2 execute (TLFS `datatypes/hv_intercept_access_type.md`).
    pub const fn intercept_type(self) -> u8 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::KernelExecute | Self::UserExecute => 2,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::KernelExecute => "kernel execute",
            Self::UserExecute => "user execute",
        })
    }
}

/// `HV_MAP_GPA_FLAGS` (TLFS `datatypes/hv_map_gpa_flags.md`; bits 4 to 6 and 15 from openvmm `vm/hv1/hvdef/src/lib.rs`). Unknown bits are kept.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MapGpaFlags(pub u32);

impl MapGpaFlags {
    /// Nothing is allowed.
    pub const NONE: Self = Self(0);
    /// Loads.
    pub const READABLE: Self = Self(1);
    /// Stores.
    pub const WRITABLE: Self = Self(1 << 1);
    /// Fetches in kernel mode; without mode-based execution control (MBEC), fetches in both.
    pub const KERNEL_EXECUTABLE: Self = Self(1 << 2);
    /// Fetches in user mode.
    pub const USER_EXECUTABLE: Self = Self(1 << 3);
    /// Supervisor shadow-stack accesses.
    pub const SUPERVISOR_SHADOW_STACK: Self = Self(1 << 4);
    /// Page walks may set accessed and dirty bits here (VT-rp).
    pub const PAGING_WRITABILITY: Self = Self(1 << 5);
    /// Translations that end here must have come through pages of [`PAGING_WRITABILITY`](Self::PAGING_WRITABILITY) (VT-rp).
    pub const VERIFY_PAGING_WRITABILITY: Self = Self(1 << 6);
    /// May be changed by the host; not for protection masks.
    pub const ADJUSTABLE: Self = Self(1 << 15);
    /// Everything about execution.
    pub const EXECUTABLE: Self = Self(Self::KERNEL_EXECUTABLE.0 | Self::USER_EXECUTABLE.0);
    /// What unverified memory of VTL0 has: all but execution in kernel mode.
    pub const DATA: Self = Self(Self::READABLE.0 | Self::WRITABLE.0 | Self::USER_EXECUTABLE.0);
    /// What verified code of VTL0 has.
    pub const CODE: Self = Self(Self::READABLE.0 | Self::EXECUTABLE.0);

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether a flag of `other` is set.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether an access of this kind is allowed, where kernel and user mode are told apart.
    pub const fn allows(self, access: Access) -> bool {
        self.contains(access.needs())
    }

    /// These flags without those of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether memory can be written and executed in kernel mode: what must never be.
    pub const fn is_writable_and_executable(self) -> bool {
        self.contains(Self(Self::WRITABLE.0 | Self::KERNEL_EXECUTABLE.0))
    }
}

impl ops::BitOr for MapGpaFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl ops::BitAnd for MapGpaFlags {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Display for MapGpaFlags {
    /// `R W KX UX` as four columns: `R-KU`, `RW-U`; further flags as hexadecimal behind them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (flag, letter) in [(Self::READABLE, 'R'), (Self::WRITABLE, 'W'), (Self::KERNEL_EXECUTABLE, 'K'), (Self::USER_EXECUTABLE, 'U')] {
            write!(f, "{}", if self.contains(flag) { letter } else { '-' })?;
        }
        match self.0 & !0xf {
            0 => Ok(()),
            others => write!(f, "+{others:#x}"),
        }
    }
}

impl fmt::Debug for MapGpaFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn flags_read_like_an_entry() {
        assert_eq!(MapGpaFlags::DATA.to_string(), "RW-U");
        assert_eq!(MapGpaFlags::CODE.to_string(), "R-KU");
        assert_eq!((MapGpaFlags::READABLE | MapGpaFlags::SUPERVISOR_SHADOW_STACK).to_string(), "R---+0x10");
        assert_eq!(MapGpaFlags(0x8000_0000).to_string(), "----+0x80000000");
    }

    #[test]
    fn writable_and_executable_is_about_the_kernel() {
        assert!(!MapGpaFlags::DATA.is_writable_and_executable());
        assert!((MapGpaFlags::DATA | MapGpaFlags::KERNEL_EXECUTABLE).is_writable_and_executable());
        assert!(!MapGpaFlags::CODE.is_writable_and_executable());
    }

    #[test]
    fn an_access_needs_its_flag() {
        assert_eq!(Access::ALL.map(|a| MapGpaFlags::DATA.allows(a)), [true, true, false, true]);
        assert_eq!(Access::ALL.map(|a| MapGpaFlags::CODE.allows(a)), [true, false, true, true]);
        assert_eq!(Access::ALL.map(Access::intercept_type), [0, 1, 2, 2]);
    }
}
