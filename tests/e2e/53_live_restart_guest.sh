#!/usr/bin/env bash
# Runs alone: the guest is held to a time.
# A running guest that writes and syncs, while the daemon below it is killed with -9 twice and upgraded once: no error in
# the guest, every block is the last one that it wrote, and it waits less than three seconds. (Emulated: that works on any
# machine, and the disk is what counts.)
source "$(dirname "$0")/lib.sh"
kernel=$(find /boot -name 'vmlinuz-*' | sort | tail -n 1)
[ -r "$kernel" ] || die "no kernel in /boot for the guest: install linux-image-cloud-amd64"
cluster_up host1
image="$D/mnt/host1/vm.img"
truncate -s 64M "$image"
mkdir -p "$D/root/dev"
cp "$T/guest_init" "$D/root/init"
(cd "$D/root" && mknod dev/console c 5 1 && find . | cpio -o -H newc --quiet) > "$D/initrd"
mkfifo "$D/tty.in" "$D/tty.out" "$D/fifo"
exec {keys}<> "$D/tty.in"
cat "$D/tty.out" > "$D/console" &
AT_END+=("kill $! 2> /dev/null")
fallocate -l 16M "$D/disk.img"                  # beside the daemons: how long the disk itself stands still
"$T/stall_writer" "$D/disk.img" 4096 "$D/report" 10 < "$D/fifo" > "$D/disk" & disk=$!
exec {tell}> "$D/fifo"
AT_END+=("kill $disk 2> /dev/null")
qemu-system-x86_64 -machine "q35,accel=tcg" -m 256 -nodefaults -display none -no-reboot \
  -chardev "pipe,id=tty,path=$D/tty" -serial chardev:tty \
  -kernel "$kernel" -initrd "$D/initrd" -append "console=ttyS0 quiet panic=-1 TIDEMARK_SECONDS=240" \
  -drive "file=$image,format=raw,if=none,id=disk,cache=none,aio=native" -device nvme,drive=disk,serial=1 \
  > "$D/log/qemu" 2>&1 & guest=$!
AT_END+=("kill -TERM $guest 2> /dev/null")
said() { grep -a "$1" "$D/console" | tail -n 1 | tr -d '\r'; }
writes() { said 'GUEST WRITES' | awk '{print $3 + 0}'; }
progress() { # until the guest has written 250 times more
  local want=$(($(writes) + 250))
  reached() { [ "$(writes)" -ge "$want" ]; }
  wait_for 40 "writes of the guest: $(said GUEST)" reached
}
daemon_changed() { [ "$(tm host1 status --json | jq -er .restart.daemon_pid)" != "$1" ]; }
wait_for 60 "the guest" grep -qa 'GUEST UP' "$D/console"
progress
for round in 1 2; do
  daemon=$(daemon_pid host1)
  kill -KILL "$daemon"
  wait_for 20 "a successor" daemon_changed "$daemon"
  progress
  say "ok: the guest goes on after kill $round: $(writes) writes"
done
expect "the daemon is replaced by the program on disk" tm host1 host restart
progress
echo end >&"$keys"
timeout 90 tail --pid=$guest -f /dev/null || die "the guest did not end: $(said GUEST)"
wait $guest || die "qemu: $(cat "$D/log/qemu")"
(wait_for 20 "the guest's last word" grep -aq 'GUEST DONE' "$D/console") || die "the guest did not come to its end: $(tail -n 5 "$D/console")"
! grep -aq -e 'GUEST ERROR' -e 'I/O error' -e 'nvme.*timeout' "$D/console" || die "$(cat "$D/console")"
done_line=$(said 'GUEST DONE')
echo -n q >&"$tell"
wait $disk || die "the disk: $(cat "$D/disk")"
stood=$(tail -n 1 "$D/disk" | awk '{print $6}')
say "ok: $done_line, while the disk stood still for $stood ms"
ms=${done_line##* }
[ "$ms" -lt $((3000 + stood)) ] || die "the guest waited $ms ms"
wait_for 60 "the image to be level" mirrored host1 vm.img
verify_equal host1
no_error_lines
