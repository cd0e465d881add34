#!/usr/bin/env bash
# A replica that lies: 200 for batches that it threw away, wrong numbers, short answers, the digests of another point.
# Each is noticed at once or by `verify`, loudly; and what it costs is repaired by the word that the message names.
source "$(dirname "$0")/../e2e/lib.sh"
configure host1
free_port; SHIP_PORT=$FREE_PORT
sed -i "s|^url = .*|url = \"https://127.0.0.1:$SHIP_PORT\"|" "$D/host1.toml"
start shared1
start replica1
lie() { echo "$1" > "$D/lie"; }
lie none
python3 "$here/../crash/lying_replica.py" "$SHIP_PORT" "$REPLICA_PORT" "$D/pki/ca.pem" "$D/certs" "$D/lie" \
  > "$D/log/liar.log" 2>&1 & liar=$!
AT_END+=("kill -TERM $liar")
wait_for 20 "the liar" grep -q ready "$D/log/liar.log"
start host1
image="$D/mnt/host1/vm.img"
new_data() { dd if=/dev/urandom of="$image" bs=1M count=8 conv=notrunc,fsync status=none; }
new_data
mark host1 > /dev/null
new_data
mark host1 > /dev/null
expect "the honest replica is equal" tm host1 verify vm.img

for what in short-hash old-hash; do
  lie $what
  ! tm host1 verify vm.img > "$D/said" 2>&1 || die "verify believes a replica that lies: $what"
  say "ok: verify notices $what: $(tail -n 1 "$D/said")"
done
for what in short-data fewer-data; do
  lie $what
  ! tm host1 replica export vm.img -o "$D/out" > "$D/said" 2>&1 || die "export believes a replica that lies: $what"
  say "ok: export notices $what: $(tail -n 1 "$D/said")"
done
for what in cut-answer no-durable; do
  lie $what
  before=$(grep -c "$what.*PUT" "$D/log/liar.log") || [ $? = 1 ]   # none yet
  new_data
  wait_for 20 "a batch to be thrown away" sh -c "[ \$(grep -c '$what.*PUT' '$D/log/liar.log') -gt $before ]"
  lie none
  mark host1 > /dev/null
  expect "a batch answered by $what was kept and sent again" tm host1 verify vm.img
done
refused() { tm host1 status --json | jq -er '.. | strings' | grep -F "$1"; }
for what in ahead behind; do
  lie $what
  stop host1
  start host1
  new_data
  wait_for 20 "the status to name the wrong number" refused "the replica expects batch"
  say "ok: noticed at once: $(refused "the replica expects batch" | head -n 1)"
done
lie none
stop host1
start host1
mark host1 > /dev/null
expect "nothing was lost by wrong numbers" tm host1 verify vm.img

lie nothing
new_data
before=$(grep -c "nothing.*PUT" "$D/log/liar.log") || [ $? = 1 ]   # none yet
wait_for 20 "a batch to be thrown away" sh -c "[ \$(grep -c 'nothing.*PUT' '$D/log/liar.log') -gt $before ]"
! tm host1 verify vm.img > "$D/said" 2>&1 || die "verify believes a replica that threw a batch away"
say "ok: verify notices batches thrown away: $(tail -n 1 "$D/said")"
lie none
new_data
wait_for 20 "the status to say that batches are missing" refused "the replica expects batch"
say "ok: and at once by the next honest answer: $(refused "the replica expects batch" | head -n 1)"
tm host1 journal resync-replica --wait > "$D/log/resync" 2>&1 || die "resync: $(cat "$D/log/resync")"
mark host1 > /dev/null
expect "level again" tm host1 verify vm.img
