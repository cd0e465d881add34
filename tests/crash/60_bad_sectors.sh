#!/usr/bin/env bash
# Sectors of each copy that the disk cannot read any more, until they are written anew. Guests get no error: they read the
# other copy. `tidemark scrub` writes each anew from the copy that can be read; what neither can read it names, and exits
# with 4.
source "$(dirname "$0")/lib.sh"
BRICKS=1
configure host1
for node in host1 shared1; do on_medium "$node"; done
for node in shared1 replica1 host1; do start "$node"; done
image="$D/mnt/host1/vm.img"
dd if=/dev/urandom of="$image" bs=1M count=8 conv=fsync status=none
cp "$image" "$D/original"
mark host1 > "$D/point"
object() { find "$D/medium/$1" -name '*.data' -printf '/%P\n' | grep . || die "no object of $1"; }
spoil() { # NODE OFFSET: a sector of 4 KiB there
  medium "$1" spoil "$(object "$1")" "$2" 4096 > "$D/log/spoil" || die "spoil: $(cat "$D/log/spoil")"
  ! dd if="$D/$1$(object "$1")" of="$D/read" iflag=direct bs=4k skip=$(($2 >> 12)) count=1 2> "$D/log/dd" ||
    die "the sector of $1 can be read"
}
readable() { dd if="$D/$1$(object "$1")" of="$D/read" iflag=direct bs=4k skip=$(($2 >> 12)) count=1 status=none; }
same() { dd if="$image" of="$D/read" iflag=direct bs=1M status=none && cmp "$D/read" "$D/original"; }
scrub() { tm host1 scrub vm.img --rate 0 --json > "$D/scrub"; }
repaired() { # COPY OFFSET: it is in the result, written anew, and right
  jq -e --arg copy "$1" --argjson at "$2" \
    'any(.images[0].repaired[]; .copy == $copy and .offset <= $at and $at < .offset + .length)' "$D/scrub" > "$D/log/jq" ||
    die "the $1 copy at $2 is not repaired: $(cat "$D/scrub")"
  readable "${1}1" "$2" || die "the sector of ${1}1 is as bad as before"
}

at_host=$(((3 << 20) + (40 << 10))) at_shared=$(((5 << 20) + (4 << 10)))
spoil shared1 $at_shared
expect "a guest reads past the shared copy's bad sector" same
spoil host1 $at_host
expect "scrub" scrub
repaired host $at_host
repaired shared $at_shared
jq -e '.clean and (.images[0].repaired | length == 2)' "$D/scrub" > "$D/log/jq" || die "more than that: $(cat "$D/scrub")"
expect "the guest reads the right bytes" same
verify_equal host1

spoil host1 $at_shared
expect "a guest reads past the host's bad sector" same
spoil host1 $at_host
spoil shared1 $at_host
expect_exit 4 "no copy can be read" scrub
jq -e --argjson at $at_host '.images[0].undecided == [.images[0].undecided[] | select(.offset == $at and .length == 4096)]
  and (.images[0].undecided | length == 1)' "$D/scrub" > "$D/log/jq" || die "not named: $(cat "$D/scrub")"
dd if="$D/original" of="$image" bs=4k skip=$((at_host >> 12)) seek=$((at_host >> 12)) count=1 conv=notrunc,fsync oflag=direct \
  status=none || die "the guest cannot write it"
expect "what the guest wrote mends it" scrub
expect "the guest reads the right bytes" same
verify_equal host1
no_error_lines
