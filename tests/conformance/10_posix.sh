#!/usr/bin/env bash
# The rules of POSIX on a mounted image directory, mirrored to a shared node; and the same rules on ext4 beside it, so
# that a rule that no file system keeps is noticed as a mistake of the test. Afterwards both copies are equal.
# In memory: several thousand changes of names, each durable before it is answered.
[ -n "${TMPDIR:-}" ] || export TMPDIR=/dev/shm
source "$(dirname "$0")/../e2e/lib.sh"
cluster_up host1
mkdir "$D/mnt/host1/rules"
"$T/posix_test" "$D/mnt/host1/rules" --gtest_brief=1 || die "the mount breaks rules: see above"
say "ok: the mount keeps the rules"
[ -z "$(ls -A "$D/mnt/host1/rules")" ] || die "left behind: $(ls "$D/mnt/host1/rules")"

truncate -s 256M "$D/medium"
mkfs.ext4 -q -m0 -b 4096 "$D/medium"
mkdir "$D/native"
mount -o loop "$D/medium" "$D/native"
AT_END+=("mountpoint -q '$D/native' && umount '$D/native'")
expect "ext4 keeps them too" "$T/posix_test" "$D/native" --native --gtest_brief=1
verify_equal host1
no_error_lines
