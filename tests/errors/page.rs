//! docs/ERRORS.md: sections of cases.

use std::{fmt::Write, fs, path::PathBuf};

/// A refused input with its messages and remedies.
pub struct Case {
    /// What is wrong, as a heading.
    pub input: String,
    /// Every message, with its remedy.
    pub messages: Vec<(String, Option<String>)>,
}

/// The cases of one kind of input.
pub struct Section {
    pub title: &'static str,
    /// One or two sentences.
    pub about: &'static str,
    pub cases: Vec<Case>,
}

/// In the order of the page.
fn sections() -> Vec<Section> {
    vec![
        super::files::section(),
        super::keys::section(),
        super::chains::section(),
        super::requests::section(),
        super::configuration::section(),
        super::authentication::section(),
        super::commands::section(),
    ]
}

const HEAD: &str = "\
# Errors of inputs

What the program says about files and settings that it refuses, with the remedy it gives. Search for a part of your message;
names of files, dates and key identifiers differ. The page is made from the table of cases in `tests/errors`, which
verifies each message (`ERRORS_PAGE=write cargo test --test errors` writes the page).
";

fn rendered(sections: &[Section]) -> String {
    let mut page = HEAD.to_owned();
    for Section { title, .. } in sections {
        let anchor = title.to_lowercase().replace(' ', "-");
        write!(page, "\n- [{title}](#{anchor})").unwrap();
    }
    page.push('\n');
    for Section { title, about, cases } in sections {
        write!(page, "\n## {title}\n\n{about}\n").unwrap();
        for Case { input, messages } in cases {
            writeln!(page, "\n### {input}").unwrap();
            for (message, remedy) in messages {
                writeln!(page, "\n    {message}").unwrap();
                if let Some(remedy) = remedy {
                    writeln!(page, "    -> {remedy}").unwrap();
                }
            }
        }
    }
    page
}

#[test]
fn the_page_shows_what_people_are_told() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/ERRORS.md");
    let sections = sections();
    let page = rendered(&sections);
    if std::env::var("ERRORS_PAGE").is_ok_and(|value| value == "write") {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let differing = written.lines().zip(page.lines()).find(|(old, new)| old != new);
    assert!(
        written == page,
        "docs/ERRORS.md is out of date, first at {differing:#?}; run ERRORS_PAGE=write cargo test --test errors"
    );
}

#[test]
fn every_refusal_says_what_to_do() {
    // Refusals of callers show values in place of a remedy.
    let others = sections().into_iter().filter(|section| section.title != "Authentication");
    for Case { input, messages } in others.flat_map(|section| section.cases) {
        assert!(!messages.is_empty(), "{input}: nothing is said");
        for (message, remedy) in messages {
            assert!(
                remedy.is_some() || message.contains("; ") || message.contains(", expected "),
                "{input}: {message}"
            );
        }
    }
}
