//! What a Trusted Launch start costs: the TPM's commands, the replay of a log, the start of a real chain, the appraisal of many machines.

use std::{
    collections::BTreeMap,
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use hvci_engine::{
    crypto,
    digest::DigestAlg,
    examine::Examiner,
    facts::{DigestForm, Facts},
    image::pe::Pe,
    policy::secure_boot::Behaviour,
    signature::{cache::Cache, catalog::CatalogIndex},
    time::UnixTime,
};
use loader_sim::{
    attest::{
        Baseline, DbxInfo, Evidence, Features, Ledger, Machine as Known, Profile, Reference, Verifier, evidence::Bytes,
        quote::AttestationKey,
    },
    boot::{Boot, Disk, Machine, boot},
    firmware::store::VariableStore,
    measure::{EventLog, replay},
    vm::quoted,
    vtpm::{
        Tpm,
        client::{Client, KeyUse, LoadedKey},
        embedded::EmbeddedTpm,
    },
};
use rayon::prelude::*;
use serde::Serialize;

use crate::goal::{Goal, Must};

/// Times a short thing is done for one measurement.
const TIMES: u32 = 2_000;
const FLEET: usize = 1_000;
const SHA256: [DigestAlg; 1] = [DigestAlg::Sha256];
const ALL: [DigestAlg; 4] = [DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha384, DigestAlg::Sha512];

/// Microseconds, by round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measured {
    /// PCR_Extend of the SHA-256 bank by the embedded TPM.
    pub extend: Vec<f64>,
    /// Quote of 24 PCRs by the embedded TPM.
    pub quote: Vec<f64>,
    /// One ECDSA signature on P-256 by the library that the TPM signs with.
    pub sign: Vec<f64>,
    /// Reading and replaying a log of 46 events in four banks.
    pub replay: Vec<f64>,
    /// A whole start with the bank of SHA-256, quoted and appraised.
    pub start: Vec<f64>,
    /// The same with four banks.
    pub start_all: Vec<f64>,
    /// One SHA-256 of each image of the chain, and the RSA verifications of its signatures.
    pub bound: Vec<f64>,
    /// Appraisals of a thousand machines on two threads.
    pub fleet: Vec<f64>,
}

/// A chain to start, and its variables.
#[derive(Debug)]
pub struct Chain {
    /// Its files.
    pub disk: Disk,
    /// Its variables.
    pub variables: VariableStore,
}

impl Chain {
    fn start(&self, banks: &[DigestAlg], tpm: &mut dyn Tpm) -> Result<Boot> {
        let mut variables = self.variables.clone();
        let machine = Machine { disk: &self.disk, variables: &mut variables, behaviour: Behaviour::Strict, banks, firmware: b"firmware" };
        Ok(boot(machine, &mut Client::new(tpm))?)
    }
}

/// Measures everything, `rounds` times.
///
/// # Errors
/// The chain does not start, or something does not verify.
pub fn measure(chain: Option<&Chain>, rounds: usize) -> Result<Measured> {
    let mut measured = Measured::default();
    let mut tpm = EmbeddedTpm::manufacture([7; 32]);
    Client::new(&mut tpm).startup()?;
    let key = Client::new(&mut tpm).create_primary(KeyUse::Attestation)?;
    let extend = extend_command();
    let pcrs: Vec<u32> = (0..24).collect();
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| anyhow!("no key"))?;
    let random = SystemRandom::new();
    let log = log_of_real()?;
    let fleet = Fleet::new(&log)?;
    for _ in 0..rounds {
        measured.extend.push(each(TIMES * 10, || {
            let response = tpm.exec(&extend)?;
            ensure!(response.get(6..10) == Some(&[0; 4]), "PCR_Extend was refused");
            Ok(())
        })?);
        measured.quote.push(each(TIMES, || {
            black_box(Client::new(&mut tpm).quote(key.handle, &[1; 32], DigestAlg::Sha256, &pcrs)?);
            Ok(())
        })?);
        measured.sign.push(each(TIMES, || {
            black_box(pair.sign(&random, &[1; 145]).map_err(|_| anyhow!("no signature"))?);
            Ok(())
        })?);
        measured.replay.push(each(TIMES, || {
            black_box(replay(&EventLog::read(&log)?));
            Ok(())
        })?);
        measured.fleet.push(each(1, || fleet.appraise())?);
        if let Some(chain) = chain {
            measured.bound.push(each(3, || bound(chain))?);
            for (banks, times) in [(&SHA256[..], &mut measured.start), (&ALL, &mut measured.start_all)] {
                let appraiser = Appraiser::of(chain, banks)?;
                times.push(each(3, || appraiser.start(chain, banks))?);
            }
        }
    }
    Ok(measured)
}

/// Microseconds of one of `times`.
fn each(times: u32, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..times {
        work()?;
    }
    Ok((start.elapsed() / times).as_secs_f64() * 1e6)
}

/// TPM2_PCR_Extend(23, SHA-256) with an empty password.
fn extend_command() -> Vec<u8> {
    let mut command = vec![0x80, 2, 0, 0, 0, 65, 0, 0, 1, 0x82, 0, 0, 0, 23, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x0B];
    command.extend([3; 32]);
    command
}

/// The PCRs of the 46 events of a start of Debian with shim and GRUB, in their order, with a quarter of a kilobyte of data each.
const REAL: [u32; 46] = [
    0, 0, 0, 7, 7, 7, 7, 7, 7, 1, 1, 1, 1, 4, 0, 1, 2, 3, 4, 5, 6, 7, 4, 14, 14, 7, 14, 7, 4, 8, 8, 8, 8, 9, 8, 8, 8, 9, 4, 4, 8, 8, 9, 8,
    5, 5,
];

/// A log of these events in four banks.
fn log_of_real() -> Result<Vec<u8>> {
    use loader_sim::measure::{EventType, LogBuilder};
    let mut log = LogBuilder::new(&ALL)?;
    for pcr in REAL {
        log.measure(pcr, EventType::EV_EFI_ACTION, &[7; 256], &[7; 256])?;
    }
    Ok(log.bytes().to_vec())
}

/// What every verifier of the chain's files has to do at least: one digest of each image, one RSA verification for each certificate of the
/// paths and for each signer.
fn bound(chain: &Chain) -> Result<()> {
    for file in ["/EFI/BOOT/BOOTX64.EFI", "/EFI/BOOT/grubx64.efi", "/vmlinuz"] {
        let bytes = chain.disk.read(file)?.with_context(|| format!("no {file}"))?;
        let image = Pe::parse(&bytes).map_err(|e| anyhow!("{file}: {e}"))?;
        black_box(crypto::digest(DigestAlg::Sha256, &image.hash_pieces(DigestForm::Linear).context("no digest")?));
        for signature in verifications(&bytes) {
            ensure!(signature, "a signature of {file} does not verify");
        }
    }
    Ok(())
}

/// Verifies each signer's value again, and its certificate where it carries the issuer's.
fn verifications(bytes: &[u8]) -> Vec<bool> {
    FACTS.with_borrow_mut(|known| {
        let facts = known.entry(bytes.len()).or_insert_with(|| {
            let cache = Cache::default();
            Examiner { cache: &cache, catalogs: &CatalogIndex::default(), digests: &[] }.examine(bytes, 1 << 30)
        });
        let mut all = Vec::new();
        for signer in facts.signatures.iter().filter_map(|s| s.signer.as_ref()) {
            let leaf = signer.certificate.and_then(|i| facts.certificates.get(i));
            let (Some(leaf), Some(digest), Some(scheme)) = (leaf, signer.signed_digest, signer.scheme) else { continue };
            all.push(leaf.public_key().is_ok_and(|key| key.verify(scheme, &digest, &signer.value).is_ok()));
        }
        all
    })
}

thread_local! {
    static FACTS: std::cell::RefCell<BTreeMap<usize, Facts>> = const { std::cell::RefCell::new(BTreeMap::new()) };
}

/// Values and host knowledge for one chain, made before anything is measured.
struct Appraiser {
    verifier: Verifier,
    tpm: Vec<u8>,
}

impl Appraiser {
    fn of(chain: &Chain, banks: &[DigestAlg]) -> Result<Self> {
        let mut tpm = EmbeddedTpm::manufacture([9; 32]);
        let (ak_name, ek_name) = keys(&mut tpm)?;
        let saved = tpm.save()?;
        let predicted = chain.start(banks, &mut started(&saved)?)?;
        ensure!(predicted.kernel().is_some(), "the chain does not start: {:?}", predicted.end);
        let log = EventLog::read(&predicted.log)?;
        let reference = Reference::read(&loader_sim::vm::reference(&predicted, &log))?;
        let known = machine(ak_name, ek_name, 2, Some(Baseline::of(&log)));
        Ok(Self { verifier: Verifier::new(reference, DbxInfo::default(), BTreeMap::from([("vm".to_owned(), known)])), tpm: saved })
    }

    fn start(&self, chain: &Chain, banks: &[DigestAlg]) -> Result<()> {
        let mut tpm = started(&self.tpm)?;
        let boot = chain.start(banks, &mut tpm)?;
        let evidence = evidence("vm", &mut tpm, &boot.log, &[1; 32])?;
        let appraisal = self.verifier.appraise(&evidence, &[1; 32], UnixTime(1_800_000_000));
        ensure!(appraisal.healthy(), "not healthy: {:?}", appraisal.findings);
        Ok(())
    }
}

/// A TPM with this state at its next start.
fn started(saved: &[u8]) -> Result<EmbeddedTpm> {
    let mut tpm = EmbeddedTpm::manufacture([0; 32]);
    tpm.load(saved)?;
    tpm.reset()?;
    Client::new(&mut tpm).startup()?;
    Ok(tpm)
}

/// Names of a new TPM's attestation and endorsement keys.
fn keys(tpm: &mut EmbeddedTpm) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut client = Client::new(tpm);
    client.startup()?;
    let LoadedKey { handle, public } = client.create_primary(KeyUse::Attestation)?;
    client.flush(handle)?;
    let endorsement = client.create_primary(KeyUse::Endorsement)?;
    client.flush(endorsement.handle)?;
    client.shutdown()?;
    Ok((AttestationKey::read(&public)?.name().to_vec(), endorsement.public))
}

fn machine(ak_name: Vec<u8>, ek_name: Vec<u8>, reset_count: u32, baseline: Option<Baseline>) -> Known {
    let features = Features { secure_boot: true, vtpm: true, hvci: false, credential_guard: false };
    Known {
        profile: Profile::Linux,
        features,
        ak_name,
        ek_name,
        reset_count,
        restart_count: 0,
        orderly: true,
        ledger: Ledger::Current,
        baseline,
    }
}

fn evidence(vm: &str, tpm: &mut EmbeddedTpm, log: &[u8], nonce: &[u8]) -> Result<Evidence> {
    let unsigned = Evidence {
        profile: Profile::Linux,
        vm: vm.to_owned(),
        nonce: nonce.to_vec(),
        ak_public: Bytes(Vec::new()),
        quotes: Vec::new(),
        tcg_log: Some(Bytes(log.to_vec())),
        drivers: Vec::new(),
        features: Features { secure_boot: true, vtpm: true, hvci: false, credential_guard: false },
    };
    Ok(quoted(&mut Client::new(tpm), unsigned, &(0..16).collect::<Vec<_>>())?)
}

/// Evidence of a thousand machines, each with a TPM of its own, and one verifier.
struct Fleet {
    verifier: Verifier,
    evidence: Vec<Evidence>,
    threads: rayon::ThreadPool,
}

impl Fleet {
    fn new(log: &[u8]) -> Result<Self> {
        let (mut known, mut all) = (BTreeMap::new(), Vec::new());
        for n in 0..FLEET {
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&(n as u64).to_le_bytes());
            let mut tpm = EmbeddedTpm::manufacture(seed);
            let (ak_name, ek_name) = keys(&mut tpm)?;
            let name = format!("vm{n}");
            known.insert(name.clone(), machine(ak_name, ek_name, 1, None));
            all.push(evidence(&name, &mut tpm, log, &[2; 32])?);
        }
        let reference = Reference::read("chain = [\"kernel\"]\n")?;
        let verifier = Verifier::new(reference, DbxInfo::default(), known);
        Ok(Self { verifier, evidence: all, threads: rayon::ThreadPoolBuilder::new().num_threads(2).build()? })
    }

    fn appraise(&self) -> Result<()> {
        let signed = self.threads.install(|| {
            let appraise = |evidence: &Evidence| self.verifier.appraise(evidence, &[2; 32], UnixTime(1_800_000_000));
            self.evidence.par_iter().filter(|evidence| appraise(evidence).clock.is_some()).count()
        });
        ensure!(signed == FLEET, "{signed} quotes of {FLEET} hold");
        Ok(())
    }
}

/// What must hold.
pub fn goals(measured: &Measured) -> Vec<Goal> {
    let against = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a / b).collect::<Vec<_>>();
    let seconds = |all: &[f64]| all.iter().map(|us| Duration::from_secs_f64(us / 1e6).as_secs_f64()).collect::<Vec<_>>();
    vec![
        Goal::new("–", "embedded TPM: PCR_Extend, µs", Must::AtMost(1.0), measured.extend.clone()),
        Goal::new("–", "embedded TPM: quote on P-256 / one signature", Must::AtMost(1.2), against(&measured.quote, &measured.sign)),
        Goal::new("–", "log of 46 events in four banks, read and replayed, µs", Must::AtMost(60.0), measured.replay.clone()),
        Goal::new("–", "start, quote and appraisal / digests and RSA", Must::AtMost(1.5), against(&measured.start, &measured.bound)),
        Goal::new("–", "  the same, measured in four banks", Must::Shown, against(&measured.start_all, &measured.bound)),
        Goal::new("–", "1,000 machines appraised on two threads, s", Must::AtMost(1.0), seconds(&measured.fleet)),
    ]
}
