// The raw view: under `.raw/` in the root, which no listing shows, each fixed VHD `DIR/NAME.vhd` is a file
// `DIR/NAME.vhd` of the disk alone, without its footer: a guest may see and write all of it. A file that is no fixed
// VHD is not there.
//
// Nothing is kept for it: a node of the view has the number of what it shows and one bit more, so handles, successors
// of a killed daemon and other hosts know nothing of it. Names and attributes are changed at the image's own path: here
// EROFS.
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>

#include "fs/fuse_internal.h"
#include "shared/base/limits.h"
#include "shared/image/vhd.h"

namespace tidemark::fs {
namespace {
using image::vhd::kFooterBytes;

constexpr std::chrono::seconds kFooterWait{5};   // as long as reads wait for a holder that is away
constexpr std::string_view kDirectory = ".raw", kSuffix = ".vhd";

bool is_view(fuse_ino_t node) { return (node & kViewBit) != 0; }
bool names_view(fuse_ino_t parent, std::string_view name) { return parent == FUSE_ROOT_ID && name == kDirectory; }
void refuse(fuse_req_t req) { fuse_reply_err(req, EROFS); }

// An image of which the footer was seen, or a directory, as the view shows it.
wire::Attr seen(wire::Attr attr) {
  attr.inode.value |= kViewBit;
  if (attr.kind == wire::NodeKind::kDirectory) attr.mode &= ~0222u;
  else attr.size -= std::min<uint64_t>(attr.size, kFooterBytes);
  return attr;
}

}  // namespace

bool view_shows(std::string_view name, wire::NodeKind kind) {
  return kind == wire::NodeKind::kDirectory || (kind == wire::NodeKind::kImage && name.ends_with(kSuffix));
}

// The same operations on nodes of the view. Nodes come without their bit.
struct RawOps {
  // Bytes of the disk that a request at `offset` may reach.
  static uint64_t room(fuse_req_t req, const fuse_file_info* fi, off_t offset) {
    const uint64_t image = shell_of(req).engine_.size_of(HandleId{fi->fh});
    const uint64_t disk = image - std::min<uint64_t>(image, kFooterBytes);
    return disk - std::min(disk, static_cast<uint64_t>(offset));
  }
  static void lookup_root(fuse_req_t req) {
    shell_of(req).engine_.getattr(InodeNumber(FUSE_ROOT_ID), [req](Result<wire::Attr> attr) {
      if (!attr) return reply_error(req, attr.status());
      reply(req, *attr);
    });
  }
  static void lookup(fuse_req_t req, fuse_ino_t parent, const char* name) {
    shell_of(req).engine_.lookup(InodeNumber(parent), name, [req, name = std::string(name)](Result<wire::Attr> attr) {
      if (!attr) return reply_error(req, attr.status());
      if (attr->kind == wire::NodeKind::kDirectory) return reply(req, *attr);
      if (!view_shows(name, attr->kind)) return reply_error(req, Status::from_errno(ENOENT, "lookup"));
      check_footer(req, *attr);
    });
  }
  static void reply(fuse_req_t req, const wire::Attr& attr) {
    const fuse_entry_param entry = entry_of(req, seen(attr));
    fuse_reply_entry(req, &entry);
  }
  // The image's last sector must be the footer of a fixed disk that ends right before it.
  static void check_footer(fuse_req_t req, const wire::Attr& attr) {
    FuseShell& shell = shell_of(req);
    if (attr.size < 2 * kFooterBytes) return reply_error(req, Status::from_errno(ENOENT, "no VHD"));
    FuseShell::ReadBuffer* buffer = shell.take_read_buffer(kFooterBytes);
    MutableByteSpan out = buffer->memory.span().first(kFooterBytes);
    // A lookup that waits for long holds up others in its directory.
    const uint64_t tag = interruptible(req);
    auto looked = [&shell, req, attr, buffer](Result<size_t> n) {
      bool fixed = false;
      if (n && *n == kFooterBytes) {
        // Not where it was to be read: of a read that hangs the shell keeps that memory, and the answer is in other.
        auto footer = image::vhd::decode_footer(buffer->memory.span().first(kFooterBytes));
        fixed = footer && footer->type == image::vhd::DiskType::kFixed &&
                image::vhd::disk_bytes(*footer) + kFooterBytes == attr.size;
      }
      shell.give_back(buffer);
      if (!n) return reply_error(req, n.status().sys_errno() == EINTR ? Status::from_errno(EIO, "lookup") : n.status());
      if (!fixed) return reply_error(req, Status::from_errno(ENOENT, "no fixed VHD"));
      reply(req, attr);
    };
    shell.engine_.peek(attr.inode, attr.size - kFooterBytes, out, kFooterWait, std::move(looked), tag);
  }
  static AttrDone reply_attr(fuse_req_t req) {
    return [req](Result<wire::Attr> attr) {
      if (!attr) return reply_error(req, attr.status());
      struct stat st = stat_of(seen(*attr));
      fuse_reply_attr(req, &st, FuseOps::attr_seconds(req, *attr));
    };
  }
  static void getattr(fuse_req_t req, fuse_ino_t node, fuse_file_info*) {
    shell_of(req).engine_.getattr(InodeNumber(node), reply_attr(req));
  }
  // A disk cannot be cut short or made longer without its footer: only the size that it has can be set.
  static void setattr(fuse_req_t req, fuse_ino_t node, struct stat* st, int to_set, fuse_file_info*) {
    constexpr int kTimes = FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW | FUSE_SET_ATTR_CTIME;
    if ((to_set & ~kTimes) != FUSE_SET_ATTR_SIZE) return refuse(req);
    shell_of(req).engine_.getattr(InodeNumber(node), [req, size = st->st_size](Result<wire::Attr> attr) {
      const bool same = attr && static_cast<off_t>(seen(*attr).size) == size;
      if (attr && !same) return reply_error(req, Status::from_errno(EPERM, "resize"));
      reply_attr(req)(std::move(attr));
    });
  }
  static void opendir(fuse_req_t req, fuse_ino_t node, fuse_file_info* fi) {
    FuseOps::open_directory(req, node, fi, true);
  }
  // A handle of a run before is not known any more.
  static void readdir(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset, fuse_file_info* fi) {
    shell_of(req).directories_[fi->fh].view = true;
    FuseOps::readdir(req, node, size, offset, fi);
  }
  static void readdirplus(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset, fuse_file_info* fi) {
    shell_of(req).directories_[fi->fh].view = true;
    FuseOps::readdirplus(req, node, size, offset, fi);
  }
  static void read(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset, fuse_file_info* fi) {
    const uint64_t left = room(req, fi, offset);
    if (left == 0) {
      fuse_reply_buf(req, nullptr, 0);
      return;
    }
    FuseOps::read(req, node, std::min<uint64_t>(size, left), offset, fi);
  }
  // As a block device: up to its end, and ENOSPC there.
  static void write(fuse_req_t req, fuse_ino_t node, const char* data, size_t size, off_t offset, fuse_file_info* fi) {
    const uint64_t left = room(req, fi, offset);
    if (left == 0 && size != 0) {
      fuse_reply_err(req, ENOSPC);
      return;
    }
    fi->flags &= ~O_APPEND;   // never at the image's end, which is behind the footer
    FuseOps::write(req, node, data, std::min<uint64_t>(size, left), offset, fi);
  }
  static void fallocate(fuse_req_t req, fuse_ino_t node, int mode, off_t offset, off_t length, fuse_file_info* fi) {
    if (offset < 0 || length <= 0) {
      fuse_reply_err(req, EINVAL);
      return;
    }
    if (static_cast<uint64_t>(length) > room(req, fi, offset)) {
      fuse_reply_err(req, ENOSPC);
      return;
    }
    FuseOps::fallocate(req, node, mode, offset, length, fi);
  }
  static void lseek(fuse_req_t req, fuse_ino_t, off_t offset, int whence, fuse_file_info* fi) {
    const uint64_t left = offset < 0 ? 0 : room(req, fi, offset);
    if (left == 0) fuse_reply_err(req, ENXIO);
    else FuseOps::seek(req, offset, whence, fi, static_cast<uint64_t>(offset) + left);
  }
  static void mknod(fuse_req_t req, fuse_ino_t, const char*, mode_t, dev_t) { refuse(req); }
  static void mkdir(fuse_req_t req, fuse_ino_t, const char*, mode_t) { refuse(req); }
  static void create(fuse_req_t req, fuse_ino_t, const char*, mode_t, fuse_file_info*) { refuse(req); }
  static void unlink(fuse_req_t req, fuse_ino_t, const char*) { refuse(req); }
  static void rmdir(fuse_req_t req, fuse_ino_t, const char*) { refuse(req); }
  static void setxattr(fuse_req_t req, fuse_ino_t, const char*, const char*, size_t, int) { refuse(req); }
  static void removexattr(fuse_req_t req, fuse_ino_t, const char*) { refuse(req); }
};

namespace {

template <auto plain, auto raw> struct ByNode;
template <class... Rest, void (*plain)(fuse_req_t, fuse_ino_t, Rest...), void (*raw)(fuse_req_t, fuse_ino_t, Rest...)>
struct ByNode<plain, raw> {
  static void call(fuse_req_t req, fuse_ino_t node, Rest... rest) {
    (is_view(node) ? raw : plain)(req, node & ~kViewBit, rest...);
  }
};

// The view's own name in the root stands for its root, and for nothing else.
void lookup(fuse_req_t req, fuse_ino_t parent, const char* name) {
  if (names_view(parent, name)) return RawOps::lookup_root(req);
  ByNode<FuseOps::lookup, RawOps::lookup>::call(req, parent, name);
}
void rmdir(fuse_req_t req, fuse_ino_t parent, const char* name) {
  if (names_view(parent, name)) return refuse(req);
  ByNode<FuseOps::rmdir, RawOps::rmdir>::call(req, parent, name);
}
void rename(fuse_req_t req, fuse_ino_t parent, const char* name, fuse_ino_t new_parent, const char* new_name,
            unsigned flags) {
  const bool ours = is_view(parent) || is_view(new_parent) || names_view(parent, name) ||
                    names_view(new_parent, new_name);
  if (ours) return refuse(req);
  FuseOps::rename(req, parent, name, new_parent, new_name, flags);
}
void link(fuse_req_t req, fuse_ino_t node, fuse_ino_t parent, const char* name) {
  if (is_view(node) || is_view(parent)) return refuse(req);
  FuseOps::link(req, node, parent, name);
}
void symlink(fuse_req_t req, const char* target, fuse_ino_t parent, const char* name) {
  if (is_view(parent)) return refuse(req);
  FuseOps::symlink(req, target, parent, name);
}
// What is the same for an image and its view.
template <auto plain> using Both = ByNode<plain, plain>;

}  // namespace

void FuseOps::fill_view(fuse_lowlevel_ops& ops) {
  ops.lookup = fs::lookup;
  ops.rmdir = fs::rmdir;
  ops.rename = fs::rename;
  ops.link = fs::link;
  ops.symlink = fs::symlink;
  ops.getattr = ByNode<getattr, RawOps::getattr>::call;
  ops.setattr = ByNode<setattr, RawOps::setattr>::call;
  ops.mknod = ByNode<mknod, RawOps::mknod>::call;
  ops.mkdir = ByNode<mkdir, RawOps::mkdir>::call;
  ops.unlink = ByNode<unlink, RawOps::unlink>::call;
  ops.opendir = ByNode<opendir, RawOps::opendir>::call;
  ops.readdir = ByNode<readdir, RawOps::readdir>::call;
  ops.readdirplus = ByNode<readdirplus, RawOps::readdirplus>::call;
  ops.releasedir = Both<releasedir>::call;
  ops.fsyncdir = Both<fsyncdir>::call;
  ops.statfs = Both<statfs>::call;
  ops.setxattr = ByNode<setxattr, RawOps::setxattr>::call;
  ops.getxattr = Both<getxattr>::call;
  ops.listxattr = Both<listxattr>::call;
  ops.removexattr = ByNode<removexattr, RawOps::removexattr>::call;
  ops.create = ByNode<create, RawOps::create>::call;
  ops.open = Both<open>::call;
  ops.release = Both<release>::call;
  ops.read = ByNode<read, RawOps::read>::call;
  ops.write = ByNode<write, RawOps::write>::call;
  ops.fsync = Both<fsync>::call;
  ops.fallocate = ByNode<fallocate, RawOps::fallocate>::call;
  ops.lseek = ByNode<lseek, RawOps::lseek>::call;
  ops.ioctl = Both<ioctl>::call;
}

}  // namespace tidemark::fs
