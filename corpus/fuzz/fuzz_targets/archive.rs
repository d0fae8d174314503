//! Packages inside packages: members are bounded, and nothing stops the reader from coming to an end.
#![no_main]

use std::ops::ControlFlow;

use corpus::source::{
    container::{IMAGES, Limits, visit},
    kind::{Format, Kind, sniff},
};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { max_size: 1 << 20, max_unpacked: 4 << 20, max_nesting: 3 };

fuzz_target!(|data: &[u8]| {
    let formats = match sniff(data, "fuzz") {
        Kind::Package(format) => vec![format],
        // what a wrong guess leads to
        _ => vec![Format::Deb, Format::Zip, Format::Cab, Format::Ole, Format::Tar],
    };
    for format in formats {
        let mut total = 0;
        _ = visit(data, "fuzz", format, LIMITS, IMAGES, &mut |member| {
            assert!(member.bytes.len() as u64 <= LIMITS.max_size);
            assert!(!member.path.chars().any(char::is_control), "{:?}", member.path);
            total += member.bytes.len() as u64;
            assert!(total <= LIMITS.max_unpacked);
            ControlFlow::Continue(())
        });
    }
});
