//! Runs the cells with many concurrent daemons; a cell that is late is repeated with few others, and then alone.

use std::{
    collections::VecDeque,
    sync::Mutex,
    time::{Duration, Instant},
};

use testkit::random;
use token::error::Entry;
use tokio::{runtime, task::LocalSet};

use super::{
    cell::{self, Outcome},
    crowd::{alone, beside},
    lane::Lane,
    page,
    plan::{FUNCTIONS, Job, Lasts, all, sample},
};

/// Concurrent daemons per round; they mostly wait. Late cells go to the next round; the last rounds run them alone.
const LANES: [usize; 4] = [20, 5, 1, 1];

struct Results {
    outcomes: Vec<Outcome>,
    late: Vec<(Job, Outcome)>,
    wrong: Vec<String>,
}

/// Runs all jobs and returns the result of each cell. `FAULT_ONLY` selects some, such as `C_Login Pin`.
///
/// # Panics
/// If any requirement is violated; the message lists all failures.
fn matrix(mut jobs: Vec<Job>) -> Vec<Outcome> {
    if let Ok(only) = std::env::var("FAULT_ONLY") {
        jobs.retain(|job| format!("{} {:?}", job.function, job.recovery).contains(&only));
    }
    let results = Mutex::new(Results { outcomes: Vec::new(), late: Vec::new(), wrong: Vec::new() });
    for lanes in LANES {
        let late = std::mem::take(&mut results.lock().unwrap().late);
        jobs.extend(late.into_iter().map(|(job, _)| job));
        let (began, cells) = (Instant::now(), jobs.iter().map(|job| job.cells.len()).sum::<usize>());
        let queue = Mutex::new(VecDeque::from(std::mem::take(&mut jobs)));
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                scope.spawn(|| {
                    while let Some(job) = { queue.lock().unwrap().pop_front() } {
                        if lanes == 1 { alone(|| drive(&job, &results)) } else { beside(|| drive(&job, &results)) }
                    }
                });
            }
        });
        let late = results.lock().unwrap().late.len();
        println!("{cells} cells, {lanes} beside each other, in {:?}; {late} of them late", began.elapsed());
    }
    let Results { outcomes, late, mut wrong } = results.into_inner().unwrap();
    wrong.extend(late.iter().map(|(_, outcome)| {
        format!(
            "{} back only after {:?}, SERVING for {:.0} % of the time without certificates, also alone",
            name(outcome.function, &outcome.code, outcome.lasts),
            outcome.back,
            outcome.serving * 100.0
        )
    }));
    assert!(wrong.is_empty(), "{} failures:\n{}", wrong.len(), wrong.join("\n"));
    outcomes
}

fn name(function: &str, code: &Entry, lasts: Lasts) -> String {
    format!("{function} {} (0x{:x}) {lasts:?}:", code.name, code.code)
}

/// Runs a job on its own daemon, and continues with another one after a failure.
fn drive(job: &Job, results: &Mutex<Results>) {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let mut lane = Lane::start().await;
        for &(code, lasts) in &job.cells {
            let outcome = cell::run(&mut lane, job.function, job.trigger, code, lasts).await;
            let name = name(job.function, &code, lasts);
            match outcome {
                Ok(outcome) => {
                    println!(
                        "{name} {} certificates, back after {} ms, {} hosts, SERVING {:.0} % of the rest",
                        outcome.served,
                        outcome.back.as_millis(),
                        outcome.hosts,
                        outcome.serving * 100.0
                    );
                    let mut results = results.lock().unwrap();
                    if !outcome.is_good() {
                        results.late.push((Job { cells: vec![(code, lasts)], ..job.clone() }, outcome));
                    } else {
                        results.outcomes.push(outcome);
                    }
                }
                Err(reason) => {
                    println!("{name} FAILED: {reason}\n{}", lane.last_words().await);
                    results.lock().unwrap().wrong.push(format!("{name} {reason}"));
                    lane.control.works();
                    lane.change_pin_file();
                    if lane.load.all_served_after(Instant::now(), Duration::from_secs(10)).await.is_none() {
                        // It cannot be used any more; its records are not compared.
                        lane = Lane::start().await;
                    }
                }
            }
        }
        let (_, wrong) = lane.end().await;
        results
            .lock()
            .unwrap()
            .wrong
            .extend(wrong.into_iter().map(|wrong| format!("{} {:?}: {wrong}", job.function, job.recovery)));
    });
}

#[test]
fn every_recovery_at_every_function() {
    let seed = random::fault_seed();
    println!("FAULT_SEED={seed} repeats this run");
    matrix(sample(seed));
}

#[test]
#[ignore = "long: every code of the standard at every function"]
fn every_code_at_every_function() {
    let outcomes = matrix(all());
    page::measured(&outcomes);
}

#[test]
fn the_functions_are_those_that_a_host_calls() {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let called = LocalSet::new().block_on(&runtime, async {
        let lane = Lane::start().await;
        lane.load.all_served_after(Instant::now(), Duration::from_secs(30)).await.unwrap();
        let trigger = testkit::faulty::once();
        lane.control.breaks(&format!("C_Sign return=0x6 {trigger}"));
        lane.load.all_served_after(Instant::now() + Duration::from_millis(500), Duration::from_secs(30)).await.unwrap();
        let (module, wrong) = lane.end().await;
        assert_eq!(wrong, Vec::<String>::new());
        module.called
    });
    let mut expected: Vec<&str> = FUNCTIONS.iter().map(|(function, _)| *function).collect();
    let mut called: Vec<&str> = called.iter().map(String::as_str).collect();
    expected.sort_unstable();
    called.sort_unstable();
    called.dedup();
    assert_eq!(called, expected);
}
