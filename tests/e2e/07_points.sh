#!/usr/bin/env bash
# Recovery points against a recorder: at many random cuts under load at depth 32, each point holds every
# write acknowledged before its cut and none issued after.  MARKS=100 by default.
source "$(dirname "$0")/lib.sh"
cluster_up host1
marks=${MARKS:-100} blocks=2048
image="$D/mnt/host1/vm.img"
fallocate -l $((blocks * 4096)) "$image"
coproc RECORDER { "$T/recorder" run "$image" "$D/recorder.log" $blocks 32 600 2> "$D/log/recorder"; }
recorder=$RECORDER_PID
ask() { # COMMAND: and wait until the recorder has noted it
  local answer
  echo "$1" >&"${RECORDER[1]}"
  read -r -t 30 answer <&"${RECORDER[0]}" || die "the recorder ended: $(cat "$D/log/recorder")"
}
# Points whose blocks are not read yet when those are written over cost memory, and are given up beyond 64 MiB: of each
# at most the image.
few_closed() { [ "$(control host1 /v1/status | jq .journal.closed_batches)" -lt 6 ]; }
points=()
for n in $(seq 1 "$marks"); do
  wait_for 60 "points to be staged" few_closed
  ask "begin $n"
  points+=("$(tm host1 mark --name "cut-$n" --json | jq -er .batch)")
  ask "end $n"
done
mark host1 > "$D/last"
echo stop >&"${RECORDER[1]}"
wait "$recorder" || die "recorder: $(cat "$D/log/recorder")"
say "$marks cuts, $(cat "$D/log/recorder")"
for n in $(seq 1 "$marks"); do
  export_point host1 vm.img "cut-$n" "$D/out"
  "$T/recorder" check "$D/recorder.log" "$D/out" "$n" || die "point cut-$n is wrong"
  rm "$D/out"
done
say "ok: $marks points hold every acknowledged write and nothing issued later"
verify_equal host1
no_error_lines
