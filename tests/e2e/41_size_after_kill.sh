#!/usr/bin/env bash
# An image grows and the host dies at once, before the journal's record of it is durable: both copies have the new size,
# so the replica gets it too once the host is back.
source "$(dirname "$0")/lib.sh"
cluster_up host1
mount="$D/mnt/host1"
truncate -s 64K "$mount/aligned.img"
mark host1 > /dev/null
truncate -s 192K "$mount/aligned.img"
truncate -s 64K "$mount/new.img"
kill9 host1
umount -l "$mount"
start host1
wait_for 60 "the mount to answer" test -s "$mount/new.img"
sizes_arrived() {
  local image point uuid
  point=$(mark host1)
  for image in aligned.img new.img; do
    uuid=$(tm host1 image list --json | jq -er --arg p "$image" '.. | objects | select(.path? == $p or .path? == "/" + $p) | .uuid')
    tm host1 replica images --at "$point" --json |
      jq -e --arg u "$uuid" --argjson s "$(stat -c %s "$mount/$image")" '[.. | objects | select(.uuid? == $u and .size? == $s)] | length > 0'
  done
}
wait_for 90 "the sizes of the last moment at the replica" sizes_arrived
say "ok: the sizes of the last moment are at the replica"
verify_equal host1
no_error_lines
