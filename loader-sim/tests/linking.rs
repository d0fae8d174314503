//! Modules that import from modules: real and synthetic ones, unloads in every order, and an unload that races with a load.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Barrier, LazyLock},
    thread,
};

use corpus::synth::{
    authenticode,
    certificate::{Identity, Template},
    elf as synth_elf,
    key::{Key, KeyKind},
    oid,
    pe::{Export, Image},
};
use hvci_engine::{
    addr::{Gpn, Gva, PAGE_SIZE},
    facts::FileKind,
    finding::Code,
    host::Host,
    image::elf::Elf,
    load::{File, Loader, Module, Place, Refusal, Request},
    signature::{
        catalog::CatalogIndex,
        kernel::kernel_certificates,
        trust::{Purposes, TrustStore},
    },
    status::HvStatus,
};
use loader_sim::{
    guest_loader::{self, Links, Loaded, PartialKernel},
    host::{Config, SimHost},
};

#[path = "../../corpus/tests/corpora/mod.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod corpora;

use corpora::{files, folder, time};

static MODULE_KEY: LazyLock<Identity> = LazyLock::new(|| identity("CN=module key", false));
static DRIVER_KEY: LazyLock<Identity> = LazyLock::new(|| identity("CN=driver publisher", true));

fn identity(name: &str, driver: bool) -> Identity {
    let usages: &[_] = if driver { &[oid::EKU_WHQL, oid::EKU_CODE_SIGNING] } else { &[] };
    Template::leaf(name, usages).issue(&Key::derive(7, "module", KeyKind::Rsa(2048)).unwrap(), None).unwrap()
}

fn der(identity: &Identity) -> Vec<u8> {
    use x509_cert::der::Encode;
    identity.certificate.to_der().unwrap()
}

/// A guest that has these files, and puts one behind the other.
struct Guest {
    host: Arc<SimHost>,
    loader: Loader,
    loaded: Loaded<PartialKernel>,
    next: u64,
}

impl Guest {
    fn new<'f>(config: &Config, keys: &[Vec<u8>], files: impl IntoIterator<Item = (&'f str, &'f [u8])>) -> Self {
        let (host, partition) = SimHost::with_partition(config).unwrap();
        let mut trust = TrustStore::builtin();
        trust.add_der(&der(&DRIVER_KEY), Purposes::KERNEL, "test").unwrap();
        trust.add_der(&der(&MODULE_KEY), Purposes::MODULE, "test").unwrap();
        for key in keys {
            trust.add_der(key, Purposes::MODULE, "kernel").unwrap();
        }
        let mut kernel = PartialKernel::default();
        files.into_iter().for_each(|(name, file)| kernel.leave_to(&Links::of(name, file)));
        let loader = Loader::new(partition, trust, CatalogIndex::default(), None, Box::new(kernel.clone()));
        Self { host, loader, loaded: Loaded::new(kernel), next: 0x100 }
    }

    /// Places a file as the guest's loader does; where the guest has nothing for an import, with zeros.
    fn load(&mut self, name: &str, file: &[u8]) -> Result<Arc<Module>, Refusal> {
        let (at, base) = (self.next, Gva(guest_loader::region_of(file).0 + self.next * PAGE_SIZE));
        if let Ok(placed) = guest_loader::place_with(file, base, &self.loaded) {
            self.next += guest_loader::put(&*self.host, &placed, base, Gpn(at)).unwrap();
        }
        let outcome = ask(&self.loader, name, file, base, at);
        if outcome.is_ok() {
            self.loaded.add(name.rsplit('\\').next().unwrap(), file, base).unwrap();
        }
        outcome
    }
}

fn ask(loader: &Loader, name: &str, file: &[u8], base: Gva, at: u64) -> Result<Arc<Module>, Refusal> {
    let pages = |gva: Gva| Some(Gpn(at + (gva.0.checked_sub(base.0)?) / PAGE_SIZE));
    let request = Request { name, file: File::Private(file), place: Place::Base(base), pages: &pages, time: time(), vp: None };
    loader.load(&request).outcome
}

fn driver(name: &str, exports: &[(&'static str, Export)], imports: (&'static str, &[&'static str])) -> Vec<u8> {
    let image = Image { exports: exports.to_vec(), imports: (imports.0, imports.1.to_vec()), ..Image::of(FileKind::PeDriver, name) };
    authenticode::signed(&image.build().unwrap(), &DRIVER_KEY, &[]).unwrap()
}

fn exporting_driver() -> Vec<u8> {
    let exports = [
        ("Run", Export::At(0, 0x10)),
        ("Table", Export::At(2, 0x20)),
        ("DllInitialize", Export::At(3, 0)),
        ("Print", Export::Forward("ntoskrnl.DbgPrint")),
        ("Again", Export::Forward("A.#2")),
        ("Twice", Export::Forward("a.Again")),
        ("Loop", Export::Forward("A.Loop")),
        ("Nobody", Export::Forward("A.#77")),
    ];
    driver("a", &exports, ("ntoskrnl.exe", &["DbgPrint"]))
}

fn module(name: &str, exports: &[&str], imports: &[&str]) -> Vec<u8> {
    let module = synth_elf::linked_module(name, exports, imports).unwrap();
    synth_elf::signed(&module, &synth_elf::signing(&MODULE_KEY)).unwrap()
}

fn refused(outcome: Result<Arc<Module>, Refusal>) -> (Code, HvStatus) {
    let refusal = outcome.unwrap_err();
    (refusal.note.code, refusal.status)
}

#[test]
fn a_driver_imports_from_one_that_is_loaded() {
    let a = exporting_driver();
    let b = driver("b", &[], ("A.SYS", &["Run", "Table", "Print", "Again", "Twice"]));
    let mut guest = Guest::new(&Config::default(), &[], [("a.sys", &*a)]);
    assert_eq!(refused(guest.load("b.sys", &b)), (Code::MemUnresolved, HvStatus::ACCESS_DENIED));
    let first = guest.load("\\SystemRoot\\a.sys", &a).unwrap();
    // 8 names and 8 ordinals without what goes with the initialisation
    assert_eq!((first.exports.count(), first.uses.len()), (14, 0));
    let second = guest.load("b.sys", &b).unwrap();
    assert_eq!(second.uses, BTreeSet::from([first.id]));
    // the words that the guest bound are those that were compared: data and code of the other
    let slots: Vec<u64> = (0x3000..0x4000)
        .step_by(8)
        .map(|offset| {
            let at = Gva(second.segments[0].start.0 + offset);
            let segment = second.segments.iter().find(|s| s.contains(at)).unwrap();
            let page = segment.pages[((at.0 - segment.start.0) / PAGE_SIZE) as usize].unwrap();
            let mut word = [0; 8];
            guest.host.read(hvci_engine::addr::Gpa(page.gpa().unwrap().0 + at.0 % PAGE_SIZE), &mut word).unwrap();
            u64::from_le_bytes(word)
        })
        .collect();
    let section = |name: &str| first.segments.iter().find(|s| s.name == name).unwrap().start.0;
    assert!(slots.windows(2).any(|pair| pair == [section(".text") + 0x10, section(".data") + 0x20]));
    assert!(slots.windows(2).any(|pair| pair == [section(".data") + 0x20; 2]), "both are forwarded to ordinal 2");

    // one that goes with the initialisation, one without an end, one without a target
    for import in ["DllInitialize", "Loop", "Nobody", "Absent"] {
        let c = driver("c", &[], ("a", &[import]));
        assert_eq!(refused(guest.load("c.sys", &c)), (Code::MemUnresolved, HvStatus::ACCESS_DENIED), "{import}");
    }
    // by another name it is another library
    let c = driver("c", &[], ("a.dll", &["Run"]));
    assert_eq!(refused(guest.load("c.sys", &c)).0, Code::MemUnresolved);
    guest.loader.end_of_initialisation(first.id).unwrap();
    let third = guest.load("c.sys", &driver("c", &[], ("a", &["Run"]))).unwrap();

    assert_eq!(guest.loader.unload(first.id), Err(HvStatus::OBJECT_IN_USE));
    guest.loader.unload(second.id).unwrap();
    assert_eq!(guest.loader.unload(first.id), Err(HvStatus::OBJECT_IN_USE), "the other one is still there");
    guest.loader.unload(third.id).unwrap();
    guest.loader.unload(first.id).unwrap();
    assert_eq!(refused(guest.load("b.sys", &b)), (Code::MemUnresolved, HvStatus::ACCESS_DENIED));
}

#[test]
fn a_module_that_is_called_as_the_kernel_speaks_for_nobody_but_itself() {
    let a = driver("a", &[("Late", Export::At(0, 0x10))], ("hal.dll", &["HalReturn"]));
    let b = driver("b", &[], ("NtosKrnl.exe", &["Late"]));
    let mut guest = Guest::new(&Config::default(), &[], [("ntoskrnl.exe", &*a)]);
    guest.load("ntoskrnl.exe", &a).unwrap();
    assert_eq!(refused(guest.load("b.sys", &b)).0, Code::MemUnresolved);
}

#[test]
fn a_linux_module_imports_from_one_that_is_loaded() {
    let a = module("a", &["first", "second", "init_module_not"], &["_printk"]);
    let b = module("b", &["third"], &["second", "_printk", "first"]);
    let c = module("c", &[], &["third"]);
    let names = [("a.ko", &*a), ("b.ko", &*b)];
    let mut guest = Guest::new(&Config::default(), &[], names);
    assert_eq!(refused(guest.load("b", &b)), (Code::MemUnresolved, HvStatus::ACCESS_DENIED));
    let first = guest.load("a", &a).unwrap();
    assert_eq!(first.exports.count(), 3);
    let second = guest.load("b", &b).unwrap();
    assert_eq!((&second.uses, second.exports.count()), (&BTreeSet::from([first.id]), 1));
    let third = guest.load("c", &c).unwrap();
    assert_eq!(third.uses, BTreeSet::from([second.id]));
    for (busy, free) in [(first.id, third.id), (first.id, second.id)] {
        assert_eq!(guest.loader.unload(busy), Err(HvStatus::OBJECT_IN_USE));
        guest.loader.unload(free).unwrap();
    }
    guest.loader.unload(first.id).unwrap();
    assert!(guest.loader.modules_loaded().is_empty());
}

/// A load that is refused holds nothing.
#[test]
fn a_refused_importer_keeps_nothing_in_use() {
    let (a, b) = (module("a", &["first"], &[]), module("b", &[], &["first"]));
    let mut guest = Guest::new(&Config::default(), &[], [("a.ko", &*a)]);
    let first = guest.load("a", &a).unwrap();
    // nothing is placed there
    let refusal = ask(&guest.loader, "b", &b, Gva(0xFFFF_FFFF_C800_0000), 0x800).unwrap_err();
    assert_eq!(refusal.note.code, Code::MemMismatch);
    guest.loader.unload(first.id).unwrap();
}

#[test]
fn of_an_unload_and_a_load_that_binds_to_it_one_wins() {
    let (a, b) = (module("a", &["first"], &[]), module("b", &[], &["first"]));
    let mut guest = Guest::new(&Config::default(), &[], [("a.ko", &*a)]);
    let (base, at) = (Gva(guest_loader::region_of(&b).0 + 0x1000 * PAGE_SIZE), 0x1000);
    let (mut bound, mut unloaded) = (0, 0);
    for _ in 0..100 {
        guest.next = 0x100;
        let first = guest.load("a", &a).unwrap();
        let placed = guest_loader::place_with(&b, base, &guest.loaded).unwrap();
        guest_loader::put(&*guest.host, &placed, base, Gpn(at)).unwrap();
        let barrier = Barrier::new(2);
        let (result, outcome) = thread::scope(|scope| {
            let (loader, barrier, b, id) = (&guest.loader, &barrier, &b, first.id);
            let unload = scope.spawn(move || {
                barrier.wait();
                thread::sleep(std::time::Duration::from_micros(300));
                loader.unload(id)
            });
            barrier.wait();
            let outcome = ask(loader, "b", b, base, at);
            (unload.join().unwrap(), outcome)
        });
        match (result, outcome) {
            (Err(status), Ok(second)) => {
                assert_eq!(status, HvStatus::OBJECT_IN_USE);
                bound += 1;
                guest.loader.unload(second.id).unwrap();
                guest.loader.unload(first.id).unwrap();
            }
            (Ok(()), Err(refusal)) => {
                let known = [(Code::MemUnresolved, HvStatus::ACCESS_DENIED), (Code::MemClaim, HvStatus::OBJECT_IN_USE)];
                assert!(known.contains(&(refusal.note.code, refusal.status)), "{refusal}");
                unloaded += 1;
            }
            // each was in the other's way, or the load had ended before
            (Err(HvStatus::OBJECT_IN_USE), Err(refusal)) => {
                assert_eq!(refusal.status, HvStatus::OBJECT_IN_USE);
                guest.loader.unload(first.id).unwrap();
            }
            (result, outcome) => panic!("{result:?} {outcome:?}"),
        }
    }
    eprintln!("bound {bound} times, unloaded {unloaded} times");
}

#[test]
fn real_modules_import_from_one_another() {
    let Some(folder) = folder("debian-kernel") else { return };
    let all = files(&folder);
    // one kernel of those that are there
    let kernel = all.iter().find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))).unwrap();
    let keys = kernel_certificates(&fs::read(kernel).unwrap(), corpora::CAP).unwrap();
    let root = kernel.parent().unwrap().parent().unwrap();
    let paths: BTreeMap<String, _> = all
        .iter()
        .filter(|p| p.starts_with(root) && p.extension().is_some_and(|e| e == "ko"))
        .map(|p| (p.file_stem().unwrap().to_string_lossy().replace('-', "_"), p))
        .collect();
    let depends = |file: &[u8]| {
        let text = Elf::parse(file).unwrap().modinfo().unwrap().text("depends").unwrap_or_default();
        text.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect::<Vec<_>>()
    };
    // a part of those that depend on others, and all that they depend on, first things first
    let mut order: Vec<(String, Vec<u8>)> = Vec::new();
    let mut wanted: Vec<String> = ["usbnet", "nf_nat"].map(str::to_owned).to_vec();
    wanted.extend(paths.keys().step_by(40).cloned());
    while let Some(name) = wanted.pop() {
        if order.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let file = fs::read(paths[&name]).unwrap();
        let missing: Vec<String> = depends(&file).into_iter().filter(|name| !order.iter().any(|(known, _)| known == name)).collect();
        if missing.is_empty() {
            order.push((name, file));
        } else {
            wanted.push(name);
            wanted.extend(missing);
        }
    }
    let config = Config { pages: 1 << 19, ..Config::default() };
    let mut guest = Guest::new(&config, &keys, order.iter().map(|(name, file)| (name.as_str(), file.as_slice())));
    let mut ids = BTreeMap::new();
    let mut bound = 0;
    for (name, file) in &order {
        let module = guest.load(name, file).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        // what it says it depends on is what it is bound to
        let expected: BTreeSet<u32> = depends(file).iter().map(|name| ids[name]).collect();
        assert_eq!(module.uses, expected, "{name}");
        bound += module.uses.len();
        ids.insert(name.clone(), module.id);
    }
    assert!(order.len() > 100 && bound > 100, "{} modules, {bound} dependencies", order.len());
    let used: BTreeSet<u32> = guest.loader.modules_loaded().iter().flat_map(|m| m.uses.clone()).collect();
    for id in &used {
        assert_eq!(guest.loader.unload(*id), Err(HvStatus::OBJECT_IN_USE));
    }
    for (name, _) in order.iter().rev() {
        guest.loader.unload(ids[name]).unwrap();
    }
    eprintln!("{} modules with {bound} dependencies", order.len());
}
