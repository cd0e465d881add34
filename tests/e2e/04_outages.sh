#!/usr/bin/env bash
# The replica, then the shared node, is stopped and started under load: no guest error, everything is
# brought level, verify says equal.
source "$(dirname "$0")/lib.sh"
cluster_up host1
image="$D/mnt/host1/vm.img"
fallocate -l 256M "$image"
load() { # starts a write load that ends when the file `stop` appears, and fails on any error
  rm -f "$D/stop"
  fio --name=load --filename="$image" --size=256M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 --time_based=1 \
    --runtime=600 --rate_iops=4000 --fsync=64 --randrepeat=0 --trigger-file="$D/stop" --trigger='true' --output="$D/log/fio.load" &
  LOAD=$!
}
end_load() { # fio ends at the signal with its report; a guest error would stand in it
  local code=0
  kill -TERM $LOAD; wait $LOAD || code=$?
  grep -q 'err= 0' "$D/log/fio.load" || die "fio (exit $code): $(cat "$D/log/fio.load")"
}
written() { awk '/^write_bytes/ {print $2}' "/proc/$(daemon_pid host1)/io"; }
alone() { [ "$(image_field host1 vm.img mirror)" != mirrored ] && [ "$(image_field host1 vm.img stale_bytes)" -gt 0 ]; }
more_written() { [ "$(written)" -gt $(($1 + (8 << 20))) ]; }

load
before=$(written); wait_for 60 "load" more_written "$before"
stop replica1
before=$(written); wait_for 60 "writes without a replica" more_written "$before"
start replica1
say "replica is back"
end_load
point=$(mark host1)
export_point host1 vm.img "$point" "$D/out"
expect "the replica caught up" cmp "$D/out" "$image"
rm "$D/out"
verify_equal host1

for how in stop kill9; do
  load
  before=$(written); wait_for 60 "load" more_written "$before"
  $how shared1
  before=$(written); wait_for 60 "writes without the shared node" more_written "$before"
  wait_for 20 "status to say local only, with stale bytes" alone
  tm host1 status > /dev/null
  start shared1
  wait_for 120 "mirrored again" mirrored host1 vm.img
  before=$(written); wait_for 60 "load" more_written "$before"
  end_load
  verify_equal host1
  say "ok: shared node $how under load"
done
no_error_lines
