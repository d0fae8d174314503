//! Import optimisation: which forms of a driver's calls a load accepts, which change of them a patch is, and what of that a saved state keeps.

use std::sync::{Arc, LazyLock};

use corpus::synth::{
    authenticode,
    certificate::{Identity, Template},
    import_calls::ImportCall,
    key::{Key, KeyKind},
    oid,
    pe::Image,
};
use hvci_engine::{
    addr::{Gpa, Gpn, Gva, PAGE_SIZE},
    facts::FileKind,
    finding::Code,
    host::{Enforcer, Host},
    image::pe::Symbol,
    load::{File, Loader, Module, Place, Refusal, Request, Symbols},
    signature::{
        catalog::CatalogIndex,
        trust::{Purposes, TrustStore},
    },
    status::HvStatus,
    time::UnixTime,
    vsm::partition::Partition,
};
use loader_sim::{
    guest_loader::{self, Memory, StubKernel},
    host::{Config, SimHost},
};
use proptest::prelude::*;

/// In reach of the kernel's functions.
const BASE: Gva = Gva(0xFFFF_FFFF_C040_0000);
const FAR: Gva = Gva(0xFFFF_F800_1000_0000);
const AT: u64 = 0x100;
const PAGES: u64 = 0x200;
const LEN: usize = 12;
/// Where code is, how much of it, and the calls in it: offset, function, whether it is a call. The third lies in two pages.
const TEXT: u64 = 0x1000;
const CALLS: [(u32, u32, bool); 4] = [(0, 0, true), (0x20, 1, false), (0xFFA, 2, true), (0x1100, 0, true)];

static KEY: LazyLock<Identity> = LazyLock::new(|| {
    let usages = [oid::EKU_WHQL, oid::EKU_CODE_SIGNING];
    Template::leaf("CN=driver publisher", &usages).issue(&Key::derive(7, "driver", KeyKind::Rsa(2048)).unwrap(), None).unwrap()
});

fn image() -> Image {
    let import_calls = CALLS.map(|(offset, function, is_call)| ImportCall { section: 0, offset, function, is_call }).to_vec();
    Image { import_calls, ..Image::of(FileKind::PeDriver, "optimised") }
}

static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| authenticode::signed(&image().build().unwrap(), &KEY, &[]).unwrap());

/// A call, and what it is changed to.
struct Forms {
    at: u64,
    signed: [u8; LEN],
    direct: [u8; LEN],
}

/// The calls of the driver that is placed so.
fn forms(placed: &Memory, base: Gva) -> Vec<Forms> {
    let names = image().imports;
    let of = |(offset, function, is_call): (u32, u32, bool)| {
        let at = base.0 + TEXT + u64::from(offset);
        let (start, bytes) = placed.range(..=at).next_back().unwrap();
        let signed: [u8; LEN] = *bytes[usize::try_from(at - start).unwrap()..].first_chunk().unwrap();
        let target = StubKernel.resolve(names.0.as_bytes(), Symbol::Name(names.1[function as usize].as_bytes())).unwrap().0;
        let mut direct = signed;
        direct[..3].copy_from_slice(&[0x4C, 0x8B, 0x15]);
        direct[7] = if is_call { 0xE8 } else { 0xE9 };
        let distance = i32::try_from(target.wrapping_sub(at + 12).cast_signed()).unwrap_or_default();
        direct[8..].copy_from_slice(&distance.to_le_bytes());
        Forms { at, signed, direct }
    };
    CALLS.map(of).into()
}

struct Guest {
    host: Arc<SimHost>,
    partition: Arc<Partition>,
    loader: Loader,
    forms: Vec<Forms>,
    base: Gva,
}

impl Guest {
    /// A machine in which the driver is placed as it was signed.
    fn at(base: Gva) -> Self {
        use x509_cert::der::Encode;
        let (host, partition) = SimHost::with_partition(&Config { pages: PAGES, ..Config::default() }).unwrap();
        let mut trust = TrustStore::builtin();
        trust.add_der(&KEY.certificate.to_der().unwrap(), Purposes::KERNEL, "test").unwrap();
        let loader = Loader::new(Arc::clone(&partition), trust, CatalogIndex::default(), None, Box::new(StubKernel));
        let placed = guest_loader::place(&FILE, base).unwrap();
        guest_loader::put(&*host, &placed, base, Gpn(AT)).unwrap();
        Self { host, partition, loader, forms: forms(&placed, base), base }
    }

    fn load(&self) -> Result<Arc<Module>, Refusal> {
        let pages = |gva: Gva| Some(Gpn(AT + (gva.0.checked_sub(self.base.0)?) / PAGE_SIZE));
        let time = UnixTime::parse("2026-11-24").unwrap();
        let request = Request { name: "driver", file: File::Private(&FILE), place: Place::Base(self.base), pages: &pages, time, vp: None };
        self.loader.load(&request).outcome
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        for (at, byte) in (AT * PAGE_SIZE + (at - self.base.0)..).zip(bytes) {
            self.host.write(Gpa(at), &[*byte]).unwrap();
        }
    }

    fn read(&self, at: u64) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        for (at, byte) in (AT * PAGE_SIZE + (at - self.base.0)..).zip(bytes.chunks_mut(1)) {
            self.host.read(Gpa(at), byte).unwrap();
        }
        bytes
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(PAGES * PAGE_SIZE).unwrap()];
        for (gpn, page) in (0..).zip(bytes.chunks_mut(4096)) {
            self.host.read(Gpn(gpn).gpa().unwrap(), page).unwrap();
        }
        bytes
    }
}

#[test]
fn a_load_accepts_each_call_in_either_form() {
    for which in 0..1_usize << CALLS.len() {
        let guest = Guest::at(BASE);
        let rewritten = |number: usize| which >> number & 1 == 1;
        for (number, call) in guest.forms.iter().enumerate().filter(|(number, _)| rewritten(*number)) {
            guest.write(call.at, &call.direct);
            assert_eq!(guest.read(call.at), call.direct, "{number}");
        }
        let module = guest.load().unwrap();
        assert!(module.patch_sites().map(|at| at.0).eq(guest.forms.iter().map(|call| call.at)));
        // those that are signed are made direct, and those that are direct stay so
        for (number, call) in guest.forms.iter().enumerate() {
            let expected = if rewritten(number) { Err(HvStatus::ACCESS_DENIED) } else { Ok(()) };
            assert_eq!(guest.loader.patch(module.id, Gva(call.at), 0, &call.direct, None), expected, "{number} of {which:b}");
            assert_eq!(guest.loader.patch(module.id, Gva(call.at), 0, &call.signed, None), Err(HvStatus::ACCESS_DENIED));
            assert_eq!(guest.read(call.at), call.direct);
        }
        guest.loader.unload(module.id).unwrap();
    }
}

#[test]
fn a_load_accepts_no_other_form() {
    let refused = |change: &dyn Fn(&Guest)| {
        let guest = Guest::at(BASE);
        change(&guest);
        let before = guest.memory();
        let refusal = guest.load().unwrap_err();
        assert!(guest.memory() == before && guest.loader.modules_loaded().is_empty());
        refusal.note.code
    };
    // head and tail of two forms, in two pages; a target that is another import's, or a stub behind the image
    let straddling = 2;
    for split in [6, 7, 10] {
        let direct_head = |guest: &Guest| guest.write(guest.forms[straddling].at, &guest.forms[straddling].direct[..split]);
        let direct_tail = |guest: &Guest| {
            guest.write(guest.forms[straddling].at + split as u64, &guest.forms[straddling].direct[split..]);
        };
        assert_eq!((refused(&direct_head), refused(&direct_tail)), (Code::MemMismatch, Code::MemMismatch), "{split}");
    }
    for (call, (_, _, is_call)) in CALLS.into_iter().enumerate() {
        let changed = |at: usize, bytes: &[u8]| {
            refused(&|guest: &Guest| {
                let mut form = guest.forms[call].direct;
                form[at..at + bytes.len()].copy_from_slice(bytes);
                guest.write(guest.forms[call].at, &form);
            })
        };
        assert_eq!(changed(8, &[0x20, 0x94, 0, 0]), Code::MemMismatch, "a retpoline");
        assert_eq!(changed(7, &[0x4D, 0xFF, 0xD2, 0x90, 0x90]), Code::MemMismatch, "by a register");
        assert_eq!(changed(7, &[if is_call { 0xE9 } else { 0xE8 }]), Code::MemMismatch);
        assert_eq!(changed(3, &[0, 0, 0, 0]), Code::MemMismatch, "another slot");
    }
    // where no call is listed
    assert_eq!(refused(&|guest: &Guest| guest.write(guest.forms[0].at + 0x60, &guest.forms[0].direct)), Code::MemMismatch);
}

#[test]
fn out_of_reach_there_is_one_form() {
    let guest = Guest::at(FAR);
    let module = guest.load().unwrap();
    assert_eq!(module.patch_sites().count(), 0);
    for call in &guest.forms {
        assert_eq!(guest.loader.patch(module.id, Gva(call.at), 0, &call.direct, None), Err(HvStatus::ACCESS_DENIED));
    }
}

#[test]
fn a_saved_module_has_the_calls_that_it_had() {
    let guest = Guest::at(BASE);
    guest.write(guest.forms[1].at, &guest.forms[1].direct);
    let module = guest.load().unwrap();
    guest.loader.patch(module.id, Gva(guest.forms[2].at), 0, &guest.forms[2].direct, None).unwrap();
    let (mut frames, mut table) = (Vec::new(), Vec::new());
    guest.partition.save(&mut |bytes| frames.extend_from_slice(bytes));
    guest.loader.save(&mut |bytes| table.extend_from_slice(bytes)).unwrap();

    let restored = Guest::at(BASE);
    for (gpn, page) in (0..).zip(guest.memory().chunks(4096)) {
        restored.host.write(Gpn(gpn).gpa().unwrap(), page).unwrap();
    }
    restored.partition.restore(&frames).unwrap();
    restored.loader.restore(&table).unwrap();
    assert!(restored.loader.modules_loaded()[0].patch_sites().eq(module.patch_sites()));
    for (number, call) in restored.forms.iter().enumerate() {
        let expected = if matches!(number, 1 | 2) { Err(HvStatus::ACCESS_DENIED) } else { Ok(()) };
        assert_eq!(restored.loader.patch(module.id, Gva(call.at), 0, &call.direct, None), expected, "{number}");
        assert_eq!(restored.read(call.at), call.direct);
    }
    // the first machine goes on to the end of the initialisation: nothing of it is changed from then on, and a saved state says so too
    guest.loader.end_of_initialisation(module.id).unwrap();
    let mut ended = Vec::new();
    guest.loader.save(&mut |bytes| ended.extend_from_slice(bytes)).unwrap();
    assert_eq!(guest.loader.modules_loaded()[0].patch_sites().count(), 0);
    for call in &guest.forms {
        assert_eq!(guest.loader.patch(module.id, Gva(call.at), 0, &call.direct, None), Err(HvStatus::ACCESS_DENIED));
    }
    assert_eq!((guest.read(guest.forms[0].at), guest.read(guest.forms[2].at)), (guest.forms[0].signed, guest.forms[2].direct));
    assert!(ended.len() < table.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Against a model: what stands at a call is the signed form until the direct one is written, and nothing else ever stands there.
    #[test]
    fn whatever_is_asked_for_a_call_is_one_of_its_forms(
        steps in prop::collection::vec((0..CALLS.len(), 0..4_usize, 0..LEN as u64 + 2, 0..LEN + 3), 1..24),
    ) {
        let guest = Guest::at(BASE);
        let module = guest.load().unwrap();
        let mut direct = [false; CALLS.len()];
        for (number, what, offset, len) in steps {
            let call = &guest.forms[number];
            let other = &guest.forms[(number + 1) % CALLS.len()];
            let bytes: &[u8] = [&call.direct[..], &call.signed, &other.direct, &[0xCC; LEN + 3]][what];
            // most of them whole
            let (offset, bytes) = if len > 6 && what < 3 { (0, bytes) } else { (offset, &bytes[..len.min(bytes.len())]) };
            let allowed = !direct[number] && offset == 0 && bytes == call.direct;
            let result = guest.loader.patch(module.id, Gva(call.at), offset, bytes, Some(0));
            prop_assert_eq!(result, if allowed { Ok(()) } else { Err(HvStatus::ACCESS_DENIED) });
            direct[number] |= allowed;
            for (call, direct) in guest.forms.iter().zip(direct) {
                prop_assert_eq!(guest.read(call.at), if direct { call.direct } else { call.signed });
            }
        }
    }
}
