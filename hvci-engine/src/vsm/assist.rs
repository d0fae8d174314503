//! The VTL part of a VP assist page: how a level tells why it was entered, and what to restore when it returns
//! (TLFS `datatypes/hv_vp_vtl_control.md`, `hv_vp_assist_page.md`; hvdef `HvVpVtlControl`, `HvVpAssistPage`).

/// Offset of [`VpVtlControl`] in a VP assist page.
pub const VTL_CONTROL_OFFSET: usize = 8;

/// Offset of the [`Message`](super::message::Message) of an intercept in a VP assist page, for a level that has set
/// [`intercept_page`](super::status_register::VsmPartitionConfig::intercept_page). hvdef's; the TLFS does not have the field.
pub const INTERCEPT_MESSAGE_OFFSET: usize = 0x70;

open! {
    /// `HV_VTL_ENTRY_REASON`. The last is hvdef's `INTERCEPT`, named here as the others are.
    VtlEntryReason(u32) "VTL entry reason" {
        RESERVED = 0 "HvVtlEntryReserved";
        VTL_CALL = 1 "HvVtlEntryVtlCall";
        INTERRUPT = 2 "HvVtlEntryInterrupt";
        INTERCEPT = 3 "HvVtlEntryIntercept";
    }
}

layout! {
    /// `HV_VP_VTL_CONTROL`, of a level above VTL0.
    #[derive(Default)]
    VpVtlControl[24] {
        /// Why the level runs.
        0 entry_reason: VtlEntryReason,
        /// Bit 0: the notification of an interrupt for a lower level is asserted.
        4 vina_status: u8,
        /// Zero.
        5 reserved: [u8; 3],
        /// RAX of the lower level after a return that is not fast.
        8 return_rax: u64,
        /// RCX of the lower level after a return that is not fast.
        16 return_rcx: u64,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;
    use crate::vsm::{message::Message, register::RegisterName};

    #[test]
    fn the_control_area_byte_for_byte() {
        let control = VpVtlControl {
            entry_reason: VtlEntryReason::INTERCEPT,
            vina_status: 1,
            reserved: [0; 3],
            return_rax: 0x0102_0304_0506_0708,
            return_rcx: 0x11,
        };
        assert_eq!(control.to_bytes(), [3, 0, 0, 0, 1, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0x11, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_offsets_add_up() {
        // APIC assist and padding; nested enlightenments, VM entry, nested VMCS, timer: 8 each; fault information 40; padding 8
        assert_eq!(VTL_CONTROL_OFFSET, 4 + 4);
        assert_eq!(INTERCEPT_MESSAGE_OFFSET, VTL_CONTROL_OFFSET + VpVtlControl::SIZE + 4 * 8 + 40 + 8);
        assert_eq!(INTERCEPT_MESSAGE_OFFSET % 16, 0);
        const { assert!(INTERCEPT_MESSAGE_OFFSET + Message::SIZE <= 4096) };
        assert_eq!(RegisterName::VP_ASSIST_PAGE, RegisterName(0x0009_0013));
    }

    proptest! {
        #[test]
        fn structures_round_trip(bytes: [u8; 24], len in 0_usize..24) {
            prop_assert_eq!(VpVtlControl::from_bytes(&bytes).unwrap().to_bytes(), bytes);
            prop_assert_eq!(VpVtlControl::from_bytes(&bytes[..len]), None);
        }
    }
}
