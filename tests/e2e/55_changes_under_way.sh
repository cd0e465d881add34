#!/usr/bin/env bash
# Changes of names under way while the daemon dies, and its successor finds no link at first: what was done already is not
# done twice, and what another host did meanwhile is not taken for one's own.
# Runs alone: each request is answered only after the next step was taken, within the 5 s that it may wait for its link.
source "$(dirname "$0")/lib.sh"
configure host1 host2
free_port; gate=$FREE_PORT
SHARED_LINK_PORT=$gate host_config host1
link() { # the way of host1 to the shared node
  coproc GATE { exec "$T/delay_proxy" "$gate" "$SHARED_PORT" 0; }
  gate_pid=$GATE_PID
}
gate() { # COMMAND...
  local line
  echo "$*" >&"${GATE[1]}"
  read -r -t 10 line <&"${GATE[0]}" && [ "$line" = end ] || die "the proxy at $*: $line"
}
cut() { kill -KILL "$gate_pid"; reap "$gate_pid" "the link" 137; }
AT_END+=('kill -KILL $gate_pid')
link
for node in shared1 replica1 host1 host2; do start "$node"; done
say "cluster is up in $D"
one="$D/mnt/host1" two="$D/mnt/host2"
connected() { tm host1 status --json | jq -e .shared.connected; }
wait_for 20 "the link" connected
cat > "$D/change.py" <<'PYTHON'
import ctypes, errno, os, sys
what, a, b = sys.argv[1], sys.argv[2], sys.argv[3]
def exchange():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, a.encode(), -100, b.encode(), 2) != 0:
        raise OSError(ctypes.get_errno(), "exchange")
open(sys.argv[4], "w").close()
sys.stdin.readline()
try:
    {"exchange": exchange, "rename": lambda: os.rename(a, b), "mkdir": lambda: os.mkdir(a), "unlink": lambda: os.unlink(a),
     "setxattr": lambda: os.setxattr(a, "user.lock", b.encode(), os.XATTR_CREATE)}[what]()
    print("ok")
except OSError as e:
    print(errno.errorcode[e.errno])
PYTHON
begin() { # CHANGE PATH [PATH-OR-VALUE]: by a process that is ready for it, at once
  local go
  rm -f "$D/go" "$D/ready"
  mkfifo "$D/go"
  python3 "$D/change.py" "$1" "$2" "${3:-}" "$D/ready" < "$D/go" > "$D/answer" & changing=$!
  exec {go}> "$D/go"
  wait_for 20 "it to be ready" test -e "$D/ready"
  "${LOOK[@]}" > /dev/null
  [ -z "$HOLD" ] || gate hold "$HOLD"
  BEFORE=$(bytes_up)
  echo >&"$go"
  exec {go}>&-
}
LOOK=(true) HOLD=
long=$(printf 'x%.0s' {1..240})               # frames with it are longer than any number of pings of the time
bytes_up() { # [5]: of all connections, by the proxy's count: what came from host1, or (5) what has gone on to the shared node
  local column=${1:-4} line sum=0
  echo stats >&"${GATE[1]}"
  while read -r -t 10 line <&"${GATE[0]}" || die "the proxy ended"; [ "$line" != end ]; do
    set -- $line
    sum=$((sum + ${!column}))
  done
  echo $sum
}
came_up() { [ "$(bytes_up)" -gt $((BEFORE + 240)) ]; }
went_on() { [ "$(bytes_up 5)" -gt $((BEFORE + 240)) ]; }
succeeded() { local now; now=$(daemon_pid host1) && [ "$now" != "$1" ] && control host1 /v1/status; }
takeovers() { grep -c 'fuse taken_over' "$D/log/host1.log" || true; }
asked_again() { [ "$(takeovers)" -gt "$1" ]; }
answer_of_successor() { # the daemon dies without a link, and the answer comes from the next one once it has one
  local daemon before
  daemon=$(daemon_pid host1) before=$(takeovers)
  kill -KILL "$daemon"
  wait_for 20 "a successor" succeeded "$daemon"
  wait_for 20 "the kernel to ask again" asked_again "$before"
  ! connected > /dev/null || die "there is a link already"
  link
  timeout 30 tail --pid="$changing" -f /dev/null || die "no answer"
  ANSWER=$(cat "$D/answer")
  wait_for 20 "the link" connected
}
answered() { # WANTED WHAT
  [ "$ANSWER" = "$1" ] || die "$2: $ANSWER, wanted $1"
  say "ok: $2: $1"
}

begin_unheard() { # CHANGE [PATH] LONG-PATH: it leaves host1, and never arrives. The lookup of the long path does.
  LOOK=(true) HOLD=down
  [ $# = 2 ] || LOOK=(stat "$2")              # its kernel does not ask for this one once more
  begin "$@"
  wait_for 10 "the lookup" went_on             # what only came would be held with the request
  gate hold up
  BEFORE=$(bytes_up)
  gate pass down
  wait_for 10 "the request" came_up
}

# ---- done, and the answer lost --------------------------------------------------------------------
inode() { stat -c %i "$1"; }
answer_is_lost() { # SEEN: by host2, and host1 never hears of it
  wait_for 10 "it to be carried out" "$1"
  cut
  answer_of_successor
}
lose_answer() { # SEEN CHANGE PATH...: of names that are there, which its kernel has just looked up
  local seen=$1; shift
  LOOK=(stat "${@:2}") HOLD=down
  begin "$@"
  answer_is_lost "$seen"
}
lose_answer_of_new() { # SEEN CHANGE [PATH] LONG-PATH: the kernel looks the long path up
  local seen=$1; shift
  begin_unheard "$@"
  gate hold down
  gate pass up
  answer_is_lost "$seen"
}
touch "$one/a" "$one/b" "$one/c"
a=$(inode "$one/a") b=$(inode "$one/b") c=$(inode "$one/c")
exchanged() { [ "$(inode "$two/a")" = "$b" ] && [ "$(inode "$two/b")" = "$a" ]; }
lose_answer exchanged exchange "$one/a" "$one/b"
answered ok "an exchange that was done"
listed() { python3 -c 'import os, sys; print(*(e.inode() for e in os.scandir(sys.argv[1]) if e.name == sys.argv[2]))' "$1" "$2"; }
stands_exchanged() { [ "$(listed "$two" a)" = "$b" ] && [ "$(listed "$two" b)" = "$a" ]; }   # listings are believed by nobody
expect "it is done once" stands_exchanged
moved() { [ "$(inode "$two/d$long")" = "$c" ]; }
lose_answer_of_new moved rename "$one/c" "$one/d$long"
answered ok "a rename that was done"
gone() { [ ! -e "$two/d" ]; }
touch "$one/d"
lose_answer gone unlink "$one/d"
answered ok "an unlink that was done"
theirs() { gone && mkdir "$two/d"; }
touch "$one/d"
lose_answer theirs unlink "$one/d"
answered ok "an unlink that was done, and another host has put something there since"
expect "that stays" [ -d "$two/d" ]
made() { [ -d "$two/new$long" ]; }
lose_answer_of_new made mkdir "$one/new$long"
answered ok "a mkdir that was done"

# ---- not done, and another host was faster --------------------------------------------------------
begin_unheard mkdir "$one/lock$long"
expect "host2 makes it" mkdir "$two/lock$long"
cut
answer_of_successor
answered EEXIST "a mkdir of what another host has made meanwhile"
touch "$one/job"
job=$(inode "$one/job")
begin_unheard rename "$one/job" "$one/job.1$long"
expect "host2 takes it" mv "$two/job" "$two/job.2"
cut
answer_of_successor
answered ENOENT "a rename of what another host has renamed meanwhile"
expect "it is host2's" [ "$(inode "$two/job.2")" = "$job" ]
touch "$one/f"
LOOK=(stat "$one/f") HOLD=up
begin setxattr "$one/f" "host1$long"
wait_for 10 "the request" came_up
expect "host2 sets it" setfattr -n user.lock -v host2 "$two/f"
cut
answer_of_successor
answered EEXIST "an attribute that another host has set meanwhile"
expect "it is host2's" [ "$(getfattr --only-values -n user.lock "$two/f" 2> /dev/null)" = host2 ]
