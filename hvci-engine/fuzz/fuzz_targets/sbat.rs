//! SBAT levels and the components of images: what can be read is small, and says what it was read from.
#![no_main]

use hvci_engine::image::sbat::SbatLevel;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(level) = SbatLevel::read(data) else { return };
    let text = std::str::from_utf8(data).expect("what is read is text");
    for component in &level.components {
        assert!(text.contains(&component.name) && text.contains(&component.generation.to_string()), "{component:?}");
    }
});
