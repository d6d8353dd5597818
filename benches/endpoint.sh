#!/usr/bin/env bash
# Cost of a certificate in the daemon and its token host, compared with the cost of its parts, with SoftHSM:
#
#   benches/endpoint.sh [--rounds N]      3 rounds by default, about six minutes
#
# prints each goal of docs/PERFORMANCE.md with the figures of this run. Server and token host run on core 0 and the load
# on core 1, then both on both cores. Parts and whole alternate in slices of about the same length; medians are used
# (see harness.sh). CPU time is from /proc/PID/stat. Token and bundle are in memory (/dev/shm), the issuance log on
# the disk of TMPDIR; "no flush" is the same daemon with its log in memory, where fdatasync(2) costs nothing.
# KEEP=FILE appends every single figure to FILE. CA=BINARY and PARTS=BENCH use existing builds.
rounds=3
case ${1:-} in
  --rounds) rounds=${2:?--rounds needs a number} ;;
  "") ;;
  *) echo "usage: $0 [--rounds N]" >&2; exit 2 ;;
esac
# shellcheck source=benches/harness.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/harness.sh"
(( $(nproc) >= 2 )) || fail "two cores are needed, one for the server and one for the load"

# whole DAEMON SECONDS ARGUMENTS...: one slice.
whole() {
  local name=$1
  load "$name" --warm-up 0.2 --seconds "${@:2}"
  note_run "${AS:-$name}"
}
token_alone() { # TOKEN SESSIONS SECONDS NAME
  alone "$1" "$2" "$3" 1
  note_run "$4"
}
resident() { # PID: KiB of a process and its children in memory; a page that they share, such as the program's, counts once
  local all=0 one size
  for one in "$1" $(cat "/proc/$1/task/"*/children); do
    size=$(sed -n 's/^Pss:[[:space:]]*\([0-9]*\) kB$/\1/p' "/proc/$one/smaps_rollup")
    all=$((all + size))
  done
  echo "$all"
}

built
token p256 p256
token rsa rsa-2048
# Restarted in each round: a process's placement in memory makes a difference of up to a tenth for its lifetime.
daemons() {
  CORES=0 daemon p256 p256
  # Before any load, after the libraries have started.
  sleep 2
  note memory.idle "$(resident "${pid[p256]}")"
  CORES=0 LOG=$memory/p256-log daemon p256-memory p256
  CORES=0,1 daemon p256-two p256
  CORES=0,1 LOG=$memory/p256-two-log daemon p256-two-memory p256
  CORES=0 daemon rsa rsa
  CORES=0,1 SESSIONS=2 daemon rsa-two rsa
}
echo_server

for ((round = 1; round <= rounds; round++)); do
  printf 'round %d of %d\n' "$round" "$rounds" >&2
  daemons
  CORES=0 LOAD_CORES=1
  for _ in 1 2 3 4; do
    parts
    token_alone p256 1 0.6 token.p256
    whole p256 0.6
    echo_load --warm-up 0.2 --seconds 0.6
    note_run rpc
    whole p256-memory 0.6
    AS=p256-one whole p256 0.5 --connections 1 --streams 1
    AS=p256-one-memory whole p256-memory 0.5 --connections 1 --streams 1
  done
  for _ in 1 2 3 4; do
    token_alone rsa 1 1.5 token.rsa
    # Long compared with the tenth of a second that a request waits.
    whole rsa 1.5
    echo_load --warm-up 0.2 --seconds 1 --new-connections
    note_run rpc-new
    # As ztunnel does: a connection for nearly each certificate, with and without resumption; and without TCP_NODELAY.
    AS=p256-new whole p256 1 --new-connections
    AS=p256-new-resumed whole p256 1 --new-connections --resume
    AS=p256-new-jwt whole p256 1 --new-connections --jwt
    AS=p256-new-jwt-resumed whole p256 1 --new-connections --jwt --resume
    AS=p256-one-new whole p256 0.5 --connections 1 --streams 1 --new-connections --delay
    AS=p256-one-new-resumed whole p256 0.5 --connections 1 --streams 1 --new-connections --resume --delay
    AS=p256-one-delay whole p256 0.5 --connections 1 --streams 1 --delay
  done
  CORES=0,1 LOAD_CORES=0,1
  for _ in 1 2 3 4; do
    whole p256-two 1
    whole p256-two-memory 1
    token_alone rsa 2 1.5 token.rsa-two
    whole rsa-two 1.5
  done
  for name in p256-memory p256-two p256-two-memory rsa rsa-two; do end_daemon "$name"; done
  (( round == rounds )) || end_daemon p256
done

# A thousand mostly idle connections.
LOAD_CORES=1
connected() { load p256 --connections "$1" --streams 1 --rate 50 --warm-up 1 --seconds "$2"; }
connected 8 1
note memory.few "$(resident "${pid[p256]}")"
connected 1000 4 &
loading=$!
largest=0
while kill -0 "$loading" 2>/dev/null; do
  now=$(resident "${pid[p256]}")
  (( now <= largest )) || largest=$now
  sleep 0.2
done
wait "$loading"
note memory.connected "$largest"
summary
