#!/usr/bin/env bash
# Creates an image's root file system: the program and its dependencies from this machine's distribution.
#
#   deploy/image/rootfs.sh --program FILE --out DIR [--softhsm]
#
# No shell, no package manager. For each file of a package, the package's copyright is added, and an entry in
# /var/lib/dpkg/status.d for scanners. --softhsm adds what a token in files needs: SoftHSM, a
# shell and the few tools that create the token. That image is FOR TRIALS ONLY.
# Runs where the program was built, on Debian or Ubuntu: in the Containerfile's first stage, or in build.sh.
set -euo pipefail
umask 022
usage() { echo "usage: $0 --program FILE --out DIR [--softhsm]" >&2; exit 2; }
program='' out='' softhsm=''
while (( $# )); do
  case $1 in
    --program | --out) (( $# >= 2 )) || usage; declare "${1#--}=$2"; shift 2 ;;
    --softhsm) softhsm=1; shift ;;
    *) usage ;;
  esac
done
[[ -n $program && -n $out ]] || usage
for built in "$program" "$(dirname -- "$program")/istio-hsm-ca-token-host"; do
  [[ -x $built ]] || { echo "$built is not an executable file; build it first: cargo build --release" >&2; exit 1; }
done
[[ ! -e $out ]] || { echo "$out exists; give a new directory" >&2; exit 1; }
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
root=$(dirname -- "$(dirname -- "$here")")
need() { command -v "$1" >/dev/null || { echo "$1 is missing; run: sudo apt-get install $2" >&2; exit 1; }; }
need ldd libc-bin
need dpkg-query dpkg
need strip binutils

mkdir -p "$out"/{etc/ssl/certs,tmp,run,proc,sys,dev,var/lib/dpkg/status.d,usr/bin,usr/lib,usr/share/doc}
# Links as in the distribution, so that a library has the same path.
for directory in bin sbin lib lib64; do
  if [[ -L /$directory ]]; then
    mkdir -p "$out/usr/$directory"
    ln -s "usr/$directory" "$out/$directory"
  fi
done
chmod 1777 "$out/tmp"

declare -A taken packages
# The package of a file; dpkg lists some files under their paths before the /usr merge.
package_of() {
  local path
  for path in "$1" "${1#/usr}" "/usr$1"; do
    dpkg-query --search "$path" 2>/dev/null | sed -n '1s/: .*//p' | cut -d, -f1 && return
  done
}
# Copies a file of this machine to the same path, with the libraries that it needs.
take() {
  local file=$1 real library package
  [[ -z ${taken[$file]:-} ]] || return 0
  taken[$file]=1
  real=$(readlink -f -- "$file")
  mkdir -p "$out$(dirname -- "$file")"
  [[ -e $out$file ]] || cp --dereference --preserve=mode "$real" "$out$file"
  package=$(package_of "$real")
  [[ -z $package ]] || packages[${package%%:*}]=1
  while read -r library; do take "$library"; done < <(libraries "$real")
}
# The libraries that the loader would load, including the loader itself.
libraries() { ldd "$1" 2>/dev/null | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (0x.*/\1/p'; }

for name in istio-hsm-ca istio-hsm-ca-token-host; do
  built=$(dirname -- "$program")/$name
  cp "$built" "$out/usr/bin/$name"
  strip --strip-debug "$out/usr/bin/$name"
  chmod 0755 "$out/usr/bin/$name"
  while read -r library; do take "$library"; done < <(libraries "$built")
done
# Root certificates for fetching issuers' keys by HTTPS.
if [[ -e /etc/ssl/certs/ca-certificates.crt ]]; then
  cp /etc/ssl/certs/ca-certificates.crt "$out/etc/ssl/certs/"
  packages[ca-certificates]=1
fi

if [[ -n $softhsm ]]; then
  module=''
  for candidate in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do
    [[ -e $candidate ]] && { module=$candidate; break; }
  done
  [[ -n $module ]] || { echo "libsofthsm2.so is missing; run: sudo apt-get install softhsm2" >&2; exit 1; }
  need pkcs11-tool opensc
  take "$module"
  # The chart uses this path.
  [[ $module == /usr/lib/softhsm/libsofthsm2.so ]] || { mkdir -p "$out/usr/lib/softhsm"; ln -s "$module" "$out/usr/lib/softhsm/libsofthsm2.so"; }
  for tool in bash cat cut dirname env mkdir od readlink rm sed tr pkcs11-tool; do
    file=$(command -v "$tool")
    take "/usr/bin/$(basename "$file")"
  done
  ln -sf bash "$out/usr/bin/sh"
  # pkcs11-tool's library loads OpenSSL's legacy algorithms if present; they are not needed.
  mkdir -p "$out/usr/libexec/istio-hsm-ca"
  cp "$root"/softhsm/{init.sh,softhsm2.conf} "$root/softhsm/softhsm-init" "$out/usr/libexec/istio-hsm-ca/"
  chmod 0755 "$out"/usr/libexec/istio-hsm-ca/{init.sh,softhsm-init}
fi

printf '%s\n' 'root:x:0:0:root:/:/sbin/nologin' 'istio-hsm-ca:x:10001:10001:daemon:/:/sbin/nologin' \
  'istio-hsm-ca-token:x:10002:10002:token host:/:/sbin/nologin' >"$out/etc/passwd"
printf '%s\n' 'root:x:0:' 'istio-hsm-ca:x:10001:' 'istio-hsm-ca-token:x:10002:' >"$out/etc/group"
echo 'hosts: files dns' >"$out/etc/nsswitch.conf"
cp /etc/os-release "$out/etc/os-release"
for package in "${!packages[@]}"; do
  dpkg-query --status "$package" >"$out/var/lib/dpkg/status.d/$package" 2>/dev/null || true
  copyright=/usr/share/doc/$package/copyright
  if [[ -e $copyright ]]; then
    mkdir -p "$out/usr/share/doc/$package"
    cp --dereference "$copyright" "$out/usr/share/doc/$package/"
  fi
done
mkdir -p "$out/usr/share/doc/istio-hsm-ca"
cp "$root/LICENSE" "$out/usr/share/doc/istio-hsm-ca/copyright"
