#!/usr/bin/env bash
# A brick's device that hangs, with a queue so short that it keeps whoever submits to it: first a host's, then the shared
# node's. The daemon goes on (it answers, and so do its images elsewhere), and no synced write is lost.
source "$(dirname "$0")/lib.sh"
BRICKS=1
configure host1 host2
image="$D/mnt/host1/vm.img"
thaw() { timeout 5 "$T/power_cut" tell "$D/medium.$1.disk.socket" thaw > /dev/null; }
# What hangs would keep whoever takes everything down.
trap 'code=$?; set +e; thaw host1; thaw shared1; (exit $code); cluster_down' EXIT
device() { # NODE: its brick on a file system of its own, on a disk of few tags that `medium NODE.disk freeze` stops
  local brick="$D/$1/brick1" loop
  mount_medium "$1.disk"
  AT_END+=("umount -l '$D/$1.disk' 2> /dev/null")
  truncate -s 128M "$D/$1.disk/disk"
  mkfs.ext4 -q -m0 "$D/$1.disk/disk"
  loop=$(losetup --find --show --direct-io=on "$D/$1.disk/disk")
  AT_END+=("losetup -d $loop")
  echo none > "/sys/block/${loop#/dev/}/queue/scheduler"
  echo 4 > "/sys/block/${loop#/dev/}/queue/nr_requests"
  mount "$loop" "$brick"
  unmount_at_end "$brick"
}
for node in host1 shared1; do
  device "$node"
  sed -i '/^\[storage\]/a io_deadline = "2s"' "$D/$node.toml"
done
for node in shared1 replica1 host1; do start "$node"; done

truncate -s 16M "$image"
"$T/ack_writer" "$image" "$D/acks" 1 & writer=$!
answers() { # NODE: at once, for as long as its device hangs
  local began took longest=0 end=$((SECONDS + 5))
  while [ "$SECONDS" -lt "$end" ]; do
    began=$(date +%s%N)
    timeout 3 tidemark --config "$D/$1.toml" status > /dev/null 2>&1 || true   # its exit code says that something is wrong
    took=$((($(date +%s%N) - began) / 1000000))
    [ "$took" -lt 2000 ] || die "$1 took $took ms to answer"
    [ "$took" -le "$longest" ] || longest=$took
  done
  say "$1 answered within $longest ms"
}
wait_for 20 "acknowledged writes" test -s "$D/acks"
wait_for 20 "a level image" mirrored host1 vm.img
for node in host1 shared1; do
  medium "$node.disk" freeze > /dev/null
  answers "$node"
  goes_on "writes while the device of $node hangs"
  thaw "$node"
  wait_for 90 "the copies to be level" mirrored host1 vm.img
  goes_on "writes to both copies"
done

kill -0 $writer || die "the writer saw an error"
kill $writer
wait $writer || [ $? = 143 ] || die "the writer ended by itself"
expect "every synced write is there" "$T/ack_writer" --check "$image" "$D/acks"
verify_equal host1
no_error_lines

# ---- killed while a read for the kernel's pages hangs and another host changes the image's mode: it ends, and is replaced
start host2
none="$D/mnt/host1/none.img"
exec 7<> "$none"
head -c 1M /dev/urandom > "$D/data"
dd if="$D/data" bs=1M conv=fsync status=none >&7
wait_for 20 "a level image" mirrored host1 none.img
setfattr -n user.tidemark.mirror -v none "$none"
dd if="$D/data" of="$none" bs=1M conv=fsync,notrunc status=none
medium host1.disk freeze > /dev/null
python3 -c 'import mmap, sys
with open(sys.argv[1], "rb") as f: sys.stdout.buffer.write(mmap.mmap(f.fileno(), 1 << 20, mmap.MAP_PRIVATE, mmap.PROT_READ)[:])
' "$none" > "$D/read" & reader=$!
hangs() { grep -q "local_copy_hangs image=$(uuid_of host1 none.img)" "$D/log/host1.log"; }
wait_for 20 "the read to hang" hangs
for mode in 640 600 644; do
  chmod "$mode" "$D/mnt/host2/none.img"
  heard() { [ "$(stat -c %a "$none")" = "$mode" ]; }
  wait_for 20 "host1 to hear of mode $mode" heard
done
daemon=$(daemon_pid host1)
kill -KILL "$daemon"
thaw host1
came_up() { grep -q 'holder daemon_replaced' "$D/log/host1.log"; }
wait_for 60 "a successor" came_up
reap $reader "the read" 0
expect "the guest has read what it wrote" cmp "$D/data" "$D/read"
exec 7>&-
