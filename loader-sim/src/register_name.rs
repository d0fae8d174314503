//! `HV_REGISTER_NAME` numbers of what the processor has (openvmm `vm/hv1/hvdef/src/lib.rs`, `HvX64RegisterName`).

/// RAX, followed by the other fifteen in the order of their encoding.
pub(crate) const RAX: u32 = 0x0002_0000;
pub(crate) const R15: u32 = RAX + 15;
pub(crate) const RIP: u32 = 0x0002_0010;
pub(crate) const RFLAGS: u32 = 0x0002_0011;
pub(crate) const CR0: u32 = 0x0004_0000;
pub(crate) const CR2: u32 = 0x0004_0001;
pub(crate) const CR3: u32 = 0x0004_0002;
pub(crate) const CR4: u32 = 0x0004_0003;
pub(crate) const CR8: u32 = 0x0004_0004;
/// XCR0.
pub(crate) const XFEM: u32 = 0x0004_0005;
pub(crate) const ES: u32 = 0x0006_0000;
pub(crate) const CS: u32 = 0x0006_0001;
pub(crate) const SS: u32 = 0x0006_0002;
pub(crate) const DS: u32 = 0x0006_0003;
pub(crate) const FS: u32 = 0x0006_0004;
pub(crate) const GS: u32 = 0x0006_0005;
pub(crate) const LDTR: u32 = 0x0006_0006;
pub(crate) const TR: u32 = 0x0006_0007;
pub(crate) const IDTR: u32 = 0x0007_0000;
pub(crate) const GDTR: u32 = 0x0007_0001;
pub(crate) const EFER: u32 = 0x0008_0001;
pub(crate) const KERNEL_GS_BASE: u32 = 0x0008_0002;
pub(crate) const APIC_BASE: u32 = 0x0008_0003;
pub(crate) const PAT: u32 = 0x0008_0004;
pub(crate) const SYSENTER_CS: u32 = 0x0008_0005;
pub(crate) const SYSENTER_EIP: u32 = 0x0008_0006;
pub(crate) const SYSENTER_ESP: u32 = 0x0008_0007;
pub(crate) const STAR: u32 = 0x0008_0008;
pub(crate) const LSTAR: u32 = 0x0008_0009;
pub(crate) const CSTAR: u32 = 0x0008_000a;
pub(crate) const SFMASK: u32 = 0x0008_000b;
pub(crate) const TSC_AUX: u32 = 0x0008_007b;
/// From Linux `include/hyperv/hvgdk_mini.h`.
pub(crate) const MISC_ENABLE: u32 = 0x0008_00a0;
