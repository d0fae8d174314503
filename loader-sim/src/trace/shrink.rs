//! Makes a trace small that shows something: leaves inputs out and shortens runs as long as it still does (delta debugging, Zeller and
//! Hildebrandt 2002, "Simplifying and isolating failure-inducing input").
//!
//! Every attempt is a replay on a machine of its own. The same trace gives the same result.

use hvci_engine::status::HvStatus;

use super::{Input, Step, Trace, replay};

/// What became of a trace.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The smallest trace that was found, with what comes of its inputs.
    pub trace: Trace,
    /// How many replays that took.
    pub replays: u32,
    /// Whether leaving out any one input more would lose it; `false` if the replays were used up before that was known.
    pub minimal: bool,
}

/// Makes `trace` as small as `most` replays can while `shows` holds of what comes of it. `None` if it does not hold of the trace itself.
///
/// # Errors
/// A machine that cannot be made.
pub fn shrink(trace: &Trace, most: u32, shows: &dyn Fn(&Trace) -> bool) -> Result<Option<Shrunk>, HvStatus> {
    let played = replay(trace)?.trace;
    if !shows(&played) {
        return Ok(None);
    }
    let mut search = Search { best: played, shows, left: most, used: 1 };
    let minimal = loop {
        let before = search.best.steps.clone();
        search.join_runs()?;
        let all_tried = search.leave_out()? && search.shorten_runs()?;
        if !all_tried || search.best.steps == before {
            break all_tried;
        }
    };
    Ok(Some(Shrunk { trace: search.best, replays: search.used, minimal }))
}

struct Search<'s> {
    best: Trace,
    shows: &'s dyn Fn(&Trace) -> bool,
    left: u32,
    used: u32,
}

impl Search<'_> {
    /// Whether these inputs still show it; then they are the best so far. `None` if no replay is left.
    fn attempt(&mut self, inputs: Vec<Input>) -> Result<Option<bool>, HvStatus> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        (self.left, self.used) = (left, self.used + 1);
        let steps = inputs.into_iter().map(|input| Step { input, outputs: Vec::new(), line: 0 }).collect();
        let played = replay(&Trace { machine: self.best.machine.clone(), steps, edited: false })?.trace;
        let holds = (self.shows)(&played);
        if holds {
            self.best = played;
        }
        Ok(Some(holds))
    }

    fn inputs(&self) -> impl Iterator<Item = Input> + '_ {
        self.best.steps.iter().map(|step| step.input.clone())
    }

    /// Leaves out ever smaller parts. Whether every single input was tried at the end.
    fn leave_out(&mut self) -> Result<bool, HvStatus> {
        let mut len = self.best.steps.len().div_ceil(2).max(1);
        loop {
            let mut gone = false;
            // from the end: what comes late seldom bears what comes early
            let mut end = self.best.steps.len();
            while end > 0 {
                let start = end.saturating_sub(len);
                let without = self.inputs().enumerate().filter(|(at, _)| !(start..end).contains(at)).map(|(_, input)| input).collect();
                match self.attempt(without)? {
                    Some(holds) => gone |= holds,
                    None => return Ok(false),
                }
                end = start;
            }
            if len == 1 && !gone {
                return Ok(true);
            }
            if !gone {
                len = len.div_ceil(2);
            }
            len = len.min(self.best.steps.len()).max(1);
        }
    }

    /// Makes one run of those of a processor that follow each other, all at once.
    fn join_runs(&mut self) -> Result<(), HvStatus> {
        let mut joined: Vec<Input> = Vec::new();
        for input in self.inputs() {
            match (joined.last_mut(), &input) {
                (Some(Input::Run { vp, instructions }), Input::Run { vp: other, instructions: more }) if vp == other => {
                    *instructions = instructions.saturating_add(*more);
                }
                _ => joined.push(input),
            }
        }
        if joined.len() < self.best.steps.len() {
            self.attempt(joined)?;
        }
        Ok(())
    }

    /// Halves runs and takes one instruction off them. Whether every run was tried.
    fn shorten_runs(&mut self) -> Result<bool, HvStatus> {
        for at in 0..self.best.steps.len() {
            let Some(Input::Run { instructions, .. }) = self.best.steps.get(at).map(|step| &step.input) else { continue };
            // it shows with `high`; below `low` it does not, as far as one can tell
            let (mut low, mut high) = (0, *instructions);
            while low < high {
                let middle = low + (high - low) / 2;
                let mut inputs: Vec<Input> = self.inputs().collect();
                if let Some(Input::Run { instructions, .. }) = inputs.get_mut(at) {
                    *instructions = middle;
                }
                match self.attempt(inputs)? {
                    Some(true) => high = middle,
                    Some(false) => low = middle + 1,
                    None => return Ok(false),
                }
            }
        }
        Ok(true)
    }
}
