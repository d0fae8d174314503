//! The hypercalls that the engine answers, each with its checks in the order of the TLFS; where it is silent, of openvmm
//! (`openhcl/virt_mshv_vtl/src/processor/hardware_cvm/mod.rs`).

use super::{Kind, OWNER_VTL1, Partition, kind_of};
use crate::{
    access::{Access, MapGpaFlags},
    addr::{Gpn, GpnRange, Vtl},
    event::What,
    finding::Code,
    host::Vp,
    status::HvStatus,
    vsm::{
        hypercall::{Call, Control},
        input::{
            CheckSparseGpaPageVtlAccess, EnablePartitionVtl, EnablePartitionVtlFlags, HostVisibility, ModifyVtlProtectionMask,
            PARTITION_ID_SELF, Reps, StartVpVtl, VP_INDEX_SELF, VpRegisters, VtlAccessResult, VtlAccessResultCode, vtl,
        },
        intercept::CrInterceptControl,
        protection::validate_protection,
        register::{RegisterName, RegisterValue},
        status_register::{VsmCapabilities, VsmPartitionConfig, VsmPartitionStatus, VsmVpSecureConfig, VsmVpStatus, vtl_bit},
        wire::Wire,
    },
};

/// What a protection mask can be put on: not pages shared with the host, overlays, and what a load has granted.
const PROTECTABLE: [Kind; 3] = [Kind::Data, Kind::KernelData, Kind::SecureOnly];

impl Partition {
    /// Status and elements done, counted from the first of the list.
    pub(super) fn answer(&self, vp: &mut dyn Vp, caller: Vtl, control: u64, input: &[u8], output: &mut [u8]) -> (HvStatus, u16) {
        let control = Control(control);
        let call = match Call::decode(control, input) {
            Ok(call) => call,
            Err(error) => return (error.status(), control.rep_start()),
        };
        let whole = |result: Result<(), HvStatus>| (result.err().unwrap_or(HvStatus::SUCCESS), 0);
        match call {
            Call::ModifyVtlProtectionMask(header, pages) => self.modify_protection(vp, caller, &header, pages),
            Call::EnablePartitionVtl(input) => whole(self.enable_partition_vtl(vp, caller, &input)),
            Call::EnableVpVtl(input) => whole(self.enable_vp_vtl(vp, caller, &input)),
            Call::StartVirtualProcessor(input) => whole(self.start_vp(caller, &input)),
            // the switch itself is the VMM's
            Call::VtlCall => whole(if caller == Vtl::Vtl0 { self.has_vtl1(vp.index()) } else { Err(HvStatus::INVALID_VTL_STATE) }),
            Call::VtlReturn(_) => whole(if caller == Vtl::Vtl1 { Ok(()) } else { Err(HvStatus::INVALID_VTL_STATE) }),
            Call::GetVpRegisters(header, names) => each(&names, |name, index| {
                let value = self.register(vp, caller, &header, name)?;
                value.put(output, usize::from(index).saturating_mul(RegisterValue::SIZE));
                Ok(())
            }),
            Call::SetVpRegisters(header, assocs) => each(&assocs, |assoc, _| {
                if assoc.reserved != [0; 12] {
                    return Err(HvStatus::INVALID_PARAMETER);
                }
                self.set_register(vp, caller, &header, assoc.name, assoc.value)
            }),
            Call::FlushVirtual(flush) => self.flush(control, flush.ranges.map_or(0, |ranges| ranges.count())),
            Call::FlushGuestPhysical(_, ranges) => self.flush(control, ranges.map_or(0, |ranges| ranges.count())),
            Call::CheckSparseGpaPageVtlAccess(header, pages) => self.check_pages(caller, &header, pages, output),
            Call::ModifySparseGpaPageHostVisibility(header, pages) => {
                let to = match header.host_visibility {
                    HostVisibility::PRIVATE => Kind::Data,
                    HostVisibility::SHARED => Kind::Shared,
                    _ => return (HvStatus::INVALID_PARAMETER, pages.start()),
                };
                if header.partition_id != PARTITION_ID_SELF {
                    return (HvStatus::ACCESS_DENIED, pages.start());
                }
                // for nobody: what VTL1 or a module owns is not the caller's to share or to take back
                self.change_all(vp, caller, 0, &[Kind::Data, Kind::Shared], pages, to, to.allows(Vtl::Vtl0))
            }
            Call::InstallIntercept(_) | Call::TranslateVirtualAddress(_) => (HvStatus::INVALID_HYPERCALL_CODE, control.rep_start()),
        }
    }

    /// Whatever is asked for, more is flushed: flushing is never too much.
    fn flush(&self, control: Control, count: u16) -> (HvStatus, u16) {
        match self.host.quiesce(Vtl::Vtl0, &self.ram) {
            Ok(()) => (HvStatus::SUCCESS, count),
            Err(status) => (status, control.rep_start()),
        }
    }

    fn modify_protection(&self, vp: &dyn Vp, caller: Vtl, header: &ModifyVtlProtectionMask, pages: Reps<'_, Gpn>) -> (HvStatus, u16) {
        let flags = header.map_flags;
        match self.may_protect(caller, header).and_then(|()| kind_of(flags)) {
            Ok(kind) => self.change_all(vp, caller, OWNER_VTL1, &PROTECTABLE, pages, kind, flags),
            Err(status) => {
                let what = What::Protect { pages: GpnRange::of_pages(pages.iter()), flags };
                self.record(Some(vp.index()), caller, what, status, Some(Code::MemProtection));
                (status, pages.start())
            }
        }
    }

    fn may_protect(&self, caller: Vtl, header: &ModifyVtlProtectionMask) -> Result<(), HvStatus> {
        if header.partition_id != PARTITION_ID_SELF {
            return Err(HvStatus::ACCESS_DENIED);
        }
        // the level that protects, not the one that is protected from
        let target = header.target_vtl.resolve(caller)?;
        if target > caller {
            return Err(HvStatus::ACCESS_DENIED);
        }
        if target == Vtl::Vtl0 {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let levels = self.levels.lock();
        if !levels.vtl1 {
            return Err(HvStatus::INVALID_VTL_STATE);
        }
        if !levels.config.enable_vtl_protection() {
            return Err(HvStatus::ACCESS_DENIED);
        }
        validate_protection(header.map_flags, levels.mbec, levels.shadow_stack)
    }

    /// All pages of a list, or none: an element is done when all are.
    #[expect(clippy::too_many_arguments, reason = "who asks, for whom, what of which pages, and what the event shall say")]
    fn change_all(
        &self,
        vp: &dyn Vp,
        caller: Vtl,
        owner: u32,
        from: &[Kind],
        pages: Reps<'_, Gpn>,
        to: Kind,
        flags: MapGpaFlags,
    ) -> (HvStatus, u16) {
        let result = self.change(owner, from, pages.iter(), to);
        let (status, done) = match result {
            Ok(()) => (HvStatus::SUCCESS, pages.count()),
            Err(status) => (status, pages.start()),
        };
        let code = result.is_err().then_some(Code::MemProtection);
        self.record(Some(vp.index()), caller, What::Protect { pages: GpnRange::of_pages(pages.iter()), flags }, status, code);
        (status, done)
    }

    fn enable_partition_vtl(&self, vp: &dyn Vp, caller: Vtl, input: &EnablePartitionVtl) -> Result<(), HvStatus> {
        let result = self.try_enable_partition_vtl(input);
        let status = result.err().unwrap_or(HvStatus::SUCCESS);
        self.record(Some(vp.index()), caller, What::EnableVtl { target: Vtl::Vtl1 }, status, None);
        result
    }

    fn try_enable_partition_vtl(&self, input: &EnablePartitionVtl) -> Result<(), HvStatus> {
        if input.partition_id != PARTITION_ID_SELF {
            return Err(HvStatus::ACCESS_DENIED);
        }
        if vtl(input.target_vtl)? != Vtl::Vtl1 {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let wants = |flag| input.flags.contains(flag);
        let missing = wants(EnablePartitionVtlFlags::ENABLE_MBEC) && !self.capabilities.mbec
            || wants(EnablePartitionVtlFlags::ENABLE_SUPERVISOR_SHADOW_STACK) && !self.capabilities.shadow_stack
            || wants(EnablePartitionVtlFlags::ENABLE_HARDWARE_HVPT);
        if missing {
            return Err(HvStatus::FEATURE_UNAVAILABLE);
        }
        let mut levels = self.levels.lock();
        if levels.vtl1 {
            return Err(HvStatus::VTL_ALREADY_ENABLED);
        }
        if levels.end_of_boot {
            return Err(HvStatus::ACCESS_DENIED);
        }
        levels.vtl1 = true;
        levels.mbec = wants(EnablePartitionVtlFlags::ENABLE_MBEC);
        levels.shadow_stack = wants(EnablePartitionVtlFlags::ENABLE_SUPERVISOR_SHADOW_STACK);
        Ok(())
    }

    fn enable_vp_vtl(&self, vp: &dyn Vp, caller: Vtl, input: &StartVpVtl) -> Result<(), HvStatus> {
        if input.partition_id != PARTITION_ID_SELF {
            return Err(HvStatus::ACCESS_DENIED);
        }
        if vtl(input.target_vtl)? != Vtl::Vtl1 {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let index = if input.vp_index == VP_INDEX_SELF { vp.index() } else { input.vp_index };
        let mut levels = self.levels.lock();
        if !levels.vtl1 {
            return Err(HvStatus::INVALID_VTL_STATE);
        }
        let first = !levels.vps.contains(&true);
        let slot = usize::try_from(index).ok().and_then(|index| levels.vps.get_mut(index)).ok_or(HvStatus::INVALID_VP_INDEX)?;
        if *slot {
            return Err(HvStatus::VTL_ALREADY_ENABLED);
        }
        // VTL0 starts VTL1 once, where it runs itself; VTL1 starts itself on the others
        if caller == Vtl::Vtl0 && !(first && index == vp.index()) {
            return Err(HvStatus::ACCESS_DENIED);
        }
        *slot = true;
        Ok(())
    }

    fn start_vp(&self, caller: Vtl, input: &StartVpVtl) -> Result<(), HvStatus> {
        if input.partition_id != PARTITION_ID_SELF || vtl(input.target_vtl)? > caller {
            return Err(HvStatus::ACCESS_DENIED);
        }
        let levels = self.levels.lock();
        if caller == Vtl::Vtl0 && levels.config.deny_lower_vtl_startup() {
            return Err(HvStatus::ACCESS_DENIED);
        }
        let known = usize::try_from(input.vp_index).is_ok_and(|index| index < levels.vps.len());
        if known { Ok(()) } else { Err(HvStatus::INVALID_VP_INDEX) }
    }

    fn has_vtl1(&self, vp: u32) -> Result<(), HvStatus> {
        let levels = self.levels.lock();
        let has = usize::try_from(vp).ok().and_then(|index| levels.vps.get(index)) == Some(&true);
        if has { Ok(()) } else { Err(HvStatus::INVALID_VTL_STATE) }
    }

    fn register(&self, vp: &dyn Vp, caller: Vtl, header: &VpRegisters, name: RegisterName) -> Result<RegisterValue, HvStatus> {
        self.may_reach_registers(vp, caller, header)?;
        let levels = self.levels.lock();
        let set = levels.vps.iter().fold(vtl_bit(Vtl::Vtl0), |set, has| if *has { set | vtl_bit(Vtl::Vtl1) } else { set });
        let value = match name {
            RegisterName::VSM_CAPABILITIES => {
                VsmCapabilities(0)
                    .with_mbec_vtl_mask(if self.capabilities.mbec { vtl_bit(Vtl::Vtl0) } else { 0 })
                    .with_deny_lower_vtl_startup(true)
                    .with_supervisor_shadow_stack(self.capabilities.shadow_stack)
                    .0
            }
            RegisterName::VSM_PARTITION_STATUS => {
                let vtl1 = |on: bool| if on { vtl_bit(Vtl::Vtl1) } else { 0 };
                VsmPartitionStatus(0)
                    .with_enabled_vtl_set(vtl_bit(Vtl::Vtl0) | vtl1(levels.vtl1))
                    .with_maximum_vtl(Vtl::Vtl1.number())
                    .with_mbec_enabled_vtl_set(vtl1(levels.mbec))
                    .with_shadow_stack_enabled_vtl_set(u8::from(levels.shadow_stack) << Vtl::Vtl1.number())
                    .0
            }
            RegisterName::VSM_VP_STATUS => {
                VsmVpStatus(0).with_active_vtl(caller.number()).with_active_mbec(levels.mbec).with_enabled_vtl_set(set).0
            }
            RegisterName::VSM_PARTITION_CONFIG if caller == Vtl::Vtl1 => levels.config.0,
            RegisterName::VSM_VP_SECURE_CONFIG_VTL0 if caller == Vtl::Vtl1 => {
                if levels.mbec {
                    VsmVpSecureConfig::MBEC_ENABLED.0
                } else {
                    0
                }
            }
            RegisterName::CR_INTERCEPT_CONTROL if caller == Vtl::Vtl1 => levels.intercepts.0,
            RegisterName::CR_INTERCEPT_CR0_MASK if caller == Vtl::Vtl1 => levels.cr0_mask,
            RegisterName::CR_INTERCEPT_CR4_MASK if caller == Vtl::Vtl1 => levels.cr4_mask,
            name if is_vsm(name) => return Err(HvStatus::ACCESS_DENIED),
            name => return vp.register(name.0).map(RegisterValue),
        };
        Ok(value.into())
    }

    fn set_register(
        &self,
        vp: &mut dyn Vp,
        caller: Vtl,
        header: &VpRegisters,
        name: RegisterName,
        value: RegisterValue,
    ) -> Result<(), HvStatus> {
        self.may_reach_registers(vp, caller, header)?;
        if !is_vsm(name) {
            return vp.set_register(name.0, value.0);
        }
        if caller != Vtl::Vtl1 {
            return Err(HvStatus::ACCESS_DENIED);
        }
        let value = value.as_u64().ok_or(HvStatus::INVALID_REGISTER_VALUE)?;
        let mut levels = self.levels.lock();
        if levels.end_of_boot {
            return Err(HvStatus::ACCESS_DENIED);
        }
        match name {
            RegisterName::VSM_PARTITION_CONFIG => {
                let (old, new) = (levels.config, VsmPartitionConfig(value));
                if new.unknown() != 0 || old.enable_vtl_protection() && !new.enable_vtl_protection() {
                    return Err(HvStatus::INVALID_REGISTER_VALUE);
                }
                let mask = new.default_protection();
                let required = MapGpaFlags::READABLE | MapGpaFlags::WRITABLE;
                // written once, with the switch; and what is data may never be executed by the kernel
                let fixed = old.enable_vtl_protection() && mask != old.default_protection();
                let sound = mask.contains(required) && !mask.contains(MapGpaFlags::KERNEL_EXECUTABLE);
                if new.enable_vtl_protection() && (fixed || !sound) {
                    return Err(HvStatus::INVALID_REGISTER_VALUE);
                }
                levels.config = new;
            }
            RegisterName::CR_INTERCEPT_CONTROL if CrInterceptControl(value).unknown() == 0 => levels.intercepts = CrInterceptControl(value),
            RegisterName::CR_INTERCEPT_CONTROL => return Err(HvStatus::INVALID_REGISTER_VALUE),
            RegisterName::CR_INTERCEPT_CR0_MASK => levels.cr0_mask = value,
            RegisterName::CR_INTERCEPT_CR4_MASK => levels.cr4_mask = value,
            _ => return Err(HvStatus::INVALID_PARAMETER),
        }
        Ok(())
    }

    /// A level reaches its own registers and those of levels below, on the processor that it runs on.
    fn may_reach_registers(&self, vp: &dyn Vp, caller: Vtl, header: &VpRegisters) -> Result<(), HvStatus> {
        if header.partition_id != PARTITION_ID_SELF || header.target_vtl.resolve(caller)? > caller {
            return Err(HvStatus::ACCESS_DENIED);
        }
        if header.vp_index != VP_INDEX_SELF && header.vp_index != vp.index() {
            return Err(HvStatus::INVALID_VP_INDEX);
        }
        Ok(())
    }

    fn check_pages(&self, caller: Vtl, header: &CheckSparseGpaPageVtlAccess, pages: Reps<'_, Gpn>, output: &mut [u8]) -> (HvStatus, u16) {
        let target = match header.target_vtl.resolve(caller) {
            Ok(target) if header.partition_id == PARTITION_ID_SELF && target <= caller => target,
            Ok(_) => return (HvStatus::ACCESS_DENIED, pages.start()),
            Err(status) => return (status, pages.start()),
        };
        let desired = MapGpaFlags(u32::from(header.desired_access));
        each(&pages, |gpn, index| {
            let kind = self.kind(gpn).ok_or(HvStatus::INVALID_PARAMETER)?;
            let denied = Access::ALL.into_iter().filter(|a| desired.allows(*a) && !kind.allows(target).allows(*a));
            let denied = denied.fold(MapGpaFlags::NONE, |all, a| all | a.needs());
            let result = if denied == MapGpaFlags::NONE {
                VtlAccessResult(0)
            } else {
                VtlAccessResult(0)
                    .with_code(VtlAccessResultCode::MEMORY_INTERCEPT)
                    .with_denied_access(u8::try_from(denied.0).unwrap_or(u8::MAX))
                    .with_intercepting_vtl(Vtl::Vtl1.number())
            };
            result.put(output, usize::from(index).saturating_mul(VtlAccessResult::SIZE));
            Ok(())
        })
    }
}

/// Does the elements that are not done, up to the first that fails.
fn each<T: Wire>(reps: &Reps<'_, T>, mut one: impl FnMut(T, u16) -> Result<(), HvStatus>) -> (HvStatus, u16) {
    for (element, index) in reps.iter().zip(reps.start()..) {
        if let Err(status) = one(element, index) {
            return (status, index);
        }
    }
    (HvStatus::SUCCESS, reps.count())
}

/// Registers of the partition's levels, which are the engine's and not the VMM's.
fn is_vsm(name: RegisterName) -> bool {
    matches!(name.0 >> 16, 0xD | 0xE)
}
