//! Goals: ratios of what was measured in one run, against what they must be.

use serde::Serialize;

use crate::table::{Table, median, number};

/// One goal and what came out.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// Row of the goals: 1 to 19; a dash for one without.
    pub row: &'static str,
    /// What against what.
    pub what: String,
    /// What it must be.
    pub must: Must,
    /// What it is, by round; empty if the peer is missing.
    pub values: Vec<f64>,
}

/// What a number must be.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum Must {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// Exactly nought.
    Nought,
    /// Nothing: for the record.
    Shown,
}

impl Goal {
    /// A goal that has been measured in each round, or not at all.
    pub fn new(row: &'static str, what: impl Into<String>, must: Must, values: Vec<f64>) -> Self {
        Self { row, what: what.into(), must, values }
    }

    /// Whether the median is what it must be; `None` if it was not measured, or need be nothing.
    pub fn met(&self) -> Option<bool> {
        let value = median(&self.values);
        match self.must {
            _ if value.is_nan() => None,
            Must::AtLeast(least) => Some(value >= least),
            Must::AtMost(most) => Some(value <= most),
            Must::Nought => Some(value == 0.0),
            Must::Shown => None,
        }
    }
}

/// `goals` as a table.
pub fn table(goals: &[Goal]) -> Table {
    let mut table = Table::new(2, ["row", "goal", "measured", "range", "must", ""]);
    for goal in goals {
        let limit = match goal.must {
            Must::AtLeast(least) => format!("≥ {least}"),
            Must::AtMost(most) => format!("≤ {most}"),
            Must::Nought => "0".to_owned(),
            Must::Shown => String::new(),
        };
        let verdict = match (goal.met(), goal.values.is_empty()) {
            (_, true) => "peer missing",
            (Some(true), _) => "met",
            (Some(false), _) => "NOT MET",
            (None, _) => "",
        };
        let range = match goal.values.as_slice() {
            [] | [_] => String::new(),
            values => format!(
                "{}–{}",
                number(values.iter().copied().fold(f64::INFINITY, f64::min)),
                number(values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
            ),
        };
        table.push([goal.row.to_owned(), goal.what.clone(), number(median(&goal.values)), range, limit, verdict.to_owned()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_by_its_median_and_not_judged_without_values() {
        let met = |must, values: &[f64]| Goal::new("9", "", must, values.to_vec()).met();
        assert_eq!(met(Must::AtLeast(2.0), &[1.0, 2.0, 9.0]), Some(true));
        assert_eq!(met(Must::AtLeast(2.0), &[1.0, 1.9, 9.0]), Some(false));
        assert_eq!(met(Must::AtMost(2.0), &[1.0, 2.1, 9.0]), Some(false));
        assert_eq!(met(Must::Nought, &[0.0]), Some(true));
        assert_eq!(met(Must::Nought, &[1.0]), Some(false));
        assert_eq!(met(Must::AtLeast(2.0), &[]), None);
        let shown = table(&[Goal::new("9", "us / them", Must::AtLeast(2.0), vec![])]).to_string();
        assert!(shown.contains("peer missing"), "{shown}");
    }
}
