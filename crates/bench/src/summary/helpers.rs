//! The goals of `benches/helpers.sh`: what failing helper keys cost the requests for certificates.

use super::{Figures, Goal, Judged, Limit, Pick, Summary};

fn ratio(pick: &Pick<'_>, part: &str) -> f64 {
    pick.of(&format!("fails.latency.{part}")) / pick.of(&format!("works.latency.{part}"))
}

const GOALS: [Goal; 2] = [
    Goal { what: "helper keys fail / work: p50", value: |pick| ratio(pick, "p50_us"), limit: Limit::AtMost(1.1) },
    Goal { what: "helper keys fail / work: p99", value: |pick| ratio(pick, "p99_us"), limit: Limit::AtMost(1.1) },
];

pub(super) fn summary(figures: &Figures) -> Summary {
    let line = |state: &str| {
        let milliseconds = |part: &str| figures.median(&format!("{state}.latency.{part}")) / 1000.0;
        format!("helper keys {state}: p50 {:.2} ms, p99 {:.2} ms", milliseconds("p50_us"), milliseconds("p99_us"))
    };
    let tables = ["works", "fails"].map(line).into();
    Summary { tables, goals: GOALS.iter().map(|goal| Judged::of(goal, figures)).collect() }
}
