#!/usr/bin/env bash
# Builds Kryoptic for the token suite from crates at pinned versions; NSS comes from the distribution.
#
#   tests/modules.sh     fails if packages are missing; does nothing if the module is up to date
#
# Kryoptic is built in a cache outside the checkout (~/.cache/istio-hsm-ca): half a minute, once.
set -euo pipefail
cd "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

scripts/packages.sh --check tokens

version=$(sed -n 's/^kryoptic-lib = .*"=\([^"]*\)".*/\1/p' tests/kryoptic/Cargo.toml)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/istio-hsm-ca/kryoptic-$version
module=$cache/libkryoptic_token.so
# Rebuilt if the package or the machine's OpenSSL changes, since the bindings are for that version.
stamp="$(cat tests/kryoptic/Cargo.toml tests/kryoptic/Cargo.lock tests/kryoptic/src/lib.rs | sha256sum | cut -c1-16) $(openssl version)"
if [[ ! -e $module || "$(cat "$cache/stamp" 2>/dev/null)" != "$stamp" ]]; then
  echo "building Kryoptic $version into $cache, once"
  CARGO_TARGET_DIR=$cache/target cargo build --quiet --locked --manifest-path tests/kryoptic/Cargo.toml
  cp "$cache/target/debug/libkryoptic_token.so" "$module.new"
  mv "$module.new" "$module"
  echo "$stamp" >"$cache/stamp"
  rm -rf "$cache/target"
fi
