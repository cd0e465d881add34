// FUSE operations on names and attributes.
#include <errno.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>

#include <algorithm>

#include "fs/fuse_internal.h"
#include "shared/base/limits.h"
#include "shared/wire/device.h"

namespace tidemark::fs {
namespace {
constexpr std::string_view kUuidName = "user.tidemark.uuid";
constexpr std::string_view kMirrorName = "user.tidemark.mirror";
constexpr size_t kPageEntries = 512;

timespec timespec_of(WallTime t) {
  int64_t s = t.ns / 1'000'000'000, n = t.ns % 1'000'000'000;
  if (n < 0) { n += 1'000'000'000; --s; }
  return {static_cast<time_t>(s), static_cast<long>(n)};
}
// Kept in 64 bits of nanoseconds: from 1677 to 2262. What lies beyond becomes the nearest that can be kept.
WallTime wall_of(const timespec& t) {
  constexpr int64_t kSecond = 1'000'000'000, kSecondsMax = INT64_MAX / kSecond - 1;
  return {std::clamp<int64_t>(t.tv_sec, -kSecondsMax, kSecondsMax) * kSecond + t.tv_nsec};
}

struct TypeOfKind {
  wire::NodeKind kind;
  mode_t type;
};
constexpr TypeOfKind kTypes[] = {
    {wire::NodeKind::kImage, S_IFREG},     {wire::NodeKind::kDirectory, S_IFDIR},
    {wire::NodeKind::kSymlink, S_IFLNK},   {wire::NodeKind::kFifo, S_IFIFO},
    {wire::NodeKind::kSocket, S_IFSOCK},   {wire::NodeKind::kCharDevice, S_IFCHR},
    {wire::NodeKind::kBlockDevice, S_IFBLK}};
mode_t type_of(wire::NodeKind kind) {
  for (const TypeOfKind& t : kTypes)
    if (t.kind == kind) return t.type;
  return S_IFREG;
}
std::optional<wire::NodeKind> kind_of(mode_t mode) {
  for (const TypeOfKind& t : kTypes)
    if (t.type == (mode & S_IFMT)) return t.kind;
  return std::nullopt;
}

AttrDone reply_entry(fuse_req_t req) {
  return [req](Result<wire::Attr> attr) {
    if (!attr) return reply_error(req, attr.status());
    fuse_entry_param entry = entry_of(req, *attr);
    fuse_reply_entry(req, &entry);
  };
}
AttrDone reply_attr(fuse_req_t req) {
  return [req](Result<wire::Attr> attr) {
    if (!attr) return reply_error(req, attr.status());
    struct stat st = stat_of(*attr);
    fuse_reply_attr(req, &st, FuseOps::attr_seconds(req, *attr));
  };
}
Done reply_status(fuse_req_t req) {
  return [req](Status s) { fuse_reply_err(req, s ? 0 : errno_of(s)); };
}
// 0, or why an attribute of that name is not taken. Rights that would be kept but never acted on (capabilities, lists
// of rights, labels) are refused: nobody shall take them for set.
int refused_xattr(std::string_view name) {
  for (std::string_view known : {"user.", "trusted."})
    if (name.substr(0, known.size()) == known) return name.size() == known.size() ? EINVAL : 0;
  return EOPNOTSUPP;
}
bool name_too_long(fuse_req_t req, const char* name) {
  if (strlen(name) <= limits::kNameBytesMax) return false;
  fuse_reply_err(req, ENAMETOOLONG);
  return true;
}
void reply_bytes(fuse_req_t req, std::string_view value, size_t size) {
  if (size == 0) fuse_reply_xattr(req, value.size());
  else if (size < value.size()) fuse_reply_err(req, ERANGE);
  else fuse_reply_buf(req, value.data(), value.size());
}
}  // namespace

struct stat stat_of(const wire::Attr& a) {
  struct stat st;
  memset(&st, 0, sizeof st);
  st.st_ino = a.inode.value;
  st.st_mode = type_of(a.kind) | (a.mode & 07777);
  if (auto device = wire::is_device(a.kind) ? wire::parse_device(a.target) : std::nullopt)
    st.st_rdev = makedev(device->major_number, device->minor_number);
  st.st_nlink = a.nlink;
  st.st_uid = a.uid;
  st.st_gid = a.gid;
  st.st_size = static_cast<off_t>(a.kind == wire::NodeKind::kSymlink ? a.target.size() : a.size);
  st.st_blocks = static_cast<blkcnt_t>((a.allocated + 511) / 512);
  st.st_blksize = 4096;
  st.st_atim = timespec_of(a.atime);
  st.st_mtim = timespec_of(a.mtime);
  st.st_ctim = timespec_of(a.ctime);
  return st;
}

fuse_entry_param entry_of(fuse_req_t req, const wire::Attr& attr) {
  fuse_entry_param entry{};
  entry.ino = attr.inode.value;
  entry.attr = stat_of(attr);
  entry.attr_timeout = FuseOps::attr_seconds(req, attr);
  entry.entry_timeout = kAttrSeconds;
  return entry;
}

void FuseOps::init(void* userdata, fuse_conn_info* conn) {
  auto& shell = *static_cast<FuseShell*>(userdata);
  conn->max_write = limits::kIoBytesMax;
  // As long as a mount lasts, whatever its successors are configured with: the kernel is not told anew.
  const bool agreed = shell.agreed_background_ != 0;
  conn->max_background = agreed ? shell.agreed_background_ : shell.options_.max_background;
  conn->congestion_threshold = conn->max_background;
  // No writeback cache: the kernel would acknowledge before the mirror does, and own the size. O_TRUNC comes as a
  // SETATTR before the open is answered; set-id bits are taken by the kernel, but for writes (FuseOps::write).
  unsigned refused = FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE |
                     FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_HANDLE_KILLPRIV;
  conn->want &= ~refused;
  conn->want |= conn->capable & (FUSE_CAP_ASYNC_DIO | FUSE_CAP_ASYNC_READ | FUSE_CAP_PARALLEL_DIROPS |
                                 FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO);
}

void FuseOps::lookup(fuse_req_t req, fuse_ino_t parent, const char* name) {
  if (name_too_long(req, name)) return;
  shell_of(req).engine_.lookup(InodeNumber(parent), name, reply_entry(req));
}

// Node ids are inode numbers, good for ever: there is nothing to forget.
void FuseOps::forget(fuse_req_t req, fuse_ino_t, uint64_t) { fuse_reply_none(req); }
void FuseOps::forget_multi(fuse_req_t req, size_t, fuse_forget_data*) { fuse_reply_none(req); }

void FuseOps::getattr(fuse_req_t req, fuse_ino_t ino, fuse_file_info*) {
  shell_of(req).engine_.getattr(InodeNumber(ino), reply_attr(req));
}

void FuseOps::setattr(fuse_req_t req, fuse_ino_t ino, struct stat* st, int to_set, fuse_file_info* fi) {
  FuseShell& shell = shell_of(req);
  SetAttr change;
  WallTime now = shell.env_.wall();
  if (to_set & FUSE_SET_ATTR_MODE) { change.mask |= wire::kSetMode; change.values.mode = st->st_mode & 07777; }
  if (to_set & FUSE_SET_ATTR_UID) { change.mask |= wire::kSetUid; change.values.uid = st->st_uid; }
  if (to_set & FUSE_SET_ATTR_GID) { change.mask |= wire::kSetGid; change.values.gid = st->st_gid; }
  if (to_set & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_ATIME_NOW)) {
    change.mask |= wire::kSetAtime;
    change.values.atime = (to_set & FUSE_SET_ATTR_ATIME_NOW) ? now : wall_of(st->st_atim);
  }
  if (to_set & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW)) {
    change.mask |= wire::kSetMtime;
    change.values.mtime = (to_set & FUSE_SET_ATTR_MTIME_NOW) ? now : wall_of(st->st_mtim);
  }
  bool size_only = (to_set & FUSE_SET_ATTR_SIZE) != 0 && change.mask == 0;
  // Nothing to set at all is a chown that leaves both: it moves ctime all the same.
  if (!size_only) { change.mask |= wire::kSetCtime; change.values.ctime = now; }
  if (to_set & FUSE_SET_ATTR_SIZE) {
    if (st->st_size < 0 || static_cast<uint64_t>(st->st_size) > limits::kImageBytesMax) {
      fuse_reply_err(req, EFBIG);
      return;
    }
    change.set_size = true;
    change.touch = true;   // the times move even where the size stays, as ftruncate and O_TRUNC must and ext4 does
    change.size = static_cast<uint64_t>(st->st_size);
    if (fi != nullptr) change.handle = HandleId{fi->fh};   // ftruncate(), or the undoing of a write that failed
    change.tag = interruptible(req);
  }
  shell.engine_.setattr(InodeNumber(ino), std::move(change), reply_attr(req));
}

void FuseOps::readlink(fuse_req_t req, fuse_ino_t ino) {
  shell_of(req).engine_.getattr(InodeNumber(ino), [req](Result<wire::Attr> attr) {
    if (!attr) return reply_error(req, attr.status());
    if (attr->kind != wire::NodeKind::kSymlink) return reply_error(req, Status::from_errno(EINVAL, "readlink"));
    fuse_reply_readlink(req, attr->target.c_str());
  });
}

// ---- what changes names ---------------------------------------------------------------------------

void FuseOps::make(fuse_req_t req, wire::Create request) {
  const fuse_ctx* who = fuse_req_ctx(req);
  request.uid = who->uid;
  request.gid = who->gid;
  FuseShell& shell = shell_of(req);
  shell.engine_.create(std::move(request), reply_entry(req), shell.request_);
}

// The kernel has seen to it that only root makes devices. What is done with a FIFO or a socket it does itself, and it
// opens no device here (`nodev`, fuse_session.cc).
void FuseOps::mknod(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, dev_t device) {
  const auto kind = kind_of(mode);
  if (!kind || S_ISDIR(mode) || S_ISLNK(mode)) {
    fuse_reply_err(req, EPERM);
    return;
  }
  if (name_too_long(req, name)) return;
  wire::Create request{InodeNumber(parent), name, *kind, mode & 07777};
  if (wire::is_device(*kind)) request.target = wire::device_text({major(device), minor(device)});
  make(req, std::move(request));
}

void FuseOps::mkdir(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode) {
  if (name_too_long(req, name)) return;
  make(req, {InodeNumber(parent), name, wire::NodeKind::kDirectory, mode & 07777});
}

void FuseOps::symlink(fuse_req_t req, const char* target, fuse_ino_t parent, const char* name) {
  if (name_too_long(req, name)) return;
  wire::Create request{InodeNumber(parent), name, wire::NodeKind::kSymlink, 0777};
  request.target = target;
  make(req, std::move(request));
}

// An image has one name: links would make two names of one disk.
void FuseOps::link(fuse_req_t req, fuse_ino_t, fuse_ino_t, const char*) { fuse_reply_err(req, EPERM); }

void FuseOps::unlink(fuse_req_t req, fuse_ino_t parent, const char* name) {
  FuseShell& shell = shell_of(req);
  shell.engine_.unlink(InodeNumber(parent), name, false, reply_status(req), shell.request_);
}
void FuseOps::rmdir(fuse_req_t req, fuse_ino_t parent, const char* name) {
  FuseShell& shell = shell_of(req);
  shell.engine_.unlink(InodeNumber(parent), name, true, reply_status(req), shell.request_);
}
void FuseOps::rename(fuse_req_t req, fuse_ino_t parent, const char* name, fuse_ino_t new_parent, const char* new_name,
                     unsigned flags) {
  if (name_too_long(req, new_name)) return;
  if ((flags & ~3u) != 0) {
    fuse_reply_err(req, EINVAL);
    return;
  }
  FuseShell& shell = shell_of(req);
  shell.engine_.rename({InodeNumber(parent), name, InodeNumber(new_parent), new_name, flags}, reply_status(req),
                       shell.request_);
}

// ---- directories --------------------------------------------------------------------------------

void FuseOps::opendir(fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi) { open_directory(req, ino, fi, false); }

void FuseOps::open_directory(fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi, bool view) {
  FuseShell& shell = shell_of(req);
  fi->fh = ++shell.last_directory_;
  fi->cache_readdir = 0;
  FuseShell::Directory& dir = shell.directories_[fi->fh];
  dir.inode = InodeNumber(ino);
  dir.view = view;
  if (fuse_reply_open(req, fi) == -ENOENT) shell.directories_.erase(shell.last_directory_);
}

void FuseOps::releasedir(fuse_req_t req, fuse_ino_t, fuse_file_info* fi) {
  shell_of(req).directories_.erase(fi->fh);
  fuse_reply_err(req, 0);
}

// The shared node has every change durable before it answers.
void FuseOps::fsyncdir(fuse_req_t req, fuse_ino_t, int, fuse_file_info*) { fuse_reply_err(req, 0); }

void FuseOps::readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info* fi) {
  list(req, ino, fi->fh, size, static_cast<uint64_t>(offset), false);
}
void FuseOps::readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info* fi) {
  list(req, ino, fi->fh, size, static_cast<uint64_t>(offset), true);
}

// Offsets: 0 and 1 are `.` and `..`, then the entries in name order. A listing from 0 is taken anew. A handle of a run
// before is listed anew up to the offset: what came or went meanwhile may show twice or not at all.
//
// With READDIRPLUS each entry is a lookup, which the kernel takes for as new as its request: what an earlier one had
// fetched would turn a size, a mode or a name back that the kernel has been told of since, and an append would land on
// what was written before. So what was not shown yet is fetched anew, and what was is a name alone.
void FuseOps::list(fuse_req_t req, fuse_ino_t ino, uint64_t handle, size_t size, uint64_t offset, bool plus) {
  FuseShell& shell = shell_of(req);
  FuseShell::Directory& dir = shell.directories_[handle];
  dir.inode = InodeNumber(ino);
  if (offset == 0) {
    dir.entries.clear();
    dir.listed_to.clear();
    dir.complete = false;
    dir.shown = 0;
  }
  const bool looks_up = plus && !dir.view;
  if (looks_up && offset == dir.shown + 2 && dir.shown < dir.entries.size()) {
    dir.entries.resize(dir.shown);
    dir.listed_to = dir.shown == 0 ? "" : dir.entries.back().name;
    dir.complete = false;
  }
  if (dir.complete || offset < dir.entries.size() + 2) {
    dir.fresh = dir.entries.size();
    if (offset >= 2 || dir.complete) return send_entries(req, dir, size, offset, plus);
  }
  auto listed = [req, ino, &shell, handle, size, offset, plus](Result<wire::DirEntries> page) {
    if (!page) return reply_error(req, page.status());
    FuseShell::Directory& d = shell.directories_[handle];
    d.fresh = d.entries.size();
    d.complete = page->end != 0 || page->entries.empty();
    if (!page->entries.empty()) d.listed_to = page->entries.back().name;
    for (wire::DirEntry& e : page->entries)
      if (!d.view || view_shows(e.name, e.attr.kind)) d.entries.push_back(std::move(e));
    if (!d.complete && offset >= d.entries.size() + 2) return list(req, ino, handle, size, offset, plus);
    send_entries(req, d, size, offset, plus);
  };
  // No more than the answer holds, if the rest is fetched anew.
  const bool next = offset <= dir.entries.size() + 2;
  const size_t most = looks_up && next ? size / FUSE_NAME_OFFSET_DIRENTPLUS + 1 : kPageEntries;
  shell.engine_.readdir(dir.inode, dir.listed_to, static_cast<uint32_t>(std::min(most, kPageEntries)),
                        std::move(listed));
}

void FuseOps::send_entries(fuse_req_t req, FuseShell::Directory& dir, size_t size, uint64_t offset, bool plus) {
  std::string out(size, '\0');
  size_t used = 0;
  auto add = [&](const char* name, const fuse_entry_param& entry, uint64_t next) {
    size_t left = size - used;
    size_t need = plus ? fuse_add_direntry_plus(req, out.data() + used, left, name, &entry, static_cast<off_t>(next))
                       : fuse_add_direntry(req, out.data() + used, left, name, &entry.attr, static_cast<off_t>(next));
    if (need > left) return false;
    used += need;
    return true;
  };
  fuse_entry_param dots{};  // node id 0: `.` and `..` are no lookups
  dots.attr.st_ino = dir.inode.value;
  dots.attr.st_mode = S_IFDIR;
  fuse_entry_param above = dots;
  above.attr.st_ino = shell_of(req).engine_.parent_of(dir.inode).value;
  if (dir.view) {
    dots.attr.st_ino |= kViewBit;
    above.attr.st_ino |= kViewBit;
  }
  uint64_t at = offset;
  for (; at < dir.entries.size() + 2; ++at) {
    fuse_entry_param entry = at == 0 ? dots : at == 1 ? above : entry_of(req, dir.entries[at - 2].attr);
    // A name, no lookup: it was not fetched for this request; or, in the view, its footer was not looked at.
    if (at >= 2 && (dir.view || at - 2 < dir.fresh)) entry.ino = 0;
    if (at >= 2 && dir.view) entry.attr.st_ino |= kViewBit;
    if (!add(at == 0 ? "." : at == 1 ? ".." : dir.entries[at - 2].name.c_str(), entry, at + 1)) break;
  }
  if (at > dir.shown + 2) dir.shown = at - 2;
  fuse_reply_buf(req, out.data(), used);
}

// ---- file system and extended attributes ----------------------------------------------------------

void FuseOps::statfs(fuse_req_t req, fuse_ino_t) {
  shell_of(req).engine_.statfs([req](Result<wire::StatFsAnswer> answer) {
    if (!answer) return reply_error(req, answer.status());
    struct statvfs st;
    memset(&st, 0, sizeof st);
    st.f_bsize = st.f_frsize = 4096;
    st.f_blocks = answer->total / 4096;
    st.f_bfree = st.f_bavail = answer->available / 4096;
    st.f_ffree = st.f_favail = UINT32_MAX;  // names are not counted out
    st.f_files = answer->files + st.f_ffree;
    st.f_namemax = limits::kNameBytesMax;
    fuse_reply_statfs(req, &st);
  });
}

void FuseOps::setxattr(fuse_req_t req, fuse_ino_t ino, const char* name, const char* value, size_t size, int flags) {
  if (int refusal = name == kUuidName ? EPERM : refused_xattr(name); refusal != 0) {
    fuse_reply_err(req, refusal);
    return;
  }
  std::string_view text(value, size);
  if (name == kMirrorName && text != "none" && text != "sync") {
    fuse_reply_err(req, EINVAL);
    return;
  }
  wire::SetXattr request;
  request.inode = InodeNumber(ino);
  request.name = name;
  request.value.assign(text.begin(), text.end());
  request.flags = static_cast<uint32_t>(flags);
  shell_of(req).engine_.set_xattr(std::move(request), reply_status(req), shell_of(req).request_);
}

void FuseOps::getxattr(fuse_req_t req, fuse_ino_t ino, const char* name, size_t size) {
  std::string wanted = name;
  // The kernel asks for this one before writes: it is never set here, and no reason to ask the shared node.
  if (wanted.rfind("security.", 0) == 0 || wanted.rfind("system.", 0) == 0) {
    fuse_reply_err(req, ENODATA);
    return;
  }
  shell_of(req).engine_.getattr(InodeNumber(ino), [req, wanted, size](Result<wire::Attr> attr) {
    if (!attr) return reply_error(req, attr.status());
    bool image = attr->kind == wire::NodeKind::kImage;
    if (image && wanted == kUuidName) return reply_bytes(req, attr->image.to_string(), size);
    if (image && wanted == kMirrorName) return reply_bytes(req, attr->mirror == 0 ? "none" : "sync", size);
    for (const auto& [key, value] : attr->xattrs)
      if (key == wanted) return reply_bytes(req, as_text(value), size);
    fuse_reply_err(req, ENODATA);
  });
}

void FuseOps::listxattr(fuse_req_t req, fuse_ino_t ino, size_t size) {
  bool root = fuse_req_ctx(req)->uid == 0;
  shell_of(req).engine_.getattr(InodeNumber(ino), [req, size, root](Result<wire::Attr> attr) {
    if (!attr) return reply_error(req, attr.status());
    std::string names;
    auto add = [&](std::string_view n) { names.append(n).push_back('\0'); };
    if (attr->kind == wire::NodeKind::kImage) {
      add(kUuidName);
      add(kMirrorName);
    }
    for (const auto& [key, value] : attr->xattrs)
      if (key != kMirrorName && key != kUuidName && (root || key.rfind("trusted.", 0) != 0)) add(key);
    reply_bytes(req, names, size);
  });
}

void FuseOps::removexattr(fuse_req_t req, fuse_ino_t ino, const char* name) {
  bool own = name == kUuidName || name == kMirrorName;
  if (int refusal = own ? EPERM : refused_xattr(name); refusal != 0) {
    fuse_reply_err(req, refusal);
    return;
  }
  wire::SetXattr request;
  request.inode = InodeNumber(ino);
  request.name = name;
  request.remove = 1;
  shell_of(req).engine_.set_xattr(std::move(request), reply_status(req), shell_of(req).request_);
}

void FuseOps::fill_names(fuse_lowlevel_ops& ops) {
  ops.init = init;
  ops.lookup = lookup;
  ops.forget = forget;
  ops.forget_multi = forget_multi;
  ops.getattr = getattr;
  ops.setattr = setattr;
  ops.readlink = readlink;
  ops.mknod = mknod;
  ops.mkdir = mkdir;
  ops.symlink = symlink;
  ops.link = link;
  ops.unlink = unlink;
  ops.rmdir = rmdir;
  ops.rename = rename;
  ops.opendir = opendir;
  ops.readdir = readdir;
  ops.readdirplus = readdirplus;
  ops.releasedir = releasedir;
  ops.fsyncdir = fsyncdir;
  ops.statfs = statfs;
  ops.setxattr = setxattr;
  ops.getxattr = getxattr;
  ops.listxattr = listxattr;
  ops.removexattr = removexattr;
}

}  // namespace tidemark::fs
