//! The goals of `benches/delayed.sh`: tokens that take long to sign.
//!
//! Results are named `DELAY/SESSIONS/RUN`, with the delay in milliseconds and the runs `alone` (the token), `closed` and
//! `open` (loops).

use super::{Figures, Judged, Limit, Summary, shown};
use crate::report::median;

/// One delay and number of sessions.
struct Row<'a> {
    figures: &'a Figures,
    name: &'a str,
    delay: &'a str,
    sessions: &'a str,
}

impl Row<'_> {
    fn median(&self, field: &str) -> f64 {
        self.figures.median(&format!("{}/{field}", self.name))
    }

    fn milliseconds(&self, field: &str) -> f64 {
        self.median(field) / 1000.0
    }

    /// The rate of the closed loop / the token's own.
    fn share(&self) -> f64 {
        self.median("closed.certificates_per_second") / self.median("alone.signatures_per_second")
    }

    /// p99 / that of the ideal queue, of each open loop.
    fn ratios(&self) -> Vec<f64> {
        let all = |field: &str| self.figures.all(&format!("{}/open.{field}.p99_us", self.name));
        all("latency").iter().zip(all("ideal_latency")).map(|(p99, ideal)| p99 / ideal).collect()
    }

    fn ratio(&self) -> f64 {
        median(self.ratios()).unwrap_or(f64::NAN)
    }

    fn text(&self) -> String {
        let alone = self.sessions.parse::<f64>().unwrap_or(f64::NAN) / self.median("alone.signatures_per_second");
        let best = self.ratios().into_iter().reduce(f64::min).unwrap_or(f64::NAN);
        let cells = [
            alone * 1e3,
            self.median("closed.certificates_per_second"),
            self.share(),
            self.milliseconds("open.ideal_signature_us"),
            self.milliseconds("open.latency.p50_us"),
            self.milliseconds("open.latency.p99_us"),
            self.milliseconds("open.ideal_latency.p99_us"),
            self.ratio(),
            best,
        ];
        let cells: Vec<String> = cells.map(|cell| format!("{:>8}", shown(cell))).into();
        format!("{:>8} {:>8} {}", self.delay, self.sessions, cells.join(" "))
    }
}

fn rows(figures: &Figures) -> Vec<Row<'_>> {
    let names = figures.names().filter_map(|name| name.strip_suffix("/closed.certificates_per_second"));
    let mut rows: Vec<_> = names
        .filter_map(|name| name.split_once('/').map(|(delay, sessions)| Row { figures, name, delay, sessions }))
        .collect();
    let number = |text: &str| text.parse::<f64>().unwrap_or(f64::NAN);
    rows.sort_by(|one, other| {
        let key = |row: &Row<'_>| (number(row.delay), number(row.sessions));
        let (one, other) = (key(one), key(other));
        one.0.total_cmp(&other.0).then(one.1.total_cmp(&other.1))
    });
    rows
}

pub(super) fn summary(figures: &Figures) -> Summary {
    let rows = rows(figures);
    let heads = [
        "delay ms", "sessions", "alone ms", "rate/s", "of token", "token ms", "p50 ms", "p99 ms", "M/D/s", "ratio",
        "best",
    ];
    let mut tables = vec![heads.map(|head| format!("{head:>8}")).join(" ")];
    tables.extend(rows.iter().map(Row::text));
    let mut goals = Vec::new();
    for of_delay in rows.chunk_by(|one, other| one.delay == other.delay) {
        let Some(Row { delay, .. }) = of_delay.first() else { continue };
        // The worst line of each delay; one without results is the worst.
        let worst = |values: Vec<f64>, worse: fn(f64, f64) -> f64| {
            let worse = |one: f64, other: f64| if other.is_nan() { other } else { worse(one, other) };
            values
                .into_iter()
                .reduce(|one, other| if one.is_nan() { one } else { worse(one, other) })
                .unwrap_or(f64::NAN)
        };
        let shares = worst(of_delay.iter().map(Row::share).collect(), f64::min);
        let ratios = worst(of_delay.iter().map(Row::ratio).collect(), f64::max);
        let mut add =
            |what: &str, limit, value| goals.push(Judged::new(format!("{delay} ms: {what}"), limit, value, value));
        add("rate / the token's own, worst number of sessions", Limit::AtLeast(0.9), shares);
        add("p99 at 80 % load / that of M/D/s, worst number of sessions", Limit::AtMost(1.2), ratios);
        if let Some(eight) = of_delay.iter().find(|row| row.sessions == "8") {
            let delays = eight.milliseconds("open.latency.p99_us") / delay.parse::<f64>().unwrap_or(f64::NAN);
            add("p99 at 80 % load with 8 sessions / delay", Limit::AtMost(3.0), delays);
        }
    }
    Summary { tables, goals }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_number_of_sessions_decides() {
        let mut text = String::new();
        for (sessions, rate, p99) in [(1, 190, 11_000), (8, 1440, 13_000)] {
            text += &format!(
                "11.3/{sessions}/alone [{{\"signatures_per_second\": {}}}]\n\
                 11.3/{sessions}/closed {{\"certificates_per_second\": {rate}}}\n\
                 11.3/{sessions}/open {{\"latency\": {{\"p99_us\": {p99}}}, \"ideal_latency\": {{\"p99_us\": 10000}}}}\n",
                sessions * 200,
            );
        }
        let summary = summary(&Figures::parse(&text).unwrap());
        let goals: Vec<_> = summary.goals.iter().map(|goal| (shown(goal.value.unwrap()), goal.met)).collect();
        assert_eq!(goals, [("0.90".to_owned(), true), ("1.30".to_owned(), false), ("1.15".to_owned(), true)]);
        assert_eq!(summary.tables.len(), 3);
    }
}
