//! `HV_REGISTER_NAME` and `HV_REGISTER_VALUE` (TLFS `datatypes/hv_register_name.md`, `hv_register_value.md`; hvdef `HvX64RegisterName`):
//! the registers that the engine reads, sets or pins.
//!
//! Where the names differ hvdef's stand here: the TLFS calls CR8 `HvX64RegisterCr5`, and `SysenterEip`, `SysenterEsp` `SysenterRip`,
//! `SysenterRsp`; it has no numbers for what follows `SgxLaunchControl3`, nor for the intercept control registers, and hvdef none for
//! `MsrIa32MiscEnable`.

use crate::addr::Vtl;

open! {
    /// A register.
    RegisterName(u32) "register" {
        PENDING_INTERRUPTION = 0x0001_0002 "PendingInterruption";
        INTERRUPT_STATE = 0x0001_0003 "InterruptState";
        PENDING_EVENT0 = 0x0001_0004 "PendingEvent0";
        PENDING_EVENT1 = 0x0001_0005 "PendingEvent1";

        RAX = 0x0002_0000 "Rax";
        RCX = 0x0002_0001 "Rcx";
        RDX = 0x0002_0002 "Rdx";
        RBX = 0x0002_0003 "Rbx";
        RSP = 0x0002_0004 "Rsp";
        RBP = 0x0002_0005 "Rbp";
        RSI = 0x0002_0006 "Rsi";
        RDI = 0x0002_0007 "Rdi";
        R8 = 0x0002_0008 "R8";
        R9 = 0x0002_0009 "R9";
        R10 = 0x0002_000A "R10";
        R11 = 0x0002_000B "R11";
        R12 = 0x0002_000C "R12";
        R13 = 0x0002_000D "R13";
        R14 = 0x0002_000E "R14";
        R15 = 0x0002_000F "R15";
        RIP = 0x0002_0010 "Rip";
        RFLAGS = 0x0002_0011 "Rflags";

        CR0 = 0x0004_0000 "Cr0";
        CR2 = 0x0004_0001 "Cr2";
        CR3 = 0x0004_0002 "Cr3";
        CR4 = 0x0004_0003 "Cr4";
        CR8 = 0x0004_0004 "Cr8";
        XCR0 = 0x0004_0005 "Xfem";

        ES = 0x0006_0000 "Es";
        CS = 0x0006_0001 "Cs";
        SS = 0x0006_0002 "Ss";
        DS = 0x0006_0003 "Ds";
        FS = 0x0006_0004 "Fs";
        GS = 0x0006_0005 "Gs";
        LDTR = 0x0006_0006 "Ldtr";
        TR = 0x0006_0007 "Tr";
        IDTR = 0x0007_0000 "Idtr";
        GDTR = 0x0007_0001 "Gdtr";

        EFER = 0x0008_0001 "Efer";
        KERNEL_GS_BASE = 0x0008_0002 "KernelGsBase";
        APIC_BASE = 0x0008_0003 "ApicBase";
        PAT = 0x0008_0004 "Pat";
        SYSENTER_CS = 0x0008_0005 "SysenterCs";
        SYSENTER_EIP = 0x0008_0006 "SysenterEip";
        SYSENTER_ESP = 0x0008_0007 "SysenterEsp";
        STAR = 0x0008_0008 "Star";
        LSTAR = 0x0008_0009 "Lstar";
        CSTAR = 0x0008_000A "Cstar";
        SFMASK = 0x0008_000B "Sfmask";
        TSC_AUX = 0x0008_007B "TscAux";
        SGX_LAUNCH_CONTROL0 = 0x0008_0080 "SgxLaunchControl0";
        SGX_LAUNCH_CONTROL1 = 0x0008_0081 "SgxLaunchControl1";
        SGX_LAUNCH_CONTROL2 = 0x0008_0082 "SgxLaunchControl2";
        SGX_LAUNCH_CONTROL3 = 0x0008_0083 "SgxLaunchControl3";
        XSS = 0x0008_008B "Xss";
        S_CET = 0x0008_008D "SCet";
        PL0_SSP = 0x0008_008F "Pl0Ssp";
        PL1_SSP = 0x0008_0090 "Pl1Ssp";
        PL2_SSP = 0x0008_0091 "Pl2Ssp";
        PL3_SSP = 0x0008_0092 "Pl3Ssp";
        INTERRUPT_SSP_TABLE = 0x0008_0093 "InterruptSspTableAddr";
        MISC_ENABLE = 0x0008_00A0 "MsrIa32MiscEnable";

        HYPERCALL = 0x0009_0001 "Hypercall";
        GUEST_OS_ID = 0x0009_0002 "GuestOsId";
        VP_INDEX = 0x0009_0003 "VpIndex";
        VP_ASSIST_PAGE = 0x0009_0013 "VpAssistPage";

        VSM_CODE_PAGE_OFFSETS = 0x000D_0002 "VsmCodePageOffsets";
        VSM_VP_STATUS = 0x000D_0003 "VsmVpStatus";
        VSM_PARTITION_STATUS = 0x000D_0004 "VsmPartitionStatus";
        VSM_VINA = 0x000D_0005 "VsmVina";
        VSM_CAPABILITIES = 0x000D_0006 "VsmCapabilities";
        VSM_PARTITION_CONFIG = 0x000D_0007 "VsmPartitionConfig";
        GUEST_VSM_PARTITION_CONFIG = 0x000D_0008 "GuestVsmPartitionConfig";
        VSM_VP_SECURE_CONFIG_VTL0 = 0x000D_0010 "VsmVpSecureConfigVtl0";
        VSM_VP_SECURE_CONFIG_VTL1 = 0x000D_0011 "VsmVpSecureConfigVtl1";
        VSM_VP_WAIT_FOR_TLB_LOCK = 0x000D_0020 "VsmVpWaitForTlbLock";

        CR_INTERCEPT_CONTROL = 0x000E_0000 "CrInterceptControl";
        CR_INTERCEPT_CR0_MASK = 0x000E_0001 "CrInterceptCr0Mask";
        CR_INTERCEPT_CR4_MASK = 0x000E_0002 "CrInterceptCr4Mask";
        CR_INTERCEPT_MISC_ENABLE_MASK = 0x000E_0003 "CrInterceptIa32MiscEnableMask";
    }
}

impl RegisterName {
    /// The register in which a higher level configures `lower`.
    pub const fn vsm_vp_secure_config(lower: Vtl) -> Self {
        match lower {
            Vtl::Vtl0 => Self::VSM_VP_SECURE_CONFIG_VTL0,
            Vtl::Vtl1 => Self::VSM_VP_SECURE_CONFIG_VTL1,
        }
    }
}

/// The value of a register: 128 bits, of which most registers use the lower 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RegisterValue(pub u128);

wire_newtype! { RegisterValue(u128) }

impl RegisterValue {
    /// The lower half.
    pub fn low(self) -> u64 {
        super::wire::read_field(self.0, 63, 0)
    }

    /// The value as a number of 64 bits; `None` if bits above are set.
    pub fn as_u64(self) -> Option<u64> {
        u64::try_from(self.0).ok()
    }

    /// The value of a segment register.
    pub fn segment(self) -> SegmentRegister {
        SegmentRegister {
            base: self.low(),
            limit: super::wire::read_field(self.0, 95, 64),
            selector: super::wire::read_field(self.0, 111, 96),
            attributes: super::wire::read_field(self.0, 127, 112),
        }
    }

    /// The value of a descriptor-table register.
    pub fn table(self) -> TableRegister {
        let [p0, p1, p2, p3, p4, p5, ..] = self.0.to_le_bytes();
        TableRegister {
            pad: [p0, p1, p2, p3, p4, p5],
            limit: super::wire::read_field(self.0, 63, 48),
            base: super::wire::read_field(self.0, 127, 64),
        }
    }
}

impl From<u64> for RegisterValue {
    fn from(value: u64) -> Self {
        Self(u128::from(value))
    }
}

impl From<SegmentRegister> for RegisterValue {
    fn from(value: SegmentRegister) -> Self {
        Self(u128::from_le_bytes(value.to_bytes()))
    }
}

impl From<TableRegister> for RegisterValue {
    fn from(value: TableRegister) -> Self {
        Self(u128::from_le_bytes(value.to_bytes()))
    }
}

layout! {
    /// A segment register with its hidden part (TLFS `datatypes/hv_x64_segment_register.md`).
    #[derive(Default)]
    SegmentRegister[16] {
        /// Linear address.
        0 base: u64,
        /// Last offset.
        8 limit: u32,
        /// Selector.
        12 selector: u16,
        /// Type 3:0, non-system 4, DPL 6:5, present 7, available 12, long 13, default 14, granularity 15.
        14 attributes: u16,
    }
}

layout! {
    /// GDTR or IDTR (TLFS `datatypes/hv_x64_table_register.md`).
    #[derive(Default)]
    TableRegister[16] {
        /// Ignored.
        0 pad: [u8; 6],
        /// Last offset.
        6 limit: u16,
        /// Linear address.
        8 base: u64,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unknown_names_are_kept() {
        assert_eq!(RegisterName::LSTAR.to_string(), "Lstar");
        assert_eq!(RegisterName(0x0008_1234).to_string(), "register 0x81234");
        assert_eq!(RegisterName::vsm_vp_secure_config(Vtl::Vtl1), RegisterName(0x000D_0011));
    }

    #[test]
    fn names_and_numbers_are_unique() {
        for (i, (number, name)) in RegisterName::NAMED.iter().enumerate() {
            assert!(RegisterName::NAMED.iter().skip(i + 1).all(|(n, s)| n != number && s != name), "{name}");
        }
    }

    #[test]
    fn segments_and_tables_are_laid_out_as_specified() {
        let cs = SegmentRegister { base: 0x1122_3344_5566_7788, limit: 0xFFFF_FFFF, selector: 0x10, attributes: 0xA09B };
        let bytes = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xFF, 0xFF, 0xFF, 0xFF, 0x10, 0x00, 0x9B, 0xA0];
        assert_eq!(cs.to_bytes(), bytes);
        assert_eq!(RegisterValue::from(cs), RegisterValue(0xA09B_0010_FFFF_FFFF_1122_3344_5566_7788));
        let gdtr = TableRegister { pad: [0; 6], limit: 0x7F, base: 0xFFFF_8000_0000_1000 };
        let bytes = [0, 0, 0, 0, 0, 0, 0x7F, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x80, 0xFF, 0xFF];
        assert_eq!(gdtr.to_bytes(), bytes);
        assert_eq!(RegisterValue::from(gdtr), RegisterValue(0xFFFF_8000_0000_1000_007F_0000_0000_0000));
    }

    #[test]
    fn a_value_of_64_bits_is_told_apart() {
        assert_eq!(RegisterValue::from(7).as_u64(), Some(7));
        assert_eq!(RegisterValue(1 << 64).as_u64(), None);
        assert_eq!(RegisterValue((1 << 64) | 5).low(), 5);
    }

    proptest! {
        #[test]
        fn every_value_round_trips(value: u128) {
            let bytes = value.to_le_bytes();
            prop_assert_eq!(RegisterValue::from(RegisterValue(value).segment()), RegisterValue(value));
            prop_assert_eq!(RegisterValue::from(RegisterValue(value).table()), RegisterValue(value));
            prop_assert_eq!(SegmentRegister::from_bytes(&bytes).unwrap(), RegisterValue(value).segment());
            prop_assert_eq!(TableRegister::from_bytes(&bytes).unwrap(), RegisterValue(value).table());
        }
    }
}
