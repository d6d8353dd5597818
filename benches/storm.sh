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
lost=0 memory_most=0 tries=
for ((round = 1; round <= rounds; round++)); do
  printf 'round %d of %d\n' "$round" "$rounds" >&2
  parts measure-storm
  CORES=0 alone p256 1 0.4 2
  note token "$(field cpu_us_per_signature)"
  LOAD_CORES=1 echo_load --storm "$agents" --storm-sources "$sources"
  note rpc "$(field daemon_cpu_us_per_certificate)"
  note rpc.rate "$(field certificates_per_second)"
  CORES=0 daemon whole p256
  LOAD_CORES=1 load whole --storm "$agents" --storm-sources "$sources"
  note whole "$(field daemon_cpu_us_per_certificate)"
  note rate "$(field certificates_per_second)"
  note seconds "$(field seconds)"
  lost=$((lost + $(field agents) - $(field served)))
  tries=$(tr -d ' \n' <"$memory/run" | sed -n 's/.*"tries":{\([^}]*\)}.*/\1/p')
  now=$(sed -n 's/^VmHWM:[[:space:]]*\([0-9]*\) kB$/\1/p' "/proc/${pid[whole]}/status")
  (( now <= memory_most )) || memory_most=$now
  end_daemon whole
done
# The frames between daemon and token host: a constant, as in endpoint.sh.
sum=$(calculate "$(median rpc) + $(median part.csr) + $(median part.jwt-new) + $(median part.tbs-p256) + $(median part.verify-p256) + $(median part.host-check) + $(median part.telemetry) + $(median part.log) + $(median token) + 3.2" 1)
echo "agents $agents, served in $(median seconds) s, $(median rate) a second; tries (number: agents): $tries"
echo "CPU us an agent: $(median whole); of the parts $sum, with $(median rpc) for connection, TLS and RPC, and $(median part.jwt-new) for a token not seen before"
echo "the connections alone: $(median rpc.rate) a second"
goal "storm: agents without a certificate" "$lost" '<=' 0
goal "storm: rate for CPU time / what new connections and the other parts allow" "$(calculate "$sum / $(median whole)")" '>=' 0.8
goal "storm: the daemon's memory at most, MiB" "$(calculate "$memory_most / 1024" 0)" '<=' "$((40 + agents * 64 / 1024))"
