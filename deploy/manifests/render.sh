#!/usr/bin/env bash
# Renders the chart into this directory, one file for each file in values/:
#
#   deploy/manifests/render.sh            writes them
#   deploy/manifests/render.sh --check    writes nothing; fails when one is not what the chart renders
#
# Takes Helm from $HELM, or builds it once (tests/kube/api-server.sh, needs Go).
set -euo pipefail
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
root=$(dirname -- "$(dirname -- "$here")")
case ${1:-} in
  "" | --check) ;;
  *) echo "usage: $0 [--check]" >&2; exit 2 ;;
esac
helm=${HELM:-$("$root/tests/kube/api-server.sh" helm)/helm}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
for values in "$here"/values/*.yaml; do
  name=$(basename "$values")
  {
    echo "# Rendered by deploy/manifests/render.sh from the chart and deploy/manifests/values/$name; do not edit."
    # Release and namespace as in the documents; another release renders its own.
    "$helm" template istio-hsm-ca "$root/deploy/helm/istio-hsm-ca" --namespace istio-system --values "$values" \
      --kube-version 1.33.0 --api-versions monitoring.coreos.com/v1 | sed 's/[[:space:]]*$//'
  } >"$work/$name"
  if [[ ${1:-} != --check ]]; then
    cp "$work/$name" "$here/$name"
  elif ! diff -u "$here/$name" "$work/$name" >"$work/diff" 2>&1; then
    head -n 40 "$work/diff" >&2
    echo "deploy/manifests/$name is not what the chart renders; run deploy/manifests/render.sh" >&2
    status=1
  fi
done
for rendered in "$here"/*.yaml; do
  [[ -e $here/values/$(basename "$rendered") ]] || { echo "$rendered has no values; delete it" >&2; status=1; }
done
exit "$status"
