//! The controllers of a cluster that a mesh needs: Deployments, StatefulSets, EndpointSlices, and the addresses of
//! Services.
//!
//! They take the place of kube-controller-manager and kube-proxy, whose build would take longer than all scenarios.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{ConfigMap, Namespace, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::node::Node;

/// Pause between two looks at the API server.
const PERIOD: Duration = Duration::from_millis(300);
/// The label with the hash of the template that a pod was made of.
const TEMPLATE: &str = "pod-template-hash";

/// Controllers that run until they are dropped.
pub struct Controllers(tokio::task::JoinHandle<()>);

impl Drop for Controllers {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Controllers {
    pub fn start(node: &Arc<Node>) -> Self {
        let (client, ca) = (node.client.clone(), node.server.ca.clone());
        Self(tokio::spawn(async move {
            let mut rules = String::new();
            loop {
                tokio::time::sleep(PERIOD).await;
                let round = round(&client, &ca, &mut rules);
                // Without the API server, and after a conflict, the next round continues.
                let _next_round = tokio::time::timeout(Duration::from_secs(10), round).await;
            }
        }))
    }
}

async fn round(client: &Client, ca: &str, rules: &mut String) -> Result<(), kube::Error> {
    let all = ListParams::default();
    let pods = Api::<Pod>::all(client.clone()).list(&all).await?.items;
    for deployment in Api::<Deployment>::all(client.clone()).list(&all).await? {
        roll_deployment(client, &deployment, &pods).await?;
    }
    for set in Api::<StatefulSet>::all(client.clone()).list(&all).await? {
        roll_set(client, &set, &pods).await?;
    }
    let services = Api::<Service>::all(client.clone()).list(&all).await?.items;
    let mut slices = Vec::new();
    for service in services.iter().filter(|service| service.metadata.deletion_timestamp.is_none()) {
        slices.extend(publish(client, service, &pods).await?);
    }
    redirect(client, &services, &slices, rules).await?;
    for namespace in Api::<Namespace>::all(client.clone()).list(&all).await? {
        furnish(client, &namespace.name_any(), ca).await?;
    }
    orphans(client, &pods).await
}

/// What every namespace has: an account, and the API server's CA.
async fn furnish(client: &Client, namespace: &str, ca: &str) -> Result<(), kube::Error> {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    if accounts.get_opt("default").await?.is_none() {
        let account = ServiceAccount { metadata: named("default"), ..ServiceAccount::default() };
        accounts.create(&PostParams::default(), &account).await?;
    }
    let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    if maps.get_opt("kube-root-ca.crt").await?.is_none() {
        let data = BTreeMap::from([("ca.crt".to_owned(), ca.to_owned())]);
        let map = ConfigMap { metadata: named("kube-root-ca.crt"), data: Some(data), ..ConfigMap::default() };
        maps.create(&PostParams::default(), &map).await?;
    }
    Ok(())
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

fn hash(template: &Value) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, template.to_string().as_bytes());
    token::key::hex(&digest.as_ref()[..5])
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_true = |wanted: &str| {
        conditions.is_some_and(|all| all.iter().any(|each| each.type_ == wanted && each.status == "True"))
    };
    pod.metadata.deletion_timestamp.is_none() && is_true("Ready")
}

fn is_of(pod: &Pod, owner: Option<&str>) -> bool {
    pod.owner_references().iter().any(|reference| Some(reference.uid.as_str()) == owner)
}

/// A pod of a template, owned by an object.
async fn create(
    client: &Client,
    owner: &Value,
    kind: &str,
    name: Value,
    labels: &[(&str, String)],
    volumes: &[Value],
) -> Result<(), kube::Error> {
    let mut pod = owner["spec"]["template"].clone();
    let namespace = owner["metadata"]["namespace"].as_str().unwrap();
    let metadata = pod["metadata"].as_object_mut().unwrap();
    metadata.extend(name.as_object().unwrap().clone());
    metadata.insert("namespace".into(), namespace.into());
    for (label, value) in labels {
        metadata["labels"][*label] = value.clone().into();
    }
    metadata.insert(
        "ownerReferences".into(),
        json!([{
            "apiVersion": "apps/v1", "kind": kind, "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
            "controller": true,
        }]),
    );
    if !volumes.is_empty() {
        let mut all = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        all.extend(volumes.iter().cloned());
        pod["spec"]["volumes"] = all.into();
    }
    let pod: Pod = serde_json::from_value(pod).unwrap();
    Api::<Pod>::namespaced(client.clone(), namespace).create(&PostParams::default(), &pod).await?;
    Ok(())
}

async fn delete(client: &Client, pod: &Pod) -> Result<(), kube::Error> {
    let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap());
    match api.delete(&pod.name_any(), &DeleteParams::default()).await {
        Err(error) if !matches!(&error, kube::Error::Api(status) if status.code == 404) => Err(error),
        _ => Ok(()),
    }
}

/// Pods of a Deployment: new ones first, then one of the old less for each new one that is ready.
async fn roll_deployment(client: &Client, deployment: &Deployment, pods: &[Pod]) -> Result<(), kube::Error> {
    let value = serde_json::to_value(deployment).unwrap();
    let wanted = value["spec"]["replicas"].as_u64().unwrap_or(1) as usize;
    let revision = hash(&value["spec"]["template"]);
    let uid = deployment.metadata.uid.as_deref();
    let mine = pods.iter().filter(|pod| is_of(pod, uid) && pod.metadata.deletion_timestamp.is_none());
    let (new, old): (Vec<&Pod>, Vec<&Pod>) = mine.partition(|pod| pod.labels().get(TEMPLATE) == Some(&revision));
    let ready = new.iter().filter(|pod| is_ready(pod)).count();
    let name = deployment.name_any();
    for _ in new.len()..wanted {
        let prefix = json!({"generateName": format!("{name}-{revision}-")});
        create(client, &value, "Deployment", prefix, &[(TEMPLATE, revision.clone())], &[]).await?;
    }
    for pod in new.iter().skip(wanted) {
        delete(client, pod).await?;
    }
    if ready >= wanted {
        for pod in &old {
            delete(client, pod).await?;
        }
    }
    let available = ready + old.iter().filter(|pod| is_ready(pod)).count();
    let text = |yes: bool| if yes { "True" } else { "False" };
    let status = json!({"status": {
        "observedGeneration": deployment.metadata.generation, "replicas": new.len() + old.len(),
        "updatedReplicas": new.len().min(wanted), "readyReplicas": available, "availableReplicas": available,
        "unavailableReplicas": wanted.saturating_sub(available),
        "conditions": [{"type": "Available", "status": text(available >= wanted)}],
    }});
    set_status::<Deployment>(client, deployment, &value, status).await
}

/// Pods of a StatefulSet: all at first, and replaced one by one, the last first.
async fn roll_set(client: &Client, set: &StatefulSet, pods: &[Pod]) -> Result<(), kube::Error> {
    let value = serde_json::to_value(set).unwrap();
    let wanted = value["spec"]["replicas"].as_u64().unwrap_or(1) as usize;
    let (name, revision) = (set.name_any(), hash(&value["spec"]["template"]));
    let uid = set.metadata.uid.as_deref();
    let find = |ordinal: usize| {
        let name = format!("{name}-{ordinal}");
        pods.iter().find(|pod| is_of(pod, uid) && pod.name_any() == name)
    };
    let is_new = |pod: &&Pod| pod.labels().get(TEMPLATE) == Some(&revision);
    let (mut updated, mut ready, mut may_replace) = (0, 0, true);
    for ordinal in (0..wanted).rev() {
        let Some(pod) = find(ordinal) else {
            let pod = format!("{name}-{ordinal}");
            let claims = value["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
            let volumes: Vec<Value> = claims
                .iter()
                .map(|claim| claim["metadata"]["name"].as_str().unwrap().to_owned())
                .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": format!("{claim}-{pod}")}}))
                .collect();
            let labels = [(TEMPLATE, revision.clone()), ("statefulset.kubernetes.io/pod-name", pod.clone())];
            create(client, &value, "StatefulSet", json!({"name": pod}), &labels, &volumes).await?;
            may_replace = false;
            continue;
        };
        ready += usize::from(is_ready(pod));
        if is_new(&pod) {
            updated += usize::from(pod.metadata.deletion_timestamp.is_none());
            may_replace &= is_ready(pod);
        } else if may_replace {
            may_replace = false;
            if pod.metadata.deletion_timestamp.is_none() {
                delete(client, pod).await?;
            }
        }
    }
    let all_new = updated == wanted;
    let status = json!({"status": {
        "observedGeneration": set.metadata.generation, "replicas": wanted, "readyReplicas": ready,
        "availableReplicas": ready, "updatedReplicas": updated, "updateRevision": revision,
        "currentRevision": if all_new { revision.clone() } else { "older".to_owned() },
        "currentReplicas": if all_new { wanted } else { wanted - updated },
    }});
    set_status::<StatefulSet>(client, set, &value, status).await
}

/// Writes the status of an object if it differs.
async fn set_status<K>(client: &Client, object: &K, value: &Value, status: Value) -> Result<(), kube::Error>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + serde::de::DeserializeOwned
        + serde::Serialize
        + Clone
        + std::fmt::Debug,
{
    let new = status["status"].as_object().unwrap();
    let same = |(key, new): (&String, &Value)| {
        let old = &value["status"][key];
        old == new
            || (old.is_null() && new == &json!(0))
            || key == "conditions" && old[0]["status"] == new[0]["status"] && old[0]["type"] == new[0]["type"]
    };
    if new.iter().all(same) {
        return Ok(());
    }
    let api = Api::<K>::namespaced(client.clone(), &object.namespace().unwrap());
    api.patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// An endpoint that may be used.
struct Ready {
    service: String,
    port: String,
    address: String,
    target: u64,
}

/// Keeps the EndpointSlice of a Service, and returns its ready endpoints.
async fn publish(client: &Client, service: &Service, pods: &[Pod]) -> Result<Vec<Ready>, kube::Error> {
    let value = serde_json::to_value(service).unwrap();
    let Some(selector) = value["spec"]["selector"].as_object() else { return Ok(vec![]) };
    let namespace = service.namespace().unwrap();
    let selected = pods.iter().filter(|pod| {
        pod.namespace().as_deref() == Some(&namespace)
            && selector.iter().all(|(key, value)| pod.labels().get(key).map(String::as_str) == value.as_str())
    });
    let (mut endpoints, mut ready) = (Vec::new(), Vec::new());
    let mut ports: HashMap<String, (Value, u64)> = HashMap::new();
    for pod in selected {
        let Some(address) = pod.status.as_ref().and_then(|status| status.pod_ip.clone()) else { continue };
        let terminating = pod.metadata.deletion_timestamp.is_some();
        let serving = is_ready(pod);
        let usable = serving || (!terminating && value["spec"]["publishNotReadyAddresses"] == true);
        endpoints.push(json!({
            "addresses": [address], "nodeName": super::node::NAME,
            "conditions": {"ready": usable, "serving": serving, "terminating": terminating},
            "targetRef": {"kind": "Pod", "name": pod.name_any(), "namespace": namespace, "uid": pod.uid()},
        }));
        let pod = serde_json::to_value(pod).unwrap();
        for port in value["spec"]["ports"].as_array().into_iter().flatten() {
            let name = port["name"].as_str().unwrap_or_default().to_owned();
            let Some(target) = target(port, &pod) else { continue };
            ports.insert(name.clone(), (port.clone(), target));
            if usable {
                let service = format!("{namespace}/{}", service.name_any());
                ready.push(Ready { service, port: name, address: address.clone(), target });
            }
        }
    }
    let mut listed: Vec<Value> = ports
        .iter()
        .map(|(name, (port, target))| {
            json!({"name": name, "port": target, "protocol": "TCP", "appProtocol": port["appProtocol"]})
        })
        .collect();
    listed.sort_by_key(|port| port["name"].to_string());
    let name = service.name_any();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": namespace, "labels": {
            "kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "mesh.test",
        }, "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": name, "uid": service.uid()}]},
        "endpoints": endpoints, "ports": listed,
    });
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), &namespace);
    let apply = PatchParams::apply("mesh.test").force();
    slices.patch(&name, &apply, &Patch::Apply(slice)).await?;
    Ok(ready)
}

/// The port of a pod that a port of a Service leads to.
fn target(port: &Value, pod: &Value) -> Option<u64> {
    match &port["targetPort"] {
        Value::Number(number) => number.as_u64(),
        Value::String(name) => {
            let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
            let mut ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
            ports.find(|port| port["name"] == name.as_str())?["containerPort"].as_u64()
        }
        _ => port["port"].as_u64(),
    }
}

/// Sends connections to the address of a Service to one of its endpoints.
async fn redirect(
    client: &Client,
    services: &[Service],
    ready: &[Ready],
    current: &mut String,
) -> Result<(), kube::Error> {
    let mut rules = String::new();
    for service in services {
        let value = serde_json::to_value(service).unwrap();
        let address = value["spec"]["clusterIP"].as_str().unwrap_or("None");
        if address == "None" || address.is_empty() {
            continue;
        }
        let name = format!("{}/{}", service.namespace().unwrap(), service.name_any());
        for port in value["spec"]["ports"].as_array().into_iter().flatten() {
            let port_name = port["name"].as_str().unwrap_or_default();
            let number = port["port"].as_u64().unwrap();
            let mut to: Vec<(String, u64)> = ready
                .iter()
                .filter(|ready| ready.service == name && ready.port == port_name)
                .map(|ready| (ready.address.clone(), ready.target))
                .collect();
            if name == "default/kubernetes" {
                to = api_server(client).await?;
            }
            let matches = format!("ip daddr {address} tcp dport {number}");
            if to.is_empty() {
                writeln!(rules, "    {matches} drop").unwrap();
                continue;
            }
            let each = to.iter().enumerate();
            let map: Vec<_> = each.map(|(at, (address, port))| format!("{at} : {address} . {port}")).collect();
            let (count, map) = (to.len(), map.join(", "));
            writeln!(rules, "    {matches} dnat ip addr . port to numgen random mod {count} map {{ {map} }}").unwrap();
        }
    }
    if rules != *current {
        let chain = |hook: &str| format!("  chain {hook} {{\n    type nat hook {hook} priority -100;\n{rules}  }}\n");
        // A refused connection instead of none: a drop in a nat chain would be forgotten with the first packet.
        let text = format!(
            "add table ip mesh\nflush table ip mesh\ntable ip mesh {{\n{}{}}}\n",
            chain("prerouting"),
            chain("output")
        );
        let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        nft.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success(), "{text}");
        *current = rules;
    }
    Ok(())
}

/// Where the API server itself is, from the EndpointSlice that it keeps.
async fn api_server(client: &Client) -> Result<Vec<(String, u64)>, kube::Error> {
    let slice = Api::<EndpointSlice>::namespaced(client.clone(), "default").get_opt("kubernetes").await?;
    let value = serde_json::to_value(slice).unwrap();
    let address = value["endpoints"][0]["addresses"][0].as_str().map(str::to_owned);
    let port = value["ports"][0]["port"].as_u64();
    Ok(address.zip(port).into_iter().collect())
}

/// Deletes pods whose owners are gone.
async fn orphans(client: &Client, pods: &[Pod]) -> Result<(), kube::Error> {
    let all = ListParams::default();
    let mut owners: Vec<Option<String>> = Vec::new();
    owners.extend(Api::<Deployment>::all(client.clone()).list(&all).await?.iter().map(ResourceExt::uid));
    owners.extend(Api::<StatefulSet>::all(client.clone()).list(&all).await?.iter().map(ResourceExt::uid));
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let references = pod.owner_references();
        if !references.is_empty() && !references.iter().any(|reference| owners.contains(&Some(reference.uid.clone()))) {
            delete(client, pod).await?;
        }
    }
    Ok(())
}
