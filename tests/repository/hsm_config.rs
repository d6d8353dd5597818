//! Each annotated configuration is valid for the daemon, also with every commented value enabled.

use istio_hsm_ca::config::Config;

#[test]
fn every_annotated_configuration_parses() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/hsm-config");
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for text in [text.clone(), text.replace("\n#: ", "\n"), with_kubernetes(&text)] {
            if let Err(problems) = Config::parse(&text, "") {
                panic!("{}: {problems:#?}", path.display());
            }
        }
        seen.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
    }
    // One for each module that the token suite runs on.
    seen.sort_unstable();
    assert_eq!(seen, ["kryoptic", "nss", "opencryptoki", "p11-kit", "softhsm", "tpm2-pkcs11"]);
}

/// Tokens that were never seen are marked as such, each in its section.
#[test]
fn the_other_tokens_are_marked_as_untested_hardware() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/hsm-config/VENDORS.md")).unwrap();
    assert!(page.contains("**Profile tested; hardware not tested.**"));
    let rows: Vec<Vec<&str>> =
        page.lines().filter(|line| line.starts_with("| ")).map(|line| line.split('|').collect()).collect();
    for vendor in [
        "YubiHSM 2",
        "AWS CloudHSM",
        "Thales Luna",
        "Entrust nShield",
        "Utimaco",
        "NetHSM",
        "Google Cloud KMS",
        "Smart cards",
    ] {
        let row = rows.iter().find(|row| row[1].contains(vendor)).unwrap_or_else(|| panic!("no row of {vendor}"));
        assert!(row[2].contains(".so") && row[3..6].iter().all(|cell| !cell.trim().is_empty()), "{row:?}");
        let section = page.split("\n## ").find(|section| section.lines().next().is_some_and(|it| it.contains(vendor)));
        let section = section.unwrap_or_else(|| panic!("no section of {vendor}"));
        assert!(section.contains("hardware not tested"), "{section}");
    }
}

/// The text with its Kubernetes section enabled, which needs more than the daemon's defaults.
fn with_kubernetes(text: &str) -> String {
    let Some((before, rest)) = text.split_once("\n#   [kubernetes]\n") else { return text.to_owned() };
    let (part, after) = rest.split_once("\n[admin]").unwrap();
    let part = format!("\n{part}").replace("\n#   ", "\n");
    let before = before.replace("#: allow_intermediate = false", "allow_intermediate = true");
    format!("{before}\n[kubernetes]{part}\n[admin]{after}")
}

/// docs/KUBERNETES.md mentions every setting, and its defaults are correct.
#[test]
fn the_reference_of_kubernetes_is_true() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/KUBERNETES.md")).unwrap();
    let (_, rest) = page.split_once("```toml\n").unwrap();
    let (block, _) = rest.split_once("```").unwrap();
    let frame = |part: &str| {
        let text = format!(
            "[ca]\nbundle = '/b'\n[[token]]\nname = 't'\nuri = 'pkcs11:token=t?module-path=/m.so&pin-source=file:/p'\n\
             [serving]\ndns_names = ['ca.test']\n[log]\ndirectory = '/l'\n[token_host]\nallow_intermediate = true\n{part}"
        );
        Config::parse(&text, "").unwrap_or_else(|problems| panic!("{problems:#?}\n{text}")).kubernetes.unwrap()
    };
    // Only the settings without a default.
    let kept = [
        "issuers",
        "namespaces = [\"legacy\"]",
        "namespaces = [\"web\"]",
        "name = \"hsm",
        "name = \"web\"",
        "username",
        "may",
        "identity",
        "account",
        "names =",
        "signers",
    ];
    let least = |line: &&str| line.starts_with('[') || kept.iter().any(|kept| line.starts_with(kept));
    let mut written = frame(block);
    let least = frame(&block.lines().filter(least).collect::<Vec<_>>().join("\n"));
    // The defaults of these come from the pod.
    assert!(written.namespace.take().is_some() && least.namespace.is_none());
    assert_eq!(written, least);

    // The block contains every field of the settings.
    let read = |path: &str| std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let settings = read("src/kubernetes/settings.rs");
    let policy = read("src/policy/clusters.rs");
    let certificates = read("src/policy/certificate_requests.rs");
    let mut structs = vec![
        settings.split_once("\nimpl Settings").unwrap().0.to_owned(),
        policy.split_once("struct RequesterRules {").unwrap().1.split_once("\n}").unwrap().0.to_owned(),
        certificates.split_once("struct CertificateRules {").unwrap().1.split_once("\n}").unwrap().0.to_owned(),
    ];
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/kubernetes/controllers")).unwrap() {
        structs.push(std::fs::read_to_string(entry.unwrap().path()).unwrap());
    }
    let structs = structs.join("\n");
    let fields =
        structs.lines().filter_map(|line| line.strip_prefix("    pub ")?.split_once(':').map(|(name, _)| name));
    let mut seen = 0;
    // Lists whose elements are sections.
    let lists =
        ["clusters", "signers", "requesters", "profiles", "rules", "service_account", "pod_signers", "services"];
    for field in fields.filter(|field| !lists.contains(field)) {
        let there = block.contains(&format!("{field} =")) || block.contains(&format!(".{field}]"));
        assert!(there, "docs/KUBERNETES.md does not name {field}");
        seen += 1;
    }
    assert!(seen > 30, "{seen}");
}
