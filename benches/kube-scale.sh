#!/usr/bin/env bash
# A thousand namespaces with ten pods each on a real API server: the daemon's memory, and the time it needs to list them
# all. KUBE_NAMESPACES and KUBE_PODS_EACH set other numbers. Needs Go for the first run (tests/kube/api-server.sh).
set -euo pipefail
cd "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
scripts/packages.sh --check kube
tests/kube/api-server.sh >/dev/null
exec "${CARGO:-cargo}" test --locked --profile fast-tests --test kube -- --ignored --exact scale::pods_of_a_large_cluster_are_followed --nocapture
