#!/usr/bin/env bash
# ext4 and xfs on loop devices over images in the mount: made, used hard, discarded from, unmounted, clean; and what was
# discarded is given back on both copies.
source "$(dirname "$0")/lib.sh"
cluster_up host1
mnt="$D/mnt/host1"
allocated() { du -sB1 --total "$D/$1"/brick* | tail -n 1 | cut -f1; }    # NODE
use() { # DIRECTORY: small files, links, renames, big files with holes, direct I/O, removal
  local d=$1 i
  mkdir "$d/tree" "$d/away"
  for i in $(seq 300); do echo "contents of $i" > "$d/tree/f$i"; done
  for i in $(seq 1 3 300); do ln "$d/tree/f$i" "$d/tree/l$i"; mv "$d/tree/f$i" "$d/away/"; done
  fio --name=rw --directory="$d" --rw=randrw --bs=4k-64k --size=24M --ioengine=libaio --iodepth=8 --direct=1 \
    --verify=crc32c --fsync=32 --verify_fatal=1 --output="$D/log/fio" > /dev/null 2>&1 || die "fio: $(cat "$D/log/fio")"
  dd if=/dev/urandom of="$d/big" bs=1M count=48 conv=fsync status=none
  sha256sum "$d/big" "$d"/tree/* "$d"/away/* > "$D/sums"
}
loop=""
AT_END+=('[ -z "$loop" ] || losetup -d "$loop"')
AT_END+=("mountpoint -q '$D/fs' && umount '$D/fs'")
mkdir "$D/fs"
for kind in ext4 xfs; do
  image="$mnt/$kind.raw"
  truncate -s 384M "$image"
  direct=off; [ $kind = ext4 ] || direct=on
  loop=$(losetup --find --show --direct-io=$direct "$image")
  case $kind in ext4) mkfs.ext4 -q "$loop" ;; xfs) mkfs.xfs -q "$loop" ;; esac > "$D/log/mkfs" 2>&1 || die "mkfs: $(cat "$D/log/mkfs")"
  mount "$loop" "$D/fs"
  use "$D/fs"
  umount "$D/fs"
  mount "$loop" "$D/fs"
  expect "$kind has what was written" sha256sum --quiet -c "$D/sums"
  sync -f "$D/fs"
  host=$(allocated host1) shared=$(allocated shared1)
  rm "$D/fs/big" "$D"/fs/rw*
  umount "$D/fs"                                  # xfs frees removed files' blocks late, at the latest now
  mount "$loop" "$D/fs"
  fstrim "$D/fs"
  umount "$D/fs"
  case $kind in ext4) e2fsck -fn "$loop" ;; xfs) xfs_repair -n "$loop" ;; esac > "$D/log/fsck" 2>&1 || die "not clean: $(cat "$D/log/fsck")"
  losetup -d "$loop"
  loop=""
  given_back() { [ $(($2 - $(allocated "$1"))) -ge $((60 << 20)) ]; }    # NODE BYTES-BEFORE
  wait_for 60 "$kind's discard on the host's copy" given_back host1 "$host"
  wait_for 60 "$kind's discard on the shared copy" given_back shared1 "$shared"
  say "ok: $kind (host $((host >> 20)) to $(($(allocated host1) >> 20)) MiB, shared $((shared >> 20)) to $(($(allocated shared1) >> 20)) MiB)"
done
verify_equal host1
no_error_lines
