//! `HV_STATUS`: how a hypercall ended (TLFS `datatypes/hv_status.md`; numbers from openvmm `vm/hv1/hvdef/src/lib.rs`, `HvError`).

use core::fmt;

use serde::{Deserialize, Serialize};

/// A status code. Unknown ones are kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[must_use]
pub struct HvStatus(pub u16);

macro_rules! statuses {
    ($( $name:ident $number:literal $text:literal; )*) => {
        impl HvStatus {
            $( #[doc = concat!($text, ".")] pub const $name: Self = Self($number); )*

            /// Every code that has a name, its TLFS name without `HV_STATUS_`, and what it means.
            pub const NAMED: &'static [(Self, &'static str, &'static str)] = &[$( (Self::$name, stringify!($name), $text) ),*];

            fn text(self) -> Option<&'static str> {
                match self { $( Self::$name => Some($text), )* _ => None }
            }
        }
    };
}

statuses! {
    SUCCESS 0x0 "done";
    INVALID_HYPERCALL_CODE 0x2 "no such hypercall";
    INVALID_HYPERCALL_INPUT 0x3 "the hypercall's control word or input is not as it must be";
    INVALID_ALIGNMENT 0x4 "an address is not aligned";
    INVALID_PARAMETER 0x5 "a parameter has no meaning here";
    ACCESS_DENIED 0x6 "the caller may not do this";
    INVALID_PARTITION_STATE 0x7 "the partition is not in a state to do this";
    OPERATION_DENIED 0x8 "this must not be done with these pages";
    INSUFFICIENT_MEMORY 0xb "a bound on memory is reached";
    INVALID_PARTITION_ID 0xd "no such partition";
    INVALID_VP_INDEX 0xe "no such virtual processor";
    NOT_FOUND 0x10 "there is no such thing";
    INVALID_VP_STATE 0x15 "the virtual processor is not in a state to do this";
    OBJECT_IN_USE 0x19 "another operation holds these pages";
    FEATURE_UNAVAILABLE 0x1e "the host cannot do this";
    INVALID_REGISTER_VALUE 0x50 "a register cannot have this value, or these flags do not go together";
    INVALID_VTL_STATE 0x51 "the virtual trust level is not in a state to do this";
    VTL_ALREADY_ENABLED 0x86 "the virtual trust level is enabled already";
}

impl HvStatus {
    /// [`SUCCESS`](Self::SUCCESS) or not, as a result.
    ///
    /// # Errors
    /// Every other status.
    pub const fn ok(self) -> Result<(), Self> {
        if self.0 == 0 { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for HvStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => write!(f, "{text} (HV_STATUS {:#x})", self.0),
            None => write!(f, "HV_STATUS {:#x}", self.0),
        }
    }
}

impl fmt::Debug for HvStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for HvStatus {}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn unknown_codes_are_kept() {
        assert_eq!(HvStatus::ACCESS_DENIED.to_string(), "the caller may not do this (HV_STATUS 0x6)");
        assert_eq!(HvStatus(0x1234).to_string(), "HV_STATUS 0x1234");
        assert_eq!(HvStatus(0x1234).ok(), Err(HvStatus(0x1234)));
        assert_eq!(HvStatus::SUCCESS.ok(), Ok(()));
    }
}
