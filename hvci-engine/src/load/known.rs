//! Files that were examined before: their facts again, for the digests of their pages.
//!
//! ```text
//! first time    examined
//! second        examined; its pages are hashed beside it, and their root kept with the facts
//! from then on  pages ─► root, equal? ─► the facts
//! ```
//!
//! A guest that has unloaded a module loads it again. The digest that a signature is over is one stream, in which each block waits for the one
//! before it; those of pages go side by side, in half the time. With the facts known, nothing is left to read of the signatures, and they are
//! judged anew: whom to trust, and the time, may be others. A loader knows its own files, for as long as it lives.
//!
//! **Invariant:** the facts of a file are found for exactly the bytes that they were read from, and the digests that were asked for then. No
//! file whose signatures are not accepted is kept, so that nobody who has many such has the others forgotten; a full table is emptied.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use super::pages::{PAGE, page_jobs};
use crate::{
    crypto::{Job, digest, digest_jobs},
    digest::{Digest, DigestAlg},
    facts::Facts,
    sync::{Mutex, MutexGuard},
};

/// Most files that are remembered, of some 10 KiB each.
const MAX_FILES: usize = 1024;

/// Files by their marks.
#[derive(Default)]
pub(super) struct KnownFiles(Mutex<HashMap<Mark, Option<Kept>>>);

/// What says that a file may be one of those, and proves nothing: its length, and of its last bytes enough for a piece of a signature.
#[derive(PartialEq, Eq, Hash)]
struct Mark {
    len: usize,
    tail: [u8; 96],
}

/// A file that was examined twice.
#[derive(Clone)]
struct Kept {
    root: Digest,
    algorithms: Vec<DigestAlg>,
    facts: Arc<Facts>,
}

/// Whether a file was met before.
pub(super) enum Met {
    /// No, or what is known does not answer all that is asked.
    Never,
    /// It may have been.
    Once,
    /// These bytes were.
    Known(Arc<Facts>),
}

impl KnownFiles {
    /// What is known of the file `bytes`, of which digests by these algorithms are wanted.
    pub(super) fn look(&self, bytes: &[u8], algorithms: &[DigestAlg]) -> Met {
        let kept = match self.files().get(&Mark::of(bytes)) {
            None => return Met::Never,
            Some(None) => return Met::Once,
            Some(Some(kept)) => kept.clone(),
        };
        // the cheaper question first
        if kept.algorithms == algorithms && root(&digest_jobs(&file_jobs(bytes))) == kept.root {
            Met::Known(kept.facts)
        } else {
            Met::Never
        }
    }

    /// The file `bytes` was met.
    pub(super) fn meet(&self, bytes: &[u8]) {
        self.insert(Mark::of(bytes), None);
    }

    /// The facts of the file `bytes`, the digests of whose pages are `pages`, when these algorithms are asked for.
    pub(super) fn remember(&self, bytes: &[u8], pages: &[Digest], algorithms: Vec<DigestAlg>, facts: Arc<Facts>) {
        self.insert(Mark::of(bytes), Some(Kept { root: root(pages), algorithms, facts }));
    }

    pub(super) fn forget(&self) {
        self.files().clear();
    }

    fn insert(&self, mark: Mark, kept: Option<Kept>) {
        let mut files = self.files();
        if files.len() >= MAX_FILES {
            files.clear();
        }
        files.insert(mark, kept);
    }

    fn files(&self) -> MutexGuard<'_, HashMap<Mark, Option<Kept>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mark {
    fn of(bytes: &[u8]) -> Self {
        Self { len: bytes.len(), tail: bytes.last_chunk().copied().unwrap_or([0; 96]) }
    }
}

/// The digest of each page of a file, to be calculated; the last may be short.
pub(super) fn file_jobs(bytes: &[u8]) -> Vec<Job<'_>> {
    page_jobs(bytes.chunks(PAGE))
}

/// One digest for those of all pages, whose number follows from the file's length.
fn root(pages: &[Digest]) -> Digest {
    let pieces: Vec<&[u8]> = pages.iter().map(Digest::as_bytes).collect();
    digest(DigestAlg::Sha256, &pieces)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, reason = "tests")]

    use proptest::prelude::*;

    use super::*;
    use crate::facts::FileKind;

    const ALGORITHMS: [DigestAlg; 1] = [DigestAlg::Sha1];

    fn text(len: usize) -> Vec<u8> {
        (0..=250).cycle().take(len).collect()
    }

    fn remembering(bytes: &[u8]) -> KnownFiles {
        let files = KnownFiles::default();
        let facts = Arc::new(Facts::new(bytes.len(), FileKind::PeDriver));
        files.remember(bytes, &digest_jobs(&file_jobs(bytes)), ALGORITHMS.to_vec(), facts);
        files
    }

    fn is_known(met: &Met) -> bool {
        matches!(met, Met::Known(_))
    }

    #[test]
    fn a_file_is_known_from_the_second_time_on() {
        let file = text(3 * PAGE + 7);
        let files = KnownFiles::default();
        assert!(matches!(files.look(&file, &ALGORITHMS), Met::Never));
        files.meet(&file);
        assert!(matches!(files.look(&file, &ALGORITHMS), Met::Once));
        let files = remembering(&file);
        assert!(matches!(files.look(&file, &ALGORITHMS), Met::Known(facts) if facts.size == 3 * 4096 + 7));
        // facts without a digest that a list of blocked files asks for would let one through
        assert!(!is_known(&files.look(&file, &[])));
        assert!(!is_known(&files.look(&file, &[DigestAlg::Sha1, DigestAlg::Sha384])));
        files.forget();
        assert!(matches!(files.look(&file, &ALGORITHMS), Met::Never));
    }

    #[test]
    fn many_files_do_not_make_it_grow() {
        let files = KnownFiles::default();
        for len in 0..3 * MAX_FILES {
            files.meet(&text(len));
            assert!(files.files().len() <= MAX_FILES);
        }
    }

    proptest! {
        #[test]
        fn no_other_bytes_are_taken_for_a_file(len in 0..4 * PAGE, changes in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4)) {
            let file = text(len);
            let files = remembering(&file);
            prop_assert!(is_known(&files.look(&file, &ALGORITHMS)));
            let mut forged = file.clone();
            for (at, change) in changes {
                if len > 0 {
                    forged[at.index(len)] ^= change;
                }
            }
            prop_assert_eq!(is_known(&files.look(&forged, &ALGORITHMS)), forged == file);
            forged = [file.as_slice(), &[0]].concat();
            prop_assert!(!is_known(&files.look(&forged, &ALGORITHMS)));
            prop_assert!(len == 0 || !is_known(&files.look(&file[..len - 1], &ALGORITHMS)));
        }
    }
}
