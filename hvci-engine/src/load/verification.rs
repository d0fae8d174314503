//! A file's way to its verdict: parsed first, which says where its bytes are to stand; then hashed and judged.
//!
//! ```text
//! file ─► known? ─► parse ─┬─ no ──► signatures, and what they are over ─► hash ─► signatures ─┬─► policy ─► verdict
//!                          ├─ yes ─────────────────────────────────────────────────────────────┘
//!                          └─► what it is, for the layout
//! ```
//!
//! Whether it is known is asked of a digest of its pages. An Authenticode signature is whole in itself and verified before the hash, which is then
//! compared with what it says; a module's is over the hash.
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
    clock::Clock,
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
    pub(super) took: Took,
}

/// Nanoseconds of each part of it, so far.
#[derive(Clone, Copy, Default)]
pub(super) struct Took {
    /// asking whether the file is known, which hashes it if it may be
    pub(super) known: u64,
    hash: u64,
    /// reading signatures, and verifying them
    signature: u64,
    /// chains to anchors and the profile's rules; and remembering the file
    policy: u64,
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
    pub(super) took: Took,
}

impl<'l> Verifier<'l> {
    /// Parses a file, and finds out whether it is known.
    pub(super) fn begin<'i>(self, input: &'i Input<'i>) -> Verification<'l, 'i> {
        let mut clock = Clock::of(self.host);
        let met = if input.is_plain() { self.known.look(input.bytes(), self.examiner.digests) } else { Met::Never };
        let took = Took { known: clock.lap(), ..Took::default() };
        let parsed = Parsed::of(input.bytes());
        let start = match met {
            Met::Known(facts) => Start::Known(facts),
            Met::Once | Met::Never => Start::Read { reading: Reading::of(input, &parsed), is_second: matches!(met, Met::Once) },
        };
        Verification { by: self, input, parsed, start, took }
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
        let Self { by, input, parsed, start, mut took } = self;
        let mut clock = Clock::of(by.host);
        let (facts, remember) = match start {
            Start::Known(facts) => (facts, None),
            Start::Read { mut reading, is_second } => {
                by.examiner.read_signatures(&mut reading, input, &parsed);
                took.signature = clock.lap();
                let further = if is_second { file_jobs(input.bytes()) } else { Vec::new() };
                let (digests, pages) = reading.digests(further, step);
                took.hash = clock.lap();
                let facts = by.examiner.complete(reading, &parsed, &digests);
                (Arc::new(facts), input.is_plain().then_some((is_second, pages)))
            }
        };
        by.judge.verify_with_keyring(&facts);
        took.signature = took.signature.saturating_add(clock.lap());
        let verdict = by.verdict(&facts);
        let digest = digest_of(&facts);
        match remember.filter(|_| verdict.decision == Decision::Accept) {
            Some((true, pages)) => by.known.remember(input.bytes(), &pages, by.examiner.digests.to_vec(), facts),
            Some((false, _)) => by.known.meet(input.bytes()),
            None => {}
        }
        took.policy = clock.lap();
        Examined { verdict, digest, took }
    }
}

impl Took {
    /// The phases that are over when there is a verdict.
    pub(super) const fn phases(&self) -> [(&'static str, u64); 3] {
        [("hash", self.known.saturating_add(self.hash)), ("signature", self.signature), ("policy", self.policy)]
    }

    /// [`Verification::run`].
    pub(super) const fn run(&self) -> u64 {
        self.hash.saturating_add(self.signature).saturating_add(self.policy)
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
