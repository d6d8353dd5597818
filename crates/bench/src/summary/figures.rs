//! Collected results by name.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::report::median;

/// All values of each result. A report in JSON gives one result for each of its numbers, named `NAME.FIELD`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Figures(BTreeMap<String, Vec<f64>>);

impl Figures {
    /// Reads lines of a name and a number or a JSON value.
    ///
    /// # Errors
    /// If a line is neither.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut figures = Self::default();
        for (number, line) in text.lines().enumerate() {
            let parsed = line.split_once(' ').and_then(|(name, value)| Some((name, serde_json::from_str(value).ok()?)));
            let (name, value) = parsed.with_context(|| format!("line {} is {line:?}", number + 1))?;
            figures.add(name, &value);
        }
        Ok(figures)
    }

    fn add(&mut self, name: &str, value: &Value) {
        match value {
            Value::Number(number) => self.0.entry(name.to_owned()).or_default().extend(number.as_f64()),
            Value::Object(fields) => {
                fields.iter().for_each(|(field, value)| self.add(&format!("{name}.{field}"), value))
            }
            // The rows of a report, of which the scripts ask for one.
            Value::Array(rows) => rows.iter().for_each(|row| self.add(name, row)),
            Value::Bool(_) | Value::Null | Value::String(_) => {}
        }
    }

    /// The names of all results.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// All values of a result, in the order of their measurement.
    pub(super) fn all(&self, name: &str) -> &[f64] {
        self.0.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// The median; NaN if there is none.
    pub(super) fn median(&self, name: &str) -> f64 {
        median(self.all(name).to_vec()).unwrap_or(f64::NAN)
    }

    /// The best value: the largest rate, the smallest of everything else. NaN if there is none.
    pub(super) fn best(&self, name: &str) -> f64 {
        let better = if name.ends_with("_per_second") { f64::max } else { f64::min };
        self.all(name).iter().copied().reduce(better).unwrap_or(f64::NAN)
    }
}

/// The medians, or the best values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pick<'a> {
    pub(super) figures: &'a Figures,
    pub(super) best: bool,
}

impl Pick<'_> {
    /// One result; NaN if it is missing.
    pub(super) fn of(&self, name: &str) -> f64 {
        if self.best { self.figures.best(name) } else { self.figures.median(name) }
    }

    /// The sum of several results.
    pub(super) fn sum(&self, names: &[&str]) -> f64 {
        names.iter().map(|name| self.of(name)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_and_numbers_are_read_by_name() {
        let text = r#"part.csr 1.5
whole {"certificates_per_second": 10, "latency": {"p50_us": 3}, "errors": {}, "new_connections": false}
whole {"certificates_per_second": 30.5, "latency": null}
token [{"algorithm": "P-256", "cpu_us_per_signature": 59}]
"#;
        let figures = Figures::parse(text).unwrap();
        assert_eq!(figures.all("whole.certificates_per_second"), [10.0, 30.5]);
        assert_eq!(
            (figures.median("whole.latency.p50_us"), figures.best("whole.certificates_per_second")),
            (3.0, 30.5)
        );
        assert_eq!((figures.median("token.cpu_us_per_signature"), figures.best("part.csr")), (59.0, 1.5));
        assert!(figures.median("whole.new_connections").is_nan());
        for bad in ["name", "name text", "name {"] {
            assert!(Figures::parse(bad).is_err(), "{bad}");
        }
    }
}
