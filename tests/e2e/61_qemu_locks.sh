#!/usr/bin/env bash
# A running guest's image is not started twice on one host: QEMU's own locks hold in the mount, and go with a process
# that is killed.
source "$(dirname "$0")/lib.sh"
cluster_up host1
mnt="$D/mnt/host1"
qemu-img create -q -f raw "$mnt/vm.raw" 64M
qemu-img create -q -f vpc -o subformat=fixed "$mnt/vm.vhd" 64M
guest() { # FORMAT IMAGE QEMU-ARGUMENTS...: stopped before its first instruction, its disk open
  local format=$1 image=$2; shift 2
  exec qemu-system-x86_64 -accel tcg -m 64 -nodefaults -display none -S "$@" \
    -drive "file=$image,format=$format,if=none,id=d,cache=none" -device virtio-blk-pci,drive=d
}
for format in raw vpc; do
  image=$mnt/vm.${format/vpc/vhd}
  guest $format "$image" > "$D/log/first.$format" 2>&1 &
  holder=$!
  AT_END+=("kill -KILL $holder 2> /dev/null")
  # Its PID file would be there before its disk is open, and a first lock before the ones of a disk that is written.
  locked() { grep -qs '^lock:.* 201 201$' /proc/$holder/fdinfo/*; }
  wait_for 60 "the first guest of $format" locked
  expect_exit 1 "a second start of $format" \
    timeout 60 bash -c "$(declare -f guest); guest $format '$image' 2> '$D/log/second'"
  grep -q 'Failed to get "write" lock' "$D/log/second" || die "by another message: $(cat "$D/log/second")"
  grep -q 'Is another process using the image' "$D/log/second" || die "without QEMU's hint: $(cat "$D/log/second")"
  expect_exit 1 "a tool that would write" qemu-img resize -q -f $format "$image" 128M 2> "$D/log/tool"
  expect "one that only looks, when told so" qemu-img info -U "$image" > /dev/null
  kill -0 $holder || die "the first guest ended: $(cat "$D/log/first.$format")"
  kill -KILL $holder
  wait $holder || [ $? = 137 ] || die "the first guest was not there to kill"
  free() { qemu-io -f $format -c "write -P 7 1M 512" "$image" > "$D/log/after" 2>&1 && ! grep -q failed "$D/log/after"; }
  wait_for 30 "the lock to go with the process" free
  say "ok: the lock of $format went with the process"
done
verify_equal host1
no_error_lines
