//! One start of a machine, from power-on to the verdict about it.

use std::{collections::BTreeMap, path::Path};

use hvci_engine::{digest::DigestAlg, policy::secure_boot::Behaviour, time::UnixTime};

use super::{
    Folder, Host, Profile, Rules, VmError,
    drivers::{self, Decided},
    known::Known,
    read_flash, read_known, refused, tpm, write_known,
};
use crate::{
    attest::{
        Appraisal, DbxInfo, Evidence, Reference, Verifier,
        alert::{Alert, Health, alerts},
        evidence::{Bytes, DriverEvent, QuoteEvidence},
    },
    boot::{Boot, Disk, Machine, boot},
    firmware::store::VariableStore,
    measure::{
        EventLog, Recorder,
        record::Extend,
        wbcl::{LoadedDriver, Settings, measure_driver, measure_settings},
    },
    vtpm::{
        Tpm,
        client::{Client, KeyUse},
    },
};

/// Banks of a machine without a TPM, and of a prediction: those that every TPM here has.
pub(super) const BANKS: [DigestAlg; 4] = [DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha384, DigestAlg::Sha512];
/// What is measured as firmware.
const FIRMWARE: &[u8] = b"hvci-sim firmware";

/// How to start.
#[derive(Clone, Copy)]
pub struct Options<'o> {
    /// The time that verdicts are for.
    pub time: UnixTime,
    /// This program, which a worker is started from.
    pub program: &'o Path,
    /// What is known of revoked images.
    pub dbx_info: &'o DbxInfo,
    /// Who challenges the machine when it runs: a verifier somewhere else. Without one it is the host.
    pub challenge: Option<&'o dyn Fn() -> Result<Vec<u8>, String>>,
}

impl std::fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("time", &self.time).field("program", &self.program).finish_non_exhaustive()
    }
}

/// What came of a start.
#[derive(Debug)]
pub struct Started {
    /// What it is made with.
    pub profile: Profile,
    /// Its boot.
    pub boot: Boot,
    /// What was decided about its drivers.
    pub drivers: Vec<DriverEvent>,
    /// What it said of itself when it was challenged.
    pub evidence: Option<Vec<u8>>,
    /// What the verifier thinks of it; nothing of a machine that has no TPM, or that did not start.
    pub appraisal: Option<Appraisal>,
    /// What somebody should look at.
    pub alerts: Vec<Alert>,
}

pub(super) fn machine<'m>(profile: &Profile, disk: &'m Disk, variables: &'m mut VariableStore, banks: &'m [DigestAlg]) -> Machine<'m> {
    let behaviour = match profile.behaviour {
        Rules::Strict => Behaviour::Strict,
        Rules::Edk2Compat => Behaviour::Edk2,
    };
    Machine { disk, variables, behaviour, banks, firmware: FIRMWARE }
}

/// Starts a machine, has it attested, and stops it in order.
///
/// # Errors
/// [`VmError`]. A boot that is refused, and an attestation that fails, are what came of it, and no errors.
pub fn start(host: &Host, name: &str, options: &Options<'_>) -> Result<Started, VmError> {
    run(host, name, options, |_| Ok(()))
}

/// The same, and before it is stopped its TPM is handed to `serve`.
///
/// # Errors
/// [`VmError`], and what `serve` says; a machine without a TPM has none to serve.
pub fn serve(
    host: &Host,
    name: &str,
    options: &Options<'_>,
    serve: impl FnOnce(&mut dyn Tpm) -> Result<(), VmError>,
) -> Result<Started, VmError> {
    run(host, name, options, |tpm| serve(tpm.ok_or(VmError::NoTpm)?))
}

fn run(
    host: &Host,
    name: &str,
    options: &Options<'_>,
    while_running: impl FnOnce(Option<&mut (dyn Tpm + 'static)>) -> Result<(), VmError>,
) -> Result<Started, VmError> {
    let folder = host.open(name)?;
    let profile = folder.profile()?;
    profile.check()?;
    let mut known = read_known(&folder)?;
    let disk = Disk::open(&folder.path("disk"))?;
    let flash = read_flash(&folder)?;
    let mut variables = flash.variables().clone();

    let mut tpm = None;
    if profile.vtpm {
        let (mut device, entry) = tpm::take_up(host, &folder, profile.tpm, options.program)?;
        device.reset()?;
        Client::new(device.as_mut()).startup()?;
        known.machine.reset_count = entry.reset_count.saturating_add(1);
        tpm = Some(device);
    }
    let banks = match &mut tpm {
        Some(device) => Client::new(device.as_mut()).banks()?,
        None => BANKS.to_vec(),
    };
    let mut boot = with_extend(&mut tpm, |extend| Ok(boot(machine(&profile, &disk, &mut variables, &banks), extend)?))?;
    let changed = flash.with(&variables)?;
    folder.write("vars.fd", &changed)?;

    let mut loaded = Vec::new();
    if let Some(kernel) = boot.kernel() {
        let decided = drivers::load(&disk, kernel, &profile, options.time)?;
        let log = std::mem::take(&mut boot.log);
        boot.log = with_extend(&mut tpm, |extend| measure(&profile, &banks, log, &decided, extend))?;
        loaded = decided.into_iter().map(|driver| driver.event).collect();
    }
    folder.write("boot.eventlog", &boot.log)?;

    let attested = match tpm.as_mut() {
        // nothing runs that could ask the TPM for a quote where the boot ended before
        Some(device) if boot.kernel().is_some() => attest(&folder, &profile, &boot, &loaded, device.as_mut(), &known, options).map(Some),
        _ => Ok(None),
    };
    let served = attested.and_then(|attested| while_running(tpm.as_deref_mut()).map(|()| attested));
    // however that went, the machine was on
    if let Some(device) = &mut tpm {
        tpm::keep(host, &folder, device.as_mut(), &known.endorsement_key)?;
        write_known(&folder, &known)?;
    }
    let (appraisal, answered) = served?.unzip();

    let mut all: Vec<Alert> = refused::of_boot(name, &boot, options.time).into_iter().collect();
    let health = match &appraisal {
        Some(appraisal) => {
            all.extend(alerts(appraisal));
            Some(Health::from(appraisal))
        }
        None if all.is_empty() => None,
        None => Some(Health {
            time: options.time,
            vm: name.to_owned(),
            healthy: false,
            reset_count: None,
            codes: all.iter().flat_map(|alert| alert.codes.iter().copied()).collect(),
        }),
    };
    if let Some(health) = health {
        let mut line = Vec::new();
        health.append(&mut line)?;
        folder.append("health.ndjson", String::from_utf8_lossy(&line).trim_end())?;
    }
    let mut lines = Vec::new();
    crate::attest::alert::write(&mut lines, &all)?;
    for line in String::from_utf8_lossy(&lines).lines() {
        folder.append("alerts.ndjson", line)?;
    }
    Ok(Started { profile, boot, drivers: loaded, evidence: answered, appraisal, alerts: all })
}

/// Does something with the TPM as what is extended, or with nobody.
fn with_extend<T>(tpm: &mut Option<Box<dyn Tpm>>, run: impl FnOnce(&mut dyn Extend) -> Result<T, VmError>) -> Result<T, VmError> {
    match tpm {
        Some(device) => run(&mut Client::new(device.as_mut())),
        None => run(&mut ()),
    }
}

/// What the host measures of a guest that runs: its settings, and each driver that was loaded.
fn measure(profile: &Profile, banks: &[DigestAlg], log: Vec<u8>, drivers: &[Decided], extend: &mut dyn Extend) -> Result<Vec<u8>, VmError> {
    let mut recorder = Recorder::resume(banks, log, extend).map_err(crate::boot::Fault::from)?;
    let settings = Settings { hvci: profile.hvci, credential_guard: profile.credential_guard };
    measure_settings(&mut recorder, settings).map_err(crate::boot::Fault::from)?;
    if profile.hvci {
        for Decided { event, size } in drivers.iter().filter(|driver| driver.event.refused.is_none()) {
            let publisher = event.signer.as_deref().unwrap_or_default();
            let loaded = LoadedDriver { path: &event.path, size: *size, authentihash: &event.authentihash, publisher };
            measure_driver(&mut recorder, &loaded).map_err(crate::boot::Fault::from)?;
        }
    }
    Ok(recorder.log().to_vec())
}

/// Challenges the machine, and has its answer appraised.
fn attest(
    folder: &Folder,
    profile: &Profile,
    boot: &Boot,
    drivers: &[DriverEvent],
    tpm: &mut dyn Tpm,
    known: &Known,
    options: &Options<'_>,
) -> Result<(Appraisal, Vec<u8>), VmError> {
    let nonce = match options.challenge {
        Some(challenge) => challenge().map_err(VmError::Challenge)?,
        None => tpm::random::<32>().to_vec(),
    };
    let answer = evidence(folder, profile, boot, drivers, tpm, &nonce)?;
    folder.write("evidence.json", &answer)?;
    Ok((appraise(folder, known.clone(), &answer, &nonce, options)?, answer))
}

/// What the machine says of itself, in answer to `nonce`.
fn evidence(
    folder: &Folder,
    profile: &Profile,
    boot: &Boot,
    drivers: &[DriverEvent],
    tpm: &mut dyn Tpm,
    nonce: &[u8],
) -> Result<Vec<u8>, VmError> {
    let log = EventLog::read(&boot.log).map_err(|e| VmError::Known(e.to_string()))?;
    let bank = DigestAlg::Sha256;
    let mut selected: Vec<u32> = (0..16).filter(|pcr| *pcr < 8 || log.events.iter().any(|e| e.pcr == *pcr && e.is_extended())).collect();
    selected.dedup();
    let mut client = Client::new(tpm);
    let key = client.create_primary(KeyUse::Attestation)?;
    let quote = client.quote(key.handle, nonce, bank, &selected)?;
    let values = client.pcr_values(bank, &selected)?;
    client.flush(key.handle)?;
    let quote = QuoteEvidence {
        message: Bytes(quote.message),
        signature: Bytes(quote.signature),
        pcrs: selected.iter().copied().zip(values).collect(),
    };
    let visible = boot.kernel().is_none_or(|kernel| kernel.event_log);
    let evidence = Evidence {
        profile: profile.guest.into(),
        vm: folder.name().to_owned(),
        nonce: nonce.to_vec(),
        ak_public: Bytes(key.public),
        quotes: vec![quote],
        tcg_log: visible.then(|| Bytes(boot.log.clone())),
        drivers: drivers.to_vec(),
        features: profile.features(),
    };
    serde_json::to_vec_pretty(&evidence).map_err(|e| VmError::Known(e.to_string()))
}

/// What a verifier thinks of it, who has the evidence's bytes, the challenge and the host's knowledge.
fn appraise(folder: &Folder, known: Known, evidence: &[u8], nonce: &[u8], options: &Options<'_>) -> Result<Appraisal, VmError> {
    let text = folder.read("reference.toml")?.unwrap_or_default();
    let reference = Reference::read(&String::from_utf8_lossy(&text))?;
    let machines = BTreeMap::from([(folder.name().to_owned(), known.machine)]);
    let verifier = Verifier::new(reference, options.dbx_info.clone(), machines);
    Ok(verifier.appraise_answer(folder.name(), evidence, nonce, options.time))
}
