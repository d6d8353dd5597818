//! SIGKILL under load: every acknowledged record is in the log.

use std::time::Duration;

use super::writer::Job;

#[test]
fn thirty_kills_under_load() {
    let scratch = tempfile::tempdir().unwrap();
    let job = Job { tasks: 8, segment_bytes: 64 << 10, ..Job::new(scratch.path()) };
    let mut intents = 0;
    for round in 0..30_u64 {
        let before = job.reported().len();
        let running = job.start(&[]);
        job.wait_for("load", |reported| reported.len() >= before + 30);
        // At varying distances from a flush.
        std::thread::sleep(Duration::from_micros(round * 1_700 % 23_000));
        running.kill();
        let now = job.check();
        assert!(now > intents, "round {round}");
        intents = now;
    }
    assert!(job.acknowledged().len() >= 900);
    // The log is recovered after the last crash, too.
    super::writer::written(audit_log::Settings::new(&job.directory, super::writer::ORIGIN), 1);
    assert_eq!(job.check(), intents + 1);
}
