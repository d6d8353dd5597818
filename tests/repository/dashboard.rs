//! deploy/grafana: all metrics it uses exist, and Prometheus accepts its rules.
use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

fn read(path: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Every name in a text that looks like one of our metrics.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("istio_hsm_ca_") || word.starts_with("citadel_server_"))
        .map(str::to_owned)
        .collect()
}

/// The quoted metric names in the source, i.e. those with a description.
fn described() -> BTreeSet<String> {
    let source = read("src/telemetry/metrics.rs");
    let help = source.split_once("fn describe()").unwrap().1.to_owned() + &read("crates/token/src/call_metrics.rs");
    help.split('"').filter(|word| names(word).contains(*word)).map(str::to_owned).collect()
}

/// The metric of a series: a histogram's parts belong to the histogram.
fn metric(name: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name)
}

#[test]
fn every_metric_exists() {
    let described = described();
    assert!(described.len() > 30, "{described:?}");
    for file in ["alerts.yaml", "alerts_test.yaml", "dashboard.json"] {
        let asked = names(&read(&format!("deploy/grafana/{file}")));
        assert!(asked.len() > 5, "{file}: {asked:?}");
        for name in asked {
            let base = if described.contains(&name) { &name } else { metric(&name) };
            let histogram = base.ends_with("_seconds") && base != name;
            assert!(described.contains(base) && (histogram || base == name), "{file}: unknown metric {name}");
        }
    }
}

/// Values of the label `outcome` are labels of rejections.
#[test]
fn every_outcome_exists() {
    let sources: Vec<String> =
        ["src/issue/label.rs", "src/issue/outcome.rs", "src/grpc/service/request_log.rs"].map(read).into();
    for file in ["alerts.yaml", "dashboard.json"] {
        let text = read(&format!("deploy/grafana/{file}")).replace('\\', "");
        let mut found = 0;
        for rest in text.split("outcome").skip(1) {
            let Some((_, values)) = rest
                .split_at_checked(4)
                .filter(|(operator, _)| operator.starts_with(['=', '!']) || operator.starts_with('~'))
            else {
                continue;
            };
            let values = format!("{}{values}", rest.get(..4).unwrap());
            let values = values.split('"').nth(1).unwrap();
            for value in values.split('|') {
                found += 1;
                let quoted = format!("\"{value}\"");
                assert!(sources.iter().any(|source| source.contains(&quoted)), "{file}: no outcome is called {value}");
            }
        }
        assert!(found > 1, "{file}");
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut places = BTreeSet::new();
    for panel in panels {
        let place = &panel["gridPos"];
        assert!(places.insert((place["y"].as_u64().unwrap(), place["x"].as_u64().unwrap())), "{panel}");
        assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24, "{panel}");
        if panel["type"] != "row" {
            assert!(!panel["description"].as_str().unwrap().is_empty(), "{panel}");
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel}");
        }
    }
    assert!(panels.len() > 15);
}

/// Checked with Prometheus' own tool.
#[test]
#[ignore = "needs promtool: make test-foreign"]
fn promtool_takes_the_rules() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana");
    for words in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]] {
        let output = Command::new("promtool").args(words).current_dir(&directory).output();
        let output = output.expect("promtool is missing: install the package prometheus");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    }
}
