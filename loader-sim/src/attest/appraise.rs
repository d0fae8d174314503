//! Appraises evidence: first whether a TPM that is known says it, then whether the log is what it says, then what it means.
//!
//! Goes on behind a failure, so that one appraisal names everything that is wrong; but nothing counts as measured unless the key, the quote,
//! the log's rules and its replay hold. Works in time linear in the evidence.

use std::collections::{BTreeMap, BTreeSet};

use hvci_engine::{
    crypto,
    finding::{Code, Severity},
    time::UnixTime,
};
use serde::Serialize;

use super::{
    boot::{BANK, Boot, Entry},
    claims::{self, Claim, Claims},
    component::{self, ComponentReport, Verdict},
    dbx_info::DbxInfo,
    evidence::{DriverEvent, Evidence, Profile},
    expected::{Expected, Outcome},
    machine::{Ledger, Machine},
    quote::{self, AttestationKey, Clock, KeyProblem, QuoteProblem, Quoted},
    reference::{Allowed, Reference},
};
use crate::measure::{EventLog, check, check::Problem, pcrs, replay, wbcl::tag};

/// PCRs from here on are no part of a start.
const PCRS_OF_A_START: u32 = 16;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The reason.
    pub code: Code,
    /// The PCR, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcr: Option<u32>,
    /// Number of the event, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<usize>,
    /// What was seen, for a person.
    pub detail: String,
}

/// What a verifier thinks of evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Appraisal {
    /// The machine, as it says.
    pub vm: String,
    /// When it was appraised.
    pub time: UnixTime,
    /// The challenge.
    pub nonce: String,
    /// What its TPM counts, if its quote holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
    /// What is wrong, in the order of looking.
    pub findings: Vec<Finding>,
    /// What was started.
    pub components: Vec<ComponentReport>,
    /// Drivers that were refused.
    pub refused_drivers: Vec<DriverEvent>,
    /// The first event that is not as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_divergent_event: Option<usize>,
    /// What is proven.
    pub claims: Claims,
    /// What was found and is expected. It is no less wrong for that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<Expected>,
}

impl Appraisal {
    /// Whether nothing is wrong. A refused driver is protection at work.
    pub fn healthy(&self) -> bool {
        self.findings.iter().all(|finding| finding.code.default_severity() < Severity::Unknown)
    }

    /// PCRs that something is wrong with, in order.
    pub fn failed_pcrs(&self) -> BTreeSet<u32> {
        self.findings.iter().filter(|f| f.code.default_severity() >= Severity::Unknown).filter_map(|finding| finding.pcr).collect()
    }
}

/// Appraises evidence of machines that are known.
#[derive(Debug)]
pub struct Verifier {
    reference: Reference,
    dbx_info: DbxInfo,
    machines: BTreeMap<String, Machine>,
    /// names of keys that several machines have
    shared: BTreeSet<Vec<u8>>,
}

impl Verifier {
    /// With reference values, what is known of revoked images, and the machines by their names.
    pub fn new(reference: Reference, dbx_info: DbxInfo, machines: BTreeMap<String, Machine>) -> Self {
        let mut seen = BTreeSet::new();
        let names = machines.values().flat_map(|machine| [BTreeSet::from([&machine.ak_name, &machine.ek_name])]).flatten();
        let shared = names.filter(|name| !seen.insert(*name)).cloned().collect();
        Self { reference, dbx_info, machines, shared }
    }

    /// Whether `vm` is a machine that it knows.
    pub fn knows(&self, vm: &str) -> bool {
        self.machines.contains_key(vm)
    }

    /// Appraises what was sent as `vm`'s answer to `nonce`. What cannot be read is no answer, and neither is another machine's.
    pub fn appraise_answer(&self, vm: &str, json: &[u8], nonce: &[u8], now: UnixTime) -> Appraisal {
        let refused = match Evidence::read(json) {
            Ok(evidence) if evidence.vm == vm => return self.appraise(&evidence, nonce, now),
            Ok(evidence) => (Code::AttKey, format!("the evidence is of {}", evidence.vm)),
            Err(error) => (Code::AttEvidence, error.to_string()),
        };
        let (code, detail) = refused;
        Appraisal {
            vm: vm.to_owned(),
            time: now,
            nonce: hex::encode(nonce),
            clock: None,
            findings: vec![Finding { code, pcr: None, event: None, detail }],
            components: Vec::new(),
            refused_drivers: Vec::new(),
            first_divergent_event: None,
            claims: Claims::default(),
            expected: Vec::new(),
        }
    }

    /// Appraises `evidence` as the answer to `nonce` of the machine that it names.
    pub fn appraise(&self, evidence: &Evidence, nonce: &[u8], now: UnixTime) -> Appraisal {
        let mut work = Work {
            verifier: self,
            evidence,
            machine: self.machines.get(&evidence.vm),
            findings: Vec::new(),
            claims: Claims::default(),
            clock: None,
            components: Vec::new(),
            divergent: None,
        };
        let quoted = work.quotes(nonce);
        work.log(&quoted);
        work.drivers();
        let expected = work.expected(now);
        let bad = |finding: &&Finding| finding.code.default_severity() >= Severity::Unknown;
        let first = work.findings.iter().filter(bad).filter_map(|finding| finding.event).min();
        Appraisal {
            vm: evidence.vm.clone(),
            time: now,
            nonce: hex::encode(nonce),
            clock: work.clock,
            first_divergent_event: work.divergent.or(first),
            findings: work.findings,
            components: work.components,
            refused_drivers: evidence.drivers.iter().filter(|driver| driver.refused.is_some()).cloned().collect(),
            claims: work.claims,
            expected,
        }
    }
}

struct Work<'v> {
    verifier: &'v Verifier,
    evidence: &'v Evidence,
    machine: Option<&'v Machine>,
    findings: Vec<Finding>,
    claims: Claims,
    clock: Option<Clock>,
    components: Vec<ComponentReport>,
    divergent: Option<usize>,
}

impl Work<'_> {
    fn found(&mut self, code: Code, pcr: Option<u32>, event: Option<usize>, detail: impl Into<String>) {
        self.findings.push(Finding { code, pcr, event, detail: detail.into() });
    }

    /// The host's word for it, where there is one.
    fn profile(&self) -> Profile {
        self.machine.map_or(self.evidence.profile, |machine| machine.profile)
    }

    /// What a TPM that is known says in answer to `nonce`; nothing if any of it does not hold.
    fn quotes(&mut self, nonce: &[u8]) -> Vec<Quoted> {
        let key = self.key();
        self.claims.set(claims::VTPM, "aikValidated", Claim::Is(key.is_some()));
        self.claims.set(claims::VTPM, "x-ms-azurevm-vmid", Claim::Text(self.evidence.vm.clone()));
        if self.evidence.nonce != nonce {
            self.found(Code::AttNonce, None, None, format!("the evidence is for {}", hex::encode(&self.evidence.nonce)));
        }
        let mut quoted: Vec<Quoted> = Vec::new();
        if let Some(key) = key {
            for evidence in &self.evidence.quotes {
                match quote::verify(evidence, &key, nonce) {
                    Ok(quote) if quoted.iter().any(|other| other.bank == quote.bank) => {
                        self.found(Code::AttQuote, None, None, format!("bank {} is quoted twice", quote.bank));
                    }
                    Ok(quote) => quoted.push(quote),
                    Err(problem) => self.found(code_of_quote(&problem), None, None, problem.to_string()),
                }
            }
        }
        if !self.findings.is_empty() {
            return Vec::new();
        }
        for quote in &quoted {
            self.clock(quote.clock);
        }
        if !quoted.iter().any(|quote| quote.bank == BANK) {
            self.found(Code::AttBank, None, None, format!("{BANK} is not quoted"));
            return Vec::new();
        }
        let pcrs: BTreeSet<u32> = quoted.iter().filter(|q| q.bank == BANK).flat_map(|quote| quote.pcrs.keys().copied()).collect();
        let missing = self.verifier.reference.required_pcrs.difference(&pcrs).copied();
        for pcr in missing.collect::<Vec<_>>() {
            self.found(Code::AttPcrMask, Some(pcr), None, "it must be quoted");
        }
        self.claims.set(claims::VTPM, "x-ms-azurevm-attested-pcrs", Claim::Pcrs(pcrs.into_iter().collect()));
        quoted
    }

    /// The attestation key, if it is the machine's.
    fn key(&mut self) -> Option<AttestationKey> {
        let Some(machine) = self.machine else {
            self.found(Code::AttKey, None, None, "the machine is not known");
            return None;
        };
        if [&machine.ak_name, &machine.ek_name].into_iter().any(|name| self.verifier.shared.contains(name)) {
            self.found(Code::AttClone, None, None, "another machine is enrolled with the same key");
        }
        if machine.ledger == Ledger::RolledBack {
            self.found(Code::AttRollback, None, None, "the ledger has a later state");
        }
        match AttestationKey::read(&self.evidence.ak_public.0) {
            Ok(key) if key.name() == machine.ak_name => Some(key),
            Ok(key) => {
                self.found(Code::AttKey, None, None, format!("its name is {}", hex::encode(key.name())));
                None
            }
            Err(problem @ (KeyProblem::Attributes(_) | KeyProblem::Algorithm)) => {
                self.found(Code::AttKeyAttributes, None, None, problem.to_string());
                None
            }
            Err(problem @ KeyProblem::Form) => {
                self.found(Code::AttKey, None, None, problem.to_string());
                None
            }
        }
    }

    fn clock(&mut self, clock: Clock) {
        self.clock = Some(clock);
        let Some(machine) = self.machine else { return };
        for (what, is, expected) in
            [("resets", clock.reset_count, machine.reset_count), ("restarts", clock.restart_count, machine.restart_count)]
        {
            if is != expected {
                self.found(Code::AttResetCount, None, None, format!("{is} {what} of the TPM, {expected} of the machine"));
            }
        }
        if !clock.safe && machine.orderly {
            self.found(Code::AttClock, None, None, "safe is NO after a stop in order");
        }
    }

    /// The log against the quotes, then what it says.
    fn log(&mut self, quoted: &[Quoted]) {
        let Some(bytes) = &self.evidence.tcg_log else {
            self.found(Code::AttLogMissing, None, None, "no event log");
            return self.nothing_measured();
        };
        let log = match EventLog::read(&bytes.0) {
            Ok(log) => log,
            Err(error) => {
                self.found(Code::AttLogMalformed, None, None, error.to_string());
                return self.nothing_measured();
            }
        };
        for finding in check(&log) {
            let event = finding.event.map(|(number, _)| number);
            self.found(code_of_rule(&finding.problem), finding.pcr, event, finding.problem.to_string());
        }
        let failed = self.replay(&log, quoted);
        let measured = !quoted.is_empty() && self.findings.is_empty();
        self.baseline(&log, &failed);
        let boot = Boot::of(&log, self.profile());
        self.secure_boot(&boot, measured);
        self.components(&boot);
        self.settings(&boot, measured);
        if self.machine.is_some_and(|machine| machine.features.hvci) {
            self.driver_log(&boot);
        }
        self.claims.set(claims::MEASURED_BOOT, "hvci-log-replays", Claim::Is(measured));
    }

    fn nothing_measured(&mut self) {
        self.secure_boot_claims(None, None, None);
        self.settings(&Boot::default(), false);
        self.claims.set(claims::MEASURED_BOOT, "hvci-log-replays", Claim::NotMeasured);
    }

    /// The PCRs that the log does not explain.
    fn replay(&mut self, log: &EventLog<'_>, quoted: &[Quoted]) -> BTreeSet<u32> {
        let banks = replay(log);
        let mut failed = BTreeSet::new();
        for quote in quoted {
            if !banks.iter().any(|bank| bank.alg == quote.bank) {
                self.found(Code::AttBank, None, None, format!("the log is not about {}", quote.bank));
                continue;
            }
            let given: pcrs::Pcrs = quote.pcrs.iter().map(|(pcr, value)| ((quote.bank, *pcr), *value)).collect();
            for difference in pcrs::compare(log, &banks, &given) {
                let replayed = difference.replayed.map(|value| value.hex()).unwrap_or_default();
                let detail = format!("{} is quoted, the events give {replayed}", difference.given);
                self.found(Code::AttReplay, Some(difference.pcr), None, detail);
                failed.insert(difference.pcr);
            }
        }
        let logged: BTreeSet<u32> = log.events.iter().filter(|event| event.is_extended()).map(|event| event.pcr).collect();
        let vouched = |pcr: &u32| quoted.iter().any(|quote| quote.bank == BANK && quote.pcrs.contains_key(pcr));
        for pcr in logged.into_iter().filter(|pcr| *pcr < PCRS_OF_A_START && !quoted.is_empty() && !vouched(pcr)) {
            if !self.findings.iter().any(|finding| (finding.code, finding.pcr) == (Code::AttPcrMask, Some(pcr))) {
                self.found(Code::AttPcrMask, Some(pcr), None, "the log has events of it, and it is not quoted");
            }
        }
        failed
    }

    /// Where the start is another than the baseline's; a log that does not replay is compared in the PCRs that `failed` too.
    fn baseline(&mut self, log: &EventLog<'_>, failed: &BTreeSet<u32>) {
        let Some(baseline) = self.machine.and_then(|machine| machine.baseline.as_ref()) else { return };
        let compared = &self.verifier.reference.baseline_pcrs;
        if let Some((event, pcr)) = baseline.divergence(log, |pcr| compared.contains(&pcr) || failed.contains(&pcr)) {
            let detail = if event.is_some() { "another event than the baseline's" } else { "the baseline goes on" };
            self.divergent = event;
            self.found(Code::AttBaseline, Some(pcr), event, detail);
        }
    }

    fn secure_boot(&mut self, boot: &Boot<'_>, measured: bool) {
        let reference = &self.verifier.reference;
        let on = boot.variables.get("SecureBoot").map(|(event, value)| (*event, *value == [1]));
        if let Some((event, false)) = on {
            self.found(Code::AttSecureBootOff, Some(7), Some(event), "the variable SecureBoot is not 1");
        }
        let keys = &reference.secure_boot;
        let mut validated = BTreeMap::new();
        for (name, allowed, code) in [
            ("PK", &keys.pk, Code::AttKeys),
            ("KEK", &keys.kek, Code::AttKeys),
            ("db", &keys.db, Code::AttKeys),
            ("dbx", &keys.dbx, Code::AttDbxStale),
        ] {
            let Some((event, value)) = boot.variables.get(name) else { continue };
            let digest = crypto::digest(BANK, &[value]);
            let allows = allowed.allows(&digest);
            if !allows {
                self.found(code, Some(7), Some(*event), format!("{name} is {digest}"));
            }
            if let Allowed::Digests(_) = allowed {
                validated.insert(name, allows);
            }
        }
        let revoked = boot.revoked();
        let current_to = self.verifier.dbx_info.current_to(revoked.iter()).map(str::to_owned);
        if let Some(since) = &keys.dbx_since
            && current_to.as_ref().is_none_or(|date| date < since)
        {
            let is = current_to.as_deref().unwrap_or("no date that is known");
            let event = boot.variables.get("dbx").map(|(event, _)| *event);
            self.found(Code::AttDbxStale, Some(7), event, format!("it goes up to {is}, {since} is wanted"));
        }
        for authority in boot.authorities.iter().filter(|authority| !component::allowed(authority, reference, None)) {
            // somebody's own key; a certificate that shim trusts has its own reason
            let code = if authority.variable == "MokListRT" && matches!(authority.entry, Entry::Certificate(_)) {
                Code::AttMok
            } else {
                Code::AttSigner
            };
            self.found(code, Some(7), Some(authority.event), format!("{} of {}", component::words(authority), authority.variable));
        }
        if self.profile() == Profile::Linux {
            self.mok(boot);
        }
        let claim = |value: Option<bool>| if measured { value } else { None };
        let validated = |name| claim(validated.get(name).copied());
        self.secure_boot_claims(claim(on.map(|(_, on)| on)), validated("db"), validated("dbx"));
        let current = current_to.filter(|_| measured).map_or(Claim::NotMeasured, Claim::Text);
        self.claims.set(claims::SECURE_BOOT, "hvci-dbx-current-to", current);
    }

    fn secure_boot_claims(&mut self, on: Option<bool>, db: Option<bool>, dbx: Option<bool>) {
        self.claims.set(claims::SECURE_BOOT, "secureboot", on);
        self.claims.set(claims::SECURE_BOOT, "x-ms-azurevm-dbvalidated", db);
        self.claims.set(claims::SECURE_BOOT, "x-ms-azurevm-dbxvalidated", dbx);
    }

    /// shim's lists: each that is allowed is there, once, with a value that is.
    fn mok(&mut self, boot: &Boot<'_>) {
        let reference = &self.verifier.reference;
        let mut seen = BTreeSet::new();
        for (event, name, digest) in &boot.mok {
            let allowed = reference.mok.get(name).zip(digest.as_ref()).is_some_and(|(allowed, digest)| allowed.allows(digest));
            if !allowed || !seen.insert(name.as_str()) {
                let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
                self.found(Code::AttMok, Some(14), Some(*event), format!("{name} is {digest}"));
            }
        }
        for name in reference.mok.keys().filter(|name| !seen.contains(name.as_str())) {
            self.found(Code::AttMok, Some(14), None, format!("{name} was not measured"));
        }
    }

    fn components(&mut self, boot: &Boot<'_>) {
        for (event, what) in &boot.weak {
            self.found(Code::AttWeakened, Some(7), Some(*event), what.clone());
        }
        for (event, pcr, what) in &boot.strange {
            self.found(Code::AttUnexpected, Some(*pcr), Some(*event), what.clone());
        }
        self.components = component::judge(boot, &self.verifier.reference, &self.verifier.dbx_info);
        for report in self.components.iter().filter(|report| report.verdict != Verdict::Allowed) {
            let Some(code) = report.verdict.code() else { continue };
            let stage = report.stage.map_or("component", |stage| stage.name());
            let detail = format!("{stage} {:?}: {}", report.path, report.cause);
            self.findings.push(Finding { code, pcr: Some(report.pcr), event: report.event, detail });
        }
    }

    /// What Windows and the engine say that is on.
    fn settings(&mut self, boot: &Boot<'_>, measured: bool) {
        let value = |id| if measured { claims::setting(boot, id) } else { None };
        let on = |id| value(id).map(|value| value != 0);
        for (id, claim, when_on, bad, words) in claims::WEAKENING {
            self.claims.set(claims::MEASURED_BOOT, claim, on(id).map(|on| on == when_on));
            // what contradicts itself is no good sign either
            let contradicts = boot.settings.get(&id).is_some_and(Option::is_none);
            if contradicts || claims::setting(boot, id).is_some_and(|value| (value != 0) == bad) {
                self.found(Code::AttWeakened, Some(12), None, words);
            }
        }
        let debuggers = [tag::BOOT_DEBUGGING, tag::KERNEL_DEBUG, tag::HYPERVISOR_DEBUG].map(on);
        let disabled = if debuggers.contains(&Some(true)) { Some(false) } else { debuggers.iter().all(Option::is_some).then_some(true) };
        self.claims.set(claims::MEASURED_BOOT, "x-ms-azurevm-debuggersdisabled", disabled);
        self.claims.set(claims::MEASURED_BOOT, "x-ms-azurevm-is-windows", Claim::Is(self.profile() == Profile::Windows));
        // its policy is on with the value 1 alone
        let hvci = value(tag::HVCI_POLICY);
        let guard = on(tag::LSAISO_CONFIG);
        self.claims.set(claims::HVCI, "x-ms-azurevm-hvci-policy", hvci.map_or(Claim::NotMeasured, Claim::Number));
        self.claims.set(claims::HVCI, "vbsEnabled", on(tag::VSM_LAUNCH_TYPE));
        self.claims.set(claims::CREDENTIAL_GUARD, "hvci-credential-guard", guard);
        let Some(machine) = self.machine else { return };
        for (expected, is, what) in
            [(machine.features.hvci, hvci == Some(1), "HVCI"), (machine.features.credential_guard, guard == Some(true), "Credential Guard")]
        {
            if expected && !is {
                self.found(Code::AttFeature, Some(12), None, format!("{what} was not measured as on"));
            }
        }
        if (machine.features, machine.profile) != (self.evidence.features, self.evidence.profile) {
            self.found(Code::AttFeature, None, None, "the evidence is of a machine that is made otherwise");
        }
    }

    /// What the engine decided about and what was measured of it are the same.
    fn driver_log(&mut self, boot: &Boot<'_>) {
        let loaded = self.evidence.drivers.iter().filter(|driver| driver.refused.is_none());
        let loaded: BTreeSet<&[u8]> = loaded.map(|driver| driver.authentihash.as_bytes()).collect();
        let measured: BTreeSet<&[u8]> = boot.modules.iter().map(|module| module.authentihash).collect();
        for digest in loaded.symmetric_difference(&measured) {
            let what = if loaded.contains(digest) { "loaded and not measured" } else { "measured, and nothing decided about it" };
            self.found(Code::AttDriverLog, Some(13), None, format!("{} was {what}", hex::encode(digest)));
        }
    }

    fn drivers(&mut self) {
        for driver in &self.evidence.drivers {
            let Some(refused) = &driver.refused else { continue };
            let detail = format!("{:?}: {} {}", driver.path, refused.code, refused.detail);
            self.findings.push(Finding { code: Code::AttDriver, pcr: None, event: None, detail });
        }
    }

    /// Which expectations are of what was found; those that nothing came of are found too.
    fn expected(&mut self, now: UnixTime) -> Vec<Expected> {
        let verifier = self.verifier;
        let found: BTreeSet<Code> = self.findings.iter().map(|finding| finding.code).collect();
        let measured = self.claims.get("hvci-log-replays") == &Claim::Is(true);
        let mut met = Vec::new();
        for expected in &verifier.reference.expected {
            if let Some(name) = expected.vm.as_ref().filter(|name| !verifier.knows(name)) {
                self.found(Code::AttExpected, None, None, format!("{} is expected of {name}, and no machine is called so", expected.code));
                continue;
            }
            match expected.outcome(&self.evidence.vm, now, &found, measured) {
                Outcome::Met => met.push(expected.clone()),
                Outcome::Unmatched(why) => self.found(Code::AttExpected, None, None, why),
                Outcome::Open => {}
            }
        }
        met
    }
}

fn code_of_quote(problem: &QuoteProblem) -> Code {
    match problem {
        QuoteProblem::Signature => Code::AttSignature,
        QuoteProblem::Nonce(_) => Code::AttNonce,
        QuoteProblem::Bank => Code::AttBank,
        QuoteProblem::Form | QuoteProblem::Selection | QuoteProblem::Values => Code::AttQuote,
    }
}

fn code_of_rule(problem: &Problem) -> Code {
    match problem {
        Problem::UnknownBank(_) | Problem::MissingDigest(_) => Code::AttBank,
        Problem::SeparatorData
        | Problem::SeparatorError
        | Problem::SecondSeparator
        | Problem::SeparatorElsewhere
        | Problem::NoSeparator
        | Problem::LooksLikeSeparator(_) => Code::AttSeparator,
        Problem::LateVariable(_) | Problem::SecondVariable(_) | Problem::MissingVariable(_) => Code::AttVariable,
        Problem::DigestOfOther(_)
        | Problem::UnknownType(_)
        | Problem::Unreadable
        | Problem::WrongPcr(_)
        | Problem::SecondHeader
        | Problem::NoActionDigest
        | Problem::StartupLocality => Code::AttLogRule,
    }
}
