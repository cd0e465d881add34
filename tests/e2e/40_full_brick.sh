#!/usr/bin/env bash
# A host's brick is full under load: no guest error, the shared copy serves. Once there is room again the own copy is
# filled while the load goes on, and what the replica was sent meanwhile is what the guest wrote, not what the unfilled
# copy held.
source "$(dirname "$0")/lib.sh"
BRICKS=1
configure host1
image="$D/mnt/host1/vm.img"
brick="$D/host1/brick1"
small_disk "$brick" 96M
for node in shared1 replica1 host1; do start "$node"; done

truncate -s 16M "$image"
"$T/ack_writer" "$image" "$D/acks" 1 & writer=$!
mirror_is() { [ "$(image_field host1 vm.img mirror)" = "$1" ]; }
wait_for 60 "acknowledged writes" test -s "$D/acks"
# At once: the image is not all written yet, so that the writer needs room.
hog() { # all that is left
  local unit at=0
  for unit in 1048576 65536 4096; do
    while fallocate -o $at -l $unit "$brick/hog" 2> /dev/null; do at=$((at + unit)); done
  done
}
hog
wait_for 60 "the own copy to be left" mirror_is filling
goes_on "writes without the own copy"
rm "$brick/hog"
wait_for 120 "the copy to be filled and level" mirrored host1 vm.img
goes_on "writes to both copies"
kill -0 $writer || die "the writer saw an error"
kill $writer
wait $writer || [ $? = 143 ] || die "the writer ended by itself"
expect "every synced write is there" "$T/ack_writer" --check "$image" "$D/acks"
verify_equal host1
point=$(mark host1)
export_point host1 vm.img "$point" "$D/out"
expect "the replica has what the guest wrote" cmp "$D/out" "$image"
no_error_lines
