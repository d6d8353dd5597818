//! Certificate requests.

use pki::{VerifiedCsr, testing::WORKLOAD};
use rcgen::CertificateParams;

use super::page::{Case, Section};

fn good() -> String {
    CertificateParams::default().serialize_request(&*WORKLOAD).unwrap().pem().unwrap()
}

pub fn section() -> Section {
    let certificate = rcgen::CertificateParams::default().self_signed(&*WORKLOAD).unwrap().pem();
    let good = good();
    let cases = [
        ("No PEM block", String::new()),
        ("A certificate in place of a request", certificate),
        ("Base64 of a request in PEM", base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &good)),
        ("A request with \\n as two characters", good.replace('\n', "\\n")),
        ("A request folded into one line", good.replace('\n', " ")),
        ("A damaged request", good.replacen("MI", "M*", 1)),
    ];
    let cases = cases.map(|(input, text)| {
        let messages = VerifiedCsr::from_pem(&text).err().map(|error| (error.to_string(), None));
        Case { input: input.to_owned(), messages: messages.into_iter().collect() }
    });
    Section {
        title: "Certificate requests",
        about: "Workloads, cert-manager and `issue` send them. Byte order marks and zero-width characters are skipped.",
        cases: cases.into(),
    }
}

#[test]
fn marks_in_a_request_are_skipped() {
    let text = format!("\u{feff}{}", good().replacen("MI", "M\u{200b}I", 1));
    assert!(VerifiedCsr::from_pem(&text).is_ok());
}
