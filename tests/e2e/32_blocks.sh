#!/usr/bin/env bash
# The number of blocks is never behind what was written: tar and others take a file without blocks for one without data.
source "$(dirname "$0")/lib.sh"
cluster_up host1
m=$D/mnt/host1
for i in $(seq 20); do
  truncate -s 4M "$m/$i.img"
  [ "$(stat -c %b "$m/$i.img")" = 0 ] || die "$i.img has blocks before anything was written"
  head -c 1M /dev/urandom | dd of="$m/$i.img" bs=1M conv=notrunc iflag=fullblock status=none
  blocks=$(stat -c %b "$m/$i.img")
  [ "$blocks" -ge 2048 ] || die "$i.img has $blocks blocks after 1 MiB was written"
done
say "ok: blocks are counted at once"
truncate -s 4M "$m/tar.img"
stat "$m/tar.img" > "$D/log/stat"
head -c 1M /dev/urandom > "$D/data"
dd if="$D/data" of="$m/tar.img" bs=1M conv=notrunc status=none
tar -C "$m" -Scf "$D/out.tar" tar.img
tar -C "$D" -xf "$D/out.tar"
cmp "$D/tar.img" "$m/tar.img" || die "tar lost what was just written"
say "ok: tar keeps what was just written"
