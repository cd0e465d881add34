#!/usr/bin/env bash
# Live migration: a guest that writes and syncs numbered records to an image, and to the raw view of a fixed VHD, moves
# from host 1 to host 2 and back while it runs. It sees no error and misses no record; the tenures move with it. And
# what one host has written or resized, the other reads at once, with the file open already.
source "$(dirname "$0")/lib.sh"
kernel=$(ls /boot/vmlinuz-*-cloud-amd64 | sort -V | tail -n 1) || die "no kernel: install linux-image-cloud-amd64"
cluster_up host1 host2
one="$D/mnt/host1" two="$D/mnt/host2"

# ---- nothing that is known on host 2 is old ---------------------------------------------------------
truncate -s 1M "$one/grows.img"
python3 - "$one/grows.img" "$two/grows.img" <<'PYTHON'
import mmap, os, sys
here = os.open(sys.argv[1], os.O_RDWR)
there = os.open(sys.argv[2], os.O_RDONLY)
direct = os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECT)
block = mmap.mmap(-1, 4096)
size = 1 << 20
os.pwrite(here, b"first", 0)                          # host 1 holds it from now on
assert os.pread(there, 5, 0) == b"first"
for n in range(100):
    want = (b"%08d" % n) * 512
    os.pwrite(here, want, 4096 * (n % 8))
    assert os.pread(there, 4096, 4096 * (n % 8)) == want, ("an old block", n)
    os.preadv(direct, [block], 4096 * (n % 8))
    assert block[:] == want, ("an old block, read directly", n)
    assert os.fstat(there).st_size == size, ("an old size", n, os.fstat(there).st_size, size)
    size += 4096
    if n % 2: os.ftruncate(here, size)
    else: os.pwrite(here, b"e" * 4096, size - 4096)
    got = os.pread(there, 8192, size - 4096) if n % 3 else None
    assert got is None or len(got) == 4096, ("an old end", n, len(got))
    assert os.lseek(there, 0, os.SEEK_END) == size, ("an old end", n, os.lseek(there, 0, os.SEEK_END), size)
    if n % 10 == 0:                                   # one that is opened anew, after its name was looked at
        os.stat(sys.argv[2])
        size += 4096
        os.ftruncate(here, size)
        late = os.open(sys.argv[2], os.O_RDONLY)
        assert os.fstat(late).st_size == size, ("an old size after open", n, os.fstat(late).st_size, size)
        os.close(late)
PYTHON
say "ok: blocks and sizes are never old on the other host"

# ---- the guest --------------------------------------------------------------------------------------
truncate -s 64M "$one/vm.img"
qemu-img create -q -f vpc -o subformat=fixed,force_size=on "$one/data.vhd" 64M
mkdir -p "$D/root"/{dev,lib}
cp "$T/guest_init" "$D/root/init"
modprobe -S "${kernel#/boot/vmlinuz-}" --show-depends -a virtio_pci virtio_blk |
  awk '$1 == "insmod" && !seen[$2]++ {print $2}' > "$D/modules"
while read -r module; do cp "$module" "$D/root/lib/"; basename "$module"; done < "$D/modules" > "$D/root/lib/order"
(cd "$D/root" && mknod dev/console c 5 1 && find . | cpio -o -H newc --quiet) > "$D/initrd"
cat > "$D/qmp.py" <<'PYTHON'
import json, socket, sys, time
class Qmp:
    def __init__(self, name):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(name + ".qmp")
        self.lines = self.socket.makefile()
        self.lines.readline()
        self("qmp_capabilities")
    def __call__(self, command, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            answer = json.loads(self.lines.readline())
            if "error" in answer: sys.exit("%s: %s" % (command, answer["error"]))
            if "return" in answer: return answer["return"]
    def until(self, command, done):
        end = time.monotonic() + 60
        while not done(self(command)):
            if time.monotonic() > end: sys.exit("%s: %s" % (command, self(command)))
            time.sleep(0.02)
def moved(state):
    if state.get("status") in ("failed", "cancelled"): sys.exit(str(state))
    return state.get("status") == "completed"
source, target, size = Qmp(sys.argv[1]), Qmp(sys.argv[2]), int(sys.argv[3])
source("block_resize", device="vm", size=size)        # the target has it open already
source("migrate", uri="unix:%s.incoming" % sys.argv[2])
source.until("query-migrate", moved)
target.until("query-status", lambda s: s["running"])
sizes = {b["device"]: b["inserted"]["image"]["virtual-size"] for b in target("query-block")}
if sizes != {"vm": size, "data": 64 << 20}: sys.exit("the target sees other sizes: %s" % sizes)
print("away for %d ms" % source("query-migrate")["downtime"])
try: source("quit")
except (json.JSONDecodeError, ConnectionError): pass  # gone before it had answered
PYTHON
declare -A VM=() KEYS=()
vm() { # NAME HOST CACHE-OF-VM CACHE-OF-DATA ARGUMENTS...
  local name=$1 mnt="$D/mnt/$2" vm=$3 data=$4; shift 4
  mkfifo "$D/$name.tty.in" "$D/$name.tty.out"
  exec {KEYS[$name]}<> "$D/$name.tty.in"
  cat "$D/$name.tty.out" > "$D/log/console.$name.log" &
  AT_END+=("kill $! 2> /dev/null")
  qemu-system-x86_64 -machine "q35,accel=tcg" -m 128 -nodefaults -display none -no-reboot \
    -kernel "$kernel" -initrd "$D/initrd" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off TIDEMARK_SECONDS=300 TIDEMARK_DISKS=/dev/vda,/dev/vdb" \
    -chardev "pipe,id=tty,path=$D/$name.tty" -serial chardev:tty \
    -qmp "unix:$D/$name.qmp,server=on,wait=off" \
    -drive "file=$mnt/vm.img,format=raw,if=virtio,id=vm,cache=$vm" \
    -drive "file=$mnt/.raw/data.vhd,format=raw,if=virtio,id=data,cache=$data" "$@" > "$D/log/qemu.$name.log" 2>&1 &
  VM[$name]=$!
  AT_END+=("kill -KILL ${VM[$name]} 2> /dev/null")
  wait_for 60 "the emulator $name" test -S "$D/$name.qmp"
}
writes() { grep -a 'GUEST WRITES' "$D/log/console.$1.log" | tail -n 1 | tr -d '\r' | awk '{print $3 + 0}'; }
progress() { # NAME RECORDS: until it has written so many records more than RECORDS
  local want=$(($2 + 150))
  reached() { [ "$(writes "$1")" -ge "$want" ]; }
  # A guest that stands still: does a mount owe it an answer?
  (wait_for 60 "records of $1" reached "$1") || die "requests under way: $(tail -n +1 /sys/fs/fuse/connections/*/waiting)"
}
well() {
  if grep -a -e 'GUEST ERROR' -e 'I/O error' "$D"/log/console.*; then die "the guest saw an error"; fi
}
held_by() { # HOST: both images, as each host's status says
  local node image
  for node in host1 host2; do
    for image in vm.img data.vhd; do [ "$(image_field $node $image writer)" = "$1" ] || return 1; done
  done
}
migrate() { # FROM TO HOST SIZE
  local before
  before=$(writes "$1")
  say "$(python3 "$D/qmp.py" "$D/$1" "$D/$2" "$4")" || die "the migration from $1 to $2: $(cat "$D"/log/qemu.*)"
  wait "${VM[$1]}" || die "qemu $1: $(cat "$D/log/qemu.$1.log")"
  progress "$2" "$before"
  well
  wait_for 20 "$3 to hold the images, by each host's status" held_by "$3"
  say "ok: the guest moved to $3 and goes on: $(writes "$2") records"
}

vm a host1 none,aio=native writeback
wait_for 60 "the guest" grep -qa 'GUEST UP' "$D/log/console.a.log"
progress a 0
wait_for 20 "host 1 to hold the images" held_by host1
vm b host2 directsync,aio=native none,aio=native -incoming "unix:$D/b.incoming"
migrate a b host2 $((96 << 20))
vm c host1 writeback,aio=threads directsync,aio=io_uring -incoming "unix:$D/c.incoming"
migrate b c host1 $((128 << 20))
echo end >&"${KEYS[c]}"
timeout 120 tail --pid="${VM[c]}" -f /dev/null || die "the guest did not end: $(tail -n 3 "$D/log/console.c.log")"
wait "${VM[c]}" || die "qemu: $(cat "$D/log/qemu.c.log")"
# By the one who carries its words to the log, who may come a moment later.
(wait_for 20 "the guest's last word" grep -aq 'GUEST DONE' "$D/log/console.c.log") || die "the guest did not find all its records: $(tail -n 5 "$D/log/console.c.log")"
well
say "ok: $(grep -a 'GUEST DONE' "$D/log/console.c.log" | tr -d '\r')"

bytes() { dd if="$1" bs=1M count=16 status=none; }                # the guest wrote within so many
expect "both hosts read the same" cmp <(bytes "$one/vm.img") <(bytes "$two/vm.img")
expect "of the raw view too" cmp <(bytes "$one/.raw/data.vhd") <(bytes "$two/.raw/data.vhd")
expect "both disks had the same records" cmp <(bytes "$one/vm.img") <(bytes "$one/.raw/data.vhd")
for image in vm.img data.vhd; do
  wait_for 30 "$image to be level" mirrored host1 $image
  verify_equal host1 $image
done
refused() { grep -h 'image_held_elsewhere.*waited_ms=[1-9]' "$D"/log/host?.log; }
if refused; then die "a write had to be refused"; fi
no_error_lines
