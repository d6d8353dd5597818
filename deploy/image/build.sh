#!/usr/bin/env bash
# Builds a container image without a daemon, a registry or a base image:
#
#   deploy/image/build.sh [--softhsm] [--program FILE] OUT
#
# OUT becomes an OCI layout (skopeo copy oci:OUT docker://..., podman pull oci:OUT), and OUT.tar contains the same
# (podman load -i OUT.tar). Without --program it builds the program (release). The same program on the same
# distribution results in the same image, byte by byte. --softhsm: with SoftHSM and a shell, FOR TRIALS ONLY.
set -euo pipefail
umask 022
usage() { echo "usage: $0 [--softhsm] [--program FILE] OUT" >&2; exit 2; }
softhsm=() program='' out=''
while (( $# )); do
  case $1 in
    --softhsm) softhsm=(--softhsm); shift ;;
    --program) (( $# >= 2 )) || usage; program=$2; shift 2 ;;
    -*) usage ;;
    *) [[ -z $out ]] || usage; out=$1; shift ;;
  esac
done
[[ -n $out ]] || usage
[[ ! -e $out && ! -e $out.tar ]] || { echo "$out or $out.tar exists; give a new name" >&2; exit 1; }
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
root=$(dirname -- "$(dirname -- "$here")")
if [[ -z $program ]]; then
  (cd "$root" && cargo build --release --locked --bins)
  program=${CARGO_TARGET_DIR:-$root/target}/release/istio-hsm-ca
fi
case $(uname -m) in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) echo "$(uname -m): no image is made for this machine" >&2; exit 1 ;;
esac
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$here/rootfs.sh" --program "$program" --out "$work/rootfs" ${softhsm[@]+"${softhsm[@]}"}
pack() { tar --create --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=ustar "$@"; }
pack --directory "$work/rootfs" --file "$work/layer.tar" .
diff_id=$(sha256sum <"$work/layer.tar" | cut -d' ' -f1)
gzip --no-name --best "$work/layer.tar"

mkdir -p "$out/blobs/sha256"
# blob FILE: moves it to the path of its digest, and prints digest and size.
blob() {
  local digest size
  digest=$(sha256sum <"$1" | cut -d' ' -f1) size=$(stat --format=%s "$1")
  mv "$1" "$out/blobs/sha256/$digest"
  echo "sha256:$digest $size"
}
title='A certificate authority for Istio whose signing key lives in a PKCS#11 token'
[[ -z ${softhsm[*]:-} ]] || title="$title; with SoftHSM, FOR TRIALS ONLY"
labels=$(printf '{"org.opencontainers.image.title":"istio-hsm-ca","org.opencontainers.image.description":"%s","org.opencontainers.image.version":"%s","org.opencontainers.image.licenses":"Apache-2.0"}' "$title" "$version")
read -r layer layer_size < <(blob "$work/layer.tar.gz")
printf '{"created":"1970-01-01T00:00:00Z","architecture":"%s","os":"linux","config":{"User":"10001:10001","Entrypoint":["/usr/bin/istio-hsm-ca"],"Cmd":["--help"],"Env":["PATH=/usr/bin"],"WorkingDir":"/","Labels":%s},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"deploy/image/build.sh"}]}' \
  "$architecture" "$labels" "$diff_id" >"$work/config"
read -r config config_size < <(blob "$work/config")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"%s","size":%s}],"annotations":%s}' \
  "$config" "$config_size" "$layer" "$layer_size" "$labels" >"$work/manifest"
read -r manifest manifest_size < <(blob "$work/manifest")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%s","size":%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"org.opencontainers.image.ref.name":"%s"}}]}' \
  "$manifest" "$manifest_size" "$architecture" "$version" >"$out/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$out/oci-layout"
pack --directory "$out" --file "$out.tar" blobs index.json oci-layout
echo "$out:$version $manifest ($((layer_size / 1024 / 1024)) MiB packed)"
