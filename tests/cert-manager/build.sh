#!/usr/bin/env bash
# Builds cert-manager's controllers and webhook (the module github.com/cert-manager/cert-manager, at the version in
# go.mod), once for each state of the sources here, into a cache outside the checkout, and prints the directory: the
# program cert-manager, and crds with cert-manager's CustomResourceDefinitions.
#
#   tests/cert-manager/build.sh            builds if necessary
#   tests/cert-manager/build.sh --where    builds nothing
#
# Needs Go 1.21 or later, which fetches the version that go.mod asks for. The first build takes five minutes or so on two
# cores. GO_BUILD_PREFIX is put before the build.
set -euo pipefail
cd "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

die() {
  echo "build.sh: $*" >&2
  exit 1
}

cache="${XDG_CACHE_HOME:-$HOME/.cache}/istio-hsm-ca"
place=$cache/cert-manager-$(cat main.go go.mod go.sum | sha256sum | cut -c1-16)
if [[ ${1:-} != --where && ! -e $place ]]; then
  command -v go >/dev/null || die "Go is missing; install it (apt-get install golang-go, or https://go.dev/dl)"
  mkdir -p "$cache"
  # Two builds at once would write the same files.
  exec 8>"$cache/cert-manager.lock"
  flock 8
  if [[ ! -e $place ]]; then
    echo "build.sh: building cert-manager's controllers and webhook, once" >&2
    rm -rf "$place.new"
    mkdir -p "$place.new"
    # Again if it fails: the modules come over the network.
    for try in 1 2 3; do
      # shellcheck disable=SC2086 # a prefix is several words
      CGO_ENABLED=0 ${GO_BUILD_PREFIX:-} go build -mod=readonly -buildvcs=false -trimpath -ldflags '-s -w' \
        -o "$place.new/cert-manager" . && break
      ((try < 3)) || die "cert-manager did not build"
    done
    cp -r --no-preserve=mode "$(go list -m -f '{{.Dir}}' github.com/cert-manager/cert-manager)/deploy/crds" "$place.new/crds"
    mv "$place.new" "$place"
  fi
fi
echo "$place"
