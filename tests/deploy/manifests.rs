//! Compares deploy/manifests with the program.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use istio_hsm_ca::{config::Config, kubernetes::permissions};
use serde_json::Value;

use crate::{
    chart::values,
    rendered::{all, list, objects, of_kind, texts},
    tools::template,
};

/// Name of a values file, and the objects that the chart renders from it.
type Rendering = (String, Vec<Value>);

/// Checks of every rendering.
const CHECKS: [(&str, fn(&[Rendering])); 8] = [
    ("containers_are_restricted", containers_are_restricted),
    ("daemon_sees_neither_pin_nor_module", daemon_sees_neither_pin_nor_module_and_hosts_see_no_api_server),
    ("hosts_allow_what_the_daemon_signs_and_no_more", hosts_allow_what_the_daemon_signs_and_no_more),
    ("manifests_hold_no_secret", manifests_hold_no_secret),
    ("program_accepts_rendered_configurations", program_accepts_rendered_configurations),
    ("roles_grant_exactly_what_the_program_needs", roles_grant_exactly_what_the_program_needs),
    ("rules_name_their_objects_where_possible", rules_name_their_objects_where_possible),
    ("trials_carry_a_warning", trials_carry_a_warning),
];

#[test]
fn committed_manifests_pass_every_check() {
    for (name, check) in CHECKS {
        println!("{name}");
        check(&all());
    }
}

#[test]
#[ignore = "needs Helm: make test-deploy"]
fn renderings_of_all_values_pass_every_check() {
    let renderings = every();
    for (name, check) in CHECKS {
        println!("{name}");
        check(&renderings);
    }
}

/// The renderings of all values files.
fn every() -> Vec<Rendering> {
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let render = |path: &Path| objects(&template(&["--values", path.to_str().unwrap()]).unwrap());
    values().iter().map(|path| (name(path), render(path))).collect()
}

/// The pod specs of StatefulSets and Jobs.
fn pods(objects: &[Value]) -> Vec<&Value> {
    objects.iter().map(|object| &object["spec"]["template"]["spec"]).filter(|spec| !spec.is_null()).collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["initContainers"]).iter().chain(list(&pod["containers"]))
}

/// Names of the volumes that a container mounts.
fn mounts(container: &Value) -> BTreeSet<&str> {
    list(&container["volumeMounts"]).iter().map(|mount| mount["name"].as_str().unwrap()).collect()
}

/// The daemon's configurations, and those of the token hosts, whose limits are derived from them.
fn configurations(objects: &[Value]) -> (Vec<Config>, Vec<token_host::Settings>) {
    let maps = of_kind(objects, "ConfigMap");
    let texts = |key: &str| maps.iter().filter_map(|map| map["data"][key].as_str()).collect::<Vec<_>>();
    let parse = |text| Config::parse(text, "").unwrap_or_else(|problems| panic!("{problems:#?}\n{text}"));
    let daemons: Vec<Config> = texts("config.toml").into_iter().map(parse).collect();
    let host = |text| daemons[0].supervised_host(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let hosts = texts("token-host.toml").into_iter().map(host).collect();
    (daemons, hosts)
}

fn program_accepts_rendered_configurations(renderings: &[Rendering]) {
    for (name, objects) in renderings {
        let (daemons, hosts) = configurations(objects);
        let expected = usize::from(*name != "remote-rbac");
        assert_eq!(daemons.len(), expected, "{name}");
        for daemon in &daemons {
            assert_eq!(daemon.tokens.len(), hosts.len(), "{name}: a host for each token");
            assert!(daemon.tokens.iter().all(|token| token.uri.is_none() && token.socket_uid == Some(10002)), "{name}");
        }
    }
}

fn hosts_allow_what_the_daemon_signs_and_no_more(renderings: &[Rendering]) {
    for (name, objects) in renderings {
        let (daemons, hosts) = configurations(objects);
        for (daemon, host) in daemons.iter().flat_map(|daemon| hosts.iter().map(move |host| (daemon, host))) {
            assert_eq!(host.trust_domains, daemon.ca.trust_domains, "{name}");
            assert_eq!(host.allow_intermediate, daemon.token_host.allow_intermediate, "{name}");
            assert!(host.max_validity >= daemon.ca.max_ttl.max(daemon.serving.ttl), "{name}");
            for dns in &daemon.serving.dns_names {
                assert!(host.dns_names.contains(dns), "{name}: {dns}");
            }
            let kubernetes = daemon.kubernetes.iter().flat_map(|kubernetes| &kubernetes.clusters);
            let asks_for_names = kubernetes.clone().any(|cluster| cluster.istiod_certificate.is_some());
            let signs = kubernetes.clone().any(|cluster| !cluster.signers.is_empty());
            assert_eq!(host.dns_names.len() > daemon.serving.dns_names.len(), asks_for_names || signs, "{name}");
        }
    }
}

fn containers_are_restricted(renderings: &[Rendering]) {
    for (name, objects) in renderings {
        for pod in pods(objects) {
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
            assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
            for field in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
                assert!(pod[field].is_null(), "{name}: {field}");
            }
            for container in containers(pod) {
                let context = &container["securityContext"];
                let about = format!("{name}: {}", container["name"]);
                assert_eq!(context["runAsNonRoot"], true, "{about}");
                assert_ne!(context["runAsUser"], 0, "{about}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{about}");
                assert_eq!(context["allowPrivilegeEscalation"], false, "{about}");
                assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL"], "{about}");
                assert!(context["capabilities"]["add"].is_null(), "{about}");
                assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{about}");
                assert!(context["privileged"].is_null(), "{about}");
                assert!(!container["resources"]["limits"]["memory"].is_null(), "{about}");
            }
        }
    }
}

fn daemon_sees_neither_pin_nor_module_and_hosts_see_no_api_server(renderings: &[Rendering]) {
    for (name, objects) in renderings {
        for set in of_kind(objects, "StatefulSet") {
            let pod = &set["spec"]["template"]["spec"];
            let daemon = &list(&pod["containers"])[0];
            assert_eq!((list(&pod["containers"]).len(), &daemon["name"]), (1, &Value::from("daemon")), "{name}");
            let hosts = list(&pod["initContainers"]);
            let sealed: BTreeSet<&str> = list(&pod["volumes"])
                .iter()
                .filter(|volume| !volume["persistentVolumeClaim"].is_null() || !volume["secret"].is_null())
                .map(|volume| volume["name"].as_str().unwrap())
                .filter(|volume| !volume.starts_with("cluster-"))
                .collect();
            assert!(!sealed.is_empty(), "{name}: there is a PIN or a module somewhere");
            assert!(mounts(daemon).is_disjoint(&sealed), "{name}: {:?}", mounts(daemon));
            for host in hosts {
                let about = format!("{name}: {}", host["name"]);
                assert_eq!(
                    host["restartPolicy"], "Always",
                    "{about}: a sidecar container, which ends after the daemon"
                );
                assert!(!mounts(host).contains("api"), "{about}");
                assert!(mounts(host).iter().all(|mount| !mount.starts_with("cluster-")), "{about}");
                assert_ne!(host["securityContext"]["runAsUser"], daemon["securityContext"]["runAsUser"], "{about}");
                assert_ne!(host["securityContext"]["runAsGroup"], daemon["securityContext"]["runAsGroup"], "{about}");
                // The log and the host's state share one volume, but neither process sees the other's part.
                let part = |container: &Value| {
                    let mounts = list(&container["volumeMounts"]).to_vec();
                    mounts.into_iter().find(|mount| mount["name"] == "log").unwrap()["subPath"].clone()
                };
                assert_ne!(part(host), part(daemon), "{about}");
                assert!(part(host).as_str().is_some_and(|part| part.starts_with("token-")), "{about}");
                // Each token host has its own PIN.
                let others = hosts.iter().filter(|other| other["name"] != host["name"]);
                for other in others {
                    let shared: Vec<_> = mounts(host)
                        .intersection(&mounts(other))
                        .filter(|mount| sealed.contains(**mount))
                        .copied()
                        .collect();
                    assert!(shared.is_empty(), "{about}: {shared:?}");
                }
            }
        }
    }
}

fn manifests_hold_no_secret(renderings: &[Rendering]) {
    for (name, objects) in renderings {
        assert!(of_kind(objects, "Secret").is_empty(), "{name}");
        assert!(!serde_json::to_string(objects).unwrap().contains("PRIVATE KEY"), "{name}");
    }
}

fn trials_carry_a_warning(renderings: &[Rendering]) {
    for (name, objects) in renderings {
        let set = of_kind(objects, "StatefulSet");
        let warned =
            set.iter().any(|set| !set["spec"]["template"]["metadata"]["annotations"]["istio-hsm-ca/warning"].is_null());
        assert_eq!(warned, *name == "trial");
        assert!(
            *name != "trial" || set.iter().all(|set| set["spec"]["replicas"] == 1),
            "more than one replica for one volume"
        );
    }
}

fn rules_name_their_objects_where_possible(renderings: &[Rendering]) {
    for (name, objects) in renderings {
        let roles = of_kind(objects, "Role").into_iter().chain(of_kind(objects, "ClusterRole"));
        for (role, rule) in roles.flat_map(|role| list(&role["rules"]).iter().map(move |rule| (role, rule))) {
            let about = format!("{name}: {} {rule}", role["metadata"]["name"]);
            let (verbs, resources) = (texts(&rule["verbs"]), texts(&rule["resources"]));
            assert!(
                verbs.iter().chain(&resources).chain(&texts(&rule["apiGroups"])).all(|word| word != "*"),
                "{about}"
            );
            let secrets = resources.iter().any(|resource| resource == "secrets" || resource == "configmaps");
            let per_account = role["metadata"]["name"].as_str().unwrap().ends_with("workload-secrets");
            if secrets && !per_account {
                assert!(verbs == ["create"] || !list(&rule["resourceNames"]).is_empty(), "{about}");
                assert!(
                    verbs != ["create"] || list(&rule["resourceNames"]).is_empty(),
                    "{about}: it would never match"
                );
            }
            assert!(role["kind"] == "Role" || resources != ["secrets"], "{about}: Secrets by namespace alone");
        }
    }
}

#[test]
#[ignore = "needs Helm: make test-deploy"]
fn disabled_features_have_no_permission() {
    let renderings = every();
    let one = |name: &str| renderings.iter().find(|(found, _)| found == name).unwrap().1.clone();
    let rules = |name| {
        let objects = one(name);
        let roles = objects.iter().filter(|object| object["kind"] == "Role" || object["kind"] == "ClusterRole");
        roles
            .flat_map(|role| list(&role["rules"]).to_vec())
            .flat_map(|rule| texts(&rule["resources"]))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(rules("minimal"), BTreeSet::new());
    assert!(!rules("sidecar").contains("pods") && rules("ambient").contains("pods"));
    assert!(!rules("ra").contains("tokenreviews") && rules("sidecar").contains("tokenreviews"));
    assert!(!rules("remote-rbac").contains("leases"));
    let without_api = of_kind(&one("minimal"), "StatefulSet")[0].to_string();
    assert!(!without_api.contains("serviceAccountToken"), "a token although no API server is used");
}

/// A permission for one verb: namespace (`None` for the whole cluster), verb, resource, object.
type Right = (Option<String>, String, String, Option<String>, String);

/// The permissions that the chart grants to the daemon's account; the import has its own account.
fn granted(objects: &[Value]) -> BTreeSet<Right> {
    let mut found = BTreeSet::new();
    let bindings = objects.iter().filter(|object| object["roleRef"].is_object());
    for binding in bindings.filter(|binding| list(&binding["subjects"])[0]["name"] == "istio-hsm-ca") {
        let of_binding = |role: &&Value| {
            role["kind"] == binding["roleRef"]["kind"]
                && role["metadata"]["name"] == binding["roleRef"]["name"]
                && role["metadata"]["namespace"] == binding["metadata"]["namespace"]
        };
        let role = objects.iter().find(of_binding).unwrap();
        let namespace = role["metadata"]["namespace"].as_str().map(str::to_owned);
        for rule in list(&role["rules"]) {
            let names = match texts(&rule["resourceNames"]) {
                names if names.is_empty() => vec![None],
                names => names.into_iter().map(Some).collect(),
            };
            for (group, resource) in texts(&rule["apiGroups"]).iter().zip(texts(&rule["resources"])) {
                for (name, verb) in
                    names.iter().flat_map(|name| texts(&rule["verbs"]).into_iter().map(move |verb| (name, verb)))
                {
                    found.insert((namespace.clone(), group.clone(), resource.clone(), name.clone(), verb));
                }
            }
        }
    }
    found
}

fn roles_grant_exactly_what_the_program_needs(renderings: &[Rendering]) {
    let namespace = "istio-system".parse().unwrap();
    let mut compared = 0;
    for (name, objects) in renderings {
        let (daemons, _) = configurations(objects);
        let Some(kubernetes) = daemons.iter().find_map(|daemon| daemon.kubernetes.as_ref()) else { continue };
        let needed = permissions::needed(kubernetes, &kubernetes.clusters[0], Some(&namespace)).into_iter();
        let needed: BTreeSet<Right> = needed
            .map(|it| (it.namespace, it.group.to_owned(), it.resource.to_owned(), it.name, it.verb.to_owned()))
            .collect();
        assert_eq!(granted(objects), needed, "{name}");
        compared += 1;
    }
    assert!(compared + 1 >= renderings.len() / 2, "{compared} of {}", renderings.len());
}

/// With all features on: a token host without limits of its own, and the program that derives them.
#[test]
fn host_starts_with_limits_derived_from_the_daemons_configuration() {
    let objects = all().remove(0).1;
    let text =
        |key: &str| of_kind(&objects, "ConfigMap").iter().find_map(|map| map["data"][key].as_str().map(str::to_owned));
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("config.toml"), text("config.toml").unwrap()).unwrap();
    let start = |host: &str| {
        fs::write(path("host.toml"), host).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_istio-hsm-ca"));
        command.arg("token-host").arg("--derive-from").arg(path("config.toml")).arg("--config").arg(path("host.toml"));
        command.arg("--socket").arg(path("socket")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let good = text("token-host.toml").unwrap();
    assert!(!good.contains("max_validity"), "the limits are derived: {good}");
    let refused = start(&format!("{good}\nsessionz = 1")).wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && error.contains("sessionz"), "{error}");
    let mut host = start(&good);
    let began = Instant::now();
    while !path("socket").exists() {
        assert!(host.try_wait().unwrap().is_none(), "the host ended");
        assert!(began.elapsed() < Duration::from_secs(20), "the host does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    host.kill().unwrap();
    host.wait().unwrap();
}
