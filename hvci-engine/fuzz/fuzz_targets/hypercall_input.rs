//! Hypercalls as a guest makes them: 8 bytes of control word, then the input. Half of the words lose their reserved bits, so that more is seen
//! than their refusal.
#![no_main]

use hvci_engine::vsm::{
    hypercall::{Call, Control, HypercallCode},
    message::{MemoryIntercept, Message, MsrIntercept, RegisterIntercept},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((word, input)) = data.split_first_chunk() else { return };
    let word = u64::from_le_bytes(*word);
    let mut control = Control(word);
    if word & 1 << 63 != 0 {
        let codes = HypercallCode::NAMED;
        control = Control(word & !control.unknown()).with_nested(false);
        control = control.with_code(codes[usize::from(control.code().0) % codes.len()].0);
    }
    intercepts(input);
    let lengths = control.lengths();
    let call = match Call::decode(control, input) {
        Ok(call) => call,
        Err(error) => {
            assert!(error.status().ok().is_err());
            return;
        }
    };
    let lengths = lengths.expect("what was decoded has lengths");
    assert!(lengths.input <= input.len() && lengths.input <= 4096 && lengths.output <= 4096);
    assert_eq!(Call::decode(control, &input[..lengths.input]), Ok(call));
    let left = usize::from(control.rep_count() - control.rep_start());
    match call {
        Call::ModifyVtlProtectionMask(_, pages)
        | Call::CheckSparseGpaPageVtlAccess(_, pages)
        | Call::ModifySparseGpaPageHostVisibility(_, pages) => assert_eq!(pages.iter().count(), left),
        Call::GetVpRegisters(_, names) => assert_eq!(names.iter().map(|name| name.to_string()).count(), left),
        Call::SetVpRegisters(_, values) => {
            for assoc in values.iter() {
                assert_eq!(assoc.value, assoc.value.segment().into());
                assert_eq!(assoc.value, assoc.value.table().into());
            }
        }
        Call::FlushVirtual(flush) => {
            (0..5000).for_each(|vp| _ = flush.processors.contains(vp));
            for range in flush.ranges.iter().flat_map(|ranges| ranges.iter()) {
                _ = (range.pages(false), range.pages(true));
            }
        }
        Call::FlushGuestPhysical(_, ranges) => ranges.iter().flat_map(|ranges| ranges.iter()).for_each(|range| _ = range.pages()),
        Call::EnableVpVtl(start) | Call::StartVirtualProcessor(start) => {
            assert_eq!(start.to_bytes()[..], input[..lengths.input]);
            assert_eq!(start.context.registers().len(), 18);
        }
        Call::EnablePartitionVtl(header) => assert_eq!(header.to_bytes()[..], input[..lengths.input]),
        Call::InstallIntercept(header) => assert_eq!(header.to_bytes()[..], input[..lengths.input]),
        Call::TranslateVirtualAddress(header) => assert_eq!(header.to_bytes()[..], input[..lengths.input]),
        Call::VtlCall | Call::VtlReturn(_) => assert_eq!(lengths.input, 8),
    }
});

/// What an engine writes, a guest may write over.
fn intercepts(bytes: &[u8]) {
    if let Some(message) = Message::from_bytes(bytes) {
        assert_eq!(message.to_bytes()[..], bytes[..Message::SIZE]);
        let payload = message.payload().unwrap_or_default();
        _ = (MemoryIntercept::from_bytes(payload), RegisterIntercept::from_bytes(payload), MsrIntercept::from_bytes(payload));
    }
}
