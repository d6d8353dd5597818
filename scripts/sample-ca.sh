#!/usr/bin/env bash
# Creates a sample plug-in CA in the form of Istio's own sample and documentation:
#
#   scripts/sample-ca.sh DIR [--type rsa-2048|rsa-4096|p256|p384] [--root-type ...]
#
# DIR gets Istio's four files (ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem); the root's key is written
# to DIR/offline/root-key.pem, which is not used again. The intermediate has no subject key identifier,
# basicConstraints and keyUsage that are not critical, and a DNS name: unusual for a CA, but common with Istio.
# For trials only: create the root of a production mesh elsewhere, so that its key is never on this machine.
set -euo pipefail
umask 077

usage() { echo "usage: $0 DIR [--type TYPE] [--root-type TYPE]   (rsa-2048, rsa-4096, p256, p384)" >&2; exit 2; }
(( $# >= 1 )) || usage
dir=$1; shift
type=rsa-2048 root_type=rsa-4096
while (( $# )); do
  (( $# >= 2 )) || usage
  case $1 in
    --type) type=$2 ;;
    --root-type) root_type=$2 ;;
    *) usage ;;
  esac
  shift 2
done
command -v openssl >/dev/null || { echo "openssl is missing; run: sudo apt-get install openssl" >&2; exit 1; }
[[ ! -e $dir/ca-cert.pem ]] || { echo "$dir/ca-cert.pem exists; give an empty directory" >&2; exit 1; }
mkdir -p "$dir/offline"
cd "$dir"

# -traditional writes PKCS#1 (RSA PRIVATE KEY) or SEC 1 (EC PRIVATE KEY), like Istio's samples.
key() {
  case $1 in
    rsa-2048 | rsa-4096) openssl genrsa -traditional -out "$2" "${1#rsa-}" ;;
    p256) openssl ecparam -name prime256v1 -genkey -noout -out "$2" ;;
    p384) openssl ecparam -name secp384r1 -genkey -noout -out "$2" ;;
    *) usage ;;
  esac
}
quietly() { "$@" 2>offline/log || { cat offline/log >&2; exit 1; }; }

cat >offline/openssl.cnf <<'CNF'
[req]
prompt = no
string_mask = utf8only
distinguished_name = root_name
[root_name]
O = Istio
OU = Sample
CN = Sample Root CA
[ca_name]
O = Istio
L = cluster
CN = Sample Istio CA
[root_extensions]
subjectKeyIdentifier = hash
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
[ca_extensions]
subjectKeyIdentifier = none
authorityKeyIdentifier = none
basicConstraints = CA:TRUE
keyUsage = keyCertSign
subjectAltName = DNS:ca.istio.io
CNF

quietly key "$root_type" offline/root-key.pem
quietly openssl req -new -x509 -sha256 -days 3650 -config offline/openssl.cnf -extensions root_extensions \
  -key offline/root-key.pem -out root-cert.pem

quietly key "$type" ca-key.pem
sed -i 's/^distinguished_name = root_name$/distinguished_name = ca_name/' offline/openssl.cnf
quietly openssl req -new -sha256 -config offline/openssl.cnf -key ca-key.pem -out offline/ca.csr
quietly openssl x509 -req -sha256 -days 730 -in offline/ca.csr -CA root-cert.pem -CAkey offline/root-key.pem \
  -set_serial "0x$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')" -extfile offline/openssl.cnf -extensions ca_extensions \
  -out ca-cert.pem
cp ca-cert.pem cert-chain.pem
rm -f offline/ca.csr offline/log offline/openssl.cnf
openssl verify -CAfile root-cert.pem ca-cert.pem >/dev/null
