#!/usr/bin/env bash
# Signatures per second and CPU time per signature of each PKCS#11 module, alone and behind the daemon, as a table in Markdown:
#
#   benches/tokens.sh [NAME:TYPE...]      all modules by default, about five minutes; as root
#
# Each token is set up by the commands in hsm-config (tests/hsm-config.sh). Alone: `istio-hsm-ca-bench token` with one session. Behind the
# daemon: `serve` with all checks, one session, and 64 requests in flight on 8 connections. CPU time is that of the program that
# loads the module, or of daemon and token host together; that of other processes (p11-kit's server, the software TPM) is not
# included. CA=PROGRAM uses an existing build.
set -euo pipefail
root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")

# field NAME: a number of a report.
field() { sed -n "s/^.*\"$1\": *\([0-9.]*\).*$/\1/p" | head -n 1; }

# In the namespaces of tests/hsm-config.sh: prints one row.
if [[ ${1:-} == --row ]]; then
  issuer=https://kubernetes.default.svc.cluster.local
  workload_token --directory issuer --issuer "$issuer" --audience istio-ca --namespace bench --service-account w0 \
    --out workload-token >/dev/null
  cp issuer/jwks.json /etc/istio-hsm-ca/jwks.json
  sed -i '/^\[rate_limits\]$/d' "$CONFIG"
  printf '[rate_limits]\nper_identity = 0\ntotal = 0\n' >>"$CONFIG"
  uri=$(sed -n 's/^uri = "\(.*\)"$/\1/p' "$CONFIG" | head -n 1)
  alone=$(istio-hsm-ca-bench token --token "$uri" --ca-cert /etc/istio-hsm-ca/bundle/ca-cert.pem --sessions 1 --seconds 1 \
    --rounds 3 --output json)
  istio-hsm-ca serve --config "$CONFIG" 2>serve.log &
  daemon=$!
  for _ in {1..300}; do
    curl --silent --fail http://127.0.0.1:15014/readyz >/dev/null && break
    kill -0 "$daemon" || { cat serve.log >&2; exit 1; }
    sleep 0.1
  done
  behind=$(istio-hsm-ca-bench endpoint --address 127.0.0.1:15012 --server-name istio-hsm-ca.istio-system.svc \
    --roots /etc/istio-hsm-ca/bundle/root-cert.pem --token-key issuer/key.pem --issuer "$issuer" --pid "$daemon" \
    --connections 8 --streams 8 --warm-up 1 --seconds 5 --output json)
  printf '| %s | %s | %.0f | %.0f | %.0f | %.0f |\n' "$2" "$3" \
    "$(field signatures_per_second <<<"$alone")" "$(field cpu_us_per_signature <<<"$alone")" \
    "$(field certificates_per_second <<<"$behind")" "$(field daemon_cpu_us_per_certificate <<<"$behind")" >&3
  kill "$daemon"
  wait "$daemon"
  exit
fi

cd "$root"
tests/modules.sh >&2
if [[ -z ${CA:-} ]]; then
  cargo build --quiet --release --locked --bins
  cargo build --quiet --release --locked --package istio-hsm-ca-bench --bins --example workload_token
  CA=${CARGO_TARGET_DIR:-$root/target}/release/istio-hsm-ca
fi
directory=$(dirname -- "$(readlink -f -- "$CA")")
export PATH=$directory:$directory/examples:$PATH
modules=("$@")
(( $# )) || modules=(softhsm:p256 softhsm:rsa-2048 kryoptic:p256 kryoptic:rsa-2048 opencryptoki:rsa-2048 nss:rsa-2048 p11-kit:p256
  tpm2-pkcs11:p256)
echo "| module | key | alone, signatures/s | alone, CPU us | behind the daemon, certificates/s | behind the daemon, CPU us |"
echo "|---|---|---|---|---|---|"
exec 3>&1
for module in "${modules[@]}"; do
  output=$(tests/hsm-config.sh "${module%:*}" "${module#*:}" "$root/benches/tokens.sh" --row "${module%:*}" "${module#*:}" 2>&1) ||
    { echo "$module: $output" >&2; exit 1; }
done
