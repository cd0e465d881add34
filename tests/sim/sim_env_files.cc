// FileSystem and File over a simulated Disk: time, faults and crash points.
#include <cerrno>
#include <cstring>

#include "shared/base/digest.h"
#include "tests/sim/sim_env_internal.h"

namespace tidemark::sim {
namespace {

using io::IoMode;
constexpr uint16_t kHangingFileOps = static_cast<uint16_t>(FileOp::kRead) | static_cast<uint16_t>(FileOp::kWrite) |
                                     static_cast<uint16_t>(FileOp::kSync) | static_cast<uint16_t>(FileOp::kPunch) |
                                     static_cast<uint16_t>(FileOp::kAllocate);

class SimFile final : public io::File {
 public:
  SimFile(SimEnv& env, std::string path, std::shared_ptr<Inode> inode, const io::OpenOptions& options)
      : env_(env), path_(std::move(path)), path_digest_(digest64(as_bytes(path_))), inode_(std::move(inode)),
        direct_(options.direct), read_only_(options.read_only), whole_(options.whole) {}

  ~SimFile() override { TM_CHECK(in_flight_ == 0 || !env_.alive(), "file destroyed with operations in flight"); }

  void read(uint64_t offset, MutableByteSpan out, IoMode mode, Callback<Status> done) override {
    Operation op(env_, FileOp::kRead, path_);
    if (op.dead()) return;
    Status status = op.fault() ? *op.fault() : check(offset, out.size(), out.data(), false);
    const Machine& m = machine();
    const bool slow = !m.slow_path.empty() && path_.find(m.slow_path) != std::string::npos;
    DurationRange latency = world().options.file_latency;
    if (slow) latency = {latency.min + m.slow_by, latency.max + m.slow_by};
    complete(op, slow ? IoMode::kQueued : mode, latency, offset, [this, offset, out, status] {
      if (status && !inode_->readable(offset, out.size()))
        return Status::from_errno(EIO, path_ + ": bad sector, read at " + std::to_string(offset));
      if (status && whole_ && !out.empty() && offset + out.size() > inode_->size())
        return Status(Code::kCorruption, path_ + ": it was cut short at " + std::to_string(inode_->size()));
      if (status) inode_->read(offset, out);
      return status;
    }, std::move(done));
  }

  void write(uint64_t offset, ByteSpan data, IoMode mode, Callback<Status> done) override {
    Operation op(env_, FileOp::kWrite, path_);
    if (op.dead()) return;
    Status status = check(offset, data.size(), data.data(), true);
    bool partly = status.is_ok() && op.fault();
    if (partly) status = *op.fault();
    if (status && !machine().disk.has_room(*inode_, offset, data.size())) {
      status = Status::from_errno(ENOSPC, path_ + ": write at " + std::to_string(offset));
    }
    uint64_t id = internals().next_write++;
    if (status) internals().writes[id] = {inode_, offset, data};
    world().mix(data.size() <= 65536 ? digest64(data) : data.size());
    complete(op, mode, world().options.file_latency, offset, [this, id, offset, data, status, partly] {
      internals().writes.erase(id);
      if (status) inode_->write(offset, data);
      else if (partly) inode_->write_some(offset, data, world().random);
      return status;
    }, std::move(done));
  }

  void sync(IoMode mode, Callback<Status> done) override {
    Operation op(env_, FileOp::kSync, path_);
    if (op.dead()) return;
    auto point = inode_->begin_sync();
    Status status = op.fault().value_or(Status::ok());
    complete(op, mode, world().options.sync_latency, 1, [this, point = std::move(point), status](bool fails = false) {
      inode_->end_sync(*point, status.is_ok() && !fails);
      return status;
    }, std::move(done));
  }

  void punch(uint64_t offset, uint64_t length, Callback<Status> done) override {
    Operation op(env_, FileOp::kPunch, path_);
    if (op.dead()) return;
    Status status = op.fault() ? *op.fault() : writable();
    complete(op, IoMode::kQueued, world().options.file_latency, offset, [this, offset, length, status] {
      if (status) inode_->punch(offset, length);
      return status;
    }, std::move(done));
  }

  void allocate(uint64_t offset, uint64_t length, Callback<Status> done) override {
    Operation op(env_, FileOp::kAllocate, path_);
    if (op.dead()) return;
    Status status = op.fault() ? *op.fault() : writable();
    if (status && !machine().disk.has_room(*inode_, offset, length)) {
      status = Status::from_errno(ENOSPC, path_ + ": allocate");
    }
    complete(op, IoMode::kQueued, world().options.file_latency, offset, [this, offset, length, status] {
      if (status) inode_->allocate(offset, length);
      return status;
    }, std::move(done));
  }

  Status truncate(uint64_t size) override {
    Operation op(env_, FileOp::kTruncate, path_);
    if (op.dead()) return Operation::dead_status();
    if (op.fault()) return *op.fault();
    TM_RETURN_IF_ERROR(writable());
    inode_->truncate(size);
    return Status::ok();
  }

  Result<Extent> next_data(uint64_t offset) override { return inode_->next_data(offset); }
  Result<io::FileStat> stat() override { return io::FileStat{inode_->size(), inode_->allocated(), false}; }
  // At once: who looks at a status after each event would make an event each time.
  void ask_stat(IoMode, Callback<Result<io::FileStat>> done) override { done(stat()); }
  bool is_direct() const override { return direct_; }

 private:
  World::State& world() { return ProcessAccess::world(env_); }
  Machine& machine() { return ProcessAccess::machine(env_); }
  SimEnv::Internals& internals() { return ProcessAccess::internals(env_); }

  Status writable() const {
    return read_only_ ? Status::from_errno(EBADF, path_ + ": opened for reading only") : Status::ok();
  }

  Status check(uint64_t offset, size_t length, const void* data, bool writing) const {
    if (writing) TM_RETURN_IF_ERROR(writable());
    auto bits = offset | length | reinterpret_cast<uintptr_t>(data);
    if (direct_ && length != 0 && bits % kAlignment != 0) {
      return Status(Code::kInvalidArgument, path_ + ": direct I/O that is not aligned to 4096");
    }
    return Status::ok();
  }

  template <typename Work>
  void complete(const Operation& op, IoMode mode, DurationRange latency, uint64_t detail, Work work,
                Callback<Status> done) {
    if (op.hangs()) {
      ++in_flight_;
      machine().hung.push_back({&env_, [this, work = std::move(work), done = std::move(done)](int error) mutable {
        --in_flight_;
        Status status;
        // Other operations land before they fail; of a sync that failed nothing is known to be durable.
        if constexpr (std::is_invocable_v<Work&, bool>) status = work(error != 0);
        else status = work();
        done(error != 0 ? Status::from_errno(error, path_ + ": it hung, then failed") : std::move(status));
      }});
      return;
    }
    if (mode == IoMode::kInline && world().random.chance(world().options.inline_percent, 100)) {
      done(work());
      return;
    }
    ++in_flight_;
    world().schedule(&env_, world().random.in(latency), EventKind::kFile, path_digest_ ^ detail,
                     [this, work = std::move(work), done = std::move(done)]() mutable {
                       --in_flight_;
                       done(work());
                     });
  }

  SimEnv& env_;
  const std::string path_;
  const uint64_t path_digest_;
  const std::shared_ptr<Inode> inode_;   // shared with the disk's names and writes in flight
  const bool direct_;
  const bool read_only_;
  const bool whole_;
  uint32_t in_flight_ = 0;
};

class SimFileSystem final : public io::FileSystem {
 public:
  explicit SimFileSystem(SimEnv& env) : env_(env) {}

  Result<std::unique_ptr<io::File>> open(const std::string& path, const io::OpenOptions& options) override {
    bool creates = options.create && !disk().find(path);
    std::optional<Operation> op;
    if (creates) op.emplace(env_, FileOp::kOpen, path);
    if (creates ? op->dead() : !env_.alive()) return Operation::dead_status();
    if (creates && op->fault()) return *op->fault();
    TM_ASSIGN_OR_RETURN(auto inode, disk().open(path, options));
    return std::unique_ptr<io::File>(std::make_unique<SimFile>(env_, path, std::move(inode), options));
  }

  Result<io::FileStat> stat(const std::string& path) override {
    if (!env_.alive()) return Operation::dead_status();
    TM_ASSIGN_OR_RETURN(auto inode, disk().find(path));
    return io::FileStat{inode->size(), inode->allocated(), inode->is_directory};
  }

  Status make_directories(const std::string& path) override {
    return change(FileOp::kMakeDirectory, path, [&] { return disk().make_directories(path); });
  }
  Result<std::vector<std::string>> list(const std::string& directory) override {
    if (!env_.alive()) return Operation::dead_status();
    return disk().list(directory);
  }
  Status rename(const std::string& from, const std::string& to) override {
    return change(FileOp::kRename, to, [&] { return disk().rename(from, to); });
  }
  Status unlink(const std::string& path) override {
    return change(FileOp::kUnlink, path, [&] { return disk().unlink(path); });
  }
  Status sync_directory(const std::string& path) override {
    return change(FileOp::kSyncDirectory, path, [&] { return disk().sync_directory(path); });
  }

  Result<Space> space(const std::string&) override {
    uint64_t used = disk().used();
    return Space{disk().capacity(), disk().capacity() - std::min(used, disk().capacity())};
  }
  Result<uint64_t> mount_identity(const std::string& path) override {
    TM_ASSIGN_OR_RETURN(auto inode, disk().find(path));
    return digest64(ProcessAccess::machine(env_).boot_id.bytes, as_bytes(env_.node()));
  }

  Result<Bytes> read_file(const std::string& path) override {
    Operation op(env_, FileOp::kRead, path);
    if (op.dead()) return Operation::dead_status();
    if (op.fault()) return *op.fault();
    TM_ASSIGN_OR_RETURN(auto inode, disk().find(path));
    if (inode->is_directory) return Status::from_errno(EISDIR, path + ": read");
    Bytes out(inode->size());
    inode->read(0, out);
    return out;
  }

  Status write_file_atomically(const std::string& path, ByteSpan data, uint32_t) override {
    const std::string temporary = path + ".tmp";
    std::shared_ptr<Inode> inode;   // shared with the disk
    TM_RETURN_IF_ERROR(change(FileOp::kWrite, temporary, [&]() -> Status {
      TM_ASSIGN_OR_RETURN(inode, disk().open(temporary, {.create = true}));
      inode->truncate(0);
      if (!disk().has_room(*inode, 0, data.size())) return Status::from_errno(ENOSPC, temporary + ": write");
      inode->write(0, data);
      return Status::ok();
    }));
    TM_RETURN_IF_ERROR(change(FileOp::kSync, temporary, [&] {
      inode->end_sync(*inode->begin_sync(), true);
      return Status::ok();
    }));
    TM_RETURN_IF_ERROR(rename(temporary, path));
    size_t slash = path.rfind('/');
    return sync_directory(slash == 0 || slash == std::string::npos ? "/" : path.substr(0, slash));
  }

 private:
  Disk& disk() { return ProcessAccess::machine(env_).disk; }

  template <typename F>
  Status change(FileOp kind, const std::string& path, F act) {
    Operation op(env_, kind, path);
    if (op.dead()) return Operation::dead_status();
    if (op.fault()) return *op.fault();
    ProcessAccess::world(env_).mix(digest64(as_bytes(path)) ^ static_cast<uint64_t>(kind));
    return act();
  }

  SimEnv& env_;
};

}  // namespace

Operation::Operation(SimEnv& env, FileOp op, const std::string& path) : env_(env) {
  if (!env.alive()) { dead_ = true; return; }
  Machine& machine = ProcessAccess::machine(env);
  auto bit = static_cast<uint16_t>(op);
  if ((bit & kMutatingFileOps) != 0) ++machine.file_operations;
  for (auto it = machine.file_faults.begin(); it != machine.file_faults.end(); ++it) {
    if ((bit & it->operations) == 0 || path.find(it->path_contains) == std::string::npos) continue;
    if (it->nth > 1) { --it->nth; continue; }
    if (it->hangs && (bit & kHangingFileOps) == 0) continue;
    if (it->hangs) hangs_ = true;
    else fault_ = Status::from_errno(it->error, path + ": injected fault");
    if (--it->times == 0) machine.file_faults.erase(it);
    break;
  }
  const auto& point = machine.crash_point;
  look_for_crash(point && !point->at_commits && (bit & point->operations) != 0);
}

Operation::Operation(SimEnv& env) : env_(env) {
  if (!env.alive()) { dead_ = true; return; }
  Machine& machine = ProcessAccess::machine(env);
  ++machine.commits;
  if (machine.commit_fault) {
    fault_ = std::move(machine.commit_fault);
    machine.commit_fault.reset();
  }
  look_for_crash(machine.crash_point && machine.crash_point->at_commits);
}

void Operation::look_for_crash(bool matches) {
  Machine& machine = ProcessAccess::machine(env_);
  if (!matches || --machine.crash_point->nth > 0) return;
  World::State& world = ProcessAccess::world(env_);
  if (world.random.coin()) {
    crash_after_ = true;   // the operation takes effect, or is under way, when the process dies
    return;
  }
  dead_ = true;
  world.crash(machine, machine.crash_point->kind);
}

Operation::~Operation() {
  Machine& machine = ProcessAccess::machine(env_);
  if (crash_after_ && env_.alive() && machine.crash_point) {
    ProcessAccess::world(env_).crash(machine, machine.crash_point->kind);
  }
}

std::unique_ptr<io::FileSystem> make_files(SimEnv& env) { return std::make_unique<SimFileSystem>(env); }

}  // namespace tidemark::sim
