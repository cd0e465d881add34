#!/usr/bin/env bash
# A host whose brick is gone, an empty directory in its place: it starts and serves from the shared copy, takes nothing for
# its brick by itself, and one command brings the directory in, filled while the guest writes. What only the brick that is
# gone had is an error until it is back, or given up: an image of `mirror = none`, and writes acknowledged alone.
source "$(dirname "$0")/lib.sh"
BRICKS=1
cluster_up host1
image="$D/mnt/host1/vm.img"
brick="$D/host1/brick1"
truncate -s 32M "$image"
dd if=/dev/urandom of="$image" bs=1M count=32 conv=notrunc,fsync status=none
sum=$(sha256sum < "$image")
wait_for 60 "a level image" mirrored host1 vm.img
kill9 host1
umount -l "$D/mnt/host1"
mv "$brick" "$brick.gone"
mkdir "$brick"

start host1
expect "the image reads as before, from the shared copy" [ "$(sha256sum < "$image")" = "$sum" ]
"$T/ack_writer" "$image" "$D/acks" 1 & writer=$!
wait_for 60 "acknowledged writes" test -s "$D/acks"
expect "status names the brick" grep -q "tidemark brick replace" <(tm host1 status 2>&1 || true)
expect "the brick is listed as missing" grep -q "is empty" <(tm host1 brick list)
[ -z "$(ls -A "$brick")" ] || die "something was written to the empty directory"
if tm host1 brick replace "$D"; then die "a directory that is no brick was taken"; fi
expect "the directory is taken" tm host1 brick replace "$brick"
wait_for 120 "the new brick to be filled and level" mirrored host1 vm.img
before=$(stat -c %s "$D/acks")
more() { [ "$(stat -c %s "$D/acks")" -gt $((before + 4096)) ]; }
wait_for 60 "writes to both copies" more

# ---- its directory gone as the daemon dies: the successor does without, and the guest only waits
daemon=$(daemon_pid host1)
came_up() { grep -q 'holder daemon_replaced' "$D/log/host1.log"; }
mv "$brick" "$brick.lost"
kill -KILL "$daemon"
wait_for 60 "a successor" came_up
goes_on "writes without the brick's directory"
expect "the brick is listed as missing" grep -q "does not exist" <(tm host1 brick list)
mkdir "$brick"
expect "the directory is taken" tm host1 brick replace "$brick"
wait_for 120 "the new brick to be filled and level" mirrored host1 vm.img
goes_on "writes to both copies"
kill -0 $writer || die "the writer saw an error"
kill $writer
wait $writer || [ $? = 143 ] || die "the writer ended by itself"
expect "every synced write is there" "$T/ack_writer" --check "$image" "$D/acks"
verify_equal host1

# ---- what only this host has
none="$D/mnt/host1/none.img"
dd if=/dev/zero of="$none" bs=1M count=2 conv=fsync status=none
wait_for 60 "a level image" mirrored host1 none.img
setfattr -n user.tidemark.mirror -v none "$none"
dd if=/dev/urandom of="$none" bs=1M count=2 conv=notrunc,fsync status=none
sum=$(sha256sum < "$none")
mark host1 > /dev/null
stop shared1
dd if=/dev/urandom of="$image" bs=1M count=1 conv=notrunc,fsync status=none
alone=$(sha256sum < "$image")
kill9 host1
umount -l "$D/mnt/host1"
mv "$brick" "$brick.away"
mkdir "$brick"
start shared1; start host1
failed() { tm host1 status --json | jq -e --arg p "$1" '.images[] | select(.path == $p) | .mirror == "failed"' > /dev/null; }
for name in vm none; do
  wait_for 60 "$name.img to be shown as failed" failed $name.img
  if timeout 60 head -c 1 "$D/mnt/host1/$name.img" 2> "$D/log/read" | grep -q .; then die "$name.img was read"; fi
  expect "a read of $name.img fails" grep -q "Input/output error" "$D/log/read"
  if printf x | timeout 20 dd of="$D/mnt/host1/$name.img" conv=notrunc status=none 2> /dev/null; then die "$name.img was written"; fi
done
if tm host1 brick replace "$brick" 2> "$D/log/replace"; then die "the brick of what only this host has was replaced"; fi
expect "the refusal names them" grep -q "none.img.*--accept-loss\|none.img.*vm.img" "$D/log/replace"
rmdir "$brick"
mv "$brick.away" "$brick"
is() { [ "$(timeout 60 sha256sum < "$1")" = "$2" ]; }
wait_for 60 "the brick that is back to be used: none.img" is "$none" "$sum"
wait_for 60 "the brick that is back to be used: vm.img" is "$image" "$alone"
wait_for 90 "a level image" mirrored host1 vm.img
verify_equal host1 vm.img
stop host1
rm -rf "$brick/objects/"*
start host1
expect_exit 4 "verify says so" verify host1 none.img > "$D/log/verify"
if printf x | timeout 20 dd of="$none" conv=notrunc status=none 2> /dev/null; then die "zeros were taken for none.img"; fi
expect "status says how to restore it" grep -q "none.img: failed: .*tidemark replica restore none.img" <(tm host1 status 2>&1 || true)
expect "it is restored" tm host1 replica restore none.img --at latest --force
expect "it is what it was" is "$none" "$sum"
no_error_lines
