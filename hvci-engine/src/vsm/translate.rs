//! Translation of a virtual address on behalf of a higher level: control flags and results (TLFS
//! `datatypes/hv_translate_gva_control_flags.md`, `hv_translate_gva_result.md`; hvdef `TranslateGva…`).

use super::input::InputVtl;

flags! {
    /// `HV_TRANSLATE_GVA_CONTROL_FLAGS`. Bits 63:56 are an [`InputVtl`].
    TranslateFlags(u64) {
        /// Reads must be allowed.
        VALIDATE_READ = 0;
        /// Writes must be allowed.
        VALIDATE_WRITE = 1;
        /// Fetches must be allowed.
        VALIDATE_EXECUTE = 2;
        /// Supervisor and user pages are the same; neither SMEP nor SMAP.
        PRIVILEGE_EXEMPT = 3;
        /// Set accessed and dirty bits.
        SET_PAGE_TABLE_BITS = 4;
        /// Lock the translation until the level returns.
        TLB_FLUSH_INHIBIT = 5;
        /// As an access of the supervisor.
        SUPERVISOR_ACCESS = 6;
        /// As an access of the user.
        USER_ACCESS = 7;
        /// SMAP whatever EFLAGS.AC is.
        ENFORCE_SMAP = 8;
        /// No SMAP whatever EFLAGS.AC is.
        OVERRIDE_SMAP = 9;
        /// As an access to a shadow stack.
        SHADOW_STACK = 10;
    }
}

impl TranslateFlags {
    /// The level whose page tables are walked.
    pub fn input_vtl(self) -> InputVtl {
        InputVtl(super::wire::read_field(u128::from(self.0), 63, 56))
    }

    /// The flags with another level.
    #[must_use]
    pub fn with_input_vtl(self, vtl: InputVtl) -> Self {
        let [low @ .., _] = self.0.to_le_bytes();
        let [a, b, c, d, e, f, g] = low;
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, vtl.0]))
    }

    /// The bits that mean nothing.
    pub const fn reserved(self) -> u64 {
        self.unknown() & !(0xFF << 56)
    }
}

open! {
    /// `HV_TRANSLATE_GVA_RESULT_CODE`.
    TranslateResultCode(u32) "translation result" {
        SUCCESS = 0 "HvTranslateGvaSuccess";
        PAGE_NOT_PRESENT = 1 "HvTranslateGvaPageNotPresent";
        PRIVILEGE_VIOLATION = 2 "HvTranslateGvaPrivilegeViolation";
        INVALID_PAGE_TABLE_FLAGS = 3 "HvTranslateGvaInvalidPageTableFlags";
        GPA_UNMAPPED = 4 "HvTranslateGvaGpaUnmapped";
        GPA_NO_READ_ACCESS = 5 "HvTranslateGvaGpaNoReadAccess";
        GPA_NO_WRITE_ACCESS = 6 "HvTranslateGvaGpaNoWriteAccess";
        GPA_ILLEGAL_OVERLAY_ACCESS = 7 "HvTranslateGvaGpaIllegalOverlayAccess";
        INTERCEPT = 8 "HvTranslateGvaIntercept";
        GPA_UNACCEPTED = 9 "HvTranslateGvaGpaUnaccepted";
    }
}

bits! {
    /// `HV_TRANSLATE_GVA_RESULT`.
    TranslateResult(u64) {
        /// How it ended.
        31:0 code with_code: TranslateResultCode;
        /// `HV_CACHE_TYPE` of the page.
        39:32 cache_type with_cache_type: u8;
        /// Whether the page is an overlay.
        40:40 overlay_page with_overlay_page: bool;
    }
}

layout! {
    /// Output of `HvCallTranslateVirtualAddress`.
    #[derive(Default)]
    TranslateOutput[16] {
        /// How it ended.
        0 result: TranslateResult,
        /// The page, if it ended well.
        8 gpa_page: u64,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;
    use crate::addr::Vtl;

    #[test]
    fn flags_and_level_share_a_word() {
        let flags = TranslateFlags::VALIDATE_WRITE | TranslateFlags::TLB_FLUSH_INHIBIT;
        assert_eq!(flags, TranslateFlags(0x22));
        assert_eq!(flags.with_input_vtl(InputVtl::of(Vtl::Vtl1)), TranslateFlags(0x1100_0000_0000_0022));
        assert_eq!(TranslateFlags(0x1000_0000_0000_0000).input_vtl(), InputVtl::of(Vtl::Vtl0));
        assert_eq!(TranslateFlags(u64::MAX).reserved(), 0x00FF_FFFF_FFFF_F800);
        assert_eq!(TranslateFlags::SHADOW_STACK, TranslateFlags(0x400));
    }

    #[test]
    fn an_output_byte_for_byte() {
        let result = TranslateResult(0).with_code(TranslateResultCode::INTERCEPT).with_cache_type(6).with_overlay_page(true);
        let output = TranslateOutput { result, gpa_page: 0x1234_5678 };
        assert_eq!(output.to_bytes(), [8, 0, 0, 0, 6, 1, 0, 0, 0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn structures_round_trip(bytes: [u8; 16], vtl: u8) {
            prop_assert_eq!(TranslateOutput::from_bytes(&bytes).unwrap().to_bytes(), bytes);
            let flags = TranslateFlags(u64::from_le_bytes(bytes[..8].try_into().unwrap()));
            prop_assert_eq!(flags.with_input_vtl(InputVtl(vtl)).input_vtl(), InputVtl(vtl));
            prop_assert_eq!(flags.with_input_vtl(flags.input_vtl()), flags);
        }
    }
}
