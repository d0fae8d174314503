#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::vsm::vp_set::VpSetFormat;

#[test]
fn a_protection_header_byte_for_byte() {
    let header = ModifyVtlProtectionMask {
        partition_id: PARTITION_ID_SELF,
        map_flags: MapGpaFlags::CODE,
        target_vtl: InputVtl::of(Vtl::Vtl1),
        reserved: [0; 3],
    };
    assert_eq!(header.to_bytes(), [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x0D, 0, 0, 0, 0x11, 0, 0, 0]);
    assert_eq!(usize::from(ModifyVtlProtectionMask::MAX_PAGES), (4096 - ModifyVtlProtectionMask::SIZE) / 8);
}

#[test]
fn enabling_a_level_byte_for_byte() {
    let header = EnablePartitionVtl {
        partition_id: 0x0102_0304_0506_0708,
        target_vtl: 1,
        flags: EnablePartitionVtlFlags::ENABLE_MBEC | EnablePartitionVtlFlags::ENABLE_HARDWARE_HVPT,
        reserved: [0; 6],
    };
    assert_eq!(header.to_bytes(), [8, 7, 6, 5, 4, 3, 2, 1, 1, 0b101, 0, 0, 0, 0, 0, 0]);
    assert_eq!(EnablePartitionVtlFlags(0xFF).unknown(), 0xF8);
}

#[test]
fn an_initial_context_byte_for_byte() {
    let segment = |selector| SegmentRegister { base: 0, limit: 0, selector, attributes: 0x93 };
    let table = |base| TableRegister { pad: [0; 6], limit: 0xFFF, base };
    let context = InitialVpContext {
        rip: 1,
        rsp: 2,
        rflags: 3,
        cs: segment(4),
        ds: segment(5),
        es: segment(6),
        fs: segment(7),
        gs: segment(8),
        ss: segment(9),
        tr: segment(10),
        ldtr: segment(11),
        idtr: table(12),
        gdtr: table(13),
        efer: 14,
        cr0: 15,
        cr3: 16,
        cr4: 17,
        msr_cr_pat: 18,
    };
    let start = StartVpVtl { partition_id: PARTITION_ID_SELF, vp_index: VP_INDEX_SELF, target_vtl: 1, reserved: [0; 3], context };
    let bytes = start.to_bytes();
    assert_eq!(bytes[..0x10], [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0]);
    let context_bytes = &bytes[0x10..];
    assert_eq!(context_bytes.len(), 224);
    // offset of each field from the sizes in the sources: 3 × 8, 8 × 16, 2 × 16, 5 × 8
    let mut expected = [0_u8; 224];
    for (i, at) in [0, 8, 16].into_iter().enumerate() {
        expected[at] = [1, 2, 3][i];
    }
    for (at, selector) in (24..152).step_by(16).zip(4_u8..) {
        expected[at + 12] = selector;
        expected[at + 14] = 0x93;
    }
    for (at, base) in [(152, 12), (168, 13)] {
        expected[at + 6..at + 8].copy_from_slice(&[0xFF, 0x0F]);
        expected[at + 8] = base;
    }
    for (at, value) in (184..224).step_by(8).zip(14_u8..) {
        expected[at] = value;
    }
    assert_eq!(context_bytes, expected);

    let registers = context.registers();
    assert_eq!(registers[0], (RegisterName::RIP, RegisterValue(1)));
    assert_eq!(registers[9], (RegisterName::TR, RegisterValue(0x0093_000A << 96)));
    assert_eq!(registers[12], (RegisterName::GDTR, RegisterValue((13 << 64) | (0xFFF << 48))));
    assert_eq!(registers[17], (RegisterName::PAT, RegisterValue(18)));
}

#[test]
fn register_calls_byte_for_byte() {
    let header = VpRegisters { partition_id: 1, vp_index: 2, target_vtl: InputVtl(0), reserved: [0; 3] };
    assert_eq!(header.to_bytes(), [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let assoc = RegisterAssoc { name: RegisterName::CR_INTERCEPT_CONTROL, reserved: [0; 12], value: RegisterValue(0x0102) };
    let mut bytes = [0; 32];
    bytes[2] = 0x0E;
    bytes[16..18].copy_from_slice(&[2, 1]);
    assert_eq!(assoc.to_bytes(), bytes);
}

#[test]
fn flushes_byte_for_byte() {
    let flush = FlushVirtual {
        address_space: 0x1000,
        flags: FlushFlags::ALL_PROCESSORS | FlushFlags::USE_TARGET_VTL | FlushFlags::TARGET_VTL0,
        processor_mask: 0x51,
    };
    assert_eq!(flush.to_bytes(), [0, 0x10, 0, 0, 0, 0, 0, 0, 0x11, 1, 0, 0, 0, 0, 0, 0, 0x51, 0, 0, 0, 0, 0, 0, 0]);
    let flush = FlushVirtualEx { address_space: 0, flags: FlushFlags(0), format: VpSetFormat::ALL, valid_banks: 5 };
    assert_eq!(flush.to_bytes()[16..], [1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(FlushGuestPhysical { address_space: 0x2000, flags: 1 }.to_bytes(), [0, 0x20, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(FlushFlags(u64::MAX).unknown(), !0x31F);
}

#[test]
fn the_rest_byte_for_byte() {
    let install = InstallIntercept {
        partition_id: 1,
        access: InterceptAccessMask::WRITE,
        intercept_type: InterceptType::X64_MSR,
        parameters: 0xC000_0080,
    };
    assert_eq!(install.to_bytes(), [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0x80, 0, 0, 0xC0, 0, 0, 0, 0]);
    let translate = TranslateVirtualAddress {
        partition_id: 1,
        vp_index: 3,
        padding: [0; 4],
        control_flags: TranslateFlags::VALIDATE_READ.with_input_vtl(InputVtl::of(Vtl::Vtl0)),
        gva_page: 0xFFFF_F800_0012,
    };
    let bytes = translate.to_bytes();
    assert_eq!(bytes[8..24], [3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x10]);
    assert_eq!(bytes[24..], [0x12, 0, 0, 0xF8, 0xFF, 0xFF, 0, 0]);
    let check =
        CheckSparseGpaPageVtlAccess { partition_id: 1, target_vtl: InputVtl::of(Vtl::Vtl0), desired_access: 0b1010, reserved: [0; 6] };
    assert_eq!(check.to_bytes()[8..], [0x10, 0x0A, 0, 0, 0, 0, 0, 0]);
    let result = VtlAccessResult(0).with_code(VtlAccessResultCode::MEMORY_INTERCEPT).with_denied_access(2).with_intercepting_vtl(1);
    assert_eq!(result, VtlAccessResult(0x0001_0201));
    let visibility = ModifyHostVisibility { partition_id: 1, host_visibility: HostVisibility::SHARED, reserved: 0 };
    assert_eq!(visibility.to_bytes()[8..], [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(VtlReturnInput::FAST_RETURN, VtlReturnInput(1));
    assert_eq!((VtlReturnInput(3).unknown(), VtlCallInput(3).unknown()), (2, 3));
}

#[test]
fn a_level_or_the_callers_own() {
    let of = |byte, caller| InputVtl(byte).resolve(caller);
    assert_eq!(of(0x11, Vtl::Vtl0), Ok(Vtl::Vtl1));
    assert_eq!(of(0x10, Vtl::Vtl1), Ok(Vtl::Vtl0));
    assert_eq!(of(0x00, Vtl::Vtl1), Ok(Vtl::Vtl1));
    assert_eq!(of(0x01, Vtl::Vtl0), Ok(Vtl::Vtl0), "the level does not count unless it is said to");
    assert_eq!(of(0x12, Vtl::Vtl0), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(of(0x31, Vtl::Vtl0), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!((vtl(1), vtl(15)), (Ok(Vtl::Vtl1), Err(HvStatus::INVALID_PARAMETER)));
}

#[test]
fn ranges_of_addresses() {
    let gva = |raw, extended| GvaRange(raw).pages(extended).map(|(start, pages)| (start.0, pages));
    assert_eq!(gva(0x0000_7FFF_0000_1000, false), Some((0x0000_7FFF_0000_1000, 1)));
    assert_eq!(gva(0x1FFF, false), Some((0x1000, 4096)));
    assert_eq!(gva(0x17FF, true), Some((0x1000, 2048)));
    assert_eq!(gva(0x4000_0000 | 0x801, true), Some((0x4000_0000, 2 * 512)), "2 MiB pages");
    assert_eq!(gva(0x4000_0000 | 0x1802, true), Some((0x4000_0000, 3 << 18)), "1 GiB pages");
    assert_eq!(gva(0x4020_0000 | 0x1800, true), None, "1 GiB pages begin at one");
    assert_eq!(gva(0x4000_0000 | 0x2800, true), None, "reserved bits");
    let gpa = |raw| GpaRange(raw).pages().map(|range| (range.start.0, range.pages));
    assert_eq!(gpa(0x1003), Some((1, 4)));
    assert_eq!(gpa(u64::MAX), None);
    assert_eq!(gpa((1 << 52) - 0x1000), Some(((1 << 40) - 1, 1)));
    assert_eq!(gpa((1 << 52) - 0xFFF), None);
}

#[test]
fn a_list_is_read_from_where_it_was_left() {
    let bytes: Vec<u8> = (0_u64..4).flat_map(|n| (n * 10).to_le_bytes()).collect();
    let list = Reps::<u64>::new(&bytes, 1, 3).unwrap();
    assert_eq!((list.start(), list.count(), list.iter().collect::<Vec<_>>()), (1, 3, [10, 20].to_vec()));
    assert_eq!(Reps::<u64>::new(&bytes, 0, 5), None);
    assert_eq!(Reps::<u64>::new(&bytes[..31], 0, 4), None);
}

proptest! {
    #[test]
    fn structures_round_trip(bytes in proptest::collection::vec(any::<u8>(), 0xF0..0x100)) {
        macro_rules! round_trip {
            ($($name:ident)*) => {$(
                let value = $name::from_bytes(&bytes).unwrap();
                prop_assert_eq!(&value.to_bytes()[..], &bytes[..$name::SIZE], "{}", stringify!($name));
                prop_assert_eq!($name::from_bytes(&bytes[..$name::SIZE - 1]), None);
            )*};
        }
        round_trip! {
            ModifyVtlProtectionMask EnablePartitionVtl InitialVpContext StartVpVtl VpRegisters RegisterAssoc FlushVirtual FlushVirtualEx
            FlushGuestPhysical InstallIntercept TranslateVirtualAddress CheckSparseGpaPageVtlAccess ModifyHostVisibility
        }
    }

    #[test]
    fn ranges_never_panic(raw: u64, extended: bool) {
        if let Some((start, pages)) = GvaRange(raw).pages(extended) {
            prop_assert!(start.0 % PAGE_SIZE == 0 && (1..=2048 << 18).contains(&pages));
        }
        if let Some(range) = GpaRange(raw).pages() {
            prop_assert!((1..=4096).contains(&range.pages));
        }
    }
}
