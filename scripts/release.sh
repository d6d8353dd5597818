#!/usr/bin/env bash
# Builds what a release consists of, in target/dist or --out DIR:
#
#   istio-hsm-ca_VERSION_ARCH.deb                  programs, systemd units, completions, man pages, documentation
#   istio-hsm-ca-VERSION-ARCH.tar.xz               programs, completions and man pages
#   istio-hsm-ca-VERSION-ARCH-debug-symbols.tar.xz symbols for gdb and perf, found by the programs' build IDs
#   istio-hsm-ca-VERSION.cdx.json                  software bill of materials (CycloneDX) of both programs
#   SHA256SUMS
#
#   scripts/release.sh [--out DIR] [--profile PROFILE]
#
# The same source with the same compilers results in the same files, in any directory: paths are mapped, and the time is
# that of the last commit (SOURCE_DATE_EPOCH where there is no repository). The programs contain the list of their
# dependencies: `cargo audit bin FILE` looks for known vulnerabilities in it. --profile is for tests of the packaging.
set -euo pipefail
umask 022
usage() { echo "usage: $0 [--out DIR] [--profile PROFILE]" >&2; exit 2; }
root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
out=$root/target/dist profile=release
while (($#)); do
  case $1 in
    --out | --profile) (($# >= 2)) || usage; declare "${1#--}=$2"; shift 2 ;;
    *) usage ;;
  esac
done
need() { command -v "$1" >/dev/null || { echo "$1 is missing; run: sudo apt-get install $2" >&2; exit 1; }; }
need objcopy binutils
need dpkg-shlibdeps dpkg-dev
need xz xz-utils
cd -- "$root"

AUDITABLE=0.7.7 DEB=3.8.0 CYCLONEDX=0.5.9
tools=${XDG_CACHE_HOME:-$HOME/.cache}/istio-hsm-ca/release-tools
for tool in "cargo-auditable@$AUDITABLE" "cargo-deb@$DEB" "cargo-cyclonedx@$CYCLONEDX"; do
  # Prints nothing if this version is there.
  (cd / && cargo install --quiet --locked --root "$tools" "$tool")
done
export PATH=$tools/bin:$PATH

if [[ -z ${SOURCE_DATE_EPOCH:-} ]]; then
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null) ||
    { echo "this is not a Git repository; set SOURCE_DATE_EPOCH to the time of the release, in seconds since 1970" >&2; exit 1; }
fi
export SOURCE_DATE_EPOCH
cargo_home=${CARGO_HOME:-$HOME/.cargo} target=${CARGO_TARGET_DIR:-$root/target}
host=$(rustc -vV | sed -n 's/^host: //p')
version=$(cargo metadata --locked --no-deps --format-version 1 | sed 's/.*"name":"istio-hsm-ca","version":"\([^"]*\)".*/\1/')

# Rust's and C's paths in messages and symbols.
export CARGO_ENCODED_RUSTFLAGS="--remap-path-prefix=$root=/src"$'\x1f'"--remap-path-prefix=$cargo_home=/cargo"
export CFLAGS="-ffile-prefix-map=$target=/target -ffile-prefix-map=$root=/src -ffile-prefix-map=$cargo_home=/cargo"
export CXXFLAGS=$CFLAGS
# With a target, the flags are not those of build scripts.
cargo auditable build --locked --profile "$profile" --target "$host" --package istio-hsm-ca --package istio-hsm-ca-token-host --bins
unset CARGO_ENCODED_RUSTFLAGS CFLAGS CXXFLAGS

rm -rf -- "$out"
stage=$out/stage
mkdir -p "$stage/bin" "$stage/man" "$stage/completions" "$out/debug-symbols"
for program in istio-hsm-ca istio-hsm-ca-token-host; do
  built=$target/$host/$profile/$program
  id=$(readelf --notes "$built" | sed -n 's/.*Build ID: //p')
  symbols=$out/debug-symbols/usr/lib/debug/.build-id/${id:0:2}
  mkdir -p "$symbols"
  objcopy --only-keep-debug --compress-debug-sections=zlib "$built" "$symbols/${id:2}.debug"
  # The list of dependencies (.dep-v0) is data that the program does not load.
  strip --strip-all --keep-section=.dep-v0 -o "$stage/bin/$program" "$built"
done
"$stage/bin/istio-hsm-ca" man "$stage/man"
for shell in bash zsh fish; do
  "$stage/bin/istio-hsm-ca" completions "$shell" >"$stage/completions/$shell"
done

# One bill of materials for each package of the workspace, of which two are programs that are released.
trap 'rm -f -- "$root"/release-sbom.json "$root"/crates/*/release-sbom.json' EXIT
for manifest in Cargo.toml crates/token-host/Cargo.toml; do
  cargo cyclonedx --quiet --manifest-path "$manifest" --format json --spec-version 1.5 --target "$host" --no-build-deps \
    --override-filename release-sbom
done
mv release-sbom.json "$out/istio-hsm-ca-$version.cdx.json"
mv crates/token-host/release-sbom.json "$out/istio-hsm-ca-token-host-$version.cdx.json"

pack() {
  local directory=$1 archive=$2
  tar --create --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=ustar \
    --directory "$directory" . | xz --threads=1 >"$archive"
}
architecture=$(uname -m)
# cargo-deb takes what is in target/dist/stage; see [package.metadata.deb] in Cargo.toml.
assets=$root/target/dist/stage
if [[ $stage != "$assets" ]]; then
  rm -rf -- "$assets"
  mkdir -p "$root/target/dist"
  cp -r -- "$stage" "$assets"
fi
cargo deb --quiet --no-build --no-strip --locked --package istio-hsm-ca --output "$out"
cp LICENSE README.md CHANGELOG.md "$stage/"
pack "$stage" "$out/istio-hsm-ca-$version-$architecture.tar.xz"
pack "$out/debug-symbols" "$out/istio-hsm-ca-$version-$architecture-debug-symbols.tar.xz"
rm -rf -- "$stage" "$out/debug-symbols"
(cd -- "$out" && sha256sum -- *.deb *.tar.xz *.cdx.json >SHA256SUMS)
ls -l -- "$out"
