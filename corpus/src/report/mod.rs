//! Reports: one record a file, written as it comes, and a summary at the end.
//!
//! Every format is a [`Sink`]. Records reach a sink in the order of the scan, which does not depend on the number of threads.
//! **Boundary:** a sink decides nothing; it sees facts and verdicts and writes them.

mod csv;
mod facts;
mod human;
mod json;
mod record;
mod sarif;
mod summary;

use std::io;

use hvci_engine::{facts::Facts, policy::Verdict};

pub use self::{
    csv::Csv,
    facts::{FactsLine, FactsSink},
    human::{Human, render, render_verdict},
    json::{Json, Ndjson},
    record::{FindingRecord, ReportDocument, ReportRecord, SignatureRecord},
    sarif::{MAX_RESULTS, Sarif},
    summary::Summary,
};

/// A file's name, what is known of it, and what the profile says.
#[derive(Clone, Debug)]
pub struct Audited {
    /// Path, with `!/` before each member of a package; safe to print.
    pub path: String,
    /// What is known.
    pub facts: Facts,
    /// What the profile says.
    pub verdict: Verdict,
}

/// Something that writes a report.
pub trait Sink: Send {
    /// Writes one file's record.
    ///
    /// # Errors
    /// The output's.
    fn record(&mut self, audited: &Audited) -> io::Result<()>;

    /// Writes what comes last.
    ///
    /// # Errors
    /// The output's.
    fn finish(&mut self, summary: &Summary) -> io::Result<()>;
}

/// The formats, by the names of `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Human,
    /// One JSON document.
    Json,
    /// One JSON object a line, streamed.
    Ndjson,
    /// One row a file.
    Csv,
    /// SARIF 2.1.0, for code-scanning services.
    Sarif,
    /// What `judge` reads.
    Facts,
}

impl Format {
    /// Every format with its name.
    pub const ALL: [(&'static str, Self); 6] = [
        ("human", Self::Human),
        ("json", Self::Json),
        ("ndjson", Self::Ndjson),
        ("csv", Self::Csv),
        ("sarif", Self::Sarif),
        ("facts", Self::Facts),
    ];

    /// The format called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(n, _)| *n == name).map(|(_, f)| f)
    }

    /// A sink of this format over `out`. `verbose` adds notes and details where the format has room for more or less.
    pub fn sink<'w>(self, out: Box<dyn io::Write + Send + 'w>, verbose: bool) -> Box<dyn Sink + 'w> {
        match self {
            Self::Human => Box::new(Human::new(out, verbose)),
            Self::Json => Box::new(Json::new(out)),
            Self::Ndjson => Box::new(Ndjson::new(out)),
            Self::Csv => Box::new(Csv::new(out)),
            Self::Sarif => Box::new(Sarif::new(out)),
            Self::Facts => Box::new(FactsSink::new(out)),
        }
    }
}
