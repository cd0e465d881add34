#!/usr/bin/env bash
# kill -9 of tidemark-fs under load, restart: it mounts again, the dirty regions are compared and made
# equal on all copies, every acknowledged and synced write is there.
source "$(dirname "$0")/lib.sh"
cluster_up host1
image="$D/mnt/host1/vm.img"
fallocate -l 32M "$image"
for round in 1 2 3; do
  rm -f "$D/acks"
  "$T/ack_writer" "$image" "$D/acks" $round & writer=$!
  wait_for 60 "acknowledged writes" test -s "$D/acks"
  wait_for 60 "a few thousand of them" sh -c "[ \$(stat -c %s '$D/acks') -gt 65536 ]"
  kill9 host1
  if wait $writer; then die "the writer must see its file go"; fi
  start host1
  wait_for 60 "mirrored again" mirrored host1 vm.img
  expect "every synced write is there (round $round)" "$T/ack_writer" --check "$image" "$D/acks"
  verify_equal host1
  point=$(mark host1)
  export_point host1 vm.img "$point" "$D/out"
  expect "the replica is equal" cmp "$D/out" "$image"
  rm "$D/out"
done
no_error_lines
