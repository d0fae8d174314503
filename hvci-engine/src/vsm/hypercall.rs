//! The hypercall interface: control word, result, call codes, and from a guest's bytes to what it asks for
//! (TLFS `hypercall-interface.md`, `hypercalls/overview.md`; hvdef `hypercall::Control`, `HypercallCode`).
//!
//! Refuses, before anything is looked at: unknown calls, reserved bits, counts that do not fit the kind of call, lists that leave their page,
//! reserved fields that are not zero. Whether the caller may, and whether what is named exists, is decided where it is known.

use thiserror::Error;

use super::{
    input::{
        CheckSparseGpaPageVtlAccess, EnablePartitionVtl, FlushFlags, FlushGuestPhysical, FlushVirtual, FlushVirtualEx, GpaRange, GvaRange,
        InstallIntercept, ModifyHostVisibility, ModifyVtlProtectionMask, RegisterAssoc, Reps, StartVpVtl, TranslateVirtualAddress,
        VpRegisters, VtlAccessResult, VtlCallInput, VtlReturnInput,
    },
    register::{RegisterName, RegisterValue},
    translate::TranslateOutput,
    vp_set::{SparseVps, VpSet, VpSetFormat},
    wire::Wire,
};
use crate::{
    addr::{Gpn, PAGE_SIZE},
    bytes::widen,
    status::HvStatus,
};

open! {
    /// A call code.
    HypercallCode(u16) "hypercall" {
        FLUSH_VIRTUAL_ADDRESS_SPACE = 0x0002 "HvCallFlushVirtualAddressSpace";
        FLUSH_VIRTUAL_ADDRESS_LIST = 0x0003 "HvCallFlushVirtualAddressList";
        MODIFY_VTL_PROTECTION_MASK = 0x000C "HvCallModifyVtlProtectionMask";
        ENABLE_PARTITION_VTL = 0x000D "HvCallEnablePartitionVtl";
        ENABLE_VP_VTL = 0x000F "HvCallEnableVpVtl";
        VTL_CALL = 0x0011 "HvCallVtlCall";
        VTL_RETURN = 0x0012 "HvCallVtlReturn";
        FLUSH_VIRTUAL_ADDRESS_SPACE_EX = 0x0013 "HvCallFlushVirtualAddressSpaceEx";
        FLUSH_VIRTUAL_ADDRESS_LIST_EX = 0x0014 "HvCallFlushVirtualAddressListEx";
        INSTALL_INTERCEPT = 0x004D "HvCallInstallIntercept";
        GET_VP_REGISTERS = 0x0050 "HvCallGetVpRegisters";
        SET_VP_REGISTERS = 0x0051 "HvCallSetVpRegisters";
        TRANSLATE_VIRTUAL_ADDRESS = 0x0052 "HvCallTranslateVirtualAddress";
        REGISTER_INTERCEPT_RESULT = 0x0091 "HvCallRegisterInterceptResult";
        START_VIRTUAL_PROCESSOR = 0x0099 "HvCallStartVirtualProcessor";
        TRANSLATE_VIRTUAL_ADDRESS_EX = 0x00AC "HvCallTranslateVirtualAddressEx";
        CHECK_FOR_IO_INTERCEPT = 0x00AD "HvCallCheckForIoIntercept";
        FLUSH_GUEST_PHYSICAL_ADDRESS_SPACE = 0x00AF "HvCallFlushGuestPhysicalAddressSpace";
        FLUSH_GUEST_PHYSICAL_ADDRESS_LIST = 0x00B0 "HvCallFlushGuestPhysicalAddressList";
        CHECK_SPARSE_GPA_PAGE_VTL_ACCESS = 0x00D4 "HvCallCheckSparseGpaPageVtlAccess";
        ACCEPT_GPA_PAGES = 0x00D9 "HvCallAcceptGpaPages";
        MODIFY_SPARSE_GPA_PAGE_HOST_VISIBILITY = 0x00DB "HvCallModifySparseGpaPageHostVisibility";
        VBS_VM_CALL_REPORT = 0xC001 "HvCallVbsVmCallReport";
    }
}

bits! {
    /// The hypercall input value, in RCX.
    Control(u64) {
        /// Which call.
        15:0 code with_code: HypercallCode;
        /// Whether the input is in registers.
        16:16 fast with_fast: bool;
        /// Length of the variable part of the header, in units of 8 bytes.
        26:17 variable_header_size with_variable_header_size: u16;
        /// For the hypervisor below a nested one. hvdef's; the TLFS has the bit as reserved.
        31:31 nested with_nested: bool;
        /// Elements of a rep call; 0 for others.
        43:32 rep_count with_rep_count: u16;
        /// The first element that is not done.
        59:48 rep_start with_rep_start: u16;
    }
}

bits! {
    /// The hypercall result value, in RAX.
    Output(u64) {
        /// How it ended.
        15:0 status with_status: HvStatus;
        /// How many elements are done, counted from the first of the list and not from where this call started.
        43:32 reps_completed with_reps_completed: u16;
    }
}

impl Output {
    /// A result.
    pub fn new(status: HvStatus, reps_completed: u16) -> Self {
        Self(0).with_status(status).with_reps_completed(reps_completed)
    }
}

/// Why an input is refused before the call is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InputError {
    /// The engine does not answer this call.
    #[error("{0} is not answered here")]
    Code(HypercallCode),
    /// Reserved bits of the control word, or the nested bit: there is no hypervisor below.
    #[error("reserved bits {0:#x} of the control word are set")]
    ControlBits(u64),
    /// A rep count for a call without a list, or none for one with a list.
    #[error("a rep count of {0} does not fit the call")]
    RepCount(u16),
    /// The first element to do is none of the list.
    #[error("start at element {start} of {count}")]
    RepStart {
        /// The first element to do.
        start: u16,
        /// How many there are.
        count: u16,
    },
    /// A variable header for a call that has none, or one that does not fit the set of processors.
    #[error("a variable header of {0} × 8 bytes does not fit the call")]
    VariableHeader(u16),
    /// More than registers hold.
    #[error("{0} bytes of input and output do not fit into registers")]
    Fast(usize),
    /// More than a page. The status is the TLFS's; openvmm answers with [`HvStatus::INVALID_HYPERCALL_INPUT`].
    #[error("a list of {0} bytes spans pages")]
    SpansPages(usize),
    /// Fewer bytes than the control word says.
    #[error("{have} bytes of input where the call needs {need}")]
    Truncated {
        /// What the control word says.
        need: usize,
        /// What there is.
        have: usize,
    },
    /// A field that must be zero, or a bit of it.
    #[error("reserved bits of {0} are set")]
    Reserved(&'static str),
    /// A set of processors in no known format.
    #[error("{0} is not known")]
    VpSetFormat(VpSetFormat),
    /// A VTL call or return with more than its code and its control input: the answer is #UD, not a status.
    #[error("a level switch with control {control:#x} and input {input:#x}")]
    VtlSwitch {
        /// The control word.
        control: u64,
        /// The control input.
        input: u64,
    },
}

impl InputError {
    /// What the guest is told. [`VtlSwitch`](Self::VtlSwitch) is told by [`is_undefined_opcode`](Self::is_undefined_opcode).
    pub const fn status(self) -> HvStatus {
        match self {
            Self::Code(_) => HvStatus::INVALID_HYPERCALL_CODE,
            Self::ControlBits(_)
            | Self::RepCount(_)
            | Self::RepStart { .. }
            | Self::VariableHeader(_)
            | Self::Fast(_)
            | Self::Truncated { .. }
            | Self::VtlSwitch { .. } => HvStatus::INVALID_HYPERCALL_INPUT,
            Self::SpansPages(_) => HvStatus::INVALID_ALIGNMENT,
            Self::Reserved(_) | Self::VpSetFormat(_) => HvStatus::INVALID_PARAMETER,
        }
    }

    /// Whether the guest gets #UD in place of a status.
    pub const fn is_undefined_opcode(self) -> bool {
        matches!(self, Self::VtlSwitch { .. })
    }
}

impl From<InputError> for HvStatus {
    fn from(error: InputError) -> Self {
        error.status()
    }
}

/// Bytes that a call takes and gives, whole lists included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Of the input.
    pub input: usize,
    /// Of the output.
    pub output: usize,
}

/// Most bytes of input and output that registers hold: RDX, R8, XMM0 to XMM5.
pub const FAST_BYTES: usize = 112;

/// What a call code takes and gives.
#[derive(Clone, Copy)]
struct Shape {
    /// Bytes of the fixed header.
    header: usize,
    /// Whether a variable header may follow.
    variable: bool,
    /// Bytes of an element of the input list; 0 for a call without one.
    element: usize,
    /// Bytes of an element of the output list, or of the output of a call without a list.
    output: usize,
}

impl HypercallCode {
    fn shape(self) -> Option<Shape> {
        let simple = |header, output| Shape { header, variable: false, element: 0, output };
        let list = |header, element, output| Shape { header, variable: false, element, output };
        Some(match self {
            Self::VTL_CALL | Self::VTL_RETURN => simple(VtlCallInput::SIZE, 0),
            Self::FLUSH_VIRTUAL_ADDRESS_SPACE => simple(FlushVirtual::SIZE, 0),
            Self::FLUSH_VIRTUAL_ADDRESS_LIST => list(FlushVirtual::SIZE, GvaRange::SIZE, 0),
            Self::FLUSH_VIRTUAL_ADDRESS_SPACE_EX => Shape { variable: true, ..simple(FlushVirtualEx::SIZE, 0) },
            Self::FLUSH_VIRTUAL_ADDRESS_LIST_EX => Shape { variable: true, ..list(FlushVirtualEx::SIZE, GvaRange::SIZE, 0) },
            Self::FLUSH_GUEST_PHYSICAL_ADDRESS_SPACE => simple(FlushGuestPhysical::SIZE, 0),
            Self::FLUSH_GUEST_PHYSICAL_ADDRESS_LIST => list(FlushGuestPhysical::SIZE, GpaRange::SIZE, 0),
            Self::MODIFY_VTL_PROTECTION_MASK => list(ModifyVtlProtectionMask::SIZE, Gpn::SIZE, 0),
            Self::ENABLE_PARTITION_VTL => simple(EnablePartitionVtl::SIZE, 0),
            Self::ENABLE_VP_VTL | Self::START_VIRTUAL_PROCESSOR => simple(StartVpVtl::SIZE, 0),
            Self::GET_VP_REGISTERS => list(VpRegisters::SIZE, RegisterName::SIZE, RegisterValue::SIZE),
            Self::SET_VP_REGISTERS => list(VpRegisters::SIZE, RegisterAssoc::SIZE, 0),
            Self::INSTALL_INTERCEPT => simple(InstallIntercept::SIZE, 0),
            Self::TRANSLATE_VIRTUAL_ADDRESS => simple(TranslateVirtualAddress::SIZE, TranslateOutput::SIZE),
            Self::CHECK_SPARSE_GPA_PAGE_VTL_ACCESS => list(CheckSparseGpaPageVtlAccess::SIZE, Gpn::SIZE, VtlAccessResult::SIZE),
            Self::MODIFY_SPARSE_GPA_PAGE_HOST_VISIBILITY => list(ModifyHostVisibility::SIZE, Gpn::SIZE, 0),
            _ => return None,
        })
    }
}

impl Control {
    /// The control word of a call without a list.
    pub fn simple(code: HypercallCode) -> Self {
        Self(0).with_code(code)
    }

    /// The control word of a call with `count` elements.
    pub fn rep(code: HypercallCode, count: u16) -> Self {
        Self::simple(code).with_rep_count(count)
    }

    /// How many bytes to read for the input, and to have room for as the output.
    ///
    /// # Errors
    /// What is wrong with the control word.
    pub fn lengths(self) -> Result<Lengths, InputError> {
        let code = self.code();
        let shape = code.shape().ok_or(InputError::Code(code))?;
        if matches!(code, HypercallCode::VTL_CALL | HypercallCode::VTL_RETURN) {
            // the sequence of the hypercall page makes this control word: anything else in it is no call of this interface
            let exact = self == Self::simple(code);
            return if exact {
                Ok(Lengths { input: shape.header, output: 0 })
            } else {
                Err(InputError::VtlSwitch { control: self.0, input: 0 })
            };
        }
        match self.with_nested(false).unknown() | (self.0 & Self(0).with_nested(true).0) {
            0 => {}
            bits => return Err(InputError::ControlBits(bits)),
        }
        let (count, start, variable) = (self.rep_count(), self.rep_start(), self.variable_header_size());
        match (shape.element, count) {
            (0, 0) if start == 0 => {}
            (0, 0) => return Err(InputError::RepStart { start, count }),
            (0, _) | (_, 0) => return Err(InputError::RepCount(count)),
            _ if start >= count => return Err(InputError::RepStart { start, count }),
            _ => {}
        }
        if variable != 0 && !shape.variable {
            return Err(InputError::VariableHeader(variable));
        }
        // 4095 elements of 32 bytes and 1023 × 8 bytes are far from the end of a usize
        let of_list = |element: usize| usize::from(count).saturating_mul(element);
        let input = shape.header.saturating_add(usize::from(variable).saturating_mul(8)).saturating_add(of_list(shape.element));
        let output = if shape.element == 0 { shape.output } else { of_list(shape.output) };
        let in_registers = input.next_multiple_of(16).saturating_add(output.next_multiple_of(16));
        if self.fast() && in_registers > FAST_BYTES {
            return Err(InputError::Fast(input.saturating_add(output)));
        }
        match input.max(output) {
            longest if widen(longest) > PAGE_SIZE => Err(InputError::SpansPages(longest)),
            _ => Ok(Lengths { input, output }),
        }
    }
}

/// Flush the translations of virtual addresses: `HvCallFlushVirtualAddressSpace`, `…List`, and both with `Ex`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushVirtualCall<'a> {
    /// A CR3 value; counts unless [`FlushFlags::ALL_VIRTUAL_ADDRESS_SPACES`] is set.
    pub address_space: u64,
    /// How. [`FlushFlags::ALL_PROCESSORS`] is in `processors` already.
    pub flags: FlushFlags,
    /// On which processors.
    pub processors: VpSet<'a>,
    /// Which addresses; `None` for all.
    pub ranges: Option<Reps<'a, GvaRange>>,
}

/// What a guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call<'a> {
    /// `HvCallModifyVtlProtectionMask`.
    ModifyVtlProtectionMask(ModifyVtlProtectionMask, Reps<'a, Gpn>),
    /// `HvCallEnablePartitionVtl`.
    EnablePartitionVtl(EnablePartitionVtl),
    /// `HvCallEnableVpVtl`.
    EnableVpVtl(StartVpVtl),
    /// `HvCallStartVirtualProcessor`.
    StartVirtualProcessor(StartVpVtl),
    /// `HvCallVtlCall`.
    VtlCall,
    /// `HvCallVtlReturn`.
    VtlReturn(VtlReturnInput),
    /// `HvCallGetVpRegisters`. The value of element *n* goes to bytes 16 *n* of the output.
    GetVpRegisters(VpRegisters, Reps<'a, RegisterName>),
    /// `HvCallSetVpRegisters`. Reserved bytes of the elements are not looked at.
    SetVpRegisters(VpRegisters, Reps<'a, RegisterAssoc>),
    /// The four that flush translations of virtual addresses.
    FlushVirtual(FlushVirtualCall<'a>),
    /// `HvCallFlushGuestPhysicalAddressSpace`, or `…List` with a list.
    FlushGuestPhysical(FlushGuestPhysical, Option<Reps<'a, GpaRange>>),
    /// `HvCallInstallIntercept`.
    InstallIntercept(InstallIntercept),
    /// `HvCallTranslateVirtualAddress`. The output is a [`TranslateOutput`].
    TranslateVirtualAddress(TranslateVirtualAddress),
    /// `HvCallCheckSparseGpaPageVtlAccess`. The [`VtlAccessResult`] of element *n* goes to bytes 8 *n* of the output.
    CheckSparseGpaPageVtlAccess(CheckSparseGpaPageVtlAccess, Reps<'a, Gpn>),
    /// `HvCallModifySparseGpaPageHostVisibility`.
    ModifySparseGpaPageHostVisibility(ModifyHostVisibility, Reps<'a, Gpn>),
}

impl<'a> Call<'a> {
    /// Decodes the input of a call; `input` may be longer than the call takes. For a VTL call or return it is the 8 bytes of RAX.
    ///
    /// # Errors
    /// What is wrong with the control word or the input.
    pub fn decode(control: Control, input: &'a [u8]) -> Result<Self, InputError> {
        let need = control.lengths()?.input;
        let truncated = InputError::Truncated { need, have: input.len() };
        let body = Body { bytes: input.get(..need).ok_or(truncated)?, control, truncated };
        Ok(match control.code() {
            HypercallCode::VTL_CALL => {
                let input: VtlCallInput = body.header()?;
                vtl_switch(control, input.0, input.unknown())?;
                Self::VtlCall
            }
            HypercallCode::VTL_RETURN => {
                let input: VtlReturnInput = body.header()?;
                vtl_switch(control, input.0, input.unknown())?;
                Self::VtlReturn(input)
            }
            HypercallCode::MODIFY_VTL_PROTECTION_MASK => {
                let header: ModifyVtlProtectionMask = body.header()?;
                zero(&header.reserved, "RsvdZ")?;
                none(header.target_vtl.unknown(), "TargetVtl")?;
                Self::ModifyVtlProtectionMask(header, body.list(ModifyVtlProtectionMask::SIZE)?)
            }
            HypercallCode::ENABLE_PARTITION_VTL => {
                let header: EnablePartitionVtl = body.header()?;
                zero(&header.reserved, "RsvdZ")?;
                none(header.flags.unknown(), "Flags")?;
                Self::EnablePartitionVtl(header)
            }
            HypercallCode::ENABLE_VP_VTL => Self::EnableVpVtl(body.start_vp()?),
            HypercallCode::START_VIRTUAL_PROCESSOR => Self::StartVirtualProcessor(body.start_vp()?),
            HypercallCode::GET_VP_REGISTERS => Self::GetVpRegisters(body.vp_registers()?, body.list(VpRegisters::SIZE)?),
            HypercallCode::SET_VP_REGISTERS => Self::SetVpRegisters(body.vp_registers()?, body.list(VpRegisters::SIZE)?),
            HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE | HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST => {
                let header: FlushVirtual = body.header()?;
                let set = VpSet::Mask(header.processor_mask);
                Self::FlushVirtual(body.flush(header.address_space, header.flags, set, FlushVirtual::SIZE)?)
            }
            HypercallCode::FLUSH_VIRTUAL_ADDRESS_SPACE_EX | HypercallCode::FLUSH_VIRTUAL_ADDRESS_LIST_EX => {
                let header: FlushVirtualEx = body.header()?;
                let banks = body.variable_header(FlushVirtualEx::SIZE)?;
                // in both formats, as KVM has it (`kvm_hv_flush_tlb`)
                let Some(sparse) = SparseVps::new(header.valid_banks, banks) else {
                    return Err(InputError::VariableHeader(control.variable_header_size()));
                };
                let set = match header.format {
                    VpSetFormat::SPARSE_4K => VpSet::Sparse(sparse),
                    VpSetFormat::ALL => VpSet::All,
                    other => return Err(InputError::VpSetFormat(other)),
                };
                let end = FlushVirtualEx::SIZE.saturating_add(banks.len());
                Self::FlushVirtual(body.flush(header.address_space, header.flags, set, end)?)
            }
            HypercallCode::FLUSH_GUEST_PHYSICAL_ADDRESS_SPACE | HypercallCode::FLUSH_GUEST_PHYSICAL_ADDRESS_LIST => {
                let header: FlushGuestPhysical = body.header()?;
                none(header.flags, "Flags")?;
                Self::FlushGuestPhysical(header, body.optional_list(FlushGuestPhysical::SIZE)?)
            }
            HypercallCode::INSTALL_INTERCEPT => {
                let header: InstallIntercept = body.header()?;
                none(header.access.unknown(), "AccessType")?;
                Self::InstallIntercept(header)
            }
            HypercallCode::TRANSLATE_VIRTUAL_ADDRESS => {
                let header: TranslateVirtualAddress = body.header()?;
                none(header.control_flags.reserved(), "ControlFlags")?;
                none(header.control_flags.input_vtl().unknown(), "ControlFlags")?;
                Self::TranslateVirtualAddress(header)
            }
            HypercallCode::CHECK_SPARSE_GPA_PAGE_VTL_ACCESS => {
                let header: CheckSparseGpaPageVtlAccess = body.header()?;
                zero(&header.reserved, "RsvdZ")?;
                none(header.target_vtl.unknown(), "TargetVtl")?;
                Self::CheckSparseGpaPageVtlAccess(header, body.list(CheckSparseGpaPageVtlAccess::SIZE)?)
            }
            HypercallCode::MODIFY_SPARSE_GPA_PAGE_HOST_VISIBILITY => {
                let header: ModifyHostVisibility = body.header()?;
                none(header.reserved, "RsvdZ")?;
                none(header.host_visibility.0 & !0b11, "HostVisibility")?;
                Self::ModifySparseGpaPageHostVisibility(header, body.list(ModifyHostVisibility::SIZE)?)
            }
            other => return Err(InputError::Code(other)),
        })
    }
}

/// The input of a call, as long as its control word says.
struct Body<'a> {
    bytes: &'a [u8],
    control: Control,
    truncated: InputError,
}

impl<'a> Body<'a> {
    fn header<T: Wire>(&self) -> Result<T, InputError> {
        T::get(self.bytes, 0).ok_or(self.truncated)
    }

    fn variable_header(&self, offset: usize) -> Result<&'a [u8], InputError> {
        let len = usize::from(self.control.variable_header_size()).saturating_mul(8);
        self.bytes.get(offset..offset.saturating_add(len)).ok_or(self.truncated)
    }

    fn list<T: Wire>(&self, offset: usize) -> Result<Reps<'a, T>, InputError> {
        let bytes = self.bytes.get(offset..).ok_or(self.truncated)?;
        Reps::new(bytes, self.control.rep_start(), self.control.rep_count()).ok_or(self.truncated)
    }

    fn optional_list<T: Wire>(&self, offset: usize) -> Result<Option<Reps<'a, T>>, InputError> {
        (self.control.rep_count() != 0).then(|| self.list(offset)).transpose()
    }

    fn start_vp(&self) -> Result<StartVpVtl, InputError> {
        let header: StartVpVtl = self.header()?;
        zero(&header.reserved, "RsvdZ").map(|()| header)
    }

    fn vp_registers(&self) -> Result<VpRegisters, InputError> {
        let header: VpRegisters = self.header()?;
        zero(&header.reserved, "RsvdZ")?;
        none(header.target_vtl.unknown(), "TargetVtl").map(|()| header)
    }

    fn flush(&self, address_space: u64, flags: FlushFlags, set: VpSet<'a>, end: usize) -> Result<FlushVirtualCall<'a>, InputError> {
        let ranges = self.optional_list(end)?;
        let mut wrong = flags.unknown();
        // makes no sense for a list (TLFS `HvCallFlushVirtualAddressList.md`)
        if ranges.is_some() {
            wrong |= flags.0 & FlushFlags::NON_GLOBAL_MAPPINGS_ONLY.0;
        }
        none(wrong, "Flags")?;
        let processors = if flags.contains(FlushFlags::ALL_PROCESSORS) { VpSet::All } else { set };
        Ok(FlushVirtualCall { address_space, flags, processors, ranges })
    }
}

fn zero(bytes: &[u8], field: &'static str) -> Result<(), InputError> {
    if bytes.iter().all(|b| *b == 0) { Ok(()) } else { Err(InputError::Reserved(field)) }
}

fn none(bits: impl Into<u64>, field: &'static str) -> Result<(), InputError> {
    if bits.into() == 0 { Ok(()) } else { Err(InputError::Reserved(field)) }
}

fn vtl_switch(control: Control, input: u64, unknown: u64) -> Result<(), InputError> {
    if unknown == 0 { Ok(()) } else { Err(InputError::VtlSwitch { control: control.0, input }) }
}

#[cfg(test)]
mod tests;
