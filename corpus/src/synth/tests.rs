//! The maker against tools that it has nothing to do with.

use std::{fs, path::Path, process::Command};

use hvci_engine::facts::FileKind;

use super::*;

#[test]
fn first() {
    let pki = pki::Pki::new(1).unwrap();
    let dir = Path::new("/tmp/synth-first");
    fs::create_dir_all(dir).unwrap();
    let roots: String = ["kernel root", "code root", "tsa root"]
        .iter()
        .map(|n| {
            use ::der::EncodePem;
            pki.get(n).unwrap().certificate.to_pem(::der::pem::LineEnding::LF).unwrap()
        })
        .collect();
    fs::write(dir.join("roots.pem"), roots).unwrap();
    for kind in [FileKind::PeDriver, FileKind::PeEfi, FileKind::PeUser] {
        let image = pe::Image::of(kind, "first").build().unwrap();
        let issuers = pki.certificates(&["code ca"]).unwrap();
        let mut a = authenticode::Authenticode::new(signed_data::Signing::new(pki.get("code").unwrap(), &issuers));

        let tsa = pki.certificates(&["tsa root"]).unwrap();
        let t = timestamp::Stamp::new(pki.get("tsa").unwrap(), &tsa, certificate::instant("2023-01-01").unwrap());
        a.signing.stamps.push(if kind == FileKind::PeEfi { t.pkcs9() } else { t });
        let s = authenticode::Table {
            entries: vec![authenticode::Entry::pkcs7(a.sign(&image).unwrap())],
            ..authenticode::Table::split(&image).unwrap()
        }
        .join()
        .unwrap();
        let f = dir.join(format!("{kind:?}.sys"));
        fs::write(&f, s).unwrap();
        let out = Command::new("osslsigncode")
            .args(["verify", "-ignore-cdp", "-ignore-crl", "-CAfile"])
            .arg(dir.join("roots.pem"))
            .arg("-TSA-CAfile")
            .arg(dir.join("roots.pem"))
            .arg("-in")
            .arg(&f)
            .output()
            .unwrap();
        println!("{}\n{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    }
}
