//! The configured clusters: whether their API servers answer, and whether the daemon may do there what it is to do.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};

use super::finding::{Finding, Findings};
use crate::{
    config::Config,
    daemon::setup,
    kubernetes::{
        Cluster, Clusters,
        cluster::chain,
        permissions::{self, Permission},
    },
};

/// How long an API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at every cluster.
pub(super) fn findings(config: &Config) -> anyhow::Result<Vec<Finding>> {
    let Some(settings) = &config.kubernetes else { return Ok(Vec::new()) };
    let mut found = Findings::about("kubernetes");
    if settings.clusters.iter().any(|cluster| cluster.intermediate.is_some())
        && setup::bundle(config).is_ok_and(|bundle| !bundle.issuer().has_room_for_intermediate())
    {
        found.error(
            "[kubernetes.cluster.intermediate]: the CA's certificate, or one above it, has a path length that forbids \
             a CA below it, as the certificates of Istio's own tools have",
            "have a certificate made with a path length of 1 or more, or none, and `install` it; or leave the section out",
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match Clusters::new(settings, &config.ca.trust_domains).await {
            Ok(clusters) => {
                for (index, cluster) in clusters.iter().enumerate() {
                    let mut needed = permissions::of_cluster(cluster.settings());
                    if let Some(namespace) = clusters.namespace().filter(|_| index == 0) {
                        needed.extend(permissions::of_daemon(settings, namespace));
                    }
                    found.extend(look(cluster, &needed).await);
                }
            }
            Err(errors) => errors.iter().for_each(|error| found.failed(error, "mend it in [kubernetes]")),
        }
    });
    Ok(found.into_vec())
}

async fn look(cluster: &Arc<Cluster>, needed: &[Permission]) -> Vec<Finding> {
    let mut found = Findings::about(format!("cluster {}", cluster.name()));
    let client = cluster.client();
    match tokio::time::timeout(PATIENCE, client.apiserver_version()).await {
        Ok(Ok(version)) => found.ok(format!("the API server answers ({})", version.git_version)),
        Ok(Err(error)) => {
            found.error(
                format!("the API server refuses or is away: {}", chain(&error)),
                "see its address, and the credentials, in the kubeconfig; `serve` keeps trying",
            );
            return found.into_vec();
        }
        Err(_) => {
            found.error(
                format!("the API server does not answer within {} s", PATIENCE.as_secs()),
                "see its address in the kubeconfig, and network policies; `serve` keeps trying",
            );
            return found.into_vec();
        }
    }
    let mut allowed = 0_usize;
    for permission in needed {
        match missing(&client, permission).await {
            Ok(verbs) if verbs.is_empty() => allowed += 1,
            Ok(verbs) => {
                let lacking = Permission { verbs: &[], ..permission.clone() };
                found.error(
                    format!("{} needs what it may not: {}{lacking}", permission.feature, verbs.join(", ")),
                    "bind a role with that rule to the daemon's account (the chart has one for each feature), or leave the \
                     feature out",
                );
            }
            Err(error) => {
                found.error(
                    format!("cannot ask what is allowed: {}", chain(&error)),
                    "let the account create selfsubjectaccessreviews, as Kubernetes does by default",
                );
                return found.into_vec();
            }
        }
    }
    if allowed == needed.len() {
        found.ok(format!("{allowed} permissions that the configuration needs are there"));
    }
    found.into_vec()
}

/// The verbs that are not allowed.
async fn missing(client: &Client, permission: &Permission) -> Result<Vec<&'static str>, kube::Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let (resource, subresource) = match permission.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (permission.resource, None),
    };
    let mut missing = Vec::new();
    for verb in permission.verbs {
        let attributes = ResourceAttributes {
            group: Some(permission.group.to_owned()),
            name: permission.name.clone(),
            namespace: permission.namespace.clone(),
            resource: Some(resource.to_owned()),
            subresource: subresource.clone(),
            verb: Some((*verb).to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = reviews.create(&PostParams::default(), &review).await?;
        if !answer.status.is_some_and(|status| status.allowed) {
            missing.push(*verb);
        }
    }
    Ok(missing)
}
