//! Failing disks: failed flushes by strace's fault injection, a full disk by a small tmpfs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    mount::Mount,
    writer::{self, Job},
};
use audit_log::{Settings, prove};

/// A job on an existing log, so that the writer's thread only flushes for records.
fn begun(scratch: &Path) -> Job {
    let job = Job { checkpoint: Duration::from_secs(3600), count: 40, ..Job::new(scratch) };
    writer::written(settings(&job), 5);
    job
}

fn settings(job: &Job) -> Settings {
    Settings::new(&job.directory, writer::ORIGIN)
}

/// Runs a job under strace with faults; returns its reports.
fn with_faults(job: &Job, faults: &[&str]) -> Vec<String> {
    let trace = job.acks.with_extension("trace");
    let mut words = vec!["strace", "-f", "-qq", "-o", trace.to_str().unwrap(), "-e", "trace=fdatasync,fsync,ftruncate"];
    for fault in faults {
        words.extend(["-e", fault]);
    }
    job.start(&words).ended();
    job.reported()
}

fn sealed_lines(directory: &Path) -> Vec<String> {
    let mut sealed = Vec::new();
    for file in lines_files(directory) {
        let text = fs::read_to_string(file).unwrap();
        sealed.extend(text.lines().filter(|line| line.starts_with(r#"{"type":"sealed""#)).map(str::to_owned));
    }
    sealed
}

fn lines_files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "jsonl"));
    files.sort();
    files
}

fn position(reported: &[String], what: &str) -> usize {
    reported
        .iter()
        .position(|line| line.starts_with(what))
        .unwrap_or_else(|| panic!("{what:?} is not in {reported:#?}"))
}

#[test]
fn one_failed_flush_refuses_one_group_and_the_log_recovers() {
    let scratch = tempfile::tempdir().unwrap();
    let job = begun(scratch.path());
    let reported = with_faults(&job, &["inject=fdatasync:error=EIO:when=7"]);
    let refused: Vec<_> = reported.iter().filter(|line| line.starts_with("refused")).collect();
    assert_eq!(refused.len(), 1, "{reported:#?}");
    assert!(refused[0].contains("Unavailable") && refused[0].contains("os error 5"), "{refused:?}");
    // The index of the failed record is used for the next one.
    assert_eq!(job.acknowledged().into_keys().collect::<Vec<_>>(), (5..45).collect::<Vec<_>>());
    assert_eq!(sealed_lines(&job.directory).len(), 1);
    assert_eq!(lines_files(&job.directory).len(), 2);
    assert_eq!(job.check(), 45);
    writer::written(settings(&job), 1);
    assert_eq!(job.check(), 46);
}

#[test]
fn a_disk_that_refuses_for_a_while() {
    let scratch = tempfile::tempdir().unwrap();
    let job = begun(scratch.path());
    // The flush of a record, and then three attempts to begin a new segment.
    let reported = with_faults(&job, &["inject=fdatasync:error=EIO:when=9", "inject=fsync:error=EIO:when=1..3"]);
    assert!(reported.iter().filter(|line| line.starts_with("refused")).count() > 3, "{reported:#?}");
    let ill = position(&reported, "health Input/output error");
    let well = ill + position(&reported[ill..], "health well");
    assert!(reported[ill..well].iter().all(|line| !line.starts_with("ack")), "{reported:#?}");
    assert!(reported[well..].iter().any(|line| line.starts_with("ack")), "it did not recover: {reported:#?}");
    assert_eq!(job.acknowledged().into_keys().collect::<Vec<_>>(), (5..45).collect::<Vec<_>>());
    assert_eq!(sealed_lines(&job.directory).len(), 1, "only the successful attempt is recorded");
    assert_eq!(job.check(), 45);
    writer::written(settings(&job), 1);
    assert_eq!(job.check(), 46);
}

/// The bytes of the failed write remain after the segment's end, where readers ignore them.
#[test]
fn a_disk_that_does_not_even_truncate() {
    let scratch = tempfile::tempdir().unwrap();
    let job = begun(scratch.path());
    // Once with the segment sealed, and once with the seal prevented, as by a crash.
    with_faults(&job, &["inject=fdatasync:error=EIO:when=7", "inject=ftruncate:error=EIO"]);
    let first = &lines_files(&job.directory)[0];
    let whole = fs::metadata(first).unwrap().len();
    assert_eq!(job.check(), 45);
    let seal = first.with_extension("seal");
    for sealed in [true, false] {
        if !sealed {
            fs::remove_file(&seal).unwrap();
        }
        assert_eq!(job.check(), 45, "sealed: {sealed}");
        for (_, serial) in job.acknowledged() {
            prove::by_serial(&job.directory, &serial).unwrap();
        }
    }
    writer::written(settings(&job), 1);
    assert!(fs::metadata(first).unwrap().len() < whole, "not truncated at the next start");
    assert_eq!(job.check(), 46);
}

/// The first record of a segment fails: its file is reused, since it has no line.
#[test]
fn a_segment_that_never_had_a_line() {
    let scratch = tempfile::tempdir().unwrap();
    let job = Job { checkpoint: Duration::from_secs(3600), count: 10, ..Job::new(scratch.path()) };
    let reported = with_faults(&job, &["inject=fdatasync:error=ENOSPC:when=1..2"]);
    assert_eq!(reported.iter().filter(|line| line.starts_with("refused")).count(), 2, "{reported:#?}");
    assert_eq!(job.check(), 10);
    writer::written(settings(&job), 1);
    assert_eq!(job.check(), 11);
}

#[test]
fn full_disk_refuses_records_until_there_is_room() {
    let scratch = tempfile::tempdir().unwrap();
    let small = scratch.path().join("small");
    let _mount = Mount::new(&small, "size=640k");
    let ballast = small.join("ballast");
    fs::write(&ballast, vec![1; 320 << 10]).unwrap();
    let job = Job { directory: small.join("log"), tasks: 4, segment_bytes: 64 << 10, ..Job::new(scratch.path()) };
    let running = job.start(&[]);
    let full = |reported: &[String]| {
        reported.iter().filter(|line| line.contains("refused") && line.contains("os error 28")).count()
    };
    job.wait_for("a full disk", |reported| full(reported) > 20);
    let reported = job.reported();
    assert!(reported.iter().any(|line| line.starts_with("health") && line.contains("os error 28")), "{reported:#?}");
    let acknowledged = job.acknowledged().len();
    // While the disk is full, the existing log verifies.
    job.check();
    fs::remove_file(ballast).unwrap();
    job.wait_for("recovery", |reported| {
        reported.iter().filter(|line| line.starts_with("ack")).count() > acknowledged + 50
    });
    running.kill();
    job.check();
    assert!(!sealed_lines(&job.directory).is_empty());
    assert!(job.acknowledged().len() > acknowledged + 50);
}
