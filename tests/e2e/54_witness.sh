#!/usr/bin/env bash
# With a witness at most one of host and shared node goes on, and the images of a dead host move by themselves. Once with the
# witness that is built into the replica, once with a daemon of its own.
source "$(dirname "$0")/lib.sh"
configure host1 host2
free_port; gate=$FREE_PORT
SHARED_LINK_PORT=$gate host_config host1
if [ "${WITNESS:=replica1}" = replica1 ]; then
  witness_port=$REPLICA_PORT in_replica=true
else
  free_port; witness_port=$FREE_PORT in_replica=false
  issue witness1 witness
  { common_config witness1 witness; printf '[listen]\naddress = "127.0.0.1:%s"\n' "$witness_port"; } > "$D/witness1.toml"
fi
for node in host1 host2 shared1; do
  printf '\n[witness]\nurl = "https://127.0.0.1:%s"\nnode = "%s"\nin_replica = %s\n' "$witness_port" "$WITNESS" "$in_replica" >> "$D/$node.toml"
done
link() { # the way of host 1 to the shared node
  coproc GATE { exec "$T/delay_proxy" "$gate" "$SHARED_PORT" 0; }
  gate_pid=$GATE_PID
}
cut() { kill -KILL "$gate_pid"; reap "$gate_pid" "the link" 137; }
AT_END+=('kill -KILL $gate_pid')
link
[ "$WITNESS" = replica1 ] || start witness1
for node in shared1 replica1 host1 host2; do start "$node"; done
say "cluster is up in $D, witness $WITNESS"
image=$D/mnt/host1/vm.img
fallocate -l 16M "$image"
block() { dd if=/dev/urandom of="$2" bs=4096 count=1 seek="$1" conv=notrunc,fsync status=none; }
state() { [ "$(image_field host1 vm.img mirror)" = "$1" ]; }
exec 7<> "$image"
write_7() { # BLOCK: by the handle that stays open, durably
  timeout 60 python3 -c 'import os, sys; os.pwrite(7, os.urandom(4096), int(sys.argv[1]) * 4096); os.fsync(7)' "$1"
}
write_7 0
wait_for 30 "mirrored" state mirrored
wait_for 30 "the witness to know of the level copies" grep -q 'witness recorded' "$D/log/$WITNESS.log"

listed() { tm shared1 shared rebuild --hosts host1,host2 --without-replica --dry-run --json | jq -e '.images_at_witness == 1' > "$D/log/jq"; }
expect "a rebuild of the shared node would learn the witness's epochs" listed

# ---- the link goes: the witness lets host 1 go on, and then nobody else -------------------------------------
# It has its terms from the shared node. Where the link goes before they are there it says that it may not ask: once more.
may_not_ask() { tm host1 status --json | jq -e 'any(.notes[]; contains("may not ask the witness"))'; }
decided() { state "local only" || may_not_ask; }
for try in 1 2 3 4 5; do
  cut
  write_7 1 & writer=$!
  wait_for 30 "host 1 alone" decided
  if state "local only"; then break; fi
  link
  wait $writer || die "a write failed that waited for the link"
  wait_for 30 "mirrored" state mirrored
done
wait $writer || die "the witness must let host 1 go on"
expect "host 1 is alone" state "local only"
! timeout 20 dd if=/dev/zero of="$D/mnt/host2/vm.img" bs=4096 count=1 conv=notrunc status=none 2> "$D/log/dd" || die "host 2 wrote while host 1 went on"
say "ok: host 1 goes on, host 2 does not"
link
wait_for 30 "mirrored again" state mirrored
write_7 2
verify_equal host1 vm.img
# The vote that host 1 got counts until both have agreed on new terms.
wait_for 30 "new terms" grep -q 'generation=2 verdict=undecided' "$D/log/$WITNESS.log"

# ---- both the link and the witness are gone: host 1 waits, and an operator may end that ----------------------
stop "$WITNESS"
cut
write_7 3 2> "$D/aborted" & writer=$!
wait_for 30 "host 1 to wait" state waiting
aborted() { [ "$(tm host1 image abort vm.img --json | jq -er .aborted)" -gt 0 ]; }
wait_for 30 "the write that waits to be ended" aborted
if wait $writer; then die "a write was acknowledged that nobody allowed"; fi
grep -q "Input/output error" "$D/aborted" || die "another error: $(cat "$D/aborted")"
start "$WITNESS"
link
wait_for 30 "mirrored again" state mirrored
write_7 3 || die "host 1 writes again"
exec 7>&-
verify_equal host1 vm.img

# ---- host 1 dies: its image moves with host 2's first write ---------------------------------------------------
cp "$image" "$D/before"
wait_for 30 "mirrored" state mirrored
kill9 host1
began=$SECONDS
moved() { timeout 20 dd if=/dev/zero of="$D/mnt/host2/vm.img" bs=4096 seek=8 count=1 conv=notrunc,fsync status=none; }
wait_for 60 "the image to move" moved
say "ok: moved after $((SECONDS - began)) s"
dd if=/dev/zero of="$D/before" bs=4096 seek=8 count=1 conv=notrunc status=none
expect "nothing is lost" cmp "$D/before" "$D/mnt/host2/vm.img"
start host1
wait_for 30 "host 1 to see host 2's line" cmp "$D/before" "$D/mnt/host1/vm.img"
verify_equal host2 vm.img
[ "$WITNESS" != replica1 ] || WITNESS=witness1 bash "$here/54_witness.sh"
