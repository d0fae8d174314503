//! A machine that is saved and restored elsewhere: its loader knows what it had loaded, and takes no table that does not fit.

use std::{
    fs,
    sync::{Arc, LazyLock},
};

use corpus::synth::{
    certificate::{Identity, Template},
    elf as synth_elf,
    key::{Key, KeyKind},
};
use hvci_engine::{
    addr::{Gpn, Gva, PAGE_SIZE},
    frames::Kind,
    host::{Enforcer, Host},
    load::{File, Loader, Module, Place, Refusal, Request},
    signature::{
        catalog::CatalogIndex,
        kernel::kernel_certificates,
        trust::{Purposes, TrustStore},
    },
    status::HvStatus,
    vsm::partition::Partition,
};
use loader_sim::{
    guest_loader::{self, Links, Loaded, PartialKernel},
    host::{Config, SimHost},
};
use proptest::prelude::*;

#[path = "../../corpus/tests/corpora/mod.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod corpora;

use corpora::{files, folder, time};

const PAGES: u64 = 0x400;
const COOKIE: u64 = 0xC00C_1E00;
const POOL: Gpn = Gpn(0x20);

static KEY: LazyLock<Identity> =
    LazyLock::new(|| Template::leaf("CN=module key", &[]).issue(&Key::derive(7, "module", KeyKind::Rsa(2048)).unwrap(), None).unwrap());

struct Guest {
    host: Arc<SimHost>,
    partition: Arc<Partition>,
    loader: Loader,
}

impl Guest {
    fn new(kernel: &PartialKernel) -> Self {
        use x509_cert::der::Encode;
        let (host, partition) = SimHost::with_partition(&Config { pages: PAGES, ..Config::default() }).unwrap();
        let mut trust = TrustStore::builtin();
        trust.add_der(&KEY.certificate.to_der().unwrap(), Purposes::MODULE, "test").unwrap();
        let loader = Loader::new(Arc::clone(&partition), trust, CatalogIndex::default(), None, Box::new(kernel.clone()));
        Self { host, partition, loader }
    }

    fn load(&self, loaded: &Loaded<PartialKernel>, name: &str, file: &[u8], at: u64) -> Result<Arc<Module>, Refusal> {
        let base = base(at);
        let placed = guest_loader::place_with(file, base, loaded).unwrap();
        guest_loader::put(&*self.host, &placed, base, Gpn(at)).unwrap();
        let pages = |gva: Gva| Some(Gpn(at + (gva.0.checked_sub(base.0)?) / PAGE_SIZE));
        let request = Request { name, file: File::Private(file), place: Place::Base(base), pages: &pages, time: time(), vp: None };
        self.loader.load(&request).outcome
    }

    fn saved(&self) -> Saved {
        let (mut frames, mut table) = (Vec::new(), Vec::new());
        self.partition.save(&mut |bytes| frames.extend_from_slice(bytes));
        self.loader.save(&mut |bytes| table.extend_from_slice(bytes)).unwrap();
        let page = |gpn: u64| {
            let mut bytes = vec![0; 4096];
            self.host.read(Gpn(gpn).gpa().unwrap(), &mut bytes).unwrap();
            bytes
        };
        Saved { memory: (0..PAGES).map(page).collect(), frames, table }
    }

    /// A new machine with this memory and this protection, whose loader knows nothing yet.
    fn of(saved: &Saved, kernel: &PartialKernel) -> Self {
        let guest = Self::new(kernel);
        for (gpn, bytes) in (0..).zip(&saved.memory) {
            guest.host.write(Gpn(gpn).gpa().unwrap(), bytes).unwrap();
        }
        guest.partition.restore(&saved.frames).unwrap();
        guest
    }
}

struct Saved {
    memory: Vec<Vec<u8>>,
    frames: Vec<u8>,
    table: Vec<u8>,
}

fn base(at: u64) -> Gva {
    Gva(guest_loader::region_of(b"").0 + at * PAGE_SIZE)
}

fn module(name: &str, exports: &[&str], imports: &[&str]) -> Vec<u8> {
    let module = synth_elf::linked_module(name, exports, imports).unwrap();
    synth_elf::signed(&module, &synth_elf::signing(&KEY)).unwrap()
}

/// A machine with two modules, of which one imports from the other and has protected data, and with a pool.
struct Before {
    kernel: PartialKernel,
    loaded: Loaded<PartialKernel>,
    saved: Saved,
    ids: [u32; 2],
    pool: u32,
}

fn before() -> Before {
    let (a, b) = (module("a", &["first"], &[]), module("b", &["second"], &["first"]));
    let mut kernel = PartialKernel::default();
    kernel.leave_to(&Links::of("a", &a));
    kernel.leave_to(&Links::of("b", &b));
    let guest = Guest::new(&kernel);
    let mut loaded = Loaded::new(kernel.clone());
    let first = guest.load(&loaded, "a", &a, 0x100).unwrap();
    loaded.add("a", &a, base(0x100)).unwrap();
    let second = guest.load(&loaded, "b", &b, 0x140).unwrap();
    loaded.add("b", &b, base(0x140)).unwrap();
    let data = second.segments.iter().find(|s| s.kind == Kind::Data).unwrap().start;
    guest.loader.protect_section(second.id, data).unwrap();
    let pool = guest.loader.protect_region(Kind::KernelData, &[POOL], Gva(0xFFFF_8000_0000_0000), COOKIE).unwrap();
    Before { kernel, loaded, saved: guest.saved(), ids: [first.id, second.id], pool }
}

#[test]
fn a_restored_machine_goes_on_where_it_was() {
    let Before { kernel, loaded, saved, ids: [first, second], pool } = before();
    let guest = Guest::of(&saved, &kernel);
    assert!(guest.loader.provenance(base(0x100)).is_none());
    assert_eq!(guest.loader.unload(first), Err(HvStatus::NOT_FOUND));
    guest.loader.restore(&saved.table).unwrap();
    assert!(guest.saved().table == saved.table, "saved again it is the same");

    let (owner, part, offset) = guest.loader.provenance(Gva(base(0x140).0 + 0x10)).unwrap();
    assert_eq!((owner.id, owner.name.as_str(), part.section.as_str(), offset), (second, "b", ".text", 0x10));
    assert!(owner.digest.is_some() && owner.entry == Some(base(0x140)));
    // its exports, its addresses and its numbers
    let c = module("c", &[], &["second", "first"]);
    let third = guest.load(&loaded, "c", &c, 0x180).unwrap();
    assert!(third.uses.iter().eq(&[first, second]) && third.id > pool);
    assert_eq!(guest.load(&loaded, "c", &c, 0x180).unwrap_err().status, HvStatus::OBJECT_IN_USE);
    for busy in [first, second] {
        assert_eq!(guest.loader.unload(busy), Err(HvStatus::OBJECT_IN_USE));
    }
    assert_eq!(guest.loader.write_region(pool, COOKIE ^ 1, 0, &[1], None), Err(HvStatus::ACCESS_DENIED));
    guest.loader.write_region(pool, COOKIE, 8, &[7], None).unwrap();
    let mut byte = [0];
    guest.host.read(hvci_engine::addr::Gpa(POOL.gpa().unwrap().0 + 8), &mut byte).unwrap();
    assert_eq!(byte, [7]);
    guest.loader.release_region(pool, COOKIE).unwrap();
    for id in [third.id, second, first] {
        guest.loader.end_of_initialisation(id).unwrap();
        guest.loader.unload(id).unwrap();
    }
    assert!((0..PAGES).all(|gpn| guest.partition.kind(Gpn(gpn)) == Some(Kind::Data)));
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_changed() {
    let Before { kernel, saved, ids: [first, second], pool, .. } = before();
    let refused = |guest: &Guest, table: &[u8], status: HvStatus| {
        assert_eq!(guest.loader.restore(table), Err(status));
        assert!(guest.loader.modules_loaded().is_empty());
    };
    // another machine: its frames are nobody's
    refused(&Guest::new(&kernel), &saved.table, HvStatus::INVALID_PARAMETER);
    let guest = Guest::of(&saved, &kernel);
    for len in 0..saved.table.len() {
        refused(&guest, &saved.table[..len], HvStatus::INVALID_PARAMETER);
    }
    refused(&guest, &[&saved.table[..], &[0]].concat(), HvStatus::INVALID_PARAMETER);
    // another magic, an older version and a newer one, no owner that there can be; one module too few, one number for two
    for (at, byte) in [(0, b'X'), (8, 2), (8, 4), (10, 1), (12, 0), (16, 1), (20, 0)] {
        let mut changed = saved.table.clone();
        changed[at] = byte;
        refused(&guest, &changed, HvStatus::INVALID_PARAMETER);
    }
    // a machine that has come farther
    guest.loader.restore(&saved.table).unwrap();
    let cookie = COOKIE + 1;
    let more = guest.loader.protect_region(Kind::KernelData, &[Gpn(0x21)], Gva(0xFFFF_8000_0000_1000), cookie).unwrap();
    assert_eq!(guest.loader.restore(&saved.table), Err(HvStatus::OPERATION_DENIED));
    guest.loader.write_region(more, cookie, 0, &[1], None).unwrap();
    // a page that was given back meanwhile is not owned by what the table says
    let old = guest.saved().table;
    guest.loader.release_region(pool, COOKIE).unwrap();
    assert_eq!(guest.loader.restore(&old), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(guest.loader.release_region(pool, COOKIE), Err(HvStatus::NOT_FOUND));
    guest.loader.unload(second).unwrap();
    guest.loader.unload(first).unwrap();
}

static BEFORE: LazyLock<Before> = LazyLock::new(before);

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Only the kinds of bytes that decide nothing but names, digests and cookies can be other than they were.
    #[test]
    fn a_changed_table_is_refused_or_is_one(changes in prop::collection::vec((0_usize..4096, any::<u8>()), 1..4)) {
        let Before { kernel, saved, .. } = &*BEFORE;
        let guest = Guest::of(saved, kernel);
        let mut table = saved.table.clone();
        for (at, byte) in changes {
            let at = at % table.len();
            table[at] = byte;
        }
        if guest.loader.restore(&table).is_ok() {
            prop_assert!(guest.loader.restore(&guest.saved().table).is_ok());
            for module in guest.loader.modules_loaded() {
                for segment in module.segments.iter().filter(|s| s.kind.is_owned()) {
                    prop_assert!(segment.pages.iter().flatten().all(|gpn| guest.partition.kind(*gpn) == Some(segment.kind)));
                }
            }
        } else {
            prop_assert!(guest.loader.modules_loaded().is_empty());
        }
    }
}

#[test]
fn a_patch_that_was_begun_is_ended_on_the_restored_machine() {
    let Some(folder) = folder("debian-kernel") else { return };
    let all = files(&folder);
    let kernel = PartialKernel::default();
    let guest = Guest::new(&kernel);
    for vmlinuz in all.iter().filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))) {
        let keys = kernel_certificates(&fs::read(vmlinuz).unwrap(), corpora::CAP).unwrap();
        keys.iter().for_each(|key| guest.loader.add_module_key(key, "kernel").unwrap());
    }
    let file = fs::read(all.iter().find(|p| p.ends_with("net/usb/usbnet.ko")).unwrap()).unwrap();
    let module = guest.load(&Loaded::new(kernel.clone()), "usbnet", &file, 0x100).unwrap();
    let read = |guest: &Guest, site: Gva| {
        let mut bytes = [0; 5];
        guest.host.read(hvci_engine::addr::Gpa(0x100 * PAGE_SIZE + (site.0 - base(0x100).0)), &mut bytes).unwrap();
        bytes
    };
    let site = module.patch_sites().find(|site| site.0 % PAGE_SIZE < PAGE_SIZE - 5).unwrap();
    let old = read(&guest, site);
    guest.loader.patch(module.id, site, 0, &[0xCC], None).unwrap();
    let saved = guest.saved();

    let guest = Guest::of(&saved, &kernel);
    guest.loader.restore(&saved.table).unwrap();
    assert_eq!(read(&guest, site)[0], 0xCC);
    let restored = guest.loader.modules_loaded().remove(0);
    assert!(restored.patch_sites().eq(module.patch_sites()) && restored.pending_patches().eq([site]));
    assert_eq!(guest.loader.patch(module.id, site, 0, &[0x90], None), Err(HvStatus::ACCESS_DENIED));
    guest.loader.patch(module.id, site, 0, &old[..1], None).unwrap();
    assert_eq!(read(&guest, site), old);
    guest.loader.end_of_initialisation(module.id).unwrap();
    guest.loader.unload(module.id).unwrap();
}
