#!/usr/bin/env bash
# Runs alone: it finds its ports by itself.
# The README's first command, and what a user then does: a real ext4 image is converted into a mount, used
# through a loop device, marked, exported off-site at two moments and compared.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
Q=$(mktemp -d "${TMPDIR:-/tmp}/tidemark-e2e-qs.XXXXXX")
loop=
finish() {
  local code=$?
  trap - EXIT
  mountpoint -q "$Q/loop" && umount "$Q/loop"
  [ -z "$loop" ] || losetup -d "$loop"
  [ $code = 0 ] || tail -n 30 "$Q"/cluster/log/* >&2
  "$root/examples/quickstart" down --purge --dir "$Q/cluster" || code=1
  rm -rf "$Q"
  exit $code
}
trap finish EXIT
die() { echo "FAILED: $*" >&2; exit 1; }

# Another user's directory, or link, of that name is neither run from nor written to, whatever it looks like.
install -d -o nobody "$Q/foreign"
touch "$Q/foreign/.tidemark-quickstart" "$Q/foreign/env"
echo kept > "$Q/kept"; ln -s "$Q/kept" "$Q/foreign/lock"
mkdir "$Q/mine"; touch "$Q/mine/.tidemark-quickstart" "$Q/mine/env"; ln -s "$Q/mine" "$Q/link"; chown -h nobody "$Q/link"
for dir in foreign link; do
  for command in up status down "down --purge"; do
    # shellcheck disable=SC2086
    if "$root/examples/quickstart" $command --dir "$Q/$dir" > "$Q/said" 2>&1; then die "$command in $dir: $(cat "$Q/said")"; fi
    grep -q "is no directory of yours" "$Q/said" || die "$command in $dir: $(cat "$Q/said")"
  done
done
[ "$(cat "$Q/kept")" = kept ] && [ -e "$Q/foreign/env" ] && [ -e "$Q/mine/env" ] || die "something of it was changed"

TIDEMARK_SKIP_PACKAGES=1 "$root/examples/quickstart" up --dir "$Q/cluster"
"$root/examples/quickstart" up --dir "$Q/cluster"          # run twice, it is not harmed
"$root/examples/quickstart" status --dir "$Q/cluster"
source "$Q/cluster/env"
for name in TIDEMARK_MOUNT_1 TIDEMARK_MOUNT_2 TIDEMARK_CONFIG_1 TIDEMARK_CONFIG_2 TIDEMARK_CONFIG_SHARED TIDEMARK_CONFIG_REPLICA \
  TIDEMARK_REPLICA_URL TIDEMARK_CERT_DIR TIDEMARK_BIN; do
  [ -n "${!name:-}" ] || die "$name is not in env"
done
PATH=$TIDEMARK_BIN:$PATH
export TIDEMARK_CONFIG=$TIDEMARK_CONFIG_1

truncate -s 64M "$Q/source.img"
mkfs.ext4 -q -F -E root_owner=0:0 "$Q/source.img"
qemu-img convert -f raw -O raw -t none "$Q/source.img" "$TIDEMARK_MOUNT_1/disk.img"
before=$(tidemark mark --wait --json | jq -er .point)
cp "$TIDEMARK_MOUNT_1/disk.img" "$Q/before"
moment=$(date -u +%Y-%m-%dT%H:%M:%S.%3NZ)

loop=$(losetup -f --show --direct-io=on "$TIDEMARK_MOUNT_1/disk.img")
mkdir "$Q/loop"; mount "$loop" "$Q/loop"
head -c 20M /dev/urandom > "$Q/loop/data"; sync -f "$Q/loop/data"
sum=$(sha256sum < "$Q/loop/data")
umount "$Q/loop"; losetup -d "$loop"; loop=
after=$(tidemark mark --wait --json | jq -er .point)

tidemark replica export disk.img --at "$after" -o "$Q/after"
cmp "$Q/after" "$TIDEMARK_MOUNT_1/disk.img" || die "the newest point is not the image"
tidemark replica export disk.img --at "$before" -o "$Q/then"
cmp "$Q/then" "$Q/before" || die "the earlier point is not the earlier image"
e2fsck -fn "$Q/after" || die "the exported file system is not clean"
mount -o ro,loop "$Q/after" "$Q/loop"
[ "$(sha256sum < "$Q/loop/data")" = "$sum" ] || die "the exported file differs"
umount "$Q/loop"
tidemark verify || die "verify"
tidemark status
tidemark replica points disk.img
cmp "$TIDEMARK_MOUNT_2/disk.img" "$Q/after" || die "host 2 reads something else"
curl -sS --fail --cacert "$TIDEMARK_CERT_DIR/ca.pem" --cert "$TIDEMARK_CERT_DIR/operator.pem" --key "$TIDEMARK_CERT_DIR/operator.key" \
  -r 1024-2047 "$TIDEMARK_REPLICA_URL/v1/points/$after/images/$(tidemark image info disk.img --json | jq -er .uuid)/data" |
  cmp - <(dd if="$Q/after" bs=1024 skip=1 count=1 status=none) || die "Range"
tidemark image remove disk.img
[ ! -e "$TIDEMARK_MOUNT_1/disk.img" ] || die "not removed"
gone=$(tidemark mark --wait --json | jq -er .point)
tidemark replica restore disk.img --at "$before" --as back.img
cmp "$TIDEMARK_MOUNT_1/back.img" "$Q/before" || die "restore differs"
tidemark replica restore disk.img --at "$moment" --as then.img 2> "$Q/said" || die "by time: $(cat "$Q/said")"
cmp "$TIDEMARK_MOUNT_1/then.img" "$Q/before" || die "restore by time differs"
! grep "older version" "$Q/said" || die "the replica does not know of images by time"
over=$(tidemark replica restore disk.img --at "$before" --as back.img --dry-run)   # by now another image has that name
case $over in *"the image of that name now is another one"*) ;; *) die "what is replaced is not named: $over" ;; esac
tidemark replica images --at "$gone" | grep -q disk.img && die "the removed image is in the tree"
odd=$'caf\xef\xbf\xbd.img'   # what stands for bytes that are no UTF-8 may be a name, too
cp "$Q/before" "$TIDEMARK_MOUNT_1/$odd"; sync "$TIDEMARK_MOUNT_1/$odd"
named=$(tidemark mark --wait --json | jq -er .point)
tidemark image remove "$odd"
tidemark replica restore "$odd" --at "$named"
cmp "$TIDEMARK_MOUNT_1/$odd" "$Q/before" || die "an image named U+FFFD is restored otherwise"
removed=$(tidemark replica images --at "$gone" --json | jq -er '[.entries[] | select(.path == null) | .uuid][0]')
tidemark replica restore "$removed" --at "$gone" --as again.img
cmp "$TIDEMARK_MOUNT_1/again.img" "$Q/after" || die "the removed image is restored otherwise"
[ "$(stat -c %a "$TIDEMARK_MOUNT_1/again.img")" = 600 ] || die "its owner cannot open it: $(stat -c %a "$TIDEMARK_MOUNT_1/again.img")"
chmod 640 "$TIDEMARK_MOUNT_1/again.img"
tidemark replica restore "$removed" --at "$gone" --as again.img --force
[ "$(stat -c %a "$TIDEMARK_MOUNT_1/again.img")" = 640 ] || die "the mode of what was replaced is lost"
echo "ok: quickstart"
