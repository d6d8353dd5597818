#!/usr/bin/env bash
# A thousand namespaces with ten pods each on a real API server: the daemon's memory, and the time it needs to list them
# all. Then ten thousand waiting requests for certificates, of either kind. KUBE_NAMESPACES, KUBE_PODS_EACH and KUBE_REQUESTS
# set other numbers. Needs Go for the first run (tests/kube/api-server.sh).
set -euo pipefail
cd "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
scripts/packages.sh --check kube
tests/kube/api-server.sh >/dev/null
exec "${CARGO:-cargo}" test --locked --profile fast-tests --test kube -- --ignored --test-threads 1 scale:: --nocapture
