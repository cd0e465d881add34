#!/usr/bin/env bash
# A host changes names and dies at once, before its journal's records of them are durable: both copies have the new
# names, so the replica gets them too once the host is back.
source "$(dirname "$0")/lib.sh"
cluster_up host1
mount="$D/mnt/host1"
dd if=/dev/urandom of="$mount/a" bs=64k count=1 conv=fsync status=none
touch "$mount/dead"
mark host1 > /dev/null
mv "$mount/a" "$mount/b"
rm "$mount/dead"
mv "$mount/b" "$mount/c"
touch "$mount/new"
kill9 host1
umount -l "$mount"
start host1
wait_for 60 "the mount to answer" test -s "$mount/c"
names_arrived() {
  local point names
  point=$(mark host1)
  names=$(tm host1 replica images --at "$point" --json |
    jq -er '[.. | objects | select(.path? != null) | .path | ltrimstr("/")] | sort | join(" ")')
  [ "$names" = "c new" ]
}
wait_for 90 "the names of the last moment at the replica" names_arrived
say "ok: the names of the last moment are at the replica"
verify_equal host1
no_error_lines
