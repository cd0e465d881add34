#!/usr/bin/env bash
# `.raw/` shows each fixed VHD as the disk alone: what is written there is in the VHD, whose footer nothing can reach.
source "$(dirname "$0")/lib.sh"
cluster_up host1
mnt="$D/mnt/host1"
refused() { # ERROR COMMAND...
  local error=$1 text; shift
  if text=$(LC_ALL=C "$@" 2>&1); then die "$* must be refused"; fi
  case $text in *"$error"*) ;; *) die "$*: '$error' was expected: $text" ;; esac
}
mkdir "$mnt/dir"
for image in disk.vhd dir/other.vhd; do
  qemu-img create -q -f vpc -o subformat=fixed,force_size=on "$mnt/$image" 8M
done
qemu-img create -q -f vpc -o subformat=dynamic,force_size=on "$mnt/dynamic.vhd" 8M
fallocate -l 1M "$mnt/no_vhd.vhd"
fallocate -l 1M "$mnt/plain.img"
tail -c 512 "$mnt/disk.vhd" > "$D/footer"

[ "$(ls -A "$mnt" | grep -c raw)" = 0 ] || die "the root's listing shows the view"
[ "$(ls "$mnt/.raw" | xargs)" = "dir disk.vhd dynamic.vhd no_vhd.vhd" ] || die "the view lists $(ls "$mnt/.raw" 2>&1 | xargs)"
[ "$(stat -c %s "$mnt/.raw/disk.vhd") $(stat -c %s "$mnt/.raw/dir/other.vhd")" = "8388608 8388608" ] || die "sizes"
for name in dynamic.vhd no_vhd.vhd plain.img dir/none.vhd; do refused "No such file" stat "$mnt/.raw/$name"; done
say "ok: fixed disks are there, in their folders, and nothing else"

view="$mnt/.raw/disk.vhd"
qemu-io -f raw -t none -i native -c "write -P 5 1M 64k" -c "write -P 6 8388096 512" -c flush "$view" > /dev/null
qemu-io -f vpc -c "read -P 5 1M 64k" -c "read -P 6 8388096 512" -c "write -P 7 2M 4k" -c flush "$mnt/disk.vhd" > "$D/io"
qemu-io -f raw -c "read -P 7 2M 4k" "$view" >> "$D/io"
grep -qi "failed" "$D/io" && die "$(cat "$D/io")"
head -c 8388608 /dev/urandom > "$D/raw"
qemu-img convert -n -f raw -O raw "$D/raw" "$view"
cmp "$D/raw" "$view"
qemu-img compare -q -f raw -F vpc "$view" "$mnt/disk.vhd" || die "the disk differs in its two views"
refused "No space left" dd if=/dev/zero of="$view" bs=4096 seek=2048 count=1 conv=notrunc
dd if=/dev/zero of="$view" bs=1024 seek=8191 count=2 conv=notrunc status=none 2> /dev/null && die "a write went past the end"
fallocate -p -o 4M -l 1M "$view"
refused "No space left" fallocate -l 8388609 "$view"
cmp <(tail -c 512 "$mnt/disk.vhd") "$D/footer" || die "the footer was changed"
python3 - "$view" <<'EOF'
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(fd).st_size
assert len(os.pread(fd, 4096, size - 512)) == 512 and os.pread(fd, 4096, size) == b"", "the end"
assert os.lseek(fd, 0, os.SEEK_HOLE) <= size
try: os.lseek(fd, size, os.SEEK_DATA); sys.exit("the footer is seen as data")
except OSError: pass
EOF
say "ok: both views are one disk, the footer is out of reach"

refused "Read-only" mkdir "$mnt/.raw/new"
refused "Read-only" touch "$mnt/.raw/new.vhd"
refused "Read-only" rm "$view"
refused "Read-only" mv "$view" "$mnt/moved.vhd"
refused "Read-only" mv "$mnt/dir" "$mnt/.raw/dir/moved"
refused "Read-only" rmdir "$mnt/.raw"
refused "File exists" mkdir "$mnt/.raw"
refused "not permitted" truncate -s 4M "$view"
truncate -s 8388608 "$view"
say "ok: names and sizes are changed at the image's own path"

# The daemon is killed and replaced while the view is open.
exec {fd}<> "$view" {folder}< "$mnt/.raw"
kill -9 "$(daemon_pid host1)"
wait_for 30 "a successor" grep -q taken_over "$D/log/host1.log"
printf after >&"$fd"
listed=$(python3 -c 'import os, sys; print(*sorted(os.listdir(int(sys.argv[1]))))' "$folder")
[ "$listed" = "dir disk.vhd dynamic.vhd no_vhd.vhd" ] || die "after the restart the view's open folder lists $listed"
exec {fd}>&- {folder}<&-
[ "$(head -c 5 "$view")" = after ] || die "written after the restart: $(head -c 5 "$view")"
wait_for 30 "both copies" mirrored host1 disk.vhd
verify_equal host1

# As VirtualBox makes it: the geometry is smaller than the disk. Both views and an export have all of it.
tm host1 image create made.vhd 30MiB > /dev/null
cp "$mnt/made.vhd" "$D/vbox.vhd"
python3 - "$D/vbox.vhd" <<'EOF'
import struct, sys
with open(sys.argv[1], "r+b") as f:
    f.seek(-512, 2)
    footer = bytearray(f.read())
    footer[28:32] = b"vbox"
    footer[64:68] = bytes(4)
    footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
    f.seek(-512, 2)
    f.write(footer)
    c, h, s = struct.unpack(">HBB", footer[56:60])
    assert c * h * s * 512 < 30 << 20, "the geometry is no smaller"
EOF
cp "$D/vbox.vhd" "$mnt/vbox.vhd"
qemu-io -f raw -t none -i native -c "write -P 9 31456768 512" -c flush "$mnt/.raw/vbox.vhd" > /dev/null
expect "exported" tm host1 image export vbox.vhd -o "$D/vbox.img"
expect "the export ends where the guest's disk does" cmp "$D/vbox.img" "$mnt/.raw/vbox.vhd"
expect_exit 2 "a resize to its geometry would cut it" tm host1 image resize vbox.vhd 31438848
tm host1 image import "$mnt/vbox.vhd" again.img > /dev/null
expect "nor does an import lose its end" cmp "$mnt/again.img" "$D/vbox.img"
truncate -s -1M "$D/vbox.vhd"
expect_exit 1 "a VHD that was cut off is not imported" tm host1 image import "$D/vbox.vhd" cut.img
[ ! -e "$mnt/cut.img" ] || die "it is there all the same"
expect_exit 1 "and says so itself" tm host1 image info "$D/vbox.vhd"
