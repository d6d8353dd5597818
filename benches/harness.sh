# shellcheck shell=bash
# What delayed.sh and storm.sh share: a SoftHSM token with a plug-in CA, daemons on it, figures, goals. Sourced by them.
# The token and the bundle are in memory (/dev/shm), the issuance log on the disk of TMPDIR.
set -euo pipefail
umask 077
root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
cd "$root"
bench=$(basename -- "$0" .sh)
fail() { printf '%s: %s\n' "$bench" "$*" >&2; exit 1; }

memory=$(mktemp -d "/dev/shm/istio-hsm-ca-bench.XXXXXX")
disk=$(mktemp -d "${TMPDIR:-/tmp}/istio-hsm-ca-bench.XXXXXX")
started=()
stop() {
  local status=$? pid
  trap - EXIT INT TERM
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$memory" "$disk"
  exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
quietly() { "$@" >"$memory/output" 2>&1 || { cat "$memory/output" >&2; fail "this failed: $*"; }; }

issuer=https://bench.invalid server_name=istiod.istio-system.svc

# prepare BINARY: a P-256 CA in a token, and a token issuer. Sets $uri.
prepare() {
  ca=$1
  uri=$(softhsm/init.sh "$memory/softhsm")
  softhsm/sample-ca.sh "$memory/cacerts" --type p256
  export SOFTHSM2_CONF=$memory/softhsm/softhsm2.conf
  quietly "$ca" import --from "$memory/cacerts" --token "$uri" --pin-file "$memory/softhsm/pin" --bundle "$memory/bundle"
  quietly "$(dirname "$ca")/examples/workload_token" --directory "$memory/issuer" --issuer "$issuer" \
    --audience istio-ca --namespace bench --service-account w0 --out "$memory/workload-token"
}

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
# daemon URI SESSIONS [MORE]: starts one and waits until it is ready; MORE is added to [listen]. Sets $pid, $port.
daemon() {
  local admin
  free_port; port=$((next_port - 1))
  free_port; admin=$((next_port - 1))
  rm -rf "$disk/log"
  cat >"$memory/config.toml" <<TOML
[ca]
bundle = "$memory/bundle"
trust_domains = ["cluster.local"]
[[token]]
name = "token"
uri = "$1"
sessions = $2
[listen]
address = "127.0.0.1:$port"
${3:-}
[serving]
dns_names = ["$server_name"]
[[auth.jwt]]
issuer = "$issuer"
keys = { file = { path = "$memory/issuer/jwks.json" } }
audiences = ["istio-ca"]
trust_domain = "cluster.local"
[log]
directory = "$disk/log"
[admin]
address = "127.0.0.1:$admin"
TOML
  ${CORES:+taskset -c "$CORES"} "$ca" serve --config "$memory/config.toml" 2>"$disk/daemon.log" &
  pid=$!
  started+=("$pid")
  for _ in {1..150}; do
    kill -0 "$pid" 2>/dev/null || { tail -n 20 "$disk/daemon.log" >&2; fail "the daemon ended"; }
    ready "$admin" 2>/dev/null && return
    sleep 0.1
  done
  tail -n 20 "$disk/daemon.log" >&2
  fail "the daemon was not ready within 15 seconds"
}
end_daemon() { kill "$pid"; wait "$pid" || true; }

# drive ADDRESS ROOTS PID ARGUMENTS...: loads a server; the report goes to $memory/run.
drive() {
  local address=$1 roots=$2 server=$3
  shift 3
  ${LOAD_CORES:+taskset -c "$LOAD_CORES"} "$ca" bench endpoint --address "$address" --server-name "$server_name" \
    --roots "$roots" --token-key "$memory/issuer/key.pem" --issuer "$issuer" --pid "$server" --output json "$@" \
    >"$memory/run" || { cat "$memory/run" >&2; fail "the load failed"; }
  grep -q '"errors": *{}' "$memory/run" || { echo "errors:" >&2; grep -A3 '"errors"' "$memory/run" >&2; }
}
load() { drive "127.0.0.1:$port" "$memory/bundle/root-cert.pem" "$pid" "$@"; }
# field NAME [WITHIN]: a number of the last report; of the object WITHIN, if given.
field() {
  local from=${2:+/\"$2\"/,}
  sed -n "${from:-1,}\$s/^.*\"$1\": *\([0-9.]*\).*$/\1/p" "$memory/run" | head -n 1
}
calculate() { awk "BEGIN {printf \"%.${2:-2}f\", $1}" </dev/null; }
goal() { # TEXT VALUE COMPARISON GOAL
  local verdict
  verdict=$(awk "BEGIN {print ($2 $3 $4) ? \"reached\" : \"MISSED\"}" </dev/null)
  printf '%-74s %9s  goal %s %-6s %s\n' "$1" "$2" "$3" "$4" "$verdict"
}
