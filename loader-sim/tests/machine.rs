//! Guest code under the engine: a guest loads a module by a VTL call and calls into it, and attacks of the catalogue
//! (numbers in the names) that a guest can run itself.

use std::sync::{Arc, LazyLock};

use corpus::synth::{
    certificate::{Identity, Template},
    elf,
    key::{Key, KeyKind},
};
use hvci_engine::{
    access::{Access, MapGpaFlags},
    addr::{Gpa, Gpn, GpnRange, Gva, PAGE_SIZE, Vtl},
    event::{Event, What},
    finding::Code,
    host::{Enforcer, Host, Vp},
    load::{Function, Loader},
    signature::{
        catalog::CatalogIndex,
        trust::{Purposes, TrustStore},
    },
    status::HvStatus,
    time::UnixTime,
    vsm::{
        Wire,
        hypercall::{Control, HypercallCode},
        input::{PARTITION_ID_SELF, VP_INDEX_SELF},
    },
};
use iced_x86::{IcedError, code_asm::*};
use loader_sim::{
    cpu::{
        Exit,
        registers::{Registers, Table},
    },
    guest_loader::{self, StubKernel},
    host::{Config, SimHost},
    machine::{Engine, Machine, Stop, View},
    paging::{PageTables, entry},
};
use x509_cert::der::Encode;

/// Where the guest has what; behind each address the GPA.
const KERNEL: (u64, u64) = (0xFFFF_8000_0040_0000, 0x10_000);
const DATA: (u64, u64) = (0xFFFF_8000_0050_0000, 0x20_000);
const STACK: (u64, u64) = (0xFFFF_8000_0060_0000, 0x30_000);
/// Pages that the guest may write and, as far as its own tables go, execute.
const POOL: (u64, u64) = (0xFFFF_8000_0070_0000, 0x40_000);
/// The module: its pages are writable and executable in the guest's tables, which is nobody's business.
const MODULE: (u64, u64) = (0xFFFF_FFFF_C040_0000, 0x100_000);
/// A second mapping of the alias of the module's first page.
const ALIAS: u64 = 0xFFFF_8000_0080_0000;
const PAGES: u64 = 0x400;
/// Handlers of #GP and #PF store this and the vector, and halt.
const CAUGHT: u64 = 0xCA06_0000;
/// General registers by number.
const RAX: usize = 0;
const R15: usize = 15;

static KEY: LazyLock<Identity> =
    LazyLock::new(|| Template::leaf("CN=module key", &[]).issue(&Key::derive(7, "module", KeyKind::Rsa(2048)).unwrap(), None).unwrap());

struct Guest {
    host: Arc<SimHost>,
    engine: Engine,
    machine: Machine,
    tables: PageTables,
}

fn assemble(address: u64, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    build(&mut assembler).unwrap();
    assembler.assemble(address).unwrap()
}

/// A module that is signed by [`KEY`], and that returns at its first instruction.
fn module() -> Vec<u8> {
    let mut module = elf::module("good", false).unwrap();
    // the synthesiser's code is random; its first function shall do nothing but return
    let text = guest_loader::place(&module, Gva(MODULE.0)).unwrap().remove(&MODULE.0).unwrap();
    let at = module.windows(32).position(|w| *w == text[..32]).unwrap();
    module[at] = 0xC3;
    elf::signed(&module, &elf::signing(&KEY)).unwrap()
}

impl Guest {
    fn new() -> Self {
        let config = Config { pages: PAGES, aliases: vec![Gpn(MODULE.1 / PAGE_SIZE)], ..Config::default() };
        let (host, partition) = SimHost::with_partition(&config).unwrap();
        let mut trust = TrustStore::builtin();
        trust.add_der(&KEY.certificate.to_der().unwrap(), Purposes::MODULE, "test").unwrap();
        let loader = Loader::new(Arc::clone(&partition), trust, CatalogIndex::default(), None, Box::new(StubKernel));
        let time = UnixTime::parse("2026-11-24").unwrap();
        let engine = Engine { partition, loader: Arc::new(loader), time };

        let mut bus = View::new(&host, 0);
        let mut tables = PageTables::new(&mut bus, GpnRange::new(Gpn(0x200), 64).unwrap()).unwrap();
        let (p, w, nx) = (entry::PRESENT, entry::WRITABLE, entry::NO_EXECUTE);
        for ((address, gpa), pages, bits) in [
            (KERNEL, 2, p),
            (DATA, 8, p | w | nx),
            (STACK, 2, p | w | nx),
            (POOL, 4, p | w),
            (MODULE, 16, p | w),
            ((ALIAS, PAGES * PAGE_SIZE), 1, p | w),
        ] {
            tables.map(&mut bus, address, Gpa(gpa), pages * PAGE_SIZE, bits).unwrap();
        }
        let mut registers = Registers::kernel(KERNEL.0, STACK.0 + 0x1F00, tables.root().0);
        registers.idtr = Table { base: DATA.0 + 0x1000, limit: 0xFFF };
        let machine = Machine::new(Arc::clone(&host), Some(engine.clone()), [registers, registers]);
        let guest = Self { host, engine, machine, tables };
        for vector in [6_u8, 13, 14] {
            let handler = KERNEL.0 + 0x1000 + u64::from(vector) * 0x20;
            let low = (handler & 0xFFFF) | 0x10 << 16 | 0x8E00 << 32 | (handler >> 16 & 0xFFFF) << 48;
            let gate = u128::from(low) | u128::from(handler >> 32) << 64;
            guest.write(DATA.1 + 0x1000 + u64::from(vector) * 16, &gate.to_le_bytes());
            let code = assemble(handler, |a| {
                a.mov(r15, CAUGHT | u64::from(vector))?;
                a.hlt()
            });
            guest.write(KERNEL.1 + 0x1000 + u64::from(vector) * 0x20, &code);
        }
        // what the guest's kernel is made of was verified when it was booted
        let pages: Vec<_> = [0, 1].map(|page| (Gpn(KERNEL.1 / PAGE_SIZE + page), hvci_engine::frames::Kind::Code)).to_vec();
        guest.engine.partition.transform(u32::MAX, &pages, || Ok(())).unwrap();
        let mut guest = guest;
        guest.enable_vtl1();
        guest
    }

    fn write(&self, gpa: u64, bytes: &[u8]) {
        for (chunk, at) in bytes.chunks(PAGE_SIZE as usize).zip((gpa..).step_by(PAGE_SIZE as usize)) {
            self.host.write(Gpa(at), chunk).unwrap();
        }
    }

    fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.host.read(Gpa(gpa), &mut bytes).unwrap();
        bytes
    }

    fn enable_vtl1(&mut self) {
        let cpu = self.machine.cpu(0).unwrap();
        let mut input = [0; 16];
        PARTITION_ID_SELF.put(&mut input, 0);
        (input[8], input[9]) = (1, 1);
        let simple = |code| Control::simple(code).0;
        let enabled = self.engine.partition.hypercall(cpu, Vtl::Vtl0, simple(HypercallCode::ENABLE_PARTITION_VTL), &input, &mut []);
        assert_eq!(enabled.0, HvStatus::SUCCESS);
        let mut input = [0; 0xF0];
        PARTITION_ID_SELF.put(&mut input, 0);
        VP_INDEX_SELF.put(&mut input, 8);
        input[12] = 1;
        let enabled = self.engine.partition.hypercall(cpu, Vtl::Vtl0, simple(HypercallCode::ENABLE_VP_VTL), &input, &mut []);
        assert_eq!(enabled.0, HvStatus::SUCCESS);
        self.engine.partition.end_of_boot();
    }

    /// Runs code of the guest's kernel on a processor until it halts; what R15 holds then.
    fn run(&mut self, vp: u32, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
        // as if it had been there when the kernel was verified
        let code = assemble(KERNEL.0, |a| {
            build(a)?;
            a.hlt()
        });
        assert!(code.len() < 0x1000);
        self.write(KERNEL.1, &code);
        let general = &mut self.machine.cpu(vp).unwrap().registers_mut().general;
        (general.rip, general.gpr[R15], general.gpr[4]) = (KERNEL.0, 0, STACK.0 + 0x1F00);
        assert_eq!(self.machine.run(vp, 10_000).unwrap(), Stop::Exit(Exit::Halt));
        self.machine.cpu(vp).unwrap().registers().general.gpr[R15]
    }

    /// A VTL call with this argument block, by code of the guest's; the status.
    fn call(&mut self, function: Function, arguments: &[u64]) -> (HvStatus, u64) {
        let block: Vec<u8> = std::iter::once(&function.0).chain(arguments).flat_map(|w| w.to_le_bytes()).collect();
        self.write(DATA.1 + 0x3000, &[0; 104]);
        self.write(DATA.1 + 0x3000, &block);
        self.run(0, |a| {
            a.mov(rcx, Control::simple(HypercallCode::VTL_CALL).0)?;
            a.mov(rdx, DATA.1 + 0x3000)?;
            a.xor(eax, eax)?;
            a.vmcall()
        });
        let cpu = self.machine.cpu(0).unwrap();
        let status = cpu.registers().general.gpr[RAX];
        (HvStatus(status as u16), cpu.register(hvci_engine::vsm::register::RegisterName::RDX.0).unwrap() as u64)
    }

    /// Has the guest load the module; its number.
    fn load(&mut self) -> u64 {
        let file = module();
        let list = |from: u64, count: u64| (from..from + count).flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
        self.write(0x50_000, &file);
        guest_loader::put(&*self.host, &guest_loader::place(&file, Gva(MODULE.0)).unwrap(), Gva(MODULE.0), Gpn(MODULE.1 / PAGE_SIZE))
            .unwrap();
        self.write(DATA.1 + 0x4000, b"good");
        self.write(DATA.1 + 0x5000, &list(0x50, 16));
        self.write(DATA.1 + 0x6000, &list(MODULE.1 / PAGE_SIZE, 16));
        let arguments = [DATA.1 + 0x4000, 4, DATA.1 + 0x5000, file.len() as u64, MODULE.0, DATA.1 + 0x6000, 16];
        let (status, id) = self.call(Function::VALIDATE_MODULE, &arguments);
        assert_eq!(status, HvStatus::SUCCESS);
        id
    }

    /// The events since the last call that refused something.
    fn refused(&self) -> Vec<Event> {
        self.engine.partition.take_events().0.into_iter().filter(|event| event.code.is_some()).collect()
    }
}

fn general_protection(guest: &mut Guest, vp: u32, code: Code, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    guest.refused();
    assert_eq!(guest.run(vp, build), CAUGHT | 13);
    let codes: Vec<Code> = guest.refused().iter().filter_map(|event| event.code).collect();
    assert_eq!(codes, [code], "one event for one attempt");
}

#[test]
fn a_guest_loads_a_module_by_a_vtl_call_and_calls_into_it() {
    let mut guest = Guest::new();
    let enter = |a: &mut CodeAssembler| {
        a.mov(rax, MODULE.0)?;
        a.call(rax)?;
        a.mov(r15, 0x600D_u64)
    };
    assert_eq!(guest.run(0, enter), CAUGHT | 13, "before it is loaded");
    let id = guest.load();
    assert_eq!(guest.run(0, enter), 0x600D);
    assert_eq!(guest.run(1, enter), 0x600D, "on the other processor");
    // attack 24: executed after it is unloaded
    assert_eq!(guest.call(Function::UNLOAD_MODULE, &[id]).0, HvStatus::SUCCESS);
    assert_eq!(guest.run(1, enter), CAUGHT | 13);
    assert_eq!(guest.read(MODULE.1, 16), [0; 16], "and it is gone");
}

#[test]
fn attack_1_a_write_into_sealed_code_faults() {
    let mut guest = Guest::new();
    guest.load();
    let before = guest.read(MODULE.1, 64);
    general_protection(&mut guest, 1, Code::MemAccess, |a| {
        a.mov(rax, MODULE.0 + 0x20)?;
        a.mov(qword_ptr(rax), rax)
    });
    assert_eq!(guest.read(MODULE.1, 64), before);
}

#[test]
fn attack_2_without_write_protection_it_faults_too_and_the_bit_is_pinned() {
    let mut guest = Guest::new();
    guest.load();
    general_protection(&mut guest, 0, Code::MemRegister, |a| {
        a.mov(rax, cr0)?;
        a.and(eax, -0x1_0001)?;
        a.mov(cr0, rax)
    });
    // as if the pin were off
    guest.machine.cpu(0).unwrap().registers_mut().cr0 &= !0x1_0000;
    general_protection(&mut guest, 0, Code::MemAccess, |a| {
        a.mov(rax, MODULE.0)?;
        a.mov(byte_ptr(rax), 0x90)
    });
}

#[test]
fn attack_4_and_5_code_that_the_guest_wrote_is_not_executed() {
    let mut guest = Guest::new();
    guest.load();
    let data = guest.engine.loader.modules_loaded()[0].segments.iter().find(|s| s.name == "data").unwrap().start.0;
    for target in [POOL.0, data] {
        general_protection(&mut guest, 0, Code::MemExecute, |a| {
            a.mov(rax, target)?;
            a.mov(dword_ptr(rax), 0xC3)?;
            a.call(rax)
        });
    }
}

#[test]
fn attack_6_and_7_the_other_page_of_a_sealed_frame_is_sealed() {
    let mut guest = Guest::new();
    guest.load();
    let before = guest.read(MODULE.1, 64);
    general_protection(&mut guest, 1, Code::MemAccess, |a| {
        a.mov(rax, ALIAS)?;
        a.mov(qword_ptr(rax), rax)
    });
    assert_eq!(guest.read(MODULE.1, 64), before);
}

#[test]
fn attack_11_and_12_what_straddles_is_refused_as_a_whole() {
    let mut guest = Guest::new();
    // behind the sealed page of code one that is the guest's
    guest.load();
    let kernel = KERNEL.1 / PAGE_SIZE;
    let mut bus = View::new(&guest.host, 0);
    // the pool's last page, then the module's first
    guest.tables.map(&mut bus, POOL.0 + 4 * PAGE_SIZE, Gpa(MODULE.1), PAGE_SIZE, entry::PRESENT | entry::WRITABLE).unwrap();
    // the kernel's first page, then one of the pool
    guest.tables.map(&mut bus, POOL.0 + 8 * PAGE_SIZE, Gpa(kernel * PAGE_SIZE), PAGE_SIZE, entry::PRESENT).unwrap();
    guest.tables.map(&mut bus, POOL.0 + 9 * PAGE_SIZE, Gpa(POOL.1), PAGE_SIZE, entry::PRESENT | entry::WRITABLE).unwrap();
    let before = (guest.read(POOL.1 + 4 * PAGE_SIZE - 8, 8), guest.read(MODULE.1, 8));
    general_protection(&mut guest, 0, Code::MemAccess, |a| {
        a.mov(rax, POOL.0 + 4 * PAGE_SIZE - 4)?;
        a.mov(qword_ptr(rax), rax)
    });
    assert_eq!((guest.read(POOL.1 + 4 * PAGE_SIZE - 8, 8), guest.read(MODULE.1, 8)), before);
    // two bytes of a five byte jump in verified code, three in what the guest wrote
    guest.write(KERNEL.1 + 0xFFE, &[0xE9, 0]);
    general_protection(&mut guest, 0, Code::MemExecute, |a| {
        a.mov(rax, POOL.0 + 8 * PAGE_SIZE + 0xFFE)?;
        a.jmp(rax)
    });
}

#[test]
fn attack_18_a_processor_that_wrote_before_the_lock_cannot_write_after_the_grant() {
    let mut guest = Guest::new();
    let write = |a: &mut CodeAssembler| {
        a.mov(rax, MODULE.0 + 0x20)?;
        a.mov(qword_ptr(rax), rax)?;
        a.mov(r15, 0x600D_u64)
    };
    // its TLB knows the page as writable
    assert_eq!(guest.run(1, write), 0x600D);
    assert!(guest.host.access(1, Gpa(MODULE.1), Access::Write).is_ok());
    guest.load();
    general_protection(&mut guest, 1, Code::MemAccess, write);
}

#[test]
fn attack_28_a_hypercall_with_a_sealed_or_secret_page_is_an_intercept_and_not_executed() {
    let mut guest = Guest::new();
    guest.load();
    guest.engine.partition.transform(u32::MAX, &[(Gpn(0x90), hvci_engine::frames::Kind::SecureOnly)], || Ok(())).unwrap();
    let get = Control::rep(HypercallCode::GET_VP_REGISTERS, 1);
    let mut input = [0; 20];
    PARTITION_ID_SELF.put(&mut input, 0);
    VP_INDEX_SELF.put(&mut input, 8);
    hvci_engine::vsm::register::RegisterName::RIP.0.put(&mut input, 16);
    guest.write(DATA.1, &input);
    let call = |from: u64, to: u64| {
        move |a: &mut CodeAssembler| {
            a.mov(rcx, get.0)?;
            a.mov(rdx, from)?;
            a.mov(r8, to)?;
            a.vmcall()?;
            a.mov(r15, 0x600D_u64)
        }
    };
    assert_eq!(guest.run(0, call(DATA.1, DATA.1 + 0x800)), 0x600D);
    assert_ne!(guest.read(DATA.1 + 0x800, 8), [0; 8]);
    let before = guest.read(MODULE.1, 64);
    general_protection(&mut guest, 0, Code::MemAccess, call(DATA.1, MODULE.1));
    assert_eq!(guest.read(MODULE.1, 64), before);
    general_protection(&mut guest, 0, Code::MemSecure, call(0x90_000, DATA.1 + 0x800));
}

#[test]
fn attack_87_a_vtl_call_with_reserved_bits_is_an_undefined_opcode() {
    let mut guest = Guest::new();
    let call = |input: u64| {
        move |a: &mut CodeAssembler| {
            a.mov(rcx, Control::simple(HypercallCode::VTL_CALL).0)?;
            a.mov(rdx, DATA.1 + 0x3000)?;
            a.mov(rax, input)?;
            a.vmcall()?;
            a.mov(r15, 0x600D_u64)
        }
    };
    assert_eq!(guest.run(0, call(0)), 0x600D);
    assert_eq!(guest.run(0, call(1)), CAUGHT | 6);
    assert_eq!(guest.run(1, call(0)), CAUGHT | 6, "VTL1 is not enabled on that processor");
}

#[test]
fn attack_71_a_page_of_vtl1_is_not_read() {
    let mut guest = Guest::new();
    guest.write(POOL.1, b"secret");
    guest.engine.partition.transform(u32::MAX, &[(Gpn(POOL.1 / PAGE_SIZE), hvci_engine::frames::Kind::SecureOnly)], || Ok(())).unwrap();
    general_protection(&mut guest, 0, Code::MemSecure, |a| {
        a.mov(rax, POOL.0)?;
        a.mov(rbx, qword_ptr(rax))
    });
    assert_ne!(guest.machine.cpu(0).unwrap().registers().general.gpr[3].to_le_bytes()[..6], *b"secret");
}

#[test]
fn the_same_program_gives_the_same_events() {
    let events = || {
        let mut guest = Guest::new();
        guest.load();
        for vp in [1, 0, 1] {
            guest.run(vp, |a| {
                a.mov(rax, MODULE.0)?;
                a.mov(qword_ptr(rax), rax)
            });
        }
        let timeless = |event: Event| {
            let what = match event.what {
                What::Load { name, pages, digest, .. } => What::Load { name, pages, digest, phases: Vec::new() },
                other => other,
            };
            Event { at: 0, what, ..event }
        };
        guest.engine.partition.take_events().0.into_iter().map(timeless).collect::<Vec<_>>()
    };
    let first = events();
    assert!(first.len() >= 5);
    assert_eq!(first, events());
}

#[test]
fn without_an_engine_everything_goes() {
    let guest = Guest::new();
    let host = Arc::new(SimHost::new(&Config { pages: PAGES, ..Config::default() }).unwrap());
    for gpn in (0..PAGES).map(Gpn) {
        let mut page = vec![0; PAGE_SIZE as usize];
        guest.host.read(gpn.gpa().unwrap(), &mut page).unwrap();
        host.write(gpn.gpa().unwrap(), &page).unwrap();
    }
    let code = assemble(KERNEL.0, |a| {
        a.mov(rax, POOL.0)?;
        a.mov(dword_ptr(rax), 0xC3)?;
        a.call(rax)?;
        a.mov(r15, 0x600D_u64)?;
        a.hlt()
    });
    host.write(Gpa(KERNEL.1), &code).unwrap();
    let registers = Registers::kernel(KERNEL.0, STACK.0 + 0x1F00, guest.tables.root().0);
    let mut machine = Machine::new(Arc::clone(&host), None, [registers]);
    assert_eq!(machine.run(0, 100), Ok(Stop::Exit(Exit::Halt)));
    assert_eq!(machine.cpu(0).unwrap().registers().general.gpr[R15], 0x600D);
    assert!(host.permission(Vtl::Vtl0, Gpn(0x40)).contains(MapGpaFlags::KERNEL_EXECUTABLE));
}
