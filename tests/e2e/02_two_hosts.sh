#!/usr/bin/env bash
# Host 1 writes and closes an image, host 2 opens and writes it, host 1 again, thirty times over, with
# the clocks of the two daemons an hour apart: every point is right and in order, verify says equal.
source "$(dirname "$0")/lib.sh"
configure host1 host2
start shared1; start replica1
start host1
start host2 env FAKETIME=+1h FAKETIME_DONT_FAKE_MONOTONIC=1 LD_PRELOAD="$(dpkg -L libfaketime | grep -m1 'libfaketime.so.1$')"

blocks=64
truncate -s $((blocks * 4096)) "$D/mnt/host1/shared.img"
mark host1 > "$D/made"                           # at the replica: nothing of host 2's is held for it
# A tenure moves within five seconds, or it is EBUSY: a disk that takes its time is no reason to fail.
put() { dd if="$D/piece" of="$1" bs=4096 seek="$2" conv=notrunc,fsync status=none; }
truncate -s $((blocks * 4096)) "$D/model"
points=()
for turn in $(seq 1 30); do
  host=host$((1 + turn % 2))
  dd if=/dev/urandom of="$D/piece" bs=4096 count=3 status=none
  at=$((turn * 7 % (blocks - 3)))
  wait_for 60 "turn $turn: $host to write" put "$D/mnt/$host/shared.img" $at
  put "$D/model" $at
  other=host$((1 + (turn + 1) % 2))
  cmp "$D/mnt/$other/shared.img" "$D/model" || die "turn $turn: $other reads something else"
  points+=("$(mark "$host")")
  cp "$D/model" "$D/model.$turn"
done
say "ok: thirty handovers, each read equal on the other host"

last=0
for turn in $(seq 1 30); do
  point=${points[turn - 1]}
  [ "$point" -gt "$last" ] || die "point $point of turn $turn is not after $last"
  last=$point
  export_point host1 shared.img "$point" "$D/out"
  cmp "$D/out" "$D/model.$turn" || die "point $point (turn $turn) shows something else"
  rm "$D/out"
done
say "ok: thirty points, in order and right"
verify_equal host1 shared.img
verify_equal host2 shared.img

# The holder keeps an image that it has open for writing: the other waits five seconds, then EBUSY.
exec 7<> "$D/mnt/host1/shared.img"
dd if=/dev/zero bs=4096 count=1 status=none >&7
began=$(date +%s)
dd if=/dev/zero of="$D/mnt/host2/shared.img" bs=4096 count=1 conv=notrunc,fsync status=none 2> "$D/busy" && die "two writers"
grep -q 'busy' "$D/busy" || die "not EBUSY: $(cat "$D/busy")"
[ $(($(date +%s) - began)) -ge 4 ] || die "did not wait for the release"
grep -q 'image_held_elsewhere.*host1' "$D/log/host2.log" || die "the log does not name the holder"
exec 7>&-
wait_for 60 "host 2 to write once host 1 has closed" \
  dd if=/dev/zero of="$D/mnt/host2/shared.img" bs=4096 count=1 conv=notrunc,fsync status=none

# What is left of a removed image is looked up, not promised.
sed '/^\[replica\]/,/^$/d' "$D/host2.toml" > "$D/alone.toml"
expect_exit 2 "without a replica nothing keeps it" tm alone image remove shared.img
cmp "$D/mnt/host2/shared.img" "$D/mnt/host1/shared.img" || die "it was removed all the same"
tm host2 journal pause-shipping
dd if=/dev/urandom of="$D/mnt/host2/shared.img" bs=4096 count=1 conv=notrunc,fsync status=none
wait_for 60 "it to be seen" sh -c "tidemark --config '$D/host2.toml' image remove shared.img --dry-run | grep -q 'as of 20.*shipping is PAUSED'"
tm host2 journal resume-shipping
tm host2 image remove shared.img --json > "$D/removed"
[ ! -e "$D/mnt/host2/shared.img" ] && jq -e '.kept.by' "$D/removed" > /dev/null || die "removed: $(cat "$D/removed")"
say "ok: what the replica keeps of a removed image is said"
no_error_lines
