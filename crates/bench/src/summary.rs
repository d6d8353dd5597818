//! `bench summary`: medians, ratios and goals of the runs that a script of `benches/` has collected.

mod delayed;
mod endpoint;
mod figures;
mod helpers;
mod storm;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use figures::{Figures, Pick};
use process::output::Output;
use serde::Serialize;

/// The duration of a P-256 signature of the goals' machine, in microseconds.
const REFERENCE_SIGNATURE: f64 = 59.0;
/// CPU time of the frames between daemon and token host, in microseconds: measured with a prototype.
const TRANSPORT: f64 = 3.2;

/// Arguments of `bench summary`.
#[derive(Args, Debug)]
pub struct SummaryArguments {
    /// The script that has collected them
    #[arg(value_enum)]
    script: Script,
    /// One result per line: its name, and a number or a report of this program as JSON
    #[arg(value_name = "FILE")]
    results: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Script {
    /// benches/delayed.sh
    Delayed,
    /// benches/endpoint.sh
    Endpoint,
    /// benches/helpers.sh
    Helpers,
    /// benches/storm.sh
    Storm,
}

/// A goal of docs/PERFORMANCE.md.
#[derive(Clone, Copy, Debug)]
struct Goal {
    what: &'static str,
    value: fn(&Pick<'_>) -> f64,
    limit: Limit,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

impl Limit {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

/// A goal, and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Judged {
    what: String,
    /// By the medians; `None` if a result is missing.
    value: Option<f64>,
    /// By the best results.
    best: Option<f64>,
    limit: Limit,
    met: bool,
}

impl Judged {
    fn new(what: String, limit: Limit, value: f64, best: f64) -> Self {
        let known = |value: f64| value.is_finite().then_some(value);
        Self { what, value: known(value), best: known(best), limit, met: limit.is_met(value) }
    }

    fn of(goal: &Goal, figures: &Figures) -> Self {
        let value = |best| (goal.value)(&Pick { figures, best });
        Self::new(goal.what.to_owned(), goal.limit, value(false), value(true))
    }

    fn text(&self) -> String {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), shown);
        let limit = match self.limit {
            Limit::AtLeast(least) => format!(">= {least}"),
            Limit::AtMost(most) => format!("<= {most}"),
        };
        let verdict = if self.met { "met" } else { "MISSED" };
        format!("{:<76} {:>8} [{:>6}]  goal {limit:<8} {verdict}\n", self.what, number(self.value), number(self.best))
    }
}

/// A number with about three significant digits.
fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A summary, as printed in JSON.
#[derive(Clone, Debug, Serialize)]
struct Summary {
    /// The results behind the goals, as lines of text.
    tables: Vec<String>,
    goals: Vec<Judged>,
}

/// Prints the summary. Missed goals are no error.
///
/// # Errors
/// If the results cannot be read.
pub(super) fn run(arguments: &SummaryArguments, output: Output) -> Result<()> {
    let path = &arguments.results;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let figures = Figures::parse(&text).with_context(|| format!("{} holds other lines", path.display()))?;
    let summary = match arguments.script {
        Script::Delayed => delayed::summary(&figures),
        Script::Endpoint => endpoint::summary(&figures),
        Script::Helpers => helpers::summary(&figures),
        Script::Storm => storm::summary(&figures),
    };
    output.print(&summary, |Summary { tables, goals }| {
        let goals: String = goals.iter().map(Judged::text).collect();
        format!(
            "{}\nby medians [by the best results]:\n{goals}",
            tables.iter().map(|line| format!("{line}\n")).collect::<String>()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goal_is_judged_by_medians_and_missed_without_results() {
        let goal = Goal { what: "x", value: |pick| pick.of("a.cpu") / pick.of("b"), limit: Limit::AtMost(1.0) };
        let figures = Figures::parse("a.cpu 1\na.cpu 4\na.cpu 2\nb 2\n").unwrap();
        let judged = Judged::of(&goal, &figures);
        assert_eq!((judged.value, judged.best, judged.met), (Some(1.0), Some(0.5), true));
        let judged = Judged::of(&goal, &Figures::parse("a.cpu 1\n").unwrap());
        assert_eq!((judged.value, judged.met), (None, false));
        assert!(judged.text().contains("MISSED"), "{}", judged.text());
    }
}
