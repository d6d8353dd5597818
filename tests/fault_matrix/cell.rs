//! One cell: a fault under load, its end, and everything that must hold meanwhile.
//!
//! - No bad certificate is released, and nobody is told anything that an agent would not try again for (`clients`).
//! - The daemon is the same process before and after, and `/livez` is good all the time.
//! - While nobody gets a certificate the health service says NOT_SERVING.
//! - A PIN that the token refused is tried once.
//! - The fault did happen, and the service is back within two seconds of its end; where it was about the PIN, of the
//!   PIN file's change.
//!
//! That the log has a line for each signature is seen at the end of the daemon (`books`).

use std::time::{Duration, Instant};

use token::error::{Entry, Recovery};

use super::{
    lane::Lane,
    plan::{Lasts, Trigger},
};
use testkit::faulty::{once, until};

/// How soon after a fault's end every client must have a certificate.
pub const BACK: Duration = Duration::from_secs(2);

/// How long a fault of seconds lasts.
const SECONDS: Duration = Duration::from_secs(3);

/// How long a fault for good lasts: the backoff is at its longest after less than two.
const FOR_GOOD: Duration = Duration::from_millis(4500);

/// How long the service is waited for before a cell is given up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long after the last certificate the health service may still say SERVING.
const SLOW_HEALTH: Duration = Duration::from_secs(1);

/// How much of that time it may say SERVING: a token whose canary signs, and of which nobody has asked anything for a
/// while, is ready for one real request, which may fail.
const SERVING_MOST: f64 = 0.1;

/// How long nobody tries a refused PIN again, at least.
const NO_RETRY: Duration = Duration::from_millis(1300);

/// What was seen of a cell.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub function: &'static str,
    pub code: Entry,
    pub lasts: Lasts,
    /// From the fault's end to the last client's first certificate.
    pub back: Duration,
    /// Certificates while it lasted.
    pub served: usize,
    /// How much of the time without certificates the health service said SERVING.
    pub serving: f64,
    /// Hosts that were started because of it.
    pub hosts: usize,
    /// Whether the PIN's file had to be written anew.
    pub pin: bool,
}

/// Runs a cell.
pub async fn run(
    lane: &mut Lane,
    function: &'static str,
    trigger: Trigger,
    code: Entry,
    lasts: Lasts,
) -> Result<Outcome, String> {
    lane.load.all_served_after(Instant::now(), PATIENCE).await.ok_or("the service was not up before the fault")?;
    let mark = lane.control.mark();
    let limit = match lasts {
        Lasts::Once => once(),
        Lasts::Seconds => until(SECONDS),
        Lasts::ForGood => String::new(),
    };
    let more = match trigger {
        Trigger::End => format!("C_Sign return=0x30 {}", once()),
        Trigger::Session => format!("C_Sign return=0x6 {}", once()),
        Trigger::Load | Trigger::Restart => String::new(),
    };
    let began = Instant::now();
    lane.control.breaks(&format!("{function} return=0x{:x} {limit}\n{more}\n", code.code));
    let mut killed = if trigger == Trigger::Restart { lane.kill_hosts().await } else { 0 };

    // Until it has happened.
    while lane.control.books_since(mark).faults_of(function) == 0 {
        if began.elapsed() > PATIENCE {
            return Err("the fault never happened".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let pin = function == "C_Login" && code.recovery == Recovery::FixPin;
    let end = match lasts {
        Lasts::Once if pin => Instant::now() + NO_RETRY,
        Lasts::Once => Instant::now(),
        Lasts::Seconds => began + SECONDS,
        Lasts::ForGood => began + FOR_GOOD,
    };
    if trigger == Trigger::Session && lasts != Lasts::Once {
        // The start of a host meets it too.
        tokio::time::sleep_until((began + Duration::from_secs(1)).into()).await;
        killed += lane.kill_hosts().await;
    }
    tokio::time::sleep_until(end.into()).await;
    lane.control.works();
    let mut end = Instant::now();
    if pin {
        let logins = lane.control.books_since(mark).logins.len();
        if logins != 1 {
            return Err(format!("a refused PIN was tried {logins} times"));
        }
        lane.change_pin_file();
        end = Instant::now();
    }
    let back = lane.load.all_served_after(end, PATIENCE).await;
    let back = back.ok_or_else(|| format!("no certificate for every client within {PATIENCE:?}"))?;

    let serving = serving_unserved(lane, began, end);
    still_there(lane).await?;
    let hosts =
        lane.control.books_since(mark).called.iter().filter(|function| *function == "C_GetFunctionList").count();
    let hosts = hosts.saturating_sub(killed);
    Ok(Outcome { function, code, lasts, back, served: lane.load.served_between(began, end).len(), serving, hosts, pin })
}

/// While nobody is served the health service says so.
pub fn health_told(lane: &Lane, began: Instant, end: Instant) -> Result<(), String> {
    let share = serving_unserved(lane, began, end);
    if share > SERVING_MOST {
        let percent = share * 100.0;
        return Err(format!("nobody was served, and the health service said SERVING for {percent:.0} % of it"));
    }
    Ok(())
}

/// How much of the time in which nobody was served any more the health service said SERVING.
fn serving_unserved(lane: &Lane, began: Instant, end: Instant) -> f64 {
    let quiet = lane.load.served_between(began, end).last().copied().unwrap_or(began) + SLOW_HEALTH;
    if end.saturating_duration_since(quiet) < Duration::from_millis(500) {
        return 0.0;
    }
    lane.load.share_serving(quiet, end)
}

impl Outcome {
    /// Whether it was back in time, and the health service said that it was away.
    pub fn is_good(&self) -> bool {
        self.back <= BACK && self.serving <= SERVING_MOST
    }
}

/// The daemon is the same process, and ready within [`BACK`]. A fault that happens once may hit after the clients' next
/// certificates were signed: they are served, and the token is tested again after that.
pub async fn still_there(lane: &mut Lane) -> Result<(), String> {
    let began = Instant::now();
    loop {
        if !lane.running() {
            return Err("the daemon ended".to_owned());
        }
        let ready = lane.get("/readyz").await;
        if ready.starts_with("HTTP/1.0 200") {
            return Ok(());
        }
        if began.elapsed() > BACK {
            return Err(format!("the daemon serves, and is not ready: {ready}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
