//! SARIF 2.1.0 (OASIS), for code-scanning services. They show some thousand results, so the worst are kept and a notice says how many were left out.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
};

use hvci_engine::finding::{Code, Severity};
use serde_json::{Value, json};

use super::{Audited, Sink, Summary, record::authentihash};
use crate::source::escape;

/// How many results are written: what GitHub's code scanning shows of one run.
pub const MAX_RESULTS: usize = 5_000;

/// Collects results and writes one log at the end.
pub struct Sarif<'w> {
    out: Box<dyn Write + Send + 'w>,
    /// worst severity first; within one, in the order of the scan
    kept: BTreeMap<std::cmp::Reverse<Severity>, Vec<Value>>,
    left_out: u64,
}

impl<'w> Sarif<'w> {
    /// Over `out`.
    pub fn new(out: Box<dyn Write + Send + 'w>) -> Self {
        Self { out, kept: BTreeMap::new(), left_out: 0 }
    }

    fn keep(&mut self, severity: Severity, result: Value) {
        self.kept.entry(std::cmp::Reverse(severity)).or_default().push(result);
        if self.kept.values().map(Vec::len).sum::<usize>() > MAX_RESULTS {
            if let Some(mut least) = self.kept.last_entry() {
                least.get_mut().pop();
                if least.get().is_empty() {
                    least.remove();
                }
            }
            self.left_out += 1;
        }
    }
}

impl fmt::Debug for Sarif<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sarif").finish_non_exhaustive()
    }
}

impl Sink for Sarif<'_> {
    fn record(&mut self, audited: &Audited) -> io::Result<()> {
        let identity = authentihash(&audited.facts).map_or_else(|| audited.path.clone(), ToString::to_string);
        let uri = uri(&audited.path);
        for finding in audited.verdict.findings.iter().filter(|f| f.severity > Severity::Note) {
            let parts = [Some(finding.code.title()), finding.subject.as_deref(), Some(finding.detail.as_str())];
            let text = parts.into_iter().flatten().filter(|p| !p.is_empty()).map(message).collect::<Vec<_>>().join("; ");
            let mut physical = json!({ "artifactLocation": { "uri": uri } });
            if let Some(span) = finding.span {
                physical["region"] = json!({ "byteOffset": span.offset, "byteLength": span.len });
            }
            let result = json!({
                "ruleId": finding.code.id(),
                "ruleIndex": Code::ALL.iter().position(|c| *c == finding.code),
                "level": level(finding.severity),
                "message": { "text": text },
                "locations": [{ "physicalLocation": physical }],
                "partialFingerprints": { "authentihashAndCode/v1": format!("{identity}/{}", finding.code.id()) },
            });
            self.keep(finding.severity, result);
        }
        Ok(())
    }

    fn finish(&mut self, summary: &Summary) -> io::Result<()> {
        let rules: Vec<Value> = Code::ALL
            .iter()
            .map(|c| {
                json!({
                    "id": c.id(),
                    "name": c.alias(),
                    "shortDescription": { "text": c.title() },
                    "help": { "text": c.advice() },
                    "defaultConfiguration": { "level": level(c.default_severity()) },
                })
            })
            .collect();
        let mut invocation = json!({ "executionSuccessful": true });
        if self.left_out > 0 {
            let text = format!(
                "{} findings were left out: a log holds the {MAX_RESULTS} worst of {} files. Use -o ndjson for all.",
                self.left_out, summary.files
            );
            invocation["toolExecutionNotifications"] = json!([{
                "level": "warning",
                "message": { "text": text },
                "descriptor": { "id": "truncated" },
            }]);
        }
        let results: Vec<Value> = std::mem::take(&mut self.kept).into_values().flatten().collect();
        let log = json!({
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{
                "tool": { "driver": {
                    "name": "hvci-audit",
                    "version": env!("CARGO_PKG_VERSION"),
                    "rules": rules,
                    "notifications": [{ "id": "truncated", "shortDescription": { "text": "findings were left out" } }],
                }},
                "invocations": [invocation],
                "results": results,
            }],
        });
        serde_json::to_writer(&mut self.out, &log)?;
        self.out.write_all(b"\n")?;
        self.out.flush()
    }
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Unknown | Severity::Error => "error",
    }
}

/// Text of a message (§3.11.5, §3.11.6): what a file chose must become no link and no placeholder.
fn message(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in escape(text.as_bytes()).chars() {
        match c {
            '[' | ']' | '\\' => out.extend(['\\', c]),
            '{' | '}' => out.extend([c, c]),
            c => out.push(c),
        }
    }
    out
}

/// A path as a relative URI reference (RFC 3986 §2.1); slashes stay.
fn uri(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.replace('\\', "/").bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' | b'!' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
