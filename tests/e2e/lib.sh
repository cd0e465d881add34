# A whole cluster on this machine for one test: certificates, configuration, daemons, mounts.
#
#   source lib.sh; cluster_up [host1 host2 ...]; ...; everything is taken down when the script ends.
#
# Bounded waits only (wait_for); every process is stopped by the pid that was started here.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BIN=${TIDEMARK_BIN:-$here/../../build/release/bin}
T=${TIDEMARK_TEST_BIN:-$BIN/../tests}          # helper programs of the tests
[ -x "$BIN/tidemark" ] || { echo "no programs in $BIN: build first, or set TIDEMARK_BIN" >&2; exit 2; }
BIN=$(cd "$BIN" && pwd)
PATH=$BIN:$PATH

D=$(mktemp -d "${TMPDIR:-/tmp}/tidemark-e2e.XXXXXX")
cd "$D"                                         # fio leaves files where it runs
declare -A PID=()
PORTS=${TMPDIR:-/tmp}/tidemark-ports              # taken by the tests that run now: a link each, to its process
AT_END=()                                       # commands for the end, last first, before the directory goes

say() { echo "[$(date +%T)] $*"; }
ERR=                                            # within wait_for: the descriptor where die() is heard
die() { echo "FAILED: $*" >&"${ERR:-2}"; exit 1; }
expect() { # DESCRIPTION COMMAND...: the command must succeed
  local what=$1; shift
  "$@" || die "$what: $*"
  say "ok: $what"
}
expect_exit() { # CODE DESCRIPTION COMMAND...
  local code=$1 what=$2 got=0; shift 2
  "$@" || got=$?
  [ "$got" = "$code" ] || die "$what: exit $got, wanted $code: $*"
  say "ok: $what (exit $code)"
}
wait_for() { # SECONDS DESCRIPTION COMMAND...: until it succeeds; it is tried once more when the time is over
  local limit=$(($(date +%s) + $1)) what=$2 outer=${ERR:-} now; shift 2
  # What the command prints is not wanted, what die() says in it is. Closed again, lest a daemon keep it open.
  [ -n "$outer" ] || exec {ERR}>&2
  while now=$(date +%s); ! "$@" > /dev/null 2>&1; do
    [ "$now" -lt "$limit" ] || die "timeout waiting for $what: $*"
    sleep 0.05
  done
  [ -n "$outer" ] || { exec {ERR}>&-; ERR=; }
}
synced() { [ "$(stat -c %s "$D/acks")" -gt "$1" ]; }   # by ack_writer, which writes to $D/acks: more than BYTES of it
goes_on() { # DESCRIPTION [SECONDS]: more writes are synced than now
  wait_for "${2:-60}" "$1" synced $(($(stat -c %s "$D/acks") + 4096))
}
# Frozen, or with requests under way, it cannot be unmounted yet.
unmount_at_end() { AT_END+=("timeout 20 bash -c \"until umount '$1'; do sleep 0.2; done\" || umount -l '$1'"); }   # DIRECTORY
reap() { # PID WHAT CODE...: a process of ours ends, in one of these ways: `error` is 1 to 127, 137 is -KILL
  local pid=$1 what=$2 got=0 code; shift 2
  wait "$pid" 2> /dev/null || got=$?
  for code in "$@"; do
    [ "$got" != "$code" ] || return 0
    if [ "$code" = error ] && [ "$got" -ge 1 ] && [ "$got" -le 127 ]; then return 0; fi
  done
  die "$what ended with $got, not with $*"
}
free_port() { # nobody listens there, and no other test that runs now has it
  local port
  mkdir -p "$PORTS"
  while :; do
    port=$((20000 + RANDOM % 12000))
    ln -s $$ "$PORTS/$port" 2> /dev/null || port_left "$port" || continue
    [ -z "$(ss -Htln "sport = :$port")" ] && break
  done
  AT_END+=("rm -f '$PORTS/$port'")
  FREE_PORT=$port
}
port_left() { # PORT: taken over from a test that was killed
  kill -0 "$(readlink "$PORTS/$1")" 2> /dev/null && return 1
  ln -sfn $$ "$PORTS/$1"
}

# ---- certificates and configuration ---------------------------------------------------------------
issue() { # NODE ROLE
  tidemark pki issue "$1" --role "$2" --dir "$D/pki" --out "$D/certs" --san 127.0.0.1 --san localhost > "$D/log/pki.$1" 2>&1 ||
    die "pki issue $1: $(cat "$D/log/pki.$1")"
}
common_config() { # NODE ROLE
  mkdir -p "$D/$1/state"
  cat <<END
[node]
name = "$1"
role = "$2"
state_dir = "$D/$1/state"
run_dir = "$D/run/$1"

[tls]
authority = "$D/pki/ca.pem"
certificate = "$D/certs/$1.pem"
key = "$D/certs/$1.key"

[metrics]
listen = "127.0.0.1:0"

[log]
level = "${LOG_LEVEL:-info}"

END
}
storage_config() { # NODE: two bricks, striped, unless BRICKS says otherwise
  local brick list="" n=${BRICKS:-2}
  for ((brick = 1; brick <= n; brick++)); do mkdir -p "$D/$1/brick$brick"; list+="\"$D/$1/brick$brick\", "; done
  printf '[storage]\nbricks = [%s]\nstripe_count = %d\n\n' "${list%, }" "$n"
}
replica_link() { printf '[replica]\nurl = "https://127.0.0.1:%s"\nnode = "replica1"\n\n' "$REPLICA_PORT"; }
journal_config() { printf '[journal]\ncut_interval = "%s"\nlimit_bytes = "4GiB"\n\n' "${CUT_INTERVAL:-1s}"; }
host_config() { # NODE
  mkdir -p "$D/mnt/$1"
  { common_config "$1" host; storage_config "$1"; replica_link; journal_config
    printf '[shared]\naddress = "127.0.0.1:%s"\nnode = "shared1"\nconnections = 2\n\n' "${SHARED_LINK_PORT:-$SHARED_PORT}"
    printf '[mount]\npath = "%s"\n' "$D/mnt/$1"; } > "$D/$1.toml"
}
configure() { # HOST...
  mkdir -p "$D"/{log,run,certs,mnt}
  free_port; SHARED_PORT=$FREE_PORT
  free_port; REPLICA_PORT=$FREE_PORT
  tidemark pki init --dir "$D/pki" > "$D/log/pki.init" 2>&1 || die "pki init: $(cat "$D/log/pki.init")"
  issue shared1 shared; issue replica1 replica; issue operator operator
  { common_config shared1 shared; storage_config shared1; replica_link; journal_config
    printf '[listen]\naddress = "127.0.0.1:%s"\n' "$SHARED_PORT"; } > "$D/shared1.toml"
  { common_config replica1 replica; printf '[listen]\naddress = "127.0.0.1:%s"\n' "$REPLICA_PORT"; } > "$D/replica1.toml"
  local host
  for host in "$@"; do issue "$host" host; host_config "$host"; done
}

small_disk() { # DIRECTORY SIZE: a file system of its own is mounted there
  truncate -s "$2" "$1.medium"
  mkfs.ext4 -q -m0 "$1.medium"
  mount -o loop "$1.medium" "$1"
  AT_END+=("mountpoint -q '$1' && umount '$1'")
}

# ---- daemons --------------------------------------------------------------------------------------
control() { # NODE METHOD-PATH [JSON]: one request on the control socket
  local node=$1 path=$2 body=${3:-}
  if [ -n "$body" ]; then curl -sS --fail-with-body --unix-socket "$D/run/$node/control.sock" -d "$body" "http://localhost$path"
  else curl -sS --fail-with-body --unix-socket "$D/run/$node/control.sock" "http://localhost$path"; fi
}
start() { # NODE [command prefix...]
  local node=$1 program; shift
  mkdir -p "$D/run/$node"
  case $node in
    shared*) program=(tidemark-shared --config "$D/$node.toml") ;;
    replica*) program=(tidemark-replica --config "$D/$node.toml") ;;
    witness*) program=(tidemark-witness --config "$D/$node.toml") ;;
    *) program=(tidemark-fs --config "$D/$node.toml" -f "$D/mnt/$node") ;;
  esac
  setsid "$@" "${program[@]}" >> "$D/log/$node.log" 2>&1 < /dev/null &
  PID[$node]=$!
  wait_for 60 "$node to answer" ready "$node"
  # A host mounts without the link, too, if that takes long: then it knows no names, and makes none.
  case $node in shared*|replica*|witness*) ;; *)
    if [ -n "${PID[shared1]:-}" ]; then wait_for 60 "$node's link" linked "$node"; fi ;;
  esac
}
linked() { control "$1" /v1/status | jq -e .shared.connected; }   # HOST: to the shared node
ready() {
  kill -0 "${PID[$1]}" 2>/dev/null || { tail -n 20 "$D/log/$1.log" >&2; die "$1 ended: see its log above"; }
  control "$1" /v1/status || return 1
  # A dead mount is a mount point, too, but cannot be opened.
  case $1 in shared*|replica*|witness*) ;; *) mountpoint -q "$D/mnt/$1" && : < "$D/mnt/$1" ;; esac
}
stop() { # NODE: cleanly
  kill -TERM "${PID[$1]}"; wait "${PID[$1]}" || die "$1 did not stop cleanly (exit $?): $(tail -n 5 "$D/log/$1.log")"
  unset "PID[$1]"
}
daemon_pid() { # HOST: of the daemon; PID[HOST] is its holder
  cat "$D/run/$1/$1.daemon.pid"
}
kill9() { # NODE: a host's holder, and with it its daemon
  local daemon=""
  if [ -e "$D/run/$1/$1.daemon.pid" ]; then daemon=$(daemon_pid "$1"); fi
  kill -KILL "${PID[$1]}"; wait "${PID[$1]}" 2>/dev/null || [ $? = 137 ] || die "$1 was not there to kill"
  if [ -n "$daemon" ]; then timeout 20 tail --pid="$daemon" -f /dev/null || die "the daemon of $1 outlived its holder"; fi
  unset "PID[$1]"
}
cluster_up() { # HOST...
  [ $# -gt 0 ] || set -- host1 host2
  HOSTS="$*"
  configure "$@"
  local node
  for node in shared1 replica1 "$@"; do start "$node"; done
  say "cluster is up in $D"
}
cluster_down() {
  local code=$? node dir i
  trap - EXIT
  set +e
  [ -z "$ERR" ] || exec 2>&"$ERR" {ERR}>&-
  for dir in "$D"/mnt/*; do mountpoint -q "$dir" && umount "$dir" 2>/dev/null; done
  for node in "${!PID[@]}"; do kill -TERM "${PID[$node]}" 2>/dev/null; done
  for node in "${!PID[@]}"; do timeout 20 tail --pid="${PID[$node]}" -f /dev/null || kill -KILL "${PID[$node]}"; done
  # A mount whose daemon died answers nothing, mountpoint(1) included: the table of mounts knows it.
  for dir in "$D"/mnt/*; do while grep -qF " $dir " /proc/mounts; do umount -l "$dir" || break; done; done
  for ((i = ${#AT_END[@]} - 1; i >= 0; i--)); do eval "${AT_END[i]}"; done
  if [ $code != 0 ]; then
    for node in "$D"/log/*.log; do echo "--- $(basename "$node")"; tail -n 25 "$node"; done >&2
  fi
  if [ $code != 0 ] && [ -n "${TIDEMARK_KEEP:-}" ]; then echo "kept: $D" >&2; else rm -rf "$D"; fi
  exit $code
}
trap cluster_down EXIT

# ---- asking ---------------------------------------------------------------------------------------
tm() { # NODE tidemark-arguments...
  local node=$1; shift
  tidemark --config "$D/$node.toml" "$@"
}
image_field() { # NODE PATH FIELD: of `tidemark status --json`
  tm "$1" status --json | jq -er --arg p "$2" --arg f "$3" '.images[] | select(.path == $p or .path == "/" + $p) | .[$f]'
}
mirrored() { # NODE PATH: mirrored with nothing stale
  [ "$(image_field "$1" "$2" mirror)" = mirrored ] && [ "$(image_field "$1" "$2" stale_bytes)" = 0 ]
}
mark() { # NODE [OPTION...]: prints the recovery point. One that waits for what must come before it has none yet: made anew
  local point until=$((SECONDS + 120))
  until point=$(tm "$1" mark --wait --timeout 120 --json "${@:2}" | jq -er .point); do
    [ $SECONDS -lt $until ] || die "no recovery point of $1"
    sleep 0.1
  done
  echo "$point"
}
export_point() { # NODE IMAGE POINT FILE
  tm "$1" replica export "$2" --at "$3" -o "$4" > "$D/log/export" 2>&1 || die "export $2 at $3: $(cat "$D/log/export")"
}
uuid_of() { image_field "$1" "$2" uuid; }           # NODE PATH
client() { # CERTIFICATE-NAME curl-arguments...
  local name=$1; shift
  curl -sS --max-time 60 --cacert "$D/pki/ca.pem" --cert "$D/certs/$name.pem" --key "$D/certs/$name.key" "$@"
}
metric() { # NODE NAME: its value without labels
  control "$1" /metrics | awk -v name="$2" '$1 == name {print $2; found = 1} END {exit !found}'
}
verify() { # NODE tidemark-verify-arguments...: asked again where it could not compare: the link broke (5), the cut is on its way
  local code out until=$(($(date +%s) + 120)) now
  while now=$(date +%s) code=0; out=$(tm "$1" verify "${@:2}") || code=$?; [ "$now" -lt "$until" ]; do
    if [ $code = 4 ]; then
      grep -qE 'the cut did not reach|holds the cut but waits|verify again|behind' <<< "$out" || break
      ! grep -qE 'differs at offset|has another|"offset":|"what":' <<< "$out" || break
    elif [ $code != 5 ]; then
      break
    fi
    sleep 0.2
  done
  printf '%s\n' "$out"
  return $code
}
verify_equal() { # NODE [IMAGE...]
  local out
  out=$(verify "$@" 2>&1) || die "verify: $out"
  say "ok: verify says equal"
}
no_error_lines() { # an expected fault never logs at error
  local found
  found=$(grep -hE '^[0-9T:.+-]+Z? error ' "$D"/log/*.log | head -5) && die "error lines: $found"
  return 0
}
