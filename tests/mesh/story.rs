//! A scenario: steps under traffic, what each did to requests and handshakes, and the certificates before and after.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    mesh::{Mesh, SOON, WORKLOADS},
    traffic::{Counts, Shown},
};

/// What docs/MESH.md says about a scenario.
#[derive(Debug, Deserialize, Serialize)]
pub struct Results {
    /// The run of all scenarios that this one was part of.
    pub run: Run,
    pub number: String,
    pub title: String,
    pub steps: Vec<Step>,
    /// Serial numbers of each workload's certificates at the start and at the end.
    pub certificates: BTreeMap<String, (String, String)>,
    pub notes: Vec<String>,
}

/// A run of the test program, in which scenarios run next to each other.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Run {
    /// When it started, as RFC 3339.
    pub started: String,
    /// Processors of the machine.
    pub processors: usize,
}

/// A step of a scenario.
#[derive(Debug, Deserialize, Serialize)]
pub struct Step {
    pub name: String,
    pub seconds: u64,
    pub requests: u64,
    pub failed: u64,
    pub handshakes: u64,
    pub failed_handshakes: u64,
}

/// A scenario that runs.
pub struct Story<'a> {
    mesh: &'a Mesh,
    results: Results,
    counts: Counts,
    at: Instant,
    before: BTreeMap<String, Shown>,
    failures: Vec<String>,
}

impl Mesh {
    /// Starts a scenario.
    pub async fn story(&self, number: &str, title: &str) -> Story<'_> {
        println!("scenario {number}: {title}");
        let results = Results {
            run: super::node::this_run(),
            number: number.into(),
            title: title.into(),
            steps: vec![],
            certificates: BTreeMap::new(),
            notes: vec![],
        };
        let before = self.workload_certificates().await;
        Story { mesh: self, results, counts: self.counts(), at: Instant::now(), before, failures: vec![] }
    }

    /// The certificate of each workload, whose pods may be others than before.
    pub async fn workload_certificates(&self) -> BTreeMap<String, Shown> {
        let started = Instant::now();
        loop {
            let all = self.sampler.certificates().await;
            let of = |name: &&str| {
                let pod = all.iter().find(|(pod, _)| pod.starts_with(&format!("demo/{name}-")));
                pod.map(|(_, shown)| ((*name).to_owned(), shown.clone()))
            };
            let found: BTreeMap<_, _> = WORKLOADS.iter().filter_map(of).collect();
            if found.len() == WORKLOADS.len() {
                return found;
            }
            assert!(started.elapsed() < SOON, "not every proxy shows a certificate: {all:#?}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Serial numbers in the issuance logs of all replicas, with the names in the certificates.
    pub fn issued(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for claim in fs::read_dir("/run/mesh/claims").into_iter().flatten().flatten() {
            for file in fs::read_dir(claim.path().join("log")).into_iter().flatten().flatten() {
                if file.path().extension().is_some_and(|end| end == "jsonl") {
                    add_intents(file.path(), &mut all);
                }
            }
        }
        all
    }
}

fn add_intents(file: PathBuf, all: &mut Vec<(String, String)>) {
    // A segment that is being written ends in the middle of a line, or in preallocated space.
    let text = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
    for line in text.trim_end_matches('\0').lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        if line["type"] != "intent" {
            continue;
        }
        let serial = line["serial"].as_str().unwrap().trim_start_matches('0');
        all.push((serial.to_owned(), line["names"].to_string()));
    }
}

impl Story<'_> {
    /// Ends a step, whose requests are counted from the end of the step before. None of them may fail.
    pub async fn step(&mut self, name: &str) {
        let since = self.end_step(name).await;
        if since.failed > 0 || since.failed_handshakes() > 0 {
            self.failures.push(format!("{name}: {since:#?}\n{}", self.mesh.sampler.failed_requests()));
        }
    }

    /// Ends a step in which requests must fail, all of them because a proxy rejected the certificate of the other.
    pub async fn failing_step(&mut self, name: &str) {
        let since = self.end_step(name).await;
        let rejected: u64 =
            since.failures.iter().filter(|(counter, _)| counter.contains("fail_verify")).map(|(_, count)| count).sum();
        if since.failed == 0 || rejected != since.failed {
            self.failures.push(format!("{name}: {rejected} rejected certificates, {since:#?}"));
        }
    }

    async fn end_step(&mut self, name: &str) -> Counts {
        // Requests under way end, and the metrics of the proxies are read once more.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let counts = self.mesh.counts();
        let since = counts.since(&self.counts);
        let step = Step {
            name: name.into(),
            seconds: self.at.elapsed().as_secs(),
            requests: since.ok + since.failed,
            failed: since.failed,
            handshakes: since.handshakes,
            failed_handshakes: since.failed_handshakes(),
        };
        println!(
            "  {}. {name}: {} s, {} requests, {} failed, {} handshakes ({} resumed), {} failed; slowest request {} ms, \
             longest pause of a client {} ms",
            self.results.number,
            step.seconds,
            step.requests,
            step.failed,
            step.handshakes,
            since.resumed,
            step.failed_handshakes,
            since.slowest,
            since.pause
        );
        if step.requests == 0 {
            self.failures.push(format!("{name}: no requests"));
        }
        self.results.steps.push(step);
        (self.counts, self.at) = (counts, Instant::now());
        since
    }

    /// Stops all workloads, so that the next ones have nothing to do with them, as the end of a step; starts them again
    /// after `between`.
    pub async fn stop_workloads_during(&mut self, between: impl Future<Output = ()>) {
        self.mesh.stop_workloads().await;
        // The last requests have ended with their clients.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let since = self.mesh.counts().since(&self.counts);
        if since.failed > 0 || since.failed_handshakes() > 0 {
            let requests = self.mesh.sampler.failed_requests();
            self.failures.push(format!("workloads stopped: {since:#?}\n{requests}"));
        }
        between.await;
        self.mesh.start_workloads().await;
        (self.counts, self.at) = (self.mesh.counts(), Instant::now());
    }

    /// Something that the page should say.
    pub fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        println!("  {note}");
        self.results.notes.push(note);
    }

    /// Whether every workload has a certificate that is in an issuance log.
    pub async fn all_ours(&self) -> bool {
        self.ours().await == WORKLOADS.len()
    }

    /// Number of workloads whose certificates are in an issuance log.
    pub async fn ours(&self) -> usize {
        // In this order: a certificate is in a log before a proxy has it.
        let shown = self.mesh.workload_certificates().await;
        let issued: HashSet<String> = self.mesh.issued().into_iter().map(|(serial, _)| serial).collect();
        shown.values().filter(|shown| issued.contains(shown.serial.trim_start_matches('0'))).count()
    }

    /// Waits until each workload has another certificate than at this moment.
    pub async fn renewed(&self) {
        self.renewed_since(&self.mesh.workload_certificates().await).await;
    }

    /// Waits until each workload has another certificate than these.
    pub async fn renewed_since(&self, old: &BTreeMap<String, Shown>) {
        let started = Instant::now();
        loop {
            let now = self.mesh.workload_certificates().await;
            if now.iter().all(|(name, shown)| shown.serial != old[name].serial) {
                return;
            }
            let logs = || self.mesh.logs.tails(10);
            assert!(started.elapsed() < SOON, "no renewal: {now:#?}\n{}", logs());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Writes the results for docs/MESH.md; fails if anything did.
    pub async fn end(mut self) {
        let after = self.mesh.workload_certificates().await;
        for (name, shown) in &self.before {
            let serials = (shown.serial.clone(), after[name].serial.clone());
            self.results.certificates.insert(name.clone(), serials);
        }
        let results = testkit::tmp().join("mesh/results");
        fs::create_dir_all(&results).unwrap();
        let file = results.join(format!("{}.json", self.results.number));
        fs::write(file, serde_json::to_vec_pretty(&self.results).unwrap()).unwrap();
        super::page::write();
        self.passed();
    }

    /// Fails if anything did.
    pub fn passed(self) {
        assert!(self.failures.is_empty(), "{}\n{}", self.failures.join("\n"), self.mesh.logs.tails(12));
    }
}
