//! One cell: a fault under load, its end, and everything that must hold meanwhile.
//!
//! - No bad certificate is released, and clients only get errors that an agent retries (`clients`).
//! - The daemon's process is the same before and after, and `/livez` succeeds all the time.
//! - While no certificates are issued, the health service reports NOT_SERVING.
//! - A PIN that the token rejected is tried once.
//! - The fault did occur, and the service recovers within two seconds of its end or, if the fault concerned the PIN, of
//!   the PIN file's change.
//!
//! That the log has a line for each signature is checked when the daemon has ended (`books`).

use std::time::{Duration, Instant};

use token::error::{Entry, Recovery};

use super::{
    lane::Lane,
    plan::{Lasts, Trigger},
};
use testkit::faulty::{once, until};

/// Maximum time after a fault's end until every client has a certificate.
pub const BACK: Duration = Duration::from_secs(2);

/// Duration of a fault of limited time.
const SECONDS: Duration = Duration::from_secs(3);

/// Duration of a permanent fault: the backoff reaches its maximum in less than half of it.
const FOR_GOOD: Duration = Duration::from_millis(4500);

/// Maximum wait for recovery before a cell fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Time after the last certificate during which the health service may still report SERVING.
const SLOW_HEALTH: Duration = Duration::from_secs(1);

/// Fraction of that time in which it may report SERVING: a token whose canary signs is ready for one real request,
/// which may fail.
const SERVING_MOST: f64 = 0.1;

/// Minimum time without another attempt of a rejected PIN.
const NO_RETRY: Duration = Duration::from_millis(1300);

/// Result of a cell.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub function: &'static str,
    pub code: Entry,
    pub lasts: Lasts,
    /// From the fault's end to the last client's first certificate.
    pub back: Duration,
    /// Certificates issued during the fault.
    pub served: usize,
    /// Fraction of the time without certificates in which the health service reported SERVING.
    pub serving: f64,
    /// Number of token hosts started because of the fault.
    pub hosts: usize,
    /// Whether the PIN file had to be rewritten.
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

    // Until the fault has occurred.
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
        // The fault also affects the next start of a token host.
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

/// While no certificates are issued, the health service must report it.
pub fn health_told(lane: &Lane, began: Instant, end: Instant) -> Result<(), String> {
    let share = serving_unserved(lane, began, end);
    if share > SERVING_MOST {
        let percent = share * 100.0;
        return Err(format!("nobody was served, and the health service said SERVING for {percent:.0} % of it"));
    }
    Ok(())
}

/// Fraction of the time without certificates in which the health service reported SERVING.
fn serving_unserved(lane: &Lane, began: Instant, end: Instant) -> f64 {
    let quiet = lane.load.served_between(began, end).last().copied().unwrap_or(began) + SLOW_HEALTH;
    if end.saturating_duration_since(quiet) < Duration::from_millis(500) {
        return 0.0;
    }
    lane.load.share_serving(quiet, end)
}

impl Outcome {
    /// Whether it recovered in time, and the health service reported the outage.
    pub fn is_good(&self) -> bool {
        self.back <= BACK && self.serving <= SERVING_MOST
    }
}

/// The daemon is the same process and ready within [`BACK`]. A fault that occurs once may do so after the clients' next
/// certificates were signed: they are served, and the token is probed again after that.
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
