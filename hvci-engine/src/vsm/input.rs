//! What hypercalls take: the fixed part of each input, and the elements of lists (TLFS `hypercalls/HvCall….md`; hvdef `hypercall`).
//!
//! Fields that the sources have as reserved are kept here; [`Call::decode`](super::hypercall::Call::decode) refuses them unless zero.
//! What the sources have as padding is ignored.

use core::marker::PhantomData;

use super::{
    register::{RegisterName, RegisterValue, SegmentRegister, TableRegister},
    translate::TranslateFlags,
    wire::Wire,
};
use crate::{
    access::MapGpaFlags,
    addr::{Gpa, GpnRange, Gva, PAGE_SIZE, Vtl},
    status::HvStatus,
};

/// `HV_PARTITION_ID_SELF`.
pub const PARTITION_ID_SELF: u64 = u64::MAX;

/// `HV_VP_INDEX_SELF`.
pub const VP_INDEX_SELF: u32 = 0xFFFF_FFFE;

/// The level of an `HV_VTL` that a guest names.
///
/// # Errors
/// [`HvStatus::INVALID_PARAMETER`] for one that does not exist.
pub fn vtl(number: u8) -> Result<Vtl, HvStatus> {
    Vtl::from_number(number).ok_or(HvStatus::INVALID_PARAMETER)
}

bits! {
    /// `HV_INPUT_VTL`: a level, or the caller's own.
    InputVtl(u8) {
        /// `HV_VTL` of the level.
        3:0 target_vtl with_target_vtl: u8;
        /// Whether it counts; if not, the caller's does.
        4:4 use_target_vtl with_use_target_vtl: bool;
    }
}

impl InputVtl {
    /// That level.
    pub fn of(vtl: Vtl) -> Self {
        Self(0).with_target_vtl(vtl.number()).with_use_target_vtl(true)
    }

    /// The level that is meant when `caller` calls.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] if reserved bits are set or there is no such level.
    pub fn resolve(self, caller: Vtl) -> Result<Vtl, HvStatus> {
        match (self.unknown(), self.use_target_vtl()) {
            (0, true) => vtl(self.target_vtl()),
            (0, false) => Ok(caller),
            _ => Err(HvStatus::INVALID_PARAMETER),
        }
    }
}

layout! {
    /// `HvCallModifyVtlProtectionMask`; a list of pages follows. The level is the one that protects: the pages are protected from those below.
    #[derive(Default)]
    ModifyVtlProtectionMask[16] {
        /// Whose pages.
        0 partition_id: u64,
        /// What remains allowed.
        8 map_flags: MapGpaFlags,
        /// The level that protects.
        12 target_vtl: InputVtl,
        /// Zero.
        13 reserved: [u8; 3],
    }
}

impl ModifyVtlProtectionMask {
    /// Most pages of a call: what fits into a page behind the header.
    pub const MAX_PAGES: u16 = 510;
}

flags! {
    /// `HV_ENABLE_PARTITION_VTL_FLAGS`. Bits 1 and 2 are hvdef's.
    EnablePartitionVtlFlags(u8) {
        /// With mode-based execution control.
        ENABLE_MBEC = 0;
        /// With supervisor shadow stacks.
        ENABLE_SUPERVISOR_SHADOW_STACK = 1;
        /// With hypervisor-managed linear address translation by hardware.
        ENABLE_HARDWARE_HVPT = 2;
    }
}

layout! {
    /// `HvCallEnablePartitionVtl`.
    #[derive(Default)]
    EnablePartitionVtl[16] {
        /// For which partition.
        0 partition_id: u64,
        /// `HV_VTL` to enable.
        8 target_vtl: u8,
        /// With what.
        9 flags: EnablePartitionVtlFlags,
        /// Zero.
        10 reserved: [u8; 6],
    }
}

layout! {
    /// `HV_INITIAL_VP_CONTEXT`: what a level starts with on a processor.
    #[derive(Default)]
    InitialVpContext[0xE0] {
        /// Instruction pointer.
        0x00 rip: u64,
        /// Stack pointer.
        0x08 rsp: u64,
        /// Flags.
        0x10 rflags: u64,
        /// Code segment.
        0x18 cs: SegmentRegister,
        /// Data segment.
        0x28 ds: SegmentRegister,
        /// Data segment.
        0x38 es: SegmentRegister,
        /// Data segment.
        0x48 fs: SegmentRegister,
        /// Data segment.
        0x58 gs: SegmentRegister,
        /// Stack segment.
        0x68 ss: SegmentRegister,
        /// Task register.
        0x78 tr: SegmentRegister,
        /// Local descriptor table.
        0x88 ldtr: SegmentRegister,
        /// Interrupt descriptor table.
        0x98 idtr: TableRegister,
        /// Global descriptor table.
        0xA8 gdtr: TableRegister,
        /// Extended features.
        0xB8 efer: u64,
        /// Control register 0.
        0xC0 cr0: u64,
        /// Control register 3.
        0xC8 cr3: u64,
        /// Control register 4.
        0xD0 cr4: u64,
        /// Page attribute table.
        0xD8 msr_cr_pat: u64,
    }
}

impl InitialVpContext {
    /// The registers and their values, in the order of the structure.
    pub fn registers(&self) -> [(RegisterName, RegisterValue); 18] {
        [
            (RegisterName::RIP, self.rip.into()),
            (RegisterName::RSP, self.rsp.into()),
            (RegisterName::RFLAGS, self.rflags.into()),
            (RegisterName::CS, self.cs.into()),
            (RegisterName::DS, self.ds.into()),
            (RegisterName::ES, self.es.into()),
            (RegisterName::FS, self.fs.into()),
            (RegisterName::GS, self.gs.into()),
            (RegisterName::SS, self.ss.into()),
            (RegisterName::TR, self.tr.into()),
            (RegisterName::LDTR, self.ldtr.into()),
            (RegisterName::IDTR, self.idtr.into()),
            (RegisterName::GDTR, self.gdtr.into()),
            (RegisterName::EFER, self.efer.into()),
            (RegisterName::CR0, self.cr0.into()),
            (RegisterName::CR3, self.cr3.into()),
            (RegisterName::CR4, self.cr4.into()),
            (RegisterName::PAT, self.msr_cr_pat.into()),
        ]
    }
}

layout! {
    /// `HvCallEnableVpVtl` and `HvCallStartVirtualProcessor`, which take the same.
    #[derive(Default)]
    StartVpVtl[0xF0] {
        /// Whose processor.
        0x00 partition_id: u64,
        /// Which processor.
        0x08 vp_index: u32,
        /// `HV_VTL` to enable or to start in.
        0x0C target_vtl: u8,
        /// Zero.
        0x0D reserved: [u8; 3],
        /// What it starts with.
        0x10 context: InitialVpContext,
    }
}

flags! {
    /// The control input of a VTL call, in RAX when the hypercall page's sequence makes it: no bit means anything.
    /// One that is set is answered with #UD.
    VtlCallInput(u64) {}
}

flags! {
    /// The control input of a VTL return, in RAX when the hypercall page's sequence makes it. An unknown bit is answered with #UD.
    VtlReturnInput(u64) {
        /// RAX and RCX are not restored.
        FAST_RETURN = 0;
    }
}

layout! {
    /// `HvCallGetVpRegisters` and `HvCallSetVpRegisters`; a list of [`RegisterName`] or of [`RegisterAssoc`] follows.
    #[derive(Default)]
    VpRegisters[16] {
        /// Whose processor.
        0 partition_id: u64,
        /// Which processor.
        8 vp_index: u32,
        /// Of which level.
        12 target_vtl: InputVtl,
        /// Zero.
        13 reserved: [u8; 3],
    }
}

layout! {
    /// An element of `HvCallSetVpRegisters`.
    #[derive(Default)]
    RegisterAssoc[32] {
        /// Which register.
        0 name: RegisterName,
        /// Zero.
        4 reserved: [u8; 12],
        /// Its new value.
        16 value: RegisterValue,
    }
}

flags! {
    /// `HV_FLUSH_FLAGS`. Bits 3 and up are hvdef's.
    FlushFlags(u64) {
        /// Of every processor, whatever the set says.
        ALL_PROCESSORS = 0;
        /// Of every address space.
        ALL_VIRTUAL_ADDRESS_SPACES = 1;
        /// Global translations may stay.
        NON_GLOBAL_MAPPINGS_ONLY = 2;
        /// Ranges are in the extended format.
        USE_EXTENDED_RANGE_FORMAT = 3;
        /// The levels that follow are flushed, not the caller's own.
        USE_TARGET_VTL = 4;
        /// VTL0.
        TARGET_VTL0 = 8;
        /// VTL1.
        TARGET_VTL1 = 9;
    }
}

layout! {
    /// `HvCallFlushVirtualAddressSpace` and `…List`; a list of [`GvaRange`] follows the latter.
    #[derive(Default)]
    FlushVirtual[24] {
        /// A CR3 value.
        0 address_space: u64,
        /// How.
        8 flags: FlushFlags,
        /// A bit for each of the first 64 processors.
        16 processor_mask: u64,
    }
}

layout! {
    /// `HvCallFlushVirtualAddressSpaceEx` and `…ListEx`: the fixed part. The masks of the set's banks follow as the variable part, and
    /// behind them a list of [`GvaRange`].
    ///
    /// The first 16 bytes of the set count as fixed, as in hvdef and the Linux kernel; the TLFS does not say where the variable part begins.
    #[derive(Default)]
    FlushVirtualEx[32] {
        /// A CR3 value.
        0 address_space: u64,
        /// How.
        8 flags: FlushFlags,
        /// Format of the set.
        16 format: super::vp_set::VpSetFormat,
        /// A bit for every bank that follows.
        24 valid_banks: u64,
    }
}

layout! {
    /// `HvCallFlushGuestPhysicalAddressSpace` and `…List`; a list of [`GpaRange`] follows the latter.
    #[derive(Default)]
    FlushGuestPhysical[16] {
        /// Of the root of a second-level table.
        0 address_space: u64,
        /// Zero.
        8 flags: u64,
    }
}

/// `HV_GVA_RANGE`: successive pages of virtual addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GvaRange(pub u64);

/// `HV_GPA_PAGE_RANGE`: successive guest pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpaRange(pub u64);

wire_newtype! { GvaRange(u64) GpaRange(u64) }

impl GvaRange {
    /// The first address and the number of 4 KiB pages; `None` for a large page in the extended format that is not aligned or has reserved
    /// bits set. The range may reach beyond the address space; such addresses are ignored.
    pub fn pages(self, extended: bool) -> Option<(Gva, u64)> {
        const LARGE: u64 = 1 << 11;
        const GIB: u64 = 1 << 12;
        const RESERVED: u64 = 0xFF << 13;
        if !extended {
            return Some((Gva(self.0 & !0xFFF), (self.0 & 0xFFF).saturating_add(1)));
        }
        let count = (self.0 & 0x7FF).saturating_add(1);
        if self.0 & LARGE == 0 {
            return Some((Gva(self.0 & !0xFFF), count));
        }
        let size: u64 = if self.0 & GIB == 0 { 1 << 21 } else { 1 << 30 };
        let start = self.0 & !((1 << 21) - 1);
        let sound = self.0 & RESERVED == 0 && start.is_multiple_of(size);
        sound.then(|| (Gva(start), count.saturating_mul(size / PAGE_SIZE)))
    }
}

impl GpaRange {
    /// The pages; `None` beyond the physical address space.
    pub fn pages(self) -> Option<GpnRange> {
        GpnRange::new(Gpa(self.0).gpn(), (self.0 & 0xFFF).saturating_add(1))
    }
}

open! {
    /// `HV_INTERCEPT_TYPE`.
    InterceptType(u32) "intercept type" {
        X64_IO_PORT = 0 "HvInterceptTypeX64IoPort";
        X64_MSR = 1 "HvInterceptTypeX64Msr";
        X64_CPUID = 2 "HvInterceptTypeX64Cpuid";
        EXCEPTION = 3 "HvInterceptTypeException";
        HYPERCALL = 8 "HvInterceptTypeHypercall";
        X64_IO_PORT_RANGE = 0x11 "HvInterceptTypeX64IoPortRange";
    }
}

flags! {
    /// `HV_INTERCEPT_ACCESS_TYPE_MASK`.
    InterceptAccessMask(u32) {
        /// Reads.
        READ = 0;
        /// Writes.
        WRITE = 1;
        /// Execution.
        EXECUTE = 2;
    }
}

layout! {
    /// `HvCallInstallIntercept`.
    #[derive(Default)]
    InstallIntercept[24] {
        /// Of whom.
        0 partition_id: u64,
        /// Which accesses.
        8 access: InterceptAccessMask,
        /// To what.
        12 intercept_type: InterceptType,
        /// `HV_INTERCEPT_PARAMETERS`: port, `CPUID` leaf, model-specific register, exception vector.
        16 parameters: u64,
    }
}

layout! {
    /// `HvCallTranslateVirtualAddress`.
    #[derive(Default)]
    TranslateVirtualAddress[32] {
        /// Whose processor.
        0 partition_id: u64,
        /// On which processor.
        8 vp_index: u32,
        /// Ignored.
        12 padding: [u8; 4],
        /// How.
        16 control_flags: TranslateFlags,
        /// The page of virtual addresses.
        24 gva_page: u64,
    }
}

layout! {
    /// `HvCallCheckSparseGpaPageVtlAccess` (hvdef's; the TLFS does not have the page); a list of pages follows.
    #[derive(Default)]
    CheckSparseGpaPageVtlAccess[16] {
        /// Whose pages.
        0 partition_id: u64,
        /// Whose accesses.
        8 target_vtl: InputVtl,
        /// The lowest flags of `HV_MAP_GPA_FLAGS`.
        9 desired_access: u8,
        /// Zero.
        10 reserved: [u8; 6],
    }
}

open! {
    /// How a check of a page ended (hvdef `CheckGpaPageVtlAccessResultCode`).
    VtlAccessResultCode(u8) "access result" {
        SUCCESS = 0 "SUCCESS";
        MEMORY_INTERCEPT = 1 "MEMORY_INTERCEPT";
    }
}

bits! {
    /// An element of the output of `HvCallCheckSparseGpaPageVtlAccess`.
    VtlAccessResult(u64) {
        /// How it ended.
        7:0 code with_code: VtlAccessResultCode;
        /// The lowest flags of `HV_MAP_GPA_FLAGS` that are missing.
        15:8 denied_access with_denied_access: u8;
        /// `HV_VTL` of the level that denies.
        19:16 intercepting_vtl with_intercepting_vtl: u8;
    }
}

open! {
    /// Who may access a page besides the guest (hvdef `HostVisibilityType`).
    HostVisibility(u32) "host visibility" {
        PRIVATE = 0 "PRIVATE";
        SHARED = 3 "SHARED";
    }
}

layout! {
    /// `HvCallModifySparseGpaPageHostVisibility` (hvdef's; the TLFS does not have the page); a list of pages follows.
    #[derive(Default)]
    ModifyHostVisibility[16] {
        /// Whose pages.
        0 partition_id: u64,
        /// What they become. Bits 31:2 are reserved.
        8 host_visibility: HostVisibility,
        /// Zero.
        12 reserved: u32,
    }
}

/// The list of a rep hypercall: as many elements as the control word says, of which the first may have been done by an earlier call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reps<'a, T> {
    bytes: &'a [u8],
    start: u16,
    count: u16,
    of: PhantomData<T>,
}

impl<'a, T: Wire> Reps<'a, T> {
    /// `count` elements from `bytes`, of which those before `start` are done; `None` if there are fewer.
    pub(super) fn new(bytes: &'a [u8], start: u16, count: u16) -> Option<Self> {
        let bytes = bytes.get(..usize::from(count).checked_mul(T::SIZE)?)?;
        Some(Self { bytes, start, count, of: PhantomData })
    }

    /// Index of the first element that is not done.
    pub const fn start(&self) -> u16 {
        self.start
    }

    /// How many elements there are, done or not.
    pub const fn count(&self) -> u16 {
        self.count
    }

    /// The elements that are not done, in order.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'a, T> {
        let bytes = self.bytes;
        (self.start..self.count).filter_map(move |index| T::get(bytes, usize::from(index).checked_mul(T::SIZE)?))
    }
}

#[cfg(test)]
mod tests;
