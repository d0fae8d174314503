//! Trust from files: roots, what a root list limits them to, keyrings, the keys built into a kernel.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use hvci_engine::{
    finding::Note,
    policy::limit_anchors,
    signature::{
        cache::Cache,
        catalog::{Catalog, CatalogIndex},
        cert::Certificate,
        kernel::kernel_certificates,
        keyring::certificates_from,
        root_list::RootList,
        trust::{Purposes, TrustStore},
    },
};

use crate::source::walk::walk;

/// How large an unpacked kernel may be.
const KERNEL_CAP: usize = 512 << 20;

/// What certificates are in.
const CERTIFICATES: &[&str] = &["pem", "crt", "cer", "der", "p7b", "x509"];
/// What root lists are in.
const LISTS: &[&str] = &["stl"];

/// Adds what each `--roots [PURPOSE=]FILE|DIR` gives: certificates, without a purpose for [`Purposes::GIVEN`], and root lists, which limit every
/// anchor in whatever order things are given.
///
/// # Errors
/// An unreadable path, one with neither a certificate nor a list, an unknown purpose, a list that is not signed by who may.
pub fn add_roots(store: &mut TrustStore, arguments: &[String]) -> Result<()> {
    let mut lists = Vec::new();
    for argument in arguments {
        let (purposes, path) = match argument.split_once('=') {
            Some((name, path)) if Purposes::from_name(name).is_some() => (Purposes::from_name(name).unwrap_or(Purposes::GIVEN), path),
            _ => (Purposes::GIVEN, argument.as_str()),
        };
        let path = Path::new(path);
        let is_list = |file: &PathBuf| file.extension().is_some_and(|e| LISTS.iter().any(|x| e.eq_ignore_ascii_case(x)));
        let (found, certificates): (Vec<_>, Vec<_>) = files_of(path, &[CERTIFICATES, LISTS].concat())?.into_iter().partition(is_list);
        let added = add_certificates(store, &certificates, purposes, path.is_file())?;
        if added == 0 && found.is_empty() {
            bail!("{}: no certificate found; give a certificate or a bundle of them, PEM or DER, or a root list (.stl)", path.display());
        }
        lists.extend(found);
    }
    // last, when whoever may sign them is known
    lists.iter().try_for_each(|list| add_list(store, list))
}

fn add_certificates(store: &mut TrustStore, files: &[PathBuf], purposes: Purposes, given_by_name: bool) -> Result<usize> {
    let mut added = 0;
    for file in files {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let certificates = match certificates_from(&bytes) {
            Ok(certificates) => certificates,
            // a folder may hold other things
            Err(_) if !given_by_name => continue,
            Err(e) => bail!("{}: {e}; give a certificate or a bundle of them, PEM or DER", file.display()),
        };
        for der in certificates {
            let origin = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if store.add_der(&der, purposes, origin).is_ok() {
                added += 1;
            }
        }
    }
    Ok(added)
}

fn add_list(store: &mut TrustStore, file: &Path) -> Result<()> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let cache = Cache::default();
    let believed = RootList::read(&bytes, &cache).and_then(|list| limit_anchors(store, &list, &cache));
    believed.map_err(|Note { code, subject, detail, .. }| {
        let about = [subject.unwrap_or_default(), detail].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(": ");
        anyhow!(
            "{}: this root list cannot be believed: {} ({about}); give the list as Microsoft signed it, or its signer's root with --roots list=FILE",
            file.display(),
            code.title()
        )
    })
}

/// The keys built into a kernel image (a vmlinuz or vmlinux), which are keys for its modules. Finding them unpacks it, which takes a second.
#[derive(Debug)]
pub struct KernelKeys {
    certificates: Vec<Vec<u8>>,
    origin: String,
}

impl KernelKeys {
    /// Finds those of the image `path`.
    ///
    /// # Errors
    /// An unreadable file, one that is no kernel, one without keys.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut certificates =
            kernel_certificates(&bytes, KERNEL_CAP).with_context(|| format!("{}: cannot find the keys of this kernel", path.display()))?;
        certificates.retain(|der| Certificate::parse(der).is_ok());
        if certificates.is_empty() {
            bail!("{}: no built-in certificate found; is it the kernel that these modules are for?", path.display());
        }
        let origin = format!("built into {}", path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default());
        Ok(Self { certificates, origin })
    }

    /// Adds them, read anew, as nobody has used them yet.
    pub fn add_to(&self, store: &mut TrustStore) {
        for der in &self.certificates {
            // `read` left out what is none
            let _ = store.add_der(der, Purposes::MODULE, self.origin.clone());
        }
    }
}

/// Reads the catalogs of `--catalog FILE|DIR` into `index`.
///
/// # Errors
/// An unreadable path, or a file that is no catalog.
pub fn add_catalogs(index: &mut CatalogIndex, path: &Path, cache: &Cache) -> Result<()> {
    for file in files_of(path, &["cat"])? {
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        match Catalog::read(&bytes, cache) {
            Ok(catalog) => index.add(file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(), catalog),
            Err(note) => bail!("{}: {} ({})", file.display(), note.code.title(), note.detail),
        }
    }
    if index.is_empty() {
        bail!("{}: no .cat file found", path.display());
    }
    Ok(())
}

/// `path` itself, or in a folder, however deep, the files with one of these extensions, in order.
fn files_of(path: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if metadata.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found: Vec<PathBuf> = walk([path.to_owned()])
        .filter(|found| found.result.is_ok())
        .map(|found| found.path)
        .filter(|p| p.extension().is_some_and(|e| extensions.iter().any(|x| e.eq_ignore_ascii_case(x))))
        .collect();
    found.sort();
    Ok(found)
}
