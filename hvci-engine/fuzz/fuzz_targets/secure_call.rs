//! A guest that makes hypercalls and secure calls with any words in them, on a machine of 32 pages of which the last is an alias of the first.
//! Whatever it asks for, no page is ever writable and executable, and only a load makes any executable, which no input here is signed for.
#![no_main]

use std::sync::{Arc, LazyLock, Mutex};

use hvci_engine::{
    access::MapGpaFlags,
    addr::{Frame, Gpa, Gpn, GpnRange, Gva, Vtl},
    frames::Kind,
    host::{Capabilities, Enforcer, Host, Partial, Vp},
    image::pe::Symbol,
    load::{Loader, Symbols},
    signature::{catalog::CatalogIndex, trust::TrustStore},
    status::HvStatus,
    time::UnixTime,
    vsm::{
        hypercall::{Control, HypercallCode},
        partition::Partition,
        secure_call::BLOCK,
    },
};
use libfuzzer_sys::fuzz_target;

const PAGES: u64 = 32;
const PAGE: usize = 4096;

static TRUST: LazyLock<TrustStore> = LazyLock::new(TrustStore::builtin);

struct Memory(Mutex<(Vec<MapGpaFlags>, Vec<u8>)>);

impl Memory {
    fn with<T>(&self, gpa: Gpa, len: usize, run: impl FnOnce(&mut [u8]) -> T) -> Result<T, HvStatus> {
        let frame = self.frame(gpa.gpn()).ok_or(HvStatus::INVALID_PARAMETER)?;
        let start = frame.0 as usize * PAGE + gpa.offset() as usize;
        assert!(gpa.offset() as usize + len <= PAGE, "across pages");
        Ok(run(&mut self.0.lock().unwrap().1[start..start + len]))
    }
}

impl Host for Memory {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }
    fn frame(&self, gpn: Gpn) -> Option<Frame> {
        (gpn.0 < PAGES).then_some(Frame(gpn.0 % (PAGES - 1)))
    }
    fn aliases(&self, frame: Frame, each: &mut dyn FnMut(Gpn)) {
        (0..PAGES).map(Gpn).filter(|gpn| self.frame(*gpn) == Some(frame)).for_each(each);
    }
    fn protect(&self, vtl: Vtl, ranges: &[GpnRange], flags: MapGpaFlags) -> Result<(), Partial> {
        if vtl == Vtl::Vtl0 {
            ranges.iter().flat_map(|r| r.iter()).for_each(|gpn| self.0.lock().unwrap().0[gpn.0 as usize] = flags);
        }
        Ok(())
    }
    fn quiesce(&self, _: Vtl, _: &[GpnRange]) -> Result<(), HvStatus> {
        Ok(())
    }
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), HvStatus> {
        self.with(gpa, buffer.len(), |bytes| buffer.copy_from_slice(bytes))
    }
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus> {
        self.with(gpa, bytes.len(), |place| place.copy_from_slice(bytes))
    }
}

struct Processor;

impl Vp for Processor {
    fn index(&self) -> u32 {
        0
    }
    fn register(&self, _: u32) -> Result<u128, HvStatus> {
        Ok(0)
    }
    fn set_register(&mut self, _: u32, _: u128) -> Result<(), HvStatus> {
        Ok(())
    }
    fn inject(&mut self, _: u8, _: Option<u32>) {}
}

struct Nothing;

impl Symbols for Nothing {
    fn resolve(&self, _: &[u8], _: Symbol<'_>) -> Option<Gva> {
        None
    }
}

fuzz_target!(|data: &[u8]| {
    let (calls, content) = data.split_at(data.len().min(16 * (BLOCK + 1)));
    let mut bytes = content.to_vec();
    bytes.resize(PAGES as usize * PAGE, 0);
    let host = Arc::new(Memory(Mutex::new((vec![MapGpaFlags::NONE; PAGES as usize], bytes))));
    let ram = [GpnRange { start: Gpn(0), pages: PAGES }];
    let partition = Arc::new(Partition::new(Arc::<Memory>::clone(&host), Frame(0), PAGES as usize - 1, &ram, 1, 16).unwrap());
    let loader = Loader::new(Arc::clone(&partition), TRUST.clone(), CatalogIndex::default(), None, Box::new(Nothing));
    for call in calls.chunks_exact(BLOCK + 1) {
        let (kind, block) = call.split_first().unwrap();
        let mut block: [u8; BLOCK] = block.try_into().unwrap();
        if kind & 1 == 0 {
            let vtl = if kind & 2 == 0 { Vtl::Vtl0 } else { Vtl::Vtl1 };
            let word = u64::from_le_bytes(*block.first_chunk().unwrap());
            let codes = HypercallCode::NAMED;
            let control = Control(word & !Control(word).unknown()).with_nested(false);
            let control = control.with_code(codes[usize::from(control.code().0) % codes.len()].0);
            _ = partition.hypercall(&mut Processor, vtl, control.0, &block[8..], &mut [0; PAGE]);
        } else {
            // words that are small, and functions that there are
            if kind & 2 != 0 {
                block.as_chunks_mut::<8>().0.iter_mut().for_each(|word| word[3..].fill(0));
                let function =
                    [0x1_FFE3_u64, 0x1_FFE4, 0x1_FFE5, 0x1_FFE6, 0x1_FFE7, 0x1_FFE8, 0x1_FFEB, 0x2_0000, 0x2_0001, 0x2_0002, 0x2_0003];
                block[..8].copy_from_slice(&function[usize::from(kind >> 2) % function.len()].to_le_bytes());
            }
            _ = loader.call(&block, 0, UnixTime(1_767_225_600));
        }
        let (flags, _) = &*host.0.lock().unwrap();
        assert!(flags.iter().all(|f| !f.contains(MapGpaFlags::KERNEL_EXECUTABLE)), "executable by {call:x?}");
    }
    // no frame here is code, so that a table that is taken has none
    let table = [b"HVCILOAD\x01\0\0\0", content].concat();
    if loader.restore(&table).is_ok() {
        assert!(loader.modules_loaded().iter().flat_map(|m| &m.segments).all(|s| s.kind != Kind::Code));
    }
    let (events, _) = partition.take_events();
    assert!(events.len() <= 16);
});
