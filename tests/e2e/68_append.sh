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

# From both hosts at once, through descriptors that stay open from one turn to the next: while the image is being given
# back, too. Each record is there once, whole, and behind all that were acknowledged before it was begun.
cat > "$D/race.py" <<'PYTHON'
import errno, multiprocessing, os, random, struct, sys, time

TURNS = 80
HEAD = struct.Struct("<BBHI")            # host, process, length, number

def append(fd, record):                  # when the write was begun that was taken
    until = time.monotonic() + 60
    while True:
        begun = time.monotonic()
        try:
            if os.write(fd, record) != len(record):
                raise OSError("a short write")
            return begun
        except OSError as e:             # the other host was not done in the time that a write waits for it
            if e.errno != errno.EBUSY or begun > until:
                raise

def worker(host, process, path, out):
    draw = random.Random(2 * host + process)
    kept = [os.open(path, os.O_RDWR | os.O_APPEND) for _ in range(8)]
    done, number = [], 0
    for _ in range(TURNS):
        at = draw.randrange(len(kept))
        for _ in range(draw.randrange(1, 4)):
            length = draw.choice([24, 100, 700, 5000])
            record = HEAD.pack(host, process, length, number) + bytes([number % 251]) * (length - HEAD.size)
            begun = append(kept[at], record)
            done.append((begun, time.monotonic(), (host, process, length, number)))
            number += 1
            if draw.random() < 0.2:
                os.fsync(kept[at])
        os.close(kept[at])               # the other host's turn
        kept[at] = os.open(path, os.O_RDWR | os.O_APPEND)
    out.put(done)

out = multiprocessing.Queue()
workers = [multiprocessing.Process(target=worker, args=(host, process, path, out))
           for host, path in enumerate(sys.argv[1:3]) for process in range(2)]
for w in workers:
    w.start()
writes = [w for _ in workers for w in out.get(timeout=120)]
data = open(sys.argv[1], "rb").read()
place, at = {}, 0
while at < len(data):
    record = HEAD.unpack_from(data, at)
    _, _, length, number = record
    if length < HEAD.size or data[at + HEAD.size:at + length] != bytes([number % 251]) * (length - HEAD.size) or record in place:
        sys.exit(f"no whole record, or one once more, at {at}: {record}")
    place[record] = at
    at += length
lost = [record for _, _, record in writes if record not in place]
by_begin, by_end = sorted(writes), sorted(writes, key=lambda w: w[1])
behind, i, wrong = -1, 0, 0
for begun, _, record in by_begin:
    while by_end[i][1] < begun:
        behind = max(behind, place.get(by_end[i][2], -1))
        i += 1
    wrong += place.get(record, behind) < behind
print(f"{len(writes)} records acknowledged, {len(place)} there, {len(lost)} lost, {wrong} before what was acknowledged before them")
sys.exit(1 if lost or wrong or len(place) != len(writes) else 0)
PYTHON
: > "$one/race"
python3 "$D/race.py" "$one/race" "$two/race" || die "see above"
cmp "$one/race" "$two/race" || die "the hosts read different records"
verify_equal host1 race
verify_equal host1 log
no_error_lines
