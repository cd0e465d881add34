// FUSE operations on open images.
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/stat.h>

#include "fs/fuse_internal.h"
#include "shared/base/limits.h"

#ifndef FOPEN_PARALLEL_DIRECT_WRITES
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)
#endif

namespace tidemark::fs {
namespace {
constexpr unsigned kXfsIocDioinfo = 0x800c581e;   // u32 d_mem, d_miniosz, d_maxiosz
constexpr uint32_t kOpenFlags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;

HandleId handle_of(const fuse_file_info* fi) { return HandleId{fi->fh}; }

void fill_entry(fuse_req_t req, const wire::Attr& attr, fuse_entry_out& out) {
  struct stat st = stat_of(attr);
  out.nodeid = attr.inode.value;
  out.entry_valid = static_cast<uint64_t>(kAttrSeconds);
  out.attr_valid = static_cast<uint64_t>(FuseOps::attr_seconds(req, attr));
  out.attr.ino = st.st_ino;
  out.attr.size = static_cast<uint64_t>(st.st_size);
  out.attr.blocks = static_cast<uint64_t>(st.st_blocks);
  out.attr.atime = static_cast<uint64_t>(st.st_atim.tv_sec);
  out.attr.mtime = static_cast<uint64_t>(st.st_mtim.tv_sec);
  out.attr.ctime = static_cast<uint64_t>(st.st_ctim.tv_sec);
  out.attr.atimensec = static_cast<uint32_t>(st.st_atim.tv_nsec);
  out.attr.mtimensec = static_cast<uint32_t>(st.st_mtim.tv_nsec);
  out.attr.ctimensec = static_cast<uint32_t>(st.st_ctim.tv_nsec);
  out.attr.mode = st.st_mode;
  out.attr.nlink = static_cast<uint32_t>(st.st_nlink);
  out.attr.uid = st.st_uid;
  out.attr.gid = st.st_gid;
  out.attr.blksize = static_cast<uint32_t>(st.st_blksize);
}
}  // namespace

// libfuse 3.14 has no field for parallel direct writes, so the answer is written as the kernel's own structure.
void FuseOps::reply_open(fuse_req_t req, HandleId handle, const wire::Attr* created) {
  struct {
    fuse_entry_out entry;
    fuse_open_out open;
  } out;
  memset(&out, 0, sizeof out);
  out.open.fh = handle.value;
  out.open.open_flags = kOpenFlags;
  int sent;
  FuseShell& shell = shell_of(req);
  if (created != nullptr) {
    fill_entry(req, *created, out.entry);
    sent = fuse_reply_buf(req, reinterpret_cast<const char*>(&out), sizeof out);
  } else {
    sent = fuse_reply_buf(req, reinterpret_cast<const char*>(&out.open), sizeof out.open);
  }
  if (sent == -ENOENT) shell.engine_.release(handle);  // the open was interrupted: no release will come
}

void FuseOps::open(fuse_req_t req, fuse_ino_t ino, fuse_file_info*) {
  FuseShell& shell = shell_of(req);
  auto opened = [req, ino, &shell](Result<HandleId> handle) {
    // Removed since it was looked up, by another host: the kernel looks again, and opens what has the name now.
    const bool removed = handle.status().code() == Code::kNotFound;
    if (!handle) return reply_error(req, removed ? Status::from_errno(ESTALE, "open") : handle.status());
    if (!shell.engine_.may_be_cached(*handle)) shell.forget_attributes(InodeNumber(ino));   // of a lookup before
    reply_open(req, *handle, nullptr);
  };
  shell.engine_.open_image(InodeNumber(ino), opened, shell.request_);
}

void FuseOps::create(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, fuse_file_info* fi) {
  FuseShell& shell = shell_of(req);
  const fuse_ctx* who = fuse_req_ctx(req);
  wire::Create request;
  request.parent = InodeNumber(parent);
  request.name = name;
  request.mode = mode & 07777;
  request.uid = who->uid;
  request.gid = who->gid;
  bool exclusive = (fi->flags & O_EXCL) != 0;
  auto created = [&shell, req, exclusive, id = shell.request_](Result<wire::Attr> attr) {
    // Another host was faster. What is answered here the kernel takes for made by this open: it would look at no
    // rights, and truncate nothing. So it looks again, and opens what it finds.
    const Status again = Status::from_errno(ESTALE, "open");
    const bool there = !attr && attr.status().code() == Code::kAlreadyExists;
    if (!attr) return reply_error(req, there && !exclusive ? again : attr.status());
    auto opened = [req, again, attr = std::make_unique<wire::Attr>(*attr)](Result<HandleId> handle) {
      if (handle) return reply_open(req, *handle, attr.get());
      const bool replaced = handle.status().code() == Code::kNotFound;   // what was made, before it was opened
      reply_error(req, replaced ? again : handle.status());
    };
    shell.engine_.open_image(attr->inode, std::move(opened), id);
  };
  shell.engine_.create(std::move(request), std::move(created), shell.request_);
}

void FuseOps::release(fuse_req_t req, fuse_ino_t, fuse_file_info* fi) {
  shell_of(req).engine_.release(handle_of(fi), [req] { fuse_reply_err(req, 0); });
}

// A guest's process that is killed must not hang on a request that only waits.
uint64_t interruptible(fuse_req_t req) {
  FuseShell& shell = shell_of(req);
  uint64_t tag = shell.next_tag();
  fuse_req_interrupt_func(
      req, [](fuse_req_t r, void* data) { shell_of(r).interrupted(reinterpret_cast<uint64_t>(data)); },
      reinterpret_cast<void*>(tag));
  return tag;
}

void FuseOps::read(fuse_req_t req, fuse_ino_t, size_t size, off_t offset, fuse_file_info* fi) {
  FuseShell& shell = shell_of(req);
  size = std::min<size_t>(size, limits::kIoBytesMax);
  FuseShell::ReadBuffer* buffer = shell.take_read_buffer(size);
  MutableByteSpan out = buffer->memory.span().first(size);
  io::IoMode mode = shell.alone_ ? io::IoMode::kInline : io::IoMode::kQueued;
  auto done = [&shell, req, buffer](Result<size_t> n) {
    if (n) fuse_reply_buf(req, reinterpret_cast<const char*>(buffer->memory.data()), *n);
    else reply_error(req, n.status());
    shell.give_back(buffer);
  };
  shell.engine_.read(handle_of(fi), static_cast<uint64_t>(offset), out, mode, std::move(done), interruptible(req));
}

// What libfuse does not hand on of the request: its data follows the kernel's own structure.
static uint32_t write_flags(const char* data) {
  fuse_write_in in;
  memcpy(&in, data - sizeof in, sizeof in);
  return in.write_flags;
}

void FuseOps::write(fuse_req_t req, fuse_ino_t, const char* data, size_t size, off_t offset, fuse_file_info* fi) {
  FuseShell& shell = shell_of(req);
  FuseShell::Buffer* buffer = std::exchange(shell.current_, nullptr);  // kept until the answer
  constexpr io::IoMode mode = io::IoMode::kQueued;   // one's own disk and the other end are waited for together
  // Of a file opened with O_DSYNC: the kernel sends no FSYNC after a direct write, the flags of the write are all.
  bool durable = (fi->flags & O_DSYNC) != 0;
  auto done = [&shell, req, buffer, handle = durable ? handle_of(fi) : HandleId{}](Result<size_t> n) {
    shell.give_back(buffer);
    if (!n) return reply_error(req, n.status());
    if (handle.value == 0) {
      fuse_reply_write(req, *n);
      return;
    }
    shell.engine_.flush(handle, io::IoMode::kQueued, [req, written = *n](Status s) {
      if (s) fuse_reply_write(req, written);
      else reply_error(req, s);
    });
  };
  ByteSpan payload(reinterpret_cast<const uint8_t*>(data), size);
  HandleId handle = handle_of(fi);
  const bool at_end = (fi->flags & O_APPEND) != 0;
  if ((write_flags(data) & FUSE_WRITE_KILL_SUIDGID) == 0 || !shell.engine_.has_set_id(handle)) {
    shell.engine_.write(handle, static_cast<uint64_t>(offset), payload, mode, done, interruptible(req), at_end);
    return;
  }
  auto taken = [&shell, req, handle, offset, payload, at_end, done](Status s) mutable {
    if (!s) return done(s);
    shell.engine_.write(handle, static_cast<uint64_t>(offset), payload, mode, done, interruptible(req), at_end);
  };
  shell.engine_.take_set_id(handle, std::move(taken));
}

void FuseOps::fsync(fuse_req_t req, fuse_ino_t, int, fuse_file_info* fi) {
  FuseShell& shell = shell_of(req);
  io::IoMode mode = shell.alone_ ? io::IoMode::kInline : io::IoMode::kQueued;
  uint64_t tag = interruptible(req);
  shell.engine_.flush(handle_of(fi), mode, [req](Status s) { fuse_reply_err(req, s ? 0 : errno_of(s)); }, tag);
}

void FuseOps::fallocate(fuse_req_t req, fuse_ino_t, int mode, off_t offset, off_t length, fuse_file_info* fi) {
  Engine::Fallocate what;
  switch (mode) {
    case 0: what = Engine::Fallocate::kAllocate; break;
    case FALLOC_FL_KEEP_SIZE: what = Engine::Fallocate::kAllocateKeepSize; break;
    case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE: what = Engine::Fallocate::kPunch; break;
    case FALLOC_FL_ZERO_RANGE: what = Engine::Fallocate::kZero; break;
    case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE: what = Engine::Fallocate::kZeroKeepSize; break;
    default: fuse_reply_err(req, EOPNOTSUPP); return;
  }
  if (offset < 0 || length <= 0) {
    fuse_reply_err(req, EINVAL);
    return;
  }
  Extent extent{static_cast<uint64_t>(offset), static_cast<uint64_t>(length)};
  shell_of(req).engine_.fallocate(handle_of(fi), what, extent,
                                  [req](Status s) { fuse_reply_err(req, s ? 0 : errno_of(s)); }, interruptible(req));
}

void FuseOps::lseek(fuse_req_t req, fuse_ino_t, off_t offset, int whence, fuse_file_info* fi) {
  seek(req, offset, whence, fi, limits::kImageBytesMax);
}

void FuseOps::seek(fuse_req_t req, off_t offset, int whence, fuse_file_info* fi, uint64_t end) {
  if ((whence != SEEK_DATA && whence != SEEK_HOLE) || offset < 0) {
    fuse_reply_err(req, offset < 0 ? ENXIO : EINVAL);
    return;
  }
  shell_of(req).engine_.seek(handle_of(fi), static_cast<uint64_t>(offset), whence == SEEK_DATA,
                             [req, data = whence == SEEK_DATA, end](Result<uint64_t> at) {
                               if (at && data && *at >= end) at = Status::from_errno(ENXIO, "lseek");
                               if (at) fuse_reply_lseek(req, static_cast<off_t>(std::min(*at, end)));
                               else reply_error(req, at.status());
                             });
}

// QEMU asks for the alignment; without this answer it turns guest writes of 512 bytes into read-modify-write.
void FuseOps::ioctl(fuse_req_t req, fuse_ino_t, unsigned cmd, void*, fuse_file_info*, unsigned, const void*, size_t,
                    size_t out_size) {
  uint32_t dioinfo[3] = {512, 512, limits::kIoBytesMax};
  if (cmd == kXfsIocDioinfo && out_size >= sizeof dioinfo) {
    fuse_reply_ioctl(req, 0, dioinfo, sizeof dioinfo);
    return;
  }
  fuse_reply_err(req, ENOTTY);
}

void FuseOps::fill_io(fuse_lowlevel_ops& ops) {
  ops.create = create;
  ops.open = open;
  ops.release = release;
  ops.read = read;
  ops.write = write;
  ops.fsync = fsync;
  ops.fallocate = fallocate;
  ops.lseek = lseek;
  ops.ioctl = ioctl;
}

}  // namespace tidemark::fs
