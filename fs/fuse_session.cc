// The session with the kernel: mounted anew, or taken over from the run before on a mount that stands.
//
// A successor is never sent FUSE_INIT: what was agreed is the run before's. So the request and the answer of that time
// are kept in the survivor; the successor's libfuse is given the same request, and must give the same answer (which the
// kernel does not see): what the configuration says by then counts from the next mount on. Then FUSE_NOTIFY_RESEND has
// the kernel hand out anew, with the highest bit of `unique` set, what it had handed out and has no answer for.
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>

#include "fs/fuse_internal.h"
#include "fs/mount_point.h"

namespace tidemark::fs {
namespace {
// linux/fuse.h of kernel 6.9.
constexpr uint64_t kUniqueResend = uint64_t{1} << 63;
constexpr int kNotifyResend = 7;
constexpr uint32_t kInitExt = 1u << 30;
constexpr uint32_t kFlags2HasResend = 1u << (39 - 32);

struct InitWithFlags2 {   // fuse_init_in of protocol 7.36 and newer, as far as it is read here
  uint32_t major, minor, max_readahead, flags, flags2;
};

bool has_resend(ByteSpan request) {
  InitWithFlags2 init;
  if (request.size() < sizeof(fuse_in_header) + sizeof init) return false;
  memcpy(&init, request.data() + sizeof(fuse_in_header), sizeof init);
  return (init.flags & kInitExt) != 0 && (init.flags2 & kFlags2HasResend) != 0;
}

// max_background as an answer to FUSE_INIT has it.
uint16_t background_of(ByteSpan answer) {
  fuse_init_out init{};
  if (answer.size() <= sizeof(fuse_out_header)) return 0;
  const ByteSpan body = answer.subspan(sizeof(fuse_out_header));
  memcpy(&init, body.data(), std::min(body.size(), sizeof init));
  return init.max_background;
}
}  // namespace

Status FuseShell::open_session() {
  std::string mount = "fsname=" + options_.source + ",subtype=tidemark,default_permissions";
  if (options_.allow_other) mount += ",allow_other";
  if (options_.read_only) mount += ",ro";
  for (const std::string& o : options_.mount_options) mount += "," + o;
  mount += ",nodev";   // last: a device's number means something else on each host, and anybody's disk may be it
  std::vector<std::string> words = {"tidemark-fs", "-o", mount};
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  fuse_args args = FUSE_ARGS_INIT(static_cast<int>(argv.size()), argv.data());
  fuse_lowlevel_ops ops{};
  FuseOps::fill_names(ops);
  FuseOps::fill_io(ops);
  FuseOps::fill_view(ops);
  session_ = fuse_session_new(&args, &ops, sizeof ops, this);
  fuse_opt_free_args(&args);
  if (session_ == nullptr) return Status(Code::kInvalidArgument, "mount options refused: " + mount);
  return Status::ok();
}

Status FuseShell::mount_anew() {
  TM_RETURN_IF_ERROR(clear_dead_mount(options_.mountpoint));
  if (fuse_session_mount(session_, options_.mountpoint.c_str()) != 0)
    return Status::from_errno(errno != 0 ? errno : EIO, "mounting at " + options_.mountpoint + " (is fuse available?)");
  mounted_ = true;
  fd_ = fuse_session_fd(session_);
  int flags = ::fcntl(fd_, F_GETFL);
  if (flags < 0 || ::fcntl(fd_, F_SETFL, flags | O_NONBLOCK) != 0) return Status::from_errno(errno, "/dev/fuse");
  const fuse_custom_io io{write_session, read_session, nullptr, nullptr};
  int error = fuse_session_custom_io(session_, &io, fd_);
  return error == 0 ? Status::ok() : Status::from_errno(-error, "/dev/fuse");
}

Status FuseShell::take_over() {
  const ByteSpan request = options_.survivor->request();
  fd_ = ::fcntl(options_.session, F_DUPFD_CLOEXEC, 3);   // the session closes it; the holder has its own
  if (fd_ < 0) return Status::from_errno(errno, "/dev/fuse");
  const fuse_custom_io io{write_session, read_session, nullptr, nullptr};
  if (int error = fuse_session_custom_io(session_, &io, fd_); error != 0)
    return Status::from_errno(-error, "/dev/fuse");
  last_directory_ = uint64_t{options_.survivor->successors()} << 32;
  agreed_background_ = background_of(options_.survivor->answer());
  current_ = take_buffer();
  memcpy(current_->start(), request.data(), request.size());
  fuse_buf init{};
  init.size = request.size();
  init.mem = current_->start();
  swallow_ = true;
  fuse_session_process_buf(session_, &init);
  swallow_ = false;
  if (current_ != nullptr) give_back(std::exchange(current_, nullptr));
  const ByteSpan agreed = options_.survivor->answer();
  if (agreed.empty() || as_text(agreed) != swallowed_)
    return Status(Code::kUnsupported, "this program agrees otherwise with the kernel than the one that mounted " +
                                          options_.mountpoint + ": unmount and mount again");
  mounted_ = true;
  return Status::ok();
}

Status FuseShell::ask_again() {
  fuse_out_header out{};
  out.len = sizeof out;
  out.error = kNotifyResend;
  if (::write(fd_, &out, sizeof out) == sizeof out) return Status::ok();
  bool unmounted = errno == ENODEV || errno == ENOENT || errno == ECONNABORTED;   // the loop will see
  if (unmounted) return Status::ok();
  return Status::from_errno(errno, "asking for the requests without an answer");
}

// Of the request that is about to be processed.
void FuseShell::note_request() {
  fuse_in_header header;
  memcpy(&header, current_->start(), sizeof header);
  request_ = {header.unique & ~kUniqueResend, (header.unique & kUniqueResend) != 0};
  if (header.opcode != FUSE_INIT || options_.survivor == nullptr) return;
  ByteSpan request(current_->start(), header.len);
  options_.survivor->set_can_resend(has_resend(request));
  options_.survivor->keep_request(request);
  agreement_ = header.unique;
}

ssize_t FuseShell::write_session(int fd, iovec* io, int count, void* userdata) {
  auto& shell = *static_cast<FuseShell*>(userdata);
  const uint64_t agreement = shell.agreement_;
  if (shell.swallow_ || agreement != 0) {
    std::string bytes;
    for (int i = 0; i < count; ++i) bytes.append(static_cast<const char*>(io[i].iov_base), io[i].iov_len);
    if (shell.swallow_) {
      shell.swallowed_ = std::move(bytes);
      return static_cast<ssize_t>(shell.swallowed_.size());
    }
    fuse_out_header header;
    memcpy(&header, bytes.data(), sizeof header);
    if (header.unique == agreement) {
      shell.options_.survivor->keep_answer(as_bytes(bytes));
      shell.agreement_ = 0;
    }
  }
  return ::writev(fd, io, count);
}

ssize_t FuseShell::read_session(int fd, void* bytes, size_t size, void*) { return ::read(fd, bytes, size); }

}  // namespace tidemark::fs
