//! `SynIC` messages that tell a higher level what a lower one did (TLFS `datatypes/hv_message.md`, `hv_message_type.md`; hvdef
//! `HvMessage`, `HvX64…InterceptMessage`), and the exception that it answers with (hvdef `HvX64PendingExceptionEvent`).
//!
//! The body of a register intercept is hvdef's and the Linux kernel's `hv_x64_register_intercept_message`; the TLFS has none.

use super::register::{RegisterName, RegisterValue, SegmentRegister};

/// The synthetic interrupt source that intercepts are delivered on (hvdef `HV_SYNIC_INTERCEPTION_SINT_INDEX`).
pub const INTERCEPTION_SINT: u8 = 0;

open! {
    /// `HV_MESSAGE_TYPE`.
    MessageType(u32) "message type" {
        NONE = 0 "HvMessageTypeNone";
        UNMAPPED_GPA = 0x8000_0000 "HvMessageTypeUnmappedGpa";
        GPA_INTERCEPT = 0x8000_0001 "HvMessageTypeGpaIntercept";
        UNACCEPTED_GPA = 0x8000_0003 "HvMessageTypeUnacceptedGpa";
        GPA_ATTRIBUTE_INTERCEPT = 0x8000_0004 "HvMessageTypeGpaAttributeIntercept";
        ENABLE_PARTITION_VTL_INTERCEPT = 0x8000_0005 "HvMessageTypeEnablePartitionVtlIntercept";
        IOMMU_FAULT = 0x8000_0024 "HvMessageTypeIommuFault";
        HYPERCALL_INTERCEPT = 0x8000_0050 "HvMessageTypeHypercallIntercept";
        SYNIC_SINT_INTERCEPT = 0x8000_0061 "HvMessageTypeSynicSintIntercept";
        X64_IO_PORT_INTERCEPT = 0x8001_0000 "HvMessageTypeX64IoPortIntercept";
        MSR_INTERCEPT = 0x8001_0001 "HvMessageTypeMsrIntercept";
        X64_CPUID_INTERCEPT = 0x8001_0002 "HvMessageTypeX64CpuidIntercept";
        EXCEPTION_INTERCEPT = 0x8001_0003 "HvMessageTypeExceptionIntercept";
        REGISTER_INTERCEPT = 0x8001_0006 "HvMessageTypeRegisterIntercept";
        X64_SIPI_INTERCEPT = 0x8001_0009 "HvMessageTypeX64SipiIntercept";
        X64_APIC_SMI_INTERCEPT = 0x8001_000B "HvMessageTypeX64ApicSmiIntercept";
    }
}

open! {
    /// `HV_INTERCEPT_ACCESS_TYPE`; [`Access::intercept_type`](crate::access::Access::intercept_type) gives the number of an access.
    InterceptAccess(u8) "access type" {
        READ = 0 "HV_INTERCEPT_ACCESS_READ";
        WRITE = 1 "HV_INTERCEPT_ACCESS_WRITE";
        EXECUTE = 2 "HV_INTERCEPT_ACCESS_EXECUTE";
    }
}

layout! {
    /// `HV_MESSAGE_HEADER`. The order of size, flags and reserved bytes is hvdef's and the Linux kernel's; `hv_message.md` prints it reversed.
    MessageHeader[16] {
        /// What the payload is.
        0 message_type: MessageType,
        /// Bytes of the payload that are used, at most [`Message::MAX_PAYLOAD`].
        4 payload_size: u8,
        /// Bit 0: more messages wait.
        5 flags: u8,
        /// Zero.
        6 reserved: u16,
        /// For intercepts the partition that it happened in.
        8 origin: u64,
    }
}

layout! {
    /// `HV_MESSAGE`: a slot of a message page.
    Message[256] {
        /// The header.
        0 header: MessageHeader,
        /// The payload; what is not used is zero.
        16 payload_buffer: [u8; 240],
    }
}

impl Message {
    /// Most bytes of a payload.
    pub const MAX_PAYLOAD: usize = 240;

    /// A message; `None` if the payload is longer than [`MAX_PAYLOAD`](Self::MAX_PAYLOAD).
    pub fn new(message_type: MessageType, origin: u64, payload: &[u8]) -> Option<Self> {
        let mut payload_buffer = [0; Self::MAX_PAYLOAD];
        payload_buffer.get_mut(..payload.len())?.copy_from_slice(payload);
        let payload_size = u8::try_from(payload.len()).ok()?;
        Some(Self { header: MessageHeader { message_type, payload_size, flags: 0, reserved: 0, origin }, payload_buffer })
    }

    /// The bytes of the payload that are used; `None` if the header says more than there are.
    pub fn payload(&self) -> Option<&[u8]> {
        self.payload_buffer.get(..usize::from(self.header.payload_size))
    }
}

bits! {
    /// `HV_X64_VP_EXECUTION_STATE`: what the processor was doing.
    ExecutionState(u16) {
        /// Privilege level.
        1:0 cpl with_cpl: u8;
        /// Protected mode.
        2:2 cr0_pe with_cr0_pe: bool;
        /// Alignment mask.
        3:3 cr0_am with_cr0_am: bool;
        /// Long mode.
        4:4 efer_lma with_efer_lma: bool;
        /// Whether a debug register is armed.
        5:5 debug_active with_debug_active: bool;
        /// Whether an interruption was being delivered.
        6:6 interruption_pending with_interruption_pending: bool;
        /// `HV_VTL` of the level.
        10:7 vtl with_vtl: u8;
        /// Whether in an enclave.
        11:11 enclave_mode with_enclave_mode: bool;
        /// Whether behind an instruction that holds interrupts off.
        12:12 interrupt_shadow with_interrupt_shadow: bool;
        /// Whether a virtualization exception is active.
        13:13 virtualization_fault_active with_virtualization_fault_active: bool;
    }
}

bits! {
    /// The byte of an intercept header with the length of the instruction and CR8.
    InstructionLength(u8) {
        /// Bytes; 0 if not known.
        3:0 length with_length: u8;
        /// Task priority, for partitions that the hypervisor does not keep it for.
        7:4 cr8 with_cr8: u8;
    }
}

layout! {
    /// `HV_X64_INTERCEPT_MESSAGE_HEADER`: what the bodies below begin with.
    InterceptHeader[0x28] {
        /// The processor.
        0x00 vp_index: u32,
        /// Of the instruction.
        0x04 instruction: InstructionLength,
        /// What was tried.
        0x05 access: InterceptAccess,
        /// Under which conditions.
        0x06 execution_state: ExecutionState,
        /// Code segment.
        0x08 cs: SegmentRegister,
        /// Address of the instruction.
        0x18 rip: u64,
        /// Flags.
        0x20 rflags: u64,
    }
}

open! {
    /// `HV_CACHE_TYPE`.
    CacheType(u32) "cache type" {
        UNCACHED = 0 "HvCacheTypeUncached";
        WRITE_COMBINING = 1 "HvCacheTypeWriteCombining";
        WRITE_THROUGH = 4 "HvCacheTypeWriteThrough";
        WRITE_PROTECTED = 5 "HvCacheTypeWriteProtected";
        WRITE_BACK = 6 "HvCacheTypeWriteBack";
    }
}

flags! {
    /// `HV_X64_MEMORY_ACCESS_INFO`.
    MemoryAccessInfo(u8) {
        /// The virtual address is known.
        GVA_VALID = 0;
        /// The physical address is what the virtual one leads to, not an entry of the page tables on the way.
        GVA_GPA_VALID = 1;
        /// A hypercall was writing its output.
        HYPERCALL_OUTPUT_PENDING = 2;
        /// The translation is locked until the level returns.
        TLB_LOCKED = 3;
        /// An access to a supervisor shadow stack.
        SUPERVISOR_SHADOW_STACK = 4;
    }
}

layout! {
    /// `HV_X64_MEMORY_INTERCEPT_MESSAGE`: the body of [`MessageType::GPA_INTERCEPT`] and [`MessageType::UNMAPPED_GPA`].
    MemoryIntercept[0x50] {
        /// The common part.
        0x00 header: InterceptHeader,
        /// Of the page.
        0x28 cache_type: CacheType,
        /// How many of [`instruction_bytes`](Self::instruction_bytes) are known.
        0x2C instruction_byte_count: u8,
        /// What is known.
        0x2D info: MemoryAccessInfo,
        /// Task priority.
        0x2E tpr_priority: u8,
        /// Zero.
        0x2F reserved: u8,
        /// The virtual address, if known.
        0x30 gva: u64,
        /// The physical address.
        0x38 gpa: u64,
        /// What stands at the instruction's address.
        0x40 instruction_bytes: [u8; 16],
    }
}

flags! {
    /// How a register is accessed (hvdef `HvX64RegisterInterceptMessageFlags`).
    RegisterInterceptFlags(u8) {
        /// The value comes from memory or goes there: [`RegisterIntercept::value`] is an address.
        IS_MEMORY_OP = 0;
    }
}

layout! {
    /// `HV_X64_REGISTER_INTERCEPT_MESSAGE`: the body of [`MessageType::REGISTER_INTERCEPT`].
    RegisterIntercept[0x40] {
        /// The common part.
        0x00 header: InterceptHeader,
        /// How.
        0x28 flags: RegisterInterceptFlags,
        /// Zero.
        0x29 reserved: [u8; 3],
        /// Which register.
        0x2C register: RegisterName,
        /// The value that was to be written, or the name of the register that was to be read into, or an address.
        0x30 value: RegisterValue,
    }
}

layout! {
    /// `HV_X64_MSR_INTERCEPT_MESSAGE`: the body of [`MessageType::MSR_INTERCEPT`].
    MsrIntercept[0x40] {
        /// The common part.
        0x00 header: InterceptHeader,
        /// Which.
        0x28 msr: u32,
        /// Zero.
        0x2C reserved: u32,
        /// RDX.
        0x30 rdx: u64,
        /// RAX.
        0x38 rax: u64,
    }
}

bits! {
    /// `HvRegisterPendingEvent0` as an exception: what a higher level sets so that the lower one takes it.
    PendingException(u128) {
        /// Whether there is one.
        0:0 event_pending with_event_pending: bool;
        /// 0, [`TYPE_EXCEPTION`](PendingException::TYPE_EXCEPTION), for exceptions.
        3:1 event_type with_event_type: u8;
        /// Whether an error code is pushed.
        8:8 deliver_error_code with_deliver_error_code: bool;
        /// Which exception.
        31:16 vector with_vector: u16;
        /// The error code.
        63:32 error_code with_error_code: u32;
        /// For a page fault, the address.
        127:64 exception_parameter with_exception_parameter: u64;
    }
}

impl PendingException {
    /// [`event_type`](Self::event_type) of an exception.
    pub const TYPE_EXCEPTION: u8 = 0;

    /// #GP(0): the answer to an access that is refused.
    pub const GENERAL_PROTECTION: Self = Self(1 | (1 << 8) | (13 << 16));

    /// #UD: the answer to a level switch that is none.
    pub const UNDEFINED_OPCODE: Self = Self(1 | (6 << 16));
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;
    use crate::access::Access;

    fn header() -> InterceptHeader {
        InterceptHeader {
            vp_index: 3,
            instruction: InstructionLength(0).with_length(7).with_cr8(2),
            access: InterceptAccess::WRITE,
            execution_state: ExecutionState(0).with_cr0_pe(true).with_efer_lma(true).with_vtl(0).with_cpl(3),
            cs: SegmentRegister { base: 0, limit: 0xFFFF_FFFF, selector: 0x33, attributes: 0xA0FB },
            rip: 0xFFFF_F800_0012_3456,
            rflags: 0x0001_0246,
        }
    }

    #[rustfmt::skip]
    const HEADER: [u8; 0x28] = [
        3, 0, 0, 0,                                     // processor
        0x27,                                           // CR8 2, length 7
        1,                                              // write
        0x17, 0x00,                                     // CPL 3, PE, LMA
        0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, // CS: base, limit
        0x33, 0x00, 0xFB, 0xA0,                         // selector, attributes
        0x56, 0x34, 0x12, 0x00, 0x00, 0xF8, 0xFF, 0xFF, // RIP
        0x46, 0x02, 0x01, 0, 0, 0, 0, 0,                // RFLAGS
    ];

    #[test]
    fn a_memory_intercept_byte_for_byte() {
        let intercept = MemoryIntercept {
            header: header(),
            cache_type: CacheType::WRITE_BACK,
            instruction_byte_count: 3,
            info: MemoryAccessInfo::GVA_VALID | MemoryAccessInfo::GVA_GPA_VALID | MemoryAccessInfo::TLB_LOCKED,
            tpr_priority: 0,
            reserved: 0,
            gva: 0x0000_7FFF_1234_5678,
            gpa: 0x0000_0001_0203_4678,
            instruction_bytes: [0x48, 0x89, 0x07, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        #[rustfmt::skip]
        let body = [
            6, 0, 0, 0,                                     // write-back
            3,                                              // three instruction bytes
            0b0_1011,                                       // address known, leads there, TLB locked
            0, 0,
            0x78, 0x56, 0x34, 0x12, 0xFF, 0x7F, 0, 0,       // virtual
            0x78, 0x46, 0x03, 0x02, 0x01, 0, 0, 0,          // physical
            0x48, 0x89, 0x07, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        let expected = [&HEADER[..], &body].concat();
        assert_eq!(intercept.to_bytes()[..], expected);
        assert_eq!(MemoryIntercept::from_bytes(&expected), Some(intercept));
    }

    #[test]
    fn a_register_intercept_byte_for_byte() {
        let intercept = RegisterIntercept {
            header: header(),
            flags: RegisterInterceptFlags(0),
            reserved: [0; 3],
            register: RegisterName::CR4,
            value: RegisterValue::from(0x0035_06F0),
        };
        let body = [0, 0, 0, 0, 0x03, 0x00, 0x04, 0x00, 0xF0, 0x06, 0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(intercept.to_bytes()[..], [&HEADER[..], &body].concat());
    }

    #[test]
    fn an_msr_intercept_byte_for_byte() {
        let intercept = MsrIntercept { header: header(), msr: 0xC000_0082, reserved: 0, rdx: 0xFFFF_F800, rax: 0x1122_3344 };
        let body = [0x82, 0x00, 0x00, 0xC0, 0, 0, 0, 0, 0x00, 0xF8, 0xFF, 0xFF, 0, 0, 0, 0, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0];
        assert_eq!(intercept.to_bytes()[..], [&HEADER[..], &body].concat());
    }

    #[test]
    fn a_message_byte_for_byte() {
        let message = Message::new(MessageType::GPA_INTERCEPT, 0x0102_0304_0506_0708, &[0xAA; 0x50]).unwrap();
        let bytes = message.to_bytes();
        assert_eq!(bytes[..16], [0x01, 0, 0, 0x80, 0x50, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!((bytes[16..0x60].to_vec(), bytes[0x60..].to_vec()), (alloc::vec![0xAA; 0x50], alloc::vec![0; 0xA0]));
        assert_eq!(message.payload(), Some(&[0xAA; 0x50][..]));
        assert_eq!(Message::new(MessageType::NONE, 0, &[0; 241]), None);
        assert_eq!(Message::from_bytes(&[241; 256]).unwrap().payload(), None);
    }

    #[test]
    fn the_answer_to_a_refused_access() {
        let event = PendingException(0).with_event_pending(true).with_vector(13).with_deliver_error_code(true);
        assert_eq!(event.with_event_type(PendingException::TYPE_EXCEPTION), PendingException::GENERAL_PROTECTION);
        assert_eq!(event, PendingException(0x000D_0101));
        assert_eq!(PendingException(0).with_event_pending(true).with_vector(6), PendingException::UNDEFINED_OPCODE);
        let fault = event.with_vector(14).with_error_code(3).with_exception_parameter(0x7FFF_0000);
        assert_eq!(fault, PendingException(0x0000_0000_7FFF_0000_0000_0003_000E_0101));
    }

    #[test]
    fn the_level_is_in_the_execution_state() {
        assert_eq!(ExecutionState(0).with_vtl(1), ExecutionState(0x80));
        assert_eq!(ExecutionState(u16::MAX).unknown(), 0xC000);
        assert_eq!(
            Access::ALL.map(|a| InterceptAccess(a.intercept_type())),
            [InterceptAccess::READ, InterceptAccess::WRITE, InterceptAccess::EXECUTE, InterceptAccess::EXECUTE]
        );
    }

    proptest! {
        #[test]
        fn structures_round_trip(bytes in proptest::collection::vec(any::<u8>(), 256..300)) {
            prop_assert_eq!(&Message::from_bytes(&bytes).unwrap().to_bytes()[..], &bytes[..256]);
            prop_assert_eq!(&MessageHeader::from_bytes(&bytes).unwrap().to_bytes()[..], &bytes[..16]);
            prop_assert_eq!(&InterceptHeader::from_bytes(&bytes).unwrap().to_bytes()[..], &bytes[..0x28]);
            prop_assert_eq!(&MemoryIntercept::from_bytes(&bytes).unwrap().to_bytes()[..], &bytes[..0x50]);
            prop_assert_eq!(&RegisterIntercept::from_bytes(&bytes).unwrap().to_bytes()[..], &bytes[..0x40]);
            prop_assert_eq!(&MsrIntercept::from_bytes(&bytes).unwrap().to_bytes()[..], &bytes[..0x40]);
        }

        #[test]
        fn prefixes_decode_when_they_are_long_enough(bytes in proptest::collection::vec(any::<u8>(), 0..260)) {
            prop_assert_eq!(Message::from_bytes(&bytes).is_some(), bytes.len() >= 256);
            prop_assert_eq!(MemoryIntercept::from_bytes(&bytes).is_some(), bytes.len() >= 0x50);
            prop_assert_eq!(RegisterIntercept::from_bytes(&bytes).is_some(), bytes.len() >= 0x40);
            prop_assert_eq!(MsrIntercept::from_bytes(&bytes).is_some(), bytes.len() >= 0x40);
            let _ = Message::from_bytes(&bytes).and_then(|m| m.payload().map(<[u8]>::len));
        }
    }
}
