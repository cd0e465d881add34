#include "fs/fuse_shell.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "fs/fuse_internal.h"
#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/io/turn_share.h"

namespace tidemark::fs {
namespace {
const log::Logger kLog("fuse");
constexpr size_t kFreeReadBuffersMax = 64;

bool is_read(const void* request) {
  fuse_in_header header;
  memcpy(&header, request, sizeof header);
  return header.opcode == FUSE_READ;
}

bool within(ByteSpan memory, const io::AlignedBuffer& buffer) {
  return memory.data() >= buffer.data() && memory.data() < buffer.data() + buffer.size();
}

}  // namespace

std::vector<std::string> missing_kernel_features() {
  utsname name;
  int major = 0, minor = 0;
  if (::uname(&name) != 0 || sscanf(name.release, "%d.%d", &major, &minor) != 2) return {};
  std::vector<std::string> out;
  auto older = [&](int a, int b) { return major < a || (major == a && minor < b); };
  if (older(6, 2)) out.push_back("parallel direct writes (kernel 6.2)");
  if (older(6, 9)) out.push_back("resend of requests after a restart (kernel 6.9)");
  return out;
}

FuseShell::FuseShell(io::RealEnv& env, Engine& engine, FuseOptions options)
    : env_(env), engine_(engine), options_(std::move(options)) {}

Result<std::unique_ptr<FuseShell>> FuseShell::mount(io::RealEnv& env, Engine& engine, FuseOptions options) {
  std::unique_ptr<FuseShell> shell(new FuseShell(env, engine, std::move(options)));
  TM_RETURN_IF_ERROR(shell->start());
  return shell;
}

Status FuseShell::start() {
  TM_RETURN_IF_ERROR(open_session());
  if (options_.session >= 0) TM_RETURN_IF_ERROR(take_over());
  else TM_RETURN_IF_ERROR(mount_anew());
  engine_.set_memory_keeper(this);
  engine_.on_invalidate([this](const wire::InvalidateNotify& m) {
    if (m.inode.value != 0) forget_attributes(m.inode);
  });
  engine_.on_giving_up([this](InodeNumber inode) { forget_attributes(inode); });
  if (options_.session >= 0) TM_RETURN_IF_ERROR(ask_again());
  TM_RETURN_IF_ERROR(env_.add_fd(fd_, EPOLLIN, [this](uint32_t) { drain(); }));
  watching_ = true;
  if (options_.session < 0) drain();   // FUSE_INIT waits already: with its answer a successor could take over
  kLog.info(options_.session >= 0 ? "taken_over" : "mounted", {{"path", options_.mountpoint}});
  return Status::ok();
}

FuseShell::~FuseShell() {
  engine_.on_invalidate(nullptr);
  engine_.on_giving_up(nullptr);
  if (watching_) env_.remove_fd(fd_);
  if (session_ != nullptr) {
    // Closes the descriptor: what still waits in the kernel is aborted once the holder has closed its own, too.
    const bool attached = mounted_ && !detached_;
    if (attached && options_.session < 0) fuse_session_unmount(session_);
    if (attached && options_.session >= 0 && ::umount2(options_.mountpoint.c_str(), MNT_DETACH) != 0)
      kLog.info("umount", {{"errno", errno}});
    fuse_session_destroy(session_);
  }
}

void FuseShell::drain() {
  const bool idle = engine_.in_flight() == 0;
  size_t begun = 0;
  received_.clear();
  if (came_alone_ && idle) {
    if (!receive(1)) return;
    // A guest that waits for each answer has most likely sent nothing more: its change is begun before looking on,
    // since its frame can leave then. A read would be over before anybody looked: one by one, however many wait.
    if (!received_.empty() && !is_read(received_.front().buffer->start())) {
      begun = received_.size();
      begin_received();
      if (engine_.in_flight() != 0) return;   // its file operation comes first
    }
  }
  if (!receive(io::turn_share(engine_.in_flight())) && begun == 0) return;
  came_alone_ = idle && begun + received_.size() == 1;
  begin_received();
}

// Reads requests into `received_` until there are `most` or no more. False when the kernel's side is gone.
bool FuseShell::receive(size_t most) {
  while (received_.size() < most) {
    Buffer* buffer = take_buffer();
    ssize_t n = ::read(fd_, buffer->start(), buffer->room());
    if (n > 0) {
      received_.push_back({buffer, static_cast<size_t>(n)});
      continue;
    }
    give_back(buffer);
    if (n < 0 && (errno == EINTR || errno == ENOENT))
      continue;  // ENOENT: the request was interrupted before it was read
    if (n < 0 && errno == EAGAIN) break;
    if (n < 0 && errno != ENODEV) kLog.warning("fuse_read", {{"errno", errno}});
    if (!received_.empty()) break;
    gone();
    return false;
  }
  return true;
}

void FuseShell::begin_received() {
  alone_ = received_.size() == 1 && engine_.in_flight() == 0;
  for (size_t i = 0; i < received_.size(); ++i) {
    current_ = received_[i].buffer;
    fuse_buf request{};
    request.size = received_[i].size;
    request.mem = current_->start();
    note_request();
    fuse_session_process_buf(session_, &request);
    if (current_ != nullptr) give_back(std::exchange(current_, nullptr));
  }
  received_.clear();
  alone_ = false;
}

// The kernel's side is gone: unmounted, and the last file is closed.
void FuseShell::gone() {
  if (watching_) env_.remove_fd(fd_);
  watching_ = false;
  mounted_ = false;
  kLog.info("unmounted", {{"path", options_.mountpoint}});
  if (when_gone_) env_.post(std::exchange(when_gone_, {}));
  else if (on_unmounted_) env_.post(std::exchange(on_unmounted_, {}));
}

void FuseShell::unmount(io::Duration grace, UniqueFunction<void()> done) {
  if (!mounted_) return done();
  auto once = std::make_shared<UniqueFunction<void()>>(std::move(done));  // shared by the timer and the end, first come
  auto fire = [once] {
    if (*once) std::exchange(*once, nullptr)();
  };
  when_gone_ = fire;
  env_.after(grace, [this, fire] {
    if (mounted_)
      kLog.warning("still_in_use", {{"path", options_.mountpoint}, {"remedy", "files open in it get ENOTCONN"}});
    fire();
  });
  detached_ = ::umount2(options_.mountpoint.c_str(), MNT_DETACH) == 0;
  if (!detached_) kLog.info("umount", {{"errno", errno}});
}

void FuseShell::pause() {
  if (watching_) env_.remove_fd(fd_);
  watching_ = false;
}

// Attributes alone. To drop pages the kernel waits for those that are being read, to drop an entry for its directory's
// lock, which a lookup may hold: uninterruptibly, and for answers that nobody gives any more once this process is
// killed. It could not end then, and not be replaced. So pages stay until the next open, and an entry that another host
// removed or moved is believed for kAttrSeconds at most. What the kernel does not know is answered with ENOENT, which
// is as good.
void FuseShell::forget_attributes(InodeNumber inode) {
  constexpr off_t kNoPages = -1;
  fuse_lowlevel_notify_inval_inode(session_, inode.value, kNoPages, 0);
  fuse_lowlevel_notify_inval_inode(session_, inode.value | kViewBit, kNoPages, 0);
}

void FuseShell::interrupted(uint64_t tag) {
  env_.post([this, tag] { engine_.interrupt(tag); });
}

FuseShell::Buffer* FuseShell::take_buffer() {
  if (free_buffers_.empty()) {
    buffers_.push_back(std::make_unique<Buffer>());
    free_buffers_.push_back(buffers_.back().get());
  }
  Buffer* buffer = free_buffers_.back();
  free_buffers_.pop_back();
  buffer->answered = false;
  return buffer;
}

void FuseShell::give_back(Buffer* buffer) {
  buffer->answered = true;
  if (!buffer->hung) free_buffers_.push_back(buffer);
}

FuseShell::ReadBuffer* FuseShell::take_read_buffer(size_t size) {
  auto& kept = size <= kSmallRead ? small_reads_ : large_reads_;
  if (!kept.empty()) {
    ReadBuffer* buffer = kept.back();
    kept.pop_back();
    return buffer;
  }
  static_assert(kSmallRead < limits::kIoBytesMax, "a read is at most one large buffer");
  if (bare_reads_.empty()) {
    read_buffers_.push_back(std::make_unique<ReadBuffer>());
    bare_reads_.push_back(read_buffers_.back().get());
  }
  ReadBuffer* buffer = bare_reads_.back();
  bare_reads_.pop_back();
  buffer->memory = io::AlignedBuffer(size <= kSmallRead ? kSmallRead : limits::kIoBytesMax);
  return buffer;
}

void FuseShell::give_back(ReadBuffer* buffer) {
  auto& kept = buffer->memory.size() <= kSmallRead ? small_reads_ : large_reads_;
  if (kept.size() < kFreeReadBuffersMax) return kept.push_back(buffer);
  buffer->memory = {};
  bare_reads_.push_back(buffer);
}

MutableByteSpan FuseShell::keep(ByteSpan memory) {
  auto holds = [&](const io::AlignedBuffer& b) { return within(memory, b); };
  for (auto& buffer : buffers_) {
    if (!holds(buffer->memory)) continue;
    buffer->hung = true;
    return {};
  }
  for (auto& buffer : read_buffers_) {
    if (!holds(buffer->memory)) continue;
    io::AlignedBuffer other(buffer->memory.size());
    std::swap(other, buffer->memory);
    hung_reads_.push_back(std::move(other));
    return buffer->memory.span();
  }
  TM_CHECK(false, "the memory of a request is one of the shell's buffers");
}

void FuseShell::landed(ByteSpan memory) {
  auto holds = [&](const io::AlignedBuffer& b) { return within(memory, b); };
  std::erase_if(hung_reads_, holds);
  for (auto& buffer : buffers_) {
    if (!buffer->hung || !holds(buffer->memory)) continue;
    buffer->hung = false;
    if (buffer->answered) free_buffers_.push_back(buffer.get());
  }
}

}  // namespace tidemark::fs
