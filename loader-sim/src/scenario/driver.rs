//! The files of a scenario's drivers.

use std::{fs, path::Path, sync::LazyLock};

use corpus::synth::{
    certificate::{Identity, Template},
    elf,
    key::{Key, KeyKind},
};
use hvci_engine::{
    load::MAX_IMAGE,
    signature::{keyring::certificates_from, trust::Purposes},
};
use toml::Spanned;
use x509_cert::der::Encode;

use super::{
    Scenario, ScenarioError,
    format::{DriverEntry, Synthetic},
    machine,
};
use crate::{guest_loader, trace::Anchor};

/// RET.
const RETURN: u8 = 0xC3;

/// Who signs synthetic modules: the key of the guest's kernel, and somebody else's.
static KEYS: LazyLock<Result<[Identity; 2], String>> = LazyLock::new(|| {
    let key = |seed, name| {
        let key = Key::derive(seed, name, KeyKind::Rsa(2048)).map_err(|e| e.to_string())?;
        Template::leaf(&format!("CN={name} key"), &[]).issue(&key, None).map_err(|e| e.to_string())
    };
    Ok([key(7, "module")?, key(8, "stranger")?])
});

fn keys() -> Result<&'static [Identity; 2], ScenarioError> {
    KEYS.as_ref().map_err(machine)
}

/// The bytes of a driver's file.
pub(super) fn file(scenario: &Scenario, driver: &DriverEntry, folder: &Path) -> Result<Vec<u8>, ScenarioError> {
    match (&driver.file, driver.synth) {
        (Some(path), _) => read(scenario, path.get_ref(), path, folder),
        (None, Some(synthetic)) => make(synthetic),
        (None, None) => Ok(Vec::new()),
    }
}

/// Whom the engine trusts: who signs synthetic modules, and whoever is given.
pub(super) fn anchors(scenario: &Scenario, folder: &Path) -> Result<Vec<Anchor>, ScenarioError> {
    let [module, _] = keys()?;
    let mut anchors = vec![Anchor { purpose: "module".to_owned(), der: module.certificate.to_der().map_err(machine)? }];
    for root in &scenario.roots {
        let wrong = |what: String| scenario.source().wrong(root.span(), what);
        let (purpose, path) = root.get_ref().split_once('=').ok_or_else(|| wrong("a root is PURPOSE=FILE".to_owned()))?;
        if Purposes::from_name(purpose).is_none() {
            return Err(wrong(format!("{purpose} is no purpose: kernel, uefi, shim, module, user, timestamp or list")));
        }
        let bytes = read(scenario, Path::new(path), root, folder)?;
        let found = certificates_from(&bytes).map_err(|error| wrong(format!("{path}: {error}")))?;
        anchors.extend(found.into_iter().map(|der| Anchor { purpose: purpose.to_owned(), der }));
    }
    Ok(anchors)
}

fn read<T>(scenario: &Scenario, path: &Path, named: &Spanned<T>, folder: &Path) -> Result<Vec<u8>, ScenarioError> {
    let path = folder.join(path);
    let line = scenario.source().line(named.span());
    let failed = |source| ScenarioError::Io { line, path: path.display().to_string(), source };
    if fs::metadata(&path).map_err(failed)?.len() > MAX_IMAGE {
        return Err(scenario.source().wrong(named.span(), format!("{} is larger than {MAX_IMAGE} bytes", path.display())));
    }
    fs::read(&path).map_err(failed)
}

fn make(synthetic: Synthetic) -> Result<Vec<u8>, ScenarioError> {
    let [key, stranger] = keys()?;
    let mut module = elf::module("good", synthetic == Synthetic::WritableCode).map_err(machine)?;
    // what stands first in memory
    let base = guest_loader::region_of(&module);
    let text = guest_loader::place(&module, base).map_err(machine)?.remove(&base.0).unwrap_or_default();
    let first = module.windows(32).position(|window| text.starts_with(window)).and_then(|at| module.get_mut(at));
    *first.ok_or_else(|| machine("a module without code"))? = RETURN;
    let signed = |key| elf::signed(&module, &elf::signing(key)).map_err(machine);
    match synthetic {
        Synthetic::Unsigned => Ok(module),
        Synthetic::Stranger => signed(stranger),
        Synthetic::Good | Synthetic::WritableCode => signed(key),
        Synthetic::Forged => {
            let mut file = signed(key)?;
            if let Some(byte) = file.get_mut(0x100) {
                *byte ^= 1;
            }
            Ok(file)
        }
    }
}
