#!/usr/bin/env bash
# A store, a brick or a state directory that is missing or empty is refused by its name, never taken for a new one; a
# host whose state is really lost begins anew by an operator's word and is filled from the shared node.
source "$(dirname "$0")/lib.sh"
BRICKS=1
cluster_up host1
M=$D/mnt/host1
dd if=/dev/urandom of="$M/a.img" bs=1M count=8 conv=fsync status=none
wait_for 20 "the copies to be level" mirrored host1 a.img
mark host1 > /dev/null
SUM=$(sha256sum < "$M/a.img")
for node in host1 replica1 shared1; do stop "$node"; done
for node in host1 shared1; do cp -a "$D/$node/state" "$D/$node.older"; done

program() { # NODE: its daemon's command line, which is to refuse
  case $1 in
    shared*) echo "tidemark-shared --config $D/$1.toml" ;;
    replica*) echo "tidemark-replica --config $D/$1.toml" ;;
    *) echo "tidemark-fs --config $D/$1.toml -f $D/mnt/$1" ;;
  esac
}
refuses() { # NODE PATH WORDS: with PATH away, then back, then empty
  local node=$1 path=$2 words=$3 got=0
  mv "$path" "$path.away"
  timeout 20 $(program "$node") > "$D/log/refused" 2>&1 || got=$?
  [ "$got" = 2 ] || die "$node started without $path, or ended with $got: $(cat "$D/log/refused")"
  grep -q -- "$words" "$D/log/refused" || die "no \"$words\" in: $(cat "$D/log/refused")"
  rm -rf "$path"; mv "$path.away" "$path"
  say "ok: $node refuses to start without ${path#"$D"/}"
}
for store in names journal drl; do refuses host1 "$D/host1/state/$store" "state/$store is missing"; done
refuses host1 "$D/host1/state" "holds no state that knows it"
for store in catalogue journal drl; do refuses shared1 "$D/shared1/state/$store" "state/$store is missing"; done
refuses shared1 "$D/shared1/state" "holds no state that knows it"
refuses shared1 "$D/shared1/brick1" "brick1.*does not exist"
refuses replica1 "$D/replica1/state/replica/store" "store is missing"
refuses replica1 "$D/replica1/state/replica/segments" "segments is missing"
# A directory that is there and empty, as where a disk is not mounted.
mv "$D/shared1/state/catalogue/data.mdb" "$D/aside"; : > "$D/shared1/state/catalogue/data.mdb"
expect_exit 2 "an emptied catalogue is refused" timeout 20 $(program shared1) 2> "$D/log/refused"
grep -q "emptied or replaced" "$D/log/refused" || die "$(cat "$D/log/refused")"
expect_exit 1 "state show says so" tm shared1 state show
mv "$D/aside" "$D/shared1/state/catalogue/data.mdb"
expect "all is there again" tm shared1 state show
mv "$D/shared1/brick1" "$D/aside"; mkdir "$D/shared1/brick1"
expect_exit 2 "an emptied brick is refused" timeout 20 $(program shared1) 2> "$D/log/refused"
grep -q "was replaced or is not mounted" "$D/log/refused" || die "$(cat "$D/log/refused")"
rm -r "$D/shared1/brick1"; mv "$D/aside" "$D/shared1/brick1"

for node in shared1 replica1 host1; do start "$node"; done
[ "$(sha256sum < "$M/a.img")" = "$SUM" ] || die "the image changed"
# A daemon that is started anew upon its mount looks, too: guests wait, and get nothing of an empty state.
mv "$D/host1/state" "$D/host1.away"; mkdir "$D/host1/state"
expect_exit 2 "no restart into an empty state" timeout 20 tidemark --config "$D/host1.toml" host restart 2> "$D/log/refused"
grep -q "holds no state, while the run before this one had one there: bring back" "$D/log/refused" || die "$(cat "$D/log/refused")"
kill -KILL "$(daemon_pid host1)"
wait_for 60 "the successor to refuse it" grep -q "^tidemark-fs: .* holds no state, while the run before" "$D/log/host1.log"
[ ! -e "$D/host1/state/identity" ] || die "a successor began anew"
mv -T "$D/host1.away" "$D/host1/state"
[ "$(timeout 60 sha256sum < "$M/a.img")" = "$SUM" ] || die "the image changed, or no successor came"
say "ok: a successor refuses an empty state, and goes on with the real one"
expect_exit 6 "no reset under a running daemon" tm host1 state reset --force
# What is written from here on is in host1's journal alone, which will be lost.
expect "shipping is paused" tm host1 journal pause-shipping
dd if=/dev/urandom of="$M/a.img" bs=1M count=4 seek=3 conv=notrunc,fsync status=none
SUM=$(sha256sum < "$M/a.img")
stop host1; stop shared1
for node in host1 shared1; do
  mv "$D/$node/state" "$D/$node.newest"; cp -a "$D/$node.older" "$D/$node/state"
  expect_exit 2 "a state of $node that was put back is refused" timeout 20 $(program $node) 2> "$D/log/refused"
  grep -q "put back from an earlier time.*tidemark s" "$D/log/refused" || die "$(cat "$D/log/refused")"
  rm -r "$D/$node/state"; mv "$D/$node.newest" "$D/$node/state"
done
start shared1
rm -rf "$D/host1/state"
expect_exit 2 "a lost state is refused" timeout 20 $(program host1) 2> "$D/log/refused"
expect_exit 2 "a reset wants a second word" tm host1 state reset
tm host1 state reset --dry-run > "$D/log/reset" || die "$(cat "$D/log/reset")"
[ -e "$D/host1/brick1/objects" ] || die "a dry run moved something"
expect "the state is set aside" tm host1 state reset --force
start host1
[ "$(sha256sum < "$M/a.img")" = "$SUM" ] || die "the image changed"
printf x | dd of="$M/a.img" bs=1 seek=3000000 conv=notrunc,fsync status=none
wait_for 60 "the copy to be filled" mirrored host1 a.img
verify_equal host1 a.img
# A shared node that knows nothing is not believed: the host goes on alone, and its images stay.
stop shared1
expect "the shared node is set aside" tm shared1 state reset --force
start shared1
wait_for 60 "the host to refuse it" bash -c "tidemark --config '$D/host1.toml' status --json | grep -q 'emptied or replaced'"
printf y | dd of="$M/a.img" bs=1 seek=3000001 conv=notrunc status=none
cmp -n 2 -i 3000000:0 "$M/a.img" <(printf xy) || die "the host's image is not its own any more"
say "ok: a shared node that lost its state is not believed"
