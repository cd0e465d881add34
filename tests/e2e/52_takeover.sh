#!/usr/bin/env bash
# A host dies under load: its image is taken by force on another, every flushed write is there, the replica follows;
# when it comes back, what only it had is a branch. And a host that is cut off goes on alone: the same, with both alive.
source "$(dirname "$0")/lib.sh"
configure host1 host2
free_port; gate=$FREE_PORT
SHARED_LINK_PORT=$gate host_config host1
link() { # the way of host 1 to the shared node
  coproc GATE { exec "$T/delay_proxy" "$gate" "$SHARED_PORT" 0; }
  gate_pid=$GATE_PID
}
cut() { kill -KILL "$gate_pid"; reap "$gate_pid" "the link" 137; }
AT_END+=('kill -KILL $gate_pid')
printf '\n[order]\nmissing_wait = "5s"\n' >> "$D/replica1.toml"
link
for node in shared1 replica1 host1 host2; do start "$node"; done
say "cluster is up in $D"

# ---- host 1 dies ----------------------------------------------------------------------------------
fallocate -l 64M "$D/mnt/host1/vm.img"
fallocate -l 16M "$D/mnt/host1/other.img"
dd if=/dev/urandom of="$D/mnt/host1/other.img" bs=1M count=16 conv=notrunc,fsync status=none
"$T/ack_writer" "$D/mnt/host1/vm.img" "$D/acks" 1 & writer=$!
wait_for 20 "acknowledged writes" sh -c "[ \$(stat -c %s '$D/acks') -gt 65536 ]"
kill9 host1
if wait $writer; then die "the writer must see its file go"; fi

away() { control shared1 /v1/status | jq -e '.hosts[] | select(.host == "host1") | .connected == false'; }
wait_for 20 "the shared node to see host 1 go" away    # by the end of its link, which the proxy hands on
expect_exit 2 "without --force nothing is taken" tm host2 image takeover vm.img
tm host2 image takeover --host host1 --dry-run > "$D/plan"
cat "$D/plan"
grep -q "would be taken from host1, away for" "$D/plan" || die "the plan does not say who holds it"
grep -q "level when host1 was last heard of" "$D/plan" || die "the plan does not say that the copy is level"
[ "$(grep -c 'would be taken' "$D/plan")" = 2 ] || die "two images are host 1's"
expect "the images are taken" tm host2 image takeover --host host1 --force
began=$(date +%s%N)
expect "every flushed write is there" "$T/ack_writer" --check "$D/mnt/host2/vm.img" "$D/acks"
dd if=/dev/urandom of="$D/mnt/host2/vm.img" bs=4096 count=8 seek=100 conv=notrunc,fsync status=none
say "ok: host 2 reads and writes, $((($(date +%s%N) - began) / 1000000)) ms after the takeover"
tm host2 status | grep -q "note .*vm.img: taken by force from host1" || die "host 2's status does not say it"
tm shared1 status | grep -q "note .*vm.img: taken by force from host1" || die "the shared node's status does not say it"

tm host2 mark --name after --wait --json > "$D/marked"
wait_for 60 "the point after the gap" tm host2 replica export vm.img --at after -o "$D/out"
expect "the replica shows host 2's image" cmp "$D/out" "$D/mnt/host2/vm.img"
tm host2 replica points vm.img --count 0 --json | jq -e 'any(.points[]; .without != null)' > "$D/log/jq" ||
  die "the gap is not in the list of points"
verify_equal host2 vm.img

# ---- host 1 comes back ----------------------------------------------------------------------------
start host1
branch_of() { tm host1 image branches --json | jq -er --arg p "$1" '[.branches[] | select(.path | endswith($p))] | length > 0'; }
wait_for 30 "the branch of vm.img" branch_of vm.img
tm host1 image branches
cmp "$D/mnt/host1/vm.img" "$D/mnt/host2/vm.img" || die "host 1 reads something else"
cmp "$D/mnt/host1/other.img" "$D/mnt/host2/other.img" || die "host 1 reads something else"
say "ok: host 1 reads what host 2 wrote"
none_fenced() { [ "$(control shared1 /v1/status | jq '[.images[].fenced | length] | add')" = 0 ]; }
wait_for 20 "the shared node to know that host 1 knows" none_fenced
dd if=/dev/urandom of="$D/mnt/host1/vm.img" bs=4096 count=4 seek=200 conv=notrunc,fsync status=none
wait_for 60 "host 1's copy to be level" mirrored host1 vm.img
verify_equal host1 vm.img

# ---- host 1 is cut off and goes on alone ------------------------------------------------------------
exec 7<> "$D/mnt/host1/vm.img"
write_7() { # FILE BLOCK: by the handle that stays open, durably
  python3 -c 'import os, sys; os.pwrite(7, open(sys.argv[1], "rb").read(), int(sys.argv[2]) * 4096); os.fsync(7)' "$@"
}
refused() { ! write_7 "$D/tail" 12 2> "$D/refused"; }
dd if=/dev/urandom of="$D/before" bs=4096 count=1 status=none
write_7 "$D/before" 10
wait_for 30 "mirrored" mirrored host1 vm.img
cut
alone() { [ "$(image_field host1 vm.img mirror)" = "local only" ]; }
wait_for 30 "host 1 to go on alone" alone
dd if=/dev/urandom of="$D/tail" bs=4096 count=1 status=none
write_7 "$D/tail" 10
tm host1 status | grep -q "note .*vm.img: this host goes on alone" || die "host 1's status does not say what may come"
expect "taken by force" tm host2 image takeover vm.img --force
dd if="$D/mnt/host2/vm.img" of="$D/seen" bs=4096 skip=10 count=1 status=none
expect "host 2 has what was written before the cut" cmp "$D/seen" "$D/before"
dd if=/dev/urandom of="$D/mnt/host2/vm.img" bs=4096 count=1 seek=20 conv=notrunc,fsync status=none
write_7 "$D/tail" 11 || die "host 1 goes on alone until it knows"
link
wait_for 30 "host 1 to learn of it" refused
grep -q "Input/output error" "$D/refused" || die "another error: $(cat "$D/refused")"
two_branches() { [ "$(tm host1 image branches --json | jq '[.branches[] | select(.path | endswith("vm.img"))] | length')" = 2 ]; }
wait_for 30 "the second branch" two_branches
branch=$(tm host1 image branches --json | jq -er '[.branches[] | select(.path | endswith("vm.img"))] | max_by(.epoch) | .file')
dd if="$branch" of="$D/kept" bs=4096 skip=10 count=1 status=none
expect "the tail is kept" cmp "$D/kept" "$D/tail"
dd if="$D/mnt/host1/vm.img" of="$D/seen" bs=4096 skip=10 count=1 status=none
expect "the main line has none of it" cmp "$D/seen" "$D/before"
refused || die "the old handle writes again"
say "ok: the handle that was open stays refused"
exec 7>&-
tm host2 mark --name healed --wait --json > "$D/marked"
rm "$D/out"
wait_for 60 "the point" tm host2 replica export vm.img --at healed -o "$D/out"
expect "the replica shows host 2's line" cmp "$D/out" "$D/mnt/host2/vm.img"
verify_equal host2 vm.img
dd if=/dev/urandom of="$D/mnt/host1/vm.img" bs=4096 count=1 seek=30 conv=notrunc,fsync status=none
wait_for 60 "host 1's copy to be level" mirrored host1 vm.img
verify_equal host1 vm.img
