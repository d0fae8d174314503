//! A start of a machine, from power-on to the verdict about it, and what is asked of it while it is on.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use hvci_engine::{digest::DigestAlg, policy::secure_boot::Behaviour, time::UnixTime};

use super::{
    Folder, Guest, Host, Profile, Rules, VmError, attested,
    drivers::{self, Decided},
    read_flash, read_known, refused,
    tpm::{self, Device},
    vault::{self, KeyState, Released},
};
use crate::{
    attest::{
        self, Appraisal, DbxInfo,
        alert::{self, Alert, Health, Severity, alerts},
        evidence::DriverEvent,
    },
    boot::{Boot, Disk, Machine, RunningKernel, boot},
    firmware::store::VariableStore,
    lsa::Lsa,
    measure::{
        Recorder,
        record::Extend,
        wbcl::{LoadedDriver, Settings, measure_boundary, measure_driver, measure_end, measure_settings},
    },
    vtpm::Tpm,
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
    /// What came of asking for its vault's key, if it has one.
    pub vault_key: Option<KeyState>,
    /// What it said of itself when it was last challenged.
    pub evidence: Option<Vec<u8>>,
    /// What the verifier thought of it last; nothing of a machine that has no TPM, or that did not start.
    pub appraisal: Option<Appraisal>,
    /// What somebody should look at, as of the last time that it was attested.
    pub alerts: Vec<Alert>,
}

impl Started {
    /// Whether it runs, and nothing keeps it from being shown to be healthy.
    pub fn is_healthy(&self) -> bool {
        self.boot.kernel().is_some() && self.alerts.iter().all(|alert| alert.severity == Severity::Low)
    }
}

pub(super) fn machine<'m>(profile: &Profile, disk: &'m Disk, variables: &'m mut VariableStore, banks: &'m [DigestAlg]) -> Machine<'m> {
    let behaviour = match profile.behaviour {
        Rules::Strict => Behaviour::Strict,
        Rules::Edk2Compat => Behaviour::Edk2,
    };
    Machine { disk, variables, behaviour, banks, firmware: FIRMWARE }
}

/// A machine that is on.
#[derive(Debug)]
pub struct Running<'r> {
    host: Host,
    folder: Arc<Folder>,
    profile: Profile,
    /// what a verifier is told of it
    known: attest::Machine,
    endorsement_key: Vec<u8>,
    options: Options<'r>,
    device: Device,
    /// the key of its vault, if it has one
    released: Option<Released>,
    boot: Boot,
    drivers: Vec<DriverEvent>,
    evidence: Option<Vec<u8>>,
    appraisal: Option<Appraisal>,
    /// of the boot, until they are written down
    refused: Vec<Alert>,
    /// of the last time that it was looked at
    alerts: Vec<Alert>,
}

/// Starts a machine, has it attested, does `while_on`, and stops it in order.
///
/// # Errors
/// [`VmError`], and what `while_on` says. A boot that is refused, an attestation that fails, and a TPM that does, are what came of it, and no
/// errors.
pub fn start(
    host: &Host,
    name: &str,
    options: &Options<'_>,
    while_on: impl FnOnce(&mut Running<'_>) -> Result<(), VmError>,
) -> Result<Started, VmError> {
    let mut running = Running::power_on(host, name, *options)?;
    let done = running.attest(options.time).and_then(|()| while_on(&mut running));
    running.stop(host, done)
}

impl<'r> Running<'r> {
    fn power_on(host: &Host, name: &str, options: Options<'r>) -> Result<Self, VmError> {
        let folder = Arc::new(host.open(name)?);
        let profile = folder.profile()?;
        profile.check()?;
        let known = read_known(&folder)?;
        let disk = Disk::open(&folder.path("disk"))?;
        let flash = read_flash(&folder)?;
        let mut variables = profile.variables(flash.variables().clone());

        let (mut device, mut reset_count, platform_auth) = (Device::default(), 0, tpm::random());
        if profile.vtpm {
            let (taken, entry) = tpm::take_up(host, &folder, profile.tpm, options.program)?;
            reset_count = entry.reset_count.saturating_add(1);
            device = Device::power_on(taken, &platform_auth)?;
        }
        let banks = device.ask(|client| client.banks())?.unwrap_or_else(|| BANKS.to_vec());
        let mut boot = boot(machine(&profile, &disk, &mut variables, &banks), &mut device)?;
        folder.write("vars.fd", &flash.with(&variables)?)?;

        let (mut loaded, mut released) = (Vec::new(), None);
        if let Some(kernel) = boot.kernel() {
            let decided = drivers::load(&disk, kernel, &profile, options.time)?;
            let log = std::mem::take(&mut boot.log);
            let log = measure_start(&profile, &banks, log, &mut device)?;
            if profile.credential_guard {
                // while PCR 12 has the settings and nothing else: after the boundary nobody gets it
                let machine = vault::Machine::of(host, &folder, &known)?;
                released = Some(vault::release(&machine, profile.vtpm, &mut device, &platform_auth, &log)?);
            }
            boot.log = measure_rest(&profile, &banks, log, &decided, &mut device)?;
            loaded = boot.kernel().into_iter().flat_map(RunningKernel::modules).map(Decided::of_module).collect();
            loaded.extend(decided.into_iter().map(|driver| driver.event));
        }
        folder.write("boot.eventlog", &boot.log)?;
        let mut refused: Vec<Alert> = refused::of_boot(name, &boot, options.time).into_iter().collect();
        if let Some(KeyState::NotReleased(why) | KeyState::Lost(why)) = released.as_ref().map(Released::state) {
            refused.push(alert::vault_closed(name, options.time, why));
        }
        let (evidence, appraisal, alerts) = (None, None, Vec::new());
        let (known, endorsement_key) = (known.machine(&profile, reset_count), known.endorsement_key);
        let (host, drivers) = (host.clone(), loaded);
        Ok(Self {
            host,
            folder,
            profile,
            known,
            endorsement_key,
            options,
            device,
            released,
            boot,
            drivers,
            evidence,
            appraisal,
            refused,
            alerts,
        })
    }

    /// What came of the release of its vault's key; `None` for a machine without Credential Guard, or whose boot was ended before.
    pub fn vault_key(&self) -> Option<KeyState> {
        self.released.as_ref().map(Released::state)
    }

    /// Has the program run that uses credentials, with the machine's vault: what it has kept is there, and is kept when it ends.
    ///
    /// # Errors
    /// [`VmError::NoVault`] without Credential Guard, or where nothing runs; [`VmError::Vault`]; what `run` says.
    pub fn with_credentials<T>(&mut self, run: impl FnOnce(&mut Lsa) -> anyhow::Result<T>) -> Result<T, VmError> {
        let released = self.released.take().ok_or(VmError::NoVault)?;
        let machine = vault::Machine::of(&self.host, &self.folder, &read_known(&self.folder)?)?;
        let device = Arc::new(Mutex::new(std::mem::take(&mut self.device)));
        let done = vault::with_credentials(&machine, &self.profile, &released, &device, self.options.time, run);
        // the keeper is gone with the program
        if let Some(device) = Arc::into_inner(device) {
            self.device = device.into_inner().unwrap_or_else(PoisonError::into_inner);
        }
        self.released = Some(released);
        done
    }

    /// Its TPM, if it has one that answers.
    pub fn tpm(&mut self) -> Option<&mut (dyn Tpm + 'static)> {
        self.device.tpm()
    }

    /// Challenges it, has its answer appraised at this time, and writes down what came of it. Of one without a TPM there is nothing to write.
    ///
    /// # Errors
    /// [`VmError`]; what the verifier finds is none.
    pub fn attest(&mut self, time: UnixTime) -> Result<(), VmError> {
        // nothing runs that could ask the TPM for a quote where the boot ended before
        if self.boot.kernel().is_some() && self.profile.vtpm {
            let nonce = match self.options.challenge {
                Some(challenge) => challenge().map_err(VmError::Challenge)?,
                None => tpm::random::<32>().to_vec(),
            };
            let answer = attested::evidence(&self.folder, &self.profile, &self.boot, &self.drivers, &mut self.device, &nonce)?;
            self.appraisal = None;
            if let Some(answer) = &answer {
                self.folder.write("evidence.json", answer)?;
                let options = Options { time, ..self.options };
                self.appraisal = Some(attested::appraise(&self.folder, &self.known, answer, &nonce, &options)?);
            }
            self.evidence = answer;
        }
        self.write_down(time)
    }

    /// Adds to the machine's history, and to its alerts what was not said the last time.
    fn write_down(&mut self, time: UnixTime) -> Result<(), VmError> {
        let name = self.folder.name().to_owned();
        let mut new = std::mem::take(&mut self.refused);
        new.extend(self.appraisal.iter().flat_map(alerts));
        new.extend(self.device.failure().map(|failure| alert::tpm_failed(&name, time, failure.to_string())));
        let health = match &self.appraisal {
            Some(appraisal) => Some(Health::from(appraisal)),
            None if !new.iter().any(Alert::needs_attention) => None,
            None => Some(Health {
                time,
                vm: name,
                healthy: false,
                reset_count: None,
                codes: new.iter().flat_map(|alert| alert.codes.iter().copied()).collect(),
            }),
        };
        let mut lines = Vec::new();
        if let Some(health) = health {
            health.append(&mut lines)?;
            self.folder.append("health.ndjson", &lines)?;
            lines.clear();
        }
        alert::write(&mut lines, new.iter().filter(|alert| !self.alerts.iter().any(|earlier| alert.repeats(earlier))))?;
        self.folder.append("alerts.ndjson", &lines)?;
        self.alerts = new;
        Ok(())
    }

    /// What somebody should look at, as of the last time that it was attested.
    pub fn alerts(&self) -> &[Alert] {
        &self.alerts
    }

    /// However `done` ended, the machine was on: its TPM is stopped and saved.
    fn stop(mut self, host: &Host, done: Result<(), VmError>) -> Result<Started, VmError> {
        let failed_before = self.device.failure().is_some();
        let done = self.device.survives(done);
        let kept = match self.device.tpm() {
            Some(device) => {
                let kept = tpm::keep(host, &self.folder, device, &self.endorsement_key);
                self.device.survives(kept)
            }
            None => Ok(()),
        };
        if self.device.failure().is_some() && !failed_before {
            self.appraisal = None;
            self.write_down(self.options.time)?;
        }
        kept.and(done)?;
        let vault_key = self.vault_key();
        let Self { profile, boot, drivers, evidence, appraisal, alerts, .. } = self;
        Ok(Started { profile, boot, drivers, vault_key, evidence, appraisal, alerts })
    }
}

/// What the host measures of a guest that is about to run: its settings.
fn measure_start(profile: &Profile, banks: &[DigestAlg], log: Vec<u8>, extend: &mut dyn Extend) -> Result<Vec<u8>, VmError> {
    let mut recorder = Recorder::resume(banks, log, extend).map_err(crate::boot::Fault::from)?;
    let settings = Settings { hvci: profile.hvci, credential_guard: profile.credential_guard };
    measure_settings(&mut recorder, settings).map_err(crate::boot::Fault::from)?;
    Ok(recorder.log().to_vec())
}

/// What it measures then: that these are all, and each driver that was loaded.
fn measure_rest(
    profile: &Profile,
    banks: &[DigestAlg],
    log: Vec<u8>,
    drivers: &[Decided],
    extend: &mut dyn Extend,
) -> Result<Vec<u8>, VmError> {
    let mut recorder = Recorder::resume(banks, log, extend).map_err(crate::boot::Fault::from)?;
    let windows = profile.guest == Guest::Windows;
    measure_boundary(&mut recorder).map_err(crate::boot::Fault::from)?;
    if profile.hvci {
        for Decided { event, size, key } in drivers.iter().filter(|driver| driver.event.refused.is_none()) {
            let publisher = event.signer.as_deref().unwrap_or_default();
            let key = key.as_deref().filter(|_| windows);
            let loaded = LoadedDriver { path: &event.path, size: *size, authentihash: &event.authentihash, publisher, key };
            measure_driver(&mut recorder, &loaded).map_err(crate::boot::Fault::from)?;
        }
    }
    if windows {
        measure_end(&mut recorder).map_err(crate::boot::Fault::from)?;
    }
    Ok(recorder.log().to_vec())
}
