#!/usr/bin/env bash
# fio with verification on both mounts at once, on different images, O_DIRECT at depth 32: both copies
# and the replica are equal afterwards.
source "$(dirname "$0")/lib.sh"
cluster_up host1 host2
job() { # HOST
  fio --name="$1" --filename="$D/mnt/$1/$1.img" --size=64M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=32 \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0 --loops=2 --output="$D/log/fio.$1"
}
job host1 & one=$!
job host2 & two=$!
wait $one || die "fio on host1: $(tail -n 20 "$D/log/fio.host1")"
wait $two || die "fio on host2: $(tail -n 20 "$D/log/fio.host2")"
say "ok: fio verified on both mounts"
# Unaligned to any block, and buffered. (fio cannot verify mixed sizes over one range: a native file fails too.)
fio --name=mix --filename="$D/mnt/host1/mix.img" --size=63M --rw=randwrite --bs=7k --ioengine=psync \
  --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0 --output="$D/log/fio.mix" || die "fio mix: $(tail -n 20 "$D/log/fio.mix")"
say "ok: unaligned, buffered"
for host in host1 host2; do
  point=$(mark $host)
  export_point $host $host.img "$point" "$D/out.$host"
  expect "the newest point of $host is the image" cmp "$D/out.$host" "$D/mnt/$host/$host.img"
done
for host in host1 host2; do verify_equal $host; done
no_error_lines
