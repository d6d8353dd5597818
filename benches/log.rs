//! Cost of the issuance log: microseconds per record, flushes per record, bytes per certificate.
//!
//! `cargo bench --bench log`. The directory is `LOG_BENCH_DIRECTORY` or the system's temporary directory; its disk is
//! measured. For comparison, each figure is printed with a plain append and fdatasync on the same disk in the same run.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use audit_log::{CheckpointSignError, CheckpointSignature, CheckpointSigner, Intent, Log, Outcome, Settings};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use istio_hsm_ca::auth::Caller;
use pki::{Issuer, Profile, PublicKey, Tbs, Template, identity::Name, tbs::Serial};
use rcgen::{KeyPair, PublicKeyData, RsaKeySize};

/// Duration of each measurement; rounds are interleaved.
const ROUND: Duration = Duration::from_secs(1);
const ROUNDS: usize = 3;

#[derive(Debug)]
struct LogKey(Ed25519KeyPair);

impl CheckpointSigner for LogKey {
    fn sign_checkpoint<'a>(
        &'a self,
        text: &'a [u8],
    ) -> Pin<Box<dyn Future<Output = Result<CheckpointSignature, CheckpointSignError>> + Send + 'a>> {
        let fail = |what: &str| CheckpointSignError::Failed(what.to_owned());
        Box::pin(async move {
            Ok(CheckpointSignature {
                public_key: self.0.public_key().as_ref().try_into().map_err(|_| fail("the key"))?,
                signature: self.0.sign(text).as_ref().try_into().map_err(|_| fail("the signature"))?,
            })
        })
    }
}

/// Intents prepared in advance, so that constructing them is not measured.
fn intents(key: &KeyPair, count: usize) -> Vec<Intent> {
    let (now, day) = (UNIX_EPOCH + Duration::from_secs(1_767_225_600), Duration::from_secs(86_400));
    let public = |pair: &KeyPair| PublicKey::from_spki_der(&pair.subject_public_key_info()).expect("a public key");
    let ca = KeyPair::generate().expect("a key");
    let subject = b"\x30\x10\x31\x0e\x30\x0c\x06\x03\x55\x04\x0a\x0c\x05Istio".to_vec();
    let issuer = Arc::new(Issuer::self_signed(subject, public(&ca), now - day, now + 3650 * day));
    let one = |number| {
        let template = Template {
            profile: Profile::Leaf,
            public_key: public(key),
            names: vec![Name::Spiffe(
                "spiffe://cluster.local/ns/default/sa/bookinfo-productpage".parse().expect("an identity"),
            )],
            not_before: now - Duration::from_secs(120),
            not_after: now + day,
        };
        let tbs = Tbs::build(template, Arc::clone(&issuer), Serial::random()).expect("a certificate to be signed");
        Intent {
            request_id: format!("{number:032x}"),
            time: SystemTime::now(),
            caller: (&Caller::operator(1000)).into(),
            tbs: Arc::new(tbs),
        }
    };
    (0..count).map(one).collect()
}

/// Result of one measurement.
#[derive(Clone, Copy)]
struct Measured {
    per_record: Duration,
    flushes: f64,
    bytes: f64,
}

fn measure(directory: &Path, intents: &[Intent], tasks: usize) -> Measured {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let key = LogKey(Ed25519KeyPair::from_seed_unchecked(&[1; 32]).expect("a key"));
        let (log, _) = Log::open(Settings::new(directory, "bench/log"), Some(Arc::new(key))).expect("a log");
        let start = Instant::now();
        let workers: Vec<_> = (0..tasks)
            .map(|_| {
                let (log, intents) = (log.clone(), intents.to_vec());
                tokio::spawn(async move {
                    let mut records = 0_u32;
                    while start.elapsed() < ROUND {
                        for intent in &intents {
                            let recorded = log.record(intent.clone()).await.expect("a record");
                            log.outcome(recorded.index(), Outcome::Issued { token: "softhsm".to_owned() });
                            records += 1;
                        }
                    }
                    records
                })
            })
            .collect();
        let mut records = 0;
        for worker in workers {
            records += worker.await.expect("a worker");
        }
        let took = start.elapsed();
        log.close().await;
        let stats = log.stats();
        let flushes = u32::try_from(stats.flushes).expect("few flushes");
        let files = std::fs::read_dir(directory)
            .expect("the directory")
            .map(|e| e.expect("an entry").metadata().expect("a file").len());
        let bytes = u32::try_from(files.sum::<u64>()).expect("a small log");
        Measured {
            per_record: took / records,
            flushes: f64::from(flushes) / f64::from(records),
            bytes: f64::from(bytes) / f64::from(records),
        }
    })
}

/// A plain append with a flush.
fn bare(directory: &Path) -> Duration {
    let path = directory.join("bare");
    let mut file: File = OpenOptions::new().append(true).create_new(true).open(path).expect("a file");
    let (start, line) = (Instant::now(), [b'x'; 1200]);
    let mut appends = 0;
    while start.elapsed() < ROUND / 2 {
        file.write_all(&line).and_then(|()| file.sync_data()).expect("a flush");
        appends += 1;
    }
    start.elapsed() / appends
}

fn main() {
    // `cargo test --all-targets` runs benches as well; with `--test` nothing is measured.
    if std::env::args().any(|argument| argument == "--test") || !std::env::args().any(|argument| argument == "--bench")
    {
        return;
    }
    let base = std::env::var_os("LOG_BENCH_DIRECTORY").map_or_else(std::env::temp_dir, Into::into);
    let keys = [
        ("P-256", KeyPair::generate().expect("a key")),
        ("RSA-2048", KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key")),
    ];
    println!(
        "{:10} {:>9} {:>12} {:>16} {:>18}",
        "key", "in flight", "us a record", "flushes a record", "bytes a certificate"
    );
    for _ in 0..ROUNDS {
        for (name, key) in &keys {
            let intents = intents(key, 16);
            for tasks in [1, 64] {
                let scratch = tempfile::tempdir_in(&base).expect("a directory");
                let Measured { per_record, flushes, bytes } = measure(&scratch.path().join("log"), &intents, tasks);
                println!("{name:10} {tasks:>9} {:>12.1} {flushes:>16.3} {bytes:>18.0}", per_record.as_secs_f64() * 1e6);
            }
        }
        let scratch = tempfile::tempdir_in(&base).expect("a directory");
        println!("bare append and fdatasync: {:.1} us", bare(scratch.path()).as_secs_f64() * 1e6);
    }
}
