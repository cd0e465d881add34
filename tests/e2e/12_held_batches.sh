#!/usr/bin/env bash
# A batch for an image without create or open mark in its source's own stream is refused (422). With the mark, but
# before the image's creation came from elsewhere, it is accepted durably and held; `replica status` says what for.
source "$(dirname "$0")/lib.sh"
configure host1 host2
url="https://127.0.0.1:$REPLICA_PORT"
# The shared node reaches the replica through a gate that is opened later.
free_port; gate=$FREE_PORT
sed -i "s#^url = .*#url = \"https://127.0.0.1:$gate\"#" "$D/shared1.toml"
for node in shared1 replica1 host1 host2; do start "$node"; done
say "cluster is up in $D"

# Host 2 names the image and ships nothing; host 1 writes it.
tm host2 journal pause-shipping > "$D/log/pause"
touch "$D/mnt/host2/new.img"
dd if=/dev/urandom of="$D/mnt/host1/new.img" bs=1M count=4 conv=notrunc,fsync status=none
uuid=$(uuid_of host1 new.img)
tm host1 mark --name written --wait --json > "$D/marked"
jq -e '.durable == true and .point == null' "$D/marked" > "$D/log/jq" || die "not held: $(cat "$D/marked")"
held() { tm host1 replica status --json | jq -er '[.sources[] | select(.source == "host1") | .held[]] | length'; }
waits_for_create() {
  tm host1 replica status --json | jq -e --arg w "create of image $uuid" \
    '[.sources[] | select(.source == "host1") | .held[].waits_for[]] | index($w) != null'
}
wait_for 60 "the batch to be held" waits_for_create
tm host1 replica status > "$D/status"
grep -q "host1 .*create of image $uuid" "$D/status" || die "replica status does not show it: $(cat "$D/status")"
say "ok: $(grep '^host1' "$D/status")"
! tm host1 replica export "$uuid" --at latest -o "$D/none" 2> "$D/answer" || die "what is held was exported"
say "ok: nothing of it is shown: $(cat "$D/answer")"
count=$(held)
kill9 replica1
start replica1
# What the image's close changed may have followed it by now.
expect "it is held after a restart too" test "$(held)" -ge "$count"
waits_for_create > "$D/log/jq" || die "it no longer says what it waits for"

# Data of an image that this source never created or opened.
cluster=$(tm host1 journal inspect --json | jq -er .cluster)
issue host9 host
generation=00000000-0000-4000-8000-000000000009
"$T/make_segment" "$cluster" host9 $generation 00000000-0000-4000-8000-00000000abcd "$D/segment"
code=$(client host9 -o "$D/answer" -w '%{http_code}' -X PUT --data-binary "@$D/segment" \
  -H "x-tidemark-digest: $(sha256sum "$D/segment" | cut -d' ' -f1)" "$url/v1/batches/host9/$generation/1/0")
[ "$code" = 422 ] || die "a batch without a mark: $code $(cat "$D/answer")"
grep -q "no create or open mark in the stream of host9" "$D/answer" || die "the reason is another: $(cat "$D/answer")"
say "ok: 422: $(cat "$D/answer")"
expect "nothing of it was kept" sh -c "! find '$D/replica1' -path '*host9*' | grep -q ."
client host9 "$url/v1/sources/host9/$generation" > "$D/answer"
jq -e '.expected == 1 and .parts == []' "$D/answer" > "$D/log/jq" || die "another batch is expected: $(cat "$D/answer")"
wait_for 30 "the refusal in the log" grep -q 'no create or open mark' "$D/log/replica1.log"

# The create arrives in the stream of the host that made it: applied first, so that the point finds the name.
tm host2 journal resume-shipping > "$D/log/resume"
none_held() { [ "$(held)" = 0 ]; }
wait_for 60 "what was held to be applied" none_held
# What is held no more may still be on its way into the history.
wait_for 60 "the point to be shown" tm host1 replica export new.img --at written -o "$D/shown"
export_point host1 new.img written "$D/out"
expect "the point shows what was written, under its name" cmp "$D/out" "$D/mnt/host1/new.img"

# The shared node's record of the same comes last: merged, and nothing contradicts.
coproc GATE { exec "$T/delay_proxy" "$gate" "$REPLICA_PORT" 0; }
opened=$GATE_PID
AT_END+=("kill -TERM $opened")
shared_applied() {
  tm host1 replica status --json |
    jq -e 'any(.sources[]; .source == "shared1" and .applied >= 1 and (.held | length) == 0)'
}
wait_for 60 "the shared node's stream" shared_applied
tm host1 replica status --json > "$D/status"
expect "one image, one name, no alarm but that of the refusal" sh -c \
  "tidemark --config '$D/host1.toml' replica images --json | jq -e '[.entries[].path] == [\"new.img\"]' > '$D/log/jq' &&
   jq -e 'all(.alarms[]; .subject | startswith(\"host9\"))' '$D/status' > '$D/log/jq'"
verify_equal host1 new.img
no_error_lines
