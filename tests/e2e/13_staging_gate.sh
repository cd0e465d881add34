#!/usr/bin/env bash
# Staging is held while overwrite, punch, zero, truncate, rename-over and unlink each hit a closed batch: the point of
# that batch, staged and shipped afterwards, shows every image as it was at its cut.
source "$(dirname "$0")/lib.sh"
cluster_up host1
m="$D/mnt/host1"
kinds="overwrite punch zero truncate regrown replaced removed moved"
bytes=$((3 << 20))
random() { dd if=/dev/urandom of="$1" bs=1M count=3 status=none; }
batch_state() { tm host1 journal inspect --json | jq -r --arg n "$1" '.batches[] | select(.name == $n) | .state'; }
mkdir "$D/base" "$D/held" "$D/now"
for k in $kinds; do
  random "$D/base/$k"
  dd if="$D/base/$k" of="$m/$k.img" bs=1M conv=fsync status=none
done
mark host1 --name base > "$D/answer"
removed=$(uuid_of host1 removed.img) replaced=$(uuid_of host1 replaced.img)

tm host1 journal pause-shipping > "$D/log/pause"
for k in $kinds; do            # part of each image, so that the point is made of both batches
  random "$D/held/$k"
  dd if="$D/base/$k" of="$D/held/$k" bs=1M count=1 conv=notrunc status=none
  dd if="$D/held/$k" of="$m/$k.img" bs=64k seek=16 skip=16 conv=notrunc,fsync status=none
done
tm host1 mark --name held > "$D/answer"
if tm host1 mark --wait > "$D/answer" 2>&1; then die "a point became durable while shipping is paused"; fi
grep -q 'shipping is paused.*tidemark journal resume-shipping' "$D/answer" || die "mark --wait says: $(cat "$D/answer")"
closed() { [ "$(batch_state "$1")" = closed ]; }
wait_for 60 "a closed batch" closed held

cp "$D"/held/* "$D/now"
hit() { # each kind hits blocks of the closed batch; the same to a plain file
  local dir=$1 end=$2
  dd if="$D/new" of="$dir/overwrite$end" bs=4k seek=300 count=200 conv=notrunc,fsync status=none
  fallocate -p -o $((1300 << 10)) -l $((512 << 10)) "$dir/punch$end"
  fallocate -z -o $((1300 << 10)) -l $((512 << 10)) "$dir/zero$end"
  truncate -s $((1500 << 10)) "$dir/truncate$end"
  truncate -s $((1500 << 10)) "$dir/regrown$end"
  truncate -s $bytes "$dir/regrown$end"
  mv -f "$dir/moved$end" "$dir/replaced$end"
  rm "$dir/removed$end"
}
random "$D/new"
hit "$D/now" ""
hit "$m" .img
sync -f "$m"
closed held || die "the batch was not held: $(batch_state held)"
for k in overwrite punch zero truncate regrown replaced; do
  expect "the mount shows $k as it is now" cmp "$D/now/$k" "$m/$k.img"
done
tm host1 mark --name after > "$D/answer"
# A second blow, of blocks that both closed batches need.
dd if="$D/new" of="$m/overwrite.img" bs=1M count=3 conv=notrunc,fsync status=none
closed held || die "the batch was not held: $(batch_state held)"
wait_for 60 "a second closed batch" closed after
say "ok: both batches were closed and unstaged while they were hit"
tm host1 journal resume-shipping > "$D/log/resume"
mark host1 > "$D/point"

export_equal() { # POINT IMAGE FILE
  export_point host1 "$2" "$1" "$D/out"
  expect "point $1 shows $2 as it was" cmp "$D/out" "$3"
  rm "$D/out"
}
for k in $kinds; do export_equal base "$k.img" "$D/base/$k"; export_equal held "$k.img" "$D/held/$k"; done
for k in overwrite punch zero truncate regrown replaced; do export_equal after "$k.img" "$D/now/$k"; done
export_equal held "$removed" "$D/held/removed"
export_equal held "$replaced" "$D/held/replaced"
tm host1 replica images --at after --json | jq -er '.entries[] | select(.path != null) | .path' > "$D/tree"
for k in removed moved; do expect "point after has no $k.img" sh -c "! grep -qE '^/?$k.img\$' '$D/tree'"; done
export_equal "$(cat "$D/point")" overwrite.img "$D/new"
expect "nothing was given up" sh -c "! grep -qE 'given_up|gave_up' '$D/log/host1.log'"
verify_equal host1
no_error_lines
