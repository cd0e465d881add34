#include "shared/io/ring.h"

#include <fcntl.h>
#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "shared/io/turn_share.h"

namespace tidemark::io {
namespace {

constexpr unsigned kSubmissionEntries = 512;
constexpr unsigned kCompletionEntries = 4096;   // also the bound of what the kernel holds at once
constexpr uint64_t kRingSectorBytes = 512;
constexpr unsigned kWorkersMax = 512;           // kernel threads for operations that block
constexpr int kLastWaits = 20;                  // in a row that nothing ends in: then it hangs
constexpr long long kLastWaitNs = 100'000'000;

struct Operation {
  Ring::Request request;
  uint32_t* owner_in_flight = nullptr;
  Callback<Status> done;
  Operation* next = nullptr;   // in the free list or in the backlog
};

const char* verb(Ring::Kind kind) {
  switch (kind) {
    case Ring::Kind::kRead: return "read";
    case Ring::Kind::kWrite: return "write";
    case Ring::Kind::kDataSync: return "fdatasync";
    case Ring::Kind::kFallocate: return "fallocate";
    case Ring::Kind::kStat: return "stat";
  }
  return "?";
}

}  // namespace

struct Ring::State {
  io_uring ring{};
  std::deque<Operation> slots;        // grows to the deepest queue seen; slots are used again
  Operation* free_list = nullptr;
  Operation* backlog_head = nullptr;  // queued, and not in the kernel's queue yet
  Operation* backlog_tail = nullptr;
  size_t in_kernel = 0;
  size_t in_flight = 0;
  bool orphaned = false;              // nothing can be submitted any more
  Heir heir;                          // what an orphan cannot submit goes there
  int event_fd = -1;

  ~State() { if (event_fd >= 0) ::close(event_fd); }

  Operation* take_slot() {
    if (free_list == nullptr) return &slots.emplace_back();
    Operation* op = free_list;
    free_list = op->next;
    return op;
  }

  void free_slot(Operation* op) {
    op->next = free_list;
    free_list = op;
  }

  void push_backlog(Operation* op) {
    op->next = nullptr;
    (backlog_tail == nullptr ? backlog_head : backlog_tail->next) = op;
    backlog_tail = op;
  }

  bool to_kernel(Operation* op, bool away) {
    if (in_kernel >= kCompletionEntries) return false;
    io_uring_sqe* sqe = io_uring_get_sqe(&ring);
    if (sqe == nullptr) return false;
    const Request& r = op->request;
    switch (r.kind) {
      case Kind::kRead: io_uring_prep_read(sqe, r.fd, r.data, static_cast<unsigned>(r.length), r.offset); break;
      case Kind::kWrite: io_uring_prep_write(sqe, r.fd, r.data, static_cast<unsigned>(r.length), r.offset); break;
      case Kind::kDataSync: io_uring_prep_fsync(sqe, r.fd, IORING_FSYNC_DATASYNC); break;
      case Kind::kFallocate:
        io_uring_prep_fallocate(sqe, r.fd, r.fallocate_mode, static_cast<off_t>(r.offset),
                                static_cast<off_t>(r.length));
        break;
      case Kind::kStat:
        io_uring_prep_statx(sqe, r.fd, "", AT_EMPTY_PATH, Ring::kStatMask, reinterpret_cast<struct statx*>(r.data));
        break;
    }
    io_uring_sqe_set_data(sqe, op);
    if (away || r.away) io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
    ++in_kernel;
    return true;
  }

  // True when the operation is over; false when its rest was queued again.
  bool advance(Operation* op, int result, Status* status) {
    Request& r = op->request;
    if (result == -EINTR || result == -EAGAIN) return false;
    if (result < 0) {
      if (try_again(r, -result)) return false;
      *status = Status::from_errno(-result, *r.path + ": " + verb(r.kind) + " at " + std::to_string(r.offset));
      return true;
    }
    if (r.kind != Kind::kRead && r.kind != Kind::kWrite) return true;
    auto moved = static_cast<uint64_t>(result);
    if (moved >= r.length) return true;
    if (r.kind == Kind::kRead && (moved == 0 || (r.direct && moved % kRingSectorBytes != 0))) {
      *status = at_end_of_file(r, moved);
      return true;
    }
    if (moved == 0) {
      *status = Status::from_errno(EIO, *r.path + ": write took nothing at " + std::to_string(r.offset));
      return true;
    }
    r.offset += moved;
    r.data += moved;
    r.length -= moved;
    return false;
  }

  Callback<Status> take_out(Operation* op) {
    --*op->owner_in_flight;
    --in_flight;
    return std::move(op->done);
  }

  void complete(Operation* op, int result) {
    --in_kernel;
    Status status;
    bool over = advance(op, result, &status);
    if (!over && !orphaned) return push_backlog(op);
    if (!over) return hand_over(op);
    Callback<Status> done = take_out(op);
    free_slot(op);
    done(std::move(status));
  }

  void hand_over(Operation* op) {
    heir(op->request, op->owner_in_flight, std::move(op->done));
    --in_flight;
    free_slot(op);
  }
};

const unsigned Ring::kStatMask = STATX_TYPE | STATX_SIZE | STATX_BLOCKS;

Ring::Ring(std::unique_ptr<State> state) : state_(std::move(state)) {}

bool Ring::try_again(Request& request, int error) {
  if (request.kind == Kind::kWrite || request.kind == Kind::kFallocate)
    static_cast<void>(::posix_fadvise(request.fd, 0, 0, POSIX_FADV_DONTNEED));   // not all files have such pages
  if (request.direct_fd < 0 || error == EIO) return false;
  request.fd = std::exchange(request.direct_fd, -1);
  request.direct = true;
  return true;
}

Status Ring::at_end_of_file(const Request& request, uint64_t moved) {
  if (request.whole) {
    return Status(Code::kCorruption, *request.path + " ends at " + std::to_string(request.offset + moved) +
                                         ": it was cut short, its bytes up to " +
                                         std::to_string(request.offset + request.length) + " are missing");
  }
  std::memset(request.data + moved, 0, request.length - moved);
  return Status::ok();
}

std::unique_ptr<Ring> Ring::create(std::string* why) {
  auto state = std::make_unique<State>();
  // The first set of flags lets completions be batched without interrupting the loop; older kernels
  // refuse it (before 6.1) or parts of it.
  const unsigned kChoices[] = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
      IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
      0,
  };
  int error = 0;
  for (unsigned flags : kChoices) {
    io_uring_params params{};
    params.flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
    params.cq_entries = kCompletionEntries;
    error = io_uring_queue_init_params(kSubmissionEntries, &state->ring, &params);
    if (error == 0) break;
  }
  if (error < 0) {
    *why = std::strerror(-error);
    return nullptr;
  }
  if ((state->ring.features & IORING_FEAT_NODROP) == 0) {
    io_uring_queue_exit(&state->ring);
    *why = "the kernel may drop completions (older than 5.5)";
    return nullptr;
  }
  io_uring_ring_dontfork(&state->ring);
  // What may block is handed to kernel threads: those that a hung device holds must not keep others waiting.
  unsigned workers[2] = {kWorkersMax, 0};
  if (io_uring_register_iowq_max_workers(&state->ring, workers) < 0) errno = 0;   // before 5.15: the kernel's own bound
  // Polling the ring's own descriptor does not wake for deferred completions; its eventfd does.
  state->event_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  error = state->event_fd < 0 ? -errno : io_uring_register_eventfd(&state->ring, state->event_fd);
  if (error < 0) {
    io_uring_queue_exit(&state->ring);
    *why = std::string("eventfd: ") + std::strerror(-error);
    return nullptr;
  }
  auto made = std::unique_ptr<Ring>(new Ring(std::move(state)));
  made->tell(false);
  return made;
}

Ring::~Ring() {
  abandon();
  io_uring_queue_exit(&state_->ring);
  // The kernel may still write to what its operations name; the process is about to end.
  if (state_->in_kernel > 0) static_cast<void>(state_.release());
}

void Ring::queue(const Request& request, uint32_t* in_flight, Callback<Status> done) {
  Operation* op = state_->take_slot();
  op->request = request;
  op->owner_in_flight = in_flight;
  op->done = std::move(done);
  ++state_->in_flight;
  state_->push_backlog(op);
}

void Ring::prepare(bool away) {
  State& s = *state_;
  while (s.backlog_head != nullptr && s.to_kernel(s.backlog_head, away)) s.backlog_head = s.backlog_head->next;
  if (s.backlog_head == nullptr) s.backlog_tail = nullptr;
}

void Ring::enter() {
  int n = io_uring_submit_and_get_events(&state_->ring);
  // EAGAIN, EBUSY and EINTR leave the entries queued; the next turn tries again.
  TM_CHECK(n >= 0 || n == -EAGAIN || n == -EBUSY || n == -EINTR, "io_uring_enter refused its own ring");
}

void Ring::reap() {
  State& s = *state_;
  // The rest is found by the next turn, which does not wait before: others want theirs.
  unsigned ready = std::min(io_uring_cq_ready(&s.ring), turn_share(s.in_flight));
  while (ready-- > 0) {
    io_uring_cqe* cqe = nullptr;
    if (io_uring_peek_cqe(&s.ring, &cqe) != 0 || cqe == nullptr) break;
    auto* op = static_cast<Operation*>(io_uring_cqe_get_data(cqe));
    int result = cqe->res;
    io_uring_cqe_seen(&s.ring, cqe);
    s.complete(op, result);
  }
}

void Ring::orphan(Heir heir) {
  State& s = *state_;
  s.orphaned = true;
  s.heir = std::move(heir);
  while (s.backlog_head != nullptr) {
    Operation* op = s.backlog_head;
    s.backlog_head = op->next;
    ++s.in_kernel;   // complete() counts it down
    s.complete(op, -EAGAIN);
  }
  s.backlog_tail = nullptr;
}

void Ring::abandon() {
  State& s = *state_;
  const bool was_orphaned = std::exchange(s.orphaned, true);
  std::vector<Callback<Status>> dropped;   // destroyed last: destructors may look here
  for (Operation* op = s.backlog_head; op != nullptr; op = op->next) dropped.push_back(s.take_out(op));
  s.backlog_head = s.backlog_tail = nullptr;
  if (was_orphaned) return;   // nobody here can ask the kernel
  for (int waits = 0; s.in_kernel > 0 && waits < kLastWaits; ++waits) {
    __kernel_timespec limit{.tv_sec = 0, .tv_nsec = kLastWaitNs};
    io_uring_cqe* cqe = nullptr;
    int n = io_uring_submit_and_wait_timeout(&s.ring, &cqe, 1, &limit, nullptr);
    if (n < 0 && n != -ETIME && n != -EINTR && n != -EAGAIN && n != -EBUSY) return;   // another thread's ring
    while (io_uring_peek_cqe(&s.ring, &cqe) == 0 && cqe != nullptr) {
      dropped.push_back(s.take_out(static_cast<Operation*>(io_uring_cqe_get_data(cqe))));
      io_uring_cqe_seen(&s.ring, cqe);
      --s.in_kernel;
      waits = 0;
    }
  }
}

bool Ring::has_ready() const { return io_uring_cq_ready(&state_->ring) > 0 || holds_back(); }
bool Ring::holds_back() const {   // all of them, where completions are deferred
  return !state_->orphaned && (__atomic_load_n(state_->ring.sq.kflags, __ATOMIC_RELAXED) & IORING_SQ_TASKRUN) != 0;
}
bool Ring::has_unsubmitted() const {
  return io_uring_sq_ready(&state_->ring) > 0 ||
         (state_->backlog_head != nullptr && state_->in_kernel < kCompletionEntries);
}
int Ring::event_fd() const { return state_->event_fd; }

void Ring::tell(bool by_event_fd) {
  // Not before 5.8: then it tells always, and the loop wakes now and then for nothing.
  static_cast<void>(io_uring_cq_eventfd_toggle(&state_->ring, by_event_fd));
  std::atomic_thread_fence(std::memory_order_seq_cst);   // the caller looks at has_ready() next
}

size_t Ring::in_flight() const { return state_->in_flight; }

}  // namespace tidemark::io
