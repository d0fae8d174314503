//! An independent tool must read the catalogs that are made here. What tools say of the images is compared in `tests/differential.rs`.

use std::process::{Command, Output};

use tempfile::TempDir;

use super::*;

#[test]
fn osslsigncode_reads_the_catalogs() {
    if version("osslsigncode", "--version").is_none() {
        return;
    }
    let dir = written();
    let roots = bundle(&dir, &["kernel", "user"]);
    for (image, catalog, listed) in [
        ("listed.sys", "drivers.cat", true),
        ("listed-sha1.sys", "legacy.cat", true),
        ("listed.sys", "legacy.cat", false),
        ("changed.sys", "drivers.cat", false),
        ("listed-by-nobody.sys", "nobody.cat", false),
        ("listed-by-forged.sys", "forged.cat", false),
    ] {
        let out = Command::new("osslsigncode")
            .args(["verify", "-ignore-cdp", "-ignore-crl", "-CAfile"])
            .arg(&roots)
            .arg("-TSA-CAfile")
            .arg(dir.path().join("trust/timestamp.pem"))
            .arg("-catalog")
            .arg(dir.path().join("catalogs").join(catalog))
            .arg("-in")
            .arg(dir.path().join("images/catalog").join(image))
            .output()
            .unwrap();
        assert_eq!(out.status.success(), listed, "{image} in {catalog}\n{}", text(&out));
    }
}

/// The tool's version; a note that the test is skipped if it is not there.
fn version(tool: &str, argument: &str) -> Option<String> {
    match Command::new(tool).arg(argument).output() {
        Ok(out) => Some(text(&out)),
        Err(_) => {
            println!("skipped: {tool} not installed");
            None
        }
    }
}

/// A file with the anchors for these purposes.
fn bundle(dir: &TempDir, purposes: &[&str]) -> PathBuf {
    let anchors = anchors(&PKI).unwrap();
    let path = dir.path().join("bundle.pem");
    fs::write(&path, purposes.iter().map(|p| anchors[p].as_str()).collect::<String>()).unwrap();
    path
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn written() -> TempDir {
    let dir = TempDir::new().unwrap();
    write_corpus(dir.path(), DEFAULT_SEED, &PKI, &CORPUS).unwrap();
    dir
}
