//! The processor as the engine sees it: [`Vp`], registers by `HV_REGISTER_NAME`.
//!
//! Segments and tables are `HvX64SegmentRegister` and `HvX64TableRegister` (openvmm `vm/hv1/hvdef/src/lib.rs`), little-endian in the value.
//! Attributes of segments are those that 64-bit mode implies; what is set there is not looked at.

use hvci_engine::{host::Vp, status::HvStatus};

use crate::{
    cpu::{
        Cpu,
        registers::{Registers, Segment, Table, efer, flag},
    },
    paging::{entry, is_canonical},
    register_name as name,
};

/// P, S and the type of a segment; its bits of the privilege level are 5 and 6.
const CODE: u128 = 0xa09b;
const DATA: u128 = 0xc093;
const LOCAL_TABLE: u128 = 0x0082;
const TASK: u128 = 0x008b;

impl Vp for Cpu {
    fn index(&self) -> u32 {
        self.index()
    }

    fn register(&self, name: u32) -> Result<u128, HvStatus> {
        let registers = self.registers();
        let dpl = u128::from(registers.cpl()) << 5;
        Ok(match name {
            name::ES => segment(registers.es, DATA | dpl),
            name::CS => segment(registers.cs, CODE | dpl),
            name::SS => segment(registers.ss, DATA | dpl),
            name::DS => segment(registers.ds, DATA | dpl),
            name::FS => segment(registers.fs, DATA | dpl),
            name::GS => segment(registers.gs, DATA | dpl),
            name::LDTR => segment(registers.ldtr, LOCAL_TABLE),
            name::TR => segment(registers.tr, TASK),
            name::IDTR => table(registers.idtr),
            name::GDTR => table(registers.gdtr),
            _ => {
                let mut copy = *registers;
                u128::from(*word(&mut copy, name).ok_or(HvStatus::INVALID_PARAMETER)?)
            }
        })
    }

    fn set_register(&mut self, name: u32, value: u128) -> Result<(), HvStatus> {
        if matches!(name, name::CR0 | name::CR3 | name::CR4 | name::EFER) {
            self.flush_translations();
        }
        let registers = self.registers_mut();
        let selected = Segment {
            base: (value & 0xffff_ffff_ffff_ffff) as u64,
            limit: (value >> 64 & 0xffff_ffff) as u32,
            selector: (value >> 96 & 0xffff) as u16,
        };
        let described = Table { limit: (value >> 48 & 0xffff) as u16, base: (value >> 64) as u64 };
        match name {
            name::ES..=name::TR if !is_canonical(selected.base) => return Err(HvStatus::INVALID_REGISTER_VALUE),
            name::IDTR | name::GDTR if !is_canonical(described.base) => return Err(HvStatus::INVALID_REGISTER_VALUE),
            name::ES => registers.es = selected,
            name::CS => registers.cs = selected,
            name::SS => registers.ss = selected,
            name::DS => registers.ds = selected,
            name::FS => registers.fs = selected,
            name::GS => registers.gs = selected,
            name::LDTR => registers.ldtr = selected,
            name::TR => registers.tr = selected,
            name::IDTR => registers.idtr = described,
            name::GDTR => registers.gdtr = described,
            _ => {
                let register = word(registers, name).ok_or(HvStatus::INVALID_PARAMETER)?;
                let value = u64::try_from(value).map_err(|_| HvStatus::INVALID_REGISTER_VALUE)?;
                *register = valid(name, value).ok_or(HvStatus::INVALID_REGISTER_VALUE)?;
            }
        }
        Ok(())
    }

    fn inject(&mut self, vector: u8, error_code: Option<u32>) {
        self.inject(vector, error_code);
    }
}

/// A register of 64 bits.
fn word(registers: &mut Registers, name: u32) -> Option<&mut u64> {
    Some(match name {
        name::RAX..=name::R15 => registers.general.gpr.get_mut(usize::try_from(name - name::RAX).ok()?)?,
        name::RIP => &mut registers.general.rip,
        name::RFLAGS => &mut registers.general.rflags,
        name::CR0 => &mut registers.cr0,
        name::CR2 => &mut registers.cr2,
        name::CR3 => &mut registers.cr3,
        name::CR4 => &mut registers.cr4,
        name::CR8 => &mut registers.cr8,
        name::XFEM => &mut registers.xcr0,
        name::EFER => &mut registers.efer,
        name::KERNEL_GS_BASE => &mut registers.kernel_gs_base,
        name::APIC_BASE => &mut registers.apic_base,
        name::PAT => &mut registers.pat,
        name::SYSENTER_CS => &mut registers.sysenter_cs,
        name::SYSENTER_EIP => &mut registers.sysenter_eip,
        name::SYSENTER_ESP => &mut registers.sysenter_esp,
        name::STAR => &mut registers.star,
        name::LSTAR => &mut registers.lstar,
        name::CSTAR => &mut registers.cstar,
        name::SFMASK => &mut registers.sfmask,
        name::TSC_AUX => &mut registers.tsc_aux,
        name::MISC_ENABLE => &mut registers.misc_enable,
        _ => return None,
    })
}

/// What a register holds after it is set to `value`; `None` if it cannot.
fn valid(name: u32, value: u64) -> Option<u64> {
    let keep = |fits: bool| fits.then_some(value);
    match name {
        name::RIP | name::LSTAR | name::CSTAR | name::KERNEL_GS_BASE | name::SYSENTER_EIP | name::SYSENTER_ESP => keep(is_canonical(value)),
        name::RFLAGS => keep(value & (flag::VM | 1 << 3 | 1 << 5 | 1 << 15 | !0 << 22) == 0).map(|value| value | flag::FIXED),
        name::CR0 => Registers::cr0_value(value),
        name::CR3 => keep(value & !(entry::ADDRESS | 0xfff) == 0),
        name::CR4 => Registers::cr4_value(value),
        name::CR8 => keep(value < 16),
        name::XFEM => keep(Registers::is_xcr0(value)),
        name::EFER => keep(value & !efer::KNOWN == 0 && value & (efer::LME | efer::LMA) == efer::LME | efer::LMA),
        name::SFMASK | name::TSC_AUX => keep(value >> 32 == 0),
        _ => Some(value),
    }
}

fn segment(segment: Segment, attributes: u128) -> u128 {
    u128::from(segment.base) | u128::from(segment.limit) << 64 | u128::from(segment.selector) << 96 | attributes << 112
}

fn table(table: Table) -> u128 {
    u128::from(table.limit) << 48 | u128::from(table.base) << 64
}
