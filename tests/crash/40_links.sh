#!/usr/bin/env bash
# Links that fail under load: reset in mid-frame, dead one way or both without anybody being told, the shared node gone
# for a while. The guest gets no error, whatever it synced is on both copies, and all is brought level. The link to the
# replica, too: a batch is cut off in the middle, its answer is lost.
source "$(dirname "$0")/../e2e/lib.sh"
free_port; SHARED_LINK_PORT=$FREE_PORT
configure host1
free_port; SHIP_PORT=$FREE_PORT
sed -i "s|^url = .*|url = \"https://127.0.0.1:$SHIP_PORT\"|" "$D/host1.toml"
declare -A TO FROM                              # descriptors of each proxy
proxy() { # NAME LISTEN_PORT TARGET_PORT
  mkfifo "$D/to.$1" "$D/from.$1"
  "$T/delay_proxy" "$2" "$3" 0 < "$D/to.$1" > "$D/from.$1" 2>> "$D/log/proxy.$1.log" & local pid=$!
  AT_END+=("kill -TERM $pid")
  local to from
  exec {to}> "$D/to.$1" {from}< "$D/from.$1"
  TO[$1]=$to FROM[$1]=$from
}
link() { # NAME COMMAND...
  local line
  echo "${*:2}" >&"${TO[$1]}"
  while read -r -t 10 line <&"${FROM[$1]}" || die "the proxy ended"; [ "$line" != end ]; do echo "$line"; done
}
start shared1
start replica1
proxy mirror "$SHARED_LINK_PORT" "$SHARED_PORT"
proxy ship "$SHIP_PORT" "$REPLICA_PORT"
start host1
image="$D/mnt/host1/vm.img"
fallocate -l 16M "$image"
"$T/ack_writer" "$image" "$D/acks" 1 & writer=$!
noted() { [ "$(stat -c %s "$D/acks" 2> /dev/null || echo 0)" -gt "$1" ]; }
more() { # WHAT: the guest goes on
  wait_for 60 "$1" noted $(($(stat -c %s "$D/acks" 2> /dev/null || echo 0) + ${2:-8192}))
}
losses() { metric host1 tidemark_fs_link_losses_total; }
lost_again() { [ "$(losses)" != "$1" ]; }
alone() { [ "$(image_field host1 vm.img mirror)" = "local only" ]; }
check() { # WHAT: nothing is lost; the load goes on
  wait_for 60 "mirrored again" mirrored host1 vm.img
  more "the guest to go on after: $1"
  kill -0 $writer || die "the guest got an error: $1"
  say "ok: $1"
}
RANDOM=${TIDEMARK_SEED:-1}
for ((round = 0; round < 4 * ${TIDEMARK_TEST_SCALE:-1}; round++)); do
  before=$(losses)
  way=$([ $((round % 2)) = 0 ] && echo up || echo down)
  bytes=$((RANDOM % 20000))
  link mirror reset $way $bytes
  wait_for 30 "the reset to be noticed" lost_again "$before"
  check "reset after $bytes bytes $way"
done
for way in up down both; do
  [ $way != both ] || [ "${TIDEMARK_TEST_SCALE:-1}" -gt 1 ] || continue
  link mirror hold $way
  wait_for 30 "the host to go on alone" alone
  more "writes while nothing passes $way"
  link mirror pass
  check "nothing passed $way"
done
kill9 shared1
more "writes without the shared node" $((65536 * ${TIDEMARK_TEST_SCALE:-1}))
start shared1
check "the shared node was gone"

# ---- the replica's link ----
reset_again() { [ "$(link ship resets)" -gt "$1" ]; }
for ((round = 0; round < 2 * ${TIDEMARK_TEST_SCALE:-1}; round++)); do
  before=$(link ship resets)
  link ship reset "$([ $((round % 2)) = 0 ] && echo up || echo down)" $((RANDOM % 5000))
  wait_for 30 "a batch to be cut off" reset_again "$before"
done
check "batches were cut off and their answers lost"
kill -KILL $writer; reap $writer "the writer" 137
expect "every synced write is there" "$T/ack_writer" --check "$image" "$D/acks"
verify_equal host1
export_point host1 vm.img "$(mark host1)" "$D/out"
expect "the replica is equal" cmp "$D/out" "$image"
no_error_lines
