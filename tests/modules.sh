#!/usr/bin/env bash
# Puts the modules of the token suite there: NSS from the distribution, Kryoptic built from crates of a fixed version.
#
#   tests/modules.sh     installs and builds what is missing; then there is nothing to do
#
# Kryoptic goes into a cache outside the checkout (~/.cache/istio-hsm-ca, half a minute once). Works as root or by sudo
# without a password prompt, as softhsm/packages.sh does.
set -euo pipefail
cd "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

# package:how to see that it is there; a pattern is a file's
needs=(
  "libnss3:/usr/lib/*-linux-gnu/libsoftokn3.so /usr/lib/*-linux-gnu/nss/libsoftokn3.so" # the module
  "libnss3-tools:$(command -v certutil || true)"                                        # makes its token
  "libclang-dev:/usr/lib/llvm-*/lib/libclang*.so*"                                      # Kryoptic's bindings
  "libssl-dev:/usr/include/openssl/evp.h"                                               # Kryoptic's cryptography
  "libsqlite3-dev:/usr/include/sqlite3.h"                                               # Kryoptic's store
  "pkg-config:$(command -v pkg-config || true)"
)
missing=()
for need in "${needs[@]}"; do
  found=
  for pattern in ${need#*:}; do compgen -G "$pattern" >/dev/null && found=yes; done
  [[ $found ]] || missing+=("${need%%:*}")
done
if (( ${#missing[@]} )); then
  echo "installing: ${missing[*]}"
  run=(env)
  (( EUID == 0 )) || run=(sudo -n env)
  install=(apt-get install --yes --no-install-recommends "${missing[@]}")
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  if ! "${run[@]}" DEBIAN_FRONTEND=noninteractive "${install[@]}" >"$log" 2>&1; then
    { "${run[@]}" apt-get update && "${run[@]}" DEBIAN_FRONTEND=noninteractive "${install[@]}"; } >"$log" 2>&1 || {
      cat "$log" >&2
      echo "could not install ${missing[*]}; the reason is above; run: sudo ${install[*]}" >&2
      exit 1
    }
  fi
fi

version=$(sed -n 's/^kryoptic-lib = .*"=\([^"]*\)".*/\1/p' tests/kryoptic/Cargo.toml)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/istio-hsm-ca/kryoptic-$version
module=$cache/libkryoptic_token.so
# Built anew when the machine's OpenSSL or the package changes: the bindings are of that version.
stamp="$(sha256sum tests/kryoptic/Cargo.lock tests/kryoptic/src/lib.rs | sha256sum | cut -c1-16) $(openssl version)"
if [[ ! -e $module || "$(cat "$cache/stamp" 2>/dev/null)" != "$stamp" ]]; then
  echo "building Kryoptic $version into $cache, once"
  CARGO_TARGET_DIR=$cache/target cargo build --quiet --locked --manifest-path tests/kryoptic/Cargo.toml
  cp "$cache/target/debug/libkryoptic_token.so" "$module.new"
  mv "$module.new" "$module"
  echo "$stamp" >"$cache/stamp"
  rm -rf "$cache/target"
fi
