//! Pages of the documentation: the commands in them, and docs/MESH.md, which the scenarios write.

use std::{fmt::Write, fs};

use testkit::root;

use super::story::{Results, Run, Step};

/// The part of a page between the line that starts with `from` and the next line that starts with `to`.
pub fn section<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
    let at = |text: &str, wanted: &str| {
        if text.starts_with(wanted) { Some(0) } else { text.find(&format!("\n{wanted}")).map(|at| at + 1) }
    };
    let start = at(page, from).unwrap_or_else(|| panic!("no line {from:?}"));
    let rest = &page[start..];
    let end = at(&rest[1..], to).map_or(rest.len(), |end| end + 1);
    &rest[..end]
}

/// The blocks that are marked `sh run`.
pub fn fenced(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "```sh run" {
            blocks.push(lines.by_ref().take_while(|line| *line != "```").collect::<Vec<_>>().join("\n"));
        }
    }
    blocks
}

/// The indented blocks.
pub fn indented(text: &str) -> Vec<String> {
    let mut blocks: Vec<Vec<&str>> = Vec::new();
    let mut inside = false;
    let mut after_text = false;
    for line in text.lines() {
        let code = line.starts_with("    ") && (inside || after_text);
        if code {
            if !inside {
                blocks.push(Vec::new());
            }
            blocks.last_mut().unwrap().push(line);
        }
        inside = code;
        after_text = line.is_empty();
    }
    let cut = |lines: Vec<&str>| {
        let depth = lines.iter().map(|line| line.len() - line.trim_start().len()).min().unwrap_or_default();
        lines.iter().map(|line| &line[depth..]).collect::<Vec<_>>().join("\n")
    };
    blocks.into_iter().map(cut).collect()
}

/// Writes docs/MESH.md from the results of the scenarios of one run, the last, if that is asked for.
#[allow(clippy::disallowed_methods, reason = "the environment of a test")]
pub fn write() {
    if std::env::var("MESH_PAGE").is_ok_and(|value| value == "write") {
        fs::write(root().join("docs/MESH.md"), page()).unwrap();
    }
}

fn introduction() -> String {
    fs::read_to_string(root().join("tests/mesh/page.md")).unwrap()
}

fn page() -> String {
    let mut results: Vec<Results> = fs::read_dir(testkit::tmp().join("mesh/results"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| serde_json::from_slice(&fs::read(entry.path()).unwrap()).unwrap())
        .collect();
    let mut page = introduction();
    if let Some(run) = results.iter().map(|result| result.run.clone()).max() {
        results.retain(|result| result.run == run);
        let Run { started, processors } = run;
        write!(page, "\nAll tables are from one run, which started at {started} on {processors} processors.\n")
            .unwrap();
    }
    results.sort_by_key(|scenario| scenario.number.parse::<u32>().unwrap());
    for scenario in &results {
        writeln!(page, "\n## {}. {}\n", scenario.number, scenario.title).unwrap();
        page += "| step | seconds | requests | failed | handshakes | failed |\n|---|--:|--:|--:|--:|--:|\n";
        for step in &scenario.steps {
            let Step { name, seconds, requests, failed, handshakes, failed_handshakes } = step;
            writeln!(page, "| {name} | {seconds} | {requests} | {failed} | {handshakes} | {failed_handshakes} |")
                .unwrap();
        }
        page += "\n| workload | serial number before | after |\n|---|---|---|\n";
        for (name, (before, after)) in &scenario.certificates {
            writeln!(page, "| {name} | `{before}` | `{after}` |").unwrap();
        }
        if !scenario.notes.is_empty() {
            page += "\n";
        }
        for note in &scenario.notes {
            writeln!(page, "- {note}").unwrap();
        }
    }
    page
}

/// With `MESH_PAGE=write`, writes the page first.
#[test]
fn docs_mesh_has_the_results_of_every_scenario() {
    write();
    let page = fs::read_to_string(root().join("docs/MESH.md")).unwrap();
    assert!(page.starts_with(&introduction()), "run MESH_PAGE=write cargo test --test mesh page::");
    for number in 1..=9 {
        assert!(page.contains(&format!("\n## {number}. ")), "scenario {number} has not run");
    }
}
