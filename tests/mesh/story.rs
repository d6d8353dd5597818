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
    mesh::{Mesh, WORKLOADS},
    traffic::{Counts, Shown},
};

/// What docs/MESH.md says about a scenario.
#[derive(Debug, Deserialize, Serialize)]
pub struct Results {
    pub number: String,
    pub title: String,
    pub steps: Vec<Step>,
    /// Serial numbers of each workload's certificates at the start and at the end.
    pub certificates: BTreeMap<String, (String, String)>,
    pub notes: Vec<String>,
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
            assert!(started.elapsed() < super::mesh::SOON, "not every proxy shows a certificate: {all:#?}");
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
    /// Ends a step, whose requests are counted from the end of the step before.
    pub async fn step(&mut self, name: &str) {
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
            "  {name}: {} s, {} requests, {} failed, {} handshakes ({} resumed), {} failed",
            step.seconds, step.requests, step.failed, step.handshakes, since.resumed, step.failed_handshakes
        );
        if step.requests == 0 {
            self.failures.push(format!("{name}: no requests"));
        }
        if step.failed > 0 || step.failed_handshakes > 0 {
            self.failures.push(format!("{name}: {since:#?}"));
        }
        self.results.steps.push(step);
        (self.counts, self.at) = (counts, Instant::now());
    }

    /// Something that the page should say.
    pub fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        println!("  {note}");
        self.results.notes.push(note);
    }

    /// The last step may have failures that are not the CA's.
    pub fn expected(&mut self) {
        let name = &self.results.steps.last().unwrap().name;
        self.failures.retain(|failure| !failure.starts_with(&format!("{name}: Counts")));
    }

    /// The last step must have failures; they are intended.
    pub fn must_have_failed(&mut self) {
        assert!(self.results.steps.last().unwrap().failed > 0, "{:#?}", self.results.steps.last());
        self.expected();
    }

    /// Whether every workload has a certificate that is in an issuance log.
    pub async fn all_ours(&self) -> bool {
        self.ours().await == WORKLOADS.len()
    }

    /// Number of workloads whose certificates are in an issuance log.
    pub async fn ours(&self) -> usize {
        let issued: HashSet<String> = self.mesh.issued().into_iter().map(|(serial, _)| serial).collect();
        let shown = self.mesh.workload_certificates().await;
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
            assert!(started.elapsed() < Duration::from_secs(240), "no renewal: {now:#?}\n{}", logs());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Writes the result; fails if anything did.
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
        assert!(self.failures.is_empty(), "{:#?}\n{}", self.failures, self.mesh.logs.tails(12));
    }
}
