#!/usr/bin/env bash
# Sectors rot behind the daemons' backs, on the host's copy and on the shared one, under a writing guest. `tidemark scrub`
# repairs each from the good copy; where nothing tells which is right it names the place, leaves both, and exits with 4,
# until an operator lets the replica decide.
source "$(dirname "$0")/lib.sh"
cluster_up host1
image="$D/mnt/host1/vm.img"
for name in vm busy; do dd if=/dev/urandom of="$D/mnt/host1/$name.img" bs=1M count=12 conv=fsync status=none; done
cp "$image" "$D/original"
mark host1 > "$D/point"

place() { # NODE OFFSET: "FILE POSITION" of the image's bytes there, in the node's bricks
  python3 - "$D/original" "$2" "$D/$1" <<'PYTHON'
import os, sys
image, at, top = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with open(image, "rb") as f:
    f.seek(at)
    wanted = f.read(64)
places = []
for folder, _, files in os.walk(top):
    for name in files:
        path = os.path.join(folder, name)
        if not name.endswith(".data"): continue
        with open(path, "rb") as f: found = f.read().find(wanted)
        if found >= 0: places.append(f"{path} {found}")
assert len(places) == 1, f"{len(places)} places in {top}: {places}"
print(places[0])
PYTHON
}
rot() { # NODE OFFSET: one sector of random bytes
  local where; where=$(place "$1" "$2")
  dd if=/dev/urandom of="${where% *}" bs=512 seek=$((${where##* } / 512)) count=1 conv=notrunc,fsync status=none
}
same() { cmp -s "$image" "$D/original"; }
scrub() { # asked again where the link breaks meanwhile (5)
  local code try
  for try in 1 2 3 4 5; do
    code=0; tm host1 scrub vm.img --rate 0 --json > "$D/scrub" || code=$?
    [ $code = 5 ] || break
    say "the link was lost meanwhile: scrub $try is begun anew"
    wait_for 60 "the link" linked host1
  done
  return $code
}
vouched() { scrub && [ "$(jq '.images[0].bytes_vouched' "$D/scrub")" = $((12 << 20)) ]; }

expect_exit 2 "scrub needs images or --all" tm host1 scrub
# The dirty-region log lets go of regions some seconds after their last write; then their digests are kept.
wait_for 150 "every block to have a digest" vouched

dd if=/dev/urandom of="$D/mnt/host1/busy.img" bs=64k count=4000 oflag=direct conv=notrunc status=none 2> "$D/log/busy" & writer=$!
in_host=$(((3 << 20) + (40 << 10))) in_shared=$(((8 << 20) + (4 << 10)))
rot host1 $in_host
rot shared1 $in_shared
expect "scrub finds and repairs both" scrub
jq -e --argjson h $in_host --argjson s $in_shared '
  .clean == true and (.images[0].repaired | length == 2) and
  any(.images[0].repaired[]; .copy == "host" and .offset <= $h and $h < .offset + .length) and
  any(.images[0].repaired[]; .copy == "shared" and .offset <= $s and $s < .offset + .length)' "$D/scrub" > "$D/log/jq" ||
  die "not what was to be repaired: $(cat "$D/scrub")"
kill "$writer" 2> "$D/log/kill" || true      # it may have ended
reap "$writer" "the busy writer" 0 143   # killed: what it wrote does not matter
expect "the guest reads the right bytes" same
verify_equal host1 vm.img
[ "$(metric host1 tidemark_fs_scrub_repaired_host_bytes_total)" -ge 512 ] || die "no count of the host's repair"
[ "$(metric host1 tidemark_fs_scrub_repaired_shared_bytes_total)" -ge 512 ] || die "no count of the shared copy's repair"

# Written since the last scrub: no digest tells which copy is right.
dd if="$D/original" of="$image" bs=4k skip=1280 seek=1280 count=1 conv=notrunc,fsync status=none
mark host1 > "$D/point"
at=$(((5 << 20) + 512))
rot shared1 $at
cp "$(place host1 $((5 << 20)) | cut -d' ' -f1)" "$D/before"
expect_exit 4 "scrub cannot know" scrub
jq -e --argjson at $at '(.images[0].repaired == []) and
  any(.images[0].undecided[]; .offset <= $at and $at < .offset + .length and (.host | length == 32) and .host != .shared)' \
  "$D/scrub" > "$D/log/jq" || die "not named: $(cat "$D/scrub")"
cmp -s "$(place host1 $((5 << 20)) | cut -d' ' -f1)" "$D/before" || die "an undecided block was written"
tm host1 status > "$D/status" || true        # not healthy is an exit code of its own
grep -q "nothing tells which is right" "$D/status" || die "status says nothing of it: $(cat "$D/status")"
stop host1; start host1
named_in_status() { tm host1 status > "$D/status" || true; grep -q "nothing tells which is right" "$D/status"; }
expect "the alarm outlasts a restart" named_in_status

# A slow one is ended; what it had not come to is still in doubt.
tm host1 scrub --all --rate 64KiB > "$D/log/slow" 2>&1 & slow=$!
running() { [ "$(tm host1 status --json | jq .scrub.running)" = true ]; }
wait_for 60 "the scrub to run" running
expect "a scrub is told to stop" tm host1 scrub --stop
code=0; wait "$slow" || code=$?
[ "$code" = 1 ] || die "the scrub that was stopped exits with $code: $(cat "$D/log/slow")"
grep -q "stopped before its end" "$D/log/slow" || die "it does not say so: $(cat "$D/log/slow")"
expect_exit 3 "there is none to be stopped" tm host1 scrub --stop
expect "what it had not looked at is still in doubt" named_in_status
expect "with the replica's word it is repaired" tm host1 scrub --all --trust-replica --rate 0
expect "the guest reads the right bytes" same
verify_equal host1
expect "status is healthy again" tm host1 status
no_error_lines
