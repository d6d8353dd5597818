#!/usr/bin/env bash
# Installs missing Debian or Ubuntu packages.
#
#   scripts/packages.sh [--check] [GROUP...]
#
# Without a group: what the build, `make test` and the demo need. Groups add what further targets need: browser, deploy,
# foreign, fuzz, kube, mesh, pkilint, release, tokens. --check installs nothing; it fails if a package is missing and prints the command.
#
# Runs as root, or with sudo if that needs no password; otherwise it prints the command.
set -euo pipefail

check=
if [[ ${1:-} == --check ]]; then check=1; shift; fi

# package:proof of installation (a command or a file)
needs=(
  "softhsm2:softhsm2-util"     # the token, /usr/lib/softhsm/libsofthsm2.so
  "opensc:pkcs11-tool"         # creates tokens without a PIN on the command line; cross-checks in tests
  "opensc-pkcs11:/usr/lib/$(uname -m)-linux-gnu/pkcs11-spy.so" # counts the calls of a host in tests
  "openssl:openssl"            # sample CA; verifies certificates in tests
  "openssh-client:ssh-keygen"  # signs and verifies transcripts of ceremonies
  "gcc:cc"                     # aws-lc
  "cmake:cmake"                # aws-lc
  "make:make"
  "libfaketime:/usr/lib/$(uname -m)-linux-gnu/faketime/libfaketime.so.1" # a wrong clock in tests/signing_path
  "strace:strace"               # failing flushes and the order of system calls in tests/issuance_log
)
for group in "$@"; do
  case $group in
    browser) needs+=("chromium:chromium") ;; # renders the status page
    # A second implementation of the log's formats; Go's and (by grpcio) BoringSSL's verifiers; Prometheus' checker of
    # metrics and rules.
    foreign)
      needs+=(
        "golang-go:go" "prometheus:promtool" "python3-pip:/usr/lib/python3/dist-packages/pip"
        "python3:python3" "python3-venv:/var/lib/dpkg/info/python3-venv.list"
      )
      ;;
    fuzz) needs+=("g++:c++") ;; # builds libFuzzer
    kube) needs+=("golang-go:go") ;; # builds the API server
    # Envoy comes as a wheel; the rest is for pods in network namespaces, and for commands of the documentation.
    mesh)
      needs+=(
        "golang-go:go" "python3-pip:/usr/lib/python3/dist-packages/pip"
        "iptables:iptables" "nftables:nft" "iproute2:ip" "util-linux:nsenter" "jq:jq" "curl:curl"
      )
      ;;
    pkilint) needs+=("python3:python3" "python3-venv:/var/lib/dpkg/info/python3-venv.list") ;;
    deploy)
      needs+=(
        "systemd:systemd-analyze" # checks the units
        "skopeo:skopeo"           # checks the images
        "umoci:umoci"             # unpacks them
        "bubblewrap:bwrap"        # runs them
        "binutils:strip"
        "curl:curl"
      )
      ;;
    release) needs+=("binutils:strip" "dpkg-dev:dpkg-shlibdeps" "xz-utils:xz") ;; # the Debian package and the archives
    tokens)
      needs+=(
        "libnss3:/usr/lib/$(uname -m)-linux-gnu/libsoftokn3.so" # NSS as a PKCS#11 token
        "libnss3-tools:certutil"                                # creates its token
        "libclang-dev:/var/lib/dpkg/info/libclang-dev.list"     # Kryoptic's bindings
        "libssl-dev:/usr/include/openssl/evp.h"                 # Kryoptic's cryptography
        "libsqlite3-dev:/usr/include/sqlite3.h"                 # Kryoptic's store
        "pkg-config:pkg-config"
        "libtpm2-pkcs11-1:/usr/lib/$(uname -m)-linux-gnu/libtpm2_pkcs11.so.1" # a TPM as a PKCS#11 token
        "libtpm2-pkcs11-tools:tpm2_ptool"                                     # creates its token
        "swtpm:swtpm"                                                         # the TPM, in software
        "tpm2-abrmd:tpm2-abrmd"                                               # its resource manager
        "libtss2-tcti-swtpm0:/var/lib/dpkg/info/libtss2-tcti-swtpm0:$(dpkg --print-architecture 2>/dev/null).list"
        "libtss2-tcti-tabrmd0:/var/lib/dpkg/info/libtss2-tcti-tabrmd0:$(dpkg --print-architecture 2>/dev/null).list"
        "dbus:dbus-daemon"                                                    # the bus between the two
        "tpm2-tools:tpm2_getcap"                                              # waits for it
        "opencryptoki:pkcsconf"                                               # its SoftTok as a token
        "curl:curl" "iproute2:ip" "util-linux:nsenter"                        # commands of hsm-config in namespaces
        "p11-kit:p11-kit"                                                     # a token at a distance
        "p11-kit-modules:/usr/lib/$(uname -m)-linux-gnu/pkcs11/p11-kit-client.so"
        "gnutls-bin:p11tool"                                                  # makes keys for adopt
      )
      ;;
    *) echo "usage: scripts/packages.sh [--check] [browser|deploy|foreign|fuzz|kube|mesh|pkilint|release|tokens]..." >&2; exit 2 ;;
  esac
done

missing=()
for need in "${needs[@]}"; do
  [[ -e ${need#*:} ]] || command -v "${need#*:}" >/dev/null 2>&1 || missing+=("${need%%:*}")
done
(( ${#missing[@]} )) || exit 0

install="apt-get install --yes --no-install-recommends ${missing[*]}"
if [[ -n $check ]]; then
  echo "missing packages: ${missing[*]}; run: make deps${*:+ FOR='$*'}   (or: sudo $install)" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  echo "missing packages: ${missing[*]}; this system has no apt-get: install them with its own package manager" >&2
  exit 1
fi

if (( EUID == 0 )); then
  run=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  run=(sudo -n)
else
  echo "missing packages: ${missing[*]}; neither root nor sudo without a password; run: sudo $install" >&2
  exit 1
fi

echo "installing: ${missing[*]}"
apt() { "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "$@"; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The package lists of a new machine may be missing or outdated: update only if the first attempt fails.
if ! apt install --yes --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
  apt update >"$log" 2>&1 && apt install --yes --no-install-recommends "${missing[@]}" >>"$log" 2>&1 || {
    cat "$log" >&2
    echo "could not install ${missing[*]}; the reason is above" >&2
    exit 1
  }
fi
