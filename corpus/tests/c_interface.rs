//! What the C program of `hvci-engine/tests/capi` loads beside its module: a driver that carries no signature, the catalog that lists it, and the
//! certificate of who signed that. `HVCI_WRITE_INPUTS=1` writes them.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{env, fs, path::Path};

use corpus::synth::{
    catalog::{Member, Tags, catalog},
    certificate::{Template, instant},
    key::{Key, KeyKind},
    oid,
    pe::{CODE, CONST, DATA, Image},
    signed_data::Signing,
};
use hvci_engine::{digest::DigestAlg, facts::FileKind};
use x509_cert::der::Encode;

#[test]
fn the_driver_and_its_catalog_are_what_is_checked_in() {
    let image = Image {
        sections: vec![(".text", CODE, 0x40), (".rdata", CONST, 0x40), (".data", DATA, 0x40)],
        imports: ("", Vec::new()),
        relocations: vec![(2, 0x10), (2, 0x18)],
        version: None,
        pdb: None,
        ..Image::of(FileKind::PeDriver, "listed")
    };
    let driver = image.build().unwrap();
    let usages = [oid::EKU_WHQL, oid::EKU_CODE_SIGNING];
    let key = Key::derive(7, "publisher", KeyKind::Rsa(2048)).unwrap();
    let publisher = Template::leaf("CN=C interface test publisher", &usages).issue(&key, None).unwrap();
    let member = Member::image(&driver, DigestAlg::Sha256).unwrap();
    let list = catalog(&[member], Tags::Raw, instant("2026-01-01").unwrap(), &Signing::new(&publisher, &[])).unwrap();

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hvci-engine/tests/capi");
    for (name, fresh) in [("driver.sys", driver), ("driver.cat", list), ("publisher.der", publisher.certificate.to_der().unwrap())] {
        let path = folder.join(name);
        if env::var_os("HVCI_WRITE_INPUTS").is_some() {
            fs::write(&path, &fresh).unwrap();
        }
        assert!(
            fs::read(&path).unwrap_or_default() == fresh,
            "{name} is stale: HVCI_WRITE_INPUTS=1 cargo test -p corpus --test c_interface"
        );
    }
}
