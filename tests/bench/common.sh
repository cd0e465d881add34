# shellcheck shell=bash
# What the parts of the benchmark share; each part is a script that sources this file and is called by `run`, with
# PAIRS, TIME, LONG, JOBS, PEERS and OUT in its environment.
#
# A part's raw figures go to OUT/PART/raw.tsv (by `pairs`), single ones to OUT/figures.tsv (by `figure`).
bench=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
part=$(basename "$0")
BRICKS=1
source "$bench/../e2e/lib.sh"
journal_config() { :; }                          # where the tests set something, measurements have the default
mkdir -p "$OUT/$part" "$D/log"

# ---- conditions without which a figure is worth nothing -------------------------------------------
settings_are_defaults() { "$bench/settings" "$D"/*.toml || die "a setting is not the default"; }
image_is() { # HOST IMAGE STATE: mirrored or none, and nothing stale
  tm "$1" status --json | jq -e --arg p "$2" --arg s "$3" \
    '[.images[] | select(.path | ltrimstr("/") == $p)] | length == 1 and all(.mirror == $s and .stale_bytes == 0)' \
    > "$D/log/jq" || die "image $2 of $1 is not \"$3\" with nothing stale: $(tm "$1" status --json | jq -c .images[:3])"
}
shipping_is() { # HOST paused|running
  local want=true
  [ "$2" = paused ] || want=false
  tm "$1" status --json | jq -e ".journal.shipping_paused == $want and .journal.ship_rate_bytes == 0" > "$D/log/jq" ||
    die "shipping of $1 is not $2"
}
room_for() { # GiB [DIRECTORY]: what the next step may take there
  local free
  free=$(($(df --output=avail -B1 "${2:-$D}" | tail -n 1) >> 30))
  [ "$free" -ge "$1" ] || die "$1 GiB of free disk are needed in ${2:-$D}, there are $free"
}

# ---- images ---------------------------------------------------------------------------------------
SIZE_MIB=${BENCH_MIB:-2048}                      # of preallocated images; BENCH_MIB is for trying the runner out
fill() { # FILE: preallocated and written, so that no run pays for allocation
  fallocate -l "${SIZE_MIB}M" "$1"
  dd if=/dev/urandom of="$1" bs=1M count="$SIZE_MIB" conv=notrunc oflag=direct status=none
}
# A file system of its own is mounted there: where the disk is mounted with discard, millions of scattered blocks take
# hours to unlink. Its medium is written in full first, so that nothing is allocated beneath it while it is measured.
own_disk() { # DIRECTORY
  local gib=${BENCH_DISK_GIB:-12}
  room_for $((gib + 2))
  mkdir -p "$1"
  dd if=/dev/zero of="$1.medium" bs=4M count=$((gib * 256)) oflag=direct status=none
  mkfs.ext4 -q -m0 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$1.medium"
  AT_END+=("losetup -d \"\$(losetup -nO NAME -j '$1.medium')\"" "umount '$1'")
  mount "$(losetup --show -f --direct-io=on "$1.medium")" "$1"
}
pause_shipping() { tm "$1" journal pause-shipping > "$D/log/pause.$1"; }
servers() { # HOST SHARED: whose processor time counts
  echo "$(daemon_pid "$1"),${PID[$2]}"
}

# ---- measuring ------------------------------------------------------------------------------------
figure() { printf '%s\t%s\t%s\t%s\n' "$part" "$1" "$2" "$3" >> "$OUT/figures.tsv"; }   # NAME VALUE UNIT
chosen() { # JOB,JOB,...: those of them that were asked for
  local job
  for job in ${1//,/ }; do
    case ,${JOBS:-$1}, in *,"$job",*) echo "$job" ;; esac
  done | paste -sd,
}
# One pair of runs of each job, in alternating order; nothing if no job is chosen. The options go to `pairs`.
one_pair() { # JOBS SECONDS [-OPTION...] TARGET...
  local list=$1 seconds=$2; shift 2
  [ -n "$list" ] || return 0
  "$bench/pairs" -n 1 -t "$seconds" -o "$OUT/$part" -j "$list" "$@" > "$D/log/pairs" 2>&1 ||
    die "$(tail -n 5 "$D/log/pairs")"
}
# All pairs of the jobs that write and of those that read (warm: small enough for the storage beneath to have them
# cached). The part's own function `conditions` is called before and after each pair.
all_pairs() { # WRITES READS TARGET...
  local writes reads pair pairs=${PAIRS:-7}
  writes=$(chosen "$1") reads=$(chosen "$2"); shift 2
  for ((pair = 1; pair <= pairs; pair++)); do
    conditions
    one_pair "$writes" "$TIME" -s "${SIZE_MIB}M" "$@"
    one_pair "$reads" "$TIME" -s "$((SIZE_MIB / 4))M" -w "$@"
    conditions
    say "$part: pair $pair of $pairs"
  done
}
# What "mirrored" and "local" have in common: host1 with an image, a native file, all jobs.
all_jobs_beside_native() { # POLICY STATE: of the image
  cluster_up host1
  settings_are_defaults
  local image=$D/mnt/host1/bench.img
  touch "$image"
  setfattr -n user.tidemark.mirror -v "$1" "$image"
  pause_shipping host1
  say "filling both files"
  fill "$image"; fill "$D/native.raw"
  sync
  eval "conditions() { image_is host1 bench.img $2; shipping_is host1 paused; }"
  # shellcheck disable=SC2046
  all_pairs 1,2,3,6,8,9,x 4,5,7 "native=$D/native.raw" "tidemark=$image@$(servers host1 shared1)" $(peers)
}
peers() { # brings them up; prints their targets
  [ -n "$PEERS" ] || return 0
  cat "$D/peers.spec"
}
peers_up() {
  [ -n "$PEERS" ] || return 0
  export BENCH_BASE=$D/peers BENCH_SIZE=$SIZE_MIB
  mkdir -p "$BENCH_BASE"
  AT_END+=("'$bench/targets' down")
  say "bringing up $PEERS"
  # shellcheck disable=SC2086
  "$bench/targets" up $PEERS > "$D/log/peers" 2>&1 || die "$(tail -n 5 "$D/log/peers")"
  ! grep 'could not start' "$D/log/peers" || die "$(tail -n 5 "$D/log/peers")"
  # shellcheck disable=SC2086
  "$bench/targets" spec $PEERS > "$D/peers.spec"
}

# ---- the journal beside the measurement -----------------------------------------------------------
journal_field() { tm host1 status --json | jq -er ".journal.$1"; }
sample() { # FILE: the spool's bytes and the recovery point's age, until FILE.on is gone
  touch "$1.on"
  while [ -e "$1.on" ]; do
    tm host1 status --json | jq -r '[.journal.spool_bytes, .journal.rpo_s] | @tsv' >> "$1"
    sleep 0.25                                   # the interval of the samples
  done
}
sample_begin() { : > "$1"; sample "$1" & SAMPLER=$!; }
sample_end() { rm "$1.on"; wait "$SAMPLER"; }
catch_up() { # prints the seconds until the replica has everything
  local began
  began=$(date +%s%N)
  mark host1 > "$D/log/mark"
  awk -v b="$began" -v e="$(date +%s%N)" 'BEGIN {printf "%.1f\n", (e - b) / 1e9}'
}
