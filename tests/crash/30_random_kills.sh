#!/usr/bin/env bash
# kill -9 of each daemon at random moments, of two at once, and of one that is recovering, under the recorder and under
# fio's verify. Two rounds, of fifty kinds and moments in all with TIDEMARK_TEST_SCALE=25. Every round says what was in
# flight; one in which no write was unanswered is done again.
source "$(dirname "$0")/../e2e/lib.sh"
cluster_up host1
image="$D/mnt/host1/vm.img" other="$D/mnt/host1/fio.img"
fallocate -l 16M "$image"
fallocate -l 8M "$other"
KINDS=("daemon shared1" "host1 again" "shared1" "daemon" "shared1 again" "host1" "replica1" "host1 shared1"
  "daemon again" "shared1 replica1" "host1 replica1" "replica1 again" "daemon replica1")
RANDOM=${TIDEMARK_SEED:-1}
noted() { [ "$(stat -c %s "$D/acks" 2> /dev/null || echo 0)" -gt "$1" ]; }
counts() { od -An -tu8 -w32 "$D/counts"; }
alive() { kill -0 "$1" 2> /dev/null; }
kill_all() { # NODE...: at once; `daemon` is the host's, whose holder starts another. Sets IN_FLIGHT, UNSYNCED
  local node pids=() issued answered synced syncs
  for node in "$@"; do
    case $node in
      daemon) pids+=("$(daemon_pid host1)") ;;
      host1) pids+=("${PID[host1]}" "$(daemon_pid host1)") ;;
      *) pids+=("${PID[$node]}") ;;
    esac
  done
  kill -KILL "${pids[@]}" || die "$* were not all there to kill"
  read -r issued answered synced syncs < <(counts)
  IN_FLIGHT=$((issued - answered)) UNSYNCED=$((answered - synced)) SYNCS=$syncs
  for pid in "${pids[@]}"; do timeout 20 tail --pid="$pid" -f /dev/null || die "$pid outlived its end"; done
  for node in "$@"; do
    [ "$node" != daemon ] || continue
    reap "${PID[$node]}" "$node" 137
    unset "PID[$node]"
  done
}
replaced() { [ "$(daemon_pid host1)" != "$1" ] && ready host1; }
start_all() { # NODE...: the host last: it may need the others
  local node
  for node in "$@"; do case $node in daemon | host1) ;; *) start "$node" ;; esac; done
  for node in "$@"; do [ "$node" != host1 ] || start host1; done
}
stale() { [ "$(image_field host1 vm.img stale_bytes)" -gt 0 ] || [ "$(image_field host1 vm.img mirror)" != mirrored ]; }
level() { for name in vm.img fio.img; do mirrored host1 $name || return 1; done; }
unrecovered() { # by the host's log; the status of one that died may not answer
  awk '/ fs recovering /{open[$5] = 1} / fs recovered /{delete open[$5]} END {print length(open)}' "$D/log/host1.log"
}
start_load() { # SEED
  rm -f "$D/acks" "$D/counts"
  "$T/ack_writer" "$image" "$D/acks" "$1" "$D/counts" & WRITER=$!
  fio --name=verify --filename="$other" --size=8M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=8 \
    --loops=100 --rate_iops=1000 --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed="$1" \
    --output="$D/log/fio" & FIO=$!
}
end_load() { # MOUNT-DIED
  local bytes
  if [ "$1" = yes ]; then
    reap $WRITER "the writer, whose file went," error
    reap $FIO "fio, whose file went," error
    return
  fi
  bytes=$(stat -c %s "$D/acks")
  wait_for 30 "the writer to go on" noted $((bytes + 4096))
  alive $FIO || die "fio ended: $(tail -n 20 "$D/log/fio")"
  kill -KILL $WRITER; reap $WRITER "the writer" 137
  kill -TERM $FIO; reap $FIO "fio" 128
  grep -q 'err= 0' "$D/log/fio" || die "fio: $(cat "$D/log/fio")"
}
round() { # SEED NODE... [again]
  local seed=$1 again="" died="" daemon nodes=(); shift
  for node in "$@"; do if [ "$node" = again ]; then again=yes; else nodes+=("$node"); fi; done
  [[ " ${nodes[*]} " != *" host1 "* ]] || died=yes
  start_load "$seed"
  wait_for 30 "acknowledged syncs" noted $((4096 + RANDOM % 32768))
  daemon=$(daemon_pid host1)
  kill_all "${nodes[@]}"
  say "round $seed: killed ${nodes[*]}: $IN_FLIGHT writes in flight," \
    "$UNSYNCED answered and not synced, $SYNCS syncs under way"
  if [ -n "$again" ]; then
    start_all "${nodes[@]}"
    if [ "${nodes[0]}" = daemon ]; then wait_for 20 "a successor" replaced "$daemon"; daemon=$(daemon_pid host1); fi
    say "killed again with $(unrecovered) images unrecovered:" \
      "$(tm host1 status --json 2> /dev/null | jq -c '[.images[] | {mirror, stale_bytes}]' || echo "no status")"
    local first=$IN_FLIGHT
    kill_all "${nodes[@]}"
    IN_FLIGHT=$first
  fi
  start_all "${nodes[@]}"
  if [ "${nodes[0]}" = daemon ]; then wait_for 20 "a successor" replaced "$daemon"; fi
  end_load "$died"
}
seed=${TIDEMARK_SEED:-1}
done_rounds=0 lost_rounds=0
while [ $done_rounds -lt $((2 * ${TIDEMARK_TEST_SCALE:-1})) ]; do
  kind=$(((done_rounds + ${TIDEMARK_SEED:-1} - 1) % ${#KINDS[@]}))
  # shellcheck disable=SC2086
  round "$seed" ${KINDS[kind]}
  if [ "$IN_FLIGHT" -gt 0 ]; then done_rounds=$((done_rounds + 1))
  else lost_rounds=$((lost_rounds + 1)); say "nothing was in flight: does not count"; fi
  [ $lost_rounds -lt $((5 + done_rounds)) ] || die "too many rounds without a write in flight"
  seed=$((seed + 1))
  wait_for 60 "both images to be mirrored" level
  expect "every synced write is there" "$T/ack_writer" --check "$image" "$D/acks"
  verify_equal host1
done
for name in vm.img fio.img; do
  export_point host1 $name "$(mark host1)" "$D/out"
  expect "the replica's $name is equal" cmp "$D/out" "$D/mnt/host1/$name"
  rm "$D/out"
done
say "$done_rounds rounds, every one with writes in flight; $lost_rounds more that did not count"
no_error_lines
