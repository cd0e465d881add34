#!/usr/bin/env bash
# Two names exchanged (renameat2): both are right on the other host and, at the points before and after, at the replica.
source "$(dirname "$0")/lib.sh"
cluster_up host1 host2
mnt="$D/mnt/host1"
mkdir "$mnt/dir"
head -c 1M < /dev/zero | tr '\0' 'A' > "$mnt/one.img"
head -c 2M < /dev/zero | tr '\0' 'B' > "$mnt/dir/two.img"
one=$(uuid_of host1 one.img) two=$(uuid_of host1 dir/two.img)
before=$(mark host1)
python3 - "$mnt/one.img" "$mnt/dir/two.img" <<'PYTHON'
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, RENAME_EXCHANGE = -100, 2
if libc.renameat2(AT_FDCWD, sys.argv[1].encode(), AT_FDCWD, sys.argv[2].encode(), RENAME_EXCHANGE) != 0:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
PYTHON
after=$(mark host1)
[ "$(stat -c %s "$mnt/one.img")" = 2097152 ] && [ "$(stat -c %s "$mnt/dir/two.img")" = 1048576 ] || die "names on host1"
seen() { [ "$(head -c 1 "$D/mnt/host2/one.img")" = B ] && [ "$(head -c 1 "$D/mnt/host2/dir/two.img")" = A ]; }
wait_for 30 "host2 to see the exchange" seen
tree() { tm host1 replica images --at "$1" --json | jq -er '.entries[] | select(.path != null) | "\(.path) \(.uuid)"' | sort; }
tree "$before" > "$D/tree.before"
tree "$after" > "$D/tree.after"
grep -q "one.img $one\$" "$D/tree.before" && grep -q "dir/two.img $two\$" "$D/tree.before" || die "before: $(cat "$D/tree.before")"
grep -q "one.img $two\$" "$D/tree.after" && grep -q "dir/two.img $one\$" "$D/tree.after" || die "after: $(cat "$D/tree.after")"
say "ok: the replica shows both names at both points"
export_point host1 one.img "$after" "$D/out"
cmp "$D/out" "$mnt/one.img" || die "one.img after the exchange"
export_point host1 one.img "$before" "$D/out.before"
[ "$(head -c 1 "$D/out.before")" = A ] || die "one.img before the exchange"
verify_equal host1
no_error_lines
