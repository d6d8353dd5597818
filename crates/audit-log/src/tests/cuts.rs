//! A crash between two segments: files that may then be missing, empty or incomplete.

use super::*;

/// File extensions of a segment.
const PARTS: [&str; 4] = ["jsonl", "hashes", "seal", "checkpoint"];

/// The first lines of a log's segments.
fn firsts(directory: &Path) -> Vec<u64> {
    let stem = |path: &std::path::PathBuf| path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    segments_of(directory).iter().map(stem).collect()
}

fn part(directory: &Path, first: u64, part: &str) -> std::path::PathBuf {
    directory.join(format!("{first:020}.{part}"))
}

/// Name and effect of a crash at the end of a segment, and how many bytes of an incomplete line it left.
type Crash = (&'static str, fn(&Path, u64, u64), usize);

const CRASHES: [Crash; 8] = [
    ("sealed, and nothing of the next", |_, _, _| {}, 0),
    ("not sealed yet", |at, last, _| fs::remove_file(part(at, last, "seal")).unwrap(), 0),
    (
        "not sealed, half of the hashes",
        |at, last, _| {
            fs::remove_file(part(at, last, "seal")).unwrap();
            let hashes = fs::read(part(at, last, "hashes")).unwrap();
            fs::write(part(at, last, "hashes"), &hashes[..hashes.len() / 2 + 5]).unwrap();
        },
        0,
    ),
    (
        "not sealed, no hashes",
        |at, last, _| {
            for name in ["seal", "hashes"] {
                fs::remove_file(part(at, last, name)).unwrap();
            }
        },
        0,
    ),
    ("the next is there and empty", |at, _, next| fs::write(part(at, next, "jsonl"), "").unwrap(), 0),
    (
        "the next is there and the last is not sealed",
        |at, last, next| {
            fs::write(part(at, next, "jsonl"), "").unwrap();
            fs::remove_file(part(at, last, "seal")).unwrap();
        },
        0,
    ),
    ("the next has half a line", |at, _, next| fs::write(part(at, next, "jsonl"), "{\"type\":").unwrap(), 8),
    (
        "the next has half a line and the last is not sealed",
        |at, last, next| {
            fs::write(part(at, next, "jsonl"), "{\"type\":").unwrap();
            fs::remove_file(part(at, last, "seal")).unwrap();
        },
        8,
    ),
];

#[test]
fn a_log_cut_between_segments() {
    let sound = tempfile::tempdir().unwrap();
    written(sound.path(), 12, 3000);
    let all = firsts(sound.path());
    assert!(all.len() > 3, "{all:?}");
    for pair in all.windows(2) {
        let (last, next) = (pair[0], pair[1]);
        for (name, crash, torn) in CRASHES {
            let cut = tempfile::tempdir().unwrap();
            copy(sound.path(), cut.path());
            // Later files did not exist yet, nor did their checkpoints.
            fs::remove_file(cut.path().join("checkpoint")).unwrap();
            for later in all.iter().filter(|first| **first >= next) {
                for name in PARTS {
                    let _ = fs::remove_file(part(cut.path(), *later, name));
                }
            }
            let _ = fs::remove_file(part(cut.path(), last, "checkpoint"));
            crash(cut.path(), last, next);
            let opened = runtime().block_on(async {
                let (log, opened) = open(settings(cut.path(), 3000)).unwrap_or_else(|error| panic!("{name}: {error}"));
                write(&log, 3).await;
                log.close().await;
                opened
            });
            assert_eq!(opened.lines, next, "{name}");
            let aside = opened.set_aside.map_or(0, |aside| usize::try_from(aside.bytes).unwrap());
            assert_eq!(aside, torn, "{name}");
            assert_eq!(findings(cut.path()), [], "{name}");
        }
    }
}

#[test]
fn a_segment_in_the_middle_that_is_gone_or_cut_is_refused() {
    let sound = tempfile::tempdir().unwrap();
    written(sound.path(), 12, 3000);
    let all = firsts(sound.path());
    let middle = all[1];
    let refused = |spoil: &dyn Fn(&Path)| {
        let cut = tempfile::tempdir().unwrap();
        copy(sound.path(), cut.path());
        spoil(cut.path());
        let opened = runtime().block_on(async { open(settings(cut.path(), 3000)).map(|_| ()) });
        let error = opened.unwrap_err().to_string();
        assert!(error.contains("log verify"), "the remedy is missing: {error}");
        error
    };
    let lines = fs::read(part(sound.path(), middle, "jsonl")).unwrap();
    let gone = refused(&|at| fs::remove_file(part(at, middle, "jsonl")).unwrap());
    assert!(gone.contains("missing"), "{gone}");
    let shorter = refused(&|at| fs::write(part(at, middle, "jsonl"), &lines[..lines.len() - 7]).unwrap());
    assert!(shorter.contains("was sealed at"), "{shorter}");
    let all_of_it = refused(&|at| {
        for name in PARTS {
            let _ = fs::remove_file(part(at, middle, name));
        }
    });
    assert!(all_of_it.contains("lines are missing before it"), "{all_of_it}");
}
