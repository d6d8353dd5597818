#!/usr/bin/env bash
# Creates a SoftHSM token in a private directory:
#
#   softhsm/init.sh DIR [LABEL]
#
# writes DIR/softhsm2.conf, DIR/tokens/, DIR/pin and DIR/so-pin (both random, readable by their owner only), and
# prints the token's URI. Programs find the token with SOFTHSM2_CONF=DIR/softhsm2.conf in their environment.
set -euo pipefail
umask 077

(( $# == 1 || $# == 2 )) || { echo "usage: $0 DIR [LABEL]" >&2; exit 2; }
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
mkdir -p -- "$1"
dir=$(readlink -f -- "$1")
label=${2:-istio-ca}
# The label is used unescaped in a PKCS#11 URI, and a token's label has 32 bytes (PKCS#11, CK_TOKEN_INFO).
[[ $label =~ ^[A-Za-z0-9._-]{1,32}$ ]] || { echo "label $label: 1 to 32 of A-Z a-z 0-9 . _ -" >&2; exit 2; }
[[ ! -e $dir/softhsm2.conf ]] || { echo "$dir/softhsm2.conf exists; give an empty directory" >&2; exit 1; }

module=
for candidate in "${SOFTHSM2_MODULE:-}" /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do
  if [[ -n $candidate && -e $candidate ]]; then module=$candidate; break; fi
done
[[ -n $module ]] || { echo "libsofthsm2.so is missing; run: sudo apt-get install softhsm2" >&2; exit 1; }
command -v pkcs11-tool >/dev/null || { echo "pkcs11-tool is missing; run: sudo apt-get install opensc" >&2; exit 1; }

mkdir "$dir/tokens"
sed "s|@TOKENS@|$dir/tokens|" "$here/softhsm2.conf" >"$dir/softhsm2.conf"
secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
secret >"$dir/pin"
secret >"$dir/so-pin"

# pkcs11-tool reads the PINs from its environment, which only this user can read; all users can read a command line.
export SOFTHSM2_CONF=$dir/softhsm2.conf
PIN=$(<"$dir/pin") SO_PIN=$(<"$dir/so-pin")
export PIN SO_PIN
tool() { pkcs11-tool --module "$module" "$@" >"$dir/init.log" 2>&1 || { cat "$dir/init.log" >&2; exit 1; }; }
tool --slot-index 0 --init-token --label "$label" --so-pin env:SO_PIN
tool --token-label "$label" --init-pin --login --login-type so --so-pin env:SO_PIN --new-pin env:PIN
rm -f "$dir/init.log"

echo "pkcs11:token=$label?module-path=$module&pin-source=file:$dir/pin"
