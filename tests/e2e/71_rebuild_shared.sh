#!/usr/bin/env bash
# A shared node that lost its catalogue, then one that lost everything, is rebuilt by one command from what its hosts
# know, while they write.
source "$(dirname "$0")/lib.sh"
BRICKS=1 CUT_INTERVAL=200ms
cluster_up host1 host2
M1=$D/mnt/host1; M2=$D/mnt/host2
mkdir "$M1/vm"
dd if=/dev/urandom of="$M1/vm/held.img" bs=1M count=8 conv=fsync status=none
dd if=/dev/urandom of="$M2/given.img" bs=1M count=4 conv=fsync status=none
SUM=$(sha256sum < "$M1/given.img")   # which takes it from the other host
writer() { # writes and flushes blocks one after another until told to stop; the last one that was acknowledged
  local i=0
  while [ ! -e "$D/stop" ]; do
    i=$((i + 1))
    printf '%08d' $i | dd of="$M1/vm/held.img" bs=4096 seek=$((i % 1024)) conv=notrunc,fsync status=none || { echo failed > "$D/last"; return 1; }
    echo $i > "$D/last"
  done
}
check() { # the host's guest saw no error, its last write is on both copies, and the other host reads it
  touch "$D/stop"; wait "$WRITER" || die "a write failed while the shared node was rebuilt"
  rm "$D/stop"
  local last; last=$(cat "$D/last")
  wait_for 30 "the copies to be level" mirrored host1 vm/held.img
  verify_equal host1 vm/held.img given.img
  [ "$(dd if="$M2/vm/held.img" bs=1 skip=$((last % 1024 * 4096)) count=8 status=none)" = "$(printf '%08d' "$last")" ] ||
    die "the other host reads something else than the last write, $last"
  [ "$(sha256sum < "$M2/given.img")" = "$SUM" ] || die "given.img is not what it was"
  say "ok: $last writes, no error, and both hosts see the last"
}
lose() { # DIRECTORY...: under load, all that is in them
  local directory
  rm -f "$D/last"
  writer & WRITER=$!
  wait_for 10 "a write" test -s "$D/last"
  kill9 shared1
  for directory in "$@"; do rm -rf "${directory:?}"/*; done
}
rebuild() {
  expect "the rebuild is ordered" tm shared1 shared rebuild --hosts host1,host2 --force > "$D/log/rebuild"
  start shared1
  wait_for 30 "the reports" bash -c "tidemark --config '$D/shared1.toml' status --json | jq -e '.rebuilding == null'"
  check
}
lose "$D/shared1/state"
expect_exit 2 "a lost catalogue is not taken for a new one" timeout 20 tidemark-shared --config "$D/shared1.toml" 2> "$D/log/refused"
rebuild
say "ok: a lost catalogue is made anew beside its bricks"
stop shared1; start shared1
wait_for 20 "the copies to be level" mirrored host1 vm/held.img
lose "$D/shared1/state" "$D/shared1/brick1"
rebuild
say "ok: an empty shared node is filled from its hosts"
expect "another host is added" tm host1 host add host3 --dir "$D/pki" --brick "$D/host3/brick1" --mount "$D/mnt/host3" \
  --out "$D" --state "$D/host3/state" --run "$D/run/host3" --san 127.0.0.1
start host3
[ "$(sha256sum < "$D/mnt/host3/given.img")" = "$SUM" ] || die "the new host reads something else"
printf z | dd of="$D/mnt/host3/given.img" bs=1 conv=notrunc,fsync status=none
[ "$(head -c 1 "$M2/given.img")" = z ] || die "what the new host wrote is not seen"
say "ok: a host that was added reads and writes"
no_error_lines
