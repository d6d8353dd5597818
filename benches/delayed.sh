#!/usr/bin/env bash
# A slow token: how close daemon and token host get to the maximum of a token that takes 5 or 20 ms per signature,
# with 1 to 8 sessions. About ten minutes:
#
#   benches/delayed.sh [--seconds N] [--rounds N]      seconds of each open loop (6), and their number per line (5)
#
# The token is SoftHSM with tests/faulty-token, whose C_Sign sleeps to take that long in total. For each delay and
# number of sessions: the rate of a closed loop with 64 in flight and the token's own (`bench token`, right before); and
# latencies of open loops, Poisson arrivals at 80 % of that rate, and those of the queue M/D/s with the same
# arrivals (`--ideal-sessions`) and the token's time per signature in the loop (from the daemon's metrics: sleeps end
# later on a busier machine). Medians of the rounds are used: a single 50 ms pause of a virtual machine
# determines the p99 of a round. Server and load share all cores.
# The goals are for a machine whose token makes a P-256 signature in 59 us. On slower machines, everything else in a
# certificate takes longer, too: there the delay of 5 ms is also extended by that factor, which shows the ratio.
# CA=BINARY and FAULTY=LIBRARY use existing builds.
seconds=6 rounds=5
while (($#)); do
  case $1 in
    --seconds) seconds=${2:?--seconds needs a number} ;;
    --rounds) rounds=${2:?--rounds needs a number} ;;
    *) echo "usage: $0 [--seconds N] [--rounds N]" >&2; exit 2 ;;
  esac
  shift 2
done
# shellcheck source=benches/harness.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/harness.sh"

faulty_built
PARTS=none built
token p256 p256
alone p256 1 0.5 5
# 5 ms of the goals' machine, whose token takes 59 us, in tenths of a millisecond of this one.
signature=$(field cpu_us_per_signature)
there=$(( 50 * ${signature%.*} / 59 ))
there=$((there / 10)).$((there % 10))
note_run token.p256
echo "5 ms of the goals' machine are $there ms here"
faulty_token p256

for d in 5 "$there" 20; do
  micros=${d/./}
  [[ $d == *.* ]] && micros=${micros}00 || micros=${d}000
  echo "C_Sign takes=$micros" >"$memory/control"
  for s in 1 2 4 8; do
    line=$d/$s
    alone p256 "$s" 0.4 3
    note_run "$line/alone"
    alone=$(field signatures_per_second)
    SESSIONS=$s KEEP_ALIVE=1s daemon slow p256
    load slow --warm-up 0.5 --seconds 3
    note_run "$line/closed"
    for ((round = 0; round < rounds; round++)); do
      # At 80 % of the token's own rate.
      load slow --warm-up 1 --seconds "$seconds" --rate "$((${alone%.*} * 4 / 5))" --ideal-sessions "$s" \
        --ideal-metrics "127.0.0.1:${admin[slow]}"
      note_run "$line/open"
    done
    end_daemon slow
  done
done
summary
