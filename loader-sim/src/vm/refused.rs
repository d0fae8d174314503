//! The alert of a boot that Secure Boot ended: which file, who signed it, what refused it.

use hvci_engine::{finding::Code, time::UnixTime};

use super::known::stage_of;
use crate::{
    attest::{
        ComponentReport, Verdict,
        alert::{Alert, boot_refused},
    },
    boot::{Boot, End, Stage, StageKind},
};

/// The alert, if nothing runs.
pub(super) fn of_boot(vm: &str, boot: &Boot, time: UnixTime) -> Option<Alert> {
    let (End::Stopped { reason, .. } | End::PoweredOff { reason, .. }) = &boot.end else { return None };
    let Some((stage, first)) =
        boot.stages.iter().find(|stage| stage.is_refused()).and_then(|s| Some((s, s.verdict.as_ref()?.findings.first()?)))
    else {
        // nothing was refused, and what was to come next is not there
        let last = boot.stages.last()?;
        return Some(boot_refused(vm, time, Code::BootMissing, report(last, Verdict::Missing, reason.clone())));
    };
    let findings = stage.verdict.as_ref().map_or(&[][..], |v| v.findings.as_slice());
    let is = |wanted| findings.iter().any(|f| f.code == wanted);
    let verdict = match first.code {
        Code::BootDigestRevoked | Code::BootSignerRevoked | Code::BootVersionRevoked => Verdict::Revoked,
        Code::BootUnsigned => Verdict::Unsigned,
        Code::BootSbatRevoked => Verdict::SbatRevoked,
        _ if is(Code::SigDigestMismatch) => Verdict::HashMismatch,
        Code::BootNoAuthority => Verdict::UnknownSigner,
        _ => Verdict::Unexpected,
    };
    let words = findings.iter().map(|f| {
        let detail = if f.detail.is_empty() { String::new() } else { format!(": {}", f.detail) };
        format!("[{}] {}{detail}", f.code, f.code.title())
    });
    Some(boot_refused(vm, time, first.code, report(stage, verdict, words.collect::<Vec<_>>().join("; "))))
}

fn report(stage: &Stage, verdict: Verdict, cause: String) -> ComponentReport {
    ComponentReport {
        stage: stage_of(stage.kind),
        // where it would have been measured
        pcr: if matches!(stage.kind, StageKind::OsLoader | StageKind::NtKernel) { 13 } else { 4 },
        event: None,
        path: stage.path.clone(),
        authentihash: stage.authentihash,
        name: Some(stage.kind.to_string()),
        signers: Vec::new(),
        revoked: None,
        expected: Vec::new(),
        verdict,
        cause,
    }
}
