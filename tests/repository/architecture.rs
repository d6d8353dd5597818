//! Verifies the imports between modules (ARCHITECTURE.md) from the sources: a new module must be added to the table
//! first.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What every module of the program may import: limits, traces and metrics.
const COMMON: &[&str] = &["limits", "telemetry"];

/// A module of the program, and what it may import in addition to [`COMMON`]: a module, or one item of it. `*` means
/// any module except those that follow with a `!`; `*Error` any item whose name ends like this. Cargo enforces the
/// boundaries between the packages.
const TABLE: &[(&str, &[&str])] = &[
    ("auth", &["revocation"]),
    ("bundle_files", &[]),
    (
        "cli",
        &[
            "auth",
            "bundle_files",
            "config",
            "daemon",
            "grpc",
            "issue",
            "kubernetes",
            "publication",
            "revocation",
            "signer",
            "token_pool",
        ],
    ),
    ("config", &["*", "!cli", "!daemon"]),
    ("daemon", &["*", "!cli"]),
    // These are the errors that `issue` returns, which one match maps to gRPC codes.
    ("grpc", &["auth", "issue", "policy::Asked", "policy::Denied", "policy::Kind", "signer::*Error"]),
    ("issue", &["auth::Caller", "auth::DenylistCheck", "policy", "publication", "revocation", "signer"]),
    (
        "kubernetes",
        &[
            "auth",
            "issue",
            "policy::Asked",
            "policy::CertificateScope",
            "policy::ControllerGrant",
            "policy::Kind",
            "policy::Scope",
            "policy::*Rules",
            "publication",
            "revocation",
        ],
    ),
    ("limits", &[]),
    ("policy", &["auth::Caller"]),
    ("publication", &[]),
    ("revocation", &["signer::BoxFuture"]),
    ("signer", &[]),
    ("telemetry", &[]),
    ("token_pool", &["signer"]),
];

/// Types that make up a caller are covered by `auth::Caller`.
const CALLER: &[&str] =
    &["BoundPod", "Caller", "CertificateRequester", "ClusterName", "Identity", "InternalCaller", "Method"];

/// Code that only computes: no clock, files, network, threads or traces.
const PURE: &[&str] = &["crates/pki/src", "src/policy"];

/// What pure code must not use.
const IMPURE: &[&str] =
    &["Instant::now", "SystemTime::now", "std::env", "std::fs", "std::process", "std::thread", "tokio::", "tracing::"];

/// Maximum number of lines of a file before its tests.
const LINES_MAX: usize = 500;

struct Source {
    path: PathBuf,
    /// The directory in crates/; `None` for the program itself.
    package: Option<String>,
    /// The module path within the crate: `["pki", "csr"]` for src/pki/csr.rs.
    module: Vec<String>,
    /// The code without comments and tests.
    code: String,
    lines: usize,
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let mut wrong = Vec::new();
    for source in sources().filter(|source| source.package.is_none()) {
        let [module, ..] = source.module.as_slice() else { continue };
        let Some((_, allowed)) = TABLE.iter().find(|(name, _)| name == module) else {
            wrong.push(format!("{}: module {module} is not in the table", source.path.display()));
            continue;
        };
        for path in imports(&source.code, source.module.len()) {
            if !may_import(module, allowed, &path) {
                wrong.push(format!("{}: {module} may not import {}", source.path.display(), path.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "see ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn files_are_short() {
    let long = sources().filter(|source| source.lines > LINES_MAX);
    let long: Vec<String> = long.map(|source| format!("{} {}", source.path.display(), source.lines)).collect();
    assert!(long.is_empty(), "over {LINES_MAX} lines before the tests:\n{}", long.join("\n"));
}

#[test]
fn only_the_clock_reads_the_clock() {
    for source in sources().filter(|source| !source.path.ends_with("crates/process/src/clock.rs")) {
        assert!(!source.code.contains("SystemTime::now"), "{}: use process::clock::now()", source.path.display());
    }
}

#[test]
fn only_the_token_packages_know_pkcs11() {
    for source in sources() {
        let allowed = matches!(source.package.as_deref(), Some("bench" | "token" | "token-host"));
        assert!(allowed || !names(&source.code, "cryptoki::"), "{}: use crates/token", source.path.display());
    }
}

#[test]
fn pure_code_only_computes() {
    for source in sources() {
        let path = source.path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().with_extension("");
        let pure = PURE.iter().any(|place| path.starts_with(place));
        for name in IMPURE.iter().filter(|name| pure && names(&source.code, name)) {
            panic!("{}: a pure module names {name}", source.path.display());
        }
    }
}

/// Whether `code` contains something that begins with `name` at a word boundary.
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name)
        .any(|(at, _)| !code[..at].ends_with(|before: char| before.is_alphanumeric() || "_:".contains(before)))
}

fn may_import(module: &str, allowed: &[&str], path: &[String]) -> bool {
    let Some(target) = path.first().map(String::as_str) else { return true };
    if target == module || COMMON.contains(&target) {
        return true;
    }
    if allowed.contains(&"*") {
        return !allowed.contains(&format!("!{target}").as_str());
    }
    allowed.iter().any(|entry| match entry.split_once("::") {
        None => *entry == target,
        Some((entry_module, item)) => {
            let mut named = path.iter().skip(1).map(String::as_str);
            entry_module == target
                && named.any(|named| match item.strip_prefix('*') {
                    Some(suffix) => named.ends_with(suffix),
                    None => named == item || (item == "Caller" && CALLER.contains(&named)),
                })
        }
    })
}

/// Every source of the workspace but lib.rs, main.rs and bin (which may use all), generated code and tests.
/// anyhow's alternate form repeats a cause that the error's own text contains; `process::error::chain` does not.
#[test]
fn errors_are_shown_with_their_causes_by_one_function() {
    let wrong: Vec<_> = sources()
        .filter(|source| source.code.contains("{:#}") || source.code.contains("{error:#}"))
        .map(|source| source.path.display().to_string())
        .collect();
    assert!(wrong.is_empty(), "use process::error::chain: {wrong:#?}");
}

fn sources() -> impl Iterator<Item = Source> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = fs::read_dir(workspace.join("crates")).unwrap().filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        (name != "testkit").then(|| (workspace.join("crates").join(&name).join("src"), Some(name)))
    });
    std::iter::once((workspace.join("src"), None)).chain(packages).flat_map(|(root, package)| sources_of(root, package))
}

fn sources_of(root: PathBuf, package: Option<String>) -> impl Iterator<Item = Source> {
    let mut files = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let skipped = ["bin", "cluster_tests.rs", "generated", "testing.rs", "tests", "tests.rs"]
                .iter()
                .any(|name| path.ends_with(name));
            if path.is_dir() && !skipped {
                directories.push(path);
            } else if !skipped && path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "the sources are not found in {}", root.display());
    files.sort();
    files.into_iter().filter_map(move |path| {
        let relative = path.strip_prefix(&root).unwrap().with_extension("");
        let module: Vec<String> = relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module == ["lib"] || module == ["main"] {
            return None;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
        Some(Source {
            lines: code.lines().count(),
            code: without_comments(code),
            module,
            package: package.clone(),
            path,
        })
    })
}

/// Removes line comments. A `//` in a string removes too much, but only from that line; a path after a URL on the same
/// line does not occur.
fn without_comments(code: &str) -> String {
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The paths into our crate in the code of a module at `depth`: by `crate::`, or by enough `super::`.
fn imports(code: &str, depth: usize) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for prefix in ["crate::".to_owned(), "super::".repeat(depth)] {
        for (at, _) in code.match_indices(&prefix) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|before| !(before.is_alphanumeric() || "_:$".contains(before))) {
                let mut rest = &code[at + prefix.len()..];
                tree(&mut rest, &mut Vec::new(), &mut found);
            }
        }
    }
    found
}

/// Parses one use tree: `a::b`, `a::{b, c::d}`, `a::*`.
fn tree(rest: &mut &str, path: &mut Vec<String>, found: &mut BTreeSet<Vec<String>>) {
    let depth = path.len();
    loop {
        *rest = rest.trim_start();
        if let Some(inner) = rest.strip_prefix('{') {
            *rest = inner;
            while !rest.is_empty() && !rest.starts_with('}') {
                tree(rest, path, found);
                *rest = rest.trim_start().trim_start_matches(',').trim_start();
            }
            *rest = rest.strip_prefix('}').unwrap_or(rest);
            break;
        }
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.is_empty() {
            // Not a path; consume a character so that the caller's loop terminates.
            *rest = rest.get(1..).unwrap_or_default();
            break;
        }
        path.push(name.to_owned());
        *rest = after;
        match rest.strip_prefix("::") {
            Some(after) => *rest = after,
            None => {
                // `a as b` within braces: the new name does not matter.
                if let Some(renamed) = rest.strip_prefix(" as ") {
                    *rest = renamed.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
                }
                found.insert(path.clone());
                break;
            }
        }
    }
    path.truncate(depth);
}

#[test]
fn the_reader_of_imports_finds_them() {
    let found =
        |code: &str, depth| -> Vec<String> { imports(code, depth).into_iter().map(|path| path.join("::")).collect() };
    assert_eq!(found("use crate::auth::Caller;", 1), ["auth::Caller"]);
    assert_eq!(
        found("use crate::{auth::{self, Caller as C}, log::Log, pki};", 1),
        ["auth::Caller", "auth::self", "log::Log", "pki"]
    );
    assert_eq!(found("let x = crate::clock::now();", 1), ["clock::now"]);
    assert_eq!(found("use super::token::key;", 1), ["token::key"]);
    assert_eq!(found("use super::super::grpc;", 2), ["grpc"]);
    assert_eq!(found("use super::csr;", 2), Vec::<String>::new());
    assert_eq!(found("use other_crate::auth; use my::crate::x;", 1), Vec::<String>::new());
    let allowed = |module: &str, path: &str| {
        let (_, allowed) = TABLE.iter().find(|(name, _)| *name == module).unwrap();
        may_import(module, allowed, &path.split("::").map(str::to_owned).collect::<Vec<_>>())
    };
    for (module, path, expected) in [
        ("policy", "auth::Caller", true),
        ("policy", "auth::jwt", false),
        ("grpc", "token_pool", false),
        ("grpc", "issue::Issuance", true),
        ("daemon", "token_pool", true),
        ("daemon", "cli::check", false),
    ] {
        assert_eq!(allowed(module, path), expected, "{module} -> {path}");
    }
}
