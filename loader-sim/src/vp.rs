//! The processor as the engine sees it: [`Vp`], registers by `HV_REGISTER_NAME`.
//!
//! Attributes of segments are those that 64-bit mode implies; what is set there is not looked at.

use hvci_engine::{
    host::Vp,
    status::HvStatus,
    vsm::register::{RegisterName as Name, RegisterValue, SegmentRegister, TableRegister},
};

use crate::{
    cpu::{
        Cpu,
        registers::{Registers, Segment, Table, efer, flag},
    },
    paging::{entry, is_canonical},
};

/// Attributes of segments, but for the privilege level in bits 5 and 6.
const CODE: u16 = 0xa09b;
const DATA: u16 = 0xc093;
const LOCAL_TABLE: u16 = 0x0082;
const TASK: u16 = 0x008b;

impl Vp for Cpu {
    fn index(&self) -> u32 {
        self.index()
    }

    fn register(&self, name: u32) -> Result<u128, HvStatus> {
        // the accessors below take registers that may be written
        let mut registers = *self.registers();
        let name = Name(name);
        let dpl = u16::from(registers.cpl()) << 5;
        let value = if let Some(word) = word(&mut registers, name) {
            RegisterValue::from(*word)
        } else if let Some(Segment { selector, base, limit }) = segment(&mut registers, name).copied() {
            let attributes = match name {
                Name::CS => CODE | dpl,
                Name::LDTR => LOCAL_TABLE,
                Name::TR => TASK,
                _ => DATA | dpl,
            };
            SegmentRegister { base, limit, selector, attributes }.into()
        } else if let Some(Table { base, limit }) = table(&mut registers, name).copied() {
            TableRegister { base, limit, pad: [0; 6] }.into()
        } else {
            return Err(HvStatus::INVALID_PARAMETER);
        };
        Ok(value.0)
    }

    fn set_register(&mut self, name: u32, value: u128) -> Result<(), HvStatus> {
        let (name, value) = (Name(name), RegisterValue(value));
        let registers = self.registers_mut();
        let fits = |base| if is_canonical(base) { Ok(()) } else { Err(HvStatus::INVALID_REGISTER_VALUE) };
        if let Some(word) = word(registers, name) {
            *word = value.as_u64().and_then(|value| valid(name, value)).ok_or(HvStatus::INVALID_REGISTER_VALUE)?;
        } else if let Some(segment) = segment(registers, name) {
            let SegmentRegister { base, limit, selector, .. } = value.segment();
            fits(base)?;
            *segment = Segment { selector, base, limit };
        } else if let Some(table) = table(registers, name) {
            let TableRegister { base, limit, .. } = value.table();
            fits(base)?;
            *table = Table { base, limit };
        } else {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        if matches!(name, Name::CR0 | Name::CR3 | Name::CR4 | Name::EFER) {
            self.flush_translations();
        }
        Ok(())
    }

    fn inject(&mut self, vector: u8, error_code: Option<u32>) {
        self.inject(vector, error_code);
    }
}

/// A register of 64 bits.
fn word(registers: &mut Registers, name: Name) -> Option<&mut u64> {
    if let Some(number) = name.0.checked_sub(Name::RAX.0).filter(|number| *number < 16) {
        return registers.general.gpr.get_mut(usize::try_from(number).ok()?);
    }
    Some(match name {
        Name::RIP => &mut registers.general.rip,
        Name::RFLAGS => &mut registers.general.rflags,
        Name::CR0 => &mut registers.cr0,
        Name::CR2 => &mut registers.cr2,
        Name::CR3 => &mut registers.cr3,
        Name::CR4 => &mut registers.cr4,
        Name::CR8 => &mut registers.cr8,
        Name::XCR0 => &mut registers.xcr0,
        Name::EFER => &mut registers.efer,
        Name::KERNEL_GS_BASE => &mut registers.kernel_gs_base,
        Name::APIC_BASE => &mut registers.apic_base,
        Name::PAT => &mut registers.pat,
        Name::SYSENTER_CS => &mut registers.sysenter_cs,
        Name::SYSENTER_EIP => &mut registers.sysenter_eip,
        Name::SYSENTER_ESP => &mut registers.sysenter_esp,
        Name::STAR => &mut registers.star,
        Name::LSTAR => &mut registers.lstar,
        Name::CSTAR => &mut registers.cstar,
        Name::SFMASK => &mut registers.sfmask,
        Name::TSC_AUX => &mut registers.tsc_aux,
        Name::MISC_ENABLE => &mut registers.misc_enable,
        _ => return None,
    })
}

fn segment(registers: &mut Registers, name: Name) -> Option<&mut Segment> {
    Some(match name {
        Name::ES => &mut registers.es,
        Name::CS => &mut registers.cs,
        Name::SS => &mut registers.ss,
        Name::DS => &mut registers.ds,
        Name::FS => &mut registers.fs,
        Name::GS => &mut registers.gs,
        Name::LDTR => &mut registers.ldtr,
        Name::TR => &mut registers.tr,
        _ => return None,
    })
}

fn table(registers: &mut Registers, name: Name) -> Option<&mut Table> {
    match name {
        Name::IDTR => Some(&mut registers.idtr),
        Name::GDTR => Some(&mut registers.gdtr),
        _ => None,
    }
}

/// What a register holds after it is set to `value`; `None` if it cannot.
fn valid(name: Name, value: u64) -> Option<u64> {
    let keep = |fits: bool| fits.then_some(value);
    match name {
        Name::RIP | Name::LSTAR | Name::CSTAR | Name::KERNEL_GS_BASE | Name::SYSENTER_EIP | Name::SYSENTER_ESP => keep(is_canonical(value)),
        Name::RFLAGS => keep(value & (flag::VM | 1 << 3 | 1 << 5 | 1 << 15 | !0 << 22) == 0).map(|value| value | flag::FIXED),
        Name::CR0 => Registers::cr0_value(value),
        Name::CR3 => keep(value & !(entry::ADDRESS | 0xfff) == 0),
        Name::CR4 => Registers::cr4_value(value),
        Name::CR8 => keep(value < 16),
        Name::XCR0 => keep(Registers::is_xcr0(value)),
        Name::EFER => keep(value & !efer::KNOWN == 0 && value & (efer::LME | efer::LMA) == efer::LME | efer::LMA),
        Name::SFMASK | Name::TSC_AUX => keep(value >> 32 == 0),
        _ => Some(value),
    }
}
