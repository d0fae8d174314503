#![expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

use alloc::{string::ToString, vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    access::MapGpaFlags,
    addr::Vtl,
    vsm::input::{HostVisibility, InputVtl, PARTITION_ID_SELF},
};

/// Bytes of the fixed header and of an element of the list, 0 for none, for every call that is answered: from the tables of the sources.
const CALLS: [(HypercallCode, usize, usize); 18] = [
    (HypercallCode(0x0002), 24, 0),
    (HypercallCode(0x0003), 24, 8),
    (HypercallCode(0x000C), 16, 8),
    (HypercallCode(0x000D), 16, 0),
    (HypercallCode(0x000F), 240, 0),
    (HypercallCode(0x0011), 8, 0),
    (HypercallCode(0x0012), 8, 0),
    (HypercallCode(0x0013), 32, 0),
    (HypercallCode(0x0014), 32, 8),
    (HypercallCode(0x004D), 24, 0),
    (HypercallCode(0x0050), 16, 4),
    (HypercallCode(0x0051), 16, 32),
    (HypercallCode(0x0052), 32, 0),
    (HypercallCode(0x0099), 240, 0),
    (HypercallCode(0x00AF), 16, 0),
    (HypercallCode(0x00B0), 16, 8),
    (HypercallCode(0x00D4), 16, 8),
    (HypercallCode(0x00DB), 16, 8),
];

const VTL_SWITCHES: [HypercallCode; 2] = [HypercallCode::VTL_CALL, HypercallCode::VTL_RETURN];

fn control_for(code: HypercallCode, element: usize) -> Control {
    if element == 0 { Control::simple(code) } else { Control::rep(code, 2) }
}

fn protect(flags: MapGpaFlags, pages: &[u64]) -> Vec<u8> {
    let header = ModifyVtlProtectionMask {
        partition_id: PARTITION_ID_SELF,
        map_flags: flags,
        target_vtl: InputVtl::of(Vtl::Vtl1),
        reserved: [0; 3],
    };
    let pages: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    [&header.to_bytes()[..], &pages].concat()
}

#[test]
fn control_and_output_bit_for_bit() {
    let control = Control::rep(HypercallCode::MODIFY_VTL_PROTECTION_MASK, 0x123).with_rep_start(0x45).with_fast(true);
    assert_eq!(control, Control(0x0045_0123_0001_000C));
    assert_eq!(Control(0).with_variable_header_size(0x3FF).with_nested(true), Control(0x87FE_0000));
    assert_eq!(Control(u64::MAX).unknown(), 0xF000_F000_7800_0000);
    assert_eq!(Output::new(HvStatus::ACCESS_DENIED, 0x1FE), Output(0x0000_01FE_0000_0006));
    let output = Output(0x0000_0A98_0000_0050);
    assert_eq!((output.status(), output.reps_completed()), (HvStatus::INVALID_REGISTER_VALUE, 0xA98));
}

#[test]
fn every_call_takes_what_the_sources_say() {
    for (code, header, element) in CALLS {
        assert!(code.name().is_some(), "{code}");
        let control = control_for(code, element);
        assert_eq!(control.lengths().map(|l| l.input), Ok(header + 2 * element), "{code}");
        let input = vec![0; header + 2 * element];
        assert!(Call::decode(control, &input).is_ok(), "{code}");
        let short = InputError::Truncated { need: input.len(), have: input.len() - 1 };
        assert_eq!(Call::decode(control, &input[1..]), Err(short), "{code}");
        assert_eq!(short.status(), HvStatus::INVALID_HYPERCALL_INPUT);
    }
    let others = (0..=u16::MAX).map(HypercallCode).filter(|code| !CALLS.iter().any(|(known, ..)| known == code));
    for code in others {
        assert_eq!(Control::simple(code).lengths(), Err(InputError::Code(code)));
        assert_eq!(Call::decode(Control::rep(code, 1), &[0; 4096]).map_err(InputError::status), Err(HvStatus::INVALID_HYPERCALL_CODE));
    }
    let output = |code, count| Control::rep(code, count).lengths().unwrap().output;
    assert_eq!(output(HypercallCode::GET_VP_REGISTERS, 3), 48);
    assert_eq!(output(HypercallCode::CHECK_SPARSE_GPA_PAGE_VTL_ACCESS, 3), 24);
    assert_eq!(output(HypercallCode::SET_VP_REGISTERS, 3), 0);
    assert_eq!(Control::simple(HypercallCode::TRANSLATE_VIRTUAL_ADDRESS).lengths(), Ok(Lengths { input: 32, output: 16 }));
}

#[test]
fn counts_must_fit_the_kind_of_call() {
    for (code, _, element) in CALLS.into_iter().filter(|(code, ..)| !VTL_SWITCHES.contains(code)) {
        let good = control_for(code, element);
        let of = |control: Control| control.lengths().unwrap_err();
        if element == 0 {
            assert_eq!(of(good.with_rep_count(1)), InputError::RepCount(1), "{code}");
            assert_eq!(of(good.with_rep_start(1)), InputError::RepStart { start: 1, count: 0 }, "{code}");
        } else {
            assert_eq!(of(good.with_rep_count(0)), InputError::RepCount(0), "{code}");
            assert_eq!(of(good.with_rep_start(2)), InputError::RepStart { start: 2, count: 2 }, "{code}");
            assert!(good.with_rep_start(1).lengths().is_ok(), "{code}");
        }
        for bit in [27, 28, 29, 30, 31, 44, 45, 46, 47, 60, 61, 62, 63] {
            assert_eq!(of(Control(good.0 | 1 << bit)), InputError::ControlBits(1 << bit), "{code}");
        }
        let variable = [HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE_EX, HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST_EX].contains(&code);
        assert_eq!(good.with_variable_header_size(1).lengths().is_ok(), variable, "{code}");
    }
    for error in [
        InputError::RepCount(0),
        InputError::RepStart { start: 1, count: 1 },
        InputError::ControlBits(1 << 63),
        InputError::VariableHeader(1),
        InputError::Fast(113),
    ] {
        assert_eq!(HvStatus::from(error), HvStatus::INVALID_HYPERCALL_INPUT);
    }
}

#[test]
fn a_call_protects_510_pages_at_most() {
    let control = |count| Control::rep(HypercallCode::MODIFY_VTL_PROTECTION_MASK, count);
    assert_eq!(control(ModifyVtlProtectionMask::MAX_PAGES).lengths(), Ok(Lengths { input: 4096, output: 0 }));
    assert_eq!(control(511).lengths(), Err(InputError::SpansPages(4104)));
    assert_eq!(control(4095).lengths().unwrap_err().status(), HvStatus::INVALID_ALIGNMENT);
    // 256 values fill a page of output; the input would still fit
    let get = |count| Control::rep(HypercallCode::GET_VP_REGISTERS, count).lengths();
    assert_eq!(get(256), Ok(Lengths { input: 16 + 1024, output: 4096 }));
    assert_eq!(get(257), Err(InputError::SpansPages(4112)));
}

#[test]
fn registers_hold_112_bytes() {
    let fast = |count| Control::rep(HypercallCode::MODIFY_VTL_PROTECTION_MASK, count).with_fast(true).lengths();
    assert_eq!(fast(12), Ok(Lengths { input: 112, output: 0 }));
    assert_eq!(fast(13), Err(InputError::Fast(120)));
    // one pair for the header, one for four names, and a pair for each value
    let get = |count| Control::rep(HypercallCode::GET_VP_REGISTERS, count).with_fast(true).lengths();
    assert_eq!(get(4), Ok(Lengths { input: 32, output: 64 }));
    assert_eq!(get(5), Err(InputError::Fast(36 + 80)));
}

#[test]
fn pages_to_protect() {
    let input = protect(MapGpaFlags::CODE, &[0x10, 0x20, 0x30]);
    let control = Control::rep(HypercallCode::MODIFY_VTL_PROTECTION_MASK, 3);
    let Ok(Call::ModifyVtlProtectionMask(header, pages)) = Call::decode(control.with_rep_start(1), &input) else { unreachable!() };
    assert_eq!((header.map_flags, header.target_vtl.resolve(Vtl::Vtl0)), (MapGpaFlags::CODE, Ok(Vtl::Vtl1)));
    assert_eq!((pages.start(), pages.iter().collect::<Vec<_>>()), (1, [Gpn(0x20), Gpn(0x30)].to_vec()));
    for (at, field) in [(12, "TargetVtl"), (13, "RsvdZ"), (14, "RsvdZ"), (15, "RsvdZ")] {
        let mut bad = input.clone();
        bad[at] |= 0x80;
        assert_eq!(Call::decode(control, &bad), Err(InputError::Reserved(field)));
    }
    assert_eq!(InputError::Reserved("RsvdZ").status(), HvStatus::INVALID_PARAMETER);
}

#[test]
fn reserved_fields_are_refused_where_the_sources_reserve_them() {
    // per call the bytes of the header of which any bit set is refused
    let reserved: [(HypercallCode, Vec<usize>); 10] = [
        (HypercallCode::ENABLE_PARTITION_VTL, (10..16).collect()),
        (HypercallCode::ENABLE_VP_VTL, (13..16).collect()),
        (HypercallCode::START_VIRTUAL_PROCESSOR, (13..16).collect()),
        (HypercallCode::GET_VP_REGISTERS, (13..16).collect()),
        (HypercallCode::SET_VP_REGISTERS, (13..16).collect()),
        (HypercallCode::FLUSH_GUEST_PHYSICAL_ADDRESS_SPACE, (8..16).collect()),
        (HypercallCode::FLUSH_GUEST_PHYSICAL_ADDRESS_LIST, (8..16).collect()),
        (HypercallCode::CHECK_SPARSE_GPA_PAGE_VTL_ACCESS, (10..16).collect()),
        (HypercallCode::MODIFY_SPARSE_GPA_PAGE_HOST_VISIBILITY, (9..16).collect()),
        (HypercallCode::TRANSLATE_VIRTUAL_ADDRESS, (18..23).collect()),
    ];
    for (code, bytes) in reserved {
        let (_, header, element) = CALLS.into_iter().find(|(c, ..)| *c == code).unwrap();
        for at in bytes {
            let mut input = vec![0; header + 2 * element];
            input[at] = 1;
            assert!(matches!(Call::decode(control_for(code, element), &input), Err(InputError::Reserved(_))), "{code} {at}");
        }
    }
    let mut padded = [0; 32];
    padded[12..16].fill(0xFF);
    assert!(Call::decode(Control::simple(HypercallCode::TRANSLATE_VIRTUAL_ADDRESS), &padded).is_ok(), "padding is ignored");
    let mut flags = [0; 16];
    flags[9] = 0x08;
    assert_eq!(Call::decode(Control::simple(HypercallCode::ENABLE_PARTITION_VTL), &flags), Err(InputError::Reserved("Flags")));
}

#[test]
fn flushes_name_their_processors() {
    let processors = |code, input: &[u8], variable| {
        let control = Control::simple(code).with_variable_header_size(variable);
        Call::decode(control, input).map(|call| match call {
            Call::FlushVirtual(flush) => (0..200).filter(|vp| flush.processors.contains(*vp)).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        })
    };
    let header = FlushVirtual { address_space: 0, flags: FlushFlags(0), processor_mask: 0x51 };
    assert_eq!(processors(HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE, &header.to_bytes(), 0), Ok(vec![0, 4, 6]));
    let all = FlushVirtual { flags: FlushFlags::ALL_PROCESSORS, ..header };
    assert_eq!(processors(HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE, &all.to_bytes(), 0).unwrap().len(), 200);

    let ex = |format, valid_banks, banks: &[u64]| {
        let header = FlushVirtualEx { address_space: 0, flags: FlushFlags(0), format, valid_banks };
        let banks: Vec<u8> = banks.iter().flat_map(|bank| bank.to_le_bytes()).collect();
        [&header.to_bytes()[..], &banks].concat()
    };
    let code = HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE_EX;
    assert_eq!(processors(code, &ex(VpSetFormat::SPARSE_4K, 5, &[0x21, 4]), 2), Ok(vec![0, 5, 130]));
    assert_eq!(processors(code, &ex(VpSetFormat::ALL, 0, &[]), 0).unwrap().len(), 200);
    assert_eq!(processors(code, &ex(VpSetFormat::SPARSE_4K, 5, &[0x21, 4]), 1), Err(InputError::VariableHeader(1)));
    assert_eq!(processors(code, &ex(VpSetFormat::ALL, 0, &[1]), 1), Err(InputError::VariableHeader(1)));
    let unknown = processors(code, &ex(VpSetFormat(2), 0, &[]), 0);
    assert_eq!(unknown, Err(InputError::VpSetFormat(VpSetFormat(2))));
    assert_eq!(unknown.unwrap_err().status(), HvStatus::INVALID_PARAMETER);
}

#[test]
fn a_list_stands_behind_the_banks() {
    let header = FlushVirtualEx { address_space: 7, flags: FlushFlags(0), format: VpSetFormat::SPARSE_4K, valid_banks: 1 };
    let input = [&header.to_bytes()[..], &[0xFF, 0, 0, 0, 0, 0, 0, 0], &[3, 0x10, 0, 0, 0, 0, 0, 0]].concat();
    let control = Control::rep(HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST_EX, 1).with_variable_header_size(1);
    let Ok(Call::FlushVirtual(flush)) = Call::decode(control, &input) else { unreachable!() };
    assert!(flush.processors.contains(7) && !flush.processors.contains(8));
    assert_eq!((flush.address_space, flush.ranges.unwrap().iter().collect::<Vec<_>>()), (7, vec![GvaRange(0x1003)]));
}

#[test]
fn flags_that_make_no_sense_for_a_list() {
    let header = FlushVirtual { address_space: 0, flags: FlushFlags::NON_GLOBAL_MAPPINGS_ONLY, processor_mask: 1 };
    assert!(Call::decode(Control::simple(HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE), &header.to_bytes()).is_ok());
    let list = [&header.to_bytes()[..], &[0; 8]].concat();
    let control = Control::rep(HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST, 1);
    assert_eq!(Call::decode(control, &list), Err(InputError::Reserved("Flags")));
    let unknown = FlushVirtual { flags: FlushFlags(1 << 10), ..header };
    assert_eq!(
        Call::decode(Control::simple(HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE), &unknown.to_bytes()),
        Err(InputError::Reserved("Flags"))
    );
}

#[test]
fn level_switches_take_nothing_else() {
    let call = |control, rax: u64| match Call::decode(control, &rax.to_le_bytes()) {
        Ok(Call::VtlCall) => Ok(None),
        Ok(Call::VtlReturn(input)) => Ok(Some(input)),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    };
    let (vtl_call, vtl_return) = (Control::simple(HypercallCode::VTL_CALL), Control::simple(HypercallCode::VTL_RETURN));
    assert_eq!(call(vtl_call, 0), Ok(None));
    assert_eq!(call(vtl_return, 1), Ok(Some(VtlReturnInput::FAST_RETURN)));
    assert_eq!(call(vtl_return, 0), Ok(Some(VtlReturnInput(0))));
    for (control, rax) in [(vtl_call, 1), (vtl_return, 2), (vtl_call.with_fast(true), 0), (vtl_return.with_rep_count(1), 0)] {
        assert!(call(control, rax).unwrap_err().is_undefined_opcode(), "{control:?} {rax}");
    }
    assert!(!InputError::Reserved("").is_undefined_opcode());
}

#[test]
fn host_visibility_has_two_bits() {
    let decode = |value| {
        let header = ModifyHostVisibility { partition_id: 0, host_visibility: HostVisibility(value), reserved: 0 };
        let input = [&header.to_bytes()[..], &[0; 8]].concat();
        Call::decode(Control::rep(HypercallCode::MODIFY_SPARSE_GPA_PAGE_HOST_VISIBILITY, 1), &input).map(drop)
    };
    assert_eq!((decode(3), decode(4)), (Ok(()), Err(InputError::Reserved("HostVisibility"))));
}

#[test]
fn refusals_explain_themselves() {
    assert_eq!(InputError::Code(HypercallCode(0x5D)).to_string(), "hypercall 0x5d is not answered here");
    assert_eq!(InputError::Code(HypercallCode::ACCEPT_GPA_PAGES).to_string(), "HvCallAcceptGpaPages is not answered here");
    assert_eq!(InputError::VpSetFormat(VpSetFormat(9)).to_string(), "VP set format 0x9 is not known");
}

fn codes() -> impl Strategy<Value = u64> {
    (0..CALLS.len()).prop_map(|i| u64::from(CALLS[i].0.0))
}

proptest! {
    #[test]
    fn no_control_nor_input_panics(word: u64, code in codes(), sane: bool, input in proptest::collection::vec(any::<u8>(), 0..600)) {
        // most words with reserved bits are refused at once
        let word = if sane { (word & 0x0003_003F_0007_0000) | code } else { word };
        let control = Control(word);
        if let Ok(call) = Call::decode(control, &input) {
            let lengths = control.lengths().unwrap();
            prop_assert!(lengths.input <= input.len() && lengths.input <= 4096 && lengths.output <= 4096);
            prop_assert_eq!(Call::decode(control, &input[..lengths.input]), Ok(call));
            prop_assert!(lengths.input == 0 || Call::decode(control, &input[..lengths.input - 1]).is_err());
            if let Call::ModifyVtlProtectionMask(_, pages) = call {
                prop_assert_eq!(pages.iter().count(), usize::from(control.rep_count() - control.rep_start()));
            }
        }
    }

    #[test]
    fn words_round_trip(word: u64) {
        let c = Control(word);
        let again = Control(c.unknown())
            .with_code(c.code())
            .with_fast(c.fast())
            .with_variable_header_size(c.variable_header_size())
            .with_nested(c.nested())
            .with_rep_count(c.rep_count())
            .with_rep_start(c.rep_start());
        prop_assert_eq!(again, c);
        let o = Output(word);
        prop_assert_eq!(Output(o.unknown()).with_status(o.status()).with_reps_completed(o.reps_completed()), o);
    }

    #[test]
    fn what_was_asked_is_decoded(pages in proptest::collection::vec(any::<u64>(), 1..=510), flags: u32, start: prop::sample::Index) {
        let start = start.index(pages.len());
        let count = u16::try_from(pages.len()).unwrap();
        let control = Control::rep(HypercallCode::MODIFY_VTL_PROTECTION_MASK, count).with_rep_start(u16::try_from(start).unwrap());
        let input = protect(MapGpaFlags(flags), &pages);
        let Ok(Call::ModifyVtlProtectionMask(header, list)) = Call::decode(control, &input) else { unreachable!() };
        prop_assert_eq!(header.map_flags, MapGpaFlags(flags));
        prop_assert_eq!(list.iter().map(|page| page.0).collect::<Vec<_>>(), &pages[start..]);
    }
}
