//! What is measured inside a process of its own, so that its memory and processor time are its own.
//!
//! This program starts itself with `--task`, writes a [`Request`] to the child's standard input and reads the answer, JSON, from its output.
//! Loading trust comes before the clock starts; the first certificate of every kind falls within.

use std::{
    collections::HashSet,
    env,
    io::{self, Write},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use cms::{content_info::ContentInfo, signed_data::SignedData};
use corpus::{
    report::Audited,
    scan::{Context, ROOM_BYTES, Watcher, scan},
    source::{
        content::{Content, MAP_FROM},
        walk::walk,
    },
    trust::add_roots,
};
use der::Decode;
use hvci_engine::{
    crypto::{self, Job, digest_jobs},
    digest::DigestAlg,
    examine::Examiner,
    image::pe::Pe,
    policy::{Decision, Judge, Profile},
    signature::{cache::Cache, catalog::CatalogIndex, keyring::certificates_from, modsig::ModuleTrailer, read_blob, trust::TrustStore},
    time::UnixTime,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use x509_cert::Certificate;

use crate::{cpu, forged, obvious, verdicts};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// The whole scan of `hvci-audit` without its reports. Answers [`Measured`].
    Scan,
    /// The same in a process that has done it once: its memory is there. Answers [`Measured`].
    ScanAgain,
    /// The same files one at a time, as a load path meets them. Answers [`Measured`].
    OneByOne,
    /// Of modules only what cannot be left out: reading, hashing in lanes, RSA; in memory that is there. Answers [`Measured`].
    Bound,
    /// Decoding the Authenticode blobs with the engine's reader. Answers [`Measured`].
    Blobs,
    /// Decoding the Authenticode blobs with the `cms` crate. Answers [`Measured`].
    BlobsByCms,
    /// [`obvious::pe`]. Answers [`Measured`].
    ObviousPe,
    /// [`obvious::module`]. Answers [`Measured`].
    ObviousModules,
    /// The verdicts themselves. Answers [`verdicts::Judged`].
    Judge,
    /// Forgeries of the files. Answers [`forged::Tried`].
    Forge,
    /// As much arithmetic on each thread, which shares nothing with another: what two cores of a machine give at best. Answers seconds.
    Spin,
}

/// What to do with what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// What to do.
    pub work: Work,
    /// The folder, for a scan.
    pub dir: PathBuf,
    /// The files, for everything else.
    pub files: Vec<PathBuf>,
    /// Threads of a scan.
    pub jobs: usize,
    /// Whether the process is kept on as many cores.
    pub pinned: bool,
    /// Whom to trust.
    pub trust: Trust,
}

/// Whom to trust, and whose rules to follow.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Trust {
    /// Also the anchors that ship with the engine.
    pub builtin: bool,
    /// A bundle of roots.
    pub roots: Option<PathBuf>,
    /// The certificate of modules.
    pub module_key: Option<PathBuf>,
    /// The profile; `None` for each file's own.
    pub profile: Option<String>,
}

/// What one run took.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// How many files.
    pub files: usize,
    /// How many of them were found valid.
    pub valid: usize,
    /// Processor seconds.
    pub cpu: f64,
    /// Seconds by the clock on the wall.
    pub wall: f64,
    /// Largest resident set, KiB.
    pub peak_rss: u64,
    /// Processor time of each file in µs, where files are dealt with one by one.
    pub each: Vec<f64>,
}

impl Measured {
    /// Files a processor second.
    #[expect(clippy::cast_precision_loss, reason = "numbers of files")]
    pub fn rate(&self) -> f64 {
        self.files as f64 / self.cpu
    }
}

/// Does `request` in a process of its own.
///
/// # Errors
/// It cannot be started, or fails: what it says then.
pub fn run<T: DeserializeOwned>(request: &Request) -> Result<T> {
    let mut child = Command::new(env::current_exe()?).arg("--task").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let input = serde_json::to_vec(request)?;
    child.stdin.take().context("no pipe")?.write_all(&input)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{:?} failed", request.work);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The child's side of [`run`].
///
/// # Errors
/// No request, or unreadable files.
pub fn answer() -> Result<()> {
    let request: Request = serde_json::from_reader(io::stdin().lock())?;
    if request.pinned {
        cpu::pin(request.jobs)?;
    }
    let files = &request.files;
    let answer = match request.work {
        Work::Scan => serde_json::to_vec(&whole_scan(&request)?)?,
        Work::ScanAgain => {
            whole_scan(&request)?;
            serde_json::to_vec(&whole_scan(&request)?)?
        }
        Work::OneByOne => serde_json::to_vec(&one_by_one(&request)?)?,
        Work::Bound => serde_json::to_vec(&bound(&request)?)?,
        Work::Blobs => serde_json::to_vec(&blobs(files, |blob| read_blob(blob).is_ok())?)?,
        Work::BlobsByCms => serde_json::to_vec(&blobs(files, decodes_by_cms)?)?,
        Work::ObviousPe => serde_json::to_vec(&each_file(files, |file| obvious::pe(file)))?,
        Work::ObviousModules => {
            let pem = std::fs::read(request.trust.module_key.as_ref().context("no key")?)?;
            let certificate = certificates_from(&pem)?.into_iter().next().context("no certificate")?;
            let key = obvious::key(&Certificate::from_der(&certificate)?).context("no RSA key")?;
            serde_json::to_vec(&each_file(files, |file| obvious::module(file, &key)))?
        }
        Work::Judge => serde_json::to_vec(&verdicts::judge(&request)?)?,
        Work::Forge => serde_json::to_vec(&forged::run(&request)?)?,
        Work::Spin => serde_json::to_vec(&spin(request.jobs))?,
    };
    io::stdout().write_all(&answer)?;
    Ok(())
}

/// Seconds that `threads` take, each to hash a quarter of a gigabyte that stays in its cache.
fn spin(threads: usize) -> f64 {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let text = vec![0x5A; 1 << 16];
                for _ in 0..1 << 12 {
                    std::hint::black_box(crypto::digest(DigestAlg::Sha256, &[&text]));
                }
            });
        }
    });
    begin.elapsed().as_secs_f64()
}

/// The trust store and the profile that are asked for.
///
/// # Errors
/// An unreadable file, or no such profile.
pub fn trust(of: &Trust) -> Result<(TrustStore, Option<&'static Profile>)> {
    let mut store = if of.builtin { TrustStore::builtin() } else { TrustStore::empty() };
    if let Some(roots) = &of.roots {
        add_roots(&mut store, &[roots.to_string_lossy().into_owned()])?;
    }
    if let Some(key) = &of.module_key {
        add_roots(&mut store, &[format!("module={}", key.display())])?;
    }
    let profile = of.profile.as_deref().map(|name| Profile::find(name).with_context(|| format!("no profile {name}"))).transpose()?;
    Ok((store, profile))
}

/// The time now.
///
/// # Errors
/// A clock before 1970.
pub fn now() -> Result<UnixTime> {
    Ok(UnixTime(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?))
}

/// Largest file or member: above every file of the corpus.
pub const MAX_SIZE: u64 = 1 << 30;

struct Count(usize);

impl Watcher for Count {
    fn record(&mut self, audited: &Audited) -> io::Result<()> {
        self.0 += usize::from(audited.verdict.decision == Decision::Accept);
        Ok(())
    }

    fn advance(&mut self, _: u64, _: u64) {}
}

fn whole_scan(request: &Request) -> Result<Measured> {
    let (trust, profile) = trust(&request.trust)?;
    let context = Context {
        profile,
        trust,
        catalogs: CatalogIndex::default(),
        time: now()?,
        cache: Cache::default(),
        digests: Vec::new(),
        max_size: MAX_SIZE,
        jobs: request.jobs,
        named: HashSet::new(),
        base: None,
    };
    let mut valid = Count(0);
    let (wall, before) = (Instant::now(), cpu::process());
    let summary = scan(walk([request.dir.clone()]), &context, &mut valid)?;
    let cpu = cpu::process() - before;
    Ok(Measured {
        files: usize::try_from(summary.files)?,
        valid: valid.0,
        cpu: cpu.as_secs_f64(),
        wall: wall.elapsed().as_secs_f64(),
        peak_rss: cpu::peak_rss(),
        each: Vec::new(),
    })
}

fn one_by_one(request: &Request) -> Result<Measured> {
    let (trust, profile) = trust(&request.trust)?;
    let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
    let examiner = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] };
    let judge = Judge { trust: &trust, time: now()?, cache: &cache };
    let mut room = vec![0; usize::try_from(MAP_FROM)? + 1];
    Ok(each_file(&request.files, |file| {
        let Ok(content) = Content::open(file, MAX_SIZE, &mut room.as_mut_slice()) else { return false };
        let facts = examiner.examine(content.bytes(), usize::try_from(MAX_SIZE).unwrap_or(usize::MAX));
        judge.judge(&facts, profile).decision == Decision::Accept && content.changed().is_none()
    }))
}

/// How many files are hashed side by side, as in a scan.
const BATCH: usize = 64;

fn bound(request: &Request) -> Result<Measured> {
    let (trust, _) = trust(&request.trust)?;
    let key = &trust.anchors().first().context("no key")?.certificate;
    let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
    let examiner = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] };
    // which bytes to hash and which signature to verify is known beforehand
    let mut known = Vec::new();
    for file in &request.files {
        let content = Content::open(file, MAX_SIZE, &mut Default::default()).map_err(|note| anyhow::anyhow!(note.detail))?;
        let Some(trailer) = ModuleTrailer::find(content.bytes()).ok().flatten() else { continue };
        let Some(signature) = examiner.examine(content.bytes(), content.bytes().len()).signatures.pop() else { continue };
        known.extend(signature.signer.map(|signer| (file, trailer.content.len(), signer)));
    }
    let mut valid = 0;
    let mut memory = vec![1; ROOM_BYTES];
    let start = cpu::thread();
    for batch in known.chunks_mut(BATCH) {
        let mut room = memory.as_mut_slice();
        let contents: Vec<Content<'_>> =
            batch.iter().filter_map(|(file, ..)| Content::open_found(file, MAX_SIZE, &mut room).ok()).collect();
        let jobs: Vec<Job<'_>> = batch
            .iter()
            .zip(&contents)
            .filter_map(|((_, len, signer), content)| {
                Some(Job { alg: signer.signed_digest.as_ref()?.alg(), pieces: vec![content.bytes().get(..*len)?] })
            })
            .collect();
        for ((.., signer), digest) in batch.iter_mut().zip(digest_jobs(&jobs)) {
            signer.signed_digest = Some(digest);
            valid += usize::from(signer.check_with(key).is_valid());
        }
    }
    let cpu = cpu::thread() - start;
    Ok(Measured { files: request.files.len(), valid, cpu: cpu.as_secs_f64(), peak_rss: cpu::peak_rss(), ..Measured::default() })
}

/// How often the blobs are decoded in a run: once is over before a clock can tell.
const PASSES: usize = 20;

fn blobs(files: &[PathBuf], decodes: impl Fn(&[u8]) -> bool) -> Result<Measured> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for file in files {
        let data = std::fs::read(file)?;
        let Ok(pe) = Pe::parse(&data) else { continue };
        all.extend(pe.certificate_table().entries.iter().filter(|e| e.is_authenticode()).map(|e| e.pkcs7.to_vec()));
    }
    let valid = all.iter().filter(|blob| decodes(blob)).count();
    let before = cpu::thread();
    for _ in 0..PASSES {
        for blob in &all {
            std::hint::black_box(decodes(std::hint::black_box(blob)));
        }
    }
    let cpu = cpu::thread() - before;
    Ok(Measured { files: all.len() * PASSES, valid, cpu: cpu.as_secs_f64(), peak_rss: cpu::peak_rss(), ..Measured::default() })
}

fn decodes_by_cms(blob: &[u8]) -> bool {
    ContentInfo::from_der(blob).and_then(|info| info.content.decode_as::<SignedData>()).is_ok()
}

fn each_file(files: &[PathBuf], mut is_valid: impl FnMut(&PathBuf) -> bool) -> Measured {
    let mut each = Vec::with_capacity(files.len());
    let mut valid = 0;
    let (wall, before) = (Instant::now(), cpu::process());
    for file in files {
        let start = cpu::thread();
        valid += usize::from(is_valid(file));
        each.push((cpu::thread() - start).as_secs_f64() * 1e6);
    }
    let cpu = (cpu::process() - before).as_secs_f64();
    Measured { files: files.len(), valid, cpu, wall: wall.elapsed().as_secs_f64(), peak_rss: cpu::peak_rss(), each }
}
