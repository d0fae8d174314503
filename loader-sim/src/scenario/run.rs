//! Runs a scenario by playing inputs, one after the other.

use std::{collections::BTreeSet, ops::Range, path::Path};

use hvci_engine::{addr::Gpa, status::HvStatus};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::{
    Scenario, ScenarioError,
    format::{AttackEntry, Order, StepEntry},
    layout::{INTERRUPT, Layout},
    machine,
    program::ending,
};
use crate::{
    attack::{ATTACKS, Attack},
    trace::{Input, Output, Player, Step, Trace, Why, limits},
};

/// Instructions of a program in one step.
const LONGEST: u64 = 100_000;

/// What a scenario did.
#[derive(Clone, Debug)]
pub struct Played {
    /// Every input with what came of it; attacks run in guests of their own and are not in it.
    pub trace: Trace,
    /// A row for each step, then for each attack.
    pub rows: Vec<Row>,
    /// Invariants that were seen not to hold.
    pub broken: Vec<String>,
}

/// What came of a step or an attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The line of the scenario.
    pub line: usize,
    /// What was done.
    pub what: String,
    /// What came of it.
    pub result: String,
    /// The findings among the events.
    pub codes: Vec<String>,
    /// Whether it may be so.
    pub as_expected: bool,
    /// What was expected; empty if anything was.
    pub expected: String,
}

/// Runs a scenario, with files that it names in `folder`, under the schedule of `seed`.
///
/// # Errors
/// [`ScenarioError`]: names that mean nothing, files that cannot be read, what does not fit in memory. What the engine refuses is no error.
pub fn play(scenario: &Scenario, folder: &Path, seed: u64) -> Result<Played, ScenarioError> {
    let layout = Layout::new(scenario, folder)?;
    let mut session = Session {
        player: Player::new(&layout.machine).map_err(machine)?,
        steps: Vec::new(),
        random: ChaCha8Rng::seed_from_u64(seed),
        codes: BTreeSet::new(),
        broken: Vec::new(),
        instructions: 0,
    };
    for input in &layout.boot {
        if let Some(status) = session.apply(input.clone())?.into_iter().find_map(|output| match output {
            Output::Answer { status, .. } => Some(status),
            _ => None,
        }) {
            return Err(machine(format!("the guest does not boot: {status}")));
        }
    }
    let mut rows = Vec::new();
    for step in &scenario.steps {
        session.codes.clear();
        let line = scenario.source().line(step.span());
        let step = step.get_ref();
        let (what, result) = session.step(scenario, &layout, step)?;
        let codes: Vec<String> = session.codes.iter().cloned().collect();
        let as_expected =
            (step.expect.is_empty() || step.expect.contains(&result)) && step.codes.as_ref().is_none_or(|expected| *expected == codes);
        let mut expected = step.expect.join(" | ");
        if let Some(codes) = &step.codes {
            expected = [expected, codes.join(" ")].join("; ");
        }
        rows.push(Row { line, what, result, codes, as_expected, expected });
    }
    for entry in &scenario.attacks {
        for attack in chosen(scenario, entry)? {
            let result = attack.attempt().unwrap_or_else(|error| format!("it cannot be tried: {error:#}"));
            rows.push(Row {
                line: scenario.source().line(entry.name.span()),
                what: attack.name.to_owned(),
                as_expected: result == attack.expected,
                result,
                codes: Vec::new(),
                expected: attack.expected.to_owned(),
            });
        }
    }
    let Session { steps, broken, .. } = session;
    Ok(Played { trace: Trace { machine: layout.machine, steps, edited: false }, rows, broken })
}

fn chosen(scenario: &Scenario, entry: &AttackEntry) -> Result<Vec<&'static Attack>, ScenarioError> {
    let name = entry.name.get_ref();
    let wrong = |what: String| scenario.source().wrong(entry.name.span(), what);
    if !scenario.engine {
        return Err(wrong("attacks of the catalogue are tried under the engine".to_owned()));
    }
    let found: Vec<&Attack> = ATTACKS.iter().filter(|attack| attack.is_called(name)).collect();
    if found.is_empty() { Err(wrong(format!("no attack is called {name}"))) } else { Ok(found) }
}

struct Session {
    player: Player,
    steps: Vec<Step>,
    random: ChaCha8Rng,
    /// Findings of the step.
    codes: BTreeSet<String>,
    broken: Vec<String>,
    instructions: u64,
}

/// A processor that runs a program.
struct Turn {
    vp: u32,
    left: u64,
    ended: Option<String>,
}

impl Session {
    /// Plays an input, unless the trace would be longer than one can be.
    fn apply(&mut self, input: Input) -> Result<Vec<Output>, ScenarioError> {
        if let Input::Run { instructions, .. } = input {
            self.instructions += instructions;
        }
        // an input has few outputs, but for a boot
        if self.instructions > limits::INSTRUCTIONS || self.steps.len() > limits::LINES / 8 {
            return Err(machine(format!("more than {} turns or {} instructions", limits::LINES / 8, limits::INSTRUCTIONS)));
        }
        let outputs = self.player.apply(&input);
        for output in &outputs {
            match output {
                Output::Event(event) => self.codes.extend(event.code.map(|code| code.to_string())),
                Output::Broken { invariant } => self.broken.push(invariant.clone()),
                _ => {}
            }
        }
        self.steps.push(Step { input, outputs: outputs.iter().map(Output::line).collect(), line: 0 });
        Ok(outputs)
    }

    /// What a step does and what comes of it.
    fn step(&mut self, scenario: &Scenario, layout: &Layout, step: &StepEntry) -> Result<(String, String), ScenarioError> {
        let wrong = |at: Range<usize>| move |what: String| scenario.source().wrong(at.clone(), what);
        if let Some(write) = &step.write {
            let gpa = layout.place(write.at.get_ref()).map_err(wrong(write.at.span()))?.gpa;
            let bytes = hex::decode(write.bytes.get_ref()).map_err(|error| wrong(write.bytes.span())(error.to_string()))?;
            let what = format!("{} writes {} bytes at {}", device(write.assigned), bytes.len(), write.at.get_ref());
            let outputs = self.apply(Input::Write { gpa: Gpa(gpa), bytes, assigned: write.assigned })?;
            return Ok((what, answer(&outputs).unwrap_or_else(|| "written".to_owned())));
        }
        if let Some(read) = &step.read {
            let gpa = layout.place(read.at.get_ref()).map_err(wrong(read.at.span()))?.gpa;
            let what = format!("{} reads {} bytes at {}", device(read.assigned), read.len, read.at.get_ref());
            let outputs = self.apply(Input::Read { gpa: Gpa(gpa), len: read.len.into(), assigned: read.assigned })?;
            return Ok((what, answer(&outputs).unwrap_or_default()));
        }
        if let Some(fail) = &step.fail {
            self.apply(Input::FailCall { after: fail.call, status: HvStatus(fail.status) })?;
            return Ok((format!("call {} of the host's from now will fail", fail.call), "set".to_owned()));
        }
        let mut turns: Vec<(Turn, &str)> = Vec::new();
        for (vp, program) in step.run.iter().flatten() {
            let wrong = |what: String| scenario.source().wrong(program.span(), what);
            let name = program.get_ref();
            let number = vp.parse().map_err(|_| wrong(format!("{vp} is no processor")))?;
            if turns.iter().any(|(turn, _)| turn.vp == number) {
                return Err(wrong(format!("processor {number} has a program already")));
            }
            let start = layout.start(number, name).ok_or_else(|| wrong(format!("no processor {vp}, or no program {name}")))?;
            self.apply(start)?;
            turns.push((Turn { vp: number, left: LONGEST, ended: None }, name));
        }
        turns.sort_by_key(|(turn, _)| turn.vp);
        let (mut turns, programs): (Vec<Turn>, Vec<&str>) = turns.into_iter().unzip();
        self.run(step, &mut turns)?;
        let what: Vec<String> = turns.iter().zip(programs).map(|(turn, program)| format!("{}: {program}", turn.vp)).collect();
        let ended = turns.iter().map(|turn| format!("{}: {}", turn.vp, turn.ended.as_deref().unwrap_or("still running")));
        Ok((what.join(", "), ended.collect::<Vec<_>>().join(", ")))
    }

    /// Gives turns until every program has ended.
    fn run(&mut self, step: &StepEntry, turns: &mut [Turn]) -> Result<(), ScenarioError> {
        let quantum = step.quantum.as_ref().map_or(1, |quantum| *quantum.get_ref());
        let mut next = 0;
        loop {
            let live: Vec<usize> = (0..turns.len()).filter(|at| turns[*at].ended.is_none() && turns[*at].left > 0).collect();
            if live.is_empty() {
                return Ok(());
            }
            let (at, instructions) = match step.order.unwrap_or_default() {
                Order::RoundRobin => (live.iter().copied().find(|at| *at >= next).unwrap_or(live[0]), quantum),
                Order::Random => (live[self.below(live.len() as u64)], 1 + self.below(quantum) as u64),
            };
            next = at + 1;
            let turn = &mut turns[at];
            let mut instructions = instructions.min(turn.left);
            turn.left -= instructions;
            if step.interrupts == Some(true) {
                self.apply(Input::Interrupt { vp: turn.vp, vector: INTERRUPT })?;
                // it is delivered, and its handler returns
                instructions += 2;
            }
            turn.ended = self.apply(Input::Run { vp: turn.vp, instructions })?.into_iter().find_map(|output| match output {
                Output::Stopped { why: Why::Budget | Why::Injected(_), .. } => None,
                Output::Stopped { why: Why::Halt, r15, .. } => Some(ending(r15)),
                Output::Stopped { why: Why::Terminated, .. } => Some("terminated".to_owned()),
                Output::Stopped { why: Why::Exit(exit), .. } => Some(exit),
                Output::Answer { status, .. } => Some(status.to_string()),
                _ => None,
            });
        }
    }

    /// A number from 0 to `count` - 1.
    fn below(&mut self, count: u64) -> usize {
        usize::try_from(self.random.next_u64() % count.max(1)).unwrap_or(0)
    }
}

const fn device(assigned: bool) -> &'static str {
    if assigned { "an assigned device" } else { "a device" }
}

/// What a device is told: bytes, or why not.
fn answer(outputs: &[Output]) -> Option<String> {
    outputs.iter().find_map(|output| match output {
        Output::Answer { status, bytes } if *status == HvStatus::SUCCESS => Some(hex::encode(bytes)),
        Output::Answer { status, .. } => Some(format!("refused {:#x}", status.0)),
        _ => None,
    })
}
