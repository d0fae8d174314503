//! The alert of a boot that Secure Boot ended: which file, who signed it, what refused it.

use hvci_engine::{finding::Code, time::UnixTime};

use super::known::stage_of;
use crate::{
    attest::{
        ComponentReport, Verdict,
        alert::{Alert, boot_refused},
    },
    boot::{Boot, Stage},
};

/// The alert, if an image was refused and nothing runs.
pub(super) fn of_boot(vm: &str, boot: &Boot, time: UnixTime) -> Option<Alert> {
    if boot.kernel().is_some() {
        return None;
    }
    let refused = boot.stages.iter().find(|stage| stage.is_refused())?;
    let findings = &refused.verdict.as_ref()?.findings;
    let code = findings.first()?.code;
    let is = |wanted| findings.iter().any(|f| f.code == wanted);
    let verdict = match code {
        Code::BootDigestRevoked | Code::BootSignerRevoked => Verdict::Revoked,
        Code::BootUnsigned => Verdict::Unsigned,
        Code::BootSbatRevoked => Verdict::SbatRevoked,
        _ if is(Code::SigDigestMismatch) => Verdict::HashMismatch,
        Code::BootNoAuthority => Verdict::UnknownSigner,
        _ => Verdict::Unexpected,
    };
    let words: Vec<String> = findings.iter().map(|f| format!("{}: {} {}", f.code, f.code.title(), f.detail).trim_end().to_owned()).collect();
    Some(boot_refused(vm, time, code, report(refused, verdict, words.join("; "))))
}

fn report(stage: &Stage, verdict: Verdict, cause: String) -> ComponentReport {
    ComponentReport {
        stage: stage_of(stage.kind),
        // where it would have been measured
        pcr: 4,
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
