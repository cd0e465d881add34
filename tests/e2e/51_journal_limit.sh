#!/usr/bin/env bash
# The journal's limit: under load the replica is away until the limit, no guest error, the unshipped points are given up;
# the replica comes back and is brought level by a resync, showing its last complete point until that is whole. Then an
# emptied replica is brought level by one command, under load. Then the journal's own disk is full under load.
source "$(dirname "$0")/lib.sh"
configure host1
sed -i 's/^limit_bytes = .*/limit_bytes = "16MiB"/' "$D/host1.toml"
state="$D/host1/state"
small_disk "$state" 320M
for node in shared1 replica1 host1; do start "$node"; done

image="$D/mnt/host1/vm.img"
truncate -s 32M "$image"
"$T/ack_writer" "$image" "$D/acks" 1 & writer=$!
AT_END+=("kill $writer 2> /dev/null")
truncate -s 64M "$D/mnt/host1/load.img"
load() { # SECONDS: random writes at depth 16
  fio --name=load --filename="$D/mnt/host1/load.img" --rw=randwrite --bs=16k --iodepth=16 --ioengine=libaio --direct=1 \
    --size=64M --time_based --runtime="$1" --rate=24M --randrepeat=0 > "$D/log/fio" 2>&1 || die "fio: $(cat "$D/log/fio")"
}
journal() { tm host1 status --json | jq -er ".journal.$1"; }
shipping_is() { [ "$(journal shipping)" = "$1" ]; }
level() { [ "$(journal shipping)" = normal ] && [ "$(journal resync_left_bytes)" = 0 ]; }
acks() { stat -c %s "$D/acks"; }
writes_go_on() { local before; before=$(acks); wait_for 60 "acknowledged writes" more "$((before + 2048))"; }
more() { [ "$(acks)" -gt "$1" ]; }
latest() { client operator "https://127.0.0.1:$REPLICA_PORT/v1/points/latest" | jq -er .id; }

wait_for 20 "acknowledged writes" test -s "$D/acks"
point=$(mark host1)
stop replica1
tm host1 mark --name lost-one --json > /dev/null
load 4
to_the_limit() { shipping_is degraded || { load 1; false; }; }   # a slow disk takes less in a second
wait_for 60 "the limit" to_the_limit
expect "status names the lost mark" grep -q lost-one <(tm host1 status)
expect "and the limit" grep -q "DEGRADED: .*limit" <(tm host1 status)
spool_empty() { [ "$(find "$state/spool" -name '*.seg' | wc -l)" = 0 ]; }
wait_for 30 "the spool to be emptied" spool_empty   # once it is on record that it is given up
load 3
expect "and stays so" spool_empty
expect_exit 1 "a mark says that no point is made" tm host1 mark --name lost-two --wait --json > /dev/null
expect_exit 1 "also one that does not wait" tm host1 mark --name lost-three --json > /dev/null
writes_go_on

start replica1
first=$(latest)
(load 6) & loader=$!
seen=0
while ! level; do
  now=$(latest)
  if [ "$(journal shipping)" != normal ] && [ "$now" = "$first" ]; then seen=1; fi
  kill -0 $loader 2> /dev/null || wait_for 60 "the resync's end" level
done
wait $loader || die "the load saw an error"
wait_for 60 "the resync's end" level
[ "$seen" = 1 ] || say "the resync was too fast to be seen in between"
expect "new points after the resync" test "$(mark host1)" -gt "$first"
verify_equal host1

# Emptied: refused until an operator says so.
stop replica1
rm -rf "$D/replica1/state"; mkdir -p "$D/replica1/state"
start replica1
needs() { [ "$(journal needs_full_resync)" = true ]; }
wait_for 60 "the host to refuse the emptied replica" needs
expect "status says what to do" grep -q "tidemark journal resync-replica" <(tm host1 status)
(load 5) & loader=$!
expect "the shared node's names" tm shared1 journal resync-replica --wait
expect "the host's images" tm host1 journal resync-replica --wait
wait $loader || die "the load saw an error"
verify_equal host1
writes_go_on

# The journal's own disk: not a byte is left.
if dd if=/dev/zero of="$state/hog" bs=64k status=none 2> /dev/null; then die "the disk is not full"; fi
load 4
disk_failed() { tm host1 status | grep -q "out_of_space"; }
wait_for 60 "the journal's disk to be full" disk_failed
writes_go_on
rm "$state/hog"
disk_good() { ! disk_failed; }
wait_for 60 "the journal to recover" disk_good
wait_for 60 "the replica to be level" level
kill -0 $writer || die "the writer saw an error"
kill $writer
wait $writer || [ $? = 143 ] || die "the writer ended by itself"
expect "every synced write is there" "$T/ack_writer" --check "$image" "$D/acks"
verify_equal host1
