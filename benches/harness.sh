# shellcheck shell=bash
# Shared by the other scripts: SoftHSM tokens with a plug-in CA each, daemons using them, results.
# The token and the bundle are in memory (/dev/shm), the issuance log on the disk of TMPDIR.
set -euo pipefail
# Not applied to build results: tests run the program as other users.
users_umask=$(umask)
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
  [[ -z ${KEEP:-} ]] || cat "$figures" >>"$KEEP"
  rm -rf "$memory" "$disk"
  exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
quietly() { "$@" >"$memory/output" 2>&1 || { cat "$memory/output" >&2; fail "this failed: $*"; }; }

issuer=https://bench.invalid server_name=istiod.istio-system.svc

# built: builds what $CA and $PARTS do not specify, and creates a JWT issuer.
built() {
  if [[ -z ${CA:-} || -z ${PARTS:-} ]]; then
    umask "$users_umask"
    cargo build --quiet --release --locked --bins
    cargo build --quiet --release --locked --package istio-hsm-ca-bench --bins --example workload_token
    cargo bench --locked --no-run --bench parts 2>"$memory/build" || { cat "$memory/build" >&2; exit 1; }
    umask 077
    PARTS=$root/$(sed -n 's/^ *Executable benches\/parts\.rs (\(.*\))$/\1/p' "$memory/build")
    CA=${CARGO_TARGET_DIR:-$root/target}/release/istio-hsm-ca
  fi
  # Builds without a separate load generator can be measured with a newer one.
  BENCH=${BENCH:-$(dirname "$CA")/istio-hsm-ca-bench}
  quietly "$(dirname "$BENCH")/examples/workload_token" --directory "$memory/issuer" --issuer "$issuer" \
    --audience istio-ca --namespace bench --service-account w0 --out "$memory/workload-token"
}

# faulty_built: builds what $CA and $FAULTY, the module in tests/faulty-token, do not specify.
faulty_built() {
  local target=${CARGO_TARGET_DIR:-$root/target}
  [[ -z ${CA:-} || -z ${FAULTY:-} ]] || return 0
  umask "$users_umask"
  cargo build --quiet --release --locked --bins
  cargo build --quiet --release --locked --package istio-hsm-ca-bench --bins --example workload_token
  cargo build --quiet --release --locked --manifest-path tests/faulty-token/Cargo.toml --target-dir "$target/faulty-token"
  umask 077
  CA=$target/release/istio-hsm-ca FAULTY=$target/faulty-token/release/libfaulty_token.so
}
# faulty_token NAME: lets daemons use a token through $FAULTY, with commands in $memory/control.
faulty_token() {
  export FAULTY_TOKEN_MODULE FAULTY_TOKEN_CONTROL=$memory/control
  FAULTY_TOKEN_MODULE=$(sed -n 's/^.*module-path=\([^&]*\).*$/\1/p' <<<"${uri[$1]}")
  uri[$1]=${uri[$1]/"$FAULTY_TOKEN_MODULE"/"$FAULTY"}
}

# token NAME TYPE: a SoftHSM token with an imported plug-in CA of a type (p256, rsa-2048), in $memory/NAME.
declare -A uri
token() {
  local dir=$memory/$1
  uri[$1]=$(softhsm/init.sh "$dir")
  scripts/sample-ca.sh "$dir/cacerts" --type "$2"
  SOFTHSM2_CONF=$dir/softhsm2.conf quietly "$CA" import --from "$dir/cacerts" --token "${uri[$1]}" --pin-file "$dir/pin" \
    --bundle "$dir/bundle"
}
# alone TOKEN SESSIONS SECONDS ROUNDS: measures the token alone; the report is written to $memory/run.
alone() {
  local dir=$memory/$1
  SOFTHSM2_CONF=$dir/softhsm2.conf ${CORES:+taskset -c "$CORES"} "$BENCH" token --token "${uri[$1]}" \
    --pin-file "$dir/pin" --ca-cert "$dir/bundle/ca-cert.pem" --sessions "$2" --seconds "$3" --rounds "$4" --output json \
    >"$memory/run"
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
# daemon NAME TOKEN: starts one on $CORES (all, if unset) with $SESSIONS (1), $KEEP_ALIVE (10s), $THREADS (the daemon's
# own number) and its log in $LOG (on the disk), and waits until it is ready.
declare -A pid port admin tokens
daemon() {
  local name=$1 dir=$memory/$2
  free_port; port[$name]=$((next_port - 1))
  free_port; admin[$name]=$((next_port - 1))
  tokens[$name]=$2
  cat >"$memory/$name.toml" <<TOML
[ca]
bundle = "$dir/bundle"
trust_domains = ["cluster.local"]
[[token]]
name = "token"
uri = "${uri[$2]}"
sessions = ${SESSIONS:-1}
keep_alive = "${KEEP_ALIVE:-10s}"
[listen]
address = "127.0.0.1:${port[$name]}"${THREADS:+
threads = $THREADS}
[rate_limits]
per_identity = 0
total = 0
[serving]
dns_names = ["$server_name"]
[[auth.jwt]]
issuer = "$issuer"
keys = { file = { path = "$memory/issuer/jwks.json" } }
audiences = ["istio-ca"]
trust_domain = "cluster.local"
[log]
directory = "${LOG:-$disk/$name}"
[admin]
address = "127.0.0.1:${admin[$name]}"
TOML
  SOFTHSM2_CONF=$dir/softhsm2.conf ${CORES:+taskset -c "$CORES"} "$CA" serve --config "$memory/$name.toml" \
    2>"$disk/$name.log" &
  pid[$name]=$!
  started+=("$!")
  for _ in {1..150}; do
    kill -0 "${pid[$name]}" 2>/dev/null || { tail -n 20 "$disk/$name.log" >&2; fail "the daemon $name ended"; }
    ready "${admin[$name]}" 2>/dev/null && return
    sleep 0.1
  done
  tail -n 20 "$disk/$name.log" >&2
  fail "the daemon $name was not ready within 15 seconds"
}
end_daemon() {
  local one running=()
  kill "${pid[$1]}"
  wait "${pid[$1]}" || true
  for one in "${started[@]}"; do [[ $one == "${pid[$1]}" ]] || running+=("$one"); done
  started=("${running[@]}")
  rm -rf "${disk:?}/$1"
}

# drive ADDRESS ROOTS PID ARGUMENTS...: loads a server; the report is written to $memory/run.
drive() {
  local address=$1 roots=$2 server=$3
  shift 3
  ${LOAD_CORES:+taskset -c "$LOAD_CORES"} "$BENCH" endpoint --address "$address" --server-name "$server_name" \
    --roots "$roots" --token-key "$memory/issuer/key.pem" --issuer "$issuer" --pid "$server" --output json "$@" \
    >"$memory/run" || { cat "$memory/run" >&2; fail "the load failed"; }
  if grep -q '"errors": *{$' "$memory/run"; then
    echo "errors:" >&2
    grep -A3 '"errors"' "$memory/run" >&2
  fi
}
# load DAEMON ARGUMENTS...
load() { drive "127.0.0.1:${port[$1]}" "$memory/${tokens[$1]}/bundle/root-cert.pem" "${pid[$1]}" "${@:2}"; }

# The endpoint's own stack with a handler that only replies, as a part; on core 0. Sets $echo_address, $echo_pid.
echo_server() {
  mkdir "$memory/echo"
  taskset -c 0 "$PARTS" echo "$memory/echo" >"$memory/echo/address" &
  echo_pid=$!
  started+=("$echo_pid")
  for _ in {1..50}; do [[ -s $memory/echo/address ]] && break; sleep 0.1; done
  echo_address=$(<"$memory/echo/address")
}
echo_load() { drive "$echo_address" "$memory/echo/root.pem" "$echo_pid" "$@"; }
# parts [measure-storm]: CPU time of the other parts, stored as part.NAME.
parts() {
  rm -rf "$disk/parts"
  mkdir "$disk/parts"
  taskset -c 0 "$PARTS" "${1:-measure}" "$disk/parts" 2>"$disk/parts.log" | sed 's/^/part./' >>"$figures"
}
# field NAME: a number of the last report.
field() { sed -n "s/^.*\"$1\": *\([0-9.]*\).*$/\1/p" "$memory/run" | head -n 1; }

# Results, one per line: a name, and a number or a report as JSON. Each is measured many times, parts and whole in turn,
# in slices of about the same length: shared cores have two speeds, 1.4 apart, which change several times a second, so a
# short slice is more likely to be at the best speed than a long one. `summary` uses medians.
figures=$memory/figures
: >"$figures"
note() { printf '%s %s\n' "$1" "$2" >>"$figures"; }
# note_run NAME: the last report.
note_run() { note "$1" "$(tr -d '\n' <"$memory/run")"; }
# summary: prints the medians, ratios and goals of all results.
summary() { "$BENCH" summary "$bench" "$figures"; }
