//! docs/FAULTS.md: two of its tables are generated here, and CI checks that the committed page is up to date.

use std::{fmt::Write, fs, path::PathBuf, time::Duration};

use token::error::{Recovery, TABLE};

use super::{
    cell::{BACK, Outcome},
    plan::{FUNCTIONS, LASTING, Lasts, RECOVERIES, codes},
};

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/FAULTS.md")
}

/// After a run of all codes: stores the measurements and, with `FAULTS_PAGE=write`, inserts them into the page.
pub fn measured(outcomes: &[Outcome]) {
    let table = measured_table(outcomes);
    fs::write(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fault-matrix.md"), &table).unwrap();
    if std::env::var("FAULTS_PAGE").is_ok_and(|value| value == "write") {
        let page = fs::read_to_string(path()).unwrap();
        let page = with(&with(&page, "codes", &codes_table()), "measured", &table);
        fs::write(path(), page).unwrap();
    }
}

/// Functions by recovery; each cell has the three durations.
fn measured_table(outcomes: &[Outcome]) -> String {
    let names: Vec<String> =
        RECOVERIES.iter().map(|recovery| format!("{recovery:?} ({})", codes(*recovery).len())).collect();
    let mut table = format!("| function | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for (function, _) in FUNCTIONS {
        let cells: Vec<String> = RECOVERIES
            .iter()
            .map(|recovery| {
                let three = LASTING.map(|lasts| {
                    let of: Vec<&Outcome> = outcomes
                        .iter()
                        .filter(|outcome| {
                            outcome.function == function && outcome.code.recovery == *recovery && outcome.lasts == lasts
                        })
                        .collect();
                    worst(&of)
                });
                three.join(" / ")
            })
            .collect();
        writeln!(table, "| {function} | {} |", cells.join(" | ")).unwrap();
    }
    table
}

/// The worst of the codes with one recovery: tenths of seconds, and the means of recovery.
fn worst(outcomes: &[&Outcome]) -> String {
    let Some(back) = outcomes.iter().map(|outcome| outcome.back).max() else { return "-".to_owned() };
    let tenths = back.as_millis().div_ceil(100).max(1);
    let mark = match (outcomes.iter().any(|outcome| outcome.pin), outcomes.iter().any(|outcome| outcome.hosts > 0)) {
        (true, _) => "p",
        (false, true) => "h",
        (false, false) => "",
    };
    format!("{}.{}{mark}", tenths / 10, tenths % 10)
}

/// Every code with its recovery and reason.
fn codes_table() -> String {
    let mut table = "| code | | recovery | why |\n|---|---|---|---|\n".to_owned();
    for entry in TABLE {
        writeln!(table, "| 0x{:03x} | {} | {:?} | {} |", entry.code, entry.name, entry.recovery, entry.reason).unwrap();
    }
    table
}

fn marks(name: &str) -> (String, String) {
    (format!("<!-- made by `make faults`: {name} -->\n"), format!("<!-- end of {name} -->\n"))
}

fn section<'a>(page: &'a str, name: &str) -> &'a str {
    let (begin, end) = marks(name);
    let (_, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("docs/FAULTS.md lacks {begin}"));
    rest.split_once(&end).unwrap_or_else(|| panic!("docs/FAULTS.md lacks {end}")).0
}

fn with(page: &str, name: &str, content: &str) -> String {
    let (begin, _) = marks(name);
    page.replace(&format!("{begin}{}", section(page, name)), &format!("{begin}{content}"))
}

/// The row of the recovery table; the page must describe every variant.
fn heading(recovery: Recovery) -> &'static str {
    match recovery {
        Recovery::Retry => "| Retry |",
        Recovery::FixConfiguration | Recovery::FixKey => "| FixConfiguration |",
        Recovery::Relogin => "| Relogin |",
        Recovery::FixPin => "| FixPin |",
        Recovery::RejectRequest => "| RejectRequest |",
        Recovery::NewSession => "| NewSession |",
        Recovery::Ignore => "| Ignore |",
        Recovery::NewProcess => "| NewProcess |",
    }
}

#[test]
fn the_page_fits_the_code() {
    let page = fs::read_to_string(path()).unwrap();
    assert_eq!(section(&page, "codes"), codes_table(), "the table of codes is outdated: run `make faults`");
    for recovery in RECOVERIES {
        assert!(page.lines().any(|line| line.starts_with(heading(recovery))), "no row for {recovery:?}");
    }
    let rows: Vec<Vec<&str>> = section(&page, "measured")
        .lines()
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let [heads, _, rows @ ..] = rows.as_slice() else { panic!("nothing was measured: run `make faults`") };
    let expected: Vec<String> =
        RECOVERIES.iter().map(|recovery| format!("{recovery:?} ({})", codes(*recovery).len())).collect();
    assert_eq!(heads.get(1..).unwrap(), expected, "the recoveries or their codes have changed: run `make faults`");
    let functions: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(functions, FUNCTIONS.map(|(function, _)| function), "the functions have changed: run `make faults`");
    for row in rows {
        for cell in row.get(1..).unwrap() {
            let times: Vec<f64> =
                cell.split(" / ").map(|time| time.trim_end_matches(['h', 'p']).parse().unwrap()).collect();
            assert_eq!(times.len(), LASTING.len(), "{row:?}");
            assert!(times.iter().all(|time| *time <= BACK.as_secs_f64()), "{row:?}");
        }
    }
}

#[test]
fn a_section_is_replaced_and_the_rest_stays() {
    let page = "a\n<!-- made by `make faults`: codes -->\nold\n<!-- end of codes -->\nz\n";
    let new = with(page, "codes", "new\n");
    assert_eq!(section(&new, "codes"), "new\n");
    assert!(new.starts_with("a\n") && new.ends_with("\nz\n") && !new.contains("old"));
}

#[test]
fn worst_code_decides_the_cell() {
    let outcome = |milliseconds, hosts| Outcome {
        function: "C_Sign",
        code: TABLE[0],
        lasts: Lasts::Once,
        back: Duration::from_millis(milliseconds),
        served: 0,
        serving: 0.0,
        hosts,
        pin: false,
    };
    assert_eq!(worst(&[&outcome(10, 0), &outcome(1201, 0)]), "1.3");
    assert_eq!(worst(&[&outcome(10, 1), &outcome(0, 0)]), "0.1h");
}
