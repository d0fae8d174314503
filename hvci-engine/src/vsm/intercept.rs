//! Which registers can be intercepted, by which bit of `HvX64RegisterCrInterceptControl`, and which of them are pinned
//! (TLFS `vsm.md` "Secure Register Intercepts"; bits 25 to 28 from hvdef `HvRegisterCrInterceptControl`).
//!
//! The numbers of model-specific registers are the Intel SDM's (volume 4, table 2-2).

use super::register::RegisterName;

flags! {
    /// `HvX64RegisterCrInterceptControl`: the accesses of a lower level that are intercepted.
    CrInterceptControl(u64) {
        /// CR0; only the bits of its mask register.
        CR0_WRITE = 0;
        /// CR4; only the bits of its mask register.
        CR4_WRITE = 1;
        /// XCR0.
        XCR0_WRITE = 2;
        /// `IA32_MISC_ENABLE`.
        MISC_ENABLE_READ = 3;
        /// `IA32_MISC_ENABLE`; only the bits of its mask register.
        MISC_ENABLE_WRITE = 4;
        /// `IA32_LSTAR`.
        LSTAR_READ = 5;
        /// `IA32_LSTAR`.
        LSTAR_WRITE = 6;
        /// `IA32_STAR`.
        STAR_READ = 7;
        /// `IA32_STAR`.
        STAR_WRITE = 8;
        /// `IA32_CSTAR`.
        CSTAR_READ = 9;
        /// `IA32_CSTAR`.
        CSTAR_WRITE = 10;
        /// `IA32_APIC_BASE`.
        APIC_BASE_READ = 11;
        /// `IA32_APIC_BASE`.
        APIC_BASE_WRITE = 12;
        /// `IA32_EFER`.
        EFER_READ = 13;
        /// `IA32_EFER`.
        EFER_WRITE = 14;
        /// GDTR.
        GDTR_WRITE = 15;
        /// IDTR.
        IDTR_WRITE = 16;
        /// LDTR.
        LDTR_WRITE = 17;
        /// TR.
        TR_WRITE = 18;
        /// `IA32_SYSENTER_CS`.
        SYSENTER_CS_WRITE = 19;
        /// `IA32_SYSENTER_EIP`.
        SYSENTER_EIP_WRITE = 20;
        /// `IA32_SYSENTER_ESP`.
        SYSENTER_ESP_WRITE = 21;
        /// `IA32_FMASK`.
        SFMASK_WRITE = 22;
        /// `IA32_TSC_AUX`.
        TSC_AUX_WRITE = 23;
        /// `IA32_SGXLEPUBKEYHASH0` to `3`.
        SGX_LAUNCH_CONTROL_WRITE = 24;
        /// `IA32_XSS`.
        XSS_WRITE = 25;
        /// `IA32_S_CET`.
        S_CET_WRITE = 26;
        /// `IA32_PL0_SSP` to `IA32_PL3_SSP`.
        PLX_SSP_WRITE = 27;
        /// `IA32_INTERRUPT_SSP_TABLE_ADDR`.
        INTERRUPT_SSP_TABLE_WRITE = 28;
    }
}

impl CrInterceptControl {
    /// No access.
    pub const NONE: Self = Self(0);

    /// What a secure kernel pins once the kernel below it has booted: what decides where kernel code runs and under which protection
    /// (the set of LiteBox's and heki-linux's secure kernels).
    pub const PINNED: Self = Self(
        Self::CR0_WRITE.0
            | Self::CR4_WRITE.0
            | Self::LSTAR_WRITE.0
            | Self::STAR_WRITE.0
            | Self::CSTAR_WRITE.0
            | Self::APIC_BASE_WRITE.0
            | Self::EFER_WRITE.0
            | Self::GDTR_WRITE.0
            | Self::IDTR_WRITE.0
            | Self::LDTR_WRITE.0
            | Self::TR_WRITE.0
            | Self::SYSENTER_CS_WRITE.0
            | Self::SYSENTER_EIP_WRITE.0
            | Self::SYSENTER_ESP_WRITE.0
            | Self::SFMASK_WRITE.0,
    );
}

/// Bits of CR0 that are pinned: PE, WP, PG.
pub const CR0_PINNED: u64 = (1 << 0) | (1 << 16) | (1 << 31);

/// Bits of CR4 that are pinned: all but MCE, PGE, PCE, VMXE.
pub const CR4_PINNED: u64 = !((1 << 6) | (1 << 7) | (1 << 8) | (1 << 13));

/// A register that can be intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interceptable {
    /// Which.
    pub register: RegisterName,
    /// Its number for `RDMSR` and `WRMSR`; `None` if it is no model-specific register.
    pub msr: Option<u32>,
    /// The bit that intercepts reads; [`CrInterceptControl::NONE`] if none does.
    pub read: CrInterceptControl,
    /// The bit that intercepts writes.
    pub write: CrInterceptControl,
}

impl Interceptable {
    /// Every register that a bit intercepts.
    pub const ALL: &'static [Self] = &[
        Self::new(RegisterName::CR0, None, CrInterceptControl::CR0_WRITE),
        Self::new(RegisterName::CR4, None, CrInterceptControl::CR4_WRITE),
        Self::new(RegisterName::XCR0, None, CrInterceptControl::XCR0_WRITE),
        Self::new(RegisterName::MISC_ENABLE, Some(0x1A0), CrInterceptControl::MISC_ENABLE_WRITE).read(CrInterceptControl::MISC_ENABLE_READ),
        Self::new(RegisterName::LSTAR, Some(0xC000_0082), CrInterceptControl::LSTAR_WRITE).read(CrInterceptControl::LSTAR_READ),
        Self::new(RegisterName::STAR, Some(0xC000_0081), CrInterceptControl::STAR_WRITE).read(CrInterceptControl::STAR_READ),
        Self::new(RegisterName::CSTAR, Some(0xC000_0083), CrInterceptControl::CSTAR_WRITE).read(CrInterceptControl::CSTAR_READ),
        Self::new(RegisterName::APIC_BASE, Some(0x1B), CrInterceptControl::APIC_BASE_WRITE).read(CrInterceptControl::APIC_BASE_READ),
        Self::new(RegisterName::EFER, Some(0xC000_0080), CrInterceptControl::EFER_WRITE).read(CrInterceptControl::EFER_READ),
        Self::new(RegisterName::GDTR, None, CrInterceptControl::GDTR_WRITE),
        Self::new(RegisterName::IDTR, None, CrInterceptControl::IDTR_WRITE),
        Self::new(RegisterName::LDTR, None, CrInterceptControl::LDTR_WRITE),
        Self::new(RegisterName::TR, None, CrInterceptControl::TR_WRITE),
        Self::new(RegisterName::SYSENTER_CS, Some(0x174), CrInterceptControl::SYSENTER_CS_WRITE),
        Self::new(RegisterName::SYSENTER_ESP, Some(0x175), CrInterceptControl::SYSENTER_ESP_WRITE),
        Self::new(RegisterName::SYSENTER_EIP, Some(0x176), CrInterceptControl::SYSENTER_EIP_WRITE),
        Self::new(RegisterName::SFMASK, Some(0xC000_0084), CrInterceptControl::SFMASK_WRITE),
        Self::new(RegisterName::TSC_AUX, Some(0xC000_0103), CrInterceptControl::TSC_AUX_WRITE),
        Self::new(RegisterName::SGX_LAUNCH_CONTROL0, Some(0x8C), CrInterceptControl::SGX_LAUNCH_CONTROL_WRITE),
        Self::new(RegisterName::SGX_LAUNCH_CONTROL1, Some(0x8D), CrInterceptControl::SGX_LAUNCH_CONTROL_WRITE),
        Self::new(RegisterName::SGX_LAUNCH_CONTROL2, Some(0x8E), CrInterceptControl::SGX_LAUNCH_CONTROL_WRITE),
        Self::new(RegisterName::SGX_LAUNCH_CONTROL3, Some(0x8F), CrInterceptControl::SGX_LAUNCH_CONTROL_WRITE),
        Self::new(RegisterName::XSS, Some(0xDA0), CrInterceptControl::XSS_WRITE),
        Self::new(RegisterName::S_CET, Some(0x6A2), CrInterceptControl::S_CET_WRITE),
        Self::new(RegisterName::PL0_SSP, Some(0x6A4), CrInterceptControl::PLX_SSP_WRITE),
        Self::new(RegisterName::PL1_SSP, Some(0x6A5), CrInterceptControl::PLX_SSP_WRITE),
        Self::new(RegisterName::PL2_SSP, Some(0x6A6), CrInterceptControl::PLX_SSP_WRITE),
        Self::new(RegisterName::PL3_SSP, Some(0x6A7), CrInterceptControl::PLX_SSP_WRITE),
        Self::new(RegisterName::INTERRUPT_SSP_TABLE, Some(0x6A8), CrInterceptControl::INTERRUPT_SSP_TABLE_WRITE),
    ];

    /// The register of a name; `None` if it cannot be intercepted.
    pub fn of_register(register: RegisterName) -> Option<&'static Self> {
        Self::ALL.iter().find(|one| one.register == register)
    }

    /// The register of a model-specific register's number; `None` if it cannot be intercepted.
    pub fn of_msr(msr: u32) -> Option<&'static Self> {
        Self::ALL.iter().find(|one| one.msr == Some(msr))
    }

    /// Whether a secure kernel pins it.
    pub const fn is_pinned(&self) -> bool {
        CrInterceptControl::PINNED.contains(self.write)
    }

    const fn new(register: RegisterName, msr: Option<u32>, write: CrInterceptControl) -> Self {
        Self { register, msr, read: CrInterceptControl::NONE, write }
    }

    const fn read(self, read: CrInterceptControl) -> Self {
        Self { read, ..self }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn every_bit_intercepts_a_register() {
        let all = Interceptable::ALL.iter().fold(CrInterceptControl::NONE, |all, one| all | one.read | one.write);
        assert_eq!(all, CrInterceptControl(0x1FFF_FFFF));
        assert_eq!(CrInterceptControl(u64::MAX).unknown(), !0x1FFF_FFFF);
        for one in Interceptable::ALL {
            assert_eq!((one.write.0.count_ones(), one.read.0.count_ones() < 2), (1, true), "{}", one.register);
            assert_eq!(Interceptable::of_register(one.register), Some(one), "named twice");
            assert!(one.msr.is_none_or(|msr| Interceptable::of_msr(msr) == Some(one)), "{} shares its number", one.register);
            assert!(one.register.name().is_some(), "{}", one.register);
        }
    }

    #[test]
    fn numbers_lead_to_names() {
        let name = |msr| Interceptable::of_msr(msr).map(|one| one.register);
        assert_eq!(name(0xC000_0080), Some(RegisterName::EFER));
        assert_eq!(name(0xC000_0084), Some(RegisterName::SFMASK));
        assert_eq!(name(0x176), Some(RegisterName::SYSENTER_EIP));
        assert_eq!(name(0x277), None);
        assert_eq!(Interceptable::of_register(RegisterName::CR3), None);
        assert!(Interceptable::of_register(RegisterName::CR4).unwrap().msr.is_none());
    }

    #[test]
    fn what_is_pinned() {
        let pinned: Vec<_> = Interceptable::ALL.iter().filter(|one| one.is_pinned()).map(|one| one.register.name().unwrap()).collect();
        assert_eq!(pinned.join(" "), "Cr0 Cr4 Lstar Star Cstar ApicBase Efer Gdtr Idtr Ldtr Tr SysenterCs SysenterEsp SysenterEip Sfmask");
        assert_eq!(CrInterceptControl::PINNED, CrInterceptControl(0x007F_D543));
        assert_eq!(CR0_PINNED, 0x8001_0001);
        assert_eq!(CR4_PINNED, 0xFFFF_FFFF_FFFF_DE3F);
    }
}
