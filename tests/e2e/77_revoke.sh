#!/usr/bin/env bash
# A node whose certificate is revoked: what it has open at the shared node and the replica ends, it is let in nowhere, the
# others go on; with a new certificate it is back, and its image level.
source "$(dirname "$0")/lib.sh"
cluster_up host1 host2
for host in host1 host2; do
  truncate -s 8M "$D/mnt/$host/$host.img"
  dd if=/dev/urandom of="$D/mnt/$host/$host.img" bs=1M count=4 oflag=direct conv=notrunc,fsync status=none
done
connected() { tm "$1" status --json | jq -e '.shared.connected' > /dev/null; }
away() { ! connected "$1"; }
expect "a dry run names the certificate" tidemark pki revoke "$D/certs/host1.pem" --dir "$D/pki" --dry-run
[ ! -e "$D/pki/revoked.pem" ] || die "a dry run wrote the list"
tidemark pki revoke "$D/certs/host1.pem" --dir "$D/pki" > "$D/log/revoke" || die "revoke: $(cat "$D/log/revoke")"
wait_for 20 "host1's session to end" away host1
refused() { grep -q "host1 was revoked" "$D/log/$1.log"; }
wait_for 20 "the shared node to refuse host1" refused shared1
! grep -q "host2 was revoked" "$D"/log/*.log || die "host2 was taken for a revoked one"
wait_for 20 "host2 to be connected still" connected host2
dd if=/dev/urandom of="$D/mnt/host2/host2.img" bs=1M count=4 oflag=direct conv=notrunc,fsync status=none
wait_for 30 "host2 to mirror" mirrored host2 host2.img
mark host2 --name after > "$D/log/mark"
code=0; client host1 "https://127.0.0.1:$REPLICA_PORT/v1/points" > "$D/log/curl" 2>&1 || code=$?
[ $code != 0 ] || die "the replica answers host1"
say "ok: the replica refuses host1"

# A new certificate, and all is well.
rm "$D/certs/host1.pem" "$D/certs/host1.key"
issue host1 host
wait_for 30 "host1 to be back" connected host1
wait_for 60 "host1's image to be level" mirrored host1 host1.img
verify_equal host1 host1.img
