//! The registers of a processor in 64-bit mode, and what values they take (Intel SDM volume 3, chapter 2; volume 4 for MSRs).
//!
//! Segments are what 64-bit mode leaves of them: a selector, whose two low bits in CS are the privilege level, and a base where one counts.

use hvci_engine::vsm::register::RegisterName as Name;

use crate::paging::{Controls, is_canonical};

/// Bits of RFLAGS.
pub mod flag {
    /// Carry.
    pub const CF: u64 = 1;
    /// Always set.
    pub const FIXED: u64 = 1 << 1;
    /// Parity of the low byte.
    pub const PF: u64 = 1 << 2;
    /// Carry out of the low nibble.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Single step.
    pub const TF: u64 = 1 << 8;
    /// Interrupts are taken.
    pub const IF: u64 = 1 << 9;
    /// String instructions go down.
    pub const DF: u64 = 1 << 10;
    /// Signed overflow.
    pub const OF: u64 = 1 << 11;
    /// The privilege level that may do I/O.
    pub const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume.
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode; never set here.
    pub const VM: u64 = 1 << 17;
    /// Alignment check; SMAP is off.
    pub const AC: u64 = 1 << 18;
    /// CPUID exists.
    pub const ID: u64 = 1 << 21;
    /// What arithmetic sets.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
    /// What POPF and IRET change at most, but IF and IOPL.
    pub const LOADED: u64 = STATUS | TF | DF | NT | AC | ID;
}

/// Bits of CR0.
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1;
    /// Always set.
    pub const ET: u64 = 1 << 4;
    /// The kernel too may not write to read-only pages.
    pub const WP: u64 = 1 << 16;
    /// Alignment checks.
    pub const AM: u64 = 1 << 18;
    /// Caches do not write through.
    pub const NW: u64 = 1 << 29;
    /// Caches are off.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
    /// The bits that exist.
    pub const KNOWN: u64 = 0xe005_003f;
}

/// Bits of CR4.
pub mod cr4 {
    /// 64-bit page-table entries.
    pub const PAE: u64 = 1 << 5;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// User mode does not see descriptor tables.
    pub const UMIP: u64 = 1 << 11;
    /// XCR0 exists.
    pub const OSXSAVE: u64 = 1 << 18;
    /// The kernel executes no user page.
    pub const SMEP: u64 = 1 << 20;
    /// The kernel accesses no user page.
    pub const SMAP: u64 = 1 << 21;
    /// The bits that this processor has: not VMXE, LA57, PCIDE, PKE, CET.
    pub const KNOWN: u64 = 0x0035_0fff;
}

/// Bits of EFER.
pub mod efer {
    /// SYSCALL and SYSRET.
    pub const SCE: u64 = 1;
    /// Long mode is wanted.
    pub const LME: u64 = 1 << 8;
    /// Long mode is in force.
    pub const LMA: u64 = 1 << 10;
    /// Entries that forbid execution.
    pub const NXE: u64 = 1 << 11;
    /// The bits that exist.
    pub const KNOWN: u64 = SCE | LME | LMA | NXE;
}

/// Numbers of the registers that RDMSR and WRMSR know.
pub mod msr {
    /// `IA32_APIC_BASE`.
    pub const APIC_BASE: u32 = 0x1b;
    /// `IA32_SYSENTER_CS`.
    pub const SYSENTER_CS: u32 = 0x174;
    /// `IA32_SYSENTER_ESP`.
    pub const SYSENTER_ESP: u32 = 0x175;
    /// `IA32_SYSENTER_EIP`.
    pub const SYSENTER_EIP: u32 = 0x176;
    /// `IA32_MISC_ENABLE`.
    pub const MISC_ENABLE: u32 = 0x1a0;
    /// `IA32_PAT`.
    pub const PAT: u32 = 0x277;
    /// `IA32_EFER`.
    pub const EFER: u32 = 0xc000_0080;
    /// `IA32_STAR`.
    pub const STAR: u32 = 0xc000_0081;
    /// `IA32_LSTAR`.
    pub const LSTAR: u32 = 0xc000_0082;
    /// `IA32_CSTAR`.
    pub const CSTAR: u32 = 0xc000_0083;
    /// `IA32_FMASK`.
    pub const SFMASK: u32 = 0xc000_0084;
    /// `IA32_FS_BASE`.
    pub const FS_BASE: u32 = 0xc000_0100;
    /// `IA32_GS_BASE`.
    pub const GS_BASE: u32 = 0xc000_0101;
    /// `IA32_KERNEL_GS_BASE`.
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    /// `IA32_TSC_AUX`.
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// The number of RSP among the general registers.
pub const RSP: usize = 4;

/// What every instruction may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct General {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of their encoding.
    pub gpr: [u64; 16],
    /// Address of the next instruction.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
}

/// A segment register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// The base; counts for FS, GS, LDTR and TR.
    pub base: u64,
    /// The limit in bytes; counts for LDTR and TR.
    pub limit: u32,
}

/// A register of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Where the table is.
    pub base: u64,
    /// The offset of its last byte. 0: there is no table.
    pub limit: u16,
}

/// All registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named as the registers are")]
pub struct Registers {
    pub general: General,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub xcr0: u64,
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: Table,
    pub idtr: Table,
    pub efer: u64,
    pub kernel_gs_base: u64,
    pub apic_base: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub sysenter_cs: u64,
    pub sysenter_eip: u64,
    pub sysenter_esp: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub tsc_aux: u64,
}

impl Registers {
    /// A kernel that begins at `rip` with the stack at `rsp` and the page tables at `cr3`: 64-bit mode, privilege level 0, CR0.WP, SMEP, SMAP,
    /// NX and SYSCALL on, interrupts off, no descriptor tables.
    pub fn kernel(rip: u64, rsp: u64, cr3: u64) -> Self {
        let mut gpr = [0; 16];
        gpr[RSP] = rsp;
        Self {
            general: General { gpr, rip, rflags: flag::FIXED },
            cr0: cr0::PE | cr0::ET | cr0::WP | cr0::AM | cr0::PG,
            cr2: 0,
            cr3,
            cr4: cr4::PAE | cr4::PGE | cr4::UMIP | cr4::OSXSAVE | cr4::SMEP | cr4::SMAP,
            cr8: 0,
            xcr0: 1,
            es: Segment::default(),
            cs: Segment { selector: 0x10, ..Segment::default() },
            ss: Segment { selector: 0x18, ..Segment::default() },
            ds: Segment::default(),
            fs: Segment::default(),
            gs: Segment::default(),
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: Table::default(),
            idtr: Table::default(),
            efer: efer::SCE | efer::LME | efer::LMA | efer::NXE,
            kernel_gs_base: 0,
            apic_base: 0xfee0_0900,
            pat: 0x0007_0406_0007_0406,
            misc_enable: 1,
            sysenter_cs: 0,
            sysenter_eip: 0,
            sysenter_esp: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            tsc_aux: 0,
        }
    }

    /// The privilege level, 0 to 3.
    pub fn cpl(&self) -> u8 {
        self.cs.selector.to_le_bytes()[0] & 3
    }

    pub(crate) fn is_set(&self, flag: u64) -> bool {
        self.general.rflags & flag != 0
    }

    /// The privilege level that may do I/O and change the interrupt flag.
    pub(crate) fn iopl(&self) -> u8 {
        ((self.general.rflags & flag::IOPL) >> 12) as u8
    }

    pub(crate) fn controls(&self) -> Controls {
        Controls {
            cr3: self.cr3,
            write_protect: self.cr0 & cr0::WP != 0,
            no_execute: self.efer & efer::NXE != 0,
            smep: self.cr4 & cr4::SMEP != 0,
            smap: self.cr4 & cr4::SMAP != 0,
            global: self.cr4 & cr4::PGE != 0,
        }
    }

    /// The register behind an MSR number, and its name; FS and GS stand for their bases. `None` for one that this processor does not have.
    pub(crate) fn msr(&mut self, number: u32) -> Option<Msr<'_>> {
        use Values::{Any, Canonical, Low};
        let (value, name, values) = match number {
            msr::APIC_BASE => (&mut self.apic_base, Name::APIC_BASE, Any),
            msr::SYSENTER_CS => (&mut self.sysenter_cs, Name::SYSENTER_CS, Any),
            msr::SYSENTER_ESP => (&mut self.sysenter_esp, Name::SYSENTER_ESP, Canonical),
            msr::SYSENTER_EIP => (&mut self.sysenter_eip, Name::SYSENTER_EIP, Canonical),
            msr::MISC_ENABLE => (&mut self.misc_enable, Name::MISC_ENABLE, Any),
            msr::PAT => (&mut self.pat, Name::PAT, Values::Pat),
            msr::EFER => (&mut self.efer, Name::EFER, Values::Efer),
            msr::STAR => (&mut self.star, Name::STAR, Any),
            msr::LSTAR => (&mut self.lstar, Name::LSTAR, Canonical),
            msr::CSTAR => (&mut self.cstar, Name::CSTAR, Canonical),
            msr::SFMASK => (&mut self.sfmask, Name::SFMASK, Low),
            msr::FS_BASE => (&mut self.fs.base, Name::FS, Canonical),
            msr::GS_BASE => (&mut self.gs.base, Name::GS, Canonical),
            msr::KERNEL_GS_BASE => (&mut self.kernel_gs_base, Name::KERNEL_GS_BASE, Canonical),
            msr::TSC_AUX => (&mut self.tsc_aux, Name::TSC_AUX, Low),
            _ => return None,
        };
        Some(Msr { value, name, values })
    }

    /// What CR0 is after this is written to it in 64-bit mode; `None` if that is a general-protection fault.
    pub(crate) const fn cr0_value(value: u64) -> Option<u64> {
        let on = cr0::PE | cr0::PG;
        let refused = value >> 32 != 0 || value & on != on || value & (cr0::CD | cr0::NW) == cr0::NW;
        if refused { None } else { Some(value & cr0::KNOWN | cr0::ET) }
    }

    /// As [`cr0_value`](Self::cr0_value), for CR4.
    pub(crate) const fn cr4_value(value: u64) -> Option<u64> {
        if value & !cr4::KNOWN != 0 || value & cr4::PAE == 0 { None } else { Some(value) }
    }

    /// Whether XCR0 may be this: x87 always, SSE, and AVX with SSE.
    pub(crate) const fn is_xcr0(value: u64) -> bool {
        matches!(value, 1 | 3 | 7)
    }
}

/// A model-specific register.
pub(crate) struct Msr<'a> {
    pub(crate) value: &'a mut u64,
    pub(crate) name: Name,
    values: Values,
}

#[derive(Clone, Copy)]
enum Values {
    Any,
    Canonical,
    /// The upper half is zero.
    Low,
    Efer,
    Pat,
}

impl Msr<'_> {
    /// Sets it, as WRMSR does in 64-bit mode; `false` if that is a general-protection fault.
    pub(crate) fn write(self, new: u64) -> bool {
        let fits = match self.values {
            Values::Any => true,
            Values::Canonical => is_canonical(new),
            Values::Low => new >> 32 == 0,
            // long mode cannot be left while paging is on
            Values::Efer => new & !efer::KNOWN == 0 && (new ^ *self.value) & efer::LME == 0,
            Values::Pat => new.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7)),
        };
        if fits {
            *self.value = match self.values {
                Values::Efer => new & !efer::LMA | *self.value & efer::LMA,
                _ => new,
            };
        }
        fits
    }
}
