//! A wall clock that is wrong, at run time and at the start: what `serve` believes, and how an operator gets it to issue
//! again.

use std::{thread::sleep, time::Duration};

use testkit::{
    daemon::{Daemon, Site},
    plug_in::PlugIn,
    wait::eventually_blocking,
};

/// Waits until the readiness report contains a text.
fn wait_report(daemon: &Daemon, text: &str) -> String {
    eventually_blocking(format!("{text:?} in the report"), || {
        let (status, report) = daemon.get("/readyz");
        (status == 503 && report.contains(text)).then_some(report)
    })
}

fn renewals(daemon: &Daemon) -> usize {
    daemon.lines().iter().filter(|line| line["message"] == "the serving certificate was renewed").count()
}

#[test]
fn serving_certificate_is_renewed_once_a_clock_that_jumped_is_back() {
    let site = Site::new(&PlugIn::intermediate());
    site.set_clock("+0");
    let daemon = site.serve("");
    let before = renewals(&daemon);
    site.set_clock("+300d");
    let report =
        wait_report(&daemon, "it has expired: the serving certificate was not issued: the clock jumped forward");
    assert!(report.contains("300 days"), "{report}");
    site.set_clock("+0");
    daemon.wait_ready();
    eventually_blocking("a renewal", || (renewals(&daemon) > before).then_some(()));
    let report = daemon.get("/readyz").1;
    assert!(!report.contains("jumped"), "{report}");
}

#[test]
fn jumps_of_less_than_a_day_are_not_believed_without_end() {
    let site = Site::new(&PlugIn::intermediate());
    site.set_clock("+0");
    let daemon = site.serve("");
    site.set_clock("+20h");
    wait_report(&daemon, "the clock jumped by");
    daemon.wait_ready();
    for offset in ["+40h", "+60h"] {
        site.set_clock(offset);
        wait_report(&daemon, "the clock jumped forward by");
        sleep(Duration::from_secs(3));
        assert_eq!(daemon.get("/readyz").0, 503, "{offset} was believed");
    }
    site.set_clock("+20h");
    daemon.wait_ready();
}

#[test]
fn starts_with_a_wrong_clock_are_refused_until_it_is_confirmed_and_after_that_too() {
    let site = Site::new(&PlugIn::intermediate());
    site.set_clock("+0");
    drop(site.serve(""));
    site.set_clock("+29d");
    drop(site.serve(""));
    // Not from the record of that start.
    site.set_clock("+58d");
    wait_report(&site.spawn(""), "ahead of the trusted time");

    site.set_clock("+0");
    let daemon = site.spawn("");
    let report = wait_report(&daemon, "behind the newest record");
    drop(daemon);
    let (_, command) = report.split_once("run `istio-hsm-ca ").unwrap();
    let (command, _) = command.split_once('`').unwrap();
    let (arguments, reason) = command.split_once(" --reason ").unwrap();
    let reason = ["--reason", reason.trim_matches('\'')];
    let arguments: Vec<_> = arguments.split(' ').chain(reason).collect();
    let output = site.run(&arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    drop(site.serve(""));

    site.set_clock("+300d");
    wait_report(&site.spawn(""), "ahead of the trusted time");
    site.set_clock("+0");
    let daemon = site.serve("");
    daemon.wait_line(|line| line["message"].as_str().is_some_and(|text| text.contains("an operator confirmed")));
}
