//! Code that is out of memory or not in it yet: verified when a processor of the guest's executes it, whatever fails on the way.

use std::sync::{Arc, LazyLock};

use corpus::synth::{
    certificate::{Identity, Template},
    elf as synth_elf,
    key::{Key, KeyKind},
};
use hvci_engine::{
    access::Access,
    addr::{Gpa, Gpn, GpnRange, Gva, PAGE_SIZE, Vtl},
    event::What,
    finding::Code,
    frames::Kind,
    host::{Action, Enforcer, Host, MemoryIntercept, Vp},
    load::{File, Function, Loader, Module, NOT_THERE, Place, Refusal, Request},
    signature::{
        catalog::CatalogIndex,
        trust::{Purposes, TrustStore},
    },
    status::HvStatus,
    time::UnixTime,
    vsm::{partition::Partition, register::RegisterName},
};
use loader_sim::{
    attack::{self, THROUGH},
    guest_loader::{self, StubKernel},
    host::{Config, SimHost},
    machine::View,
    paging::{PageTables, entry},
};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, write::Object};

const BASE: Gva = Gva(0xFFFF_FFFF_C040_0000);
/// The second page of its text.
const NEXT: Gva = Gva(BASE.0 + PAGE_SIZE);
const AT: u64 = 0x100;
/// Where page tables are made.
const TABLES: GpnRange = GpnRange { start: Gpn(0x1c0), pages: 0x10 };
/// Pages that the guest has besides.
const SPARE: u64 = 0x80;
const TIME: UnixTime = UnixTime(1_790_000_000);

static KEY: LazyLock<Identity> =
    LazyLock::new(|| Template::leaf("CN=module key", &[]).issue(&Key::derive(7, "module", KeyKind::Rsa(2048)).unwrap(), None).unwrap());
static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| synth_elf::signed(&unsigned(), &synth_elf::signing(&KEY)).unwrap());

/// A module with three pages of code, one of which is only for its initialisation.
fn unsigned() -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let info: &[u8] = b"license=GPL\0name=paged\0vermagic=6.1.0-synthetic SMP preempt mod_unload modversions \0";
    let sections: [(&str, SectionKind, Vec<u8>); 5] = [
        (".text", SectionKind::Text, (0..=250).cycle().take(0x1800).collect()),
        (".init.text", SectionKind::Text, vec![0x90; 0x100]),
        (".data", SectionKind::Data, vec![1; 0x40]),
        (".rodata", SectionKind::ReadOnlyData, vec![2; 0x40]),
        (".modinfo", SectionKind::ReadOnlyData, info.to_vec()),
    ];
    for (name, kind, bytes) in sections {
        let id = object.add_section(Vec::new(), name.into(), kind);
        object.append_section_data(id, &bytes, 16);
    }
    object.write().unwrap()
}

struct Guest {
    host: Arc<SimHost>,
    partition: Arc<Partition>,
    loader: Loader,
}

/// A processor that takes what is injected, and has page tables if somebody made them.
struct Processor {
    cr3: Option<u64>,
    injected: Option<u8>,
}

impl Vp for Processor {
    fn index(&self) -> u32 {
        0
    }

    fn register(&self, name: u32) -> Result<u128, HvStatus> {
        match RegisterName(name) {
            RegisterName::CR3 => self.cr3.map(u128::from).ok_or(HvStatus::INVALID_PARAMETER),
            RegisterName::CR4 => Ok(0),
            _ => Err(HvStatus::INVALID_PARAMETER),
        }
    }

    fn set_register(&mut self, _: u32, _: u128) -> Result<(), HvStatus> {
        Err(HvStatus::INVALID_PARAMETER)
    }

    fn inject(&mut self, vector: u8, _: Option<u32>) {
        self.injected = Some(vector);
    }
}

impl Guest {
    fn new() -> Self {
        use x509_cert::der::Encode;
        let (host, partition) = SimHost::with_partition(&Config { pages: 0x200, ..Config::default() }).unwrap();
        let mut trust = TrustStore::empty();
        trust.add_der(&KEY.certificate.to_der().unwrap(), Purposes::MODULE, "test").unwrap();
        let loader = Loader::new(Arc::clone(&partition), trust, CatalogIndex::default(), None, Box::new(StubKernel));
        Self { host, partition, loader }
    }

    /// Loads the module; pages of code for which `absent` says so are not there.
    fn load(&self, absent: impl Fn(Gva) -> bool) -> Result<Arc<Module>, Refusal> {
        guest_loader::put(&*self.host, &guest_loader::place(&FILE, BASE).unwrap(), BASE, Gpn(AT)).unwrap();
        let page = |at: Gva| Some(Gpn(AT + at.0.checked_sub(BASE.0)? / PAGE_SIZE));
        let pages = |at: Gva| if absent(at) { Some(NOT_THERE) } else { page(at) };
        let request =
            Request { name: "paged", file: File::Private(&FILE), place: Place::Base(BASE), pages: &pages, time: TIME, vp: Some(0) };
        self.loader.load(&request).outcome
    }

    fn module(&self) -> Arc<Module> {
        self.loader.modules_loaded().pop().unwrap()
    }

    fn page(&self, gpn: Gpn) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        self.host.read(gpn.gpa().unwrap(), &mut bytes).unwrap();
        bytes
    }

    fn write(&self, gpn: Gpn, bytes: &[u8]) {
        self.host.write(gpn.gpa().unwrap(), bytes).unwrap();
    }

    /// Has a processor execute the instruction at `at`, which the guest has mapped to `gpn`.
    fn execute(&self, at: Gva, gpn: Gpn) -> (Action, Option<u8>) {
        self.execute_on(None, at, gpn)
    }

    /// The same, with page tables.
    fn execute_on(&self, cr3: Option<Gpa>, at: Gva, gpn: Gpn) -> (Action, Option<u8>) {
        let gpa = Gpa(gpn.gpa().unwrap().0 + at.0 % PAGE_SIZE);
        let intercept = MemoryIntercept { gpa, gva: Some(at), access: Access::KernelExecute, page_walk: false, cpl: 0, rip: at };
        let mut vp = Processor { cr3: cr3.map(|root| root.0), injected: None };
        (self.loader.on_memory(&mut vp, &intercept), vp.injected)
    }

    /// Page tables in which the addresses are in these pages.
    fn tables(&self, pages: &[(Gva, Gpn)]) -> Gpa {
        let mut view = View::new(&self.host, 0);
        let mut tables = PageTables::new(&mut view, TABLES).unwrap();
        for (at, gpn) in pages {
            tables.map(&mut view, at.0, gpn.gpa().unwrap(), PAGE_SIZE, entry::PRESENT).unwrap();
        }
        tables.root()
    }

    /// Takes both pages of the module's text out, and answers what they held.
    fn take_out(&self, id: u32) -> [Vec<u8>; 2] {
        self.take_out_from(id, [Gpn(AT), Gpn(AT + 1)])
    }

    fn take_out_from(&self, id: u32, pages: [Gpn; 2]) -> [Vec<u8>; 2] {
        let text = pages.map(|gpn| self.page(gpn));
        self.loader.page_out(id, BASE).unwrap();
        self.loader.page_out(id, NEXT).unwrap();
        text
    }
}

const GOES_ON: (Action, Option<u8>) = (Action::Resume, None);
const REFUSED: (Action, Option<u8>) = (Action::InjectedFault, Some(13));

#[test]
fn a_guest_calls_code_that_it_brought_back_in_another_page() {
    let mut guest = attack::Guest::new().unwrap();
    let id = guest.load().unwrap();
    let (at, from, to) = (0xFFFF_FFFF_C040_0000_u64, 0x100_000_u64, 0x45_000_u64);
    let call = |guest: &mut attack::Guest| {
        guest
            .run(0, &|a| {
                a.mov(iced_x86::code_asm::rax, at)?;
                a.call(iced_x86::code_asm::rax)
            })
            .unwrap()
    };
    assert_eq!(call(&mut guest), THROUGH);
    let bytes = guest.read(from, 4096).unwrap();
    assert_eq!(guest.call(Function::PAGE_OUT, &[id, at + 8]).unwrap(), (HvStatus::SUCCESS, 0));
    assert_eq!(guest.call(Function::PAGE_OUT, &[id, at]).unwrap().0, HvStatus::ACCESS_DENIED, "it is out");
    assert_ne!(call(&mut guest), THROUGH, "zeros are no code of the module's");
    guest.write(to, &bytes).unwrap();
    guest.map(at, to, entry::PRESENT).unwrap();
    assert_eq!(call(&mut guest), THROUGH);
    assert_eq!(call(&mut guest), THROUGH, "again, without being asked");
}

#[test]
fn what_is_out_is_the_guests_and_comes_back_only_as_it_was() {
    let guest = Guest::new();
    let module = guest.load(|_| false).unwrap();
    let text = guest.page(Gpn(AT));
    let data = module.segments.iter().find(|s| s.kind == Kind::Data).unwrap().start;
    for (id, at) in [(module.id, data), (module.id, Gva(BASE.0 - 1)), (module.id, Gva(u64::MAX))] {
        assert_eq!(guest.loader.page_out(id, at), Err(HvStatus::ACCESS_DENIED), "{at}");
    }
    assert_eq!(guest.loader.page_out(module.id + 1, BASE), Err(HvStatus::NOT_FOUND));
    guest.loader.page_out(module.id, BASE).unwrap();
    assert_eq!((guest.partition.kind(Gpn(AT)), guest.page(Gpn(AT))), (Some(Kind::Data), vec![0; 4096]));
    assert_eq!(guest.module().pages_out().collect::<Vec<_>>(), [BASE]);
    assert_eq!(guest.loader.provenance(BASE).map(|(module, ..)| module.id), Some(module.id), "its address stays the module's");

    let one_byte = [0, 2047, 2048, 4095].map(|at| {
        let mut forged = text.clone();
        forged[at] ^= 1;
        forged
    });
    let (first, second) = text.split_at(2048);
    for forged in one_byte.into_iter().chain([[second, first].concat(), first.repeat(2), second.repeat(2)]) {
        guest.write(Gpn(SPARE), &forged);
        guest.partition.take_events();
        assert_eq!(guest.execute(BASE, Gpn(SPARE)), REFUSED);
        let codes: Vec<_> = guest.partition.take_events().0.iter().filter_map(|event| event.code).collect();
        assert_eq!((codes, guest.partition.kind(Gpn(SPARE))), (vec![Code::MemMismatch, Code::MemExecute], Some(Kind::Data)));
    }
    guest.write(Gpn(SPARE), &text);
    assert_eq!(guest.execute(Gva(BASE.0 + PAGE_SIZE), Gpn(SPARE)), REFUSED, "no page is out there");
    assert_eq!(guest.execute(Gva(BASE.0 + 5), Gpn(SPARE)), GOES_ON);
    assert_eq!((guest.partition.kind(Gpn(SPARE)), guest.module().pages_out().count()), (Some(Kind::Code), 0));
    let (events, _) = guest.partition.take_events();
    assert!(matches!(&events.last().unwrap().what, What::Change { transition, .. } if transition == "page in: paged"));
    guest.write(Gpn(SPARE + 1), &text);
    assert_eq!(guest.execute(BASE, Gpn(SPARE + 1)), REFUSED, "one page, one frame");

    guest.loader.page_out(module.id, BASE).unwrap();
    guest.loader.unload(module.id).unwrap();
    guest.write(Gpn(SPARE), &text);
    assert_eq!(guest.execute(BASE, Gpn(SPARE)), REFUSED, "of a module that is gone nothing comes");
    assert_eq!(guest.partition.kind(Gpn(AT + 1)), Some(Kind::Data));
    assert!(guest.load(|_| false).is_ok());
}

#[test]
fn code_that_is_not_there_when_its_module_is_loaded_comes_as_it_was_signed() {
    let whole = Guest::new();
    let code: Vec<(Gva, Gpn)> = {
        let module = whole.load(|_| false).unwrap();
        let pages = module.segments.iter().filter(|s| s.kind == Kind::Code);
        pages.flat_map(|s| (s.start.0..).step_by(4096).map(Gva).zip(s.pages.iter().map(|gpn| gpn.unwrap()))).collect()
    };
    let guest = Guest::new();
    let refusal = guest.load(|_| true).unwrap_err();
    assert_eq!((refusal.note.code, refusal.status), (Code::MemLayout, HvStatus::INVALID_PARAMETER), "data must be there");
    let module = guest.load(|at| code.iter().any(|(page, _)| *page == at)).unwrap();
    assert_eq!(module.pages_out().count(), code.len());
    for (at, gpn) in &code {
        assert_eq!(guest.partition.kind(*gpn), Some(Kind::Data));
        guest.write(*gpn, &[0xC3; 4096]);
        assert_eq!(guest.execute(*at, *gpn), REFUSED);
        guest.write(*gpn, &whole.page(*gpn));
        assert_eq!(guest.execute(*at, *gpn), GOES_ON);
        assert_eq!(guest.partition.kind(*gpn), Some(Kind::Code));
    }
    // what is discarded while it is out does not come any more, and what stays does
    let init = module.segments.iter().find(|s| s.discardable && s.kind == Kind::Code).unwrap().start;
    guest.loader.page_out(module.id, init).unwrap();
    guest.loader.page_out(module.id, BASE).unwrap();
    guest.loader.end_of_initialisation(module.id).unwrap();
    for (at, answer) in [(init, REFUSED), (BASE, GOES_ON)] {
        let gpn = code.iter().find(|(page, _)| *page == at).unwrap().1;
        guest.write(gpn, &whole.page(gpn));
        assert_eq!(guest.execute(at, gpn), answer, "{at}");
    }
    guest.loader.unload(module.id).unwrap();
}

/// Invariant I6.
#[test]
fn an_error_at_any_call_of_the_host_leaves_no_more_than_there_was() {
    let guest = Guest::new();
    let module = guest.load(|_| false).unwrap();
    let text = guest.page(Gpn(AT));
    let page = Gpn(AT);
    guest.host.fail_call(None, HvStatus::SUCCESS);
    guest.loader.page_out(module.id, BASE).unwrap();
    let out = guest.host.calls();
    guest.write(page, &text);
    guest.host.fail_call(None, HvStatus::SUCCESS);
    assert_eq!(guest.execute(BASE, page), GOES_ON);
    let back = guest.host.calls();
    assert!(out >= 4 && back >= 3, "{out} {back}");
    let (mut module, mut quarantined) = (module, 0);
    for n in 0..out {
        guest.host.fail_call(Some(n), HvStatus::INSUFFICIENT_MEMORY);
        assert_eq!(guest.loader.page_out(module.id, BASE), Err(HvStatus::INSUFFICIENT_MEMORY), "call {n}");
        guest.host.fail_call(None, HvStatus::SUCCESS);
        assert!(!guest.host.permission(Vtl::Vtl0, page).is_writable_and_executable());
        if guest.partition.kind(page) == Some(Kind::Quarantined) {
            // scrubbed already: zeros are no code to remember, and the module can only end
            quarantined += 1;
            let elsewhere = Gva(BASE.0 + PAGE_SIZE);
            guest.loader.page_out(module.id, elsewhere).unwrap();
            assert_eq!(guest.execute(elsewhere, page), REFUSED, "no page of two addresses");
            assert_eq!(guest.loader.page_out(module.id, BASE), Err(HvStatus::OPERATION_DENIED), "call {n}");
            assert!(guest.module().pages_out().all(|at| at != BASE), "call {n}");
            guest.loader.unload(module.id).unwrap();
            module = guest.load(|_| false).unwrap();
        }
        assert_eq!((guest.partition.kind(page), guest.page(page)), (Some(Kind::Code), text.clone()), "call {n}");
    }
    assert!(quarantined > 0 && quarantined < out, "{quarantined} of {out}");
    guest.loader.unload(module.id).unwrap();
    for n in 0..back {
        let module = guest.load(|at| at == BASE).unwrap();
        guest.host.fail_call(Some(n), HvStatus::INSUFFICIENT_MEMORY);
        assert_eq!(guest.execute(BASE, page), REFUSED, "call {n}");
        guest.host.fail_call(None, HvStatus::SUCCESS);
        assert_eq!(guest.partition.kind(page), Some(Kind::Data), "call {n}");
        assert_eq!(guest.execute(BASE, page), GOES_ON, "call {n}");
        guest.loader.unload(module.id).unwrap();
    }
}

#[test]
fn pages_that_came_together_are_verified_together() {
    let guest = Guest::new();
    let module = guest.load(|_| false).unwrap();
    let text = guest.take_out(module.id);
    guest.write(Gpn(SPARE), &text[0]);
    guest.write(Gpn(SPARE + 1), &text[1]);
    let tables = guest.tables(&[(NEXT, Gpn(SPARE + 1))]);
    guest.partition.take_events();
    assert_eq!(guest.execute_on(Some(tables), BASE, Gpn(SPARE)), GOES_ON);
    assert_eq!([0, 1].map(|n| guest.partition.kind(Gpn(SPARE + n))), [Some(Kind::Code); 2]);
    assert_eq!(guest.module().pages_out().count(), 0);
    let (events, _) = guest.partition.take_events();
    let [event] = &events[..] else { panic!("{events:?}") };
    let both = GpnRange { start: Gpn(SPARE), pages: 2 };
    assert!(matches!(&event.what, What::Change { pages, .. } if *pages == [both]) && event.code.is_none());

    // what stands in front is not looked at, nor what is in a large page that leads nowhere; a large page that leads to it is
    guest.take_out_from(module.id, [Gpn(SPARE), Gpn(SPARE + 1)]);
    guest.write(Gpn(SPARE), &text[0]);
    guest.write(Gpn(SPARE + 1), &text[1]);
    let tables = guest.tables(&[(BASE, Gpn(SPARE))]);
    assert_eq!(guest.execute_on(Some(tables), NEXT, Gpn(SPARE + 1)), GOES_ON);
    assert_eq!(guest.module().pages_out().collect::<Vec<_>>(), [BASE]);
    assert_eq!(guest.execute_on(Some(tables), BASE, Gpn(SPARE)), GOES_ON);

    guest.take_out_from(module.id, [Gpn(SPARE), Gpn(SPARE + 1)]);
    guest.write(Gpn(0), &text[0]);
    guest.write(Gpn(1), &text[1]);
    let mut view = View::new(&guest.host, 0);
    let mut tables = PageTables::new(&mut view, TABLES).unwrap();
    tables.map_large(&mut view, BASE.0, Gpa(0), 2 << 20, entry::PRESENT).unwrap();
    assert_eq!(guest.execute_on(Some(tables.root()), BASE, Gpn(0)), GOES_ON);
    assert_eq!([0, 1].map(|n| guest.partition.kind(Gpn(n))), [Some(Kind::Code); 2]);
}

#[test]
fn a_page_that_came_beside_another_and_is_not_what_it_should_be_is_as_if_it_had_not() {
    let guest = Guest::new();
    let module = guest.load(|_| false).unwrap();
    let constant = module.segments.iter().find(|s| s.kind == Kind::RoData).unwrap().pages[0].unwrap();
    let text = guest.take_out(module.id);
    let forged = [&text[1][..4095], &[text[1][4095] ^ 1]].concat();
    guest.write(Gpn(SPARE + 1), &forged);
    // forged, the same page, the module's own, tables, no RAM, nowhere
    let beyond = Gpn(1 << 30);
    let places = [Gpn(SPARE + 1), Gpn(SPARE), constant, TABLES.start, beyond].map(|gpn| vec![(NEXT, gpn)]);
    for pages in places.into_iter().chain([vec![]]) {
        let tables = guest.tables(&pages);
        guest.write(Gpn(SPARE), &text[0]);
        let before = pages.first().map(|(_, gpn)| (*gpn, guest.partition.kind(*gpn)));
        assert_eq!(guest.execute_on(Some(tables), BASE, Gpn(SPARE)), GOES_ON, "{pages:?}");
        assert_eq!(guest.partition.kind(Gpn(SPARE)), Some(Kind::Code));
        if let Some((gpn, kind)) = before.filter(|(gpn, _)| *gpn != Gpn(SPARE)) {
            assert_eq!(guest.partition.kind(gpn), kind, "{pages:?}");
        }
        assert_eq!(guest.module().pages_out().collect::<Vec<_>>(), [NEXT]);
        guest.loader.page_out(module.id, BASE).unwrap();
    }
    // what only VTL1 may read leads nowhere: the guest would learn from it what stands there
    guest.write(Gpn(SPARE), &text[0]);
    guest.write(Gpn(SPARE + 1), &text[1]);
    let tables = guest.tables(&[(NEXT, Gpn(SPARE + 1))]);
    let last = Gpn(TABLES.start.0 + 3);
    guest.partition.transform(0x40_0000, &[(last, Kind::SecureOnly)], || Ok(())).unwrap();
    assert_eq!(guest.execute_on(Some(tables), BASE, Gpn(SPARE)), GOES_ON);
    assert_eq!(guest.module().pages_out().collect::<Vec<_>>(), [NEXT]);
    guest.partition.transform(0x40_0000, &[(last, Kind::Data)], || Ok(())).unwrap();
    guest.loader.page_out(module.id, BASE).unwrap();
    // and the other way round: who waits for the forged one waits in vain, whatever else has come
    guest.write(Gpn(SPARE), &text[0]);
    let tables = guest.tables(&[(BASE, Gpn(SPARE)), (NEXT, Gpn(SPARE + 2))]);
    guest.write(Gpn(SPARE + 2), &text[1]);
    guest.write(Gpn(SPARE + 3), &[0xC3; 4096]);
    assert_eq!(guest.execute_on(Some(tables), BASE, Gpn(SPARE + 3)), REFUSED);
    assert_eq!([2, 3].map(|n| guest.partition.kind(Gpn(SPARE + n))), [Some(Kind::Data); 2]);
}

/// Invariant I6, for several pages.
#[test]
fn an_error_of_the_host_keeps_no_page_from_coming_but_those_beside_it() {
    let guest = Guest::new();
    let pages = [Gpn(AT), Gpn(AT + 1)];
    let tables = guest.tables(&[(NEXT, pages[1])]);
    let load = || guest.load(|at| at == BASE || at == NEXT).unwrap();
    let module = load();
    guest.host.fail_call(None, HvStatus::SUCCESS);
    assert_eq!(guest.execute_on(Some(tables), BASE, pages[0]), GOES_ON);
    let calls = guest.host.calls();
    assert!(calls >= 3, "{calls}");
    guest.loader.unload(module.id).unwrap();
    for n in 0..calls {
        let module = load();
        guest.host.fail_call(Some(n), HvStatus::INSUFFICIENT_MEMORY);
        assert_eq!(guest.execute_on(Some(tables), BASE, pages[0]), GOES_ON, "call {n}");
        guest.host.fail_call(None, HvStatus::SUCCESS);
        let kinds = pages.map(|gpn| guest.partition.kind(gpn));
        assert!(pages.iter().all(|gpn| !guest.host.permission(Vtl::Vtl0, *gpn).is_writable_and_executable()));
        assert_eq!(kinds, [Some(Kind::Code), Some(Kind::Data)], "call {n}");
        assert_eq!(guest.execute(NEXT, pages[1]), GOES_ON, "call {n}");
        guest.loader.unload(module.id).unwrap();
        assert_eq!(pages.map(|gpn| guest.partition.kind(gpn)), [Some(Kind::Data); 2]);
    }
}

#[test]
fn what_is_out_is_out_in_a_saved_machine_too() {
    let guest = Guest::new();
    let module = guest.load(|_| false).unwrap();
    let text = guest.page(Gpn(AT));
    guest.loader.page_out(module.id, BASE).unwrap();
    let (mut frames, mut table) = (Vec::new(), Vec::new());
    guest.partition.save(&mut |bytes| frames.extend(bytes));
    guest.loader.save(&mut |bytes| table.extend(bytes)).unwrap();
    let other = Guest::new();
    other.partition.restore(&frames).unwrap();
    // without the page that is out, or with another digest's text, it is no table of this form
    let at = table.windows(8).rposition(|w| w == BASE.0.to_le_bytes()).unwrap();
    for wrong in [at, at + 1, at + 8] {
        let mut table = table.clone();
        table[wrong] ^= 0x10;
        assert_eq!(other.loader.restore(&table), Err(HvStatus::INVALID_PARAMETER), "byte {wrong}");
    }
    other.loader.restore(&table).unwrap();
    other.write(Gpn(SPARE), &[0xC3; 4096]);
    assert_eq!(other.execute(BASE, Gpn(SPARE)), REFUSED);
    other.write(Gpn(SPARE), &text);
    assert_eq!(other.execute(BASE, Gpn(SPARE)), GOES_ON);
}
