//! The VSM registers as views over their 64 bits (TLFS `vsm.md`; hvdef `HvRegisterVsm…`). Bits without a name are kept.

use crate::{access::MapGpaFlags, addr::Vtl};

bits! {
    /// `HvRegisterVsmCodePageOffsets`: where in the hypercall page the sequences are that switch levels. A register a level; read-only.
    VsmCodePageOffsets(u64) {
        /// Bytes from the start of the page to the VTL call.
        11:0 call_offset with_call_offset: u16;
        /// Bytes from the start of the page to the VTL return.
        23:12 return_offset with_return_offset: u16;
    }
}

bits! {
    /// `HvRegisterVsmVpStatus`: what is enabled on a processor. Shared by the levels; read-only.
    VsmVpStatus(u64) {
        /// `HV_VTL` of the level that runs.
        3:0 active_vtl with_active_vtl: u8;
        /// Whether it runs under mode-based execution control.
        4:4 active_mbec with_active_mbec: bool;
        /// A bit a level.
        31:16 enabled_vtl_set with_enabled_vtl_set: u16;
    }
}

bits! {
    /// `HvRegisterVsmPartitionStatus`: what is enabled for the partition. Shared by the levels; read-only.
    /// Shadow stacks are hvdef's; the TLFS has those bits as reserved.
    VsmPartitionStatus(u64) {
        /// A bit a level.
        15:0 enabled_vtl_set with_enabled_vtl_set: u16;
        /// The highest level that can be enabled.
        19:16 maximum_vtl with_maximum_vtl: u8;
        /// Levels for which mode-based execution control is enabled, a bit each.
        35:20 mbec_enabled_vtl_set with_mbec_enabled_vtl_set: u16;
        /// Levels for which supervisor shadow stacks are enabled, a bit each.
        39:36 shadow_stack_enabled_vtl_set with_shadow_stack_enabled_vtl_set: u8;
    }
}

bits! {
    /// `HvRegisterVsmVina`: virtual interrupt notification assist. A register a level.
    VsmVina(u64) {
        /// Of the notification.
        7:0 vector with_vector: u8;
        /// Whether there are notifications.
        8:8 enabled with_enabled: bool;
        /// Whether entering the level clears the asserted state.
        9:9 auto_reset with_auto_reset: bool;
        /// Whether no end of interrupt is needed.
        10:10 auto_eoi with_auto_eoi: bool;
    }
}

bits! {
    /// `HvRegisterVsmCapabilities`: what the hypervisor can do. Read-only.
    ///
    /// In hvdef's order, from bit 0. The table of the TLFS numbers the bits from the other end (`Dr6Shared` 63, `MbecVtlMask` 62:47,
    /// `DenyLowerVtlStartup` 46); openvmm reads hvdef's order from the hypervisor.
    VsmCapabilities(u64) {
        /// Whether the levels share DR6.
        0:0 dr6_shared with_dr6_shared: bool;
        /// Levels for which mode-based execution control can be enabled, a bit each.
        16:1 mbec_vtl_mask with_mbec_vtl_mask: u16;
        /// Whether a level can deny the ones below to start processors.
        17:17 deny_lower_vtl_startup with_deny_lower_vtl_startup: bool;
        /// Whether there are supervisor shadow stacks.
        18:18 supervisor_shadow_stack with_supervisor_shadow_stack: bool;
        /// Whether there is hypervisor-managed linear address translation by hardware.
        19:19 hardware_hvpt with_hardware_hvpt: bool;
        /// The same by software.
        20:20 software_hvpt with_software_hvpt: bool;
        /// Address bits that the hardware's covers.
        26:21 hardware_hvpt_range_bits with_hardware_hvpt_range_bits: u8;
        /// Whether intercepts can be delivered in the VP assist page.
        27:27 intercept_page with_intercept_page: bool;
        /// Whether actions can be taken on a VTL return.
        28:28 return_action with_return_action: bool;
        /// Whether VTL0's memory is seen a second time at the highest address bit (VTL2).
        29:29 vtl0_alias_map with_vtl0_alias_map: bool;
        /// Whether accesses to unmapped pages can be intercepted (VTL2).
        30:30 intercept_not_present with_intercept_not_present: bool;
        /// Whether `HvCallInstallInterceptEx` is there.
        31:31 install_intercept_ex with_install_intercept_ex: bool;
        /// Whether resets can be intercepted (VTL2).
        32:32 intercept_system_reset with_intercept_system_reset: bool;
        /// Whether interrupts of devices can be redirected to a proxy.
        34:34 proxy_interrupt_redirect with_proxy_interrupt_redirect: bool;
    }
}

bits! {
    /// `HvRegisterVsmPartitionConfig`: what a level has chosen for the partition. A register a level above VTL0.
    /// The TLFS names bits 0 to 6 and 9 only; the others are hvdef's.
    VsmPartitionConfig(u64) {
        /// Whether the level may protect memory. Cannot be cleared.
        0:0 enable_vtl_protection with_enable_vtl_protection: bool;
        /// What the levels below may do with memory that has no protection of its own; see [`default_protection`](Self::default_protection).
        4:1 default_vtl_protection_mask with_default_vtl_protection_mask: u8;
        /// Whether memory is zeroed before a reset.
        5:5 zero_memory_on_reset with_zero_memory_on_reset: bool;
        /// Whether the levels below cannot start or reset processors.
        6:6 deny_lower_vtl_startup with_deny_lower_vtl_startup: bool;
        /// Whether accepting pages is intercepted.
        7:7 intercept_acceptance with_intercept_acceptance: bool;
        /// Whether enabling protection is intercepted.
        8:8 intercept_enable_vtl_protection with_intercept_enable_vtl_protection: bool;
        /// Whether starting a processor is intercepted.
        9:9 intercept_vp_startup with_intercept_vp_startup: bool;
        /// Whether `CPUID` leaves that are not implemented are intercepted.
        10:10 intercept_cpuid_unimplemented with_intercept_cpuid_unimplemented: bool;
        /// Whether triple faults are intercepted.
        11:11 intercept_unrecoverable_exception with_intercept_unrecoverable_exception: bool;
        /// Whether intercepts are delivered in the VP assist page.
        12:12 intercept_page with_intercept_page: bool;
        /// Whether restoring the partition's time is intercepted.
        13:13 intercept_restore_partition_time with_intercept_restore_partition_time: bool;
        /// Whether accesses to unmapped pages are intercepted (VTL2).
        14:14 intercept_not_present with_intercept_not_present: bool;
        /// Whether resets are intercepted.
        15:15 intercept_system_reset with_intercept_system_reset: bool;
    }
}

impl VsmPartitionConfig {
    /// [`default_vtl_protection_mask`](Self::default_vtl_protection_mask) as flags, in the order of `HV_MAP_GPA_FLAGS`, as openvmm reads it.
    /// `vsm.md` prints the two kinds of execution the other way round.
    pub fn default_protection(self) -> MapGpaFlags {
        MapGpaFlags(u32::from(self.default_vtl_protection_mask()))
    }
}

flags! {
    /// `HvRegisterVsmVpSecureConfigVtl…`: what a level has chosen for a lower one on a processor. Bits 2 and 3 are hvdef's.
    VsmVpSecureConfig(u64) {
        /// Mode-based execution control.
        MBEC_ENABLED = 0;
        /// Flush requests of the lower level wait. Released when the lower level runs.
        TLB_LOCKED = 1;
        /// Supervisor shadow stacks.
        SUPERVISOR_SHADOW_STACK_ENABLED = 2;
        /// Hypervisor-managed linear address translation by hardware.
        HARDWARE_HVPT_ENABLED = 3;
    }
}

/// The bit of a level in the sets of these registers.
pub const fn vtl_bit(vtl: Vtl) -> u16 {
    match vtl {
        Vtl::Vtl0 => 1,
        Vtl::Vtl1 => 1 << 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bits_are_where_the_sources_have_them() {
        assert_eq!(VsmCodePageOffsets(0xABC_123), VsmCodePageOffsets(0).with_call_offset(0x123).with_return_offset(0xABC));
        assert_eq!(
            VsmVpStatus(0x0003_0011),
            VsmVpStatus(0).with_active_vtl(1).with_active_mbec(true).with_enabled_vtl_set(vtl_bit(Vtl::Vtl0) | vtl_bit(Vtl::Vtl1))
        );
        let status = VsmPartitionStatus(0x0000_0020_0021_0003);
        assert_eq!((status.enabled_vtl_set(), status.maximum_vtl()), (3, 1));
        assert_eq!((status.mbec_enabled_vtl_set(), status.shadow_stack_enabled_vtl_set()), (2, 2));
        assert_eq!(VsmVina(0x730), VsmVina(0).with_vector(0x30).with_enabled(true).with_auto_reset(true).with_auto_eoi(true));
    }

    #[test]
    fn capabilities_count_from_bit_0() {
        let capabilities = VsmCapabilities(0).with_dr6_shared(true).with_mbec_vtl_mask(0b11).with_deny_lower_vtl_startup(true);
        assert_eq!(capabilities, VsmCapabilities(0x2_0007));
        assert_eq!(VsmCapabilities(0).with_intercept_page(true).with_hardware_hvpt_range_bits(48), VsmCapabilities((1 << 27) | (48 << 21)));
        assert_eq!(VsmCapabilities(u64::MAX).unknown(), u64::MAX << 35 | 1 << 33);
    }

    #[test]
    fn the_default_protection_is_in_the_order_of_map_flags() {
        let config = VsmPartitionConfig(0b11_0111);
        assert!(config.enable_vtl_protection() && config.zero_memory_on_reset() && !config.deny_lower_vtl_startup());
        assert_eq!(config.default_protection(), MapGpaFlags::DATA);
        assert_eq!(VsmPartitionConfig(0x10000).unknown(), 0x10000);
        assert_eq!(VsmPartitionConfig(0xFFFF).unknown(), 0);
        assert_eq!(VsmPartitionConfig(1 << 12), VsmPartitionConfig(0).with_intercept_page(true));
    }

    #[test]
    fn secure_config_has_four_bits() {
        let both = VsmVpSecureConfig::MBEC_ENABLED | VsmVpSecureConfig::TLB_LOCKED;
        assert_eq!(both, VsmVpSecureConfig(3));
        assert!(both.contains(VsmVpSecureConfig::TLB_LOCKED) && !both.contains(VsmVpSecureConfig::SUPERVISOR_SHADOW_STACK_ENABLED));
        assert_eq!(VsmVpSecureConfig(u64::MAX).unknown(), !0xF);
    }

    proptest! {
        #[test]
        fn writing_what_was_read_changes_nothing(word: u64) {
            let c = VsmPartitionConfig(word);
            prop_assert_eq!(c.with_default_vtl_protection_mask(c.default_vtl_protection_mask()).with_intercept_page(c.intercept_page()), c);
            let s = VsmPartitionStatus(word);
            prop_assert_eq!(s.with_mbec_enabled_vtl_set(s.mbec_enabled_vtl_set()).with_maximum_vtl(s.maximum_vtl()), s);
        }
    }
}
