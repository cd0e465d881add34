// kv::Store with LMDB's semantics in memory: group commit, atomic and durable; snapshots of the last
// commit; a commit under way at a crash is there whole or not at all.
#include "shared/kv/store.h"

#include "tests/sim/sim_env_internal.h"

namespace tidemark::sim {

namespace {

struct BytesLess {
  using is_transparent = void;
  static bool less(ByteSpan a, ByteSpan b) {
    return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
  }
  bool operator()(const Bytes& a, const Bytes& b) const { return less(a, b); }
  bool operator()(const Bytes& a, ByteSpan b) const { return less(a, b); }
  bool operator()(ByteSpan a, const Bytes& b) const { return less(a, b); }
};
using TableMap = std::map<Bytes, Bytes, BytesLess>;
constexpr size_t kKeyBytesMax = 511;   // LMDB's, so that the simulator refuses what it would

bool keys_fit(const kv::WriteBatch& batch) {
  for (const auto& op : batch.ops()) {
    bool range = op.kind == kv::WriteBatch::Op::Kind::kEraseRange;
    if (op.key.size() > kKeyBytesMax || (!range && op.key.empty())) return false;
  }
  return true;
}

}  // namespace

struct StoreState {
  struct Pending {
    std::vector<std::string> tables;
    kv::WriteBatch batch;
    Callback<Status> done;
  };
  // Shared with snapshots: a table is copied before it changes while one looks at it.
  std::map<std::string, std::shared_ptr<TableMap>> tables;
  std::deque<Pending> queue;
  size_t under_way = 0;      // of the queue's head: in the transaction being written
  Status broken;
  bool unreadable = false;   // as well as broken

  TableMap& writable(const std::string& name) {
    auto& table = tables[name];
    if (table.use_count() > 1) table = std::make_shared<TableMap>(*table);
    return *table;
  }

  void apply(const Pending& pending) {
    for (const auto& op : pending.batch.ops()) {
      TableMap& table = writable(pending.tables.at(op.table));
      switch (op.kind) {
        case kv::WriteBatch::Op::Kind::kPut: table.insert_or_assign(op.key, op.value); break;
        case kv::WriteBatch::Op::Kind::kErase: table.erase(op.key); break;
        case kv::WriteBatch::Op::Kind::kEraseRange: {
          auto end = op.value.empty() ? table.end() : table.lower_bound(op.value);
          auto begin = table.lower_bound(op.key);
          if (op.value.empty() || op.key < op.value) table.erase(begin, end);
          break;
        }
      }
    }
  }
};

namespace {

class SimCursor final : public kv::Cursor {
 public:
  explicit SimCursor(std::shared_ptr<const TableMap> table) : table_(std::move(table)), at_(table_->end()) {}
  bool seek(ByteSpan key) override { return stand(table_->lower_bound(key)); }
  bool seek_before(ByteSpan key) override {
    auto it = table_->lower_bound(key);
    return stand(it == table_->begin() ? table_->end() : std::prev(it));
  }
  bool first() override { return stand(table_->begin()); }
  bool last() override { return stand(table_->empty() ? table_->end() : std::prev(table_->end())); }
  bool next() override { return at_ != table_->end() && stand(std::next(at_)); }
  bool previous() override {
    return at_ != table_->end() && stand(at_ == table_->begin() ? table_->end() : std::prev(at_));
  }
  ByteSpan key() const override { return at_->first; }
  ByteSpan value() const override { return at_->second; }

 private:
  bool stand(TableMap::const_iterator it) {
    at_ = it;
    return at_ != table_->end();
  }
  std::shared_ptr<const TableMap> table_;   // shared with the store until it changes
  TableMap::const_iterator at_;
};

class SimSnapshot final : public kv::Snapshot {
 public:
  SimSnapshot(const StoreState& state, const std::vector<std::string>& names) {
    for (const auto& name : names) tables_.push_back(state.tables.at(name));
  }
  Result<Bytes> get(kv::Table table, ByteSpan key) override {
    auto it = tables_.at(table)->find(key);
    if (it == tables_.at(table)->end()) return Status(Code::kNotFound, "no such key");
    return it->second;
  }
  std::unique_ptr<kv::Cursor> cursor(kv::Table table) override {
    return std::make_unique<SimCursor>(tables_.at(table));
  }

 private:
  std::vector<std::shared_ptr<const TableMap>> tables_;   // shared with the store until it changes
};

class SimStore final : public kv::Store {
 public:
  SimStore(SimEnv& env, std::string path, const kv::StoreOptions& options, std::shared_ptr<StoreState> state)
      : env_(env), path_(std::move(path)), options_(options), state_(std::move(state)) {
    for (const auto& name : options.tables) {
      if (!state_->tables.contains(name)) state_->tables[name] = std::make_shared<TableMap>();
    }
    ProcessAccess::internals(env_).open_stores.insert(state_.get());
  }

  ~SimStore() override {
    *alive_ = false;
    if (!env_.alive()) return;
    while (!state_->queue.empty()) {   // waits for commits in flight; their callbacks do not run
      take_front();
    }
    state_->under_way = 0;
    state_->broken = Status::ok();
    state_->unreadable = false;
    ProcessAccess::internals(env_).open_stores.erase(state_.get());
  }

  Result<std::unique_ptr<kv::Snapshot>> try_snapshot() override {
    if (state_->unreadable) return state_->broken;
    return std::unique_ptr<kv::Snapshot>(std::make_unique<SimSnapshot>(*state_, options_.tables));
  }

  void commit(kv::WriteBatch batch, Callback<Status> done) override {
    Operation op(env_);
    if (op.dead()) return;
    Status refused = check(batch, op.fault());
    if (!refused) {
      // Answered in its turn, like the rest.
      batch.clear();
      done = [refused, done = std::move(done)](Status) mutable { done(std::move(refused)); };
    }
    const std::string& early = ProcessAccess::machine(env_).commits_answered_early;
    if (!early.empty() && path_.find(early) != std::string::npos) {
      answer(std::move(done));
      done = [](Status) {};
    }
    state_->queue.push_back({options_.tables, std::move(batch), std::move(done)});
    if (state_->under_way == 0) begin_transaction();
  }

  Status commit_and_wait(kv::WriteBatch batch) override {
    Operation op(env_);
    if (op.dead()) return Operation::dead_status();
    TM_RETURN_IF_ERROR(check(batch, op.fault()));
    // Time cannot pass here, so all that is queued before it becomes durable now.
    while (!state_->queue.empty()) answer(take_front());
    state_->under_way = 0;
    ++*transaction_;
    state_->apply({options_.tables, std::move(batch), {}});
    return Status::ok();
  }

  Result<Usage> usage() override {
    uint64_t bytes = 0;
    for (const auto& [name, table] : state_->tables) {
      for (const auto& [key, value] : *table) bytes += key.size() + value.size();
    }
    uint64_t pages = bytes / kPageBytes + 2;
    return Usage{pages * kPageBytes, pages * kPageBytes, options_.map_bytes_max};
  }

 private:
  World::State& world() { return ProcessAccess::world(env_); }

  Status check(const kv::WriteBatch& batch, const std::optional<Status>& fault) {
    if (options_.read_only) return Status(Code::kUnsupported, path_ + ": opened for reading only");
    if (!state_->broken) return state_->broken;
    if (!keys_fit(batch)) return Status(Code::kInvalidArgument, path_ + ": key empty or over 511 bytes");
    const StoreFault* lasting = ProcessAccess::machine(env_).fault_of_store(path_);
    Status status = fault ? *fault : lasting != nullptr ? lasting->status : Status::ok();
    if (!status && status.code() != Code::kOutOfSpace) {
      state_->broken = status;
      state_->unreadable = !fault && lasting->reads;
    }
    return status;
  }

  Callback<Status> take_front() {
    StoreState::Pending pending = std::move(state_->queue.front());
    state_->queue.pop_front();
    state_->apply(pending);
    return std::move(pending.done);
  }

  void answer(Callback<Status> done) {
    env_.post([alive = alive_, done = std::move(done)]() mutable {
      if (*alive) done(Status::ok());
    });
  }

  void begin_transaction() {
    state_->under_way = state_->queue.size();
    uint64_t number = ++*transaction_;
    Duration latency = world().random.in(world().options.commit_latency);
    if (const StoreFault* fault = ProcessAccess::machine(env_).fault_of_store(path_)) latency += fault->delay;
    world().schedule(&env_, latency, EventKind::kCommit, state_->under_way,
                     [this, alive = alive_, transaction = transaction_, number] {
                       if (*alive && *transaction == number) end_transaction();
                     });
  }

  void end_transaction() {
    // The store may be destroyed by a callback; it runs later, as the real one's do.
    for (size_t n = std::exchange(state_->under_way, 0); n > 0; --n) answer(take_front());
    if (!state_->queue.empty()) begin_transaction();
  }

  SimEnv& env_;
  const std::string path_;
  const kv::StoreOptions options_;
  const std::shared_ptr<StoreState> state_;   // shared with the machine, which keeps it over crashes
  // Shared with events under way, which may come after the store's end.
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  const std::shared_ptr<uint64_t> transaction_ = std::make_shared<uint64_t>(0);
};

}  // namespace

Result<std::unique_ptr<kv::Store>> open_sim_store(SimEnv& env, const std::string& path,
                                                  const kv::StoreOptions& options) {
  if (!env.alive()) return Operation::dead_status();
  auto& stores = ProcessAccess::machine(env).stores;
  const StoreFault* fault = ProcessAccess::machine(env).fault_of_store(path);
  const std::string key = fault != nullptr && fault->forgets ? "/another disk" + path : path;
  const bool makes = options.create && !options.read_only;
  if (!makes && !stores.contains(key)) return Status(Code::kNotFound, path + ": no such store");
  auto& state = stores[key];
  if (state == nullptr) state = std::make_shared<StoreState>();
  if (ProcessAccess::internals(env).open_stores.contains(state.get())) {
    return Status(Code::kBusy, path + ": already open in this process");
  }
  if (fault != nullptr && fault->opens) return fault->status;
  if (!options.read_only) TM_RETURN_IF_ERROR(ProcessAccess::machine(env).disk.make_directories(path));
  return std::unique_ptr<kv::Store>(std::make_unique<SimStore>(env, path, options, state));
}

std::shared_ptr<StoreState> copy_of(const StoreState& store) {
  auto out = std::make_shared<StoreState>();   // shared as all of a machine's are
  for (const auto& [name, table] : store.tables) out->tables[name] = std::make_shared<TableMap>(*table);
  return out;
}

void crash_stores(Machine& machine, Random& random) {
  for (auto& [path, state] : machine.stores) {
    if (state->under_way > 0 && random.coin()) {
      for (size_t i = 0; i < state->under_way; ++i) state->apply(state->queue[i]);
    }
    // The dead process's store still looks at the old state; the next one starts from a copy.
    auto next = std::make_shared<StoreState>();
    next->tables = state->tables;
    state = next;
  }
}

std::map<Bytes, Bytes> committed_table(Machine& machine, const std::string& store, const std::string& table) {
  auto state = machine.stores.find(store);
  if (state == machine.stores.end()) return {};
  auto at = state->second->tables.find(table);
  if (at == state->second->tables.end()) return {};
  return {at->second->begin(), at->second->end()};
}

}  // namespace tidemark::sim
