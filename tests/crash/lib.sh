# Media that lose their power, on top of tests/e2e/lib.sh.
#
#   source lib.sh; configure host1; on_medium host1; ...; start host1; ...; freeze host1; die_of host1; lose host1 mix 7
source "$(dirname "${BASH_SOURCE[0]}")/../e2e/lib.sh"

declare -A LAYER=()
mount_medium() { # NAME [deaf]: $D/medium/NAME is seen at $D/NAME
  mkdir -p "$D/medium/$1" "$D/$1" "$D/log"
  setsid "$T/power_cut" "$D/medium/$1" "$D/$1" "$D/medium.$1.socket" ${2:+"$2"} \
    >> "$D/log/medium.$1.log" 2>&1 < /dev/null &
  LAYER[$1]=$!
  AT_END+=("kill -KILL ${LAYER[$1]} 2> /dev/null")   # frozen, it would not end
  wait_for 10 "the medium of $1" mountpoint -q "$D/$1"
}
on_medium() { # NODE: its bricks and its state, as `configure` made them, stand on a medium from now on
  mkdir -p "$D/medium"
  mv "$D/$1" "$D/medium/$1"
  mount_medium "$@"
  AT_END+=("umount -l '$D/$1' 2> /dev/null")
}
medium() { "$T/power_cut" tell "$D/medium.$1.socket" "${*:2}"; }   # NAME COMMAND...
lose_power() { # STYLE SEED NODE...: in one moment for all of them
  local style=$1 seed=$2 node report; shift 2
  for node in "$@"; do medium "$node" freeze > /dev/null || die "freeze $node"; done
  for node in "$@"; do doom "$node"; done
  for node in "$@"; do
    report=$(medium "$node" cut "$style" "$seed") || die "cut $node: $report"
    say "cut of $node ($style $seed): $report"
    wait "${LAYER[$node]}" || die "the medium of $node: $(tail -n 3 "$D/log/medium.$node.log")"
  done
  for node in "$@"; do buried "$node"; done
}
power_back() { # NODE...
  local node
  for node in "$@"; do
    wait_for 10 "the medium of $node to be unmounted" umount "$D/$node"
    mount_medium "$node"
    start "$node"
  done
}

# Killed without waiting: a process that waits for a frozen medium ends only when that goes.
declare -A DOOMED=()
doom() { # NODE
  local pids="${PID[$1]}"
  if [ -e "$D/run/$1/$1.daemon.pid" ]; then pids+=" $(daemon_pid "$1")"; fi
  # shellcheck disable=SC2086
  kill -KILL $pids || die "$1 was not there to kill"
  DOOMED[$1]=$pids
}
buried() { # NODE
  local pid
  for pid in ${DOOMED[$1]}; do timeout 20 tail --pid="$pid" -f /dev/null || die "$1 outlived its end"; done
  wait "${PID[$1]}" 2> /dev/null || [ $? = 137 ] || die "$1 ended by itself"
  unset "PID[$1]"
}
