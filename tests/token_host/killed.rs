//! Hosts that die, hang or lose their daemon.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use istio_hsm_ca::token_pool::Phase;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::harness::{Mill, PATIENCE, Site, host_of, hosts_of, is, pool};

/// Runs requests during an operation; each must succeed.
async fn under_load(mill: &Arc<Mill>, least: usize, during: impl Future<Output = ()>) -> usize {
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (mill, over) = (Arc::clone(mill), Arc::clone(&over));
            tokio::spawn(async move {
                let mut done = 0;
                while !over.load(std::sync::atomic::Ordering::Relaxed) || done < least {
                    mill.issue().await.unwrap_or_else(|error| panic!("request {done}: {error}"));
                    done += 1;
                }
                done
            })
        })
        .collect();
    during.await;
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut done = 0;
    for caller in callers {
        done += caller.await.unwrap();
    }
    done
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_host_costs_nothing_that_could_wait() {
    let site = Site::new();
    let mut settings = pool(vec![site.token("killed")]);
    settings.recovery_wait = PATIENCE;
    let mill = Arc::new(Mill::proven(settings, &site.issuer).await);
    mill.issue().await.unwrap();
    let mut kills = 0;
    let done = under_load(&mill, 20, async {
        // A fast host may have no requests when it is killed.
        while kills < 3 || (mill.snapshot(0).retried == 0 && kills < 30) {
            pause(200).await;
            mill.until("serving", is(0, Phase::Serving)).await;
            let host = host_of("killed");
            kill(host, Signal::SIGKILL).unwrap();
            kills += 1;
            while hosts_of(std::process::id(), "killed").iter().all(|pid| *pid == host.as_raw().unsigned_abs()) {
                pause(5).await;
            }
        }
    })
    .await;
    let snapshot = mill.snapshot(0);
    assert_eq!((snapshot.hosts, snapshot.wrong, snapshot.in_flight), (kills + 1, 0, 0), "{snapshot:?}");
    assert!(snapshot.signed > done.try_into().unwrap() && snapshot.retried > 0, "{snapshot:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_host_is_replaced_under_load_and_idle() {
    let site = Site::new();
    let mut host = site.host_settings();
    host.call_timeout = Duration::from_secs(2);
    let mut token = site.token_with("stopped", host);
    token.keep_alive = Duration::from_millis(500);
    let mut settings = pool(vec![token]);
    settings.recovery_wait = PATIENCE;
    let mill = Mill::proven(settings, &site.issuer).await;
    mill.issue().await.unwrap();
    let stopped = host_of("stopped");
    kill(stopped, Signal::SIGSTOP).unwrap();
    mill.issue().await.unwrap();
    assert_eq!((mill.snapshot(0).hung, mill.snapshot(0).hosts), (1, 2));
    // Without requests, the keep-alive detects it.
    mill.until("serving", is(0, Phase::Serving)).await;
    kill(host_of("stopped"), Signal::SIGSTOP).unwrap();
    mill.until("down", is(0, Phase::Down)).await;
    mill.issue().await.unwrap();
    assert_eq!((mill.snapshot(0).hung, mill.snapshot(0).hosts), (2, 3));
    assert_eq!(hosts_of(std::process::id(), "stopped").len(), 1);
    mill.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tokens_share_the_work_and_one_is_enough() {
    let (left, right) = (Site::new(), Site::new());
    let mut settings = pool(vec![left.token("left"), right.token("right")]);
    settings.recovery_wait = PATIENCE;
    let mill = Arc::new(Mill::proven(settings, &left.issuer).await);
    under_load(&mill, 50, pause(200)).await;
    let before = [mill.snapshot(0).signed, mill.snapshot(1).signed];
    assert!(before.iter().all(|signed| *signed > 0), "{before:?}");
    mill.until("serving", |health| is(0, Phase::Serving)(health) && is(1, Phase::Serving)(health)).await;
    // One token, including its library's configuration, becomes unavailable and comes back.
    let (conf, away) = (right.directory.conf(), right.directory.path().join("away"));
    under_load(&mill, 50, async {
        fs::rename(&conf, &away).unwrap();
        kill(host_of("right"), Signal::SIGKILL).unwrap();
        mill.until("down", is(1, Phase::Down)).await;
        pause(500).await;
        assert!(mill.pool.health().borrow().is_ready());
    })
    .await;
    assert!(mill.snapshot(0).signed > before[0]);
    assert_eq!(mill.snapshot(0).hosts, 1);
    let reason = mill.pool.health().borrow().reason();
    assert!(reason.starts_with("right: "), "{reason}");
    fs::rename(&away, &conf).unwrap();
    under_load(&mill, 1, async {
        mill.until("serving again", is(1, Phase::Serving)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_requests_wait_for_a_while_and_no_longer() {
    let site = Site::new();
    let mut settings = pool(vec![site.token("gone")]);
    settings.recovery_wait = Duration::from_millis(500);
    let mill = Mill::proven(settings, &site.issuer).await;
    mill.issue().await.unwrap();
    fs::rename(site.directory.conf(), site.directory.path().join("away")).unwrap();
    kill(host_of("gone"), Signal::SIGKILL).unwrap();
    mill.until("down", is(0, Phase::Down)).await;
    let began = Instant::now();
    let error = mill.issue().await.unwrap_err();
    assert!(matches!(error, istio_hsm_ca::signer::SignError::Unavailable(_)), "{error}");
    assert!((500..5000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    let error = mill.issue_within(Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(error, istio_hsm_ca::signer::SignError::Deadline);
    fs::rename(site.directory.path().join("away"), site.directory.conf()).unwrap();
    mill.until("up", |health| health.is_ready()).await;
    mill.issue().await.unwrap();
    mill.end().await;
}

/// Hosts with this name, whatever their parent.
fn anywhere(name: &str) -> Vec<i32> {
    let argument = format!("--child\0{name}\0");
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        command.ends_with(&argument).then_some(pid)
    });
    processes.collect()
}

const DAEMON: &str = "TEST_TOKEN_HOST_DAEMON";

/// The daemon that is killed; started only by the test below.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a helper process"]
async fn child_daemon() {
    let Some(name) = std::env::var_os(DAEMON) else { return };
    let site = Site::new();
    let mill = Arc::new(Mill::proven(pool(vec![site.token(name.to_str().unwrap())]), &site.issuer).await);
    mill.issue().await.unwrap();
    under_load(&mill, usize::MAX, async {
        pause(100).await;
        println!("at work in {}", site.directory.path().display());
    })
    .await;
}

#[test]
fn no_host_outlives_its_daemon() {
    for (name, stop) in [("orphan-running", false), ("orphan-stopped", true)] {
        let name = format!("{name}-{}", std::process::id());
        let mut daemon = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::child_daemon", "--ignored", "--nocapture"])
            .env(DAEMON, &name)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(daemon.stdout.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.into_iter().find(|line| line.contains("at work in ")).unwrap();
        let hosts = anywhere(&name);
        assert_eq!(hosts.len(), 1);
        if stop {
            kill(Pid::from_raw(hosts[0]), Signal::SIGSTOP).unwrap();
        }
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let began = Instant::now();
        while !anywhere(&name).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(5), "{name} lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
        // It was killed and could not clean up.
        let directory = PathBuf::from(line.split_once("at work in ").unwrap().1.trim());
        let _already_gone = fs::remove_dir_all(directory);
    }
}
