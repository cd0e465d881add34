#!/usr/bin/env bash
# Runs alone: guests are held to a time.
# The daemon killed with -9 under load, three times and once more while the shared node is away, then upgraded: nobody
# gets an error, nothing is lost or old, open, locked and unlinked files go on, and nobody waits three seconds.
source "$(dirname "$0")/lib.sh"
mkdir "$D/programs"
cp "$BIN/tidemark-fs" "$D/programs/"
PATH="$D/programs:$PATH"                        # one that can be replaced on the disk
cluster_up host1
mount="$D/mnt/host1"
restart() { tm host1 status --json | jq -er ".restart.$1"; }
expect "live restart is available" [ "$(restart available)" = true ]

# ---- load ----
for name in fio stall none; do fallocate -l 64M "$mount/$name.img"; done
tidemark --config "$D/host1.toml" image policy none.img --mirror none > "$D/log/policy" 2>&1 ||
  setfattr -n user.tidemark.mirror -v none "$mount/none.img"
dd if=/dev/urandom of="$mount/before" bs=1M count=2 status=none
sha256sum < "$mount/before" > "$D/before"
exec 7< "$mount/before"
cp "$mount/before" "$mount/unlinked"
exec 8< "$mount/unlinked"
rm "$mount/unlinked"
exec 9> "$mount/locked"
flock -x 9
fio --name=load --filename="$mount/fio.img" --size=64M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=32 \
  --rate_iops=1800 --loops=2 --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0 --output="$D/log/fio" & fio=$!
writer() { # NAME FILE [PAUSE-MS]: its standard input is a fifo, whose other end is kept in FIFO_NAME
  mkfifo "$D/fifo.$1"
  "$T/stall_writer" "$2" 4096 "$D/report.$1" ${3:-} < "$D/fifo.$1" > "$D/out.$1" & declare -g "WRITER_$1=$!"
  exec {fd}> "$D/fifo.$1"
  declare -g "FIFO_$1=$fd"
}
writer stall "$mount/stall.img"
writer none "$mount/none.img"
fallocate -l 16M "$D/disk.img"
writer disk "$D/disk.img" 10                    # beside the daemons: how long the disk itself stands still
names() { # until its file is gone: every change must be carried out once, or it fails
  set -e
  local i=0
  while [ -e "$D/names.on" ]; do
    i=$((i + 1))
    mkdir "$mount/d.$i"
    (set -C; : > "$mount/d.$i/a")
    mv "$mount/d.$i/a" "$mount/d.$i/b"
    [ -e "$mount/d.$i/b" ] && [ ! -e "$mount/d.$i/a" ]
    rm "$mount/d.$i/b"
    rmdir "$mount/d.$i"
  done
  echo "$i" > "$D/names.done"
}
touch "$D/names.on"
names & names=$!

# ---- kills ----
writes() { cat "$D/report.$1" 2> /dev/null || echo 0; }
progress() { # after this many writes more of both writers
  local one two
  one=$(($(writes stall) + $1)) two=$(($(writes none) + $1))
  wait_for 30 "writes of stall_writer" sh -c "[ \$(cat '$D/report.stall') -ge $one ]"
  wait_for 30 "writes with mirror = none" sh -c "[ \$(cat '$D/report.none') -ge $two ]"
}
replaced() { local now; now=$(restart daemon_pid) && [ "$now" != "$1" ]; }
longest=0
measured() { # NAME FIELD: of its line, with which it begins a new measurement
  local lines=$(($(wc -l < "$D/out.$1") + 1)) fd="FIFO_$1"
  echo -n r >&"${!fd}"
  wait_for 30 "the measurement" sh -c "[ \$(wc -l < '$D/out.$1') -ge $lines ]"
  tail -n 1 "$D/out.$1" | awk -v field="$2" '{print $field}'
}
measure() { # WHAT [MS]: the longest gap since the last time; it may have been as long as that, and as the disk stood still
  local name ms disk
  local -A gap=()
  for name in stall none; do gap[$name]=$(measured $name 4); done
  disk=$(measured disk 6)
  for name in stall none; do
    ms=${gap[$name]}
    say "$1: longest stall of $name.img: $ms ms, while the disk stood still for $disk ms"
    if [ $# = 1 ] && [ "$ms" -gt "$longest" ]; then longest=$ms; fi
    [ "$ms" -lt $((${2:-3000} + disk)) ] || die "$1: a guest waited $ms ms"
  done
}
echo 0 > "$D/report.stall"; echo 0 > "$D/report.none"
progress 200
measure "before"
for round in 1 2 3; do
  daemon=$(daemon_pid host1)
  kill -KILL "$daemon"
  wait_for 20 "a successor" replaced "$daemon"
  progress 200
  measure "kill $round"
done
[ "$(restart successors)" = 3 ] || die "$(restart successors) successors after three kills"
kill -0 "$fio" || die "fio ended before the last kill: no load"

# ---- upgrade ----
daemon=$(daemon_pid host1)
cp "$BIN/tidemark-fs" "$D/programs/new"
mv "$D/programs/new" "$D/programs/tidemark-fs"
expect "the daemon is replaced by the program on disk" tm host1 host restart
[ "/proc/$(daemon_pid host1)/exe" -ef "$D/programs/tidemark-fs" ] || die "it runs another program than the one on disk"
progress 200
measure "upgrade"
# What is agreed with the kernel lasts as long as the mount.
echo 'max_background = 128' >> "$D/host1.toml"
expect "restarted with another max_background" tm host1 host restart
progress 200
measure "another max_background"
# Nor does anybody wait for a port that is not free.
free_port
port=$FREE_PORT
python3 -c 'import signal, socket, sys
s = socket.create_server(("127.0.0.1", int(sys.argv[1])))
signal.pause()' "$port" & other=$!
AT_END+=("kill $other 2> /dev/null")
listened() { [ -n "$(ss -Htln "sport = :$port")" ]; }
wait_for 30 "another program on the port" listened
sed -i "s|^listen = .*|listen = \"127.0.0.1:$port\"|" "$D/host1.toml"
expect "restarted with a port for metrics that is not free" tm host1 host restart
progress 200
measure "a port that is not free"
expect "it is not healthy for that" grep -q '.metrics. listen' <(control host1 /healthz || true)
kill $other
reap $other "the other program" 143
wait_for 30 "the metrics, once the port is free" curl -sSf "http://127.0.0.1:$port/metrics"
cp "$D/programs/tidemark-fs" "$D/programs/good"
printf '#!/bin/sh\nexit 1\n' > "$D/programs/bad"; chmod +x "$D/programs/bad"
mv "$D/programs/bad" "$D/programs/tidemark-fs"
daemon=$(daemon_pid host1)
expect_exit 2 "a program that does not start is refused" tm host1 host restart
[ "$(daemon_pid host1)" = "$daemon" ] || die "the daemon went for a program that does not start"
mv "$D/programs/good" "$D/programs/tidemark-fs"
# Nor for one that the certificate would fail.
cp -p "$D/certs/host1.pem" "$D/certs/host1.key" "$D/"
refused() { # WHAT WORDS
  expect_exit 2 "$1 is refused" timeout 20 tidemark --config "$D/host1.toml" host restart 2> "$D/log/refused"
  grep -q -- "$2" "$D/log/refused" || die "no \"$2\" in: $(cat "$D/log/refused")"
  [ "$(daemon_pid host1)" = "$daemon" ] || die "the daemon went for $1"
  cp -p "$D/host1.pem" "$D/host1.key" "$D/certs/"
}
tidemark pki init --dir "$D/foreign" > /dev/null
tidemark pki issue host1 --role host --dir "$D/foreign" --out "$D/foreign" > /dev/null
tidemark pki issue host9 --role host --dir "$D/pki" --out "$D/host9" > /dev/null
echo nonsense > "$D/certs/host1.pem"
refused "a certificate that is none" "host1.toml:[0-9]*: .tls. certificate: .*is not PEM"
cp "$D/foreign/host1.pem" "$D/foreign/host1.key" "$D/certs/"
refused "a certificate of another cluster" "host1.toml: .tls. certificate must be one of the state's cluster"
cp "$D/host9/host9.pem" "$D/certs/host1.pem"; cp "$D/host9/host9.key" "$D/certs/host1.key"
refused "a certificate of another node" "host1.pem is of host host9, .*: make one with tidemark pki issue host1"
expect "with all good again it is restarted" tm host1 host restart
# The holder has heard that it is up: until then a start that fails is one of the upgrade.
came_up() { grep -q "holder daemon_replaced pid=$(daemon_pid host1) " "$D/log/host1.log"; }
wait_for 20 "the word of the new daemon" came_up
# A start that fails long after the upgrade brings the program from before it back no more. One that ends by itself is
# tried more often than deaths are borne: what it says is said once, and once that is mended the guests go on.
runs() { stat -Lc %i "/proc/$(daemon_pid host1)/exe"; }
daemon=$(daemon_pid host1) program=$(runs)
cp "$D/host1.toml" "$D/host1.good"
echo 'unknown = 1' >> "$D/host1.toml"
deaths() { grep -c 'holder daemon_died' "$D/log/host1.log"; }
refused_starts() { grep -c 'unknown key unknown' "$D/log/host1.log" || true; }
refused_often() { [ "$(refused_starts)" -ge "$1" ]; }
before=$(deaths)
kill -KILL "$daemon"
wait_for 60 "starts that fail" refused_often 13
expect "it is said once" [ "$(deaths)" = $((before + 2)) ]
mv "$D/host1.good" "$D/host1.toml"
wait_for 20 "a successor" replaced "$daemon"
expect "the program that was upgraded to goes on" [ "$(runs)" = "$program" ]
progress 200
measure "starts that failed" 60000

# ---- what was open ----
rm "$D/names.on"
wait "$names" || die "a change of names failed"
say "ok: names changed $(cat "$D/names.done") times"
expect "a file open from before is read" sh -c "sha256sum <&7 | cmp - '$D/before'"
expect "so is one that was unlinked" sh -c "sha256sum <&8 | cmp - '$D/before'"
! flock -n -x "$mount/locked" true || die "the lock went with the daemon"
flock -u 9
expect "the lock is free once it is given up" flock -n -x "$mount/locked" true
exec 7<&- 8<&- 9>&-
wait "$fio" || die "fio: $(tail -n 20 "$D/log/fio")"
say "ok: fio wrote and verified without an error"

# ---- with the shared node away ----
kill9 shared1
progress 50
measure "shared node lost"
daemon=$(daemon_pid host1)
kill -KILL "$daemon"
wait_for 20 "a successor" replaced "$daemon"
progress 50
measure "kill without the shared node"
start shared1
echo -n q >&"$FIFO_disk"
wait "$WRITER_disk" || die "the disk: $(tail -n 3 "$D/out.disk")"
for name in stall none; do
  fd="FIFO_$name" pid="WRITER_$name"
  echo -n q >&"${!fd}"
  wait "${!pid}" || die "the writer of $name.img failed: $(tail -n 3 "$D/out.$name")"
  say "ok: $name.img: $(tail -n 1 "$D/out.$name"), all blocks are the last ones written"
done
for name in fio stall; do wait_for 60 "$name.img to be level" mirrored host1 "$name.img"; done
verify_equal host1 fio.img stall.img
point=$(mark host1)
export_point host1 stall.img "$point" "$D/out.img"
expect "the replica is equal" cmp "$D/out.img" "$mount/stall.img"
say "longest stall of all: $longest ms"

# ---- the holder ----
holder=${PID[host1]} daemon=$(daemon_pid host1)
kill9 host1
! kill -0 "$daemon" 2> /dev/null || die "the daemon outlived its holder"
expect "the mount is dead" sh -c "! ls '$mount' > /dev/null 2>&1"
start host1
expect "and mounted anew" cmp "$D/out.img" "$mount/stall.img"
stop host1
# As on a kernel that does not hand requests out again: a clean end, said beforehand, and a remount.
tidemark-fs --config "$D/host1.toml" -f -o nolive "$mount" >> "$D/log/host1.log" 2>&1 & PID[host1]=$!
wait_for 20 "host1 to answer" ready host1
wait_for 20 "the word that there is no live restart" grep -q no_live_restart "$D/log/host1.log"   # the holder's
expect_exit 1 "a restart is refused" tm host1 host restart
kill -KILL "$(daemon_pid host1)"
wait "${PID[host1]}" && die "the holder ended as if all were well"
expect "the mount is dead without live restart" sh -c "! ls '$mount' > /dev/null 2>&1"
start host1
expect "and mounted anew" cmp "$D/out.img" "$mount/stall.img"
stop host1
# Nor does a mount move: whatever the file names by the time of a restart is not taken for its place.
mkdir "$D/other"
mount -t tmpfs none "$D/other"
AT_END+=("mountpoint -q '$D/other' && umount '$D/other'")
tidemark-fs --config "$D/host1.toml" -f >> "$D/log/host1.log" 2>&1 & PID[host1]=$!
wait_for 20 "host1 to answer" ready host1
sed -i "s|^path = .*|path = \"$D/other\"|" "$D/host1.toml"
expect "restarted with another path in the file" tm host1 host restart
stop host1
expect "what is mounted there stays" mountpoint -q "$D/other"
expect "and its own mount is gone" sh -c "! mountpoint -q '$mount'"
start host1
# The one that tries to start it again and again ends as it is told to, and takes the mount with it.
echo 'unknown = 1' >> "$D/host1.toml"
before=$(refused_starts)
kill -KILL "$(daemon_pid host1)"
wait_for 20 "starts that fail" refused_often $((before + 2))
kill -TERM "${PID[host1]}"
wait "${PID[host1]}" && die "the holder ended as if all were well"
unset "PID[host1]"
expect "nothing is mounted" sh -c "! mountpoint -q '$mount'"
# Mounted in the background nobody sees what it says: the log has it.
sed -i '/^unknown = 1$/d' "$D/host1.toml"
tidemark-fs --config "$D/host1.toml" -b "$mount" || die "no mount in the background"
echo 'unknown = 1' >> "$D/host1.toml"
kill -KILL "$(daemon_pid host1)"
told() { grep 'holder daemon_died' "$D/host1/state/host1.log" | grep -q 'unknown key unknown'; }
wait_for 20 "the reason in the log" told
sed -i '/^unknown = 1$/d' "$D/host1.toml"
wait_for 20 "a successor" grep -q 'holder daemon_replaced' "$D/host1/state/host1.log"
kill -TERM "$(cat "$D/run/host1/host1.pid")"
wait_for 20 "its end" sh -c "! mountpoint -q '$mount'"
