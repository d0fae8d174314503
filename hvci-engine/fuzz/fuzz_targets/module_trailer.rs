//! The trailer of a signed Linux module: as the file ends, and with a good magic behind the input.
#![no_main]

use hvci_engine::{
    image::elf::{Appended, MODULE_SIG_STRING},
    signature::modsig::ModuleTrailer,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let with_magic = [data, MODULE_SIG_STRING].concat();
    for file in [data, &with_magic] {
        if let Some(appended) = Appended::find(file) {
            assert!(appended.fields_offset <= file.len());
        }
        if let Ok(Some(trailer)) = ModuleTrailer::find(file) {
            // nothing of the file is left out or counted twice
            assert!(file.starts_with(trailer.content));
            assert_eq!(trailer.pkcs7_span.offset, trailer.content.len() as u64);
            assert_eq!(trailer.pkcs7_span.end(), Some(trailer.span.offset));
            assert_eq!(trailer.span.end(), Some(file.len() as u64));
        }
    }
});
