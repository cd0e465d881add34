#!/usr/bin/env bash
# FIFOs, sockets and devices are names for all hosts: through restarts, an outage, a rebuilt catalogue, and at the replica.
# What goes through them stays on each host, and a device is opened on none.
source "$(dirname "$0")/lib.sh"
BRICKS=1 CUT_INTERVAL=200ms
cluster_up host1 host2
M1=$D/mnt/host1; M2=$D/mnt/host2
mkdir "$M1/d"
mkfifo -m 640 "$M1/d/fifo"
mknod -m 660 "$M1/d/null" c 1 3
mknod -m 600 "$M1/d/disk" b 259 70000
python3 -c 'import os, socket, sys; os.chdir(sys.argv[1]); s = socket.socket(socket.AF_UNIX); s.bind("sock")' "$M1/d"
chown 7:8 "$M1/d/sock"
mkfifo "$M1/d/gone"
ALL="disk block special file 600 0:0 103:11170
fifo fifo 640 0:0 0:0
null character special file 660 0:0 1:3
sock socket 755 7:8 0:0"
shown() { # MOUNT: all that is in its directory
  [ "$(cd "$1/d" && stat -c '%n %F %a %u:%g %t:%T' * | grep -v ^gone)" = "$ALL" ]
}
expect "the host that made them shows them" shown "$M1"
expect "the other host shows them" shown "$M2"
rm "$M2/d/gone"
wait_for 30 "the name to go" test ! -e "$M1/d/gone"

echo across > "$M1/d/fifo" & WRITER=$!
[ "$(timeout 60 cat "$M1/d/fifo")" = across ] || die "nothing came through the FIFO"
wait "$WRITER"
timeout 1 cat "$M2/d/fifo" && die "a FIFO of two hosts has a writer"
for mount in "$M1" "$M2"; do
  findmnt -no OPTIONS "$mount" | grep -qw nodev || die "$mount lets devices be opened"
  cat "$mount/d/null" 2> "$D/log/device" && die "a device was opened"
  grep -q 'Permission denied' "$D/log/device" || die "$(cat "$D/log/device")"
done
say "ok: bytes go through a FIFO on one host, and no device is opened"

# One host opens a name that it would create, while the other makes a FIFO there: the kernel opens that then.
cat > "$D/race.py" <<'END'
import collections, errno, os, sys, threading, time
mine, other = sys.argv[1] + '/race', sys.argv[2] + '/race'
answers, end = collections.Counter(), time.time() + 3
def goes_on():   # until one was opened, should the link have been away for as long
    return time.time() < end or (not answers['OK'] and time.time() < end + 60)
def attempt(call):
    try: call()
    except OSError as e: return errno.errorcode[e.errno]
    return 'OK'
def make():
    while goes_on():
        attempt(lambda: os.mkfifo(other))
        attempt(lambda: os.unlink(other))
def create():
    while goes_on():
        answers[attempt(lambda: os.close(os.open(mine, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK)))] += 1
        attempt(lambda: os.unlink(mine))
threads = [threading.Thread(target=f) for f in (make, make, create, create)]
for t in threads: t.start()
for t in threads: t.join()
attempt(lambda: os.unlink(mine))
print(dict(answers))
sys.exit(answers['OK'] == 0 or answers['EISDIR'] > 0)
END
python3 "$D/race.py" "$M1" "$M2" || die "a FIFO is taken for a directory"
say "ok: what another host makes in its place is opened"

tree() { # POINT: kinds and targets at the replica
  client operator "https://127.0.0.1:$REPLICA_PORT/v1/points/$1/tree" |
    jq -r '.entries[] | select(.path | startswith("d/")) | "\(.path) \(.kind) \(.target)"'
}
in_point() { [ "$(tree "$(mark host1)")" = "d/disk block_device 259:70000
d/fifo fifo null
d/null char_device 1:3
d/sock socket null" ]; }
wait_for 60 "them at the replica" in_point

kill9 shared1
mkfifo "$M1/d/late" 2> "$D/log/late" && die "a name was made while nobody could decide on it"
expect "what is known is shown while the shared node is away" shown "$M1"
start shared1
made() { [ -p "$M1/d/gone" ] || mkfifo "$M1/d/gone"; }
wait_for 60 "the link" made
stop host1; start host1
expect "they are there after a restart of both" shown "$M1"

kill9 shared1
rm -rf "$D/shared1/state"/*
tm shared1 shared rebuild --hosts host1,host2 --force > "$D/log/rebuild" || die "$(cat "$D/log/rebuild")"
start shared1
wait_for 60 "the reports" bash -c "tidemark --config '$D/shared1.toml' status --json | jq -e '.rebuilding == null'"
wait_for 60 "host1's names in the new catalogue" shown "$M1"
wait_for 60 "host2's names in the new catalogue" shown "$M2"
rm "$M1/d/fifo"
wait_for 30 "host2 to see that it is gone" mkfifo -m 640 "$M2/d/fifo"   # it may be believed for a second
wait_for 30 "names to change in it" shown "$M1"
verify_equal host1
no_error_lines
