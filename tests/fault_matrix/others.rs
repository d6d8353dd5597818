//! Faults other than return codes: slow, hanging and crashing modules, wrong signatures, lost logins, renumbered
//! objects, removed tokens, replaced libraries, missing PIN files, killed processes. Same daemon, clients and records
//! as in the matrix.

use std::{
    fs,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};
use tokio::{runtime, task::LocalSet};

use super::{
    cell::{BACK, PATIENCE, health_told, still_there},
    crowd::{beside, beside_or_alone},
    lane::Lane,
};
use testkit::{
    faulty::{MODULE, once, times},
    softhsm::module_path,
};

/// Call timeout, after which the token host ends.
const CALL: Duration = Duration::from_secs(2);

/// Signal sent to the host in addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Besides {
    Nothing,
    /// SIGKILL, so that a host starts during the fault.
    Kill,
    /// SIGSTOP.
    Stop,
}

/// Expected effect on the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    /// Uninterrupted, in the same host.
    GoesOn,
    /// May be interrupted and recovers automatically.
    Recovers,
    /// Unavailable until the fault ends, as reported by the health service.
    Out,
}

/// A fault: its commands, duration, and effect on the service.
struct Case {
    name: &'static str,
    commands: String,
    besides: Besides,
    lasts: Duration,
    service: Service,
    /// Whether wrong signatures are detected.
    wrong: bool,
}

const fn case(name: &'static str, commands: String, lasts: u64, service: Service) -> Case {
    let lasts = Duration::from_millis(lasts);
    Case { name, commands, besides: Besides::Nothing, lasts, service, wrong: false }
}

fn cases() -> Vec<Case> {
    use Service::{GoesOn, Out, Recovers};
    let crash = |name, function, action| case(name, format!("{function} {action} {}", once()), 1500, Recovers);
    let killed = |case| Case { besides: Besides::Kill, ..case };
    let wrong = |case| Case { wrong: true, ..case };
    let session = || format!("C_Sign return=0x6 {}", once());
    vec![
        case("slow", "C_Sign delay=100".to_owned(), 3000, GoesOn),
        case("slow everywhere", "* delay=20".to_owned(), 3000, GoesOn),
        crash("hangs while it signs", "C_Sign", "hang"),
        killed(crash("hangs while it starts", "C_Initialize", "hang")),
        killed(crash("hangs at the login", "C_Login", "hang")),
        case("hangs while a session ends", format!("C_CloseSession hang {}\n{}", once(), session()), 1500, Recovers),
        case("hangs at its end", format!("C_Finalize hang {}\nC_Sign return=0x30 {}", once(), once()), 1500, Recovers),
        case("hangs for good", "C_Sign hang".to_owned(), 6000, Out),
        crash("aborts", "C_Sign", "abort"),
        crash("crashes", "C_Sign", "segv"),
        crash("exits", "C_Sign", "exit"),
        killed(crash("aborts while it starts", "C_Initialize", "abort")),
        killed(crash("crashes at the login", "C_Login", "segv")),
        killed(crash("exits at the look-up", "C_FindObjects", "exit")),
        case("crashes for good", "C_SignInit segv".to_owned(), 4000, Out),
        case("writes to standard output", "* print".to_owned(), 2000, GoesOn),
        case("wrong signature", format!("C_Sign wrong {}", times(2)), 1500, Recovers),
        wrong(case("wrong signatures for good", "C_Sign wrong".to_owned(), 4000, Out)),
        case("truncated signature", format!("C_Sign truncate {}", once()), 1500, Recovers),
        case("truncated signatures for good", "C_Sign truncate".to_owned(), 4000, Out),
        case("over-long signature", format!("C_Sign long {}", once()), 1500, Recovers),
        case("over-long signatures for good", "C_Sign long".to_owned(), 4000, Out),
        case("login lost", format!("C_SignInit logout {}", once()), 1500, GoesOn),
        case("login lost again and again", "C_SignInit logout".to_owned(), 3000, Recovers),
        case("objects renumbered", format!("C_SignInit renumber=1000 {}", once()), 1500, GoesOn),
        case("objects stand for their neighbours", format!("C_SignInit renumber=1 {}", once()), 1500, Recovers),
        case("objects stand for others", format!("C_SignInit renumber=2 {}", times(3)), 1500, Recovers),
        case("token removed", "* removed".to_owned(), 4000, Out),
        killed(case("token removed at the start", "* removed".to_owned(), 4000, Out)),
        killed(case("one session less than configured", "C_OpenSession sessions=2".to_owned(), 3000, Recovers)),
        killed(case("no session but the login's", "C_OpenSession sessions=1".to_owned(), 4000, Recovers)),
        killed(case("no session", "C_OpenSession sessions=0".to_owned(), 4000, Out)),
        killed(case("host killed", String::new(), 1500, Recovers)),
        Case { besides: Besides::Stop, ..case("host stopped", String::new(), 4000, Recovers) },
    ]
}

/// Runs a test on its own daemon, and compares the records afterwards.
fn on_a_lane(call: Duration, test: impl AsyncFnOnce(&mut Lane) -> Result<(), String>) -> Result<(), String> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let lane = uncompared(&MODULE, call, test).await?;
        let (_, wrong) = lane.end().await;
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    })
}

/// Runs a test on its own daemon with a copy of the module, and returns it.
async fn uncompared(
    module: &Path,
    call: Duration,
    test: impl AsyncFnOnce(&mut Lane) -> Result<(), String>,
) -> Result<Lane, String> {
    let mut lane = Lane::start_on(module, call).await;
    served(&lane, Instant::now(), PATIENCE).await?;
    test(&mut lane).await?;
    still_there(&mut lane).await?;
    Ok(lane)
}

fn ensure(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

/// The daemon is not ready and reports this file as the cause.
async fn unready(lane: &Lane, file: &Path) -> Result<(), String> {
    let ready = lane.get("/readyz").await;
    let named = ready.starts_with("HTTP/1.0 503") && ready.contains(&file.display().to_string());
    ensure(named, &format!("{} is not named: {ready}", file.display()))
}

/// Every client gets a certificate soon after a moment.
async fn served(lane: &Lane, after: Instant, within: Duration) -> Result<Duration, String> {
    let took = lane.load.all_served_after(after, within.max(PATIENCE)).await;
    took.filter(|took| *took <= within)
        .ok_or_else(|| format!("not every client was served within {within:?}: {took:?}"))
}

async fn run(case: &Case, lane: &mut Lane) -> Result<(), String> {
    let (mark, began) = (lane.control.mark(), Instant::now());
    let wrong_before = lane.metric("istio_hsm_ca_wrong_signatures_total").await;
    lane.control.breaks(&case.commands);
    match case.besides {
        Besides::Nothing => {}
        Besides::Kill => {
            lane.kill_hosts().await;
        }
        Besides::Stop => lane.hosts().iter().for_each(|host| kill(*host, Signal::SIGSTOP).unwrap()),
    }
    tokio::time::sleep(case.lasts).await;
    let end = Instant::now();
    let books = lane.control.books_since(mark);
    lane.control.works();
    let hosts = books.called.iter().filter(|function| *function == "C_GetFunctionList").count();
    let count = lane.load.served_between(began, end).len();
    if !case.commands.is_empty() && books.faults.is_empty() {
        return Err("it never happened".to_owned());
    }
    match case.service {
        Service::GoesOn if hosts > 0 || count == 0 => return Err(format!("{hosts} new hosts, {count} certificates")),
        Service::Out => {
            let late = lane.load.served_between(end - Duration::from_secs(1), end).len();
            if late > 0 {
                return Err(format!("{late} certificates at its end"));
            }
        }
        Service::GoesOn | Service::Recovers => {}
    }
    // A call that hangs at that moment first runs into its timeout.
    let hangs = case.commands.contains("hang") || case.besides == Besides::Stop;
    let within = if hangs { BACK + CALL + Duration::from_millis(500) } else { BACK };
    let took = served(lane, end, within).await?;
    // A hanging call cannot be distinguished from a slow one before its timeout.
    let known = if hangs { began + CALL + Duration::from_millis(500) } else { began };
    health_told(lane, known, end)?;
    let wrong = lane.metric("istio_hsm_ca_wrong_signatures_total").await - wrong_before;
    if case.wrong && wrong == 0 {
        return Err("the alarm's metric did not rise".to_owned());
    }
    println!(
        "{}: {count} certificates, {hosts} new hosts, {wrong} wrong, back after {} ms",
        case.name,
        took.as_millis()
    );
    Ok(())
}

#[test]
fn every_other_fault_ends_with_the_service_back() {
    let names: Vec<&str> = cases().iter().map(|case| case.name).collect();
    let (names, failures) = (Mutex::new(names), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                while let Some(name) = { names.lock().unwrap().pop() } {
                    // Each attempt needs limits that no earlier one has used up.
                    let once = || on_a_lane(CALL, async |lane| run(&case_of(name), lane).await);
                    if let Err(reason) = beside_or_alone(name, once) {
                        failures.lock().unwrap().push(format!("{name}: {reason}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
}

fn case_of(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

#[test]
fn the_modules_file_may_be_replaced() {
    beside_or_alone("replaced modules", || {
        let directory = tempfile::tempdir().unwrap();
        let module = directory.path().join("module.so");
        let put = |from: &Path| {
            let beside = directory.path().join("beside.so");
            fs::copy(from, &beside).unwrap();
            fs::rename(beside, &module).unwrap();
        };
        put(&MODULE);
        // This module keeps no records, so they cannot be compared.
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let test = async |lane: &mut Lane| {
            // Another version is installed: the running host keeps the loaded one...
            let hosts = lane.hosts();
            put(&module_path());
            tokio::time::sleep(Duration::from_secs(1)).await;
            served(lane, Instant::now(), BACK).await?;
            ensure(lane.hosts() == hosts, "the host was replaced")?;
            // ...and the next host loads the new one, which keeps no records.
            let mark = lane.control.mark();
            lane.kill_hosts().await;
            served(lane, Instant::now(), BACK + BACK).await?;
            ensure(lane.hosts() != hosts, "the host was not replaced")?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            ensure(lane.control.mark() == mark, "the old version still signs")?;

            // A file that is not a library is reported, and the daemon waits for a valid one.
            fs::write(directory.path().join("garbage"), "no library").unwrap();
            put(&directory.path().join("garbage"));
            let began = Instant::now();
            lane.kill_hosts().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            unready(lane, &module).await?;
            put(&MODULE);
            let end = Instant::now();
            served(lane, end, BACK).await?;
            health_told(lane, began, end)?;

            // Overwritten in place, which operators should not do: whatever happens to the host, a new one starts.
            let bytes = fs::read(&*MODULE).unwrap();
            fs::write(&module, &bytes[..bytes.len() / 2]).unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
            fs::write(&module, &bytes).unwrap();
            served(lane, Instant::now(), PATIENCE).await.map(drop)
        };
        LocalSet::new().block_on(&runtime, uncompared(&module, CALL, test)).map(drop)
    })
    .unwrap();
}

#[test]
fn a_pin_file_that_vanishes_is_named_and_waited_for() {
    let once = || {
        on_a_lane(CALL, async |lane| {
            let (pin, away) = (lane.site.softhsm.path().join("pin"), lane.site.softhsm.path().join("pin-away"));
            fs::rename(&pin, &away).unwrap();
            let began = Instant::now();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let meanwhile = lane.load.served_between(began + Duration::from_millis(200), Instant::now());
            ensure(!meanwhile.is_empty(), "a login that lasts needs no PIN")?;
            let (mark, began) = (lane.control.mark(), Instant::now());
            lane.kill_hosts().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            unready(lane, &pin).await?;
            fs::rename(&away, &pin).unwrap();
            let end = Instant::now();
            served(lane, end, BACK).await?;
            health_told(lane, began, end)?;
            let logins = lane.control.books_since(mark).logins.len();
            ensure(logins == 1, &format!("{logins} logins"))
        })
    };
    beside_or_alone("vanished PIN file", once).unwrap();
}

#[test]
fn the_daemons_death_under_load_leaves_no_host() {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for commands in ["", "C_Sign hang", "* delay=50"] {
        let death = async {
            let lane = Lane::start_on(&MODULE, Duration::from_secs(60)).await;
            served(&lane, Instant::now(), PATIENCE).await.unwrap();
            lane.control.breaks(commands);
            tokio::time::sleep(Duration::from_millis(500)).await;
            let hosts = lane.kill_daemon();
            assert_eq!(hosts.len(), 1, "{commands}");
            let began = Instant::now();
            while kill(hosts[0], None).is_ok() {
                assert!(began.elapsed() < Duration::from_secs(5), "{commands}: the host lives on");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        beside(|| LocalSet::new().block_on(&runtime, death));
    }
}
