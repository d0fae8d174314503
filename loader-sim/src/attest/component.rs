//! Judges what was started, one by one: is it known, who authorised it, is it revoked, does it have a place here.
//!
//! A component is known by its authentihash. An unknown one is allowed if every key that may have authorised it may do so for its stage: all
//! of `db` for what firmware starts, all that there are for what shim starts. PCR 7 says which keys were used and not for what, as the order
//! of events in two PCRs is not measured. A stranger's key is not made good by a known image.

use hvci_engine::{digest::Digest, finding::Code};
use serde::Serialize;

use super::{
    boot::{Authority, BANK, Boot, Entry, Image, MODULES_PCR},
    dbx_info::{DbxInfo, Revoked},
    reference::{Reference, Stage},
};

/// How often a kernel is measured at most: GRUB has shim verify it twice.
const KERNEL_REPEATS: usize = 2;

/// What a component is found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should.
    Allowed,
    /// On a list of what is revoked.
    Revoked,
    /// Without a signature.
    Unsigned,
    /// Authorised by a key that is not allowed.
    UnknownSigner,
    /// Not one of those known.
    HashMismatch,
    /// Below the least SBAT generation.
    SbatRevoked,
    /// Has no place in the chain.
    Unexpected,
    /// Was not started.
    Missing,
}

impl Verdict {
    /// The finding that it is.
    pub const fn code(self) -> Option<Code> {
        match self {
            Self::Allowed => None,
            Self::Revoked => Some(Code::AttRevoked),
            Self::Unsigned | Self::UnknownSigner => Some(Code::AttSigner),
            Self::HashMismatch => Some(Code::AttComponent),
            Self::SbatRevoked => Some(Code::AttSbat),
            Self::Unexpected => Some(Code::AttUnexpected),
            Self::Missing => Some(Code::AttMissing),
        }
    }
}

/// Who authorised a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SignerReport {
    /// The entry's variable: `db`, `MokListRT`.
    pub variable: String,
    /// The event that says so.
    pub event: usize,
    /// Subject of the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Its issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// SHA-256 of the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Digest>,
}

/// A component of a start, and what is thought of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ComponentReport {
    /// What it is, by its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// Where it is measured.
    pub pcr: u32,
    /// Number of its event; none if it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<usize>,
    /// Its path by the log. A hint: no digest covers it.
    pub path: String,
    /// Digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentihash: Option<Digest>,
    /// Its name by the reference values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The key that authorised it by the order of the log; none if it was in use before. A hint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<SignerReport>,
    /// What is known of its revocation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revoked>,
    /// Digests that are known of its stage, unless it is allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<Digest>,
    /// What it is found to be.
    pub verdict: Verdict,
    /// Why, for a person.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cause: String,
}

/// Judges every image of `boot`, in order, and adds what is missing.
pub(super) fn judge(boot: &Boot<'_>, reference: &Reference, dbx_info: &DbxInfo) -> Vec<ComponentReport> {
    let judge = Judge { boot, reference, dbx_info, revoked: boot.revoked() };
    let mut reports: Vec<ComponentReport> = Vec::new();
    let mut next = 0_usize;
    let mut repeats = 1_usize;
    for image in &boot.images {
        if image.pcr != 4 {
            // what devices bring
            reports.push(judge.at(image, Stage::Driver));
            continue;
        }
        let last = reports.iter().rev().find(|report| report.pcr == 4);
        if let Some(last) = last.filter(|last| last.stage == Some(Stage::Kernel) && last.authentihash == image.authentihash) {
            repeats = repeats.saturating_add(1);
            if repeats <= KERNEL_REPEATS {
                continue;
            }
            let repeated = ComponentReport { event: Some(image.event), ..last.clone() };
            reports.push(unexpected(repeated, "measured a third time"));
            continue;
        }
        let known = image.authentihash.and_then(|digest| reference.known(&digest));
        // a known component tells where the chain is, if it is further on
        let place = known.and_then(|known| reference.chain.iter().skip(next).position(|stage| *stage == known.stage));
        match reference.chain.get(next) {
            None => reports.push(unexpected(judge.describe(image, None), "the chain is at its end")),
            Some(stage) if known.is_none_or(|known| known.stage == *stage) => {
                reports.push(judge.at(image, *stage));
                next = next.saturating_add(1);
            }
            Some(stage) => {
                let skipped = place.unwrap_or(0);
                reports.extend(reference.chain.iter().skip(next).take(skipped).map(|stage| judge.missing(*stage)));
                let cause = format!("in the place of {}", stage.name());
                reports.push(unexpected(judge.describe(image, known.map(|known| known.stage)), &cause));
                next = next.saturating_add(skipped).saturating_add(usize::from(place.is_some()));
            }
        }
        repeats = 1;
    }
    reports.extend(reference.chain.iter().skip(next).map(|stage| judge.missing(*stage)));
    if !reference.expected(Stage::OsLoader).is_empty() {
        reports.extend(judge.windows());
    }
    reports
}

fn unexpected(report: ComponentReport, cause: &str) -> ComponentReport {
    // what is revoked stays so wherever it is
    if report.verdict == Verdict::Revoked {
        return report;
    }
    ComponentReport { verdict: Verdict::Unexpected, cause: cause.to_owned(), ..report }
}

struct Judge<'b, 'a> {
    boot: &'b Boot<'a>,
    reference: &'b Reference,
    dbx_info: &'b DbxInfo,
    revoked: Vec<Digest>,
}

impl Judge<'_, '_> {
    /// Windows' OS loader and kernel: the first two modules, each measured by the one before it. What comes later is measured by whoever then runs.
    fn windows(&self) -> Vec<ComponentReport> {
        let stages = [Stage::OsLoader, Stage::Kernel];
        let judged = stages.into_iter().enumerate().map(|(n, stage)| {
            let Some(module) = self.boot.modules.get(n) else { return ComponentReport { pcr: MODULES_PCR, ..self.missing(stage) } };
            let authentihash = Digest::new(BANK, module.authentihash);
            let image = Image { event: module.event, pcr: MODULES_PCR, authentihash, path: module.path.clone() };
            let report = self.describe(&image, Some(stage));
            let expected = self.reference.expected(stage);
            if report.verdict != Verdict::Allowed || authentihash.is_some_and(|digest| expected.contains(&digest)) {
                return report;
            }
            let cause = format!("it is no {} that is known", stage.name());
            ComponentReport { verdict: Verdict::HashMismatch, cause, expected, ..report }
        });
        judged.collect()
    }

    fn missing(&self, stage: Stage) -> ComponentReport {
        ComponentReport {
            stage: Some(stage),
            pcr: 4,
            event: None,
            path: String::new(),
            authentihash: None,
            name: None,
            signers: Vec::new(),
            revoked: None,
            expected: self.reference.expected(stage),
            verdict: Verdict::Missing,
            cause: "it was not started".to_owned(),
        }
    }

    /// What there is to say of an image, and whether it is revoked.
    fn describe(&self, image: &Image, stage: Option<Stage>) -> ComponentReport {
        let digest = image.authentihash;
        let listed = digest.and_then(|digest| self.dbx_info.lookup(&digest)).cloned();
        let in_dbx = digest.is_some_and(|digest| self.revoked.contains(&digest));
        let (verdict, cause) = match (&listed, in_dbx) {
            (Some(revoked), _) => (Verdict::Revoked, format!("revoked {} ({})", revoked.since, revoked.cve.join(", "))),
            (None, true) => (Verdict::Revoked, "it is in the dbx of the machine itself".to_owned()),
            (None, false) => (Verdict::Allowed, String::new()),
        };
        ComponentReport {
            stage,
            pcr: image.pcr,
            event: Some(image.event),
            path: image.path.clone(),
            authentihash: digest,
            name: digest.and_then(|digest| self.reference.known(&digest)).map(|known| known.name.clone()),
            signers: self.boot.authorities_by_order(image.event).map(signer).collect(),
            revoked: listed,
            expected: Vec::new(),
            verdict,
            cause,
        }
    }

    fn at(&self, image: &Image, stage: Stage) -> ComponentReport {
        let mut report = self.describe(image, Some(stage));
        if report.verdict == Verdict::Allowed {
            (report.verdict, report.cause) = self.verdict(image, stage);
        }
        if report.verdict != Verdict::Allowed {
            report.expected = self.reference.expected(stage);
        }
        report
    }

    fn verdict(&self, image: &Image, stage: Stage) -> (Verdict, String) {
        let known = image.authentihash.and_then(|digest| self.reference.known(&digest)).filter(|known| known.stage == stage);
        let mut before = self.boot.authorities_by_order(image.event);
        if let Some(stranger) = before.find(|authority| !allowed(authority, self.reference, image.authentihash)) {
            return (Verdict::UnknownSigner, format!("authorised by {} of {}", words(stranger), stranger.variable));
        }
        if let Some(known) = known {
            let old = known.sbat.iter().find_map(|(name, generation)| {
                let least = self.least(name)?;
                (*generation < least).then(|| format!("{name} is {generation}, {least} is wanted"))
            });
            return old.map_or((Verdict::Allowed, String::new()), |cause| (Verdict::SbatRevoked, cause));
        }
        let may_sign = |authority: &Authority| match &authority.entry {
            Entry::Certificate(certificate) => self.reference.signer(certificate.sha256()).is_some_and(|s| s.stages.contains(&stage)),
            Entry::Digest(_) | Entry::Unknown => false,
        };
        let by_shim = matches!(stage, Stage::BootLoader | Stage::Kernel);
        let mut possible = self.boot.authorities.iter().filter(|authority| by_shim || authority.variable == "db").peekable();
        if possible.peek().is_none() || !possible.all(may_sign) {
            let verdict = if self.reference.expected(stage).is_empty() { Verdict::UnknownSigner } else { Verdict::HashMismatch };
            return (verdict, format!("not known, and not everybody who may have authorised it may sign any {}", stage.name()));
        }
        let unsaid = self.reference.sbat.iter().find(|(name, least)| match stage {
            // only a shim that is known is known to look at itself
            Stage::Shim => true,
            Stage::BootLoader => self.enforced(name).is_none_or(|level| level < **least),
            Stage::Kernel | Stage::BootManager | Stage::OsLoader | Stage::Driver => false,
        });
        unsaid.map_or((Verdict::Allowed, String::new()), |(name, least)| {
            (Verdict::SbatRevoked, format!("not known, and nothing says that its {name} is {least} or later"))
        })
    }

    /// The least generation: of the reference values, or what shim enforces.
    fn least(&self, name: &str) -> Option<u32> {
        self.reference.sbat.get(name).copied().max(self.enforced(name))
    }

    fn enforced(&self, name: &str) -> Option<u32> {
        let level = self.boot.sbat_level.as_ref()?;
        level.components.iter().find(|component| component.name == name).map(|component| component.generation)
    }
}

/// Whether an entry is one of the reference values; the digest of an image, if the image is known.
pub(super) fn allowed(authority: &Authority, reference: &Reference, image: Option<Digest>) -> bool {
    match &authority.entry {
        Entry::Certificate(certificate) => reference.signer(certificate.sha256()).is_some(),
        Entry::Digest(digest) => reference.known(digest).is_some() && image.is_none_or(|image| image == *digest),
        Entry::Unknown => false,
    }
}

/// Who an authority is, for a person.
pub(super) fn words(authority: &Authority) -> String {
    match &authority.entry {
        Entry::Certificate(certificate) => format!("{:?} ({})", certificate.subject(), certificate.sha256().hex()),
        Entry::Digest(digest) => format!("the digest {}", digest.hex()),
        Entry::Unknown => "an entry that cannot be read".to_owned(),
    }
}

fn signer(authority: &Authority) -> SignerReport {
    let certificate = if let Entry::Certificate(certificate) = &authority.entry { Some(certificate) } else { None };
    SignerReport {
        variable: authority.variable.clone(),
        event: authority.event,
        subject: certificate.map(|certificate| certificate.subject()),
        issuer: certificate.map(|certificate| certificate.issuer()),
        certificate: certificate.map(|certificate| *certificate.sha256()),
    }
}
