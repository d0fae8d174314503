//! The form of a scenario, which `docs/scenarios.md` describes.

use std::{collections::BTreeMap, ops::Range, path::PathBuf};

use hvci_engine::time::UnixTime;
use serde::Deserialize;
use toml::Spanned;

use super::{ScenarioError, Source};
use crate::trace::limits;

/// Bytes of a scenario.
const MAX_BYTES: usize = 1 << 20;
/// Drivers, programs.
const MAX_ENTRIES: usize = 32;
const MAX_STEPS: usize = 1024;
/// The longest turn.
const MAX_QUANTUM: u64 = 10_000;
/// Pages of RAM: the guest's own memory takes up to 1024 of them.
const PAGES: std::ops::RangeInclusive<u64> = 256..=1 << 18;

/// A scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The seed of its schedule.
    #[serde(default)]
    pub seed: u64,
    /// Processors.
    #[serde(default = "two")]
    pub(super) vps: Spanned<u32>,
    /// Pages of RAM.
    #[serde(default = "four_mebibytes")]
    pub(super) pages: Spanned<u64>,
    /// Whether the engine is on.
    #[serde(default = "on")]
    pub(super) engine: bool,
    /// The time that loads are for.
    #[serde(default = "time")]
    pub(super) time: UnixTime,
    /// Certificates that are trusted: PURPOSE=FILE.
    #[serde(default)]
    pub(super) roots: Vec<Spanned<String>>,
    /// Drivers and modules.
    #[serde(default, rename = "driver")]
    pub(super) drivers: Vec<DriverEntry>,
    /// Programs.
    #[serde(default, rename = "program")]
    pub(super) programs: Vec<ProgramEntry>,
    /// Steps.
    #[serde(default, rename = "step")]
    pub(super) steps: Vec<Spanned<StepEntry>>,
    /// Attacks.
    #[serde(default, rename = "attack")]
    pub(super) attacks: Vec<AttackEntry>,
    /// What it was read from, for lines in messages.
    #[serde(skip)]
    text: String,
}

/// A driver or a Linux module.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DriverEntry {
    /// What it is called here.
    pub(super) name: Spanned<String>,
    /// The file, from the scenario's folder.
    pub(super) file: Option<Spanned<PathBuf>>,
    /// One that is made.
    pub(super) synth: Option<Synthetic>,
    /// Its first page.
    pub(super) at: Option<Spanned<u64>>,
    /// Its address.
    pub(super) base: Option<Spanned<u64>>,
    /// Whether its frames have other pages too.
    #[serde(default)]
    pub(super) alias: bool,
}

/// A file that is made for a scenario. A module's first instruction returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Synthetic {
    /// Signed by the key of the guest's kernel.
    Good,
    /// Not signed.
    Unsigned,
    /// Signed by somebody whom nobody trusts.
    Stranger,
    /// Changed after it was signed.
    Forged,
    /// Signed, with a section that is writable and executable.
    WritableCode,
    /// A Windows driver by a publisher whom the kernel trusts.
    Driver,
}

/// A program of the guest's kernel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProgramEntry {
    /// What it is called.
    pub(super) name: Spanned<String>,
    /// What it does, in the words that [`program`](super::program) knows.
    pub(super) code: Vec<Spanned<String>>,
    /// How often.
    #[serde(default = "once")]
    pub(super) repeat: u32,
}

/// A step: one of `run`, `write`, `read`, `fail`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StepEntry {
    /// Programs by processor.
    pub(super) run: Option<BTreeMap<String, Spanned<String>>>,
    /// Whose turn is next.
    pub(super) order: Option<Order>,
    /// Instructions of a turn.
    pub(super) quantum: Option<Spanned<u64>>,
    /// Whether an interrupt comes before every turn.
    pub(super) interrupts: Option<bool>,
    /// A device's write.
    pub(super) write: Option<WriteEntry>,
    /// A device's read.
    pub(super) read: Option<ReadEntry>,
    /// A failing call of the host's.
    pub(super) fail: Option<FailEntry>,
    /// What may come of it; anything if there is nothing.
    #[serde(default)]
    pub(super) expect: Vec<String>,
    /// The findings of it.
    pub(super) codes: Option<Vec<String>>,
}

/// Whose turn is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Order {
    /// The next processor's, for a whole quantum.
    #[default]
    RoundRobin,
    /// Anybody's, for up to a quantum.
    Random,
}

/// A device's write.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteEntry {
    /// Where: a name, or a guest-physical address.
    pub(super) at: Spanned<String>,
    /// Bytes in hexadecimal.
    pub(super) bytes: Spanned<String>,
    /// Whether the device is assigned to the guest.
    #[serde(default)]
    pub(super) assigned: bool,
}

/// A device's read.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadEntry {
    /// Where: a name, or a guest-physical address.
    pub(super) at: Spanned<String>,
    /// How many bytes.
    pub(super) len: u32,
    /// Whether the device is assigned to the guest.
    #[serde(default)]
    pub(super) assigned: bool,
}

/// A failing call of the host's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FailEntry {
    /// How many calls come before it.
    pub(super) call: u64,
    /// With what it fails.
    pub(super) status: u16,
}

/// Attacks of the catalogue.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AttackEntry {
    /// The name of one, or `GROUP/*`.
    pub(super) name: Spanned<String>,
}

fn two() -> Spanned<u32> {
    Spanned::new(0..0, 2)
}

fn four_mebibytes() -> Spanned<u64> {
    Spanned::new(0..0, 1024)
}

const fn on() -> bool {
    true
}

const fn once() -> u32 {
    1
}

/// In which synthetic modules' keys are valid.
const fn time() -> UnixTime {
    // 2026-11-24
    UnixTime(1_795_478_400)
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// [`ScenarioError`], with the line.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        if text.len() > MAX_BYTES {
            return Err(ScenarioError::Line { line: 1, what: format!("a scenario of more than {MAX_BYTES} bytes") });
        }
        let scenario = Self { text: text.to_owned(), ..toml::from_str(text)? };
        scenario.check()?;
        Ok(scenario)
    }

    pub(super) fn source(&self) -> Source<'_> {
        Source(&self.text)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let source = self.source();
        if !(1..=limits::VPS).contains(self.vps.get_ref()) {
            return Err(source.wrong(self.vps.span(), format!("vps is 1 to {}", limits::VPS)));
        }
        if !PAGES.contains(self.pages.get_ref()) {
            return Err(source.wrong(self.pages.span(), format!("pages is {} to {}", PAGES.start(), PAGES.end())));
        }
        let drivers = self.drivers.iter().map(|driver| &driver.name).collect::<Vec<_>>();
        let programs = self.programs.iter().map(|program| &program.name).collect::<Vec<_>>();
        for (names, what) in [(&drivers, "driver"), (&programs, "program")] {
            for (at, name) in names.iter().enumerate() {
                if names.iter().take(at).any(|other| other.get_ref() == name.get_ref()) {
                    return Err(source.wrong(name.span(), format!("a second {what} is called {}", name.get_ref())));
                }
                if at >= MAX_ENTRIES {
                    return Err(source.wrong(name.span(), format!("more than {MAX_ENTRIES} {what}s")));
                }
            }
        }
        for driver in &self.drivers {
            let name = driver.name.get_ref();
            if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
                return Err(source.wrong(driver.name.span(), "a driver's name is letters, digits, - and _"));
            }
            if driver.file.is_some() == driver.synth.is_some() {
                return Err(source.wrong(driver.name.span(), format!("{name} has either file or synth")));
            }
        }
        self.steps.iter().enumerate().try_for_each(|(at, step)| self.check_step(at, step.get_ref(), step.span()))
    }

    fn check_step(&self, at: usize, step: &StepEntry, span: Range<usize>) -> Result<(), ScenarioError> {
        let wrong = |what: &str| Err(self.source().wrong(span.clone(), what));
        if at >= MAX_STEPS {
            return wrong("too many steps");
        }
        let kinds = [step.run.is_some(), step.write.is_some(), step.read.is_some(), step.fail.is_some()];
        if kinds.into_iter().filter(|is| *is).count() != 1 {
            return wrong("a step has one of run, write, read and fail");
        }
        if step.run.is_none() && (step.order.is_some() || step.quantum.is_some() || step.interrupts.is_some()) {
            return wrong("order, quantum and interrupts are for run");
        }
        if step.quantum.as_ref().is_some_and(|quantum| !(1..=MAX_QUANTUM).contains(quantum.get_ref())) {
            return wrong(&format!("quantum is 1 to {MAX_QUANTUM}"));
        }
        if step.read.as_ref().is_some_and(|read| u64::from(read.len) > limits::DATA) {
            return wrong(&format!("a read is of {} bytes at most", limits::DATA));
        }
        Ok(())
    }
}
