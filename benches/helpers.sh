#!/usr/bin/env bash
# A failing log key and canary key: what they cost the requests for certificates. About two minutes:
#
#   benches/helpers.sh [--seconds N] [--rounds N] [--delay MS]
#
# Options: seconds of each open loop (6), number of rounds (7), duration of a signature in milliseconds (5). The token is
# SoftHSM with tests/faulty-token, whose C_Sign sleeps to take that long in total, with two sessions and an exercise of
# the sessions each second. Open loops, Poisson arrivals at 60 % of the token's rate, alternate between a
# token whose two helper keys work and the same token whose helper keys fail in C_SignInit with CKR_DEVICE_ERROR, a code
# after which a host ends if the CA's key returns it. Medians of the rounds are compared.
# CA=BINARY and FAULTY=LIBRARY use existing builds.
seconds=6 rounds=7 delay=5
while (($#)); do
  case $1 in
    --seconds) seconds=${2:?--seconds needs a number} ;;
    --rounds) rounds=${2:?--rounds needs a number} ;;
    --delay) delay=${2:?--delay needs a number} ;;
    *) echo "usage: $0 [--seconds N] [--rounds N] [--delay MS]" >&2; exit 2 ;;
  esac
  shift 2
done
# shellcheck source=benches/harness.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/harness.sh"

faulty_built
PARTS=none built
token p256 p256
# id LABEL: the CKA_ID of a private key.
id() {
  SOFTHSM2_CONF=$memory/p256/softhsm2.conf "$CA" inspect --output json --token "${uri[p256]}" --pin-file "$memory/p256/pin" |
    awk -v label="\"label\": \"$1\"," '/"label":/ {mine = index($0, label)} mine && /"id":/ {gsub(/[",]/, "", $2); print $2; exit}'
}
log=$(id 'istio-hsm-ca log key') canary=$(id 'istio-hsm-ca canary key')
[[ -n $log && -n $canary ]] || fail "the token lacks a helper key"
faulty_token p256
works="C_Sign takes=$((delay * 1000))"
printf -v fails '%s\n' "$works" "C_SignInit:$log return=0x30" "C_SignInit:$canary return=0x30"
control() { echo "$1" >"$memory/control.new" && mv "$memory/control.new" "$memory/control"; }

control "$works"
SESSIONS=2 KEEP_ALIVE=1s daemon helpers p256
load helpers --warm-up 1 --seconds 3
rate=$(field certificates_per_second)
offered=$((${rate%.*} * 3 / 5))
for ((round = 1; round <= rounds; round++)); do
  for state in works fails; do
    control "${!state}"
    load helpers --warm-up 1 --seconds "$seconds" --rate "$offered"
    note_run "$state"
  done
done
grep -q 'a helper key fails' "$disk/helpers.log" || fail "the helper keys did not fail"
! grep -q 'token host ends' "$disk/helpers.log" || fail "a token host has ended"
end_daemon helpers
summary
