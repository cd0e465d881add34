#!/usr/bin/env bash
# Installed: a line of fstab mounts through mount(8) and mount.tidemark, umount ends the daemon cleanly; the systemd
# units are right, stand before libvirt, and the daemons tell systemd when they are ready and when they stop.
source "$(dirname "$0")/lib.sh"
configure host1
build=$(cd "$BIN/.." && pwd)
prefix="$D/prefix"
cmake --install "$build" --prefix "$prefix" > "$D/log/install" 2>&1 || die "install: $(tail -n 5 "$D/log/install")"
for file in bin/{tidemark,tidemark-fs,tidemark-shared,tidemark-replica} sbin/mount.tidemark; do
  [ -x "$prefix/$file" ] || die "$file was not installed"
done
PATH="$prefix/bin:$PATH"

# ---- systemd ----
units="$prefix/lib/systemd/system"
for unit in tidemark-shared.service tidemark-replica.service; do
  expect "$unit is right" systemd-analyze verify --man=no "$units/$unit"
done
cp "$units/tidemark-fs@.service" "$units/tidemark-fs@images.service"
out=$(systemd-analyze verify --man=no "$units/tidemark-fs@images.service" 2>&1) || die "tidemark-fs@: $out"
[ -z "$out" ] || die "tidemark-fs@: $out"
say "ok: tidemark-fs@.service is right"
for unit in "$units"/*.service; do
  grep -q '^Type=notify' "$unit" || die "$unit is not Type=notify"
  program=$(sed -n 's/^ExecStart=\([^ ]*\).*/\1/p' "$unit")
  [ -x "$program" ] && [[ $program == "$prefix"/* ]] || die "$unit starts $program, which was not installed"
done
grep -qE '^Before=.*libvirtd.service' "$units/tidemark-fs@.service" || die "tidemark-fs@ does not stand before libvirt"

listen_to() { # NODE COMMAND...: writes what a daemon tells systemd; at READY=1 the command must succeed
  python3 - "$D/notify.$1" "$D/told.$1" "${@:2}" <<'PYTHON' &
import os, socket, subprocess, sys
path, told, check = sys.argv[1], sys.argv[2], sys.argv[3:]
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(path)
s.settimeout(300)   # until the very end: it hears of the start and of the stop
with open(told, "w") as out:
    while True:
        for line in s.recv(4096).decode().splitlines():
            if line == "READY=1":
                good = subprocess.run(check, stdout=subprocess.DEVNULL).returncode == 0
                line += " and it answers" if good else " too early"
            out.write(line + "\n")
            out.flush()
            if line.startswith("STOPPING"): sys.exit(0)
PYTHON
  LISTENER=$!
  wait_for 60 "the listener" test -S "$D/notify.$1"
}
notified() { # NODE COMMAND...
  local node=$1
  listen_to "$@"
  start "$node" env NOTIFY_SOCKET="$D/notify.$node"
  wait_for 60 "$node to tell that it is ready" grep -qx 'READY=1 and it answers' "$D/told.$node"
  AT_END+=("kill -0 $LISTENER 2> /dev/null && kill -TERM $LISTENER")
  declare -g "LISTENER_$node=$LISTENER"
}
ended() { # NODE: stopped, and said so
  local listener="LISTENER_$1"
  stop "$1"
  wait "${!listener}" || die "$1 did not tell that it stops: $(cat "$D/told.$1")"
  say "ok: $1 told systemd: $(tr '\n' ' ' < "$D/told.$1")"
}
notified shared1 bash -c "exec 3<> /dev/tcp/127.0.0.1/$SHARED_PORT"
notified replica1 bash -c "exec 3<> /dev/tcp/127.0.0.1/$REPLICA_PORT"
notified host1 mountpoint -q "$D/mnt/host1"
ended host1

# ---- fstab ----
helper=/sbin/mount.tidemark                     # mount(8) looks nowhere else
if [ -e $helper ] || [ -L $helper ]; then die "$helper is there already: Tidemark is installed on this machine"; fi
ln -s "$prefix/sbin/mount.tidemark" $helper
AT_END+=("rm -f $helper")
mount_point="$D/mnt/host1"
sed -i '/^\[mount\]/,/^path/d' "$D/host1.toml"   # the line alone says where
echo "tidemark-config $mount_point tidemark config=$D/host1.toml,_netdev 0 0" > "$D/fstab"
pid_file="$D/run/host1/host1.pid" log="$D/host1/state/host1.log"
for round in 1 2; do
  expect "mount(8) takes the line of fstab" mount -T "$D/fstab" "$mount_point"
  mountpoint -q "$mount_point" || die "mount(8) returned before the mount was there"
  wait_for 60 "the link" linked host1
  findmnt -n -o SOURCE,FSTYPE "$mount_point" > "$D/answer"
  grep -q "tidemark-config *fuse.tidemark" "$D/answer" || die "findmnt: $(cat "$D/answer")"
  daemon=$(cat "$pid_file")
  kill -0 "$daemon" || die "no daemon behind the mount"
  dd if=/dev/urandom of="$mount_point/vm.img" bs=1M count=2 status=none
  sha256sum < "$mount_point/vm.img" > "$D/written"
  # Another user, as a hypervisor's is: allow_other is the default, permissions are checked.
  chmod 0644 "$mount_point/vm.img"
  chmod 0755 "$D"
  other=(setpriv --reuid=65534 --clear-groups)
  expect "another user reads it" "${other[@]}" cmp -n 4096 "$mount_point/vm.img" "$mount_point/vm.img"
  ! "${other[@]}" sh -c "echo x > '$mount_point/vm.img'" 2> "$D/answer" || die "another user wrote it"
  expect "umount" umount "$mount_point"
  wait_for 90 "the daemon to end" sh -c "! kill -0 $daemon 2> /dev/null"
  [ ! -e "$pid_file" ] || die "the daemon left its pid file"
  tail -n 1 "$log" | grep -q 'daemon stopped exit_code=0' || die "no clean stop: $(tail -n 5 "$log")"
done
# A link that was lost meanwhile has a resync of its own.
grep -q 'link_lost' "$log" || ! grep 'resync_begun' "$log" || die "a clean stop needed a recovery"
mount -T "$D/fstab" "$mount_point"
wait_for 60 "the link" linked host1
expect "what was written is there" sh -c "sha256sum < '$mount_point/vm.img' | cmp - '$D/written'"
verify_equal host1
daemon=$(cat "$pid_file")
umount "$mount_point"
wait_for 90 "the daemon to end" sh -c "! kill -0 $daemon 2> /dev/null"
# The same line as systemd reads it: a mount before what needs remote file systems, as libvirt does.
generator=/lib/systemd/system-generators/systemd-fstab-generator
mkdir "$D/generated"
SYSTEMD_FSTAB="$D/fstab" $generator "$D/generated" "$D/generated" "$D/generated"
unit=$(find "$D/generated" -name '*.mount' -type f)
for line in '^Type=tidemark' '^Before=.*remote-fs.target'; do
  grep -q "$line" "$unit" || die "systemd makes of it: $(cat "$unit")"
done
say "ok: systemd mounts it before remote-fs.target"
ended replica1
ended shared1
no_error_lines
