#!/usr/bin/env bash
# Follows a file of hsm-config, as it is written, from nothing to a token that serves:
#
#   tests/hsm-config.sh NAME TYPE [COMMAND...]
#
# runs the commands of hsm-config/NAME.toml with a sample plug-in CA of a TYPE of key (scripts/sample-ca.sh), and then COMMAND; without
# one, `check`, `issue` and `serve` with the file itself as the configuration. COMMAND finds the file's path in CONFIG.
#
# Runs as root in namespaces of its own, in which /etc, /run, /usr/lib and /var are copies that end with it. A block of commands is run
# if the paragraph above it ends with `(run):`. The programs are those in PATH.
set -euo pipefail
root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
(( $# >= 2 )) || { echo "usage: $0 NAME TYPE [COMMAND...]" >&2; exit 2; }

if [[ -z ${HSM_CONFIG_WORK:-} ]]; then
  (( EUID == 0 )) || { echo "$0: run it as root, in a container with --cap-add SYS_ADMIN" >&2; exit 1; }
  HSM_CONFIG_WORK=$(mktemp -d "${TMPDIR:-/tmp}/hsm-config.XXXXXX")
  export HSM_CONFIG_WORK
  trap 'rm -rf "$HSM_CONFIG_WORK"' EXIT
  unshare --mount --net --ipc --pid --fork --kill-child --mount-proc "$0" "$@"
  exit
fi

name=$1 type=$2
shift 2
trap 'echo "$0: failed: $BASH_COMMAND" >&2' ERR
cd "$HSM_CONFIG_WORK"
mkdir upper
mount -t tmpfs none upper
for directory in /etc /usr/lib /var; do
  mkdir -p "upper$directory/new" "upper$directory/work"
  options=lowerdir=$directory,upperdir=$PWD/upper$directory/new,workdir=$PWD/upper$directory/work
  mount -t overlay overlay -o "$options" "$directory"
done
mount -t tmpfs none /run
mount -t tmpfs none /dev/shm
install -d -m 1777 /run/lock
install -d /run/istio-hsm-ca # by systemd, as in deploy/systemd
ip link set lo up
"$root/scripts/sample-ca.sh" cacerts --type "$type"
export CONFIG=$PWD/$name.toml
sed "s/x86_64-linux-gnu/$(uname -m)-linux-gnu/g" "$root/hsm-config/$name.toml" >"$CONFIG"
awk '/^#.*\(run\):$/ {on = 1; next} on && /^#   / {print substr($0, 5); next} on && !/^#$/ {on = 0}' "$CONFIG" >commands.sh
[[ -s commands.sh ]] || { echo "$0: $name.toml has no commands" >&2; exit 1; }

# What a machine has before the file is followed.
case $name in
  kryoptic)
    mkdir -p /usr/lib/kryoptic
    cp "${XDG_CACHE_HOME:-$HOME/.cache}"/istio-hsm-ca/kryoptic-*/libkryoptic_token.so /usr/lib/kryoptic/libkryoptic_pkcs11.so
    ;;
  opencryptoki)
    # By the package's tmpfiles.d when the machine starts.
    install -d -m 0770 -g pkcs11 /run/lock/opencryptoki /run/lock/opencryptoki/swtok
    ;;
  tpm2-pkcs11)
    mkdir -p /run/dbus tpm
    dbus-daemon --system --fork
    swtpm socket --tpm2 --tpmstate "dir=$PWD/tpm" --server type=unixio,path=/run/swtpm.sock \
      --ctrl type=unixio,path=/run/swtpm.sock.ctrl --flags not-need-init,startup-clear --daemon
    tpm2-abrmd --allow-root --tcti=swtpm:path=/run/swtpm.sock >abrmd.log 2>&1 &
    for _ in {1..100}; do
      tpm2_getcap --tcti=tabrmd properties-fixed >/dev/null 2>&1 && break
      sleep 0.1
    done
    ;;
esac

serves() {
  openssl req -new -newkey rsa:2048 -nodes -keyout key.pem -subj / -out request.pem 2>/dev/null
  # The issuer of the workloads' JWTs, none of which is used here.
  local modulus
  modulus=$(openssl rsa -in key.pem -noout -modulus 2>/dev/null | sed 's/^Modulus=//; s/../\\x&/g')
  modulus=$(printf '%b' "$modulus" | base64 -w 0 | tr '+/' '-_' | tr -d =)
  echo '{"keys":[{"kty":"RSA","use":"sig","alg":"RS256","kid":"1","e":"AQAB","n":"'"$modulus"'"}]}' \
    >/etc/istio-hsm-ca/jwks.json
  istio-hsm-ca check --config "$CONFIG"
  istio-hsm-ca issue --config "$CONFIG" --csr request.pem --spiffe-id spiffe://cluster.local/ns/demo/sa/httpbin \
    --out leaf.pem
  openssl verify -CAfile /etc/istio-hsm-ca/bundle/root-cert.pem -untrusted leaf.pem leaf.pem
  istio-hsm-ca serve --config "$CONFIG" 2>serve.log &
  local daemon=$!
  for _ in {1..300}; do
    curl --silent --fail http://127.0.0.1:15014/readyz >readyz && break
    kill -0 "$daemon" || { cat serve.log; return 1; }
    sleep 0.1
  done
  cat readyz
  [[ -s readyz ]] || { cat serve.log; return 1; }
  kill "$daemon"
  wait "$daemon"
}

# Sourced: COMMAND gets the variables that the commands export for the module.
# shellcheck source=/dev/null
source commands.sh
if (( $# )); then "$@"; else serves; fi
