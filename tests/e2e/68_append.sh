#!/usr/bin/env bash
# Files that stay open with O_APPEND on two hosts: what one writes lands behind what the other has written, whatever end its
# kernel believes in. Where nobody else writes, nothing is moved.
source "$(dirname "$0")/lib.sh"
cluster_up host1 host2
one="$D/mnt/host1" two="$D/mnt/host2"
cat > "$D/append.py" <<'PYTHON'
import ctypes, os, sys
one, two = sys.argv[1], sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
RWF_APPEND, RWF_NOAPPEND = 0x10, 0x20
PART = 1 << 20
failed = False

def expect(what, got, wanted):
    global failed
    if got != wanted:
        failed = True
        print(f"FAILED: {what}: {got!r}, wanted {wanted!r}")
    else:
        print(f"ok: {what}")

class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]
def pwritev2(fd, data, offset, flags):
    n = libc.pwritev2(fd, ctypes.byref(Iovec(data, len(data))), 1, ctypes.c_long(offset), flags)
    if n < 0:
        raise OSError(ctypes.get_errno(), "pwritev2")
    return n

def by_host1(path, byte, n=100):
    with open(path, "ab", buffering=0) as f:
        f.write(byte * n)
        os.fsync(f.fileno())

def runs(path):
    out, data = [], open(path, "rb").read()
    while data:
        n = len(data) - len(data.lstrip(data[:1]))
        out.append((data[:1].decode("latin1"), n))
        data = data[n:]
    return out

# ---- kept open
by_host1(f"{one}/log", b"A")
fd = os.open(f"{two}/log", os.O_RDWR | os.O_APPEND)
expect("the size that host2's kernel knows", os.fstat(fd).st_size, 100)
by_host1(f"{one}/log", b"B")
os.write(fd, b"C" * 100)
os.write(fd, b"D" * 100)
wanted = [("A", 100), ("B", 100), ("C", 100), ("D", 100)]
expect("what is there, read by host2", runs(f"{two}/log"), wanted)
expect("the size that host2's kernel knows now", os.fstat(fd).st_size, 400)
expect("the end by lseek", os.lseek(fd, 0, os.SEEK_END), 400)
os.write(fd, b"E" * 100)
expect("a read of what was written last", os.pread(fd, 200, 400), b"E" * 100)
os.fsync(fd)
os.close(fd)
wanted.append(("E", 100))
expect("what is there, read by host1", runs(f"{one}/log"), wanted)

# ---- larger than a request, and directly
for flags, what in ((0, "a write in parts"), (os.O_DIRECT, "a direct write in parts")):
    name = what.replace(" ", "-")
    fd = os.open(f"{two}/{name}", os.O_RDWR | os.O_CREAT | os.O_APPEND | flags)
    os.fstat(fd)
    os.close(os.open(f"{one}/{name}", os.O_RDONLY))
    by_host1(f"{one}/{name}", b"A", 4096)
    import mmap
    memory = mmap.mmap(-1, 3 * PART)
    memory.write(b"B" * PART + b"C" * PART + b"D" * PART)
    expect(f"{what}: its length", os.write(fd, memory), 3 * PART)
    os.close(fd)
    expect(what, runs(f"{two}/{name}"), [("A", 4096), ("B", PART), ("C", PART), ("D", PART)])

# ---- nobody else
fd = os.open(f"{one}/alone", os.O_RDWR | os.O_CREAT | os.O_APPEND)
os.write(fd, b"A" * 300)
try:
    pwritev2(fd, b"B" * 100, 100, RWF_NOAPPEND)
    expect("RWF_NOAPPEND where no other host was", runs(f"{one}/alone"), [("A", 100), ("B", 100), ("A", 100)])
except OSError as e:
    print(f"RWF_NOAPPEND: {e}")
os.close(fd)
fd = os.open(f"{one}/alone", os.O_RDWR)
pwritev2(fd, b"C" * 100, 0, RWF_APPEND)
expect("RWF_APPEND where no other host was", os.pread(fd, 200, 300), b"C" * 100)
os.close(fd)
sys.exit(1 if failed else 0)
PYTHON
python3 "$D/append.py" "$one" "$two" || die "see above"
verify_equal host1 log
no_error_lines
