//! More requests than a token can sign: priorities, retryable errors, and requests that never reach the token.
//!
//! The token is slow on command, and its module records what the CA key signs, and when.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::telemetry::Scraped;
use testkit::{
    daemon::{Ask, Daemon, Site},
    faulty::{Control, MODULE},
    plug_in::PlugIn,
};

/// The only identity with high priority.
const ISTIOD: &str = "spiffe://cluster.local/ns/istio-system/sa/istiod";

/// Number of requests that the daemon sends in advance to a host with one session.
const WINDOW: f64 = 32.0;

/// One identity has high priority; deadlines are long enough for busy machines.
fn two_classes() -> String {
    format!("[ca]\nfirst_class = [\"{ISTIOD}\"]\n[listen.limits]\nrequest_timeout = \"60s\"")
}

/// A daemon with a token that can be slowed down.
struct Slow {
    site: Site,
    control: Control,
    daemon: Daemon,
}

impl Slow {
    fn new(more: &str) -> Self {
        let site = Site::new(&PlugIn::intermediate());
        let control = Control::new(site.softhsm.path());
        control.works();
        let section = control.section(&MODULE, &site, "");
        let daemon = site.serve(&format!("{more}\n{section}"));
        Self { site, control, daemon }
    }

    /// Sends concurrent requests, a hundred per connection.
    async fn send(&self, asks: Vec<Ask>) -> Vec<JoinHandle<Result<Vec<String>, Status>>> {
        let mut tasks = Vec::new();
        let mut channel = self.daemon.connect(None).await;
        for (number, ask) in asks.into_iter().enumerate() {
            if number % 100 == 99 {
                channel = self.daemon.connect(None).await;
            }
            tasks.push(tokio::spawn(ask.send(channel.clone())));
        }
        tasks
    }

    fn bulk(&self, count: usize) -> Vec<Ask> {
        (0..count).map(|_| self.daemon.ask()).collect()
    }

    /// The subjects of certificates that the CA key signed, in order, after a mark of the records.
    fn signed_since(&self, mark: u64) -> Vec<String> {
        let (id, intents) = (self.site.key_id(), self.site.intents());
        let signed = self.control.books_since(mark).signed;
        let inputs = signed.iter().filter(|(key, _)| *key == id).map(|(_, input)| input);
        inputs.map(|input| intents[input]["caller"]["identity"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn priority_requests_go_first_and_others_age() {
    let slow = Slow::new(&two_classes());
    let first_token = slow.site.token("istio-system", "istiod");
    let mark = slow.control.mark();
    // Two calls per signature.
    slow.control.breaks("C_Sign delay=8");
    // Whatever a workload sends.
    let bulk = slow.bulk(240).into_iter().map(|ask| {
        ask.header("x-priority", "first")
            .header("priority", "u=0")
            .header("x-class", ISTIOD)
            .metadata("Priority", "first")
            .metadata("Class", "first")
    });
    let bulk = slow.send(bulk.collect()).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let first = slow.send((0..40).map(|_| Ask::new(ISTIOD).token(&first_token)).collect()).await;
    for task in bulk.into_iter().chain(first) {
        task.await.unwrap().expect("a request failed permanently");
    }
    let order = slow.signed_since(mark);
    assert_eq!(order.len(), 280);
    let is_first: Vec<bool> = order.iter().map(|identity| identity == ISTIOD).collect();
    let begin = is_first.iter().position(|first| *first).unwrap();
    let end = is_first.iter().rposition(|first| *first).unwrap();
    // From the first one on: three of high priority for each one of normal priority, except for those that came a
    // little later.
    let between = is_first[begin..end].iter().filter(|first| !**first).count();
    assert!((8..=30).contains(&between), "{between} of the bulk between forty of the first class");
    assert!(order.len() - end > 60, "high priority waited for normal: {begin}..{end} of {}", order.len());

    // Workloads cannot obtain the name with high priority, either.
    let status = slow.daemon.send(Ask::new(ISTIOD).token(&slow.daemon.token)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_the_first_class_does_not_starve_the_bulk() {
    let slow = Slow::new(&two_classes());
    let first_token = slow.site.token("istio-system", "istiod");
    let mark = slow.control.mark();
    slow.control.breaks("C_Sign delay=8");
    let first = slow.send((0..200).map(|_| Ask::new(ISTIOD).token(&first_token)).collect()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let bulk = slow.send(slow.bulk(20)).await;
    for task in bulk.into_iter().chain(first) {
        task.await.unwrap().unwrap();
    }
    let order = slow.signed_since(mark);
    let last_bulk = order.iter().rposition(|identity| identity != ISTIOD).unwrap();
    assert!(last_bulk < order.len() - 30, "normal priority starved: {last_bulk} of {}", order.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_requests_never_reach_the_token() {
    let slow = Slow::new("");
    // Deadlines that pass in the daemon's queue and at the host.
    let mark = slow.control.mark();
    slow.control.breaks("C_Sign delay=100");
    let late: Vec<Ask> = slow.bulk(150).into_iter().map(|ask| ask.header("grpc-timeout", "1500m")).collect();
    let mut passed = 0;
    for task in slow.send(late).await {
        if let Err(status) = task.await.unwrap() {
            assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
            passed += 1;
        }
    }
    assert!(passed > 130, "{passed}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let reached = slow.signed_since(mark).len();
    assert!(reached <= 12, "{reached} of 150 reached a token that can do seven in that time");

    // Callers that disconnect without a deadline: requests that the host already has are not signed, either.
    let mark = slow.control.mark();
    let tasks = slow.send(slow.bulk(150)).await;
    let began = Instant::now();
    while slow.signed_since(mark).is_empty() && began.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let at_the_host = Scraped::new(&slow.daemon).of("istio_hsm_ca_token_in_flight", &[]);
    assert_eq!(at_the_host, Some(WINDOW), "the host's window is not full");
    tasks.iter().for_each(JoinHandle::abort);
    let reached = slow.signed_since(mark).len();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    slow.control.works();
    slow.daemon.send(slow.daemon.ask()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // The one in progress, one that was taken before the host was notified, and the last one.
    let more = slow.signed_since(mark).len() - reached;
    assert!((1..=3).contains(&more), "{more} reached the token when their callers had left, {reached} before");
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_its_places_the_daemon_says_come_again_and_then_serves_everybody() {
    let slow = Slow::new("[listen.limits]\nrequests = 40");
    slow.control.breaks("C_Sign delay=4");
    let began = Instant::now();
    let mut waiting = 150;
    let mut reported = 0;
    while waiting > 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "{waiting} were refused for good");
        let mut again = 0;
        for task in slow.send(slow.bulk(waiting)).await {
            match task.await.unwrap() {
                Ok(_) => {}
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                    again += 1;
                }
            }
        }
        reported += again;
        waiting = again;
    }
    assert!(reported > 0, "150 requests found room in 40 places");
    is_reported(&slow.daemon, "overload", reported);
}

/// Metrics and the status page show this number of rejections for one reason.
fn is_reported(daemon: &Daemon, reason: &str, refusals: usize) {
    let counted = Scraped::new(daemon).of("istio_hsm_ca_requests_total", &[("outcome", reason)]);
    assert_eq!(counted.map(|count| count.to_string()), Some(refusals.to_string()), "{reason}");
    let page = daemon.status_page();
    // The reason's bar, and the newest rejections.
    assert!(page.contains(&format!("<span>{reason}</span><span>{refusals}</span>")), "{reason} {refusals}: {page}");
    assert!(page.contains(&format!("class=\"w\">{reason}</td>")), "{reason}: {page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn full_queue_refuses_its_priority_only() {
    const QUEUE: usize = 8;
    let slow = Slow::new(&format!(
        "[ca]\nfirst_class = [\"{ISTIOD}\"]\nqueue = {QUEUE}\n[listen.limits]\nrequest_timeout = \"60s\""
    ));
    let first_token = slow.site.token("istio-system", "istiod");
    let first = |count: usize| (0..count).map(|_| Ask::new(ISTIOD).token(&first_token)).collect::<Vec<_>>();
    let of_class = async |tasks: Vec<JoinHandle<Result<Vec<String>, Status>>>| {
        let (mut served, mut refused) = (0, 0);
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => served += 1,
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                    assert!(status.message().starts_with("the CA is overloaded (request "), "{status}");
                    refused += 1;
                }
            }
        }
        (served, refused)
    };
    slow.control.breaks("C_Sign delay=50");
    // Normal priority fills the host and its own queue, but not the queue of high priority.
    let bulk = slow.send(slow.bulk(150)).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let firsts = slow.send(first(40)).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let scraped = Scraped::new(&slow.daemon);
    let queue = "istio_hsm_ca_queue_length";
    assert!(scraped.of(queue, &[("class", "bulk")]).unwrap() <= 8.0);
    let (bulk, firsts) = (of_class(bulk).await, of_class(firsts).await);
    println!("served and refused: bulk {bulk:?}, first class {firsts:?}");
    assert!(bulk.1 >= 80 && bulk.0 >= QUEUE, "{bulk:?}");
    assert!(firsts.1 >= 20 && firsts.0 >= QUEUE, "{firsts:?}");
    assert_eq!((bulk.0 + bulk.1, firsts.0 + firsts.1), (150, 40));
    is_reported(&slow.daemon, "queue_full", bulk.1 + firsts.1);
    // A retry succeeds.
    slow.control.works();
    for (served, refused) in
        [of_class(slow.send(slow.bulk(QUEUE)).await).await, of_class(slow.send(first(QUEUE)).await).await]
    {
        assert_eq!((served, refused), (QUEUE, 0));
    }
}
