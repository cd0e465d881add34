#!/usr/bin/env bash
# `ship_rate` bounds what a host sends to the replica, batches and resyncs together; it is changed as every setting is,
# by a restart, a live one included.
source "$(dirname "$0")/lib.sh"
export CUT_INTERVAL=200ms
configure host1
sed -i 's/^limit_bytes = .*/&\nship_rate = "1MiB"/' "$D/host1.toml"
for node in shared1 replica1 host1; do start "$node"; done
cp "$D/host1.toml" "$D/asks.toml"                # the file of the command line, which is never wrong
rate() { tm asks status --json | jq -er .journal.ship_rate_bytes; }
expect "status has the rate" [ "$(rate)" = 1048576 ]
tm host1 status > "$D/log/status"
grep -q "1.0 MiB/s at most" "$D/log/status" || die "status does not show it: $(cat "$D/log/status")"
write() { dd if=/dev/urandom of="$D/mnt/host1/vm.img" bs=1M count="$1" oflag=direct conv=fsync,notrunc status=none; }
took() { # COMMAND...: milliseconds
  local begin; begin=$(date +%s%N)
  "$@" > "$D/log/took"
  echo $((($(date +%s%N) - begin) / 1000000))
}
ship() { write 6; mark host1; }
slow=$(took ship)
expect "6 MiB at 1 MiB a second took at least 4.5 s ($slow ms)" [ "$slow" -ge 4500 ]
verify_equal host1

# A mistake is named, and the daemon goes on as it was.
sed -i 's/^ship_rate = .*/ship_rate = "1000"/' "$D/host1.toml"
expect_exit 2 "a rate that is none is refused" tidemark config check "$D/host1.toml"
expect_exit 2 "by a live restart, too" tm asks host restart
sed -i 's/^ship_rate = .*/ship_rate = "0"/' "$D/host1.toml"
expect "the daemon goes on as it was" [ "$(rate)" = 1048576 ]
expect "a live restart" tm asks host restart
wait_for 20 "host1 to answer" ready host1
expect "takes the new rate" [ "$(rate)" = 0 ]
ship > "$D/log/fast" || die "without a limit nothing is shipped"
tm host1 status > "$D/log/status"
! grep -q "at most" "$D/log/status" || die "status shows a limit: $(cat "$D/log/status")"
