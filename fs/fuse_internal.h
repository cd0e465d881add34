// What the shell's own files share. Included by fuse_*.cc alone.
#pragma once

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include "fs/fuse_shell.h"

namespace tidemark::fs {

inline constexpr double kAttrSeconds = 1.0;
// A node of the raw view (fuse_raw.cc) is the number of its image or directory and this bit.
inline constexpr uint64_t kViewBit = 1ull << 62;
inline constexpr size_t kSmallRead = 64u << 10;

struct FuseShell::Buffer {
  static constexpr size_t kPayloadAt = 4096;
  static constexpr size_t kHeaders = 80;                     // fuse_in_header and fuse_write_in
  static constexpr size_t kBytes = kPayloadAt + (1u << 20) + 4096;
  io::AlignedBuffer memory{kBytes};
  bool answered = false, hung = false;   // a device may use it although its request was answered
  uint8_t* start() { return memory.data() + kPayloadAt - kHeaders; }
  size_t room() const { return kBytes - kPayloadAt + kHeaders; }
};

// What a read is answered with.
struct FuseShell::ReadBuffer {
  io::AlignedBuffer memory;
};

inline FuseShell& shell_of(fuse_req_t req) { return *static_cast<FuseShell*>(fuse_req_userdata(req)); }
// A name for it, by which an interrupt ends it while it only waits.
uint64_t interruptible(fuse_req_t req);
inline void reply_error(fuse_req_t req, const Status& status) { fuse_reply_err(req, errno_of(status)); }
struct stat stat_of(const wire::Attr& attr);
fuse_entry_param entry_of(fuse_req_t req, const wire::Attr& attr);
bool view_shows(std::string_view name, wire::NodeKind kind);   // in its listings; the footer is looked at later

// Name-space operations (fuse_names.cc), those on open images (fuse_io.cc), and the raw view, which stands before both.
struct FuseOps {
  static void fill_names(fuse_lowlevel_ops& ops);
  static void fill_io(fuse_lowlevel_ops& ops);
  static void fill_view(fuse_lowlevel_ops& ops);         // fuse_raw.cc: comes last

  // How long the kernel may believe it.
  static double attr_seconds(fuse_req_t req, const wire::Attr& attr) {
    return shell_of(req).engine_.may_be_cached(attr) ? kAttrSeconds : 0;
  }
  static void init(void* userdata, fuse_conn_info* conn);
  static void lookup(fuse_req_t req, fuse_ino_t parent, const char* name);
  static void forget(fuse_req_t req, fuse_ino_t ino, uint64_t count);
  static void forget_multi(fuse_req_t req, size_t count, fuse_forget_data* forgets);
  static void getattr(fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi);
  static void setattr(fuse_req_t req, fuse_ino_t ino, struct stat* st, int to_set, fuse_file_info* fi);
  static void readlink(fuse_req_t req, fuse_ino_t ino);
  static void make(fuse_req_t req, wire::Create request);
  static void mknod(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, dev_t device);
  static void mkdir(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode);
  static void symlink(fuse_req_t req, const char* target, fuse_ino_t parent, const char* name);
  static void link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char* name);
  static void unlink(fuse_req_t req, fuse_ino_t parent, const char* name);
  static void rmdir(fuse_req_t req, fuse_ino_t parent, const char* name);
  static void rename(fuse_req_t req, fuse_ino_t parent, const char* name, fuse_ino_t new_parent, const char* new_name,
                     unsigned flags);
  static void opendir(fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi);
  static void open_directory(fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi, bool view);
  static void readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info* fi);
  static void readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info* fi);
  static void list(fuse_req_t req, fuse_ino_t ino, uint64_t handle, size_t size, uint64_t offset, bool plus);
  static void send_entries(fuse_req_t req, FuseShell::Directory& dir, size_t size, uint64_t offset, bool plus);
  static void releasedir(fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi);
  static void fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, fuse_file_info* fi);
  static void statfs(fuse_req_t req, fuse_ino_t ino);
  static void setxattr(fuse_req_t req, fuse_ino_t ino, const char* name, const char* value, size_t size, int flags);
  static void getxattr(fuse_req_t req, fuse_ino_t ino, const char* name, size_t size);
  static void listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);
  static void removexattr(fuse_req_t req, fuse_ino_t ino, const char* name);

  static void create(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, fuse_file_info* fi);
  static void open(fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi);
  static void reply_open(fuse_req_t req, HandleId handle, const wire::Attr* created);
  static void release(fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi);
  static void read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info* fi);
  static void write(fuse_req_t req, fuse_ino_t ino, const char* data, size_t size, off_t offset, fuse_file_info* fi);
  static void fsync(fuse_req_t req, fuse_ino_t ino, int datasync, fuse_file_info* fi);
  static void fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length, fuse_file_info* fi);
  static void lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, fuse_file_info* fi);
  // As if the file ended there.
  static void seek(fuse_req_t req, off_t offset, int whence, fuse_file_info* fi, uint64_t end);
  static void ioctl(fuse_req_t req, fuse_ino_t ino, unsigned cmd, void* arg, fuse_file_info* fi, unsigned flags,
                    const void* in, size_t in_size, size_t out_size);
};

}  // namespace tidemark::fs
