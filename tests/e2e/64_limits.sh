#!/usr/bin/env bash
# Runs alone: listing is held to a time.
# Large numbers: 10,000 images in a directory, 1,000 open files, a sparse image of 4 TiB, names of 255 bytes in deep
# directories. Listing and status stay quick, and neither grows with the square of the images.
[ -n "${TMPDIR:-}" ] || export TMPDIR=/dev/shm     # ten thousand durable creations
source "$(dirname "$0")/lib.sh"
cluster_up host1
mnt="$D/mnt/host1"
took() { # COMMAND...: milliseconds
  local from; from=$(date +%s%N)
  "$@" > /dev/null || die "$*"
  echo $((($(date +%s%N) - from) / 1000000))
}
least() { # COMMAND...: milliseconds of the quickest of three runs: a machine that stands still for a second does so in one
  local ms best="" run
  for run in 1 2 3; do
    ms=$(took "$@") || exit 1
    if [ -z "$best" ] || [ "$ms" -lt "$best" ]; then best=$ms; fi
  done
  echo "$best"
}
status() { tm host1 status --json; }

image="$mnt/huge.img"
truncate -s 4T "$image"
[ "$(stat -c %s "$image")" = $((4 << 40)) ] || die "4 TiB became $(stat -c %s "$image")"
for at in 0 1 2047 4095; do printf 'at %s GiB' $at | dd of="$image" bs=1 seek=$((at << 30)) conv=notrunc,fsync status=none; done
printf 'the end' | dd of="$image" bs=1 seek=$(((4 << 40) - 7)) conv=notrunc,fsync status=none
[ "$(dd if="$image" bs=1 skip=$((4095 << 30)) count=11 status=none)" = "at 4095 GiB" ] || die "what was written at 4095 GiB"
[ "$(tail -c 7 "$image")" = "the end" ] || die "what was written at the end"
[ "$(du -B1 "$image" | cut -f1)" -le $((16 << 20)) ] || die "it takes $(du -B1 "$image" | cut -f1) bytes"
say "ok: a sparse image of 4 TiB"

# verify passes over what is a hole everywhere, and over nothing else.
wait_for 30 "it to be level" mirrored host1 huge.img
verify_huge() { tm host1 verify huge.img > "$D/verify" 2>&1; }
verified=$(took verify_huge)
say "verify of it: $verified ms"
[ "$verified" -lt 20000 ] || die "verify of holes takes $verified ms"
nowhere=$(((1 << 30) + (32 << 20)))
objects() { find "$D/$1" -name "*$(uuid_of host1 huge.img)*.data"; }   # NODE
for node in host1 shared1; do
  object=$(objects $node | head -n 1)
  printf x | dd of="$object" bs=1 seek=$nowhere conv=notrunc,fsync status=none
  expect_exit 4 "a byte in the middle of nowhere on $node" verify_huge
  fallocate -p -o $nowhere -l 4096 "$object"
done
expect "without it they are equal" verify_huge
for object in $(objects host1) $(objects shared1); do fallocate -p -o $((1 << 30)) -l $((1 << 40)) "$object"; done
expect_exit 4 "what is gone from both copies, and the replica has" verify_huge
grep -q 'copy of replica differs' "$D/verify" || die "verify says: $(cat "$D/verify")"

make_many() { # DIRECTORY NUMBER
  python3 - "$1" "$2" <<'PYTHON'
import os, sys
from concurrent.futures import ThreadPoolExecutor
os.mkdir(sys.argv[1])
def make(i): os.close(os.open("%s/image%05d.img" % (sys.argv[1], i), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
with ThreadPoolExecutor(16) as pool: list(pool.map(make, range(int(sys.argv[2]))))
PYTHON
}
make_many "$mnt/few" 1000
few=$(took status)
make_many "$mnt/many" 9000
say "ok: 10,000 images made"
many=$(least status)
say "status: $few ms with 1,000 images, $many ms with 10,000"
[ $many -le $((20 * few + 1000)) ] || die "status grows faster than the images: $few ms, then $many ms"
for i in $(seq 1000); do ln -s x "$mnt/many/link$i"; done
[ "$(ls -f "$mnt/many" | wc -l)" = 10002 ] || die "listed: $(ls -f "$mnt/many" | wc -l)"
names=$(least ls -f "$mnt/many") long=$(took ls -l "$mnt/many")
say "listing: $names ms for the names, $long ms with attributes"
[ "$names" -lt 1000 ] || die "listing takes $names ms"

python3 - "$mnt/few" <<'PYTHON'
import os, sys
paths = ["%s/image%05d.img" % (sys.argv[1], i) for i in range(1000)]
files = [os.open(p, os.O_RDWR) for p in paths]
for i, fd in enumerate(files): os.pwrite(fd, b"%d" % i * 100, 4096 * (i % 7))
for i, fd in enumerate(files):
    want = b"%d" % i * 100
    assert os.pread(fd, len(want), 4096 * (i % 7)) == want, i
os.fsync(files[0])
for fd in files: os.close(fd)
PYTHON
say "ok: 1,000 open files"

deep="$mnt"
name=$(printf 'd%.0s' $(seq 255))
for i in 1 2 3 4 5 6 7 8 9 10; do deep+=/$name; mkdir "$deep"; done
echo contents > "$deep/${name/dd/im}"
[ "$(cat "$deep/${name/dd/im}")" = contents ] || die "deep directories"
in_status=$(status | jq '.images | length')
[ "$in_status" -ge 10001 ] || die "status shows $in_status images"
rm "$mnt/huge.img"
for i in 0 499 999; do verify_equal host1 "$(printf 'few/image%05d.img' $i)"; done
no_error_lines
