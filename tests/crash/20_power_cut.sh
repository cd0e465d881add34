#!/usr/bin/env bash
# The power of a node goes under load: what its bricks and its state had not synced is kept, dropped or torn by sector,
# names included: a host's, the shared node's, the replica's, that of all three in one moment. Whatever fdatasync was
# acknowledged is there, the copies and the replica are equal, every store opens. TIDEMARK_TEST_SCALE: more of each, and
# cuts of what is recovering from one.
source "$(dirname "$0")/lib.sh"
BRICKS=1
configure host1
for node in host1 shared1 replica1; do on_medium "$node"; done
for node in shared1 replica1 host1; do start "$node"; done
image="$D/mnt/host1/vm.img"
fallocate -l 16M "$image"
fallocate -l 16M "$D/mnt/host1/other.img"   # written, never synced
noted() { [ "$(stat -c %s "$D/acks" 2> /dev/null || echo 0)" -gt "$1" ]; }
cat > "$D/names.py" <<'PYTHON'
# Files written, synced, renamed over 16 names, the directory synced: only then noted. What was noted must be there.
import os, sys
mode, directory, notes = sys.argv[1:]
def newest():
    last = {}
    for line in open(notes).read().split("\n")[:-1]: last[int(line) % 16] = int(line)
    return last
if mode == "write":
    fd = os.open(directory, os.O_RDONLY)
    out = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    i = max([-1, *newest().values()]) + 1000
    try:
        while not os.path.exists(notes + ".stop"):
            i += 1
            with open(f"{directory}/new.{i % 4}", "w") as f:
                f.write(f"{i}\n" * 1000); f.flush(); os.fsync(f.fileno())
            os.rename(f"{directory}/new.{i % 4}", f"{directory}/name.{i % 16}")
            os.fsync(fd)
            os.write(out, f"{i}\n".encode())
    except OSError as error:
        sys.exit(f"{error}")
last = newest()
for slot, i in last.items():
    text = open(f"{directory}/name.{slot}").read()
    found = int(text.split("\n")[0] or -1)
    if found < i or found % 16 != slot or text != f"{found}\n" * 1000:
        sys.exit(f"name.{slot} holds {len(text)} bytes of {found}, synced was {i}")
print(len(last), "names are there")
PYTHON
touch "$D/notes"
cut() { # STYLE SEED NODE...
  local style=$1 seed=$2 bytes name; shift 2
  rm -f "$D/acks" "$D/notes.stop"
  "$T/ack_writer" "$image" "$D/acks" "$seed" & local writer=$!
  fio --name=other --filename="$D/mnt/host1/other.img" --size=16M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio \
    --iodepth=4 --rate_iops=500 --time_based=1 --runtime=300 --randrepeat=0 --output="$D/log/fio" & local other=$!
  python3 "$D/names.py" write "$D/mnt/host1" "$D/notes" > "$D/log/names" 2>&1 & local changes=$!
  wait_for 20 "acknowledged syncs" noted 16384
  say "not durable: $(for node in "$@"; do echo "$node: $(medium "$node" unsynced);"; done)"
  lose_power "$style" "$seed" "$@"
  power_back "$@"
  if [ -n "${TWICE:-}" ]; then           # while it recovers
    lose_power "$style" "$((seed + 1000))" "$@"
    power_back "$@"
  fi
  if [[ " $* " == *" host1 "* ]]; then
    reap $writer "the writer, whose file went," error
    reap $other "fio, whose file went," error
  else
    bytes=$(stat -c %s "$D/acks")
    wait_for 30 "more acknowledged syncs" noted $((bytes + 16384))
    kill -KILL $writer || die "the writer got an error"
    reap $writer "the writer" 137
    kill -TERM $other || die "fio got an error: $(tail -n 20 "$D/log/fio")"
    reap $other "fio" 128
  fi
  touch "$D/notes.stop"
  reap $changes "changes of names" 0 1   # they need the shared node
  [ ! -s "$D/log/names" ] || say "names: $(tail -n 1 "$D/log/names")"
  for name in vm.img other.img; do wait_for 60 "$name to be mirrored again" mirrored host1 $name; done
  expect "every synced write is there ($* $style $seed)" "$T/ack_writer" --check-sectors "$image" "$D/acks"
  expect "every synced name is there" python3 "$D/names.py" check "$D/mnt/host1" "$D/notes"
  verify_equal host1
  export_point host1 vm.img "$(mark host1)" "$D/out"
  expect "the replica is equal" cmp "$D/out" "$image"
  rm "$D/out"
}
seed=${TIDEMARK_SEED:-1}
for ((round = 0; round < ${TIDEMARK_TEST_SCALE:-1}; round++)); do
  cut mix $((seed++)) host1
  cut mix $((seed++)) shared1
  [ $round = 0 ] || cut mix $((seed++)) replica1
  cut drop $((seed++)) host1 shared1 replica1
  [ $round != 0 ] || continue
  cut mix $((seed++)) host1 shared1 replica1
  for nodes in host1 shared1 "host1 shared1"; do TWICE=yes cut mix $((seed++)) $nodes; done
done
no_error_lines
