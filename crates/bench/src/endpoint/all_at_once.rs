//! `bench endpoint --storm`: all agents start at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::{
    super::{
        process_usage::{ProcessTime, Reading},
        progress_bar,
        report::{Latency, count},
        storm::{self, Comer, Route, Storm},
    },
    EndpointArguments,
    tokens::{read, tokens},
};
use crate::agent::{Tls, Workload, WorkloadKey};
use process::output::Output;

/// Result of a storm, as printed in JSON.
#[derive(Clone, Debug, Serialize)]
struct StormReport {
    #[serde(flatten)]
    storm: Storm,
    certificates_per_second: f64,
    daemon_cpu_us_per_certificate: Option<f64>,
    processes: Vec<ProcessTime>,
}

/// Starts all agents at once and prints the result.
pub(super) async fn run(arguments: &EndpointArguments, agents: usize, output: Output) -> Result<()> {
    process::hardening::raise_open_files()?;
    let roots = read(&arguments.roots)?;
    let route = Route {
        address: arguments.address,
        tls: Tls::new(&roots, &arguments.server_name, None)?,
        sources: arguments.storm_sources,
        cluster: arguments.cluster.clone(),
        lifetime: arguments.lifetime,
    };
    let mut comers = Vec::with_capacity(agents);
    for (Workload { namespace, service_account }, token) in tokens(arguments, agents)? {
        let identity = format!("spiffe://{}/ns/{namespace}/sa/{service_account}", arguments.trust_domain);
        comers.push(Comer { token, request: WorkloadKey::generate(arguments.key)?.request(&identity)? });
    }
    let reading = || arguments.pid.map(Reading::take).transpose();
    let before = reading()?;
    let done = Arc::new(AtomicUsize::new(0));
    let running = tokio::spawn(storm::all(Arc::new(route), comers, Arc::clone(&done)));
    let bar = progress_bar(u64::try_from(agents)?)?;
    while !running.is_finished() {
        bar.set_position(u64::try_from(done.load(Ordering::Relaxed))?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bar.finish_and_clear();
    let storm = running.await?;
    let processes = match (before, reading()?) {
        (Some(before), Some(after)) => after.since(&before),
        _ => Vec::new(),
    };
    let cpu: f64 = processes.iter().map(|process| process.cpu_seconds).sum();
    let report = StormReport {
        certificates_per_second: count(storm.served) / storm.seconds.max(1e-3),
        daemon_cpu_us_per_certificate: (!processes.is_empty() && storm.served > 0)
            .then(|| cpu * 1e6 / count(storm.served)),
        storm,
        processes,
    };
    output.print(&report, storm_text)?;
    let lost = report.storm.agents - report.storm.served;
    ensure!(lost == 0, "{lost} of {} agents have no certificate; the reasons are above", report.storm.agents);
    Ok(())
}

fn storm_text(report: &StormReport) -> String {
    let Storm { agents, served, tries, seconds, latency, refusals, lost } = &report.storm;
    let mut lines = vec![format!(
        "served        {served} of {agents} in {seconds:.2} s, {:.0} a second",
        report.certificates_per_second
    )];
    if let Some(Latency { p50_us, p99_us, max_us }) = latency {
        let [p50, p99, max] = [p50_us, p99_us, max_us].map(|micros| Duration::from_micros(*micros).as_secs_f64());
        lines.push(format!("latency       p50 {p50:.2} s, p99 {p99:.2} s, max {max:.2} s"));
    }
    lines.extend(tries.iter().map(|(tries, agents)| format!("tries         {tries}: {agents} agents")));
    lines.extend(refusals.iter().map(|(reason, count)| format!("tried again   {count} {reason}")));
    lines.extend(lost.iter().map(|(reason, count)| format!("lost          {count} {reason}")));
    if let Some(cpu) = report.daemon_cpu_us_per_certificate {
        lines.push(format!("CPU           {cpu:.0} us a certificate"));
    }
    lines.join("\n") + "\n"
}
