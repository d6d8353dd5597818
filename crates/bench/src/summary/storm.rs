//! The goals of `benches/storm.sh`: many agents that connect at once.

use super::{Figures, Goal, Judged, Limit, Pick, Summary, TRANSPORT, shown};

/// The CPU time of an agent's parts, with a connection and a JWT of its own.
fn parts(pick: &Pick<'_>) -> f64 {
    let names = [
        "rpc.daemon_cpu_us_per_certificate",
        "part.csr",
        "part.jwt-new",
        "part.tbs-p256",
        "part.verify-p256",
        "part.host-check",
        "part.telemetry",
        "part.log",
        "token.p256.cpu_us_per_signature",
    ];
    pick.sum(&names) + TRANSPORT
}

fn total(pick: &Pick<'_>, name: &str) -> f64 {
    pick.figures.all(name).iter().sum()
}

const GOALS: &[Goal] = &[
    Goal {
        what: "agents without a certificate",
        value: |pick| total(pick, "whole.agents") - total(pick, "whole.served"),
        limit: Limit::AtMost(0.0),
    },
    Goal {
        what: "CPU time that new connections and the other parts allow / CPU time",
        value: |pick| parts(pick) / pick.of("whole.daemon_cpu_us_per_certificate"),
        limit: Limit::AtLeast(0.8),
    },
    Goal {
        what: "the daemon's peak memory, KiB, without 40 MiB / agents",
        value: |pick| {
            let peak = pick.figures.all("memory.peak").iter().copied().fold(f64::NAN, f64::max);
            (peak - 40.0 * 1024.0) / pick.of("whole.agents")
        },
        limit: Limit::AtMost(64.0),
    },
];

pub(super) fn summary(figures: &Figures) -> Summary {
    let pick = Pick { figures, best: false };
    let tables = vec![
        format!(
            "{:.0} agents, served in {} s, {} a second; connections alone: {} a second",
            pick.of("whole.agents"),
            shown(pick.of("whole.seconds")),
            shown(pick.of("whole.certificates_per_second")),
            shown(pick.of("rpc.certificates_per_second")),
        ),
        format!(
            "CPU time in us per agent: {}; of the parts {}, with {} for connection, TLS and RPC, and {} for a new JWT",
            shown(pick.of("whole.daemon_cpu_us_per_certificate")),
            shown(parts(&pick)),
            shown(pick.of("rpc.daemon_cpu_us_per_certificate")),
            shown(pick.of("part.jwt-new")),
        ),
    ];
    Summary { tables, goals: GOALS.iter().map(|goal| Judged::of(goal, figures)).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_of_all_rounds_are_counted() {
        let round = |served| format!("whole {{\"agents\": 100, \"served\": {served}}}\nmemory.peak 41060\n");
        let goals = |served| summary(&Figures::parse(&(round(100) + &round(served))).unwrap()).goals;
        assert!(goals(100)[0].met && goals(100)[2].met);
        assert_eq!((goals(97)[0].value, goals(97)[0].met), (Some(3.0), false));
    }
}
