#!/usr/bin/env bash
# Builds the programs for the Kubernetes tests: etcd, kube-apiserver, kubectl and Helm, each from its Go module at the
# versions pinned here. They are stored in a cache outside the checkout; existing ones are not rebuilt.
#
#   tests/kube/api-server.sh              builds these four, and prints the directory
#   tests/kube/api-server.sh helm         builds only the ones named
#   tests/kube/api-server.sh --where      prints the directory, and builds nothing
#   tests/kube/api-server.sh --newest ... the same with the newest Kubernetes, for interfaces that the other does not serve
#                                         in their final version; it needs only kube-apiserver of it
#
# Needs Go (https://go.dev, or the package golang-go of a distribution with 1.21 or later, which fetches newer versions
# when needed). The first build takes about ten minutes on two cores. GO_BUILD_PREFIX is put before each build command.
set -euo pipefail

KUBERNETES=1.36.3
ETCD=3.6.16
HELM=4.3.1
NEWEST_KUBERNETES=1.37.0

if [ "${1:-}" = --newest ]; then
    KUBERNETES=$NEWEST_KUBERNETES
    shift
fi

cache="${XDG_CACHE_HOME:-$HOME/.cache}/istio-hsm-ca/kube/kubernetes-$KUBERNETES-etcd-$ETCD-helm-$HELM"

die() {
    echo "api-server.sh: $*" >&2
    exit 1
}

# module NAME MODULE VERSION: a module that requires only this one, so that its go.mod determines all other versions.
# `go install MODULE@VERSION` does not work, since Kubernetes and etcd have replace directives.
module() {
    local name=$1 path=$2 version=$3 go_version
    mkdir -p "$cache/src/$name"
    cd "$cache/src/$name"
    [ -s go.mod ] && return
    local described
    described=$(go mod download -json "$path@v$version") || die "cannot get $path v$version: $described"
    local gomod
    gomod=$(printf '%s' "$described" | sed -n 's/^[[:space:]]*"GoMod": "\(.*\)",*$/\1/p')
    go_version=$(sed -n 's/^go \([0-9.]*\)$/\1/p' "$gomod")
    {
        echo "module istio-hsm-ca.test/$name"
        echo
        echo "go $go_version"
        echo
        echo "require $path v$version"
        # Kubernetes' libraries are part of its repository, and published separately as v0.minor.patch.
        sed -n 's|^[[:space:]]*\(k8s.io/[a-z-]*\) => ./staging/.*|\1|p' "$gomod" | sort -u | while read -r library; do
            echo "replace $library => $library v0.${version#*.}"
        done
    } >go.mod.new
    mv go.mod.new go.mod
}

# build BINARY NAME PACKAGE [LDFLAGS]
build() {
    local binary=$1 name=$2 package=$3 flags=${4:-} try
    cd "$cache/src/$name"
    echo "api-server.sh: building $binary" >&2
    # Again if it fails: the modules come over the network.
    for try in 1 2 3; do
        # shellcheck disable=SC2086 # a prefix is several words
        CGO_ENABLED=0 ${GO_BUILD_PREFIX:-} go build -mod=mod -buildvcs=false -trimpath -ldflags "-s -w $flags" \
            -o "$cache/bin/.$binary.new" "$package" && break
        ((try < 3)) || die "$binary did not build"
    done
    mv "$cache/bin/.$binary.new" "$cache/bin/$binary"
}

kubernetes() {
    local v=k8s.io/component-base/version minor=${KUBERNETES#*.}
    module kubernetes k8s.io/kubernetes "$KUBERNETES"
    build "$1" kubernetes "k8s.io/kubernetes/cmd/$1" \
        "-X $v.gitVersion=v$KUBERNETES -X $v.gitMajor=${KUBERNETES%%.*} -X $v.gitMinor=${minor%%.*} -X $v.gitTreeState=clean"
}

one() {
    [ -x "$cache/bin/$1" ] && return
    command -v go >/dev/null || die "Go is missing; install it (apt-get install golang-go, or https://go.dev/dl)"
    # From 1.21 on, Go fetches the version that a module requires; Debian 12 has 1.19.
    local go_minor
    go_minor=$(go env GOVERSION | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
    [ "${go_minor:-0}" -ge 21 ] || die "Go $(go env GOVERSION) cannot fetch what the build needs; install 1.21 or later (https://go.dev/dl)"
    # Concurrent builds would write the same files.
    exec 8>"$cache/lock"
    flock 8
    [ -x "$cache/bin/$1" ] && return
    case $1 in
    etcd)
        module etcd go.etcd.io/etcd/server/v3 "$ETCD"
        build etcd etcd go.etcd.io/etcd/server/v3
        ;;
    kube-apiserver | kubectl) kubernetes "$1" ;;
    helm)
        module helm helm.sh/helm/v4 "$HELM"
        build helm helm helm.sh/helm/v4/cmd/helm
        ;;
    *) die "$1 is none of etcd, kube-apiserver, kubectl, helm" ;;
    esac
    exec 8>&-
}

if [ "${1:-}" != --where ]; then
    mkdir -p "$cache/bin"
    [ $# -gt 0 ] || set -- etcd helm kube-apiserver kubectl
    for wanted in "$@"; do one "$wanted"; done
fi
echo "$cache/bin"
