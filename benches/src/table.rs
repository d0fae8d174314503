//! Aligned text.

use std::fmt::{self, Display};

/// A table: names on the left, numbers on the right.
#[derive(Clone, Debug)]
pub struct Table {
    /// How many of the first columns are text.
    text: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this head, of which the first `text` columns are text.
    pub fn new<const N: usize>(text: usize, head: [&str; N]) -> Self {
        Self { text, rows: vec![head.map(str::to_owned).into()] }
    }

    /// One more row, of as many columns.
    pub fn push<const N: usize>(&mut self, row: [String; N]) {
        self.rows.push(row.into());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| self.rows.iter().filter_map(|r| Some(r.get(column)?.chars().count())).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                line += &if column < self.text { format!("{gap}{cell:<width$}") } else { format!("{gap}{cell:>width$}") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A number with as many digits as matter, thousands apart.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "–".to_owned(),
        v if v < 10.0 => format!("{value:.2}"),
        v if v < 100.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |d| ("-", d));
            let groups: Vec<&str> = (0..digits.len())
                .filter(|i| i % 3 == digits.len() % 3 || *i == 0)
                .map(|from| {
                    let to = if from == 0 && digits.len() % 3 != 0 { digits.len() % 3 } else { from + 3 };
                    &digits[from..to.min(digits.len())]
                })
                .collect();
            format!("{sign}{}", groups.join(","))
        }
    }
}

/// The `q` quantile of `values`, by nearest rank; `None` without values.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank within a slice")]
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The median; not a number without values.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(1, ["name", "n"]);
        table.push(["a longer name".to_owned(), "7".to_owned()]);
        table.push(["ü".to_owned(), "1,234".to_owned()]);
        assert_eq!(table.to_string(), "name               n\na longer name      7\nü              1,234\n");
    }

    #[test]
    fn numbers_have_the_digits_that_matter() {
        for (value, text) in [
            (0.0, "0.00"),
            (9.876, "9.88"),
            (98.76, "98.8"),
            (100.0, "100"),
            (1_234.4, "1,234"),
            (12_345.0, "12,345"),
            (1_234_567.0, "1,234,567"),
            (-4_321.0, "-4,321"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn quantiles_are_values_that_occur() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!([0.0, 0.25, 0.5, 0.99, 1.0].map(|q| quantile(&values, q)), [1.0, 1.0, 2.0, 4.0, 4.0].map(Some));
        assert_eq!(quantile(&[], 0.5), None);
        assert!(median(&[]).is_nan());
    }
}
