#!/usr/bin/env bash
# Coverage-guided fuzzing (libFuzzer) of the parsers that read input from outside; see fuzz/src/targets.rs.
#
#   scripts/fuzz.sh SECONDS [TARGET...]     runs each target, or those named, for so long
#   scripts/fuzz.sh --merge [TARGET...]     adds what was found to fuzz/corpus, as far as it covers more code
#
# Inputs that are found stay in target/fuzz/corpus for the next run. An input that fails is kept there as well and named: add
# it to fuzz/corpus/TARGET, where `make test` runs it, and fix what it shows.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

case ${1:-} in
  --merge) seconds= ;;
  '' | *[!0-9]*) echo "usage: scripts/fuzz.sh SECONDS|--merge [TARGET...]" >&2; exit 2 ;;
  *) seconds=$1 ;;
esac
shift
(($#)) || set -- $(ls fuzz/corpus)

# The flags of cargo-fuzz, which the stable compiler takes as well. With a target, so that build scripts do without.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS=${coverage//$'\n'/ } cargo build --locked --release --quiet --manifest-path fuzz/Cargo.toml --target "$host" \
  --target-dir target/fuzz
fuzzer=target/fuzz/$host/release/fuzz

failed=0
for target in "$@"; do
  [[ -d fuzz/corpus/$target ]] || { echo "there is no fuzz/corpus/$target" >&2; exit 2; }
  found=target/fuzz/corpus/$target
  mkdir -p "$found"
  log=target/fuzz/$target.log
  if [[ -z $seconds ]]; then
    FUZZ_TARGET=$target "$fuzzer" -merge=1 "fuzz/corpus/$target" "$found" >"$log" 2>&1 || failed=1
  else
    FUZZ_TARGET=$target "$fuzzer" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=8192 \
      -artifact_prefix="target/fuzz/failed-$target-" "$found" "fuzz/corpus/$target" >"$log" 2>&1 || failed=1
  fi
  if ((failed)); then
    tail -n 40 "$log" >&2
    echo "$target fails; its input is the one that the line 'Test unit written to' names (log: $log)" >&2
    exit 1
  fi
  echo "$target: $(sed -n 's/^Done \([0-9]*\) runs in.*/\1 inputs/p' "$log" | tail -n 1), none fails"
done
