#!/usr/bin/env bash
# One of the two mirror connections is late by a constant time: overlapping writes in flight land in the order in which
# they were issued, on both copies and at the replica.
source "$(dirname "$0")/lib.sh"
free_port; SHARED_LINK_PORT=$FREE_PORT
configure host1
start shared1
start replica1
coproc PROXY { exec "$T/delay_proxy" "$SHARED_LINK_PORT" "$SHARED_PORT" 15; }
proxy=$PROXY_PID
AT_END+=("kill -TERM $proxy")
start host1
say "cluster is up in $D"
blocks=64
image="$D/mnt/host1/vm.img"
fallocate -l 1M "$image"
connections() { # "NUMBER OPEN DELAY_MS BYTES BYTES_SENT" of each connection
  local line
  echo stats >&"${PROXY[1]}"
  while read -r -t 30 line <&"${PROXY[0]}" || die "the proxy ended"; [ "$line" != end ]; do echo "$line"; done
}
losses() { metric host1 tidemark_fs_link_losses_total; }
for seed in 1 2 3; do
  for try in 1 2 3 4 5; do     # a link that breaks meanwhile (somebody did not get to run) shows nothing of its delay
    wait_for 60 "a level image" mirrored host1 vm.img
    lost=$(losses)
    connections > "$D/before"
    overlaps=$("$T/overlap_writer" "$image" "$D/expected" $blocks 32 2500 $seed)
    connections > "$D/after"
    [ "$(losses)" != "$lost" ] || break
    say "the link was lost meanwhile: once more"
    [ $try -lt 5 ] || die "the link was lost again and again"
  done
  [ "$overlaps" -gt 1000 ] || die "only $overlaps writes overlapped another one"
  carried=$(paste -d ' ' "$D/before" "$D/after" | awk '$7 == "open" && $9 - $4 > 1048576 {print $3}' | sort -n | xargs)
  [ "$carried" = "0 15" ] || die "not both connections carried writes: $(cat "$D/before" "$D/after")"
  say "ok: $overlaps overlapping writes; both connections carried them, the second 15 ms late"
  expect "the guest reads what was issued last (seed $seed)" cmp -n $((blocks * 4096)) "$D/expected" "$image"
  verify_equal host1
  point=$(mark host1)
  export_point host1 vm.img "$point" "$D/out"
  expect "the replica has what was issued last" cmp -n $((blocks * 4096)) "$D/expected" "$D/out"
  rm "$D/out"
done
no_error_lines
