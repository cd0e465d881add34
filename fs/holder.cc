#include "fs/holder.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <optional>

#include "fs/holding.h"
#include "shared/base/log.h"
#include "shared/daemon/daemon.h"

namespace tidemark::fs {
namespace {
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

const log::Logger kLog("holder");
constexpr std::chrono::seconds kWindow{60};
constexpr size_t kDeathsMax = 10;              // within the window
constexpr size_t kDeathsAtOnce = 3;            // before a restart waits
constexpr milliseconds kDelayMin{100}, kDelayMax{3000};
constexpr std::chrono::seconds kHandOverMax{20}, kCheckMax{10};

// The first ones at once, each later one after twice the time of the one before.
milliseconds delay_after(size_t ends) {
  if (ends <= kDeathsAtOnce) return milliseconds(0);
  return std::min(kDelayMax, kDelayMin * (1 << std::min<size_t>(ends - kDeathsAtOnce - 1, 10)));
}

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& o) noexcept : fd_(std::exchange(o.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& o) noexcept {
    if (this != &o) {
      reset();
      fd_ = std::exchange(o.fd_, -1);
    }
    return *this;
  }
  void reset() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_;
};

std::vector<char*> words_of(std::vector<std::string>& words) {
  std::vector<char*> out;
  for (std::string& w : words) out.push_back(w.data());
  out.push_back(nullptr);
  return out;
}

std::string last_line(int fd);

class Holder {
 public:
  Holder(HolderOptions options, daemon::Background background)
      : options_(std::move(options)), background_(std::move(background)) {}
  int run();

 private:
  Status prepare();
  Status start_daemon();
  [[noreturn]] void become_daemon(int socket, pid_t holder);
  void turn();
  void on_signal();
  void on_words();
  void on_end(int status);
  void wait_for_mending(pid_t pid, int code);
  void on_ready();
  void start_again(milliseconds delay);
  void begin_replacement();
  void take_program_on_disk();
  Status check_program();
  void refuse(const std::string& why);
  std::string last_words() const;
  void finish(int code) { exit_code_ = code; }
  void unmount();
  bool live() const {
    return options_.live_restart && session_ && survivor_ && survivor_->can_resend() && !survivor_->request().empty();
  }

  HolderOptions options_;
  daemon::Background background_;
  std::string program_path_;
  Descriptor program_, program_before_;   // of the daemon that runs; of the one before an upgrade
  Descriptor signals_, memory_, session_, socket_;
  Descriptor said_;   // a successor's standard error until it serves, where it would be lost
  std::optional<Survivor> survivor_;
  sigset_t mask_before_{};
  pid_t daemon_ = -1;
  pid_t left_ = -1;   // a check that did not end in time
  bool daemon_ready_ = false, told_ready_ = false;
  bool stopping_ = false, handing_over_ = false;
  std::deque<Clock::time_point> deaths_;
  size_t refusals_ = 0;   // starts since the last that came up that ended by themselves
  Clock::time_point refusal_told_at_;
  std::optional<Clock::time_point> start_at_, kill_at_;
  Clock::time_point died_at_;
  std::optional<int> exit_code_;
};

Status Holder::prepare() {
  char path[PATH_MAX];
  ssize_t n = ::readlink("/proc/self/exe", path, sizeof path);
  if (n <= 0) return Status::from_errno(errno, "/proc/self/exe");
  program_path_.assign(path, static_cast<size_t>(n));
  program_ = Descriptor(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  if (!program_) return Status::from_errno(errno, program_path_);
  memory_ = Descriptor(::memfd_create("tidemark-survivor", MFD_CLOEXEC));
  if (!memory_ || ::ftruncate(memory_.get(), Survivor::kBytes) != 0) return Status::from_errno(errno, "memfd");
  void* at = ::mmap(nullptr, Survivor::kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory_.get(), 0);
  if (at == MAP_FAILED) return Status::from_errno(errno, "the survivor's memory");
  TM_ASSIGN_OR_RETURN(Survivor survivor, Survivor::attach({static_cast<uint8_t*>(at), Survivor::kBytes}));
  survivor_ = survivor;
  sigset_t mask;
  sigemptyset(&mask);
  for (int number : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) sigaddset(&mask, number);
  if (::sigprocmask(SIG_BLOCK, &mask, &mask_before_) != 0) return Status::from_errno(errno, "signals");
  signals_ = Descriptor(::signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_) return Status::from_errno(errno, "signalfd");
  return Status::ok();
}

// Between fork and exec: async-signal-safe calls, setenv aside (one thread).
void Holder::become_daemon(int socket, pid_t holder) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != holder) ::_exit(1);   // it died before that was set
  for (int fd : {socket, memory_.get(), session_.get()})
    if (fd >= 0) ::fcntl(fd, F_SETFD, 0);
  std::string given =
      std::to_string(socket) + "," + std::to_string(memory_.get()) + "," + std::to_string(session_.get());
  if (said_) ::dup2(said_.get(), STDERR_FILENO);
  ::setenv(kHolderVariable, given.c_str(), 1);
  ::unsetenv("NOTIFY_SOCKET");             // systemd hears of it from the holder
  ::signal(SIGHUP, SIG_IGN);               // a terminal that goes means nothing to it
  ::sigprocmask(SIG_SETMASK, &mask_before_, nullptr);
  std::vector<char*> words = words_of(options_.arguments);
  ::fexecve(program_.get(), words.data(), environ);
  ::_exit(126);
}

Status Holder::start_daemon() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    return Status::from_errno(errno, "socketpair");
  Descriptor own(ends[0]), its(ends[1]);
  said_ = Descriptor(options_.background && told_ready_ ? ::memfd_create("tidemark-said", MFD_CLOEXEC) : -1);
  pid_t self = ::getpid();
  pid_t child = ::fork();
  if (child < 0) return Status::from_errno(errno, "fork");
  if (child == 0) become_daemon(its.get(), self);
  daemon_ = child;
  socket_ = std::move(own);
  daemon_ready_ = false;
  return Status::ok();
}

int Holder::run() {
  if (Status s = prepare(); !s) return daemon::fail("tidemark-fs", s);
  if (Status s = start_daemon(); !s) return daemon::fail("tidemark-fs", s);
  while (!exit_code_) turn();
  return *exit_code_;
}

void Holder::turn() {
  int wait = -1;
  for (const auto& at : {start_at_, kill_at_}) {
    if (!at) continue;
    auto left = std::chrono::duration_cast<milliseconds>(*at - Clock::now()).count() + 1;
    int ms = static_cast<int>(std::clamp<int64_t>(left, 0, 60'000));
    wait = wait < 0 ? ms : std::min(wait, ms);
  }
  // While no daemon runs nobody else would see that the mount is gone.
  const int mount = daemon_ > 0 ? -1 : session_.get();
  pollfd ready[3] = {{signals_.get(), POLLIN, 0}, {socket_.get(), POLLIN, 0}, {mount, 0, 0}};
  if (::poll(ready, 3, wait) < 0 && errno != EINTR) {
    kLog.error("poll", {{"errno", errno}});
    return finish(1);
  }
  if ((ready[1].revents & (POLLIN | POLLHUP)) != 0) on_words();
  if ((ready[0].revents & POLLIN) != 0) on_signal();
  if (exit_code_) return;
  if (daemon_ <= 0 && (ready[2].revents & POLLERR) != 0) {
    kLog.info("unmounted", {{"path", options_.mountpoint}});
    return finish(0);
  }
  if (kill_at_ && Clock::now() >= *kill_at_) {
    kill_at_.reset();
    kLog.warning("hand_over_took_too_long", {{"pid", daemon_}, {"now", "it is killed; the successor recovers"}});
    ::kill(daemon_, SIGKILL);
  }
  if (start_at_ && Clock::now() >= *start_at_) {
    start_at_.reset();
    survivor_->count_successor();
    if (Status s = start_daemon(); !s) {
      kLog.error("start_failed", {{"error", s}});
      start_again(kDelayMax);
    }
  }
}

void Holder::on_signal() {
  signalfd_siginfo info;
  bool ended = false;
  while (::read(signals_.get(), &info, sizeof info) == sizeof info) {
    int number = static_cast<int>(info.ssi_signo);
    if (number == SIGCHLD) ended = true;
    if (number == SIGHUP && !stopping_) begin_replacement();
    if (number != SIGTERM && number != SIGINT) continue;
    stopping_ = true;
    kLog.info("signal", {{"number", number}});
    if (daemon_ > 0) {
      ::kill(daemon_, SIGTERM);
    } else {
      unmount();
      finish(1);
    }
  }
  if (!ended || daemon_ <= 0) return;
  int status = 0;
  if (::waitpid(daemon_, &status, WNOHANG) == daemon_) on_end(status);
}

void Holder::on_words() {
  for (;;) {
    auto heard = hear_word(socket_.get());
    if (!heard) {
      if (heard.status().code() == Code::kNotFound) socket_.reset();   // its end follows
      return;
    }
    switch (heard->word) {
      case Word::kMounted: session_ = Descriptor(std::exchange(heard->descriptor, -1)); break;
      case Word::kReady: on_ready(); break;
      case Word::kStopping:
        stopping_ = true;
        daemon::notify_systemd("STOPPING=1");
        break;
      case Word::kReplace: begin_replacement(); break;
      default: kLog.warning("unknown_word", {{"word", std::string(1, static_cast<char>(heard->word))}}); break;
    }
    if (heard->descriptor >= 0) ::close(heard->descriptor);
  }
}

void Holder::on_ready() {
  daemon_ready_ = true;
  refusals_ = 0;
  program_before_.reset();                  // what has come up once may have written what the one before cannot read
  if (told_ready_) {
    auto away = std::chrono::duration_cast<milliseconds>(Clock::now() - died_at_);
    kLog.info("daemon_replaced",
              {{"pid", daemon_}, {"away_ms", away.count()}, {"successors", survivor_->successors()}});
    return;
  }
  told_ready_ = true;
  if (!live()) {
    const char* why = options_.live_restart ? "the kernel does not hand requests out again; 6.9 and newer do"
                                            : "turned off by the option nolive";
    kLog.warning("no_live_restart", {{"reason", why}, {"effect", "should the daemon die, its mount dies with it"}});
  }
  daemon::notify_systemd("READY=1");
  background_.ready();
}

void Holder::on_end(int status) {
  on_words();                               // what it said last
  socket_.reset();
  kill_at_.reset();
  const pid_t pid = std::exchange(daemon_, -1);
  const bool was_told = std::exchange(handing_over_, false);
  const bool by_signal = WIFSIGNALED(status);
  const int code = by_signal ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  const bool handed_over = !by_signal && code == kExitHandedOver;
  // One that did not come up as a successor is tried again: guests wait.
  const bool not_come_up = code != 0 && !daemon_ready_ && told_ready_;
  const bool again = by_signal || handed_over || code == kExitStartAnew || not_come_up;
  if (daemon_ready_ || !told_ready_) died_at_ = Clock::now();
  if (stopping_ || !again || !session_) {
    if (by_signal) kLog.error("daemon_killed", {{"pid", pid}, {"signal", WTERMSIG(status)}});
    if ((by_signal || handed_over || not_come_up) && stopping_) unmount();
    return finish(handed_over ? 0 : code);
  }
  if (!live()) {
    kLog.error("daemon_died",
               {{"pid", pid}, {"status", code}, {"now", "its mount is dead"}, {"remedy", "mount again"}});
    return finish(code);
  }
  if (handed_over) return start_again(milliseconds(0));
  const bool refused = not_come_up && !by_signal && code != kExitStartAnew && code != kExitCannotFollow;
  const bool back = not_come_up && program_before_;
  if (refused && !back) return wait_for_mending(pid, code);
  kLog.warning("daemon_died", {{"pid", pid}, {"status", code}, {"signal", by_signal ? WTERMSIG(status) : 0},
                               {"now", was_told ? "the successor is started" : "started again on the same mount"}});
  if (back) {
    kLog.error("upgrade_failed",
               {{"status", code}, {"said", last_words()}, {"now", "the program before it is started"}});
    program_ = std::move(program_before_);
  }
  const Clock::time_point now = Clock::now();
  if (!refused) deaths_.push_back(now);
  while (!deaths_.empty() && now - deaths_.front() > kWindow) deaths_.pop_front();
  if (deaths_.size() > kDeathsMax || (code == kExitCannotFollow && !back)) {
    kLog.error("gave_up", {{"deaths", deaths_.size()}, {"window_s", kWindow.count()}, {"now", "its mount is dead"},
                           {"remedy", "see the daemon's log, then mount again"}});
    return finish(1);
  }
  start_again(delay_after(deaths_.size()));
}

// A successor said why it does not start, and ended: a fault of the configuration, a full disk. It has served
// nothing, guests wait, and giving up would help none of them: it is tried until that is mended, or this is to stop.
void Holder::wait_for_mending(pid_t pid, int code) {
  const Clock::time_point now = Clock::now();
  if (++refusals_ == 1 || now - refusal_told_at_ >= kWindow) {
    kLog.warning("daemon_died", {{"pid", pid}, {"status", code}, {"said", last_words()},
                                 {"now", "tried again until it starts; guests wait"},
                                 {"remedy", "see what it says, and tidemark-fs --check"}});
    refusal_told_at_ = now;
  }
  start_again(delay_after(refusals_));
}

void Holder::start_again(milliseconds delay) { start_at_ = Clock::now() + delay; }

void Holder::refuse(const std::string& why) {
  kLog.error("not_replaced", {{"reason", why}});
  if (!socket_) return;
  if (Status s = send_word(socket_.get(), Word::kRefused, why); !s) kLog.warning("refusal_not_told", {{"error", s}});
}

void Holder::begin_replacement() {
  if (handing_over_ || stopping_) return;
  if (daemon_ <= 0) return take_program_on_disk();
  if (!daemon_ready_) return refuse("the daemon is still starting: try again");
  if (!live()) return refuse("live restart is not available here (tidemark status says why)");
  if (Status s = check_program(); !s) return refuse(s.message());
  Descriptor next(::open(program_path_.c_str(), O_RDONLY | O_CLOEXEC));
  if (!next) return refuse(Status::from_errno(errno, program_path_).message());
  program_before_ = std::exchange(program_, std::move(next));
  handing_over_ = true;
  kLog.info("replacing", {{"pid", daemon_}, {"program", program_path_}});
  if (Status s = send_word(socket_.get(), Word::kHandOver); !s) kLog.warning("hand_over_not_told", {{"error", s}});
  kill_at_ = Clock::now() + kHandOverMax;
}

// Between two starts. What keeps a successor from starting may be its program's own fault, and nobody is there to be
// asked for another one, or to go on meanwhile. Should it not start either, the one from before is the next again.
void Holder::take_program_on_disk() {
  Descriptor next(::open(program_path_.c_str(), O_RDONLY | O_CLOEXEC));
  if (!next) return refuse(Status::from_errno(errno, program_path_).message());
  Descriptor before = std::exchange(program_, std::move(next));
  if (!program_before_) program_before_ = std::move(before);
  kLog.info("program_taken", {{"program", program_path_}});
  if (refusals_ != 0) start_again(milliseconds(0));
}

// The last line that was written there: why a program ends.
std::string last_line(int fd) {
  std::string all;
  char bytes[4096];
  for (ssize_t n; (n = ::read(fd, bytes, sizeof bytes)) > 0;) all.append(bytes, static_cast<size_t>(n));
  while (!all.empty() && all.back() == '\n') all.pop_back();
  return all.substr(all.rfind('\n') + 1);   // all of it where there is none
}

// Of the successor that has ended. Where standard error is seen by somebody they are there, and this is empty.
std::string Holder::last_words() const {
  if (!said_ || ::lseek(said_.get(), 0, SEEK_SET) != 0) return {};
  return last_line(said_.get());
}

// That the program on disk starts at all and takes configuration and state, while the old one still serves.
Status Holder::check_program() {
  if (left_ > 0 && ::waitpid(left_, nullptr, WNOHANG) == 0)
    return Status(Code::kUnavailable, "the last --check has not ended: the disk of the state hangs");
  left_ = -1;
  std::vector<std::string> arguments = options_.check;
  arguments.insert(arguments.begin(), program_path_);
  std::vector<char*> words = words_of(arguments);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return Status::from_errno(errno, "pipe");   // full, it blocks nobody
  Descriptor said(ends[0]), its(ends[1]);
  pid_t child = ::fork();
  if (child < 0) return Status::from_errno(errno, "fork");
  if (child == 0) {
    ::sigprocmask(SIG_SETMASK, &mask_before_, nullptr);
    ::dup2(its.get(), STDERR_FILENO);
    ::setenv(kHolderVariable, kHolderAsks, 1);
    ::execv(program_path_.c_str(), words.data());
    ::_exit(126);
  }
  const Clock::time_point until = Clock::now() + kCheckMax;
  int status = 0;
  pid_t ended;
  while ((ended = ::waitpid(child, &status, WNOHANG)) == 0 && Clock::now() < until) ::poll(nullptr, 0, 5);
  if (ended == 0) {
    ::kill(child, SIGKILL);
    left_ = child;   // not waited for: it may be in the kernel until a device answers
    return Status(Code::kUnavailable, program_path_ + " --check did not end in time: the daemon stays as it is");
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return Status::ok();
  std::string why = last_line(said.get());
  if (why.empty()) why = "status " + std::to_string(status);
  return Status(Code::kInvalidArgument,
                program_path_ + " does not start, so the daemon stays as it is: " + why);
}

void Holder::unmount() {
  if (::umount2(options_.mountpoint.c_str(), MNT_DETACH) != 0)
    kLog.info("umount", {{"errno", errno}, {"path", options_.mountpoint}});
}

}  // namespace

int hold(HolderOptions options, daemon::Background background) {
  return Holder(std::move(options), std::move(background)).run();
}

}  // namespace tidemark::fs
