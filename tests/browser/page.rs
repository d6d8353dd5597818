//! Content of the page in different windows, and what it must never do.

use std::{fs, path::PathBuf, process::Command};

use serde_json::Value;

use super::devtools::Browser;
use testkit::{
    daemon::{Ask, Daemon, Site},
    plug_in::PlugIn,
};

/// Markup that runs a script and loads a resource unless it is escaped.
const HOSTILE: &str = "<img src=x onerror=alert(1)>";

const KUBECONFIG: &str = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "x",
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {"token": "t"}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]}"#;

/// A daemon that has issued certificates and rejected requests.
struct Scene {
    _site: Site,
    daemon: Daemon,
    address: String,
}

impl Scene {
    async fn new() -> Self {
        let site = Site::new(&PlugIn::named(HOSTILE));
        // A cluster with an unreachable API server, which does not make the daemon unready.
        let kubeconfig = site.softhsm.path().join("kubeconfig");
        fs::write(&kubeconfig, KUBECONFIG).unwrap();
        let daemon = site.serve(&format!(
            "[admin]\nstatus_address = '127.0.0.1:0'\n[log]\ncheckpoint_interval = '1s'\n\
             [kubernetes]\nnamespace = 'istio-system'\nidentity = 'one'\n\
             [[kubernetes.cluster]]\nname = 'east'\nkubeconfig = '{}'\n[kubernetes.cluster.root_configmap]\n\
             [kubernetes.cluster.istiod_certificate]\n",
            kubeconfig.display()
        ));
        let line = daemon.wait_line(|line| line["message"] == "status page");
        let address = line["page"].as_str().unwrap().to_owned();
        let scene = Self { _site: site, daemon, address };
        for _ in 0..4 {
            scene.daemon.send(scene.daemon.ask()).await.unwrap();
        }
        let hostile = format!("spiffe://cluster.local/ns/demo/sa/{HOSTILE}");
        for ask in [
            scene.daemon.ask().header("clusterid", HOSTILE),
            scene.daemon.ask().metadata("CertSigner", HOSTILE),
            Ask::new("spiffe://cluster.local/ns/demo/sa/other").token(&scene.daemon.token),
            Ask::new("spiffe://cluster.local/ns/demo/sa/httpbin"),
            scene.daemon.ask().csr(request_for(&hostile)),
        ] {
            scene.daemon.send(ask).await.unwrap_err();
        }
        scene
    }
}

/// A CSR with this text as its URI name.
fn request_for(uri: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let config = format!(
        "[req]\ndistinguished_name=d\nreq_extensions=e\nprompt=no\n[d]\n[e]\nsubjectAltName=@s\n[s]\nURI.1={uri}\n"
    );
    fs::write(path("config"), config).unwrap();
    let made = Command::new("openssl")
        .args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/"])
        .args(["-config", &path("config"), "-keyout", &path("key"), "-out", &path("csr")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::read_to_string(path("csr")).unwrap()
}

fn pictures() -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("status-page");
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Parts of the page that must be shown with and without scripts.
const PARTS: &[&str] = &[
    "ready",
    "Certificates",
    "a second now",
    "last hour",
    "Latency",
    "median now",
    "CA certificates",
    "days left",
    "Tokens",
    "softhsm",
    "istio-ca in libsofthsm2.so",
    "signs",
    "Issuance log",
    "durable",
    "last checkpoint",
    "ago, 20",
    "Refusals in the last hour, by reason",
    "no_credentials",
    "Clusters",
    "this replica does not lead",
    "API server",
    "onnection refused",
    "root_configmap",
    "istiod_certificate",
    "stands by",
    "none yet",
    "Last certificates",
    "spiffe://cluster.local/ns/demo/sa/httpbin",
    "Last refusals",
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium: make test-browser"]
async fn page_fits_every_window() {
    let scene = Scene::new().await;
    let mut browser = Browser::start();
    for scripts in [true, false] {
        browser.scripts(scripts);
        for (width, dark) in [(1400, false), (1400, true), (360, false), (360, true)] {
            browser.look(width, dark);
            browser.open(&scene.address);
            // The text as displayed; upper case comes from the style sheet.
            let text = browser.value("document.body.innerText").as_str().unwrap().to_lowercase();
            for part in PARTS {
                assert!(text.contains(&part.to_lowercase()), "{part}: {width} {dark} {scripts}\n{text}");
            }
            let overflow = browser.value("document.documentElement.scrollWidth - document.documentElement.clientWidth");
            assert_eq!(overflow, 0, "the page is wider than a window of {width}");
            let cut = "[...document.querySelectorAll('section *')].filter(e => e.closest('svg') === null && \
                       e.getBoundingClientRect().right > e.closest('section').getBoundingClientRect().right + 1)\
                       .map(e => e.outerHTML.slice(0, 200))";
            assert_eq!(browser.value(cut), serde_json::json!([]), "beyond its box at {width}");
            assert_eq!(browser.value("document.querySelectorAll('progress').length > 2"), true);
            let background = browser.value("getComputedStyle(document.body).backgroundColor");
            assert_eq!(background, if dark { "rgb(15, 19, 26)" } else { "rgb(244, 246, 248)" });
            let name = format!(
                "{width}-{}-{}.png",
                if dark { "dark" } else { "light" },
                if scripts { "scripts" } else { "static" }
            );
            fs::write(pictures().join(name), browser.picture()).unwrap();
        }
    }
    // Text from clients and from the CA's certificate is shown as text only.
    assert_eq!(browser.value("document.querySelectorAll('img, iframe, object, embed, form').length"), 0);
    assert_eq!(browser.value("document.querySelectorAll('script').length"), 1);
    let shown = browser.value("document.body.innerText.split('<img src=x onerror=alert(1)>').length - 1");
    assert!(shown.as_u64().unwrap() >= 2, "rejections are not shown as text: {shown}");
    // Names are written with RFC 4514 escapes.
    assert_eq!(browser.value("document.body.innerText.includes('CN=\\\\<img src=x onerror=alert(1)\\\\>')"), true);
    quiet(&browser, &scene.address);
}

/// The page requests only its own address, and the console is empty.
fn quiet(browser: &Browser, address: &str) {
    let foreign = |asked: &String| asked != address && !asked.starts_with("data:") && asked != "about:blank";
    let foreign: Vec<String> = browser.requested().into_iter().filter(foreign).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert!(browser.errors().is_empty(), "{:#?}", browser.errors());
    let answers = browser.events.iter().filter(|event| event["method"] == "Network.responseReceived");
    let pages: Vec<&Value> = answers.filter(|event| event["params"]["response"]["url"] == address).collect();
    assert!(!pages.is_empty());
    for page in pages {
        let headers = &page["params"]["response"]["headers"];
        let policy = headers["content-security-policy"].as_str().unwrap();
        assert!(policy.starts_with("default-src 'none';") && policy.contains("connect-src 'self'"), "{policy}");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        assert_eq!(headers["cache-control"], "no-store");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium: make test-browser"]
async fn the_page_keeps_itself_up_to_date_with_and_without_scripts() {
    let scene = Scene::new().await;
    let mut browser = Browser::start();
    browser.look(1400, false);
    let rows = "document.querySelectorAll('td[data-is=serial]').length";
    for scripts in [true, false] {
        browser.scripts(scripts);
        browser.open(&scene.address);
        let before = browser.value(rows).as_u64().unwrap();
        scene.daemon.send(scene.daemon.ask()).await.unwrap();
        browser.wait(&format!("{rows} > {before}"));
        // The policy permits requests to the page's own address; otherwise this would not have worked.
        quiet(&browser, &scene.address);
    }
    browser.scripts(true);
    browser.open(&scene.address);
    assert_eq!(browser.value("document.getElementById('lost').hidden"), true);
    // A page that is no longer updated indicates it.
    let Scene { daemon, address: _, _site } = scene;
    drop(daemon);
    browser.wait("!document.getElementById('lost').hidden && document.title.startsWith('?')");
    fs::write(pictures().join("1400-lost.png"), browser.picture()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium: make test-browser"]
async fn an_injected_script_is_stopped_by_the_policy_as_well() {
    // Besides the template's escaping there is the policy: external resources are not loaded.
    let scene = Scene::new().await;
    let mut browser = Browser::start();
    browser.open(&scene.address);
    let inject = "document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:1/x'}));\
                  document.body.append(Object.assign(document.createElement('script'), {src: 'http://127.0.0.1:1/y'}));\
                  fetch('http://127.0.0.1:1/z').catch(() => 0); true";
    assert_eq!(browser.value(inject), true);
    let stopped = |browser: &Browser| {
        let reported =
            browser.errors().iter().filter(|entry| entry.to_string().contains("Content Security Policy")).count();
        reported >= 3
    };
    for _ in 0..100 {
        browser.value("1");
        if stopped(&browser) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("{:#?}", browser.errors());
}
