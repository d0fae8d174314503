//! What is loaded: drivers made in code and signed with RSA, or real drivers and modules of a folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::{
    digest::{self, SHA256},
    signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256},
};
use corpus::{
    source::walk::walk,
    synth::{
        authenticode,
        certificate::{Identity, Template},
        key::{Key, KeyKind},
        oid,
        pe::{CODE, CONST, DATA, INIT, Image},
    },
    trust::KernelKeys,
};
use der::Encode;
use hvci_engine::{
    digest::DigestAlg,
    examine::{Examiner, Input},
    facts::{FileKind, Signer},
    load::{Loader, MAX_IMAGE},
    signature::{
        cache::Cache,
        catalog::CatalogIndex,
        cert::Certificate,
        trust::{Purposes, TrustStore},
    },
    time::UnixTime,
    vsm::partition::Partition,
};
use loader_sim::guest_loader::StubKernel;

use crate::{inputs, loading::Machine, task};

/// A signed file that the engine loads, and whom it trusts for it.
#[derive(Debug)]
pub struct Subject {
    /// For people.
    pub name: String,
    /// The file.
    pub file: Vec<u8>,
    /// Who signs what is loaded.
    pub trust: TrustStore,
    /// The time of the verdicts.
    pub time: UnixTime,
}

/// Sizes that the goals are about: up to 100 KiB is a usual driver.
const SIZES: [usize; 4] = [60 << 10, 100 << 10, 500 << 10, 4 << 20];

impl Subject {
    /// Drivers of some sizes with one signature and no timestamp, signed with RSA-4096 and the smallest and the largest with RSA-2048 too.
    /// Takes seconds, for the keys.
    ///
    /// # Errors
    /// None that occurs.
    pub fn synthetic() -> Result<Vec<Self>> {
        const WHQL: &[der::oid::ObjectIdentifier] = &[oid::EKU_WHQL, oid::EKU_CODE_SIGNING];
        let root = Template::ca("CN=Bench Root", None).issue(&Key::derive(1, "bench root", KeyKind::P256)?, None)?;
        let publisher = |bits| Template::leaf("CN=Bench Publisher", WHQL).issue(&Key::derive(1, "bench", KeyKind::Rsa(bits))?, Some(&root));
        let (large, small) = (publisher(4096)?, publisher(2048)?);
        let mut trust = TrustStore::empty();
        trust.add(Certificate::parse(&root.certificate.to_der()?)?.into(), Purposes::KERNEL, "bench");
        let of = |size: usize, bits: u32, publisher: &Identity| -> Result<Self> {
            let file = authenticode::signed(&driver(size)?, publisher, &[])?;
            Ok(Self { name: format!("driver, {}, RSA-{bits}", size_name(size)), file, trust: trust.clone(), time: inputs::TIME })
        };
        let [a, b, c, d] = SIZES;
        Ok(vec![
            of(a, 4096, &large)?,
            of(a, 2048, &small)?,
            of(b, 4096, &large)?,
            of(b, 2048, &small)?,
            of(c, 4096, &large)?,
            of(d, 2048, &small)?,
        ])
    }

    /// The x86-64 drivers below `dir` that load, and of the Linux modules for whose kernel there is an image too the largest that load up to
    /// each of the sizes.
    ///
    /// # Errors
    /// An unreadable folder, or nothing that loads in it.
    pub fn real(dir: &Path) -> Result<Vec<Self>> {
        let (mut drivers, mut modules, mut kernels) = (Vec::new(), Vec::new(), Vec::new());
        for found in walk([dir.to_owned()]) {
            let (Ok(()), Ok(metadata)) = (found.result, fs::metadata(&found.path)) else { continue };
            let len = metadata.len();
            let name = found.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if name.to_ascii_lowercase().ends_with(".sys") {
                drivers.push((len, found.path));
            } else if name.ends_with(".ko") {
                modules.push((len, found.path));
            } else if name.starts_with("vmlinuz") {
                kernels.push(found.path);
            }
        }
        let time = task::now()?;
        let mut subjects: Vec<Self> = Vec::new();
        let mut take = |path: &PathBuf, trust: &TrustStore| -> Result<bool> {
            let file = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("{name}, {}", size_name(file.len()));
            let subject = Self { name, file, trust: trust.clone(), time };
            // the same driver in another package
            let loads = subjects.iter().all(|other| other.file != subject.file) && subject.loads();
            subjects.extend(loads.then_some(subject));
            Ok(loads)
        };
        drivers.sort_unstable();
        for (_, path) in &drivers {
            take(path, &TrustStore::builtin())?;
        }
        let mut trust = TrustStore::empty();
        for kernel in &kernels {
            KernelKeys::read(kernel)?.add_to(&mut trust);
        }
        modules.sort_unstable_by(|a, b| b.cmp(a));
        for size in SIZES.into_iter().filter(|_| !kernels.is_empty()) {
            for (_, path) in modules.iter().filter(|(len, _)| usize::try_from(*len).is_ok_and(|len| len <= size)).take(20) {
                if take(path, &trust)? {
                    break;
                }
            }
        }
        ensure!(!subjects.is_empty(), "{}: no driver (.sys) and no module (.ko, with its vmlinuz) that loads", dir.display());
        Ok(subjects)
    }

    /// A loader into `partition` that has seen no certificate yet.
    pub fn loader(&self, partition: std::sync::Arc<Partition>) -> Loader {
        Loader::new(partition, self.trust.clone(), CatalogIndex::default(), None, Box::new(StubKernel))
    }

    fn loads(&self) -> bool {
        Machine::new(self).and_then(|machine| machine.load(&self.file)).is_ok()
    }

    /// The signature that the verdict rests on, ready to be verified by aws-lc.
    ///
    /// # Errors
    /// It is no RSA signature over SHA-256, or aws-lc does not take it.
    pub fn signature(&self) -> Result<Verification> {
        let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
        let input = Input::new(&self.file, usize::try_from(MAX_IMAGE)?);
        let examiner = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] };
        let facts = examiner.examine_all(core::slice::from_ref(&input)).pop().context("no facts")?;
        let anchors = self.trust.anchors().iter().map(|anchor| &anchor.certificate);
        // a module carries no certificate
        let keys: Vec<_> = facts.certificates.iter().chain(anchors).collect();
        let alone = matches!(facts.signatures.as_slice(), [only] if only.timestamps.is_empty());
        let verification = facts.signatures.iter().filter_map(|s| s.signer.as_ref()).find_map(|signer| Verification::find(signer, &keys));
        let verification = verification.with_context(|| format!("{}: no RSA signature over SHA-256", self.name))?;
        Ok(Verification { alone, ..verification })
    }
}

/// One RSA verification with a parsed key.
#[derive(Debug)]
pub struct Verification {
    key: ParsedPublicKey,
    digest: digest::Digest,
    value: Vec<u8>,
    /// Whether there is no other signature in the file, nor a timestamp.
    pub alone: bool,
}

impl Verification {
    fn find(signer: &Signer, keys: &[&std::sync::Arc<Certificate>]) -> Option<Self> {
        let digest = signer.signed_digest.as_ref().filter(|d| d.alg() == DigestAlg::Sha256)?;
        let digest = digest::Digest::import_less_safe(digest.as_bytes(), &SHA256).ok()?;
        let parsed = keys.iter().filter_map(|c| ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, c.spki()).ok());
        let mut all = parsed.map(|key| Self { key, digest, value: signer.value.clone(), alone: false });
        all.find(Self::verifies)
    }

    /// Whether it verifies, which it does.
    pub fn verifies(&self) -> bool {
        self.key.verify_digest_sig(&self.digest, &self.value).is_ok()
    }
}

/// An unsigned driver of about this many bytes, with a relocation for each half KiB of it.
fn driver(size: usize) -> Result<Vec<u8>> {
    let (constants, data) = (size / 4, size / 8);
    let code = size.saturating_sub(constants + data + 0x2000);
    let sections = vec![(".text", CODE, code), (".rdata", CONST, constants), (".data", DATA, data), ("INIT", INIT, 0x600)];
    let relocations = (0..u32::try_from(size / 512)?).map(|n| (1, n * 16)).collect();
    let name = format!("bench {size}");
    Ok(Image { sections, relocations, ..Image::of(FileKind::PeDriver, &name) }.build()?)
}

fn size_name(len: usize) -> String {
    let kib = len.div_ceil(1 << 10);
    if kib < 1 << 10 { format!("{kib} KiB") } else { format!("{} MiB", kib >> 10) }
}
