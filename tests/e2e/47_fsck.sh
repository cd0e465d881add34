#!/usr/bin/env bash
# Bytes flipped in every kind of structure of stopped daemons. The daemon refuses a damaged store by name instead of dying on it;
# fsck finds each, mends what costs no block, says what to do with the rest, and exits as fsck(8) does.
source "$(dirname "$0")/lib.sh"
cluster_up host1
image="$D/mnt/host1/vm.img"
dd if=/dev/urandom of="$image" bs=1M count=8 conv=fsync status=none
cp "$image" "$D/original"
mark host1 > "$D/point"
none="$D/mnt/host1/none.img"             # only this host has it
truncate -s 1M "$none"
none_mirrored() { mirrored host1 none.img; }
wait_for 60 "an image that can be taken from the mirror" none_mirrored
expect "mirror = none" setfattr -n user.tidemark.mirror -v none "$none"
dd if=/dev/urandom of="$none" bs=1M count=1 conv=notrunc,fsync status=none
cp "$none" "$D/none"
side_of() { find "$D/host1" -name "*$(tm host1 status --json | jq -r --arg p "$1" '.images[] | select(.path | endswith($p)) | .uuid')*.meta" -print -quit; }
side=$(side_of vm.img) side_none=$(side_of none.img)
state="$D/host1/state"

damage() { # FILE: bytes in the middle of the file that something uses
  python3 - "$1" <<'PYTHON'
import os, struct, sys
path = sys.argv[1]
data = bytearray(open(path, "rb").read())
if path.endswith("data.mdb"):
    # Every leaf page of the newest state: the first value of each.
    meta = max((0, 4096), key=lambda at: struct.unpack_from("<Q", data, at + 16 + 128)[0])
    last = struct.unpack_from("<Q", data, meta + 16 + 120)[0]
    for page in range(2, last + 1):
        at = page * 4096
        if at + 4096 <= len(data) and struct.unpack_from("<H", data, at + 10)[0] & 0x2f == 2: data[at + 4090] ^= 0x55
else:
    data[len(data) // 2] ^= 0x55
with open(path, "r+b") as f:
    f.write(data); f.flush(); os.fsync(f.fileno())
PYTHON
}
fsck() { # EXIT DESCRIPTION NODE [arguments...]
  local code=$1 what=$2 node=$3 got=0; shift 3
  tm "$node" fsck "$@" > "$D/fsck" 2>&1 || got=$?
  [ "$got" = "$code" ] || die "$what: fsck exits with $got, not $code: $(cat "$D/fsck")"
  say "ok: $what (exit $code)"
}
refused() { # NODE WORD: it does not start, and says why
  local program=tidemark-fs code=0
  [[ $1 = shared* ]] && program=tidemark-shared
  [[ $1 = replica* ]] && program=tidemark-replica
  local arguments=(--config "$D/$1.toml")
  [ "$program" = tidemark-fs ] && arguments+=(-f "$D/mnt/$1")
  timeout 60 "$program" "${arguments[@]}" > "$D/log/refused" 2>&1 || code=$?
  [ "$code" != 0 ] && [ "$code" != 124 ] && [ "$code" -lt 128 ] || die "$1 with damage: exit $code: $(tail -3 "$D/log/refused")"
  grep -q "$2" "$D/log/refused" || die "$1 does not name it: $(tail -3 "$D/log/refused")"
  say "ok: $1 refuses, and names it"
}
right() { # the guest's bytes, from the host, equal on every copy
  cmp -s "$image" "$D/original" || die "the guest reads other bytes"
  verify_equal host1 vm.img
}

fsck 8 "a running daemon is left alone" host1
grep -q "stop the daemon" "$D/fsck" || die "it does not say what to do: $(cat "$D/fsck")"
stop host1; stop shared1; stop replica1
for node in host1 shared1 replica1; do fsck 0 "$node is sound" "$node"; done
fsck 0 "directories may be named" host1 "$state" "$D/host1/brick1" "$D/host1/brick2"

# What nothing can mend: named, and what to do; untouched by --repair.
for store in shared1/state/catalogue replica1/state/replica/store; do
  node=${store%%/*}
  cp -a "$D/$store" "$D/kept"
  damage "$D/$store/data.mdb"
  fsck 4 "$store is damaged, and not mended" "$node" --repair
  grep -q "$store" "$D/fsck" || die "it does not name it: $(cat "$D/fsck")"
  refused "$node" "fsck"
  cp "$D/kept/data.mdb" "$D/$store/data.mdb"
  truncate -s $(($(stat -c %s "$D/kept/data.mdb") / 8192 * 4096)) "$D/$store/data.mdb"
  fsck 4 "$store is cut off" "$node"
  refused "$node" "fsck"
  cp "$D/kept/data.mdb" "$D/$store/data.mdb"
  rm -rf "$D/kept"
done
segment=$(find "$D/replica1/state" -name '*.seg' -print -quit)
cp "$segment" "$D/kept"; damage "$segment"
fsck 4 "a segment is damaged" replica1
cp "$D/kept" "$segment"
for marker in host1/brick1 shared1/brick2; do
  cp "$D/$marker/tidemark.brick" "$D/kept"; damage "$D/$marker/tidemark.brick"
  fsck 4 "the marker of $marker is damaged" "${marker%%/*}"
  cp "$D/kept" "$D/$marker/tidemark.brick"
done
fsck 0 "shared1 is sound again" shared1
start shared1; start replica1

# What can be mended, and a cluster that is whole afterwards.
cp "$side_none" "$D/kept"
damage "$side_none"
fsck 4 "the side file of the only copy is damaged, and left where it is" host1 --repair
grep -q "mirror = none" "$D/fsck" || die "it does not say why: $(cat "$D/fsck")"
cp "$D/kept" "$side_none"
damage "$side"
fsck 4 "a side file is damaged" host1
fsck 1 "and moved aside" host1 --repair
[ ! -e "$side" ] && ls "$side".damaged-* > "$D/log/aside" || die "it is not aside"
fsck 0 "nothing is left" host1
start host1
right
stop host1

# Each store of the host: the pages of what it can do without, as salvage must find them, and all of it.
rm -f "$D/kept"
for store in names drl journal; do
  cp -a "$state/$store" "$D/kept"
  damage "$state/$store/data.mdb"
  refused host1 "$store"
  fsck 4 "every leaf of $store is damaged: not mended" host1 --repair
  cp "$D/kept/data.mdb" "$state/$store/data.mdb"
  rm -rf "$D/kept"
done
damage "$state/journal-outdated"
fsck 1 "the journal's mark is damaged: it counts as taken" host1
start host1
right
expect "the image without a mirror is what it was" cmp "$none" "$D/none"
stop host1

# A part that is gone: fsck says what the daemon says.
for store in host1/state/names host1/state/journal shared1/state/catalogue replica1/state/replica/segments; do
  node=${store%%/*}
  [ "$node" = host1 ] || stop "$node"
  mv "$D/$store" "$D/kept"
  fsck 4 "$store is gone" "$node"
  grep -q "bring back what is missing" "$D/fsck" || die "it does not say what the daemon says: $(cat "$D/fsck")"
  refused "$node" "bring back what is missing"
  rm -rf "${D:?}/$store"; mv "$D/kept" "$D/$store"
  [ "$node" = host1 ] || start "$node"
done

# A data object that is cut short, on either side, is a copy that failed: never zeros.
data_of() { find "$D/$1" -name "*$(basename "$side" .meta)*.data" | sort | head -1; }
truncate -s 8192 "$(data_of host1)"
fsck 4 "the host's object is cut short" host1
grep -q "has 8192 bytes instead of" "$D/fsck" || die "it does not say so: $(cat "$D/fsck")"
start host1
expect "the guest reads what the shared copy has" cmp "$image" "$D/original"
level() { mirrored host1 vm.img && [ "$(tm host1 status --json | jq '.reasons | length')" = 0 ]; }
printf x | dd of="$image" bs=1 seek=0 conv=notrunc,fsync status=none
printf x | dd of="$D/original" bs=1 seek=0 conv=notrunc status=none
wait_for 120 "the host's copy to be filled anew" level
right
stop host1; stop shared1
tm host1 fsck > "$D/fsck" || [ $? = 1 ] || die "the copy is not whole again: $(cat "$D/fsck")"
truncate -s 8192 "$(data_of shared1)"
fsck 4 "the shared object is cut short" shared1
of_shared() { find "$D/shared1" -name "$(basename "$side" .meta)*$1"; }
for file in $(of_shared ""); do mv "$file" "$file.gone"; done
fsck 4 "all that the shared node had of an image is gone" shared1
grep -q "blocks are missing from the bricks" "$D/fsck" || die "it does not say so: $(cat "$D/fsck")"
for file in $(of_shared .gone); do mv "$file" "${file%.gone}"; done
start shared1; start host1
unwell() { tm "$1" status > "$D/status" || true; grep -q "it was cut short" "$D/status"; }   # not healthy is an exit code of its own
wait_for 30 "the shared node's status to say so" unwell shared1
expect_exit 4 "verify names it" verify host1 vm.img
printf y | dd of="$image" bs=1 seek=1 conv=notrunc,fsync status=none
printf y | dd of="$D/original" bs=1 seek=1 conv=notrunc status=none
expect "the host goes on with its own copy" cmp "$image" "$D/original"
wait_for 30 "its status to say so too" unwell host1
kill9 host1                              # a stop would wait for the shared copy to take what was written
no_error_lines
