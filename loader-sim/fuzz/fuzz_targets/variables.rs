//! Variables of a machine: OVMF's file, and updates of what is authenticated. What nobody signed changes nothing, and a file that is read is written
//! back with the same variables.
#![no_main]

use std::sync::LazyLock;

use hvci_engine::signature::trust::TrustStore;
use libfuzzer_sys::fuzz_target;
use loader_sim::firmware::{
    flash::Flash,
    store::VariableStore,
    variable::{Attributes, Variable, well_known},
};

/// One whose PK nobody has the key of.
static LOCKED: LazyLock<VariableStore> = LazyLock::new(|| {
    let builtin = TrustStore::builtin();
    let certificate = builtin.anchors().first().expect("there are some").certificate.der();
    let entry = [&[0; 16][..], certificate].concat();
    let size = |len: usize| u32::try_from(len).expect("short").to_le_bytes();
    let kind = [0xA1, 0x59, 0xC0, 0xA5, 0xE4, 0x94, 0xA7, 0x4A, 0x87, 0xB5, 0xAB, 0x15, 0x5C, 0x2B, 0xF0, 0x72];
    let list = [&kind[..], &size(entry.len() + 28), &[0; 4], &size(entry.len()), &entry].concat();
    let all = ["PK", "KEK", "db"].map(|name| {
        let (vendor, attributes) = well_known(name).expect("known");
        let name = name.encode_utf16().collect();
        Variable { name, vendor, attributes, time: Default::default(), legacy: (0, 0), data: list.clone() }
    });
    VariableStore::new(all)
});

fuzz_target!(|data: &[u8]| {
    if let Ok(flash) = Flash::read(data.to_vec()) {
        let written = flash.with(flash.variables()).expect("what fitted fits");
        let again = Flash::read(written).expect("what was written is read");
        assert_eq!(again.variables(), flash.variables());
    }
    for name in ["PK", "KEK", "db", "dbx"] {
        let (vendor, attributes) = well_known(name).expect("known");
        for attributes in [attributes, attributes.and(Attributes::APPEND)] {
            let mut store = LOCKED.clone();
            if store.set(name, vendor, attributes, data).is_err() {
                assert_eq!(store, *LOCKED, "what is refused changes nothing");
            } else {
                assert_eq!(store.get(name, vendor).map(|v| &v.data), LOCKED.get(name, vendor).map(|v| &v.data), "nobody signed {name}");
            }
        }
    }
});
