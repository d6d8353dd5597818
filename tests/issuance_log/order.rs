//! The order of system calls: nothing is acknowledged before the flush of its line has returned.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use super::writer::Job;

/// Begin or end of a system call in strace's output.
#[derive(Debug)]
struct Call<'a> {
    thread: &'a str,
    name: &'a str,
    arguments: &'a str,
    /// `None` while it is in progress.
    result: Option<i64>,
}

/// Parses a line of `strace -f -y`; a complete call is a begin and an end.
fn calls(line: &str) -> Vec<Call<'_>> {
    let Some((thread, rest)) = line.split_once(' ') else { return Vec::new() };
    let rest = rest.trim_start();
    let result = |rest: &str| rest.rsplit_once(" = ").and_then(|(_, r)| r.split(' ').next()?.parse().ok());
    if let Some(resumed) = rest.strip_prefix("<... ") {
        let name = resumed.split(' ').next().unwrap();
        return vec![Call { thread, name, arguments: "", result: Some(result(rest).unwrap_or(-1)) }];
    }
    let Some((name, arguments)) = rest.split_once('(') else { return Vec::new() };
    let begin = Call { thread, name, arguments, result: None };
    if rest.ends_with("<unfinished ...>") {
        return vec![begin];
    }
    vec![begin, Call { thread, name, arguments: "", result: Some(result(rest).unwrap_or(-1)) }]
}

/// The serial numbers in a traced write of lines.
fn serials(arguments: &str) -> impl Iterator<Item = String> {
    arguments.split(r#"serial\":\""#).skip(1).map(|rest| rest.chars().take(32).collect())
}

/// The number of acknowledgements, or the first premature one.
fn judge(trace: &str) -> Result<usize, String> {
    let mut acknowledged = 0;
    let (mut written, mut durable) = (BTreeSet::new(), BTreeSet::new());
    let mut writing: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut flushing: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for call in trace.lines().flat_map(calls) {
        match (call.name, call.result) {
            ("write", None) if call.arguments.contains(".jsonl>") => {
                writing.insert(call.thread, serials(call.arguments).collect());
            }
            ("write", Some(result)) => {
                let lines = writing.remove(call.thread).unwrap_or_default();
                written.extend(lines.into_iter().filter(|_| result > 0));
            }
            // A flush covers only what was written before it began.
            ("fdatasync", None) if call.arguments.contains(".jsonl>") => {
                flushing.insert(call.thread, written.clone());
            }
            ("fdatasync", Some(result)) => {
                let covered = flushing.remove(call.thread).unwrap_or_default();
                durable.extend(covered.into_iter().filter(|_| result == 0));
            }
            ("write", None) => {
                if let Some((_, ack)) = call.arguments.split_once("\"ack ") {
                    let serial = ack.split(' ').nth(1).unwrap().trim_end_matches(|c: char| !c.is_ascii_hexdigit());
                    let serial: String = serial.chars().take(32).collect();
                    if !durable.contains(&serial) {
                        return Err(format!("{serial} was acknowledged before its line was durable"));
                    }
                    acknowledged += 1;
                }
            }
            _ => {}
        }
    }
    Ok(acknowledged)
}

#[test]
fn no_record_is_acknowledged_before_its_flush() {
    let scratch = tempfile::tempdir().unwrap();
    let job = Job { count: 120, tasks: 12, segment_bytes: 32 << 10, ..Job::new(scratch.path()) };
    let trace = scratch.path().join("trace");
    let file = trace.to_str().unwrap();
    job.start(&["strace", "-f", "-y", "-qq", "-s", "1000000", "-o", file, "-e", "trace=write,fdatasync"]).ended();
    let trace = fs::read_to_string(trace).unwrap();
    assert_eq!(judge(&trace), Ok(120));
    // The check detects a log without flushes, with failed ones, and with late ones.
    let without: Vec<_> = trace.lines().filter(|line| !line.contains("fdatasync")).collect();
    assert!(judge(&without.join("\n")).is_err());
    let failed: Vec<_> = trace
        .lines()
        .map(|line| if line.contains("fdatasync") { line.replace(" = 0", " = -1 EIO") } else { line.to_owned() })
        .collect();
    assert!(judge(&failed.join("\n")).is_err());
    let (late, rest): (Vec<_>, Vec<_>) = trace.lines().partition(|line| line.contains("fdatasync"));
    assert!(judge(&[rest, late].concat().join("\n")).is_err());
}
