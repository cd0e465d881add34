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
dd if=/dev/zero of="$M1/none.img" bs=1M count=2 conv=fsync status=none
wait_for 60 "a level image" mirrored host1 none.img
setfattr -n user.tidemark.mirror -v none "$M1/none.img"
dd if=/dev/urandom of="$M1/none.img" bs=1M count=2 conv=notrunc,fsync status=none
NONE=$(sha256sum < "$M1/none.img")   # host1 alone has it
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
  wait_for 60 "the copies to be level" mirrored host1 vm/held.img
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
  wait_for 30 "a write" test -s "$D/last"
  kill9 shared1
  for directory in "$@"; do rm -rf "${directory:?}"/*; done
}
rebuild() { # --without-bricks if they are gone
  tm shared1 shared rebuild --hosts host1,host2 --dry-run "$@" > "$D/log/rebuild" || die "$(cat "$D/log/rebuild")"
  expect "the rebuild is ordered" tm shared1 shared rebuild --hosts host1,host2 --force "$@" > "$D/log/rebuild"
  start shared1
  wait_for 60 "the reports" bash -c "tidemark --config '$D/shared1.toml' status --json | jq -e '.rebuilding == null'"
  check
}
lose "$D/shared1/state"
expect_exit 2 "a lost catalogue is not taken for a new one" timeout 20 tidemark-shared --config "$D/shared1.toml" 2> "$D/log/refused"
expect_exit 2 "a host that is none" tm shared1 shared rebuild --hosts host1,hots2 --force 2> "$D/log/refused"
grep -q "hots2.*never heard" "$D/log/refused" || die "$(cat "$D/log/refused")"
rebuild
say "ok: a lost catalogue is made anew beside its bricks"
setfattr -n user.tidemark.mirror -v sync "$M1/none.img"
wait_for 60 "the copies to be level" mirrored host1 none.img
[ "$(sha256sum < "$M1/none.img")" = "$NONE" ] || die "an image of one host alone is not what it was"
[ "$(sha256sum < "$M2/none.img")" = "$NONE" ] || die "the other host reads something else"
verify_equal host1 none.img
stop shared1; start shared1
wait_for 60 "the copies to be level" mirrored host1 vm/held.img
lose "$D/shared1/state" "$D/shared1/brick1"
expect_exit 2 "an empty brick wants a word of its own" tm shared1 shared rebuild --hosts host1,host2 --force 2> "$D/log/refused"
rebuild --without-bricks
say "ok: an empty shared node is filled from its hosts"
expect "another host is added" tm host1 host add host3 --dir "$D/pki" --brick "$D/host3/brick1" --mount "$D/mnt/host3" \
  --out "$D" --state "$D/host3/state" --run "$D/run/host3" --san 127.0.0.1
start host3
[ "$(sha256sum < "$D/mnt/host3/given.img")" = "$SUM" ] || die "the new host reads something else"
printf z | dd of="$D/mnt/host3/given.img" bs=1 conv=notrunc,fsync status=none
[ "$(head -c 1 "$M2/given.img")" = z ] || die "what the new host wrote is not seen"
say "ok: a host that was added reads and writes"
# The replica follows: its newest point is what the images are.
wait_for 60 "the copies to be level" mirrored host1 vm/held.img
POINT=$(mark host1)
export_point host1 vm/held.img "$POINT" "$D/then.img"
cmp "$M1/vm/held.img" "$D/then.img" || die "the replica shows something else"
say "ok: the replica follows the rebuilt node"
# Only host2, which is gone, had the newest state of one image, and the bricks are gone, too: EIO, never an older state.
dd if=/dev/urandom of="$M2/lost.img" bs=1M count=2 conv=fsync status=none
SUM=$(sha256sum < "$M1/lost.img")
printf w | dd of="$M2/lost.img" bs=1 conv=notrunc,fsync status=none
LOST=$(sha256sum < "$M1/lost.img")
[ "$LOST" != "$SUM" ] || die "nothing was written"
mark host2 > /dev/null
kill9 host2; stop host3; kill9 shared1
rm -rf "$D/shared1/state/"* "$D/shared1/brick1/"*
expect "the rebuild is ordered" tm shared1 shared rebuild --hosts host1 --without-bricks --force > "$D/log/rebuild"
start shared1
wait_for 60 "the host to be back" bash -c "tidemark --config '$D/host1.toml' status --json | jq -e .shared.connected"
wait_for 60 "the copies to be level" mirrored host1 vm/held.img
if cat "$M1/lost.img" > /dev/null 2> "$D/log/lost"; then die "an image whose newest state is gone was read"; fi
grep -q "image_rebuilt.*restore it from the replica" "$D/log/shared1.log" || die "the log does not say what is lost"
expect "it is restored" tm host1 replica restore lost.img --at latest --force
[ "$(sha256sum < "$M1/lost.img")" = "$LOST" ] || die "what was restored is not its newest point"
no_error_lines
