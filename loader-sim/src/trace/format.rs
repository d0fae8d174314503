//! The form of a trace: one JSON object a line.
//!
//! ```text
//! {"hvci-sim-trace":1,"pages":1024,"vps":2,"engine":true,…}      the machine
//! {"write":{"gpa":65536,"bytes":"49bf…"}}                        an input
//! {"run":{"vp":0,"instructions":12}}                             an input
//! {"event":{"sequence":0,…}}                                     what came of it: text that is compared, not read
//! {"stopped":{"vp":0,"rip":…,"why":"halt",…}}
//! {"end":{"inputs":2,"sha256":"…"}}                              the number and digest of the lines that are machine and inputs
//! ```

use std::io::{self, BufRead, Read, Write};

use hvci_engine::{
    addr::{Gpa, Gpn, Gva},
    event::Event,
    status::HvStatus,
    time::UnixTime,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The version that is written and read.
const VERSION: u32 = 1;

/// What a trace may ask for at most.
pub mod limits {
    /// Bytes of a line.
    pub const LINE: u64 = 4 << 20;
    /// Lines.
    pub const LINES: usize = 1 << 21;
    /// Bytes of the whole.
    pub const BYTES: u64 = 512 << 20;
    /// Pages of RAM: 1 GiB.
    pub const PAGES: u64 = 1 << 18;
    /// Processors.
    pub const VPS: u32 = 64;
    /// Pages behind the RAM, trust anchors, pages that are verified at boot: each list.
    pub const LIST: usize = 4096;
    /// Bytes that one input reads or writes.
    pub const DATA: u64 = 1 << 20;
    /// Instructions of all runs.
    pub const INSTRUCTIONS: u64 = 1 << 28;
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be got.
    #[error("line {line}: cannot read it")]
    Io {
        /// Where.
        line: usize,
        /// Why.
        source: io::Error,
    },
    /// A line that is not of the form.
    #[error("line {line}: {source}")]
    Form {
        /// Which.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A line that is of the form and cannot be.
    #[error("line {line}: {what}")]
    Line {
        /// Which.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

/// The machine that a trace is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Machine {
    #[serde(rename = "hvci-sim-trace")]
    version: u32,
    /// Pages of RAM.
    pub pages: u64,
    /// Processors.
    pub vps: u32,
    /// Further pages behind those, each backed by the frame of another.
    pub aliases: Vec<Gpn>,
    /// Whether it is under the engine.
    pub engine: bool,
    /// The time that loads are for.
    pub time: UnixTime,
    /// Whom the engine trusts beside those that it knows by itself.
    pub trust: Vec<Anchor>,
}

/// Somebody who is trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    /// For what: a name that [`Purposes::from_name`](hvci_engine::signature::trust::Purposes::from_name) knows.
    pub purpose: String,
    /// The certificate.
    #[serde(with = "hex")]
    pub der: Vec<u8>,
}

/// Something that reaches the machine from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Input {
    /// A device, or the VMM on the guest's behalf, writes to memory. Before the boot is over it is what a boot loader puts there.
    Write {
        /// Where.
        gpa: Gpa,
        /// What.
        #[serde(with = "hex")]
        bytes: Vec<u8>,
        /// Whether the device is assigned to the guest: it goes through the IOMMU, not through the VMM.
        #[serde(default, skip_serializing_if = "is_emulated")]
        assigned: bool,
    },
    /// A device reads memory.
    Read {
        /// Where.
        gpa: Gpa,
        /// Bytes.
        len: u64,
        /// As for a write.
        #[serde(default, skip_serializing_if = "is_emulated")]
        assigned: bool,
    },
    /// The hypervisor writes the time to the page that the guest gave it for that, if it did.
    Tick {
        /// The time.
        time: u64,
    },
    /// The boot is over: what stands in these pages was verified by whoever booted, and every processor has VTL1.
    Boot {
        /// The guest's kernel.
        code: Vec<Gpn>,
    },
    /// A processor stands before a program: in kernel mode, with general registers zero.
    Start {
        /// Which.
        vp: u32,
        /// The program.
        rip: Gva,
        /// Its stack.
        rsp: Gva,
        /// Its page tables.
        cr3: Gpa,
        /// Its interrupt descriptor table, of a page.
        idt: Gva,
    },
    /// An interrupt reaches a processor, unless an exception waits to be delivered there.
    Interrupt {
        /// Which.
        vp: u32,
        /// Its vector.
        vector: u8,
    },
    /// One of the host's calls to come that may change something fails.
    FailCall {
        /// How many do not before it.
        after: u64,
        /// With what.
        status: HvStatus,
    },
    /// A processor has its turn.
    Run {
        /// Which.
        vp: u32,
        /// For how many instructions at most.
        instructions: u64,
    },
}

/// Something that came of an input.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// The engine decided something.
    Event(Event),
    /// So many events came that the oldest of this input were lost.
    Lost {
        /// How many.
        events: u64,
    },
    /// A processor's turn is over.
    Stopped {
        /// Which.
        vp: u32,
        /// Where it goes on.
        rip: Gva,
        /// R15, in which programs say how far they got.
        r15: u64,
        /// Why.
        why: Why,
    },
    /// An input that was refused, or one that read something.
    Answer {
        /// What is said to it.
        status: HvStatus,
        /// What was read.
        #[serde(with = "hex", skip_serializing_if = "Vec::is_empty")]
        bytes: Vec<u8>,
    },
    /// The tables say that an invariant does not hold.
    Broken {
        /// Which, and where.
        invariant: String,
    },
}

/// Why a turn is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It was as long as it was to be.
    Budget,
    /// The processor halted.
    Halt,
    /// There is nothing that would answer the instruction: an exception is delivered next.
    Injected(u8),
    /// The engine says that the machine cannot go on.
    Terminated,
    /// Something else, that the machine does not go on from.
    Exit(String),
}

impl Output {
    /// The line of a trace, without its end.
    pub fn line(&self) -> String {
        // there is no map with keys that are no strings, and no error of the writer
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// An input and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The input.
    pub input: Input,
    /// The lines that it gave.
    pub outputs: Vec<String>,
    /// The line of the trace that the input stands in; 0 if it was not read.
    pub line: usize,
}

/// What closes a trace.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    inputs: usize,
    sha256: String,
}

/// A trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The machine.
    pub machine: Machine,
    /// What happened, in order.
    pub steps: Vec<Step>,
    /// Whether its inputs are, byte for byte, other than its end says: somebody changed them since.
    pub edited: bool,
}

impl Machine {
    /// A machine under the engine, which trusts nobody in particular.
    pub const fn new(pages: u64, vps: u32, time: UnixTime) -> Self {
        Self { version: VERSION, pages, vps, aliases: Vec::new(), engine: true, time, trust: Vec::new() }
    }

    fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("version {} of the form; this program knows {VERSION}", self.version));
        }
        if self.pages > limits::PAGES || self.vps == 0 || self.vps > limits::VPS {
            return Err(format!("{} pages and {} processors; at most {} and 1 to {}", self.pages, self.vps, limits::PAGES, limits::VPS));
        }
        if let Some(of) = self.aliases.iter().find(|of| of.0 >= self.pages) {
            return Err(format!("an alias of {of}, which is no RAM"));
        }
        most(self.aliases.len(), "aliases")?;
        most(self.trust.len(), "anchors")
    }
}

impl Input {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Write { bytes, .. } if bytes.len() as u64 > limits::DATA => {
                Err(format!("{} bytes; at most {}", bytes.len(), limits::DATA))
            }
            Self::Read { len, .. } if *len > limits::DATA => Err(format!("{len} bytes; at most {}", limits::DATA)),
            Self::Boot { code } => most(code.len(), "pages"),
            _ => Ok(()),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_emulated(assigned: &bool) -> bool {
    !*assigned
}

fn most(len: usize, of: &str) -> Result<(), String> {
    if len > limits::LIST { Err(format!("{len} {of}; at most {}", limits::LIST)) } else { Ok(()) }
}

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// [`TraceError`], with the line.
    pub fn read(source: &mut dyn BufRead) -> Result<Self, TraceError> {
        let mut source = source.take(limits::BYTES);
        let first = next_line(&mut source, 1)?.ok_or_else(|| wrong(1, "the trace is empty"))?;
        /// So that another version is said to be one, whatever its keys are.
        #[derive(Deserialize)]
        struct Versioned {
            #[serde(rename = "hvci-sim-trace")]
            version: u32,
        }
        match serde_json::from_str(&first) {
            Ok(Versioned { version: VERSION }) => {}
            Ok(Versioned { version }) => return Err(wrong(1, format!("version {version} of the form; this program knows {VERSION}"))),
            Err(source) => return Err(TraceError::Form { line: 1, source }),
        }
        let machine: Machine = form(&first, 1)?;
        machine.check().map_err(|what| wrong(1, what))?;

        let mut steps: Vec<Step> = Vec::new();
        let mut digest = InputDigest::default();
        digest.add(&first);
        let mut instructions = 0_u64;
        let mut line = 1;
        loop {
            line += 1;
            let text = next_line(&mut source, line)?.ok_or_else(|| wrong(line, "the trace is cut short: it has no end"))?;
            if line > limits::LINES {
                return Err(wrong(line, format!("more than {} lines", limits::LINES)));
            }
            match kind_of(&text) {
                Kind::Output => match steps.last_mut() {
                    Some(step) => step.outputs.push(text),
                    None => return Err(wrong(line, "nothing came before this")),
                },
                Kind::End => {
                    let Ending { end } = form(&text, line)?;
                    if next_line(&mut source, line + 1)?.is_some() {
                        return Err(wrong(line + 1, "something stands behind the end"));
                    }
                    if end.inputs != steps.len() {
                        return Err(wrong(line, format!("{} inputs are said to be there, and {} are", end.inputs, steps.len())));
                    }
                    let edited = digest.end() != end;
                    return Ok(Self { machine, steps, edited });
                }
                Kind::Input => {
                    digest.add(&text);
                    let input: Input = form(&text, line)?;
                    input.check().map_err(|what| wrong(line, what))?;
                    if let Input::Run { instructions: more, .. } = input {
                        instructions = instructions.saturating_add(more);
                    }
                    if instructions > limits::INSTRUCTIONS {
                        return Err(wrong(line, format!("more than {} instructions", limits::INSTRUCTIONS)));
                    }
                    steps.push(Step { input, outputs: Vec::new(), line });
                }
            }
        }
    }

    /// Writes it, so that [`read`](Self::read) gives it back.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut digest = InputDigest::default();
        let line = serde_json::to_string(&self.machine)?;
        digest.add(&line);
        writeln!(out, "{line}")?;
        for step in &self.steps {
            let line = serde_json::to_string(&step.input)?;
            digest.add(&line);
            writeln!(out, "{line}")?;
            step.outputs.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        writeln!(out, "{}", serde_json::to_string(&Ending { end: digest.end() })?)
    }

    /// Every line that came of an input.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().flat_map(|step| &step.outputs).map(String::as_str)
    }

    /// The events among them, as [`Event`] is written.
    pub fn events(&self) -> impl Iterator<Item = &str> {
        self.outputs().filter_map(|line| line.strip_prefix(EVENT)?.strip_suffix('}'))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ending {
    end: End,
}

/// Of the lines that are machine and inputs, with their ends.
#[derive(Default)]
struct InputDigest {
    lines: usize,
    digest: Sha256,
}

impl InputDigest {
    fn add(&mut self, line: &str) {
        self.lines += 1;
        self.digest.update(line);
        self.digest.update(b"\n");
    }

    /// The first line is the machine.
    fn end(self) -> End {
        End { inputs: self.lines.saturating_sub(1), sha256: hex::encode(self.digest.finalize()) }
    }
}

const EVENT: &str = r#"{"event":"#;

enum Kind {
    Input,
    Output,
    End,
}

/// What a line is, by how it begins. Outputs are compared byte by byte and never read, so there is one way to write them.
fn kind_of(line: &str) -> Kind {
    let begins = |key: &str| line.strip_prefix("{\"").and_then(|rest| rest.strip_prefix(key)).is_some_and(|rest| rest.starts_with("\":"));
    if ["event", "lost", "stopped", "answer", "broken"].into_iter().any(begins) {
        Kind::Output
    } else if begins("end") {
        Kind::End
    } else {
        Kind::Input
    }
}

fn wrong(line: usize, what: impl Into<String>) -> TraceError {
    TraceError::Line { line, what: what.into() }
}

fn form<'t, T: Deserialize<'t>>(text: &'t str, line: usize) -> Result<T, TraceError> {
    serde_json::from_str(text).map_err(|source| TraceError::Form { line, source })
}

/// The next line without its end; `None` behind the last.
fn next_line(source: &mut impl BufRead, line: usize) -> Result<Option<String>, TraceError> {
    let mut bytes = Vec::new();
    let len = source.take(limits::LINE).read_until(b'\n', &mut bytes).map_err(|source| TraceError::Io { line, source })?;
    if len == 0 {
        return Ok(None);
    }
    if bytes.pop_if(|last| *last == b'\n').is_none() {
        return Err(wrong(line, "the line has no end: it is too long, or the trace is cut short"));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| wrong(line, "not UTF-8"))
}
