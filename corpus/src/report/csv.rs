//! CSV: one row a file.

use std::{
    fmt,
    io::{self, Write},
};

use hvci_engine::finding::Severity;

use super::{
    Audited, Sink, Summary,
    record::{authentihash, name_of},
};

/// Writes one row a file (RFC 4180).
pub struct Csv<'w> {
    writer: csv::Writer<Box<dyn Write + Send + 'w>>,
    begun: bool,
}

const COLUMNS: [&str; 12] = [
    "path",
    "decision",
    "profile",
    "kind",
    "publisher",
    "signing_time",
    "authentihash",
    "file_version",
    "size",
    "errors",
    "warnings",
    "codes",
];

impl<'w> Csv<'w> {
    /// Over `out`.
    pub fn new(out: Box<dyn Write + Send + 'w>) -> Self {
        Self { writer: csv::Writer::from_writer(out), begun: false }
    }

    fn begin(&mut self) -> io::Result<()> {
        if !self.begun {
            self.begun = true;
            self.writer.write_record(COLUMNS)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Csv<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Csv").finish_non_exhaustive()
    }
}

impl Sink for Csv<'_> {
    fn record(&mut self, audited: &Audited) -> io::Result<()> {
        self.begin()?;
        let Audited { path, facts, verdict } = audited;
        let count = |at_least: Severity, below: Severity| {
            verdict.findings.iter().filter(|f| f.severity >= at_least && f.severity <= below).count().to_string()
        };
        let codes: Vec<&str> = verdict.findings.iter().filter(|f| f.severity > Severity::Note).map(|f| f.code.id()).collect();
        let signing_time = verdict.signatures.iter().find_map(|s| s.signing_time);
        self.writer.write_record([
            cell(path),
            verdict.decision.name().to_owned(),
            verdict.profile.clone(),
            name_of(facts.kind),
            cell(verdict.publisher.as_deref().unwrap_or_default()),
            signing_time.map(|t| t.to_string()).unwrap_or_default(),
            authentihash(facts).map(ToString::to_string).unwrap_or_default(),
            cell(facts.image.as_ref().and_then(|i| i.file_version.as_deref()).unwrap_or_default()),
            facts.size.to_string(),
            count(Severity::Unknown, Severity::Error),
            count(Severity::Warning, Severity::Warning),
            codes.join(" "),
        ])?;
        Ok(())
    }

    fn finish(&mut self, _: &Summary) -> io::Result<()> {
        self.begin()?;
        self.writer.flush()
    }
}

/// Text that a file or certificate chose must not become a formula in a spreadsheet (OWASP, "CSV Injection").
fn cell(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn formulas_are_defused() {
        assert_eq!(super::cell("=HYPERLINK(1)"), "'=HYPERLINK(1)");
        assert_eq!(super::cell("Contoso"), "Contoso");
    }
}
