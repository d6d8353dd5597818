#!/usr/bin/env bash
# A slow token: how close daemon and token host come to what a token that takes 5 or 20 ms for each signature allows,
# with 1 to 8 sessions. About three minutes:
#
#   benches/delayed.sh [--seconds N]      of the open loop; 12 by default
#
# The token is SoftHSM behind tests/faulty-token, whose C_Sign sleeps so that it takes that long in all. For each delay and
# number of sessions: the rate of a closed loop with 64 in flight, beside the token's own (`bench token`, right before); and
# latencies of an open loop, Poisson arrivals at 80 % of that rate, beside those of the queue M/D/s with the very same
# arrivals (`--ideal-sessions`). Server and load share all cores.
# CA=BINARY and FAULTY=LIBRARY take what is built already.
seconds=12
case ${1:-} in
  --seconds) seconds=${2:?--seconds needs a number} ;;
  "") ;;
  *) echo "usage: $0 [--seconds N]" >&2; exit 2 ;;
esac
# shellcheck source=benches/harness.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/harness.sh"

if [[ -z ${CA:-} || -z ${FAULTY:-} ]]; then
  cargo build --quiet --release --locked --bin istio-hsm-ca --example workload_token
  target=${CARGO_TARGET_DIR:-$root/target}
  cargo build --quiet --release --locked --manifest-path tests/faulty-token/Cargo.toml --target-dir "$target/faulty-token"
  CA=$target/release/istio-hsm-ca FAULTY=$target/faulty-token/release/libfaulty_token.so
fi
PARTS=none built
token p256 p256
export FAULTY_TOKEN_MODULE FAULTY_TOKEN_CONTROL=$memory/control
FAULTY_TOKEN_MODULE=$(sed -n 's/^.*module-path=\([^&]*\).*$/\1/p' <<<"${uri[p256]}")
uri[p256]=${uri[p256]/"$FAULTY_TOKEN_MODULE"/"$FAULTY"}

printf '%8s %8s %10s %7s %8s %8s %8s %8s %8s %7s\n' d s 'token ms' rate/s 'of token' 'at /s' 'p50 ms' 'p99 ms' 'M/D/s' ratio
worst_rate=9 worst_ratio=0 worst_of_eight=0
for d in 5 20; do
  echo "C_Sign takes=$((d * 1000))" >"$memory/control"
  for s in 1 2 4 8; do
    alone p256 "$s" 0.4 3
    alone=$(calculate "$s / $(field signatures_per_second) * 1e6" 0)
    SESSIONS=$s daemon slow p256
    load slow --warm-up 0.5 --seconds 3
    rate=$(field certificates_per_second)
    # Of what the token alone signs: a sleep of 5 ms ends half a millisecond late here.
    share=$(calculate "$rate * $alone / 1e6 / $s" 3)
    offered=$(calculate "0.8 * $s * 1e6 / $alone" 1)
    load slow --warm-up 1 --seconds "$seconds" --rate "$offered" --ideal-sessions "$s" --ideal-signature "$alone"
    p50=$(field p50_us latency) p99=$(field p99_us latency) ideal=$(field p99_us ideal_latency)
    end_daemon slow
    ratio=$(calculate "$p99 / $ideal")
    printf '%8s %8s %10s %7s %8s %8s %8s %8s %8s %7s\n' "$d ms" "$s" "$(calculate "$alone / 1000")" \
      "$(calculate "$rate" 0)" "$share" "$offered" "$(calculate "$p50 / 1000" 1)" "$(calculate "$p99 / 1000" 1)" \
      "$(calculate "$ideal / 1000" 1)" "$ratio"
    worst_rate=$(calculate "($share < $worst_rate) ? $share : $worst_rate" 3)
    worst_ratio=$(calculate "($ratio > $worst_ratio) ? $ratio : $worst_ratio")
    (( s != 8 )) || worst_of_eight=$(calculate "($p99 / 1000 / $d > $worst_of_eight) ? $p99 / 1000 / $d : $worst_of_eight")
  done
done
echo
goal "slow token: rate / the token's own, the worst" "$worst_rate" '>=' 0.9
goal "slow token, 80 % load: p99 / that of M/D/s, the worst" "$worst_ratio" '<=' 1.2
goal "slow token, 80 % load, 8 sessions: p99 / d, the worst" "$worst_of_eight" '<' 3
