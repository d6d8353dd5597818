//! One judgement: what [`Bundle::check`] takes, every client of a mesh verifies; what it refuses, at least one refuses.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use istio_hsm_ca_pki::{
    Bundle, CertificateFields, Issued, Tbs, Template,
    bundle::{BundleFiles, Input},
    pem,
    tbs::Serial,
    testing::{
        ID, P256, WORKLOAD,
        draft::{self, Draft, authority_key_id, basic_constraints, extended_key_usage},
        extension, leaf, san_value,
    },
};
use rcgen::SigningKey;

use crate::{
    judges::{self, Presented, now},
    shapes::{Shape, shape},
};

/// What the check said of a shape, and what a peer would be presented.
struct Judged {
    seed: u64,
    notes: Vec<&'static str>,
    /// The reasons to refuse it; none when it was taken.
    problems: Vec<String>,
    presented: Presented,
    /// The same without other certificates for the CA's name and key, which do not go out.
    strict: Presented,
    /// A leaf of another trust domain: the check does not know which ones the CA will serve.
    elsewhere: Presented,
}

impl Judged {
    /// Whether it is refused for what docs/BUNDLES.md lists as refused by this program alone.
    fn is_refused_by_us_alone(&self) -> bool {
        self.problems.iter().all(|problem| problem.contains("Istio takes it for no CA's"))
    }

    fn describe(&self) -> String {
        format!("seed {} ({}): {:#?}", self.seed, self.notes.join(", "), self.problems)
    }
}

const ELSEWHERE: &str = "spiffe://elsewhere.example/ns/foo/sa/bar";

/// The check of a shape, and a leaf below it: issued as the product does, or what it would have issued.
fn judged(seed: u64) -> Judged {
    let now = now();
    let Shape { ca_cert, cert_chain, root_cert, ca, ca_key_id, key, notes } = shape(seed, now);
    let input = |name: &str, text: &str| Input { name: name.to_owned(), bytes: text.as_bytes().to_vec() };
    let files = BundleFiles {
        ca_cert: input("ca-cert.pem", &ca_cert),
        cert_chain: input("cert-chain.pem", &cert_chain),
        root_cert: input("root-cert.pem", &root_cert),
    };
    let times = (now - Duration::from_secs(60), now + Duration::from_secs(1800));
    let workload_key = WORKLOAD.serialize_pem();
    let drafted = |id: &str| {
        let authority = ca_key_id.as_ref().map(|id| authority_key_id(Some(id), None));
        let names = san_value(&[(6, id.as_bytes())]);
        let extensions = [basic_constraints(false, None), extended_key_usage(&[1, 2])].into_iter().chain(authority);
        let mut draft = Draft::under(b"\x30\x00", &WORKLOAD, &ca.subject, now);
        draft.extensions = extensions.chain([extension(b"\x55\x1d\x11", Some(0xff), &names)]).collect();
        (draft.not_before, draft.not_after) = times;
        draft.sign(key)
    };
    let (problems, leaf, sent) = match Bundle::check(files, now) {
        Ok(bundle) => {
            let template = Template { not_before: times.0, not_after: times.1, ..leaf(&[ID]) };
            let tbs = Arc::new(Tbs::build(template, Arc::clone(bundle.issuer()), Serial::random()).unwrap());
            let signature = key.sign(tbs.der()).unwrap();
            let issued = Issued::assemble(tbs, &signature).unwrap();
            (Vec::new(), issued.der().to_vec(), bundle.issuer().path_pem().concat())
        }
        Err(problems) => {
            let problems = problems.iter().map(ToString::to_string).collect();
            (problems, drafted("spiffe://cluster.local/ns/foo/sa/bar"), format!("{ca_cert}{cert_chain}"))
        }
    };
    let others = pem::blocks(cert_chain.as_bytes()).unwrap().into_iter().filter(|block| {
        let fields = CertificateFields::parse(&block.der);
        !fields.is_ok_and(|it| it.subject == ca.subject && it.spki == ca.spki)
    });
    let others: String = others.map(|block| pem::encode("CERTIFICATE", &block.der)).collect();
    let presented = Presented { leaf, key: workload_key, sent, roots: root_cert, crls: String::new() };
    let strict = Presented { sent: format!("{ca_cert}{others}"), ..presented.clone() };
    let elsewhere = Presented { leaf: drafted(ELSEWHERE), ..presented.clone() };
    Judged { seed, notes, problems, presented, strict, elsewhere }
}

/// Forms of root-cert.pem, with the check's problems and what a peer would be presented.
fn forms() -> Vec<(String, Vec<String>, Presented)> {
    let now = now();
    let root =
        Draft { not_after: now + Duration::from_secs(86_400 * 365), ..Draft::new(&common_name(b"Root"), &P256, now) };
    let pem = root.pem(&P256);
    let other = Draft::new(&common_name(b"Another"), &WORKLOAD, now);
    let other = Draft { not_after: root.not_after, ..other }.pem(&WORKLOAD);
    let rows: Vec<&str> = pem.lines().collect();
    let [begin, body @ .., end] = rows.as_slice() else { panic!("{pem}") };
    let base64 = body.concat();
    let in_lines = |length: usize| {
        let lines: Vec<&str> = base64.as_bytes().chunks(length).map(|line| str::from_utf8(line).unwrap()).collect();
        format!("{begin}\n{}\n{end}\n", lines.join("\n"))
    };
    let with = |each: fn(&str) -> String| {
        format!("{begin}\n{}\n{end}\n", body.iter().map(|line| each(line)).collect::<Vec<_>>().join("\n"))
    };
    let mut forms = vec![
        ("CRLF", pem.replace('\n', "\r\n")),
        ("carriage returns", pem.replace('\n', "\r")),
        ("no end of the last line", pem.trim_end().to_owned()),
        ("twice", format!("{pem}{pem}")),
        ("a comment", format!("# root\nSubject: CN=Root\n{pem}")),
        ("a long comment", format!("{}\n{pem}", "x".repeat(3000))),
        ("a comment that is not ASCII", format!("Zürich\n{pem}")),
        ("dashes before", format!("----- roots -----\n{pem}")),
        ("another END before", format!("{end}\n{pem}")),
        ("NUL before", format!("\0\n{pem}")),
        ("NUL after", format!("{pem}\0")),
        ("NUL between two roots", format!("{other}\0\n{pem}")),
        ("Control-Z after", format!("{pem}\u{1a}")),
        ("an empty line after BEGIN", pem.replacen("-----\n", "-----\n\n", 1)),
        ("an empty line before END", pem.replacen("\n-----END", "\n\n-----END", 1)),
        ("empty lines", pem.replace('\n', "\n\n")),
        ("lines of blanks", pem.replace('\n', "\n  \n")),
        ("blanks after BEGIN", pem.replacen("-----\n", "-----  \n", 1)),
        ("a tab after BEGIN", pem.replacen("-----\n", "-----\t\n", 1)),
        ("blanks after END", format!("{}  \n", pem.trim_end())),
        ("a tab after END", format!("{}\t\n", pem.trim_end())),
        ("blanks at line ends", with(|line| format!("{line}  "))),
        ("tabs at line ends", with(|line| format!("{line}\t"))),
        ("blanks at line starts", with(|line| format!("  {line}"))),
        ("tabs at line starts", with(|line| format!("\t{line}"))),
        ("blanks within lines", with(|line| line.replacen('a', "a ", 1))),
        ("form feeds", with(|line| format!("{line}\u{c}"))),
        ("vertical tabs", with(|line| format!("{line}\u{b}"))),
        ("a header", pem.replacen("-----\n", "-----\nComment: x\n\n", 1)),
        ("a byte order mark", format!("\u{feff}{pem}")),
        ("a zero-width character", pem.replacen("MI", "M\u{200b}I", 1)),
    ];
    let lengths = [1, 4, 63, 65, 76, 79, 80, 100, 126, 127, 128, 252, 253, 254, 255, 256, 506, 508, 510, 1000, 10_000];
    forms.extend(lengths.map(|length| ("lines", in_lines(length))));
    // Fifteen lengths of a long line whose end may fall on the edge of a reader's piece.
    forms.extend((245..260).map(|length| ("blanks up to a length", padded(&pem, length))));
    let key = WORKLOAD.serialize_pem();
    let input = |name: &str, text: &str| Input { name: name.to_owned(), bytes: text.as_bytes().to_vec() };
    let judged = forms.into_iter().map(|(name, text)| {
        let files = BundleFiles {
            ca_cert: input("ca-cert.pem", &pem),
            cert_chain: input("cert-chain.pem", ""),
            root_cert: input("root-cert.pem", &text),
        };
        let problems = Bundle::check(files, now).err().unwrap_or_default();
        let mut draft = Draft::under(b"\x30\x00", &WORKLOAD, &common_name(b"Root"), now);
        let names = san_value(&[(6, b"spiffe://cluster.local/ns/foo/sa/bar")]);
        draft.extensions = vec![basic_constraints(false, None), extended_key_usage(&[1, 2])];
        draft.extensions.push(extension(b"\x55\x1d\x11", Some(0xff), &names));
        draft.not_after = now + Duration::from_secs(1800);
        let leaf = draft.sign(&P256);
        let presented =
            Presented { leaf, key: key.clone(), sent: String::new(), roots: text.clone(), crls: String::new() };
        (format!("{name}: {text:?}"), problems.iter().map(ToString::to_string).collect(), presented)
    });
    judged.collect()
}

/// The PEM with blanks behind its first line of base64 up to a length.
fn padded(pem: &str, length: usize) -> String {
    let mut rows: Vec<String> = pem.lines().map(str::to_owned).collect();
    rows[1] = format!("{:length$}", rows[1]);
    rows.join("\n") + "\n"
}

fn common_name(text: &[u8]) -> Vec<u8> {
    draft::common_name(der::Tag::Utf8String, text)
}

#[test]
fn accepted_forms_of_the_roots_are_read_by_openssl_and_rustls() {
    for (form, problems, presented) in forms() {
        if problems.is_empty() {
            assert_eq!(presented.openssl(now()), Ok(()), "{form}");
            assert_eq!(presented.webpki(now()), Ok(()), "{form}");
        }
    }
}

#[test]
#[ignore = "needs Go and grpcio of PyPI: make test-foreign"]
fn forms_of_the_roots_are_judged_as_all_four_clients_read_them() {
    let forms = forms();
    let presented: Vec<_> = forms.iter().map(|(_, _, presented)| presented.clone()).collect();
    let (go, boringssl) = (judges::go(&presented), judges::boringssl(&presented));
    let mut faults = Vec::new();
    for ((form, problems, presented), (go, boringssl)) in forms.iter().zip(go.into_iter().zip(boringssl)) {
        let own = [presented.openssl(now()), presented.webpki(now())];
        let refused: Vec<String> =
            own.into_iter().filter_map(Result::err).chain([go, boringssl]).filter(|why| !why.is_empty()).collect();
        if problems.is_empty() != refused.is_empty() {
            faults.push(format!("{form}: {problems:?} and {refused:?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The seed of the first shape: another one finds other shapes.
fn first_seed() -> u64 {
    std::env::var("CHAIN_SEED").map_or(0, |seed| seed.parse().expect("CHAIN_SEED is a number"))
}

/// Seeds of shapes in which everything unusual occurs, alone where there is such a shape: what a broken rule lets through
/// shows in those.
fn telling_seeds(count: usize) -> Vec<u64> {
    let (first, now) = (first_seed(), now());
    let mut left: Vec<(u64, Vec<&'static str>)> = (first..first + 600)
        .map(|seed| (seed, shape(seed, now).notes))
        .map(|(seed, notes)| (seed, if notes.is_empty() { vec!["nothing"] } else { notes }))
        .collect();
    let mut seen: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut seeds = Vec::new();
    while seeds.len() < count {
        let times = |note: &&'static str| seen.get(note).copied().unwrap_or_default();
        let rank = |(_, notes): &(u64, Vec<&'static str>)| (notes.iter().map(times).min(), notes.len());
        let at = (0..left.len()).min_by_key(|at| rank(&left[*at])).unwrap();
        let (seed, notes) = left.remove(at);
        seeds.push(seed);
        notes.into_iter().for_each(|note| *seen.entry(note).or_default() += 1);
    }
    seeds
}

fn in_parallel<T: Send>(seeds: Vec<u64>, each: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let (each, half) = (&each, seeds.len() / 2);
    std::thread::scope(|scope| {
        let (one, two) = seeds.split_at(half);
        let run = |seeds: Vec<u64>| scope.spawn(move || seeds.into_iter().map(each).collect::<Vec<_>>());
        let threads = [run(one.to_vec()), run(two.to_vec())];
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Of the two judges that every machine has. A refusal that neither shares names the client that does.
#[test]
fn random_chains_are_judged_as_openssl_and_webpki_judge_them() {
    let outcomes = in_parallel(telling_seeds(50), |seed| {
        let judged = judged(seed);
        let reasons = [("openssl", judged.presented.openssl(now())), ("webpki", judged.presented.webpki(now()))];
        let refused: Vec<_> =
            reasons.iter().filter_map(|(who, result)| result.as_ref().err().map(|why| (who, why))).collect();
        let is_taken = judged.problems.is_empty();
        if is_taken {
            assert!(refused.is_empty(), "{}: refused by {refused:?}", judged.describe());
        } else if refused.is_empty() {
            // Of a root, only Go wants basicConstraints.
            let others = ["Go", "Envoy", "Istio", "it has no basicConstraints"];
            let names_another = |problem: &String| others.iter().any(|name| problem.contains(name));
            assert!(judged.problems.iter().any(names_another), "{}: nobody refuses it", judged.describe());
        }
        is_taken
    });
    let taken = outcomes.iter().filter(|taken| **taken).count();
    assert!((10..=40).contains(&taken), "{taken} of 50 were taken");
}

/// Of all four judges, a thousand shapes. Which of several roots of one name OpenSSL and BoringSSL take depends on their
/// order, so that a refused bundle counts as refused when it is in some order, or for a leaf of another trust domain.
#[test]
#[ignore = "needs Go and grpcio of PyPI: make test-foreign"]
fn random_chains_are_judged_as_all_four_clients_judge_them() {
    let first = first_seed();
    let judged = in_parallel((first..first + 1000).collect(), judged);
    let verdicts = |presented: &[Presented]| -> Vec<Vec<String>> {
        let (go, boringssl) = (judges::go(presented), judges::boringssl(presented));
        let own = in_parallel((0..presented.len() as u64).collect(), |at| {
            let it = &presented[at as usize];
            [("openssl", it.openssl(now())), ("webpki", it.webpki(now()))]
        });
        let foreign = go.into_iter().zip(boringssl).map(|(go, boringssl)| [("go", go), ("boringssl", boringssl)]);
        let texts = own.into_iter().zip(foreign).map(|(own, foreign)| {
            let own = own.into_iter().filter_map(|(who, result)| result.err().map(|why| format!("{who}: {why}")));
            let foreign = foreign.into_iter().filter(|(_, why)| !why.is_empty());
            own.chain(foreign.map(|(who, why)| format!("{who}: {why}"))).collect()
        });
        texts.collect()
    };
    let presented: Vec<_> = judged.iter().map(|judged| judged.presented.clone()).collect();
    let mut faults = Vec::new();
    let mut unshared = Vec::new();
    for (judged, refused) in judged.iter().zip(verdicts(&presented)) {
        match (judged.problems.is_empty(), refused.is_empty()) {
            (true, false) => faults.push(format!("{}: refused by {refused:#?}", judged.describe())),
            (false, true) if !judged.is_refused_by_us_alone() => unshared.push(judged),
            _ => {}
        }
    }
    // Constraints on trust domains, alone, tell the two leaves apart.
    let taken = |judged: &&Judged| judged.problems.is_empty() && judged.notes.contains(&"URI constraint");
    let constrained: Vec<_> = judged.iter().filter(taken).collect();
    let presented: Vec<_> = constrained.iter().map(|judged| judged.elsewhere.clone()).collect();
    for (judged, refused) in constrained.iter().zip(verdicts(&presented)).filter(|(_, refused)| !refused.is_empty()) {
        faults.push(format!("{}: another trust domain is refused by {refused:#?}", judged.describe()));
    }
    let orders: Vec<(usize, Presented)> = unshared
        .iter()
        .enumerate()
        .flat_map(|(at, judged)| {
            let blocks = pem::blocks(judged.presented.roots.as_bytes()).unwrap();
            let mut roots: Vec<_> = blocks.iter().map(|block| pem::encode("CERTIFICATE", &block.der)).collect();
            (0..roots.len())
                .flat_map(|_| {
                    roots.rotate_left(1);
                    let in_order = |it: &Presented| (at, Presented { roots: roots.concat(), ..it.clone() });
                    [in_order(&judged.strict), in_order(&judged.elsewhere)]
                })
                .collect::<Vec<_>>()
        })
        .collect();
    let presented: Vec<_> = orders.iter().map(|(_, presented)| presented.clone()).collect();
    let refused: Vec<usize> =
        orders.iter().zip(verdicts(&presented)).filter(|(_, why)| !why.is_empty()).map(|((at, _), _)| *at).collect();
    let nobody = unshared.iter().enumerate().filter(|(at, _)| !refused.contains(at));
    faults.extend(nobody.map(|(_, judged)| format!("{}: nobody refuses it", judged.describe())));
    let taken = judged.iter().filter(|judged| judged.problems.is_empty()).count();
    println!("{taken} of {} taken, {} refused for one order of their roots alone", judged.len(), unshared.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert!((250..=750).contains(&taken), "{taken} of 1000 were taken");
}
