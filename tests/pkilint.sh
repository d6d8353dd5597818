#!/usr/bin/env bash
# Checks certificates and CRLs with pkilint (RFC 5280): leaves, the CAs of ceremonies, and our CRLs, as written by
# `cargo test -p istio-hsm-ca-pki --test certificates`.
# Usage: tests/pkilint.sh [DIRECTORY]
#
# The linter is installed once into a cache outside the tree, at a pinned version; PKILINT selects another program.
set -euo pipefail
directory=${1:-target/tmp/leaf}

version=0.13.3
tools=${XDG_CACHE_HOME:-$HOME/.cache}/istio-hsm-ca/pkilint-$version
linter=${PKILINT:-$tools/bin/lint_pkix_cert}
if [[ -z ${PKILINT:-} && ! -x $linter ]]; then
    echo "installing pkilint $version into $tools, once"
    # Moved into place as a whole, so that an interrupted installation is not used.
    rm -rf "$tools" "$tools.new"
    python3 -m venv "$tools.new"
    "$tools.new/bin/pip" install --quiet --disable-pip-version-check "pkilint==$version"
    mv "$tools.new" "$tools"
    # A virtual environment contains its own path, and this one was moved.
    sed -i "s|$tools.new|$tools|g" "$tools"/bin/lint_*
fi
command -v "$linter" >/dev/null || { echo "$linter is missing: unset PKILINT, and it is installed" >&2; exit 1; }

# Findings that Istio's own leaves have as well, each with its reason; exactly these must be found.
expected_for() {
    # keyEncipherment on EC keys: Istio sets it for all keys.
    echo pkix.key_usage_value_prohibited_for_ec
    # The CA certificate has no subject key identifier, so the leaf has no authority key identifier.
    case $1 in */no-key-id-*) echo pkix.authority_key_identifier_extension_absent ;; esac
    # pkilint does not accept SPIFFE IDs as URIs.
    case $1 in *-server.leaf.pem) ;; *) echo pkix.invalid_uri_syntax ;; esac
}

count=0
failed=0
for leaf in "$directory"/*.leaf.pem; do
    [ -e "$leaf" ] || break
    count=$((count + 1))
    # The exit status is the number of findings; a linter that does not run lacks expected findings.
    report=$("$linter" lint -s ERROR "$leaf" || true)
    found=$(printf '%s\n' "$report" | sed -nE 's/^ *([a-z0-9_.]+) \((ERROR|FATAL)\).*/\1/p' | sort)
    expected=$(expected_for "$leaf" | sort)
    if [ "$found" != "$expected" ]; then
        printf '%s: pkilint finds\n%s\nand not\n%s\n' "$leaf" "$report" "$expected" >&2
        failed=1
    fi
done
for ca in "$directory"/*.ca.pem; do
    [ -e "$ca" ] || { echo "no *.ca.pem in $directory: run make test-pkilint" >&2; exit 1; }
    count=$((count + 1))
    # Nothing is excused in the certificates of ceremonies, and a linter that does not run is an error.
    if ! report=$("$linter" lint -s WARNING "$ca") || [ -n "$report" ]; then
        printf '%s: pkilint finds\n%s\n' "$ca" "$report" >&2
        failed=1
    fi
done
[ "$count" -gt 0 ] || { echo "no *.leaf.pem in $directory: run make test-pkilint" >&2; exit 1; }
lists=0
for crl in "$directory"/*.crl.pem; do
    [ -e "$crl" ] || break
    lists=$((lists + 1))
    if ! report=$("${linter%/*}/lint_crl" lint -t CRL -p PKIX -s WARNING "$crl") || [ -n "$report" ]; then
        printf '%s: pkilint finds\n%s\n' "$crl" "$report" >&2
        failed=1
    fi
done
[ "$lists" -gt 0 ] || { echo "no *.crl.pem in $directory: run make test-pkilint" >&2; exit 1; }
[ "$failed" -eq 0 ] || exit 1
echo "pkilint: $count certificates and $lists CRLs, nothing unexpected"
