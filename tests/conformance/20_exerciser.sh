#!/usr/bin/env bash
# Random operations by several processes, checked against a model (exerciser.cc), on images mirrored to a shared node:
# afterwards both copies are equal, and the replica's newest point has what the model has.
#
#   20_exerciser.sh [OPERATIONS [SEED...]]
# In memory, like 10_posix.sh: set TMPDIR to have it on a disk.
[ -n "${TMPDIR:-}" ] || export TMPDIR=/dev/shm
source "$(dirname "$0")/../e2e/lib.sh"
operations=${1:-$((2500 * ${TIDEMARK_TEST_SCALE:-1}))}
seeds=("${@:2}")
[ ${#seeds[@]} -gt 0 ] || seeds=(1 2 3)
cluster_up host1
for seed in "${seeds[@]}"; do
  image="$D/mnt/host1/seed$seed.img"
  "$T/exerciser" "$image" --seed "$seed" --operations "$operations" --processes $((2 + seed % 3)) --model "$D/model" ||
    die "seed $seed: see above"
  rm -f "$D/out"
  point=$(mark host1)
  export_point host1 "seed$seed.img" "$point" "$D/out"
  cmp "$D/out" "$D/model" || die "seed $seed: the replica's point differs from the model"
  if [ "$seed" != "${seeds[-1]}" ]; then verify_equal host1 "seed$seed.img"; rm "$image"; fi
done
verify_equal host1
no_error_lines
