#!/usr/bin/env bash
# Renders two files of values/ into this directory; the others are examples for helm template, which the tests render:
#
#   deploy/manifests/render.sh            writes them
#   deploy/manifests/render.sh --check    writes nothing; fails if one differs from the chart's rendering
#
# Uses Helm from $HELM, or builds it once (tests/kube/api-server.sh, needs Go).
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
for name in all-features.yaml minimal.yaml; do
  values=$here/values/$name
  {
    echo "# Rendered by deploy/manifests/render.sh from the chart and deploy/manifests/values/$name; do not edit."
    # Release and namespace as in the documentation.
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
  [[ $rendered == */all-features.yaml || $rendered == */minimal.yaml ]] || { echo "$rendered is not rendered here; delete it" >&2; status=1; }
done
exit "$status"
