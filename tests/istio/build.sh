#!/usr/bin/env bash
# Builds istio-judge, which is Istio's own code (the module istio.io/istio, at the version in go.mod), once for each state of
# its sources, into a cache outside the checkout, and prints where it is. `--where` builds nothing.
#
# Needs Go 1.21 or later, which fetches the version that go.mod asks for. The first build takes five minutes or so on two
# cores, and a gigabyte of Go's caches.
set -euo pipefail
cd "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

state=$(cat main.go go.mod go.sum | sha256sum | cut -c1-16)
judge="${XDG_CACHE_HOME:-$HOME/.cache}/istio-hsm-ca/istio-judge-$state/istio-judge"
if [[ ${1:-} != --where && ! -x $judge ]]; then
  command -v go >/dev/null || { echo "build.sh: Go is missing; install it (apt-get install golang-go, or https://go.dev/dl)" >&2; exit 1; }
  mkdir -p "$(dirname "$judge")"
  echo "build.sh: building Istio's agent and CA, once" >&2
  CGO_ENABLED=0 go build -mod=readonly -buildvcs=false -trimpath -ldflags '-s -w' -o "$judge.new" .
  mv "$judge.new" "$judge"
fi
echo "$judge"
