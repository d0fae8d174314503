//! A file's way to its verdict: read first, which says where its bytes are to stand; then hashed and judged.
//!
//! ```text
//! file ─► known? ─┬─ no ──► read ─┬─► hash ─► signatures ─► policy ─► verdict
//!                 └─ yes ─────────┼─────────────────────► policy ─► verdict
//!                                 └─► what it is, for the layout
//! ```
//!
//! The verdict is that of [`Judge::judge`], as of an audit under the same profile.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::sync::Arc;

use super::{
    Refusal,
    known::{KnownFiles, Met, file_jobs},
};
#[cfg(doc)]
use crate::crypto::digest_jobs_beside;
use crate::{
    digest::{Digest, DigestAlg},
    examine::{Examiner, Input, Parsed, Reading},
    facts::{DigestForm, Facts, FileKind},
    finding::{Code, Note},
    host::Host,
    policy::{Decision, Judge, Profile, Verdict},
    status::HvStatus,
};

/// What a file is verified with.
#[derive(Clone, Copy)]
pub(super) struct Verifier<'l> {
    pub(super) known: &'l KnownFiles,
    pub(super) examiner: Examiner<'l>,
    pub(super) judge: Judge<'l>,
    /// `None`: that for what it is.
    pub(super) profile: Option<&'static Profile>,
    /// For its clock.
    pub(super) host: &'l dyn Host,
}

/// A file of which a verdict is to come, once, in whatever state its load is by then.
pub(super) struct Verification<'l, 'i> {
    by: Verifier<'l>,
    input: &'i Input<'i>,
    pub(super) parsed: Parsed<'i>,
    start: Start<'i>,
}

/// What is known of it so far.
#[expect(clippy::large_enum_variant, reason = "there is one, on the stack")]
enum Start<'i> {
    Known(Arc<Facts>),
    Read {
        reading: Reading<'i>,
        /// whether it may have been met once
        is_second: bool,
    },
}

/// What a file turned out to be.
pub(super) struct Examined {
    pub(super) verdict: Verdict,
    /// That signatures of such a file are over.
    pub(super) digest: Option<Digest>,
    /// Nanoseconds, without those of reading it.
    pub(super) took: u64,
}

impl<'l> Verifier<'l> {
    /// Reads a file, or finds out that it is known.
    pub(super) fn begin<'i>(self, input: &'i Input<'i>) -> Verification<'l, 'i> {
        let met = if input.is_plain() { self.known.look(input.bytes(), self.examiner.digests) } else { Met::Never };
        let (start, parsed) = match met {
            Met::Known(facts) => (Start::Known(facts), Parsed::of(input.bytes())),
            Met::Once | Met::Never => {
                let (reading, parsed) = self.examiner.read(input);
                (Start::Read { reading, is_second: matches!(met, Met::Once) }, parsed)
            }
        };
        Verification { by: self, input, parsed, start }
    }

    fn verdict(&self, facts: &Facts) -> Verdict {
        let profile = self.profile.or_else(|| match facts.kind {
            FileKind::PeDriver => Profile::find("hvci"),
            _ => None,
        });
        self.judge.judge(facts, profile)
    }
}

impl Verification<'_, '_> {
    /// What was found in it.
    pub(super) fn notes(&self) -> &[Note] {
        match &self.start {
            Start::Known(facts) => &facts.notes,
            Start::Read { reading, .. } => reading.notes(),
        }
    }

    /// The verdict. `step` is called beside the digest ([`digest_jobs_beside`]).
    pub(super) fn run(self, step: impl FnMut()) -> Examined {
        let Self { by, input, parsed, start } = self;
        let since = by.host.now();
        let (facts, remember) = match start {
            Start::Known(facts) => (facts, None),
            Start::Read { reading, is_second } => {
                let further = if is_second { file_jobs(input.bytes()) } else { Vec::new() };
                let (facts, pages) = by.examiner.finish(reading, &parsed, further, step);
                (Arc::new(facts), input.is_plain().then_some((is_second, pages)))
            }
        };
        let verdict = by.verdict(&facts);
        let digest = digest_of(&facts);
        match remember.filter(|_| verdict.decision == Decision::Accept) {
            Some((true, pages)) => by.known.remember(input.bytes(), &pages, by.examiner.digests.to_vec(), facts),
            Some((false, _)) => by.known.meet(input.bytes()),
            None => {}
        }
        Examined { verdict, digest, took: by.host.now().saturating_sub(since) }
    }
}

impl Examined {
    /// What is not accepted is refused, for the worst of the reasons.
    pub(super) fn accepted(&self) -> Result<(), Refusal> {
        if self.verdict.decision == Decision::Accept {
            return Ok(());
        }
        let note = match self.verdict.findings.first() {
            Some(f) => Note { code: f.code, span: f.span, subject: f.subject.clone(), detail: f.detail.clone() },
            None => Note::new(Code::SigNone, ""),
        };
        Err(Refusal { note, status: HvStatus::ACCESS_DENIED })
    }
}

/// The digest that signatures of such a file are over.
fn digest_of(facts: &Facts) -> Option<Digest> {
    let form = match facts.kind {
        FileKind::ElfModule => DigestForm::Module,
        _ => DigestForm::Linear,
    };
    facts.digest(form, DigestAlg::Sha256).or_else(|| facts.digests.iter().find(|d| d.form == form).map(|d| &d.digest)).cloned()
}
