#!/usr/bin/env bash
# What comes from outside and is wrong is refused with a reason in the log, changes nothing, and the
# daemon goes on: garbage, oversized frames, truncated and conflicting batches, wrong certificates.
source "$(dirname "$0")/lib.sh"
cluster_up host1
image="$D/mnt/host1/vm.img"
truncate -s 16M "$image"
dd if=/dev/urandom of="$image" bs=1M count=4 conv=notrunc,fsync status=none
cp "$image" "$D/before"
point=$(mark host1)
logged() { grep -qiE "$2" "$D/log/$1.log"; }
client() { # CERTIFICATE-NAME curl-arguments...
  local name=$1; shift
  curl -sS --max-time 60 --cacert "${CA:-$D/pki/ca.pem}" --cert "$D/certs/$name.pem" --key "$D/certs/$name.key" "$@"
}
url="https://127.0.0.1:$REPLICA_PORT"
tls_client() { # CERTIFICATE-NAME PORT openssl-options...: sends standard input
  local name=$1 port=$2; shift 2
  timeout 30 openssl s_client -connect "127.0.0.1:$port" -CAfile "$D/pki/ca.pem" -cert "$D/certs/$name.pem" -key "$D/certs/$name.key" -quiet "$@"
}

for port in "$SHARED_PORT" "$REPLICA_PORT"; do
  head -c 100000 /dev/urandom > "$D/garbage"
  timeout 10 curl -s --max-time 5 "telnet://127.0.0.1:$port" < "$D/garbage" > "$D/answer" || [ $? -gt 0 ]
  printf 'GET / HTTP/1.1\r\n\r\n' | timeout 10 curl -s --max-time 5 "telnet://127.0.0.1:$port" > "$D/answer" || [ $? -gt 0 ]
done
wait_for 30 "shared1 to log the garbage" logged shared1 'tls|handshake|refused'
wait_for 30 "replica1 to log the garbage" logged replica1 'tls|handshake|refused'

# Frames over a good certificate: garbage, then a header that announces 4 GiB.
tls_client host1 "$SHARED_PORT" < "$D/garbage" > "$D/answer" 2>&1 || [ $? -gt 0 ]
wait_for 30 "bad magic in the log" logged shared1 'magic|frame'
{ printf 'TMF1\x0a\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00'; printf '\xff\xff\xff\xff\xff\xff\xff\xff'; head -c 16 /dev/zero; } > "$D/huge"
tls_client host1 "$SHARED_PORT" < "$D/huge" > "$D/answer" 2>&1 || [ $? -gt 0 ]
wait_for 30 "the huge frame in the log" logged shared1 'length|large|bound|exceed'

# Certificates: none, another cluster's, wrong role, expired, TLS 1.2.
expect_fails() { local what=$1; shift; ! "$@" > "$D/answer" 2>&1 || die "$what was accepted"; say "ok: $what refused: $(tail -n 1 "$D/answer" | cut -c1-100)"; }
expect_fails "no certificate" curl -sS --max-time 10 --cacert "$D/pki/ca.pem" "$url/v1/status"
tidemark pki init --dir "$D/pki2" > "$D/log/pki2" 2>&1
tidemark pki issue host1 --role host --dir "$D/pki2" --out "$D/certs2" --san 127.0.0.1 >> "$D/log/pki2" 2>&1
expect_fails "another authority" curl -sS --max-time 10 --cacert "$D/pki/ca.pem" --cert "$D/certs2/host1.pem" --key "$D/certs2/host1.key" "$url/v1/status"
issue wit1 witness
expect_fails "a wrong role" client wit1 --fail "$url/v1/status"
issue host9 host
expect_fails "another host's name as source" client host9 --fail -X PUT --data-binary x "$url/v1/batches/host1/00000000-0000-4000-8000-000000000000/1/0"
tidemark pki issue old1 --role host --dir "$D/pki" --out "$D/certs" --not-before 2020-01-01T00:00:00Z --not-after 2020-02-01T00:00:00Z >> "$D/log/pki2" 2>&1
expect_fails "an expired certificate" client old1 --fail "$url/v1/status"
expect_fails "TLS 1.2" client host1 --tls-max 1.2 --fail "$url/v1/status"
expect_fails "TLS 1.2 at the shared node" sh -c "openssl s_client -brief -tls1_2 -connect 127.0.0.1:$SHARED_PORT -CAfile '$D/pki/ca.pem' -cert '$D/certs/host1.pem' -key '$D/certs/host1.key' < /dev/null"
wait_for 30 "the reasons in the replica's log" logged replica1 'expired'

# Batches: kept from a host's spool while the replica is away, then changed.
stop replica1
dd if=/dev/urandom of="$image" bs=64k count=8 seek=3 conv=notrunc,fsync status=none
tm host1 mark --name offline > "$D/answer"
staged() { tm host1 journal inspect --json | jq -e 'any(.batches[]; .name == "offline" and .state == "staged")'; }
wait_for 60 "a staged batch" staged              # its file is whole then, and those before it
mkdir "$D/kept"; cp "$(find "$D/host1/state" -path '*spool*' -type f | sort | head -n 1)" "$D/kept/segment"
kill9 host1
start replica1
generation=$(client operator "$url/v1/status" | jq -er '.sources[] | select(.source == "host1") | .generation')
expected=$(client host1 "$url/v1/sources/host1/$generation" | jq -er .expected)
status_of() { client host1 -o "$D/answer" -w '%{http_code}' -X PUT --data-binary "@$1" -H "x-tidemark-digest: $(sha256sum "$1" | cut -d' ' -f1)" "$url/v1/batches/host1/$generation/$2/0"; }
head -c $(($(stat -c %s "$D/kept/segment") / 2)) "$D/kept/segment" > "$D/kept/half"
[ "$(status_of "$D/kept/half" "$expected")" = 422 ] || die "a truncated batch: $(cat "$D/answer")"
say "ok: truncated batch: $(cat "$D/answer")"
[ "$(status_of "$D/kept/segment" $((expected + 7)))" = 422 ] || [ "$(status_of "$D/kept/segment" $((expected + 7)))" = 409 ] || die "a wrong number: $(cat "$D/answer")"
code=$(status_of "$D/kept/segment" "$expected")
[ "$code" = 200 ] || die "the good batch: $code $(cat "$D/answer")"
code=$(status_of "$D/kept/segment" "$expected")
[ "$code" = 200 ] || die "the same batch again: $code $(cat "$D/answer")"
cp "$D/kept/segment" "$D/kept/other"
at=$(($(stat -c %s "$D/kept/other") - 9))
byte=$(od -An -tu1 -j "$at" -N 1 "$D/kept/other")
printf "\\x$(printf %02x $((byte ^ 0x5a)))" | dd of="$D/kept/other" bs=1 seek="$at" conv=notrunc status=none
code=$(status_of "$D/kept/other" "$expected")
[ "$code" = 409 ] || [ "$code" = 422 ] || die "the same number with other bytes: $code $(cat "$D/answer")"
[ "$code" != 409 ] || jq -e '.have != .got and (.have | length) == 64' "$D/answer" > "$D/log/jq" || die "409 does not name both digests: $(cat "$D/answer")"
say "ok: same number, other bytes: $code $(cat "$D/answer")"
expect "the alarm shows" sh -c "curl -sS --unix-socket '$D/run/replica1/control.sock' http://localhost/v1/status | jq -e '.alarms | length > 0'"

# Nothing changed, and everything goes on.
start host1
wait_for 60 "mirrored again" mirrored host1 vm.img
export_point host1 vm.img "$point" "$D/out"
expect "the earlier point is as it was" cmp "$D/out" "$D/before"
verify_equal host1
