//! Checkpoints shipped by a command; issuance continues while a signer or the command fails.

use std::{
    fs,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use audit_log::{
    CheckpointHealth, CheckpointSignError, CheckpointSignature, CheckpointSigner, Log, Settings, Ship,
    checkpoint::{Checkpoint, VerifierKeys},
    verify,
};

use super::writer::{Intents, LogKey, ORIGIN, record, runtime};

/// A token that is unavailable until the test makes it available.
#[derive(Debug)]
struct Away {
    key: LogKey,
    there: AtomicBool,
}

impl CheckpointSigner for Away {
    fn sign_checkpoint<'a>(
        &'a self,
        text: &'a [u8],
    ) -> Pin<Box<dyn Future<Output = Result<CheckpointSignature, CheckpointSignError>> + Send + 'a>> {
        match self.there.load(Ordering::Relaxed) {
            true => self.key.sign_checkpoint(text),
            false => Box::pin(async { Err(CheckpointSignError::Failed("the token is away".to_owned())) }),
        }
    }
}

fn settings(directory: &Path, script: Option<&str>) -> Settings {
    let ship = script.map(|script| Ship {
        program: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        timeout: Duration::from_secs(2),
    });
    Settings { ship, checkpoint_interval: Duration::from_millis(50), ..Settings::new(directory, ORIGIN) }
}

async fn until(log: &Log, what: impl Fn(&CheckpointHealth) -> bool) {
    let mut health = log.health();
    let wait = health.wait_for(|health| what(&health.checkpoints));
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("in time").unwrap();
}

fn keys() -> VerifierKeys {
    VerifierKeys::parse(&[LogKey::new(1).verifier_key()]).unwrap()
}

#[test]
fn a_command_takes_each_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    let (directory, copies) = (scratch.path().join("log"), scratch.path().join("copies"));
    fs::create_dir(&copies).unwrap();
    let script = format!("cat > {0}/part && mv {0}/part {0}/$(sed -n 2p {0}/part)", copies.display());
    runtime().block_on(async {
        let (log, _) = Log::open(settings(&directory, Some(&script)), Some(Arc::new(LogKey::new(1)))).unwrap();
        for _ in 0..3 {
            record(&log, &Intents::new(), 4).await;
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        log.close().await;
        assert_eq!(log.health().borrow().checkpoints, CheckpointHealth::Current);
    });
    let mut checkpoints = Vec::new();
    for entry in fs::read_dir(&copies).unwrap() {
        let note = fs::read(entry.unwrap().path()).unwrap();
        Checkpoint::verify_note(&note, &keys()).unwrap();
        checkpoints.push((Checkpoint::parse_note(&note).unwrap().size.to_string(), note));
    }
    assert!(checkpoints.len() >= 2, "{}", checkpoints.len());
    assert!(checkpoints.iter().any(|(size, _)| size == "24"), "the last one does not cover every line");
    let report = verify::verify(&verify::Request { directory, keys: Some(keys()), checkpoints }).unwrap();
    assert_eq!(report.findings, []);
}

#[test]
fn failing_ship_command_is_reported() {
    for (script, words) in [("echo no such bucket >&2; exit 3", "no such bucket"), ("sleep 60", "longer than 2 s")] {
        let scratch = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            let settings = settings(&scratch.path().join("log"), Some(script));
            let (log, _) = Log::open(settings, Some(Arc::new(LogKey::new(1)))).unwrap();
            record(&log, &Intents::new(), 2).await;
            until(&log, |health| matches!(health, CheckpointHealth::Failing(why) if why.contains(words))).await;
            // Issuance continues, and the log keeps its own copy.
            record(&log, &Intents::new(), 2).await;
            assert_eq!(log.health().borrow().writable, Ok(()));
            log.close().await;
            assert_eq!(log.stats().checkpointed, 8);
        });
    }
}

#[test]
fn a_token_that_is_away_and_comes_back() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("log");
    let signer = Arc::new(Away { key: LogKey::new(1), there: AtomicBool::new(false) });
    runtime().block_on(async {
        let settings = Settings { segment_bytes: 4000, ..settings(&directory, None) };
        let (log, _) = Log::open(settings, Some(Arc::clone(&signer) as Arc<dyn CheckpointSigner>)).unwrap();
        record(&log, &Intents::new(), 12).await;
        until(&log, |health| matches!(health, CheckpointHealth::Failing(why) if why.contains("the token is away")))
            .await;
        assert_eq!((log.stats().intents, log.stats().checkpoints), (12, 0));
        signer.there.store(true, Ordering::Relaxed);
        record(&log, &Intents::new(), 1).await;
        until(&log, |health| *health == CheckpointHealth::Current).await;
        log.close().await;
        assert_eq!(log.stats().checkpointed, 26);
    });
    // The closing heads of the segments that ended meanwhile were signed later.
    let closing = fs::read_dir(&directory)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|ending| ending == "checkpoint"));
    assert!(closing.count() > 3);
    let request = verify::Request { directory, keys: Some(keys()), checkpoints: Vec::new() };
    assert_eq!(verify::verify(&request).unwrap().findings, []);
}
