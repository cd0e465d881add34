#!/usr/bin/env bash
# An image that the replica shows with another size or under another name is a difference, as other bytes are.
source "$(dirname "$0")/lib.sh"
cluster_up host1
image="$D/mnt/host1/vm.img"
dd if=/dev/urandom of="$image" bs=64k count=4 conv=fsync status=none
touch "$D/mnt/host1/empty.img"
mark host1 > "$D/point"
verify_equal host1
cluster=$(tm host1 journal inspect --json | jq -er .cluster)
issue host9 host
forge() { # NAME NEW-NAME GENERATION: host9 tells the replica of it what is not so
  local uuid
  uuid=$(tm host1 image list --json | jq -er --arg p "$1" '.. | objects | select(.path? == $p or .path? == "/" + $p) | .uuid')
  "$T/make_segment" "$cluster" host9 "$3" "$uuid" "$D/segment" "$(stat -c %i "$D/mnt/host1/$1")" "$1" "$2"
  curl -sS --fail --max-time 60 --cacert "$D/pki/ca.pem" --cert "$D/certs/host9.pem" --key "$D/certs/host9.key" \
    -o "$D/answer" -X PUT --data-binary "@$D/segment" -H "x-tidemark-digest: $(sha256sum "$D/segment" | cut -d' ' -f1)" \
    "https://127.0.0.1:$REPLICA_PORT/v1/batches/host9/$3/1/0"
}
forge vm.img forged.img 00000000-0000-4000-8000-000000000009
verify_json() { verify host1 --json > "$D/verify"; }
expect_exit 4 "verify, size and name forged" verify_json
jq -e '.equal == false and ([.images[] | select(.path | endswith("empty.img")) | .equal] == [true]) and
  (.images[] | select(.path | endswith("vm.img")) | .equal == false and
    any(.differences[]; .copy == "replica" and .what == "size" and .here == 262144 and .there == 1048576) and
    any(.differences[]; .copy == "replica" and .what == "path" and (.there | endswith("forged.img"))))' "$D/verify" \
  > "$D/log/jq" || die "verify does not name size and path: $(cat "$D/verify")"
verify host1 vm.img > "$D/text" || [ $? = 4 ] || die "verify vm.img: $(cat "$D/text")"
grep -q "vm.img: copy of replica has another size: 1048576, not 262144" "$D/text" || die "the text lacks it: $(cat "$D/text")"
say "ok: $(grep -m 1 'another size' "$D/text")"
