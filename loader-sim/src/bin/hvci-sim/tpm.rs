//! `hvci-sim tpm`, and the process that holds a TPM of libtpms.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use loader_sim::vtpm::libtpms;

/// A worker, until its client goes.
pub(crate) fn worker() -> Result<ExitCode> {
    libtpms::worker::serve().context("a TPM worker")?;
    Ok(ExitCode::SUCCESS)
}
