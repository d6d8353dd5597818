//! The goals of `benches/endpoint.sh`: the cost of a certificate compared with that of its parts.

use super::{Figures, Goal, Judged, Limit, Pick, REFERENCE_SIGNATURE, Summary, TRANSPORT, shown};

const CPU: &str = "daemon_cpu_us_per_certificate";
const RATE: &str = "certificates_per_second";
const P50: &str = "latency.p50_us";

fn of(pick: &Pick<'_>, run: &str, field: &str) -> f64 {
    pick.of(&format!("{run}.{field}"))
}

/// The CPU time of a certificate's parts for a type of CA key, with an RPC of one kind.
fn parts(pick: &Pick<'_>, rpc: &str, key: &str) -> f64 {
    let soft = ["part.csr", "part.jwt", "part.telemetry", "part.log", "part.host-check"];
    let of_key = pick.of(&format!("part.tbs-{key}")) + pick.of(&format!("part.verify-{key}"));
    of(pick, rpc, CPU) + pick.sum(&soft) + of_key + TRANSPORT + signature(pick, key)
}

fn signature(pick: &Pick<'_>, key: &str) -> f64 {
    of(pick, &format!("token.{key}"), "cpu_us_per_signature")
}

/// How much slower this machine is than the goals'.
fn slower(pick: &Pick<'_>) -> f64 {
    signature(pick, "p256") / REFERENCE_SIGNATURE
}

fn token_rate(pick: &Pick<'_>, token: &str) -> f64 {
    of(pick, token, "signatures_per_second")
}

/// Latency with one request in flight, in milliseconds of the goals' machine.
fn one_scaled(pick: &Pick<'_>, run: &str) -> f64 {
    of(pick, run, P50) / 1000.0 / slower(pick)
}

const GOALS: &[Goal] = &[
    Goal {
        what: "P-256: CPU time per certificate / sum of its parts",
        value: |pick| of(pick, "p256", CPU) / parts(pick, "rpc", "p256"),
        limit: Limit::AtMost(1.15),
    },
    Goal {
        what: "RSA-2048: the same",
        value: |pick| of(pick, "rsa", CPU) / parts(pick, "rpc", "rsa"),
        limit: Limit::AtMost(1.05),
    },
    Goal {
        what: "RSA-2048: rate / the token's own, one core",
        value: |pick| of(pick, "rsa", RATE) / token_rate(pick, "token.rsa"),
        limit: Limit::AtLeast(0.85),
    },
    Goal {
        what: "RSA-2048: what the sum of its parts would give",
        value: |pick| signature(pick, "rsa") / parts(pick, "rpc", "rsa"),
        limit: Limit::AtLeast(0.85),
    },
    Goal {
        what: "RSA-2048: rate / the token's own, two cores that the load shares",
        value: |pick| of(pick, "rsa-two", RATE) / token_rate(pick, "token.rsa-two"),
        limit: Limit::AtLeast(0.85),
    },
    Goal {
        what: "P-256, cached JWT: certificates per CPU-second",
        value: |pick| 1e6 / of(pick, "p256", CPU),
        limit: Limit::AtLeast(4000.0),
    },
    Goal {
        what: "P-256, cached JWT: the same, scaled",
        value: |pick| 1e6 / of(pick, "p256", CPU) * slower(pick),
        limit: Limit::AtLeast(4000.0),
    },
    Goal {
        what: "one in flight, P-256: p50 less one fdatasync, scaled, ms",
        value: |pick| one_scaled(pick, "p256-one") - pick.of("part.flush") / 1000.0 / slower(pick),
        limit: Limit::AtMost(0.34),
    },
    Goal {
        what: "one in flight, P-256, no flush: p50, scaled, ms",
        value: |pick| one_scaled(pick, "p256-one-memory"),
        limit: Limit::AtMost(0.34),
    },
    Goal {
        what: "new mTLS connection each: certificates per CPU-second / what the parts allow",
        value: |pick| parts(pick, "rpc-new", "p256") / of(pick, "p256-new", CPU),
        limit: Limit::AtLeast(0.8),
    },
    Goal {
        what: "durable log / log in memory: rate, server on one core",
        value: |pick| of(pick, "p256", RATE) / of(pick, "p256-memory", RATE),
        limit: Limit::AtLeast(0.95),
    },
    Goal {
        what: "durable log / log in memory: rate, two cores",
        value: |pick| of(pick, "p256-two", RATE) / of(pick, "p256-two-memory", RATE),
        limit: Limit::AtLeast(0.85),
    },
    Goal {
        what: "memory when idle, daemon and token host, MiB",
        value: |pick| pick.of("memory.idle") / 1024.0,
        limit: Limit::AtMost(40.0),
    },
    Goal {
        what: "memory per further connection, KiB",
        value: |pick| (pick.of("memory.connected") - pick.of("memory.few")) / 1000.0,
        limit: Limit::AtMost(64.0),
    },
];

pub(super) fn summary(figures: &Figures) -> Summary {
    let (median, best) = (Pick { figures, best: false }, Pick { figures, best: true });
    let mut tables = vec!["CPU time in us, and other results: median, best".to_owned()];
    let wanted = |name: &&str| {
        let run_fields = [CPU, RATE, P50, "cpu_us_per_signature", "signatures_per_second"];
        name.starts_with("part.") || run_fields.iter().any(|field| name.ends_with(field))
    };
    let names = figures.names().filter(wanted);
    tables.extend(names.map(|name| format!("  {name:<48} {:>9} {:>9}", shown(median.of(name)), shown(best.of(name)))));
    tables.push(format!("  transport (constant) {TRANSPORT}"));
    for (key, rpc) in [("p256", "rpc"), ("rsa", "rpc"), ("p256", "rpc-new")] {
        tables.push(format!("  sum of the parts, {key} with {rpc}: {}", shown(parts(&median, rpc, key))));
    }
    tables.push(format!(
        "this machine's P-256 signature takes {:.2} times that of the goals' machine, by which results are scaled",
        slower(&median)
    ));
    Summary { tables, goals: GOALS.iter().map(|goal| Judged::of(goal, figures)).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results of which each is the number of its line.
    fn figures(lines: &[&str]) -> Figures {
        Figures::parse(&lines.join("\n")).unwrap()
    }

    #[test]
    fn certificate_is_compared_with_the_sum_of_its_parts() {
        let mut lines: Vec<String> = ["csr", "jwt", "telemetry", "log", "host-check", "tbs-p256", "verify-p256"]
            .map(|part| format!("part.{part} 10"))
            .into();
        lines.push(format!("rpc.{CPU} 26.8"));
        lines.push("token.p256 [{\"cpu_us_per_signature\": 100}]".to_owned());
        lines.push(format!("p256 {{\"{CPU}\": 210}}"));
        let figures = Figures::parse(&lines.join("\n")).unwrap();
        let goal = Judged::of(&GOALS[0], &figures);
        assert!((goal.value.unwrap() - 210.0 / 200.0).abs() < 1e-9 && goal.met, "{goal:?}");
    }

    #[test]
    fn latency_is_scaled_by_the_speed_of_the_token() {
        let figures = figures(&[
            "token.p256 [{\"cpu_us_per_signature\": 118}]",
            "p256-one {\"latency\": {\"p50_us\": 1000}}",
            "part.flush 400",
        ]);
        let goal = GOALS.iter().find(|goal| goal.what.contains("fdatasync")).unwrap();
        let judged = Judged::of(goal, &figures);
        assert!((judged.value.unwrap() - 0.3).abs() < 1e-9 && judged.met, "{judged:?}");
    }
}
