#!/usr/bin/env bash
# What a certificate costs in the daemon and its token host, beside what its parts cost, with SoftHSM:
#
#   benches/endpoint.sh [--rounds N]      3 rounds by default, about three minutes
#
# prints each goal of docs/PERFORMANCE.md with the figures of this run. Server and token host run on core 0 and the load
# on core 1, then both on both cores. Parts and whole alternate, and medians count, since machines are noisy; CPU time is
# that of /proc/PID/stat. The token and the bundle are in memory (/dev/shm), the issuance log on the disk of TMPDIR;
# "no flush" is the same daemon with its log in memory, where fdatasync(2) costs nothing.
# KEEP=FILE appends every single figure to FILE.
set -euo pipefail
umask 077
root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
cd "$root"
rounds=3
case ${1:-} in
  --rounds) rounds=${2:?--rounds needs a number} ;;
  "") ;;
  *) echo "usage: $0 [--rounds N]" >&2; exit 2 ;;
esac
fail() { printf 'endpoint: %s\n' "$*" >&2; exit 1; }
(( $(nproc) >= 2 )) || fail "two cores are needed, one for the server and one for the load"

memory=$(mktemp -d "/dev/shm/istio-hsm-ca-bench.XXXXXX")
disk=$(mktemp -d "${TMPDIR:-/tmp}/istio-hsm-ca-bench.XXXXXX")
figures=$memory/figures
: >"$figures"
started=()
stop() {
  local status=$? pid
  trap - EXIT INT TERM
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
  [[ -z ${KEEP:-} ]] || cat "$figures" >>"$KEEP"
  rm -rf "$memory" "$disk"
  exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
quietly() { "$@" >"$memory/output" 2>&1 || { cat "$memory/output" >&2; fail "this failed: $*"; }; }

if [[ -z ${CA:-} || -z ${PARTS:-} ]]; then
  cargo build --quiet --release --locked --bin istio-hsm-ca --example workload_token
  cargo bench --locked --no-run --bench parts 2>"$memory/build" || { cat "$memory/build" >&2; exit 1; }
  PARTS=$root/$(sed -n 's/^ *Executable benches\/parts\.rs (\(.*\))$/\1/p' "$memory/build")
  CA=${CARGO_TARGET_DIR:-$root/target}/release/istio-hsm-ca
fi
ca=$CA parts=$PARTS
workload_token=$(dirname "$ca")/examples/workload_token

issuer=https://bench.invalid server_name=istiod.istio-system.svc
quietly "$workload_token" --directory "$memory/issuer" --issuer "$issuer" --audience istio-ca \
  --namespace bench --service-account w0 --out "$memory/workload-token"

# --- set-up ---

# token NAME TYPE: a SoftHSM token with an imported plug-in CA of a type.
declare -A uri
token() {
  local dir=$memory/$1
  uri[$1]=$(softhsm/init.sh "$dir")
  softhsm/sample-ca.sh "$dir/cacerts" --type "$2"
  SOFTHSM2_CONF=$dir/softhsm2.conf quietly "$ca" import --from "$dir/cacerts" --token "${uri[$1]}" \
    --pin-file "$dir/pin" --bundle "$dir/bundle"
}

# daemon NAME TOKEN CORES SESSIONS LOG_DIRECTORY: starts it and waits until it is ready.
declare -A pid port
next_port=$((20000 + RANDOM % 8000))
free_port() {
  while (exec 3<>"/dev/tcp/127.0.0.1/$next_port") 2>/dev/null; do next_port=$((next_port + 1)); done
  next_port=$((next_port + 1))
}
ready() {
  local line
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3
  IFS= read -r -t 5 line <&3 || line=
  exec 3>&-
  [[ $line == *" 200 "* ]]
}
daemon() {
  local name=$1 dir=$memory/$2 admin
  free_port; port[$name]=$((next_port - 1))
  free_port; admin=$((next_port - 1))
  cat >"$memory/$name.toml" <<TOML
[ca]
bundle = "$dir/bundle"
trust_domains = ["cluster.local"]
[[token]]
name = "softhsm"
uri = "${uri[$2]}"
sessions = $4
[listen]
address = "127.0.0.1:${port[$name]}"
limits = { connections_per_address = 4096 }
[serving]
dns_names = ["$server_name"]
[[auth.jwt]]
issuer = "$issuer"
keys = { file = { path = "$memory/issuer/jwks.json" } }
audiences = ["istio-ca"]
trust_domain = "cluster.local"
[log]
directory = "$5"
[admin]
address = "127.0.0.1:$admin"
TOML
  SOFTHSM2_CONF=$dir/softhsm2.conf taskset -c "$3" "$ca" serve --config "$memory/$name.toml" 2>"$disk/$name.log" &
  pid[$name]=$!
  started+=("$!")
  for _ in {1..150}; do
    kill -0 "${pid[$name]}" 2>/dev/null || { tail -n 20 "$disk/$name.log" >&2; fail "the daemon $name ended"; }
    ready "$admin" 2>/dev/null && return
    sleep 0.1
  done
  tail -n 20 "$disk/$name.log" >&2
  fail "the daemon $name was not ready within 15 seconds"
}

# --- figures ---

note() { printf '%s %s\n' "$1" "$2" >>"$figures"; }
field() { sed -n "s/^.*\"$1\": *\([0-9.]*\).*$/\1/p" "$2" | head -n 1; }
# drive CORES NAME PREFIX ADDRESS ROOTS PID ARGUMENTS...: loads a server and keeps rate, CPU and p50.
drive() {
  local cores=$1 prefix=$2 address=$3 roots=$4 server=$5
  shift 5
  taskset -c "$cores" "$ca" bench endpoint --address "$address" --server-name "$server_name" --roots "$roots" \
    --token-key "$memory/issuer/key.pem" --issuer "$issuer" --pid "$server" --output json "$@" >"$memory/run" ||
    { cat "$memory/run" >&2; fail "the load on $prefix failed"; }
  grep -q '"errors": *{}' "$memory/run" || { echo "errors in $prefix:" >&2; grep -A3 '"errors"' "$memory/run" >&2; }
  note "$prefix.rate" "$(field certificates_per_second "$memory/run")"
  note "$prefix.cpu" "$(field daemon_cpu_us_per_certificate "$memory/run")"
  note "$prefix.p50" "$(field p50_us "$memory/run")"
}
# load CORES DAEMON TOKEN PREFIX ARGUMENTS...
load() {
  local cores=$1 name=$2 token=$3 prefix=$4
  shift 4
  drive "$cores" "$prefix" "127.0.0.1:${port[$name]}" "$memory/$token/bundle/root-cert.pem" "${pid[$name]}" "$@"
}
alone() { # CORES TOKEN SESSIONS PREFIX
  SOFTHSM2_CONF=$memory/$2/softhsm2.conf taskset -c "$1" "$ca" bench token --token "${uri[$2]}" --output json \
    --ca-cert "$memory/$2/bundle/ca-cert.pem" --sessions "$3" --rounds 2 --seconds 0.4 >"$memory/run"
  note "$4.rate" "$(field signatures_per_second "$memory/run")"
  note "$4.cpu" "$(field cpu_us_per_signature "$memory/run")"
}
resident() { # PID: KiB of a process and its children
  local all=0 one size
  for one in "$1" $(cat "/proc/$1/task/"*/children); do
    size=$(sed -n 's/^VmRSS:[[:space:]]*\([0-9]*\) kB$/\1/p' "/proc/$one/status")
    all=$((all + size))
  done
  echo "$all"
}
median() { sed -n "s/^$1 //p" "$figures" | sort -g | awk '{v[NR]=$1} END {if (NR) print v[int((NR+1)/2)]; else print "nan"}'; }
calculate() { awk "BEGIN {printf \"%.${2:-2}f\", $1}" </dev/null; }

token p256 p256
token rsa rsa-2048
daemon p256 p256 0 1 "$disk/p256"
# Before any load; the libraries' start-up has settled.
sleep 2
note memory.idle "$(resident "${pid[p256]}")"
daemon p256-memory p256 0 1 "$memory/p256-log"
daemon p256-two p256 0,1 1 "$disk/p256-two"
daemon p256-two-memory p256 0,1 1 "$memory/p256-two-log"
daemon rsa rsa 0 1 "$disk/rsa"
daemon rsa-two rsa 0,1 2 "$disk/rsa-two"
mkdir "$memory/echo"
taskset -c 0 "$parts" echo "$memory/echo" >"$memory/echo/address" &
echo_pid=$!
started+=("$echo_pid")
for _ in {1..50}; do [[ -s $memory/echo/address ]] && break; sleep 0.1; done
echo_address=$(<"$memory/echo/address")
rpc() { drive 1 "$1" "$echo_address" "$memory/echo/root.pem" "$echo_pid" --warm-up 0.3 --seconds "${@:2}"; }

for ((round = 1; round <= rounds; round++)); do
  printf 'round %d of %d\n' "$round" "$rounds" >&2
  [[ ! -d $disk/parts ]] || rm -rf "$disk/parts"
  mkdir "$disk/parts"
  taskset -c 0 "$parts" measure "$disk/parts" 2>"$disk/parts.log" | sed 's/^/part./' >>"$figures"
  # Twice each, so that a disturbance does not fall on one of them alone.
  for _ in 1 2; do
    alone 0 p256 1 token.p256
    load 1 p256 p256 p256 --warm-up 0.5 --seconds 2
    rpc rpc 1
    load 1 p256-memory p256 p256-memory --warm-up 0.5 --seconds 2
    alone 0 rsa 1 token.rsa
    load 1 rsa rsa rsa --warm-up 0.5 --seconds 2
  done
  rpc rpc-new 1.5 --new-connections
  load 1 p256 p256 p256-new --new-connections --warm-up 0.5 --seconds 2
  load 1 p256 p256 p256-one --connections 1 --streams 1 --warm-up 0.3 --seconds 1.5
  load 1 p256-memory p256 p256-one-memory --connections 1 --streams 1 --warm-up 0.3 --seconds 1.5
  load 0,1 p256-two p256 p256-two --warm-up 0.5 --seconds 2
  load 0,1 p256-two-memory p256 p256-two-memory --warm-up 0.5 --seconds 2
  alone 0,1 rsa 2 token.rsa-two
  load 0,1 rsa-two rsa rsa-two --warm-up 0.5 --seconds 2
done

# A thousand connections, each idle but for a request now and then.
connected() { load 1 p256 p256 connections --connections "$1" --streams 1 --rate 50 --warm-up 1 --seconds "$2"; }
connected 8 1
before=$(resident "${pid[p256]}")
connected 1000 4 &
loading=$!
most=0
while kill -0 "$loading" 2>/dev/null; do
  now=$(resident "${pid[p256]}")
  (( now <= most )) || most=$now
  sleep 0.2
done
wait "$loading"
note memory.connection "$(calculate "($most - $before) / 1000" 1)"

# --- the report ---

show() { for name in "$@"; do printf '  %-18s %s\n' "$name" "$(median "$name")"; done; }
# The frames between daemon and token host: not measured here, docs/PERFORMANCE.md says from where it is.
transport=3.2
soft=$(calculate "$(median rpc.cpu) + $(median part.csr) + $(median part.jwt) + $(median part.telemetry) + $(median part.log) + $(median part.host-check) + $transport" 1)
sum_p256=$(calculate "$soft + $(median part.tbs-p256) + $(median part.verify-p256) + $(median token.p256.cpu)" 1)
sum_rsa=$(calculate "$soft + $(median part.tbs-rsa) + $(median part.verify-rsa) + $(median token.rsa.cpu)" 1)
sum_new=$(calculate "$sum_p256 - $(median rpc.cpu) + $(median rpc-new.cpu)" 1)

echo "parts, CPU us each (median):"
show part.csr part.jwt part.tbs-p256 part.verify-p256 part.tbs-rsa part.verify-rsa part.host-check part.telemetry part.log rpc.cpu \
  rpc-new.cpu token.p256.cpu token.rsa.cpu
echo "  transport          $transport (constant)"
echo "whole (median):"
show p256.cpu p256.rate p256.p50 p256-memory.cpu p256-memory.rate rsa.cpu rsa.rate p256-new.cpu p256-new.rate \
  p256-two.cpu p256-two.rate p256-two-memory.rate rsa-two.cpu rsa-two.rate token.p256.rate token.rsa.rate \
  token.rsa-two.rate p256-one.p50 p256-one-memory.p50
echo "spread of p256.cpu over the rounds: $(sed -n 's/^p256.cpu //p' "$figures" | sort -g | tr '\n' ' ')"
echo
goal() { # TEXT VALUE COMPARISON GOAL
  local verdict
  verdict=$(awk "BEGIN {print ($2 $3 $4) ? \"reached\" : \"MISSED\"}" </dev/null)
  printf '%-78s %9s  goal %s %-6s %s\n' "$1" "$2" "$3" "$4" "$verdict"
}
signature=$(median token.p256.cpu)
goal "P-256: CPU per certificate / sum of its parts ($sum_p256 us)" "$(calculate "$(median p256.cpu) / $sum_p256")" '<=' 1.15
goal "RSA-2048: the same ($sum_rsa us)" "$(calculate "$(median rsa.cpu) / $sum_rsa")" '<=' 1.05
goal "RSA-2048: rate / the token's own, one core" "$(calculate "$(median rsa.rate) / $(median token.rsa.rate)")" '>=' 0.85
goal "RSA-2048: the same by CPU time, which other programs disturb less" "$(calculate "$(median token.rsa.cpu) / $(median rsa.cpu)")" '>=' 0.85
goal "RSA-2048: rate / the token's own, two cores that the load shares" "$(calculate "$(median rsa-two.rate) / $(median token.rsa-two.rate)")" '>=' 0.85
goal "P-256, cached JWT: certificates per CPU-second" "$(calculate "1e6 / $(median p256.cpu)" 0)" '>=' 4000
goal "one in flight: p50 less the token's signature ($signature us), ms" "$(calculate "($(median p256-one.p50) - $signature) / 1000")" '<=' 0.6
goal "one in flight, no flush: the same, ms" "$(calculate "($(median p256-one-memory.p50) - $signature) / 1000")" '<=' 0.4
# By CPU time: the load's own handshakes cost more than the server's, so that the load's core may be the full one.
goal "new mTLS connection each: per CPU-second / what the parts allow ($sum_new us)" "$(calculate "$sum_new / $(median p256-new.cpu)")" '>=' 0.8
goal "durable log on / off: rate, server on one core" "$(calculate "$(median p256.rate) / $(median p256-memory.rate)")" '>=' 0.95
goal "durable log on / off: rate, two cores" "$(calculate "$(median p256-two.rate) / $(median p256-two-memory.rate)")" '>=' 0.85
goal "memory idle, daemon and token host, MiB" "$(calculate "$(median memory.idle) / 1024" 1)" '<=' 40
goal "memory for each further connection, KiB" "$(median memory.connection)" '<=' 64
