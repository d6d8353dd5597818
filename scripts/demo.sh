#!/usr/bin/env bash
# Issues a workload certificate with a CA key in a token, one line of output per step.
#
#   scripts/demo.sh           runs all steps once and stops the daemon
#   scripts/demo.sh --stay    keeps the daemon running until Ctrl-C and prints how to call it
#
# CACERTS=DIR uses your own ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem instead of a sample.
# They are only read. All files are created in one private directory, which is removed at the end.
set -euo pipefail
# Not applied to build results: tests run the program as other users.
users_umask=$(umask)
umask 077
root=$(readlink -f -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/..")
cd "$root"

stay=
case ${1:-} in
  --stay) stay=1 ;;
  "") ;;
  *) echo "usage: $0 [--stay]   (CACERTS=DIR for your own CA)" >&2; exit 2 ;;
esac

trust_domain=cluster.local namespace=demo account=httpbin
identity=spiffe://$trust_domain/ns/$namespace/sa/$account
issuer=https://demo.invalid
server_name=istiod.istio-system.svc

number=0
step() { number=$((number + 1)); printf '%2d  %s\n' "$number" "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }
# Runs a command and prints its output only if it fails.
quietly() { "$@" >"$work/output" 2>&1 || { cat "$work/output" >&2; fail "this failed: $*"; }; }

work=$(mktemp -d "${TMPDIR:-/tmp}/istio-hsm-ca-demo.XXXXXX")
daemon=
stop() {
  local status=$?
  trap - EXIT INT TERM
  if [[ -n $daemon ]] && kill -0 "$daemon" 2>/dev/null; then
    kill "$daemon"
    # Wait ten seconds for the drain.
    for _ in {1..100}; do kill -0 "$daemon" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
  fi
  rm -rf "$work"
  exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A free port below the ephemeral range.
free_port() {
  local port
  for _ in {1..50}; do
    port=$((20000 + RANDOM % 10000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
  fail "no free port on 127.0.0.1 between 20000 and 30000"
}

ready() {
  local line
  exec 3<>"/dev/tcp/127.0.0.1/$admin_port" || return 1
  printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3
  IFS= read -r -t 5 line <&3 || line=
  exec 3>&-
  [[ $line == *" 200 "* ]]
}

scripts/packages.sh --check
step "packages are installed: softhsm2, opensc, openssl, a C compiler and cmake"

(umask "$users_umask" && cargo build --quiet --locked --bins &&
  cargo build --quiet --locked --package istio-hsm-ca-bench --examples)
target=${CARGO_TARGET_DIR:-$root/target}/debug
ca=$target/istio-hsm-ca agent=$target/examples/agent workload_token=$target/examples/workload_token
step "built $ca"

token=$(softhsm/init.sh "$work/softhsm")
export SOFTHSM2_CONF=$work/softhsm/softhsm2.conf
pin=$work/softhsm/pin
step "made a SoftHSM token in $work/softhsm, with a random PIN in a file of mode 0600"

if [[ -n ${CACERTS:-} ]]; then
  cacerts=$(readlink -f -- "$CACERTS") || fail "CACERTS=$CACERTS: no such directory"
  step "takes your plug-in CA from $cacerts"
else
  cacerts=$work/cacerts
  scripts/sample-ca.sh "$cacerts"
  step "made a sample plug-in CA: offline root, RSA-2048 intermediate, key in PKCS#1"
fi

bundle=$work/bundle
quietly "$ca" import --from "$cacerts" --token "$token" --pin-file "$pin" --bundle "$bundle"
step "imported ca-key.pem into the token; the public files and the receipt are in $bundle"

mkdir "$work/workload"
quietly "$workload_token" --directory "$work/issuer" --issuer "$issuer" --audience istio-ca \
  --namespace "$namespace" --service-account "$account" --out "$work/workload/token"
step "made a token issuer and a workload's token for $namespace/$account"

port=$(free_port) admin_port=$port status_port=$port
while [[ $admin_port == "$port" ]]; do admin_port=$(free_port); done
while [[ $status_port == "$port" || $status_port == "$admin_port" ]]; do status_port=$(free_port); done
config=$work/istio-hsm-ca.toml
cat >"$config" <<TOML
[ca]
bundle = "$bundle"
trust_domains = ["$trust_domain"]

[[token]]
name = "softhsm"
uri = "$token"

[listen]
address = "127.0.0.1:$port"

[serving]
dns_names = ["$server_name"]
ip_addresses = ["127.0.0.1"]

[[auth.jwt]]
issuer = "$issuer"
keys = { file = { path = "$work/issuer/jwks.json" } }
audiences = ["istio-ca"]
trust_domain = "$trust_domain"

[log]
directory = "$work/log"

[admin]
address = "127.0.0.1:$admin_port"
status_address = "127.0.0.1:$status_port"
socket = "$work/admin.sock"
TOML
quietly "$ca" check --config "$config"
step "checked the configuration against the token: nothing stops the daemon"

"$ca" serve --config "$config" >"$work/daemon.log" 2>&1 &
daemon=$!
for _ in {1..150}; do
  kill -0 "$daemon" 2>/dev/null || { cat "$work/daemon.log" >&2; fail "the daemon ended"; }
  ready 2>/dev/null && break
  sleep 0.2
done
ready 2>/dev/null || { cat "$work/daemon.log" >&2; fail "the daemon was not ready within 30 seconds"; }
step "started the daemon (process $daemon) on 127.0.0.1:$port; it is ready"

call=("$agent" --address "https://127.0.0.1:$port" --server-name "$server_name" --roots "$bundle/root-cert.pem"
  --identity "$identity")
judge() {
  quietly openssl verify -purpose sslclient -CAfile "$bundle/root-cert.pem" -untrusted "$1/cert-chain.pem" \
    "$1/cert-chain.pem"
  local names
  names=$(openssl x509 -in "$1/cert-chain.pem" -noout -ext subjectAltName)
  [[ $names == *"URI:$identity"* ]] || fail "the certificate names someone else: $names"
}

quietly "${call[@]}" --token-file "$work/workload/token" --key rsa-2048 --out "$work/workload/first"
step "obtained a certificate over gRPC as an Istio agent does, with the workload's token"
judge "$work/workload/first"
step "openssl verify: good, for $identity"

quietly "${call[@]}" --certificate "$work/workload/first" --key p256 --out "$work/workload/second"
step "renewed it over mTLS with that certificate, without the token"
judge "$work/workload/second"
step "openssl verify: good, for $identity"

if [[ -n $stay ]]; then
  cat <<TEXT

The daemon stays up; Ctrl-C stops it and removes $work. Its log is $work/daemon.log, its status page
http://127.0.0.1:$status_port/. To call it:

  $agent --address https://127.0.0.1:$port --server-name $server_name \\
    --roots $bundle/root-cert.pem --identity $identity \\
    --token-file $work/workload/token --key p256 --out /tmp/workload
  SOFTHSM2_CONF=$SOFTHSM2_CONF $ca inspect --token '$token' --pin-file $pin
TEXT
  wait "$daemon" || true
  daemon=
else
  kill "$daemon"
  wait "$daemon" || fail "the daemon did not end cleanly; $(tail -n 3 "$work/daemon.log")"
  daemon=
  step "stopped the daemon and removed $work"
fi
