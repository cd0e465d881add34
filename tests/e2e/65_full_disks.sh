#!/usr/bin/env bash
# Full disks: the writer sees ENOSPC only when no copy that is level has room. One copy full: it goes on with the other.
# Both full: ENOSPC, and what was acknowledged is there. With room again all goes on, and the copies are equal.
source "$(dirname "$0")/lib.sh"
BRICKS=1
configure host1
mnt="$D/mnt/host1"
for node in host1 shared1; do small_disk "$D/$node/brick1" 128M; done
for node in shared1 replica1 host1; do start "$node"; done
hog() { if dd if=/dev/zero of="$D/$1/brick1/hog" bs=64k status=none 2> /dev/null; then die "$1's brick is not full"; fi; }
give_room() { rm "$D/$1/brick1/hog"; }
write_at() { # IMAGE MIB COUNT: durable, of known contents
  dd if="$D/content" of="$mnt/$1" bs=1M seek="$2" skip="$2" count="$3" oflag=direct conv=notrunc,fsync status=none
}
same() { cmp -n $(($2 << 20)) "$D/content" "$mnt/$1"; }   # IMAGE MIB
dd if=/dev/urandom of="$D/content" bs=1M count=32 status=none

# One brick is full: the shared node's, and the host goes on alone; the host's, and the shared copy serves.
one_full() { # NODE IMAGE
  truncate -s 32M "$mnt/$2"
  write_at "$2" 0 4
  hog "$1"
  expect "$1's brick is full: writes go on" write_at "$2" 4 4
  expect "nothing is lost" same "$2" 8
  give_room "$1"
  wait_for 90 "$2 to be mirrored again" mirrored host1 "$2"
  verify_equal host1 "$2"
}
one_full shared1 one.img
one_full host1 two.img

# Both are full.
truncate -s 32M "$mnt/three.img"
write_at three.img 0 4
hog host1; hog shared1
if write_at three.img 8 4 2> "$D/log/dd"; then die "there was no room, and yet it was written"; fi
grep -q 'No space left on device' "$D/log/dd" || die "not ENOSPC: $(cat "$D/log/dd")"
say "ok: ENOSPC"
expect "what was acknowledged is there" same three.img 4
if dd if="$D/content" of="$mnt/new.img" bs=1M count=4 oflag=direct conv=fsync status=none 2> "$D/log/dd"; then die "a new image had room"; fi
grep -q 'No space left on device' "$D/log/dd" || die "a new image, not ENOSPC: $(cat "$D/log/dd")"
give_room host1; give_room shared1
works() { write_at three.img 8 4 && same three.img 4; }
wait_for 60 "writes to go on" works
wait_for 60 "three.img to be level" mirrored host1 three.img
rm -f "$mnt/new.img"
for i in one two three; do wait_for 60 "$i.img to be level" mirrored host1 $i.img; done
verify_equal host1
no_error_lines
