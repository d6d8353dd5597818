#!/usr/bin/env bash
# A storm: ten thousand agents start at once, each with its own connection, identity and JWT.
#
#   benches/storm.sh [--agents N] [--rounds N]      10,000 and 2 by default; a minute or two
#
# Prints whether all were served, the daemon's peak memory, and the rate compared with that of the parts: the same storm
# against `parts echo` (connection, TLS, RPC and nothing else) measures the connections, the others are measured
# as in endpoint.sh. The daemon with its token host runs on core 0 and the agents on core 1. Limits are the defaults;
# the agents use as many addresses as the limit of connections per address requires.
# CA=BINARY and PARTS=BENCH use existing builds.
agents=10000 rounds=2
while (( $# )); do
  case $1 in
    --agents) agents=${2:?--agents needs a number}; shift 2 ;;
    --rounds) rounds=${2:?--rounds needs a number}; shift 2 ;;
    *) echo "usage: $0 [--agents N] [--rounds N]" >&2; exit 2 ;;
  esac
done
# shellcheck source=benches/harness.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/harness.sh"
(( $(nproc) >= 2 )) || fail "two cores are needed, one for the server and one for the agents"
(( $(ulimit -Hn) >= agents + 500 )) || fail "the hard limit of open files ($(ulimit -Hn)) is too low for $agents agents"

built
token p256 p256
sources=$((agents / 1000 + 1))
echo_server
for ((round = 1; round <= rounds; round++)); do
  printf 'round %d of %d\n' "$round" "$rounds" >&2
  parts measure-storm
  CORES=0 alone p256 1 0.4 2
  note_run token.p256
  LOAD_CORES=1 echo_load --storm "$agents" --storm-sources "$sources"
  note_run rpc
  CORES=0 daemon whole p256
  LOAD_CORES=1 load whole --storm "$agents" --storm-sources "$sources"
  note_run whole
  note memory.peak "$(sed -n 's/^VmHWM:[[:space:]]*\([0-9]*\) kB$/\1/p' "/proc/${pid[whole]}/status")"
  end_daemon whole
done
summary
