//! JSON: one document, or one object a line.

use std::{
    fmt,
    io::{self, Write},
};

use hvci_engine::facts::SCHEMA_VERSION;

use super::{Audited, ReportRecord, Sink, Summary};

/// One object a line, written and flushed as it comes.
pub struct Ndjson<'w> {
    out: Box<dyn Write + Send + 'w>,
}

impl<'w> Ndjson<'w> {
    /// Over `out`.
    pub fn new(out: Box<dyn Write + Send + 'w>) -> Self {
        Self { out }
    }
}

impl fmt::Debug for Ndjson<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ndjson").finish_non_exhaustive()
    }
}

impl Sink for Ndjson<'_> {
    fn record(&mut self, audited: &Audited) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, &ReportRecord::new(audited))?;
        self.out.write_all(b"\n")
    }

    fn finish(&mut self, _: &Summary) -> io::Result<()> {
        self.out.flush()
    }
}

/// One document ([`super::ReportDocument`]), written record by record.
pub struct Json<'w> {
    out: Box<dyn Write + Send + 'w>,
    begun: bool,
}

impl<'w> Json<'w> {
    /// Over `out`.
    pub fn new(out: Box<dyn Write + Send + 'w>) -> Self {
        Self { out, begun: false }
    }

    fn begin(&mut self) -> io::Result<()> {
        let separator = if self.begun { ",\n".to_owned() } else { format!("{{\"schema_version\":{SCHEMA_VERSION},\"records\":[\n") };
        self.begun = true;
        self.out.write_all(separator.as_bytes())
    }
}

impl fmt::Debug for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Json").finish_non_exhaustive()
    }
}

impl Sink for Json<'_> {
    fn record(&mut self, audited: &Audited) -> io::Result<()> {
        self.begin()?;
        serde_json::to_writer(&mut self.out, &ReportRecord::new(audited))?;
        Ok(())
    }

    fn finish(&mut self, summary: &Summary) -> io::Result<()> {
        if !self.begun {
            self.begin()?;
        }
        self.out.write_all(b"\n],\"summary\":")?;
        serde_json::to_writer(&mut self.out, summary)?;
        self.out.write_all(b"}\n")?;
        self.out.flush()
    }
}
