#!/usr/bin/env bash
# A real guest (kernel and busybox of Debian, software emulation) with its root file system on an image in the mount:
# it boots, writes, syncs, discards, powers off; its file system is clean, and what it wrote is on both copies.
source "$(dirname "$0")/lib.sh"
cluster_up host1
image="$D/mnt/host1/guest.raw"
kernel=$(ls /boot/vmlinuz-*-cloud-amd64 | sort -V | tail -n 1) || die "no kernel: install linux-image-cloud-amd64"
release=${kernel#/boot/vmlinuz-}

mkdir -p "$D/root"/{bin,dev,proc,sys,etc,data,lib} "$D/initrd"/{bin,dev,proc,lib,root}
cp /bin/busybox "$D/root/bin/"
cp /bin/busybox "$D/initrd/bin/"
modprobe -S "$release" --show-depends -a virtio_pci virtio_blk | awk '$1 == "insmod" && !seen[$2]++ {print $2}' > "$D/modules"
while read -r module; do cp "$module" "$D/initrd/lib/"; basename "$module"; done < "$D/modules" > "$D/initrd/lib/order"
cat > "$D/initrd/init" <<'GUEST'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
while read module; do /bin/busybox insmod /lib/$module; done < /lib/order
n=0; while [ ! -b /dev/vda ] && [ $n -lt 100 ]; do /bin/busybox usleep 100000; n=$((n + 1)); done
/bin/busybox mount -t ext4 -o discard /dev/vda /root && exec /bin/busybox switch_root /root /bin/init
echo GUEST no root; /bin/busybox poweroff -f
GUEST
cat > "$D/root/bin/init" <<'GUEST'
#!/bin/busybox sh
B=/bin/busybox
$B mount -t devtmpfs none /dev; $B mount -t proc none /proc
set -e
trap '$B echo GUEST failed > /dev/console; $B poweroff -f' EXIT
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
  $B dd if=/dev/urandom of=/data/file$i bs=64k count=16 conv=fsync 2> /dev/null
  $B sync
done
$B rm /data/file3 /data/file5
(cd /data; $B sha256sum file*) > /data/sums
$B dd if=/dev/zero of=/data/direct bs=512 count=64 oflag=direct 2> /dev/null
$B sync
$B fstrim / || $B echo GUEST no fstrim
(cd /data; $B sha256sum -c -s sums)
trap - EXIT
$B echo GUEST all written
$B mount -o remount,ro /
$B sync
$B poweroff -f
GUEST
chmod +x "$D/initrd/init" "$D/root/bin/init"
(cd "$D/initrd" && find . | busybox cpio -o -H newc 2> /dev/null | gzip -1) > "$D/initrd.gz"
truncate -s 256M "$image"
mke2fs -q -t ext4 -F -d "$D/root" "$image" > "$D/log/mkfs" 2>&1 || die "mkfs: $(cat "$D/log/mkfs")"

timeout 150 qemu-system-x86_64 -accel tcg -cpu max -m 256 -smp 1 -nodefaults -no-reboot -display none \
  -kernel "$kernel" -initrd "$D/initrd.gz" -append "console=ttyS0 quiet panic=-1 mitigations=off" \
  -serial "file:$D/log/console" -drive "file=$image,format=raw,if=virtio,cache=none,aio=native,discard=unmap" \
  > "$D/log/qemu" 2>&1 || die "qemu: $(cat "$D/log/qemu") $(tail -n 20 "$D/log/console")"
grep -q 'GUEST all written' "$D/log/console" || die "the guest did not finish: $(tail -n 20 "$D/log/console")"
! grep -q 'I/O error' "$D/log/console" || die "the guest saw an error: $(grep 'I/O error' "$D/log/console")"
say "ok: the guest booted, wrote and powered off"

clean() { e2fsck -fn "$1" > "$D/log/fsck" 2>&1 || { cat "$D/log/fsck" >&2; return 1; }; }
expect "its file system is clean" clean "$image"
mkdir "$D/look"
mount -o loop,ro "$image" "$D/look"
AT_END+=("mountpoint -q '$D/look' && umount '$D/look'")
same() { (cd "$D/look/data" && sha256sum --quiet -c sums); }
expect "what it wrote is there" same
umount "$D/look"
wait_for 30 "the copies to be level" mirrored host1 guest.raw
verify_equal host1
point=$(mark host1)
export_point host1 guest.raw "$point" "$D/out"
expect "the replica's point is clean too" clean "$D/out"
no_error_lines
