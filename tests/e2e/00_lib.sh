#!/usr/bin/env bash
# What the scripts stand on: whoever gives up within a wait is heard, and what a wait started keeps nothing open.
source "$(dirname "$0")/lib.sh"
mkdir -p "$D/log"
lib="$here/lib.sh"
says() { # WHAT SCRIPT: it fails, and that is the end of what it prints
  local got=0
  timeout 20 bash -c "source '$lib'; $2" > "$D/out" 2> "$D/err" || got=$?
  [ "$got" = 1 ] || die "exit $got of: $2"
  grep -q "^FAILED: $1" "$D/err" || die "no word of '$1': $(cat "$D/err")"
  if grep -q noise "$D/err" "$D/out"; then die "the command's own output is seen"; fi
  say "ok: $1"
}
says "not to be waited for" 'gone() { echo noise; die "not to be waited for"; }; wait_for 5 it gone'
says "deeper" 'gone() { die "deeper"; }; half() { wait_for 5 it gone; }; wait_for 5 it half'
says "timeout waiting for it" 'wait_for 1 it false'
says "it ended with 3, not with 0 137" '(exit 3) & reap $! it 0 137'
says "it ended with 0, not with error" 'true & reap $! it error'
says "it ended with 139, not with error 137" 'sh -c "kill -SEGV \$\$" & reap $! it error 137'
(exit 3) & reap $! "one that fails" 0 error
sleep 30 & kill -KILL $!; reap $! "one that is killed" 137

wait_for 5 "nothing" true
sleep 30 & CHILD=$!
AT_END+=("kill $CHILD 2> /dev/null")
errors=$(readlink /proc/$$/fd/2)
for fd in "/proc/$CHILD/fd"/*; do
  [ "${fd##*/}" -le 2 ] || [ "$(readlink "$fd")" != "$errors" ] || die "a child keeps the test's own errors open: $fd"
done
say "ok: a child keeps nothing open"
