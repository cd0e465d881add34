#include "shared/io/real_env.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <ctime>

#include "shared/base/log.h"
#include "shared/io/real_env_state.h"

namespace tidemark::io {
namespace {

const log::Logger kLog("loop");

constexpr int kEventsPerTurn = 256;
constexpr Duration kRingInterval = std::chrono::seconds(1);   // where one could be made before, and now cannot

int64_t clock_ns(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return static_cast<int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

}  // namespace

RealEnv::RealEnv(RealEnvOptions options) : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.options = std::move(options);
  s.busy_poll = BusyPoll(s.options.busy_poll_max);
  std::signal(SIGPIPE, SIG_IGN);   // a peer that went away is an error of that send, not of the process
  s.epoll_fd = ::epoll_create1(EPOLL_CLOEXEC);
  s.wake_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  TM_CHECK(s.epoll_fd >= 0 && s.wake_fd >= 0, "no descriptors left for the loop");
  auto at_base = [this](InlineOperation& operation) {
    if (!state_->running) return false;
    state_->inline_operations.push_back(std::move(operation));
    return true;
  };
  s.files = std::make_unique<RealFileSystem>(*this, [this] { return state_->get_ring(*this); }, std::move(at_base));
  Status status = add_fd(s.wake_fd, EPOLLIN, [this](uint32_t) {
    uint64_t count;
    // Nothing to handle: EAGAIN means that another turn has emptied it.
    [[maybe_unused]] ssize_t n = ::read(state_->wake_fd, &count, sizeof count);
  });
  TM_CHECK(status.is_ok(), "epoll refused the loop's own eventfd");
}

RealEnv::~RealEnv() {
  State& s = *state_;
  s.files->end();
  if (s.ring != nullptr) s.ring->abandon();   // before files go that it counts for
  s.offload.stop();
  s.network.reset();
  // Functions may own things whose destructors remove watches or cancel timers: everything they
  // touch still stands here.
  {
    std::vector<UniqueFunction<void()>> posted;
    std::lock_guard lock(s.post_mutex);
    posted.swap(s.posted);
  }
  s.turn_end.clear();
  s.timers = TimerQueue();
  s.watches.clear();
  s.retired.clear();
  s.ring.reset();
  if (s.signal_fd >= 0) ::close(s.signal_fd);
  ::close(s.wake_fd);
  ::close(s.epoll_fd);
}

void RealEnv::State::wake() {
  uint64_t one = 1;
  // Can only fail with EAGAIN, when the counter is full and the loop awake for certain.
  [[maybe_unused]] ssize_t n = ::write(wake_fd, &one, sizeof one);
}

void RealEnv::run() {
  State& s = *state_;
  s.running = true;
  s.lead(*this, true);
  if (s.second.joinable()) s.second.join();
  s.running = s.over = false;
  s.stopping.store(false);
}

void RealEnv::stop() {
  state_->stopping.store(true);
  if (state_->waiting.load()) state_->wake();
}

bool RealEnv::run_until(UniqueFunction<bool()> done, Duration limit) {
  BootTime deadline = now() + limit;
  while (!done()) {
    Duration left = deadline - now();
    if (left <= Duration::zero()) return false;
    turn(left);
  }
  return true;
}

void RealEnv::turn(Duration wait_max) { state_->turn(*this, wait_max); }

// False: another thread runs the loop by now. What is left of the turn is found by its next one.
bool RealEnv::State::turn(RealEnv& env, Duration wait_max) {
  if (!wait_and_dispatch(env, wait_max)) return false;
  if (!reap(env)) return false;
  run_timers();
  run_posted();
  if (!run_inline(env)) return false;
  run_turn_end();
  while (!inline_operations.empty() || !turn_end.empty()) {
    if (!run_inline(env)) return false;
    run_turn_end();
  }
  retired.clear();
  return submit(env);
}

Duration RealEnv::State::wait_time(Duration wait_max) {
  if (has_posted.load() || stopping.load() || !turn_end.empty() || !inline_operations.empty()) return Duration::zero();
  if (ring != nullptr && (ring->has_ready() || ring->has_unsubmitted())) return Duration::zero();
  Duration wait = std::clamp(wait_max, Duration::zero(), Duration(kWaitMax));
  if (auto deadline = timers.next_deadline()) {
    wait = std::clamp(*deadline - BootTime{clock_ns(CLOCK_BOOTTIME)}, Duration::zero(), wait);
  }
  return wait;
}

bool RealEnv::State::wait_and_dispatch(RealEnv& env, Duration wait_max) {
  // Work queued before the first turn, or by a callback that ran outside of one.
  if (!submit(env)) return false;
  // Raised before looking for posted functions: a poster either is seen here or sees this and wakes us.
  waiting.store(true);
  Duration wait = wait_time(wait_max);
  if (wait == Duration::zero()) waiting.store(false);
  epoll_event events[kEventsPerTurn];
  int n = wait_for_events(events, wait);
  waiting.store(false, std::memory_order_relaxed);
  TM_CHECK(n >= 0 || errno == EINTR, "epoll refused its own descriptor");
  for (int i = 0; i < n; ++i) {
    dispatch(static_cast<int>(events[i].data.u64 & 0xffffffff), static_cast<uint32_t>(events[i].data.u64 >> 32),
             events[i].events);
    // Descriptors are watched level-triggered: what is left out here shows up again.
    if (!inline_operations.empty() && !run_inline(env)) return false;
  }
  return true;
}

// Polls first where that pays (BusyPoll), and lets any other thread that wants this processor have it.
int RealEnv::State::wait_for_events(epoll_event* events, Duration wait) {
  auto poll = [&](Duration limit) {
    timespec timeout{limit.count() / 1'000'000'000, limit.count() % 1'000'000'000};
    return ::epoll_pwait2(epoll_fd, events, kEventsPerTurn, &timeout, nullptr);
  };
  auto finished = [&] { return ring != nullptr && ring->has_ready(); };
  auto block = [&] {
    if (ring == nullptr) return poll(wait);
    ring->tell(true);
    const int n = poll(finished() ? Duration::zero() : wait);
    ring->tell(false);
    return n;
  };
  if (wait == Duration::zero()) return poll(wait);
  if (!busy_poll.enabled()) return block();
  const int64_t began = clock_ns(CLOCK_MONOTONIC);
  const int64_t poll_end = began + std::min(wait, busy_poll.budget()).count();
  int n = 0;
  while (n == 0 && !finished() && clock_ns(CLOCK_MONOTONIC) < poll_end) {
    n = poll(Duration::zero());
    if (n == 0) ::sched_yield();
  }
  if (n == 0 && !finished()) n = block();
  if (n > 0 || finished()) busy_poll.waited(Duration(clock_ns(CLOCK_MONOTONIC) - began));
  return n;
}

void RealEnv::State::dispatch(int fd, uint32_t generation, uint32_t events) {
  if (static_cast<size_t>(fd) >= watches.size()) return;
  Watch* watch = watches[static_cast<size_t>(fd)].get();
  // Removed, or removed and added anew, by an earlier callback of this turn.
  if (watch == nullptr || watch->generation != generation) return;
  watch->callback(events);
}

void RealEnv::State::run_timers() {
  if (timers.size() == 0) return;
  BootTime now{clock_ns(CLOCK_BOOTTIME)};
  uint64_t last = timers.last_id();
  // A timer set by these functions waits for the next turn, however short it is.
  while (auto top = timers.top_id()) {
    if (*top > last) break;
    UniqueFunction<void()> fn = timers.take_due(now);
    if (!fn) break;
    fn();
  }
}

void RealEnv::State::run_posted() {
  if (!has_posted.load(std::memory_order_acquire)) return;
  {
    std::lock_guard lock(post_mutex);
    posted_running.swap(posted);
    has_posted.store(false, std::memory_order_relaxed);
  }
  for (auto& fn : posted_running) {
    fn();
    fn = nullptr;
  }
  posted_running.clear();
}

void RealEnv::State::run_turn_end() {
  // What these functions add belongs to the same end: nothing may be left unflushed while the loop waits.
  while (!turn_end.empty()) {
    turn_end_running.swap(turn_end);
    for (auto& fn : turn_end_running) {
      fn();
      fn = nullptr;
    }
    turn_end_running.clear();
  }
}

Ring* RealEnv::State::get_ring(RealEnv& env) {
  const bool again = ring_tried && ring == nullptr && had_ring && env.now() >= ring_again;
  if (ring_tried && !again) return ring.get();
  ring_tried = true;
  if (!options.use_io_uring) return nullptr;
  ring_again = env.now() + kRingInterval;
  std::string why;
  ring = Ring::create(&why);
  if (ring != nullptr) {
    Status watched = env.add_fd(ring->event_fd(), EPOLLIN | EPOLLET, [](uint32_t) {});   // turn() reaps
    if (!watched) {
      why = watched.message();
      ring.reset();
    }
  }
  if (ring == nullptr && !again)
    kLog.warning("no_io_uring", {{"reason", why}, {"effect", "queued file operations run on worker threads"}});
  had_ring = had_ring || ring != nullptr;
  return ring.get();
}

bool RealEnv::has_io_uring() { return state_->get_ring(*this) != nullptr; }

void RealEnv::on_signal(std::initializer_list<int> signals, UniqueFunction<void(int)> fn) {
  State& s = *state_;
  TM_CHECK(s.signal_fd < 0, "on_signal is called once");
  sigset_t set;
  sigemptyset(&set);
  for (int signal : signals) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  s.signal_fd = ::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  TM_CHECK(s.signal_fd >= 0, "no descriptor for signals");
  s.signal_callback = std::move(fn);
  Status status = add_fd(s.signal_fd, EPOLLIN, [this](uint32_t) {
    signalfd_siginfo info;
    while (::read(state_->signal_fd, &info, sizeof info) == sizeof info) {
      state_->signal_callback(static_cast<int>(info.ssi_signo));
    }
  });
  TM_CHECK(status.is_ok(), "epoll refused the signal descriptor");
}

void RealEnv::post(UniqueFunction<void()> fn) {
  State& s = *state_;
  {
    std::lock_guard lock(s.post_mutex);
    s.posted.push_back(std::move(fn));
    s.has_posted.store(true);
  }
  if (s.waiting.load()) s.wake();
}

TimerId RealEnv::after(Duration delay, UniqueFunction<void()> fn) {
  return state_->timers.add(now() + std::max(delay, Duration::zero()), std::move(fn));
}

void RealEnv::cancel(TimerId id) { state_->timers.cancel(id); }

void RealEnv::at_turn_end(UniqueFunction<void()> fn) { state_->turn_end.push_back(std::move(fn)); }

void RealEnv::offload(UniqueFunction<void()> work, UniqueFunction<void()> done) {
  state_->offload.run([this, work = std::move(work), done = std::move(done)]() mutable {
    work();
    post(std::move(done));
  });
}

BootTime RealEnv::now() { return {clock_ns(CLOCK_BOOTTIME)}; }
WallTime RealEnv::wall() { return {clock_ns(CLOCK_REALTIME)}; }

void RealEnv::random(MutableByteSpan out) {
  while (!out.empty()) {
    ssize_t n = ::getrandom(out.data(), out.size(), 0);
    TM_CHECK(n > 0 || errno == EINTR, "getrandom failed");
    if (n > 0) out = out.subspan(static_cast<size_t>(n));
  }
}

FileSystem& RealEnv::files() { return *state_->files; }

Result<std::unique_ptr<kv::Store>> RealEnv::open_store(const std::string& path, const kv::StoreOptions& options) {
  if (!state_->options.open_store) return Status(Code::kUnsupported, path + ": this program opens no stores");
  return state_->options.open_store(*this, path, options);
}

net::Network& RealEnv::network() {
  State& s = *state_;
  if (s.network == nullptr) {
    TM_CHECK(s.options.make_network, "this program was built without a network");
    s.network = s.options.make_network(*this, *this);
  }
  return *s.network;
}

Uuid RealEnv::boot_id() {
  static constexpr char kPath[] = "/proc/sys/kernel/random/boot_id";
  Result<Bytes> text = state_->files->read_file(kPath);
  TM_CHECK(text.is_ok(), "the kernel does not name its boot");
  auto id = Uuid::parse(as_text(*text).substr(0, 36));
  TM_CHECK(id.has_value(), "the kernel's boot id is no UUID");
  return *id;
}

Status RealEnv::add_fd(int fd, uint32_t events, FdCallback callback) {
  State& s = *state_;
  auto index = static_cast<size_t>(fd);
  if (index >= s.watches.size()) s.watches.resize(index + 1);
  TM_CHECK(s.watches[index] == nullptr, "one watch a descriptor");
  uint32_t generation = s.next_generation++;
  epoll_event event{};
  event.events = events;
  event.data.u64 = static_cast<uint64_t>(generation) << 32 | static_cast<uint32_t>(fd);
  if (::epoll_ctl(s.epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) return Status::from_errno(errno, "watch descriptor");
  s.watches[index] = std::make_unique<Watch>(Watch{fd, generation, std::move(callback)});
  return Status::ok();
}

Status RealEnv::modify_fd(int fd, uint32_t events) {
  State& s = *state_;
  auto index = static_cast<size_t>(fd);
  TM_CHECK(index < s.watches.size() && s.watches[index] != nullptr, "modify of a descriptor that is not watched");
  epoll_event event{};
  event.events = events;
  event.data.u64 = static_cast<uint64_t>(s.watches[index]->generation) << 32 | static_cast<uint32_t>(fd);
  if (::epoll_ctl(s.epoll_fd, EPOLL_CTL_MOD, fd, &event) != 0) return Status::from_errno(errno, "change watch");
  return Status::ok();
}

void RealEnv::remove_fd(int fd) {
  State& s = *state_;
  auto index = static_cast<size_t>(fd);
  if (index >= s.watches.size() || s.watches[index] == nullptr) return;
  ::epoll_ctl(s.epoll_fd, EPOLL_CTL_DEL, fd, nullptr);
  s.retired.push_back(std::move(s.watches[index]));
}

}  // namespace tidemark::io
