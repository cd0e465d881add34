#!/usr/bin/env bash
# A host whose brick is gone, an empty directory in its place: it starts and serves from the shared copy, takes nothing for
# its brick by itself, and one command brings the directory in, filled while the guest writes.
source "$(dirname "$0")/lib.sh"
BRICKS=1
cluster_up host1
image="$D/mnt/host1/vm.img"
brick="$D/host1/brick1"
truncate -s 32M "$image"
dd if=/dev/urandom of="$image" bs=1M count=32 conv=notrunc,fsync status=none
sum=$(sha256sum < "$image")
wait_for 20 "a level image" mirrored host1 vm.img
kill9 host1
umount -l "$D/mnt/host1"
mv "$brick" "$brick.gone"
mkdir "$brick"

start host1
expect "the image reads as before, from the shared copy" [ "$(sha256sum < "$image")" = "$sum" ]
"$T/ack_writer" "$image" "$D/acks" 1 & writer=$!
wait_for 20 "acknowledged writes" test -s "$D/acks"
expect "status names the brick" grep -q "tidemark brick replace" <(tm host1 status 2>&1 || true)
expect "the brick is listed as missing" grep -q "is empty" <(tm host1 brick list)
[ -z "$(ls -A "$brick")" ] || die "something was written to the empty directory"
if tm host1 brick replace "$D"; then die "a directory that is no brick was taken"; fi
expect "the directory is taken" tm host1 brick replace "$brick"
wait_for 60 "the new brick to be filled and level" mirrored host1 vm.img
before=$(stat -c %s "$D/acks")
more() { [ "$(stat -c %s "$D/acks")" -gt $((before + 4096)) ]; }
wait_for 20 "writes to both copies" more
kill $writer
wait $writer || [ $? = 143 ] || die "the writer ended by itself"
expect "every synced write is there" "$T/ack_writer" --check "$image" "$D/acks"
verify_equal host1
no_error_lines
