//! SignedData as Authenticode, with timestamps and nested signatures: the input is the PKCS#7 of a small driver, of a module and a file of its own.
//! Both decoders read it, and its signers are judged under every profile.
#![no_main]

#[path = "../support.rs"]
mod support;

use hvci_engine::{
    bytes::der::{Tlv, tag},
    signature::crosscheck,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    walk(data, 0);
    for file in [support::signed_driver(data), support::signed_module(data), data.to_vec()] {
        support::examine_and_judge(&file);
        crosscheck::divergences(&file);
    }
});

/// Every accessor of every element.
fn walk(bytes: &[u8], depth: usize) {
    let Ok(tlv) = Tlv::parse_exact(bytes, 0) else { return };
    _ = (tlv.oid(), tlv.integer(), tlv.small_uint(), tlv.bit_octets(), tlv.octets(), tlv.time());
    _ = (tlv.text(), tlv.implicit(tag::OCTET_STRING).octets());
    let Ok(mut reader) = tlv.reader() else { return };
    while depth < 40
        && let Ok(child) = reader.next()
    {
        walk(child.raw, depth + 1);
    }
}
