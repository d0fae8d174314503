//! The maker against the engine, and against tools that it has nothing to do with.

use std::sync::LazyLock;

use super::*;

static PKI: LazyLock<Pki> = LazyLock::new(|| Pki::new(DEFAULT_SEED).unwrap());
static CORPUS: LazyLock<Corpus> = LazyLock::new(|| cases::all(&PKI).unwrap());

mod corpus;
mod engine;
mod tools;
