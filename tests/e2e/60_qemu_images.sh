#!/usr/bin/env bash
# QEMU's own tools on images in the mount: raw and VHD, every cache mode with every way of asynchronous I/O, zeroes,
# discard, 512-byte sectors, create, convert, compare, resize, map.
source "$(dirname "$0")/lib.sh"
cluster_up host1
mnt="$D/mnt/host1"
quiet() { "$@" > "$D/log/qemu" 2>&1 || { cat "$D/log/qemu" >&2; return 1; }; }
io() { # FORMAT CACHE AIO IMAGE COMMAND...: qemu-io says "Pattern verification failed" and still exits 0 in some versions
  local format=$1 cache=$2 aio=$3 image=$4 args=() c; shift 4
  for c in "$@"; do args+=(-c "$c"); done
  quiet qemu-io -f "$format" -t "$cache" -i "$aio" "${args[@]}" "$image" && ! grep -qiE 'failed|error' "$D/log/qemu" ||
    die "qemu-io $format $cache $aio: $* : $(cat "$D/log/qemu")"
}

make() { # FORMAT IMAGE
  if [ "$1" = vpc ]; then quiet qemu-img create -f vpc -o subformat=fixed,force_size=on "$2" 64M
  else quiet qemu-img create -f "$1" "$2" 64M; fi
}
number=1
for format in raw vpc; do
  image="$mnt/disk.$format"
  make $format "$image" || die "create $format"
  for mode in none:threads none:native none:io_uring writeback:threads writeback:io_uring \
              directsync:threads directsync:native directsync:io_uring; do
    cache=${mode%:*} aio=${mode#*:} at=$((number * 1048576))
    quiet qemu-img bench -w -f $format -t $cache -i $aio -c 200 -d 16 -s 4096 -o $((48 << 20)) "$image" || die "bench $format $mode"
    io $format $cache $aio "$image" "write -P $number $at 131072" "write -P 99 $((at + 131072)) 65536" \
      "write -z $((at + 4096)) 8192" "write -z -u $((at + 65536)) 4096" "discard $((at + 131072)) 65536" flush
    io $format writeback threads "$image" "read -P $number $at 4096" "read -P 0 $((at + 4096)) 8192" \
      "read -P $number $((at + 12288)) 53248" "read -P 0 $((at + 65536)) 4096" "read -P $number $((at + 69632)) 61440"
    # What was discarded reads as zeros where the format hands it on, else as before: never as something else.
    [ $format = vpc ] || io $format none native "$image" "read -P 0 $((at + 131072)) 65536"
    number=$((number + 1))
  done
done
say "ok: raw and VHD under $number cache and I/O modes"

# A guest's sector of 512 bytes goes through as it is: what is beside it is neither read nor written.
image="$mnt/sectors.raw"
quiet qemu-img create -f raw "$image" 16M
io raw none native "$image" "write -P 1 0 65536"
reads() { metric host1 tidemark_fs_reads_total; }
before=$(reads)
io raw none native "$image" "write -P 2 512 512" "write -P 3 8704 1536" flush
io raw none io_uring "$image" "write -P 4 16896 512"
probes=$(reads)
quiet qemu-io -f raw -t none -i native -c flush "$image"
opening=$(($(reads) - probes))                     # what opening an image reads by itself
[ $((probes - before)) -le $((2 * opening)) ] || die "sectors are read before they are written: $((probes - before)) reads"
io raw writeback threads "$image" "read -P 1 0 512" "read -P 2 512 512" "read -P 1 1024 7680" "read -P 3 8704 1536" \
  "read -P 1 10240 6656" "read -P 4 16896 512" "read -P 1 17408 48128"
say "ok: sectors of 512 bytes without reading around them"

# Holes are seen, converted and compared.
sparse="$mnt/sparse.raw"
quiet qemu-img create -f raw "$sparse" 1G
io raw none native "$sparse" "write -P 7 0 1M" "write -P 8 512M 2M" "write -P 9 1023M 1M" "discard 512M 1M" flush
data=$(qemu-img map --output=json -f raw "$sparse" | jq '[.[] | select(.data) | .length] | add')
[ "$data" = $((3 << 20)) ] || die "map shows $data bytes of data: $(qemu-img map --output=json "$sparse")"
[ "$(du -B1 "$sparse" | cut -f1)" -le $((4 << 20)) ] || die "the holes take room: $(du -B1 "$sparse")"
for target in "raw $mnt/copy.raw" "vpc $mnt/copy.vhd" "qcow2 $mnt/copy.qcow2"; do
  read -r format file <<< "$target"
  options=(); [ "$format" != vpc ] || options=(-o "subformat=dynamic,force_size=on")
  quiet qemu-img convert -f raw -O "$format" "${options[@]}" -t none -T none "$sparse" "$file" || die "convert to $format"
  expect "$format copy is the same" quiet qemu-img compare -f raw -F "$format" "$sparse" "$file"
done
io raw none threads "$mnt/copy.raw" "write -P 1 700M 512"
expect_exit 1 "another copy is another" qemu-img compare -q -f raw -F raw "$sparse" "$mnt/copy.raw"

quiet qemu-img resize -f raw "$sparse" 1536M
[ "$(stat -c %s "$sparse")" = $((1536 << 20)) ] || die "grown to $(stat -c %s "$sparse")"
io raw none native "$sparse" "read -P 9 1023M 1M" "read -P 0 1024M 16M" "write -P 5 1500M 1M"
quiet qemu-img resize -f raw --shrink "$sparse" 1G
io raw none native "$sparse" "read -P 9 1023M 1M"
quiet qemu-img resize -f raw --preallocation=falloc "$sparse" 1040M
io raw none native "$sparse" "read -P 0 1024M 16M"
quiet qemu-img resize -f vpc "$mnt/copy.vhd" 1G || true      # what QEMU can do with a VHD is its own matter
say "ok: resized"
verify_equal host1
no_error_lines
