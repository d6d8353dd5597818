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

# keep PREFIX: stores the figures of the last load.
keep() {
  note "$1.rate" "$(field certificates_per_second)"
  note "$1.cpu" "$(field daemon_cpu_us_per_certificate)"
  note "$1.p50" "$(field p50_us)"
}
# whole DAEMON SECONDS ARGUMENTS...: one slice.
whole() {
  local name=$1
  load "$name" --warm-up 0.2 --seconds "${@:2}"
  keep "${AS:-$name}"
}
token_alone() { # TOKEN SESSIONS SECONDS PREFIX
  alone "$1" "$2" "$3" 1
  note "$4.rate" "$(field signatures_per_second)"
  note "$4.cpu" "$(field cpu_us_per_signature)"
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
    keep rpc
    whole p256-memory 0.6
    AS=p256-one whole p256 0.5 --connections 1 --streams 1
    AS=p256-one-memory whole p256-memory 0.5 --connections 1 --streams 1
  done
  for _ in 1 2 3 4; do
    token_alone rsa 1 1.5 token.rsa
    # Long compared with the tenth of a second that a request waits.
    whole rsa 1.5
    echo_load --warm-up 0.2 --seconds 1 --new-connections
    keep rpc-new
    AS=p256-new whole p256 1 --new-connections
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
before=$(resident "${pid[p256]}")
connected 1000 4 &
loading=$!
largest=0
while kill -0 "$loading" 2>/dev/null; do
  now=$(resident "${pid[p256]}")
  (( now <= largest )) || largest=$now
  sleep 0.2
done
wait "$loading"
note memory.connection "$(calculate "($largest - $before) / 1000" 1)"

# --- the report ---

show() { for name in "$@"; do printf '  %-20s %-8.5g best %.5g\n' "$name" "$(median "$name")" "$(best "$name")"; done; }
# The frames between daemon and token host: not measured here; see docs/PERFORMANCE.md for the source.
transport=3.2
soft="{part.csr} + {part.jwt} + {part.telemetry} + {part.log} + {part.host-check} + $transport"
sum_p256="{rpc.cpu} + $soft + {part.tbs-p256} + {part.verify-p256} + {token.p256.cpu}"
sum_rsa="{rpc.cpu} + $soft + {part.tbs-rsa} + {part.verify-rsa} + {token.rsa.cpu}"
sum_new="{rpc-new.cpu} + $soft + {part.tbs-p256} + {part.verify-p256} + {token.p256.cpu}"
# reach TEXT EXPRESSION DIGITS COMPARISON GOAL: checks the median; also prints the result of the best slices.
reach() {
  goal "$1 [$(calculate "$(figures_of best "$2")" "$3")]" "$(calculate "$(figures_of median "$2")" "$3")" "$4" "$5"
}
sum() { calculate "$(figures_of median "$1")" 0; }

echo "parts, CPU us each:"
show part.csr part.jwt part.tbs-p256 part.verify-p256 part.tbs-rsa part.verify-rsa part.host-check part.telemetry part.log rpc.cpu \
  rpc-new.cpu token.p256.cpu token.rsa.cpu
echo "  transport            $transport (constant)"
echo "whole:"
show p256.cpu p256.rate p256.p50 p256-memory.cpu p256-memory.rate rsa.cpu rsa.rate p256-new.cpu p256-new.rate \
  p256-two.cpu p256-two.rate p256-two-memory.rate rsa-two.cpu rsa-two.rate token.p256.rate token.rsa.rate \
  token.rsa-two.rate p256-one.p50 p256-one-memory.p50
echo "every p256.cpu: $(every p256.cpu | cut -d. -f1 | tr '\n' ' ')"
# The goals in units of time are for a machine whose token makes a P-256 signature in 59 us.
slower="({token.p256.cpu} / 59)"
echo "this machine's P-256 signature takes $(calculate "$(figures_of median "$slower")") times that of the goals' machine (59 us)"
echo
echo "by medians [by the best slices]"
reach "P-256: CPU per certificate / sum of its parts ($(sum "$sum_p256") us)" "{p256.cpu} / ($sum_p256)" 2 '<=' 1.15
reach "RSA-2048: the same ($(sum "$sum_rsa") us)" "{rsa.cpu} / ($sum_rsa)" 2 '<=' 1.05
reach "RSA-2048: rate / the token's own, one core" "{rsa.rate} / {token.rsa.rate}" 2 '>=' 0.85
reach "RSA-2048: what the sum of its parts would be" "{token.rsa.cpu} / ($sum_rsa)" 2 '>=' 0.85
reach "RSA-2048: rate / the token's own, two cores that the load shares" "{rsa-two.rate} / {token.rsa-two.rate}" 2 '>=' 0.85
reach "P-256, cached JWT: certificates per CPU-second" "1e6 / {p256.cpu}" 0 '>=' 4000
reach "P-256, cached JWT: the same on the goals' machine" "1e6 / {p256.cpu} * $slower" 0 '>=' 4000
one="({p256-one.p50} - {token.p256.cpu}) / 1000" one_memory="({p256-one-memory.p50} - {token.p256.cpu}) / 1000"
reach "one in flight: p50 less the token's signature, ms" "$one" 2 '<=' 0.6
reach "one in flight: the same on the goals' machine, ms" "$one / $slower" 2 '<=' 0.6
reach "one in flight, no flush: p50 less the token's signature, ms" "$one_memory" 2 '<=' 0.4
reach "one in flight, no flush: the same on the goals' machine, ms" "$one_memory / $slower" 2 '<=' 0.4
# By CPU time: the load's own handshakes cost more than the server's, so its core may be the busy one.
reach "new mTLS connection each: per CPU-second / what the parts allow ($(sum "$sum_new") us)" "($sum_new) / {p256-new.cpu}" 2 '>=' 0.8
reach "durable log on / off: rate, server on one core" "{p256.rate} / {p256-memory.rate}" 2 '>=' 0.95
reach "durable log on / off: rate, two cores" "{p256-two.rate} / {p256-two-memory.rate}" 2 '>=' 0.85
goal "memory idle, daemon and token host, MiB" "$(calculate "$(median memory.idle) / 1024" 1)" '<=' 40
goal "memory for each further connection, KiB" "$(median memory.connection)" '<=' 64
