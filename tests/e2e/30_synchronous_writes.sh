#!/usr/bin/env bash
# A write to a file opened with O_DSYNC is flushed on both copies before it is answered: the kernel sends no fsync for it.
source "$(dirname "$0")/lib.sh"
cluster_up host1
image="$D/mnt/host1/vm.img"
fallocate -l 1M "$image"
before=$(metric host1 tidemark_fs_flushes_total)
python3 - "$image" <<'PYTHON'
import mmap, os, sys
page = mmap.mmap(-1, 4096)
page.write(b"\x5a" * 4096)
for flags in (os.O_DSYNC, os.O_SYNC, os.O_DSYNC | os.O_DIRECT):
    fd = os.open(sys.argv[1], os.O_RDWR | flags)
    for i in range(20):
        assert os.pwrite(fd, page, i * 4096) == 4096
    os.close(fd)
PYTHON
after=$(metric host1 tidemark_fs_flushes_total)
expect "60 synchronous writes were flushed 60 times (from $before to $after)" \
  python3 -c "import sys; sys.exit(0 if float('$after') - float('$before') >= 60 else 1)"
cmp <(head -c $((20 * 4096)) "$image") <(head -c $((20 * 4096)) /dev/zero | tr '\0' 'Z') || die "other bytes than written"
verify_equal host1
no_error_lines
