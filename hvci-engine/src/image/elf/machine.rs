//! Names of ELF machines and object types (gABI chapter 4, `e_machine` and `e_type`).

/// Name of an `e_machine`, as the ABI documents have it: those that Linux modules exist for. `0x1234` for any other.
pub(super) fn machine(e_machine: u16) -> String {
    let name = match e_machine {
        2 => "SPARC",
        3 => "i386",
        4 => "m68k",
        8 => "MIPS",
        15 => "PA-RISC",
        20 => "PowerPC",
        21 => "PowerPC64",
        22 => "S390",
        40 => "ARM",
        42 => "SuperH",
        43 => "SPARCv9",
        50 => "IA-64",
        62 => "x86-64",
        183 => "AArch64",
        243 => "RISC-V",
        247 => "BPF",
        258 => "LoongArch",
        _ => return format!("{e_machine:#06x}"),
    };
    name.to_owned()
}

/// Name of an `e_type`, without `ET_`.
pub(super) fn object_type(e_type: u16) -> String {
    let name = match e_type {
        0 => "NONE",
        1 => "REL",
        2 => "EXEC",
        3 => "DYN",
        4 => "CORE",
        _ => return format!("{e_type:#06x}"),
    };
    name.to_owned()
}
