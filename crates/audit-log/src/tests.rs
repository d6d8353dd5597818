//! Tests of the whole log: durability, recovery, and findings of `verify`.

use std::{fs, path::Path, sync::Arc, time::Duration};

use proptest::prelude::*;

use super::{
    checkpoint::{VerifierKeys, tests::SoftKey},
    queue::Queue,
    record::{CallerField, Line, RevocationAction, RevocationLine, tests::intent},
    *,
};

const ORIGIN: &str = "ca.example/replica-0";

/// A runtime for tests that are not async.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn settings(directory: &Path, segment_bytes: u64) -> Settings {
    Settings { segment_bytes, ..Settings::new(directory, ORIGIN) }
}

fn open(settings: Settings) -> Result<(Log, Opened), OpenError> {
    Log::open(settings, Some(Arc::new(SoftKey::new(1))))
}

async fn write(log: &Log, count: u64) {
    for _ in 0..count {
        let recorded = log.record(real()).await.unwrap();
        log.outcome(recorded.index(), Outcome::Issued { token: "a".to_owned() });
    }
}

/// Writes a log with some intents and a given segment size and closes it, so that its last checkpoint covers every
/// line.
fn written(directory: &Path, intents: u64, segment_bytes: u64) -> Opened {
    runtime().block_on(async {
        let (log, opened) = open(settings(directory, segment_bytes)).unwrap();
        write(&log, intents).await;
        log.close().await;
        opened
    })
}

fn report(directory: &Path, checkpoints: Vec<(String, Vec<u8>)>) -> verify::Report {
    let keys = Some(VerifierKeys::parse(&[SoftKey::new(1).verifier_key(ORIGIN)]).unwrap());
    verify::verify(&verify::Request { directory: directory.to_owned(), keys, checkpoints }).unwrap()
}

fn findings(directory: &Path) -> Vec<verify::Finding> {
    report(directory, Vec::new()).findings
}

/// An intent with a unique certificate.
fn real() -> Intent {
    let public_key = || {
        let pair = rcgen::KeyPair::generate().unwrap();
        pki::PublicKey::from_spki_der(&rcgen::PublicKeyData::subject_public_key_info(&pair)).unwrap()
    };
    let time = std::time::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let day = Duration::from_secs(86_400);
    let subject = b"\x30\x0c\x31\x0a\x30\x08\x06\x03\x55\x04\x0a\x0c\x01\x61".to_vec();
    let issuer = pki::Issuer::self_signed(subject, public_key(), time - day, time + 900 * day);
    let template = pki::Template {
        profile: pki::Profile::Leaf,
        public_key: public_key(),
        names: vec![pki::identity::Name::Spiffe("spiffe://td/ns/n/sa/a".parse().unwrap())],
        not_before: time,
        not_after: time + day,
    };
    let tbs = pki::Tbs::build(template, Arc::new(issuer), pki::tbs::Serial::random()).unwrap();
    let caller = CallerField { method: "operator".to_owned(), identity: "uid 7".to_owned(), peer: None, node: None };
    Intent { request_id: "r".to_owned(), time, caller, tbs: Arc::new(tbs) }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn segments_of(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "jsonl"));
    files.sort();
    files
}

#[test]
fn reopened_log_continues_after_its_last_record() {
    let scratch = tempfile::tempdir().unwrap();
    assert_eq!(written(scratch.path(), 20, 3000).intents, 0);
    assert!(segments_of(scratch.path()).len() > 3);
    let opened = written(scratch.path(), 5, 3000);
    assert_eq!((opened.intents, opened.lines), (20, 40));
    assert_eq!(opened.intents_per_ca_key.values().sum::<u64>(), 20);
    assert_eq!(opened.checkpoint.unwrap().size, 40);
    assert!(opened.newest_record.is_some() && opened.set_aside.is_none());
    assert_eq!(findings(scratch.path()), []);
    let report = report(scratch.path(), Vec::new());
    assert_eq!((report.lines, report.intents, report.outcomes, report.without_outcome), (50, 25, 25, 0));
    assert_eq!(report.checkpointed, 50);
}

/// Lines that a wrong clock has written, and later lines of the same segment and of others.
#[test]
fn a_confirmed_clock_is_compared_with_the_lines_since_then_only() {
    let write_at = |directory: &Path, time, count: u64| {
        runtime().block_on(async {
            let (log, opened) = open(settings(directory, 3000)).unwrap();
            for _ in 0..count {
                log.record(Intent { time, ..real() }).await.unwrap();
            }
            log.close().await;
            opened
        })
    };
    // The log's times have milliseconds.
    let rounded = |time| timestamp::parse(&timestamp::format(time)).unwrap();
    let now = rounded(process::clock::now());
    let wrong = now + Duration::from_secs(300 * 86_400);
    for count in 1..5 {
        let scratch = tempfile::tempdir().unwrap();
        let trusted = || fs::read_to_string(scratch.path().join("trusted-time")).ok();
        write_at(scratch.path(), wrong, count);
        let opened = write_at(scratch.path(), wrong, 0);
        assert_eq!(opened.clock.newest_record, Some(wrong));
        assert_eq!(trusted(), Some(timestamp::format(wrong) + "\n"));

        let settings = settings(scratch.path(), 3000);
        let confirmation = Confirmation::record(&settings, now, 7, "NTP was wrong").unwrap();
        assert_eq!((confirmation.lines, confirmation.newest_record), (count, Some(timestamp::format(wrong))));
        assert_eq!(trusted(), None);
        let later = now + Duration::from_secs(3600);
        let opened = write_at(scratch.path(), later, 1);
        assert_eq!((opened.newest_record, opened.clock.newest_record), (Some(wrong), Some(now)), "{count}");
        for more in [4, 0] {
            let opened = write_at(scratch.path(), later, more);
            assert_eq!(opened.clock.newest_record, Some(later), "{count}, {more}");
            assert_eq!(opened.clock.trusted, Some(now), "{count}, {more}");
        }

        store_trusted_time(scratch.path(), later).unwrap();
        assert_eq!(Log::examine(&settings).unwrap().unwrap().clock.trusted, Some(later));
        fs::write(scratch.path().join("trusted-time"), "soon").unwrap();
        assert_eq!(Log::examine(&settings).unwrap().unwrap().clock.trusted, None);
        // A second wrong period needs a second confirmation.
        write_at(scratch.path(), wrong, 1);
        assert_eq!(write_at(scratch.path(), wrong, 0).clock.newest_record, Some(wrong));
    }
}

#[test]
fn only_one_process_writes() {
    let scratch = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (log, _) = open(settings(scratch.path(), 1 << 20)).unwrap();
        assert!(matches!(open(settings(scratch.path(), 1 << 20)), Err(OpenError::Locked(_))));
        log.close().await;
        assert!(matches!(log.append(Line::Intent(Box::new(intent("")))).await, Err(LogError::Closed)));
        let (again, _) = open(settings(scratch.path(), 1 << 20)).unwrap();
        again.close().await;
        let (log, _) = open(settings(scratch.path(), 1 << 20)).unwrap();
        write(&log, 1).await;
        log.close().await;
        let other = Settings { origin: "another".to_owned(), ..settings(scratch.path(), 1 << 20) };
        assert!(matches!(open(other), Err(OpenError::Origin { .. })));
    });
}

#[test]
fn a_group_shares_a_flush() {
    let scratch = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (log, _) = open(settings(scratch.path(), 1 << 20)).unwrap();
        let tasks: Vec<_> = (0..500)
            .map(|_| {
                let log = log.clone();
                tokio::spawn(async move { log.append(Line::Intent(Box::new(intent("AA==")))).await.unwrap() })
            })
            .collect();
        let mut indices = Vec::new();
        for task in tasks {
            indices.push(task.await.unwrap());
        }
        indices.sort_unstable();
        assert_eq!(indices, (0..500).collect::<Vec<_>>(), "the indices have gaps or repeat");
        let stats = log.stats();
        assert!(stats.flushes < 50, "{stats:?}");
        log.close().await;
    });
}

#[tokio::test]
async fn intents_that_are_ready_soon_join_the_group() {
    let scratch = tempfile::tempdir().unwrap();
    let (log, _) = open(settings(scratch.path(), 1 << 20)).unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let log = log.clone();
            tokio::spawn(async move {
                for _ in 0..n / 4 {
                    tokio::task::yield_now().await;
                    // Long enough for a flush if there were one.
                    std::thread::sleep(Duration::from_millis(20));
                }
                log.append(Line::Intent(Box::new(intent("AA==")))).await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(log.stats().flushes, 1);
    log.append(Line::Intent(Box::new(intent("AA==")))).await.unwrap();
    assert_eq!(log.stats().flushes, 2, "a single intent waits for others");
    log.close().await;
}

#[test]
fn intent_after_a_lone_one_does_not_wait_for_others() {
    let queue = Queue::new(10);
    let push = || {
        let (waiter, done) = tokio::sync::oneshot::channel();
        queue.intent(Line::Intent(Box::new(intent("AA=="))), waiter).unwrap();
        done
    };
    let long = Duration::from_secs(60);
    let first = push();
    assert_eq!(queue.take(Duration::ZERO).entries.len(), 1);
    let began = std::time::Instant::now();
    let others = [push(), push()];
    assert_eq!(queue.take(long).entries.len(), 2);
    assert!(began.elapsed() < long / 2, "nobody has called the writer");
    // Now they come together.
    let last = push();
    let patience = Duration::from_millis(50);
    let began = std::time::Instant::now();
    assert_eq!(queue.take(patience).entries.len(), 1);
    assert!(began.elapsed() >= patience, "the group was not waited for");
    drop((first, others, last));
}

/// Otherwise the writer's tick would write each of them, a quarter of a second late.
#[tokio::test]
async fn the_writer_is_called_for_each_group() {
    let scratch = tempfile::tempdir().unwrap();
    let (log, _) = open(settings(scratch.path(), 1 << 20)).unwrap();
    let began = std::time::Instant::now();
    for _ in 0..16 {
        log.append(Line::Intent(Box::new(intent("AA==")))).await.unwrap();
    }
    assert_eq!(log.stats().flushes, 16);
    assert!(began.elapsed() < Duration::from_secs(2), "they waited for the writer's tick: {:?}", began.elapsed());
    log.close().await;
}

/// A crash may truncate a log anywhere: beyond the checkpoint, whole lines are kept and the rest set aside; below, it
/// fails.
#[test]
fn a_log_cut_at_any_byte() {
    let scratch = tempfile::tempdir().unwrap();
    written(scratch.path(), 2, 1 << 20);
    let signed = fs::metadata(&segments_of(scratch.path())[0]).unwrap().len();
    let checkpoint = fs::read(scratch.path().join("checkpoint")).unwrap();
    written(scratch.path(), 1, 1 << 20);
    // Restore the older checkpoint, which two more lines follow, as after a crash before the next checkpoint.
    fs::write(scratch.path().join("checkpoint"), &checkpoint).unwrap();
    fs::write(scratch.path().join("00000000000000000000.checkpoint"), &checkpoint).unwrap();
    let whole = fs::read(&segments_of(scratch.path())[0]).unwrap();
    let runtime = runtime();
    for length in 0..=whole.len() {
        let cut = tempfile::tempdir().unwrap();
        copy(scratch.path(), cut.path());
        let segment = &segments_of(cut.path())[0];
        fs::write(segment, &whole[..length]).unwrap();
        let result = runtime.block_on(async {
            let (log, opened) = open(settings(cut.path(), 1 << 20))?;
            log.close().await;
            Ok::<_, OpenError>(opened)
        });
        if u64::try_from(length).unwrap() < signed {
            assert!(matches!(result, Err(OpenError::Shorter { .. })), "{length}: {result:?}");
            assert!(!findings(cut.path()).is_empty(), "{length}");
            assert_eq!(fs::read(segment).unwrap(), whole[..length], "a rejected log was modified");
        } else {
            let opened = result.unwrap();
            let complete = whole[..length].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            assert_eq!(fs::read(segment).unwrap(), whole[..complete]);
            match opened.set_aside {
                Some(aside) => assert_eq!(fs::read(aside.path).unwrap(), whole[complete..length]),
                None => assert_eq!(complete, length),
            }
        }
    }
}

/// A modification of a segment's lines.
#[derive(Clone, Copy, Debug)]
enum Tampering {
    Change,
    Insert,
    Remove,
    Swap,
    Truncate,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn tampering_is_found_and_named(
        what in prop::sample::select(vec![Tampering::Change, Tampering::Insert, Tampering::Remove, Tampering::Swap, Tampering::Truncate]),
        at in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
    ) {
        thread_local! {
            static SOUND: tempfile::TempDir = {
                let scratch = tempfile::tempdir().unwrap();
                written(scratch.path(), 12, 3000);
                scratch
            };
        }
        let scratch = tempfile::tempdir().unwrap();
        SOUND.with(|sound| copy(sound.path(), scratch.path()));
        let mut files = segments_of(scratch.path());
        files.retain(|file| fs::metadata(file).unwrap().len() > 0);
        let file = &files[place.index(files.len())];
        let first: u64 = file.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let text = fs::read_to_string(file).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let line = at.index(lines.len());
        let mut bad = line;
        match what {
            Tampering::Change => lines[line] = lines[line].replace("\"time\":\"2", "\"time\":\"3"),
            Tampering::Insert => lines.insert(line, lines[line].replace("\"time\":\"2", "\"time\":\"3")),
            Tampering::Remove => drop(lines.remove(line)),
            Tampering::Swap => {
                let other = (line + 1) % lines.len();
                lines.swap(line, other);
                bad = line.min(other);
            }
            Tampering::Truncate => lines.truncate(line),
        }
        fs::write(file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        let findings = findings(scratch.path());
        if text != fs::read_to_string(file).unwrap() {
            prop_assert!(!findings.is_empty(), "{:?}", what);
            prop_assert_eq!(findings[0].line, Some(first + u64::try_from(bad).unwrap()), "{:?} {:?}", what, findings);
        }
    }
}

#[test]
fn segments_and_checkpoints_that_were_tampered_with() {
    let sound = tempfile::tempdir().unwrap();
    written(sound.path(), 2, 3000);
    let old = fs::read(sound.path().join("checkpoint")).unwrap();
    written(sound.path(), 10, 3000);
    let elsewhere = fs::read(sound.path().join("checkpoint")).unwrap();
    let with = |tamper: &dyn Fn(&Path, &[std::path::PathBuf])| {
        let scratch = tempfile::tempdir().unwrap();
        copy(sound.path(), scratch.path());
        tamper(scratch.path(), &segments_of(scratch.path()));
        report(scratch.path(), vec![("elsewhere".to_owned(), elsewhere.clone()), ("old".to_owned(), old.clone())])
            .findings
            .into_iter()
            .map(|finding| finding.to_string())
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_eq!(with(&|_, _| {}), "");
    assert!(with(&|_, files| fs::remove_file(&files[1]).unwrap()).contains("no line says that it was retired"));
    assert!(with(&|d, _| fs::write(d.join("checkpoint"), &old).unwrap()).contains("rolled back"));
    assert!(with(&|d, _| fs::remove_file(d.join("checkpoint")).unwrap()).contains("it is missing"));
    assert!(
        with(&|_, files| {
            fs::copy(&files[1], &files[0]).unwrap();
        })
        .contains("bears the number")
    );
    // The last segments and checkpoints are removed completely: only the copy kept elsewhere shows it.
    let cut = with(&|d, files| {
        for file in &files[1..] {
            let stem = file.file_stem().unwrap().to_str().unwrap().to_owned();
            for ending in ["jsonl", "hashes", "seal", "checkpoint"] {
                let _ = fs::remove_file(d.join(format!("{stem}.{ending}")));
            }
        }
        fs::copy(d.join("00000000000000000000.checkpoint"), d.join("checkpoint")).unwrap();
    });
    assert!(cut.contains("elsewhere was signed for"), "{cut}");
    // A checkpoint signed with another key.
    let forged = with(&|d, _| {
        let note = fs::read(d.join("checkpoint")).unwrap();
        let checkpoint = Checkpoint::parse_note(&note).unwrap();
        let by = SoftKey::new(9).sign(checkpoint.text().as_bytes());
        fs::write(d.join("checkpoint"), checkpoint.signed(&by).unwrap()).unwrap();
    });
    assert!(forged.contains("no given verifier key"), "{forged}");
}

#[test]
fn retention_leaves_a_log_that_verifies() {
    let scratch = tempfile::tempdir().unwrap();
    let keep = |directory: &Path| Settings { keep_bytes: Some(4000), ..settings(directory, 3000) };
    runtime().block_on(async {
        let (log, _) = open(keep(scratch.path())).unwrap();
        for _ in 0..10 {
            write(&log, 4).await;
            // The checkpoint that permits removing a segment is signed concurrently with the requests.
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        log.close().await;
        let (log, opened) = open(keep(scratch.path())).unwrap();
        assert_eq!(opened.intents, 40);
        log.close().await;
    });
    let report = report(scratch.path(), Vec::new());
    assert!(report.retired > 2, "{report:?}");
    assert_eq!(report.intents, 40);
    assert_eq!(findings(scratch.path()), []);
}

#[test]
fn a_proof_leads_to_the_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    written(scratch.path(), 9, 3000);
    assert!(matches!(prove::by_serial(scratch.path(), "ff"), Err(prove::ProveError::Absent(_))));
    let shown = show::entries(scratch.path(), &show::Filter::default()).unwrap();
    assert_eq!(shown.len(), 9);
    for entry in shown {
        assert!(entry.outcome.is_some());
        let proof = prove::by_serial(scratch.path(), &entry.intent.serial).unwrap();
        assert_eq!(proof.line, entry.intent.line);
        let head = format!("c2sp.org/tlog-proof@v1\nindex {}\n", proof.line);
        assert!(proof.to_tlog_proof().starts_with(&head));
        // As a certificate: the log contains the same TBSCertificate, but not others.
        let mut tbs = entry.intent.tbs_der().unwrap();
        let wrap = |tbs: &[u8]| [&[0x30, 0x82], &u16::try_from(tbs.len()).unwrap().to_be_bytes()[..], tbs].concat();
        let found = |tbs: &[u8]| show::check_certificate(scratch.path(), &wrap(tbs)).unwrap().unwrap();
        assert!(matches!(found(&tbs), show::Books::Recorded(_)));
        *tbs.last_mut().unwrap() ^= 1;
        assert!(matches!(found(&tbs), show::Books::SerialOfAnother(_)));
    }
}

mod cuts;

/// A CRL of the test CA.
fn crl(number: u64) -> CrlIntent {
    use pki::crl::{CrlContent, CrlIssuer, Reason, RevokedEntry};
    let ca = pki::testing::SoftCa::new(&pki::testing::P256);
    let now = pki::testing::now();
    let entry = RevokedEntry {
        serial: "0a".parse().unwrap(),
        revoked_at: now,
        reason: Reason::KeyCompromise,
        expires: now + pki::testing::DAY,
    };
    let content = CrlContent { number, this_update: now, next_update: now + pki::testing::DAY, entries: vec![entry] };
    let issuer = CrlIssuer::from_certificate(ca.issuer.certificate()).unwrap();
    let tbs = Arc::new(pki::CrlTbs::build(issuer, content).unwrap());
    let caller =
        CallerField { method: "internal".to_owned(), identity: "internal:crl".to_owned(), peer: None, node: None };
    CrlIntent { request_id: "crl".to_owned(), time: now, caller, tbs }
}

fn revocation() -> RevocationLine {
    RevocationLine {
        v: record::REVOCATION_VERSION,
        line: 0,
        time: "2026-01-01T00:00:00.000Z".to_owned(),
        revision: 1,
        changed: "2026-01-01T00:00:00.000Z".to_owned(),
        by: "alice".to_owned(),
        action: RevocationAction::Revoked,
        selector: "--serial 0a".to_owned(),
        reason: "keyCompromise".to_owned(),
        block: false,
        serials: vec!["0a".to_owned()],
    }
}

#[test]
fn crls_and_revocations_are_recorded_shown_and_verified() {
    let scratch = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (log, _) = open(settings(scratch.path(), 1 << 20)).unwrap();
        write(&log, 1).await;
        log.record_revocation(revocation()).await.unwrap();
        let recorded = log.record_crl(crl(7)).await.unwrap();
        assert_eq!(recorded.index(), 1, "counted together with the certificates");
        log.outcome(recorded.index(), Outcome::Issued { token: "a".to_owned() });
        write(&log, 1).await;
        log.close().await;
    });
    assert_eq!(findings(scratch.path()), []);
    let report = report(scratch.path(), Vec::new());
    assert_eq!((report.intents, report.outcomes, report.without_outcome), (3, 3, 0));
    let crl_key = record::hex(&crl(7).tbs.issuer().public_key().fingerprint());
    assert_eq!(report.intents_per_ca_key.get(&crl_key), Some(&1), "{report:?}");
    let shown = show::records(scratch.path(), &show::Filter::default()).unwrap();
    assert!(matches!(
        shown.as_slice(),
        [
            show::Shown::Certificate(_),
            show::Shown::Revocation { .. },
            show::Shown::Crl { outcome: Some(_), .. },
            show::Shown::Certificate(_)
        ]
    ));
    let serial = |text: &str| show::Filter { serial: Some(text.to_owned()), ..show::Filter::default() };
    assert!(matches!(
        show::records(scratch.path(), &serial("0A")).unwrap().as_slice(),
        [show::Shown::Revocation { .. }]
    ));
    // A log with such lines can be opened again; the next index follows.
    runtime().block_on(async {
        let (log, opened) = open(settings(scratch.path(), 1 << 20)).unwrap();
        assert_eq!(opened.intents, 3);
        assert_eq!(log.record_crl(crl(8)).await.unwrap().index(), 3);
        log.close().await;
    });
}

#[test]
fn changed_crl_line_is_found() {
    let scratch = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (log, _) = Log::open(settings(scratch.path(), 1 << 20), None).unwrap();
        log.record_crl(crl(7)).await.unwrap();
        log.close().await;
    });
    let path = scratch.path().join("00000000000000000000.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    for (from, to) in [("\"number\":7", "\"number\":8"), ("\"entries\":1", "\"entries\":0")] {
        fs::write(&path, text.replace(from, to)).unwrap();
        let request = verify::Request { directory: scratch.path().to_owned(), keys: None, checkpoints: Vec::new() };
        let report = verify::verify(&request).unwrap();
        assert!(report.findings.iter().any(|finding| finding.what.contains("not what its TBS says")), "{report:?}");
    }
}
