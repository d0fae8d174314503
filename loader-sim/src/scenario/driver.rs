//! The files of a scenario's drivers.

use std::{fs, path::Path};

use corpus::synth::elf;
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
use crate::{attack::forge, trace::Anchor};

/// The bytes of a driver's file.
pub(super) fn file(scenario: &Scenario, driver: &DriverEntry, folder: &Path) -> Result<Vec<u8>, ScenarioError> {
    match (&driver.file, driver.synth) {
        (Some(path), _) => read(scenario, path.get_ref(), path, folder),
        (None, Some(synthetic)) => make(synthetic).map_err(machine),
        (None, None) => Ok(Vec::new()),
    }
}

/// Whom the engine trusts: who signs synthetic modules and drivers, and whoever is given.
pub(super) fn anchors(scenario: &Scenario, folder: &Path) -> Result<Vec<Anchor>, ScenarioError> {
    let mut anchors = Vec::new();
    for (purpose, key) in [("module", forge::module_key()), ("kernel", forge::driver_key())] {
        let der = key.map_err(machine)?.certificate.to_der().map_err(machine)?;
        anchors.push(Anchor { purpose: purpose.to_owned(), der });
    }
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

fn make(synthetic: Synthetic) -> anyhow::Result<Vec<u8>> {
    match synthetic {
        Synthetic::Good => forge::Module::new()?.signed(),
        Synthetic::Unsigned => forge::Module::new()?.unsigned(),
        Synthetic::Stranger => Ok(elf::signed(&forge::Module::new()?.unsigned()?, &elf::signing(forge::stranger()?))?),
        Synthetic::Forged => {
            let mut file = forge::Module::new()?.signed()?;
            if let Some(byte) = file.get_mut(0x100) {
                *byte ^= 1;
            }
            Ok(file)
        }
        Synthetic::WritableCode => forge::sign(&elf::module("good", true)?),
        Synthetic::Driver => forge::signed_driver(&forge::driver("good"), |_, _| {}),
    }
}
