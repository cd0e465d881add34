#!/usr/bin/env bash
# The shared node loses its power: what was not synced there is gone. An fsync that comes afterwards, or was in
# flight, is not acknowledged on its word: whatever was acknowledged is on both copies, durably, once they are level.
#
# Its brick and its catalogue lie on ext4 file systems of their own. A power cut is: kill -9, then the file systems
# are shut down without their journals being written (FS_IOC_SHUTDOWN), unmounted and mounted again. The brick's is
# mounted with data=journal, where plain overwrites too are lost unless they were synced.
source "$(dirname "$0")/lib.sh"
BRICKS=1
configure host1
image="$D/mnt/host1/vm.img"
medium() { # DIRECTORY MOUNT-OPTIONS
  truncate -s 512M "$D/medium.$2"
  mkfs.ext4 -q -J size=128 -E lazy_itable_init=0,lazy_journal_init=0 "$D/medium.$2"
  AT_END+=("mountpoint -q '$1' && umount '$1'")
}
brick="$D/shared1/brick1" state="$D/shared1/state"
mount_media() {
  mount -o loop,data=journal,commit=600 "$D/medium.brick" "$brick"
  mount -o loop,commit=600 "$D/medium.state" "$state"
}
medium "$brick" brick; medium "$state" state
mount_media
let_go() { [ -z "$(losetup -j "$D/medium.brick")$(losetup -j "$D/medium.state")" ]; }
power_cut() {
  kill9 shared1
  python3 - "$brick" "$state" <<'PYTHON'
import fcntl, os, struct, sys
FS_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
for directory in sys.argv[1:]:
    fd = os.open(directory, os.O_RDONLY)
    fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    os.close(fd)
PYTHON
  wait_for 60 "the brick to be unmounted" umount "$brick"
  wait_for 60 "the catalogue to be unmounted" umount "$state"
  # umount may return while something still holds the dead file system for a moment: a mount would get it back.
  wait_for 60 "both media to be let go" let_go
  mount_media
}
for node in shared1 replica1 host1; do start "$node"; done
say "cluster is up in $D"

bytes=$((8 << 20))
truncate -s 32M "$image"
dd if=/dev/urandom of="$D/content" bs=1M count=8 status=none
dd if="$D/content" of="$image" bs=1M oflag=direct conv=notrunc,fsync status=none
uuid=$(uuid_of host1 vm.img)
object() { find "$D/$1" -name "$uuid.g*.0.data"; }   # with one brick it holds the image's bytes as they are
shared_holds() { cmp -s -n $bytes "$D/content" "$(object shared1)"; }
flushes() { metric host1 tidemark_fs_flushes_total; }
flush_begun() { [ "$(flushes)" != "$1" ]; }
level_and_durable() { # DESCRIPTION: another power cut changes nothing any more
  wait_for 60 "mirrored again" mirrored host1 vm.img
  power_cut
  expect "$1" shared_holds
  start shared1
  wait_for 60 "mirrored again" mirrored host1 vm.img
  verify_equal host1
}
wait_for 60 "a level image" mirrored host1 vm.img
power_cut
expect "what was synced stays" shared_holds
start shared1
wait_for 60 "mirrored again" mirrored host1 vm.img

# The host flushes images that are at rest by itself now and then: tried until that was not in between.
write_and_cut() { # [COMMAND...]: acknowledged writes, then the command, then the power cut that loses them
  local try
  for try in 1 2 3 4 5; do
    alone=$(went_alone)
    dd if=/dev/urandom of="$D/content" bs=1M count=8 status=none
    dd if="$D/content" of="$image" bs=1M oflag=direct conv=notrunc status=none
    "$@"
    power_cut
    shared_holds || { say "ok: the power cut lost acknowledged, unsynced writes (try $try)"; return; }
    start shared1
    [ -z "${SYNC:-}" ] || wait "$SYNC" || die "fdatasync failed"
    wait_for 60 "mirrored again" mirrored host1 vm.img
  done
  die "the power cut loses nothing: this test shows nothing"
}

went_alone() { metric host1 tidemark_fs_alone_total; }
# Nor does an fsync depend on the loss id that the host acknowledged alone, since the link was slow or broke.
for again in 1 2 3 4 5; do
  write_and_cut true
  start shared1
  wait_for 60 "the link" linked host1
  expect "fsync after the restart" sync -d "$image"
  [ "$(went_alone)" != "$alone" ] || break
  say "the host went on alone: once more"
  [ $again -lt 5 ] || die "the host went on alone: nothing depends on the loss id"
  wait_for 60 "mirrored again" mirrored host1 vm.img
done
power_cut                                        # at once: what the fsync said must be true on its own
expect "acknowledged fsync, durable on the shared copy" shared_holds
start shared1
wait_for 60 "mirrored again" mirrored host1 vm.img
verify_equal host1

fsync_in_flight() { # at a shared node that no longer answers
  local before
  kill -STOP "${PID[shared1]}"
  before=$(flushes)
  sync -d "$image" & SYNC=$!
  wait_for 30 "the fsync to be sent" flush_begun "$before"
}
write_and_cut fsync_in_flight
start shared1
wait "$SYNC" || die "the fsync in flight failed"
SYNC=
level_and_durable "an fsync that was in flight"

# Under load: power cuts while a guest writes and syncs; it sees no error.
rm -f "$D/acks"
"$T/ack_writer" "$image" "$D/acks" 1 & writer=$!
acks() { stat -c %s "$D/acks"; }
more_acks() { [ -s "$D/acks" ] && [ "$(acks)" -gt "$1" ]; }
wait_for 60 "acknowledged writes" more_acks 8192
for round in 1 2; do
  power_cut
  wait_for 60 "acknowledged writes while alone" more_acks $(($(acks) + 4096))
  start shared1
  wait_for 60 "mirrored again" mirrored host1 vm.img
  wait_for 60 "acknowledged writes" more_acks $(($(acks) + 4096))
done
kill -0 $writer || die "the guest saw an error"
power_cut                                        # the last words of the guest are about both copies
kill -TERM $writer; wait $writer || [ $? = 143 ] || die "the guest saw an error"
start shared1
wait_for 60 "mirrored again" mirrored host1 vm.img
expect "every synced write is there" "$T/ack_writer" --check "$image" "$D/acks"
expect "every synced write is on the host's copy" "$T/ack_writer" --check "$(object host1)" "$D/acks"
power_cut
expect "every synced write is on the shared copy" "$T/ack_writer" --check "$(object shared1)" "$D/acks"
start shared1
wait_for 60 "mirrored again" mirrored host1 vm.img
verify_equal host1
point=$(mark host1)
export_point host1 vm.img "$point" "$D/out"
expect "the replica is equal" cmp "$D/out" "$image"
no_error_lines
