#!/usr/bin/env bash
# One byte flipped behind each daemon's back, one after the other: on the host's brick, on the shared node's and in
# what the replica keeps. verify ends with its exit code for copies that differ and names copy, image and offset.
source "$(dirname "$0")/lib.sh"
cluster_up host1
image="$D/mnt/host1/vm.img"
for name in vm other; do dd if=/dev/urandom of="$D/mnt/host1/$name.img" bs=1M count=12 conv=fsync status=none; done
mark host1 > "$D/point"
verify_equal host1
at=$(((5 << 20) + (40 << 10) + 123))
# Random bytes are kept as they are everywhere: in the bricks' objects and in the segments' chunks.
place() { # DIRECTORY: "FILE POSITION" of the image's byte `at` in it
  python3 - "$image" $at "$1" <<'PYTHON'
import os, sys
image, at, top = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with open(image, "rb") as f:
    f.seek(at)
    wanted = f.read(64)
places = []
for folder, _, files in os.walk(top):
    for name in files:
        path = os.path.join(folder, name)
        if not name.endswith((".data", ".seg")): continue
        with open(path, "rb") as f: found = f.read().find(wanted)
        if found >= 0: places.append(f"{path} {found}")
assert len(places) == 1, f"{len(places)} places in {top}: {places}"
print(places[0])
PYTHON
}
found() { place "$1" > "$D/where"; }   # DIRECTORY
flip() { # FILE POSITION
  python3 - "$1" "$2" <<'PYTHON'
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
at = int(sys.argv[2])
byte = os.pread(fd, 1, at)[0]
os.pwrite(fd, bytes([byte ^ 1]), at)
os.fsync(fd)
PYTHON
}
names() { # COPY: and no other copy, no other image, not more than the piece around it
  jq -e --arg copy "$1" --argjson at $at --argjson most $2 '
    .equal == false and ([.images[] | select(.path | endswith("other.img")) | .equal] == [true]) and
    ([.images[] | select(.equal == false)] | length == 1) and
    (.images[] | select(.equal == false) | (.path | endswith("vm.img")) and (.differences | length >= 1) and
      all(.differences[]; .copy == $copy and .offset > $at - $most and .offset + .length < $at + $most) and
      any(.differences[]; .offset <= $at and $at < .offset + .length))' "$D/verify" > "$D/log/jq"
}
verify_json() { verify host1 --json > "$D/verify"; }
check() { # COPY DIRECTORY BYTES: the differing bytes lie within so many around it
  local copy=$1 where
  wait_for 60 "one place of the byte, none any more on its way to the replica" found "$2"
  where=$(cat "$D/where")
  flip $where
  expect_exit 4 "verify, a byte of the $copy copy flipped" verify_json
  names "$copy" "$3" || die "verify does not name copy, image and offset: $(cat "$D/verify")"
  verify host1 vm.img > "$D/text" || [ $? = 4 ] || die "verify vm.img: $(cat "$D/text")"
  grep -q "vm.img: copy of $copy differs at offset" "$D/text" || die "the text does not name it: $(cat "$D/text")"
  say "ok: $(grep -m 1 differs "$D/text")"
  flip $where
  verify_equal host1
}
check host "$D/host1" 4096
check shared "$D/shared1" 4096
check replica "$D/replica1" $((64 << 10))      # a chunk's checksum covers so much
