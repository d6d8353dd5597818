#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that are missing: says which, asks nothing.
#
#   scripts/packages.sh            what the build, the tests and the demo need
#   scripts/packages.sh --check    installs nothing; fails when something is missing, with the command to run
#   scripts/packages.sh --for WHAT what a further target needs besides: browser, deploy, foreign, kube, pkilint, tokens
#
# Works as root or by sudo without a password prompt; where it can do neither, it prints the command.
set -euo pipefail

# package:how to see that it is there (a command, or a file)
needs=(
  "softhsm2:softhsm2-util"     # the token, /usr/lib/softhsm/libsofthsm2.so
  "opensc:pkcs11-tool"         # makes tokens without a PIN on the command line; a foreign judge in tests
  "opensc-pkcs11:/usr/lib/$(uname -m)-linux-gnu/pkcs11-spy.so" # counts the calls of a host in tests
  "openssl:openssl"            # sample CA; a foreign judge of certificates
  "gcc:cc"                     # aws-lc
  "cmake:cmake"                # aws-lc
  "make:make"
  "strace:strace"               # failing flushes and the order of system calls in tests/issuance_log.rs
)
case "${1:-} ${2:-}" in
  "--for browser") needs+=("chromium:chromium") ;;     # looks at the status page
  # The other implementation of the log's formats; Prometheus' judge of metrics and rules.
  "--for foreign") needs+=("golang-go:go" "prometheus:promtool") ;;
  "--for kube") needs+=("golang-go:go") ;;             # builds the API server
  "--for pkilint") needs+=("python3:python3" "python3-venv:/var/lib/dpkg/info/python3-venv.list") ;; # the linter's home
  "--for deploy")
    needs+=(
      "systemd:systemd-analyze"     # judges the units
      "skopeo:skopeo"               # judges the images
      "umoci:umoci"                 # unpacks them
      "bubblewrap:bwrap"            # runs them
      "binutils:strip"
      "curl:curl"
    )
    ;;
  "--for tokens")
    needs+=(
      "libnss3:/usr/lib/$(uname -m)-linux-gnu/libsoftokn3.so"    # NSS, as a token
      "libnss3-tools:certutil"                                   # makes its token
      "libclang-dev:/var/lib/dpkg/info/libclang-dev.list"        # Kryoptic's bindings
      "libssl-dev:/usr/include/openssl/evp.h"                    # Kryoptic's cryptography
      "libsqlite3-dev:/usr/include/sqlite3.h"                    # Kryoptic's store
      "pkg-config:pkg-config"
    )
    ;;
  "--check " | " ") ;;
  *) echo "usage: scripts/packages.sh [--check | --for browser|deploy|foreign|kube|pkilint|tokens]" >&2; exit 2 ;;
esac

missing=()
for need in "${needs[@]}"; do
  [[ -e ${need#*:} ]] || command -v "${need#*:}" >/dev/null 2>&1 || missing+=("${need%%:*}")
done
(( ${#missing[@]} )) || exit 0

install="apt-get install --yes --no-install-recommends ${missing[*]}"
if [[ ${1:-} == --check ]]; then
  echo "missing: ${missing[*]}; run: sudo $install" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  echo "missing: ${missing[*]}; this system has no apt-get: install them with its own package manager" >&2
  exit 1
fi

if (( EUID == 0 )); then
  run=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  run=(sudo -n)
else
  echo "missing: ${missing[*]}; neither root nor sudo without a password; run: sudo $install" >&2
  exit 1
fi

echo "installing: ${missing[*]}"
apt() { "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "$@"; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The package lists of a new machine are empty or stale: update only when the first try fails.
if ! apt install --yes --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
  apt update >"$log" 2>&1 && apt install --yes --no-install-recommends "${missing[@]}" >>"$log" 2>&1 || {
    cat "$log" >&2
    echo "could not install ${missing[*]}; the reason is above" >&2
    exit 1
  }
fi
