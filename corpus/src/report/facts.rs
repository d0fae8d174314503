//! Saved facts: one object a line, a path and what is known of the file. `hvci-audit judge` reads them.

use std::{
    fmt,
    io::{self, Write},
};

use hvci_engine::facts::Facts;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Audited, Sink, Summary};

/// One line of saved facts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FactsLine {
    /// Path, as the scan named it.
    pub path: String,
    /// What is known.
    pub facts: Facts,
}

/// Writes [`FactsLine`]s.
pub struct FactsSink<'w> {
    out: Box<dyn Write + Send + 'w>,
}

impl<'w> FactsSink<'w> {
    /// Over `out`.
    pub fn new(out: Box<dyn Write + Send + 'w>) -> Self {
        Self { out }
    }
}

impl fmt::Debug for FactsSink<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FactsSink").finish_non_exhaustive()
    }
}

impl Sink for FactsSink<'_> {
    fn record(&mut self, audited: &Audited) -> io::Result<()> {
        #[derive(Serialize)]
        struct Line<'a> {
            path: &'a str,
            facts: &'a Facts,
        }
        serde_json::to_writer(&mut self.out, &Line { path: &audited.path, facts: &audited.facts })?;
        self.out.write_all(b"\n")
    }

    fn finish(&mut self, _: &Summary) -> io::Result<()> {
        self.out.flush()
    }
}
