//! Clusters on the status page. Pure.

use std::time::SystemTime;

use super::{
    ClusterEntry, ControllerEntry, Leader,
    text::{since, span, time},
};

/// A row: an API server, or a controller of its cluster.
pub(super) struct Row {
    pub(super) cluster: String,
    pub(super) what: &'static str,
    pub(super) state: String,
    pub(super) class: &'static str,
    pub(super) success: String,
    pub(super) error: Option<Failure>,
}

/// The last failure.
pub(super) struct Failure {
    pub(super) at: String,
    pub(super) reason: String,
}

/// Describes which replica leads.
pub(super) fn leader(leader: Option<&Leader>) -> String {
    match leader {
        None => "no controller is configured that one replica runs for all".to_owned(),
        Some(Leader::Here) => "this replica leads: its controllers run".to_owned(),
        Some(Leader::Elsewhere { holder: Some(holder) }) => {
            format!("{holder} holds the Lease: the controllers of this replica stand by")
        }
        Some(Leader::Elsewhere { holder: None }) => "this replica does not lead: its controllers stand by".to_owned(),
    }
}

/// The rows of all clusters, API servers first.
pub(super) fn rows(clusters: &[ClusterEntry], now: SystemTime) -> Vec<Row> {
    clusters.iter().flat_map(|cluster| [server(cluster)].into_iter().chain(controllers(cluster, now))).collect()
}

fn server(cluster: &ClusterEntry) -> Row {
    Row {
        cluster: cluster.name.clone(),
        what: "API server",
        state: cluster.trouble.clone().unwrap_or_else(|| "answers".to_owned()),
        class: if cluster.trouble.is_none() { "good" } else { "bad" },
        success: "–".to_owned(),
        error: None,
    }
}

fn controllers(cluster: &ClusterEntry, now: SystemTime) -> impl Iterator<Item = Row> {
    cluster.controllers.iter().map(move |controller| controller_row(cluster, controller, now))
}

fn controller_row(cluster: &ClusterEntry, controller: &ControllerEntry, now: SystemTime) -> Row {
    let (state, class) = match (controller.running, &controller.trouble) {
        (false, _) => ("stands by".to_owned(), "soft"),
        (true, Some(trouble)) => (trouble.clone(), "bad"),
        (true, None) => ("all is as it should be".to_owned(), "good"),
    };
    Row {
        cluster: cluster.name.clone(),
        what: controller.name,
        state,
        class,
        success: controller
            .last_success
            .map_or_else(|| "none yet".to_owned(), |at| format!("{} ago", span(since(at, now)))),
        error: controller.last_error.clone().map(|(at, reason)| Failure { at: time(at), reason }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_line_says_whether_it_runs_and_what_failed() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let controller = |running, trouble: Option<&str>| ControllerEntry {
            name: "root_configmap",
            running,
            trouble: trouble.map(str::to_owned),
            last_success: running.then(|| now - Duration::from_secs(5)),
            last_error: Some((now - Duration::from_secs(60), "x/y: forbidden".to_owned())),
        };
        let cluster = ClusterEntry {
            name: "east".to_owned(),
            trouble: Some("it is away".to_owned()),
            controllers: vec![
                controller(true, None),
                controller(true, Some("x/y: forbidden")),
                controller(false, None),
            ],
        };
        let rows = rows(&[cluster], now);
        let shown: Vec<_> =
            rows.iter().map(|row| (row.what, row.state.as_str(), row.class, row.success.as_str())).collect();
        let expected = [
            ("API server", "it is away", "bad", "–"),
            ("root_configmap", "all is as it should be", "good", "5 seconds ago"),
            ("root_configmap", "x/y: forbidden", "bad", "5 seconds ago"),
            ("root_configmap", "stands by", "soft", "none yet"),
        ];
        assert_eq!(shown, expected);
        assert_eq!(rows[1].error.as_ref().unwrap().at, "2027-01-15T07:59:00Z");
    }
}
