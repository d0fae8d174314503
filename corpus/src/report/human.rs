//! For people: a line a file, details where something is wrong, a summary at the end.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
};

use anstyle::{AnsiColor, Style};
use hvci_engine::{
    finding::{Code, Severity},
    policy::{Decision, Finding, Verdict},
};

use super::{Audited, Sink, Summary};
use crate::source::escape;

/// How many rows of the summary's lists are shown.
const TOP: usize = 12;

/// Writes text. Colours are plain escape codes; the stream strips them where they do not belong.
pub struct Human<'w> {
    out: Box<dyn Write + Send + 'w>,
    verbose: bool,
}

impl<'w> Human<'w> {
    /// Over `out`; `verbose` shows warnings and notes of accepted files too.
    pub fn new(out: Box<dyn Write + Send + 'w>, verbose: bool) -> Self {
        Self { out, verbose }
    }
}

impl fmt::Debug for Human<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Human").finish_non_exhaustive()
    }
}

impl Sink for Human<'_> {
    fn record(&mut self, audited: &Audited) -> io::Result<()> {
        render(&mut self.out, audited, self.verbose)
    }

    fn finish(&mut self, summary: &Summary) -> io::Result<()> {
        let out = &mut self.out;
        if summary.files > 0 {
            writeln!(out)?;
        }
        let decided = |d| summary.decided(d);
        writeln!(
            out,
            "{} judged: {} accepted, {} refused, {} unknown{}",
            plural(summary.files, "file"),
            decided(Decision::Accept),
            decided(Decision::Refuse),
            decided(Decision::Unknown),
            if summary.skipped > 0 {
                format!("; {} passed over (no images, or none for this profile)", summary.skipped)
            } else {
                String::new()
            }
        )?;
        let findings: BTreeMap<String, u64> = summary.findings.iter().map(|(id, n)| (titled(id), *n)).collect();
        top(out, "findings", &findings)?;
        top(out, "publishers", &summary.publishers)?;
        out.flush()
    }
}

/// Writes one file's lines.
///
/// # Errors
/// The output's.
pub fn render(out: &mut dyn Write, audited: &Audited, verbose: bool) -> io::Result<()> {
    render_verdict(out, &audited.path, &audited.verdict, verbose)
}

/// Writes what is said of one file.
///
/// # Errors
/// The output's.
pub fn render_verdict(out: &mut dyn Write, path: &str, verdict: &Verdict, verbose: bool) -> io::Result<()> {
    let (word, style) = match verdict.decision {
        Decision::Accept => ("ACCEPT ", color(AnsiColor::Green)),
        Decision::Refuse => ("REFUSE ", color(AnsiColor::Red)),
        Decision::Unknown => ("UNKNOWN", color(AnsiColor::Yellow)),
    };
    // names out of files and facts must not drive the terminal
    let shown = |text: &str| escape(text.as_bytes());
    write!(out, "{style}{word}{style:#} {}  {}", shown(path), shown(&verdict.profile))?;
    if let Some(publisher) = &verdict.publisher {
        write!(out, "  {}", shown(publisher))?;
    }
    writeln!(out, "{}", counts(verdict))?;
    let is_shown = |f: &&Finding| verbose || (verdict.decision != Decision::Accept && f.severity >= Severity::Warning);
    for finding in verdict.findings.iter().filter(is_shown) {
        render_finding(out, finding, verdict)?;
    }
    Ok(())
}

fn render_finding(out: &mut dyn Write, finding: &Finding, verdict: &Verdict) -> io::Result<()> {
    let style = match finding.severity {
        Severity::Error => color(AnsiColor::Red),
        Severity::Unknown | Severity::Warning => color(AnsiColor::Yellow),
        Severity::Note => Style::new(),
    };
    let Finding { code, severity, detail, span, subject, signature } = finding;
    write!(out, "  {style}{severity}[{code}]{style:#} {}", code.title())?;
    let source = signature.and_then(|i| verdict.signatures.get(i)).map(|s| s.source.to_string());
    let span = span.map(|s| s.to_string());
    let place: Vec<&str> =
        [source.as_deref(), subject.as_deref(), span.as_deref()].into_iter().flatten().filter(|p| !p.is_empty()).collect();
    if !place.is_empty() {
        write!(out, "  ({})", escape(place.join("; ").as_bytes()))?;
    }
    writeln!(out)?;
    if !detail.is_empty() {
        writeln!(out, "      {}", escape(detail.as_bytes()))?;
    }
    if *severity >= Severity::Unknown {
        writeln!(out, "      help: {}", code.advice())?;
    }
    Ok(())
}

fn counts(verdict: &Verdict) -> String {
    let count = |f: fn(Severity) -> bool| u64::try_from(verdict.findings.iter().filter(|x| f(x.severity)).count()).unwrap_or(u64::MAX);
    let errors = count(|s| s >= Severity::Unknown);
    let warnings = count(|s| s == Severity::Warning);
    let parts: Vec<String> =
        [(errors, "error"), (warnings, "warning")].into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| plural(n, what)).collect();
    if parts.is_empty() { String::new() } else { format!("  [{}]", parts.join(", ")) }
}

fn titled(id: &str) -> String {
    Code::find(id).map_or_else(|| id.to_owned(), |c| format!("{id} {}", c.title()))
}

fn top(out: &mut dyn Write, what: &str, counts: &BTreeMap<String, u64>) -> io::Result<()> {
    if counts.is_empty() {
        return Ok(());
    }
    let mut rows: Vec<(&String, &u64)> = counts.iter().collect();
    rows.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    writeln!(out, "\n{what} (files)")?;
    for (name, count) in rows.iter().take(TOP) {
        writeln!(out, "{count:>8}  {}", escape(name.as_bytes()))?;
    }
    if rows.len() > TOP {
        writeln!(out, "          and {} more; `-o json` has them all", rows.len() - TOP)?;
    }
    Ok(())
}

fn plural(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn color(color: AnsiColor) -> Style {
    Style::new().fg_color(Some(color.into())).bold()
}
