#!/usr/bin/env bash
# A brick that hangs (its file system is frozen) under synchronous writes: first a host's, then the shared node's. The guest
# waits for the deadline at most, the other copy serves; once the brick answers again the copies become level, and no
# synced write is lost.
source "$(dirname "$0")/lib.sh"
BRICKS=1
configure host1
image="$D/mnt/host1/vm.img"
medium() { # NODE: a brick on a file system of its own
  local brick="$D/$1/brick1"
  truncate -s 128M "$D/medium.$1"
  mkfs.ext4 -q -m0 "$D/medium.$1"
  mount -o loop "$D/medium.$1" "$brick"
  unmount_at_end "$brick"
  AT_END+=("fsfreeze -u '$brick' 2> /dev/null")
}
for node in host1 shared1; do
  medium "$node"
  sed -i '/^\[storage\]/a io_deadline = "10s"' "$D/$node.toml"   # longer than a busy disk takes for two flushes
done
for node in shared1 replica1 host1; do start "$node"; done

truncate -s 16M "$image"
"$T/ack_writer" "$image" "$D/acks" 1 & writer=$!
is() { [ "$(image_field host1 vm.img "$1")" = "$2" ]; }
outdated() { tm shared1 status --json | jq -e --argjson o "$1" '.images[] | select(.path == "/vm.img") | .outdated == $o'; }
wait_for 60 "acknowledged writes" test -s "$D/acks"
wait_for 90 "a level image" mirrored host1 vm.img

fsfreeze -f "$D/host1/brick1"
goes_on "writes while the host's brick hangs"
wait_for 60 "the own copy to be left" is mirror filling
expect "status names it" grep -q "the local copy failed" <(tm host1 status 2>&1 || true)
[ "$(metric host1 tidemark_fs_hung_operations_total)" -gt 0 ] || die "no operation was given up"
fsfreeze -u "$D/host1/brick1"
wait_for 90 "the own copy to be filled and level" mirrored host1 vm.img
goes_on "writes to both copies"

fsfreeze -f "$D/shared1/brick1"
goes_on "writes while the shared node's brick hangs"
wait_for 30 "the shared copy to be marked outdated" outdated true
fsfreeze -u "$D/shared1/brick1"
wait_for 90 "the shared copy to be level" mirrored host1 vm.img
goes_on "writes to both copies"

kill -0 $writer || die "the writer saw an error"
kill $writer
wait $writer || [ $? = 143 ] || die "the writer ended by itself"
expect "every synced write is there" "$T/ack_writer" --check "$image" "$D/acks"
verify_equal host1
wait_for 30 "the shared copy to count again" outdated false
no_error_lines
