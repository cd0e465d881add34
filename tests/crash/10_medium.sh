#!/usr/bin/env bash
# The medium that the power cuts are made with forgets what it must, and only that. The recorder notices a medium that
# takes no notice of syncs: the tests of power cuts can fail.
source "$(dirname "$0")/lib.sh"
remount() { # STYLE SEED
  medium m freeze > /dev/null
  REPORT=$(medium m cut "$1" "$2")
  say "$1: $REPORT"
  wait "${LAYER[m]}" || die "the medium failed"
  wait_for 10 "the medium to be unmounted" umount "$D/m"
  mount_medium m "${3:-}"
}
mkdir "$D/medium"
mount_medium m
AT_END+=("umount -l '$D/m' 2> /dev/null")
cat > "$D/use.py" <<'PYTHON'
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None)
os.chdir(sys.argv[1])
A, B, C = (bytes([c]) * 4096 for c in b"ABC")
def put(name, data, offset=0, sync=False, flags=0):
    fd = os.open(name, os.O_RDWR | os.O_CREAT | flags, 0o600)
    os.pwrite(fd, data, offset)
    if sync: os.fsync(fd)
    os.close(fd)
def sync_names(directory="."):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY); os.fsync(fd); os.close(fd)
def get(name): return open(name, "rb").read()
def before():
    for name in ("synced", "data", "longer", "shorter", "target", "gone", "moved", "hole", "dsync", "mapped"):
        put(name, A * 4, sync=True)
    os.mkdir("dir"); sync_names(); put("dir/kept", A, sync=True); sync_names("dir")
    put("synced", B, 4096, sync=True)                    # to be there
    put("dsync", B[:100], 4096 + 50, flags=os.O_DSYNC)
    put("dsync", C[:100], 0)                             # from here on all is unsynced
    put("data", B * 4)
    put("longer", B, 16384)
    os.truncate("shorter", 100)
    put("new", B, sync=True)                             # its content is synced, its name is not
    put("replacement", C, sync=True); os.rename("replacement", "target")
    os.unlink("gone")
    os.rename("moved", "dir/moved")
    fd = os.open("hole", os.O_RDWR)
    os.posix_fallocate(fd, 0, 16384)
    libc.fallocate(fd, 3, ctypes.c_long(4096), ctypes.c_long(4096)); os.close(fd)   # fallocate(1) syncs
    fd = os.open("mapped", os.O_RDWR)
    with mmap.mmap(fd, 8192, mmap.MAP_SHARED) as m:
        m[0:4] = b"seen"; m.flush(); os.fsync(fd)
        m[4096:4100] = b"lost"; m.flush(4096, 4096)      # msync is an fsync of the file
    os.close(fd)
    os.mkdir("lostdir"); put("lostdir/file", A, sync=True); sync_names("lostdir")
def now():
    assert get("dsync") == C[:100] + A[100:] + A[:50] + B[:100] + A[150:] + A * 2
    assert get("data") == B * 4 and get("longer") == A * 4 + B and get("shorter") == A[:100]
    assert get("target") == C and not os.path.exists("gone") and get("dir/moved") == A * 4
    assert get("hole") == A + bytes(4096) + A * 2 and get("new") == B and get("lostdir/file") == A
def dropped():
    assert get("synced") == A + B + A * 2
    assert get("dsync") == A + A[:50] + B[:100] + A[150:] + A * 2
    wrong = [name for name in ("data", "longer", "shorter", "target", "gone", "moved", "hole") if get(name) != A * 4]
    assert not wrong, wrong
    assert get("mapped")[:4] == b"seen" and get("dir/kept") == A
    assert sorted(os.listdir(".")) == sorted(["synced", "data", "longer", "shorter", "target", "gone", "moved", "hole",
                                              "dsync", "mapped", "dir"]), os.listdir(".")
    assert os.listdir("dir") == ["kept"]
def torn():
    put("torn", A * 64, sync=True); sync_names()
    put("torn", B * 64)
def is_torn():
    sectors = [get("torn")[i:i + 512] for i in range(0, 64 * 4096, 512)]
    assert all(s in (A[:512], B[:512]) for s in sectors)
    pages = [set(sectors[i:i + 8]) for i in range(0, len(sectors), 8)]
    for kind in ({A[:512]}, {B[:512]}, {A[:512], B[:512]}): assert kind in pages, "a kind of page is missing"
globals()[sys.argv[2]]()
PYTHON
use() { python3 "$D/use.py" "$D/m" "$1" || die "$1"; }
use before
use now
remount drop 1
use dropped
say "ok: what was not synced is gone, what was synced is there"
rm -rf "${D:?}/m/"*
use before
remount keep 2
use now
say "ok: it may also all be there"
use torn
remount mix 3
use is_torn
say "ok: pages are kept, dropped and torn"
first=$REPORT
(cd "$D/m" && python3 "$D/use.py" . torn)
remount mix 3
[ "$REPORT" = "$first" ] || die "a seed gives another cut the second time: $REPORT, not $first"

# Frozen, failing and healed.
medium m fail > /dev/null
! cat "$D/m/torn" > /dev/null 2>&1 || die "no error while it fails"
medium m heal > /dev/null
medium m freeze > /dev/null
dd if=/dev/zero of="$D/m/torn" bs=4k count=1 conv=notrunc,fsync status=none & writer=$!
wait_for 10 "the write to wait" grep -q request_wait_answer "/proc/$writer/wchan"
medium m thaw > /dev/null
wait "$writer" || die "the write failed"

# The recorder straight on a medium: nothing lost; on one that is deaf to syncs: it sees it.
record() { # SEED
  rm -f "$D/acks"
  "$T/ack_writer" "$D/m/disk" "$D/acks" "$1" & local writer=$!
  wait_for 20 "synced writes" sh -c "[ \$(stat -c %s '$D/acks' || echo 0) -gt 65536 ]"
  kill -KILL $writer; reap $writer "the writer" 137
}
fallocate -l 16M "$D/m/disk"
sync "$D/m/disk" "$D/m"
record 1
remount drop 4 deaf
expect "no synced write is lost" "$T/ack_writer" --check-sectors "$D/m/disk" "$D/acks"
record 2
remount drop 5
expect_exit 1 "a medium that is deaf to syncs is noticed" "$T/ack_writer" --check-sectors "$D/m/disk" "$D/acks"
