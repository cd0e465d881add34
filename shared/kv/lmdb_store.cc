#include "shared/kv/lmdb_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

#include "shared/base/log.h"
#include "shared/io/file.h"
#include "shared/kv/lmdb_check.h"
#include "shared/kv/lmdb_fault.h"
#include "shared/kv/lmdb_read.h"
#include "shared/kv/lmdb_write.h"

namespace tidemark::kv {
namespace {

using namespace lmdb;  // this folder's own

const log::Logger kLog("store");

constexpr size_t kGroupBytesMax = 8u << 20;       // of batches joined in one transaction
constexpr unsigned kReadersMax = 512;             // snapshots at once
constexpr uint64_t kReserveBytes = 4ull << 20;    // storage kept allocated ahead of the last page
constexpr off_t kLockBytes = 64 << 10;            // more than LMDB's lock file takes for so many readers
constexpr off_t kFirstBytes = 256 << 10;          // of a new store: its tables

// A process that was killed as it read keeps its slot, and with it all pages that were freed since; LMDB looks for such
// ones only where it is told to. Any thread.
void clear_dead_readers(MDB_env* env, const std::string& path) {
  int dead = 0;
  const int rc = mdb_reader_check(env, &dead);
  if (rc != 0) kLog.warning("stale_readers_unknown", {{"path", path}, {"status", to_status(rc, "reader slots")}});
  if (dead > 0) kLog.info("stale_readers_cleared", {{"path", path}, {"count", dead}});
}

// Directories open in this process: LMDB's file locks break when one is opened twice.
class OpenGuard {
 public:
  static std::unique_ptr<OpenGuard> take(const std::string& path) {
    char resolved[PATH_MAX];
    std::string name = ::realpath(path.c_str(), resolved) != nullptr ? resolved : path;
    std::lock_guard lock(mutex());
    if (!names().insert(name).second) return nullptr;
    return std::unique_ptr<OpenGuard>(new OpenGuard(std::move(name)));
  }
  ~OpenGuard() {
    std::lock_guard lock(mutex());
    names().erase(name_);
  }

 private:
  explicit OpenGuard(std::string name) : name_(std::move(name)) {}
  static std::mutex& mutex() { static std::mutex m; return m; }
  static std::set<std::string>& names() { static std::set<std::string> n; return n; }
  const std::string name_;
};

class LmdbStore final : public Store {
 public:
  struct Tables {
    std::vector<MDB_dbi> handles;
    std::vector<uint64_t> seals;     // empty: an older version's store
  };
  LmdbStore(io::Env& env, std::string path, bool read_only, std::unique_ptr<OpenGuard> guard, EnvHandle handle,
            Tables tables)
      : env_(env), path_(std::move(path)), read_only_(read_only), guard_(std::move(guard)), handle_(std::move(handle)),
        fault_watch_(path_, page_bytes_of(handle_.get())), tables_(std::move(tables.handles)),
        seals_(std::move(tables.seals)), readers_(handle_.get()) {
    if (!read_only_) writer_ = std::thread([this] { write_loop(); });
  }

  ~LmdbStore() override {
    *alive_ = false;
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (writer_.joinable()) writer_.join();
  }

  // LMDB refuses readers, too (MDB_PANIC), once it could not write its meta page.
  Result<std::unique_ptr<Snapshot>> try_snapshot() override {
    Result<MDB_txn*> txn = readers_.take();
    if (!txn) return txn.status().with_context(path_);
    return make_snapshot(readers_, *txn, tables_, seals_);
  }

  void commit(WriteBatch batch, Callback<Status> done) override {
    {
      std::lock_guard lock(mutex_);
      queue_.push_back({std::move(batch), std::move(done), nullptr});
    }
    wake_.notify_one();
    if (read_only_) refuse_all();
  }

  Status commit_and_wait(WriteBatch batch) override {
    if (read_only_) return read_only_status();
    Waiter waiter;
    {
      std::lock_guard lock(mutex_);
      queue_.push_back({std::move(batch), {}, &waiter});
    }
    wake_.notify_one();
    std::unique_lock lock(mutex_);
    answered_.wait(lock, [&] { return waiter.answered; });
    return std::move(waiter.status);
  }

  Result<Usage> usage() override {
    struct stat st;
    std::string file = path_ + "/data.mdb";
    if (::stat(file.c_str(), &st) != 0) return Status::from_errno(errno, file + ": stat");
    MDB_envinfo info;
    MDB_stat page;
    mdb_env_info(handle_.get(), &info);
    mdb_env_stat(handle_.get(), &page);
    Result<MDB_txn*> txn = readers_.take();
    if (!txn) return txn.status();
    uint64_t free_pages = 0;
    int rc = count_free_pages(*txn, &free_pages);
    readers_.give_back(*txn);
    if (rc != 0) return to_status(rc, path_ + ": free list");
    uint64_t pages = info.me_last_pgno + 1;
    uint64_t used = (pages - std::min(pages, free_pages)) * page.ms_psize;
    return Usage{static_cast<uint64_t>(st.st_size), used, info.me_mapsize};
  }

 private:
  struct Waiter {
    bool answered = false;   // guarded by mutex_
    Status status;
  };
  struct Pending {
    WriteBatch batch;
    Callback<Status> done;
    Waiter* waiter;          // instead of `done`
  };
  struct Answer {
    Callback<Status> done;
    Status status;
  };

  Status read_only_status() const { return Status(Code::kUnsupported, path_ + ": opened for reading only"); }

  void refuse_all() {
    std::vector<Pending> refused;
    {
      std::lock_guard lock(mutex_);
      std::move(queue_.begin(), queue_.end(), std::back_inserter(refused));
      queue_.clear();
    }
    for (auto& pending : refused) answer({&pending, 1}, read_only_status());
  }

  // The free list is LMDB's table 0: transaction id -> count and page numbers.
  static int count_free_pages(MDB_txn* txn, uint64_t* count) {
    MDB_cursor* raw = nullptr;
    if (int rc = mdb_cursor_open(txn, 0, &raw); rc != 0) return rc;
    CursorHandle cursor(raw);
    MDB_val k{}, v{};
    int rc;
    while ((rc = mdb_cursor_get(raw, &k, &v, MDB_NEXT)) == 0) *count += load_le<uint64_t>(to_span(v).data());
    return rc == MDB_NOTFOUND ? 0 : rc;
  }

  static size_t page_bytes_of(MDB_env* env) {
    MDB_stat page{};
    return mdb_env_stat(env, &page) == 0 ? page.ms_psize : 0;
  }

  void write_loop() {
    sigset_t all;
    sigfillset(&all);   // the daemon's signals belong to its loop
    sigdelset(&all, SIGBUS);   // but for what this thread itself meets in the map: FaultWatch
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    std::vector<Pending> group;
    while (take_group(group)) {
      commit_group(group);
      group.clear();
    }
  }

  bool take_group(std::vector<Pending>& group) {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    size_t bytes = 0;
    while (!queue_.empty() && (group.empty() || bytes + queue_.front().batch.bytes() <= kGroupBytesMax)) {
      bytes += queue_.front().batch.bytes();
      group.push_back(std::move(queue_.front()));
      queue_.pop_front();
    }
    return !group.empty();
  }

  void commit_group(std::vector<Pending>& group) {
    Status status = commit_together(group);
    if (status.is_ok() || group.size() == 1 || !broken_.is_ok()) {
      answer(group, status);
      return;
    }
    // One batch must not fail its neighbours: each by itself, in their order.
    for (auto& pending : group) {
      std::span<Pending> one(&pending, 1);
      answer(one, commit_together(one));
    }
  }

  Status commit_together(std::span<Pending> group) {
    if (!broken_.is_ok()) return broken_;
    uint64_t bytes = 0;
    bool erasing = true;
    for (const auto& pending : group) {
      if (!keys_fit(pending.batch)) return Status(Code::kInvalidArgument, path_ + ": key empty or over 511 bytes");
      bytes += pending.batch.bytes();
      erasing = erasing && only_erases(pending.batch);
    }
    // Erasing is let through on a full disk: it makes room, and mostly runs on free pages.
    Status reserved = reserve(bytes);
    if (!reserved && !(erasing && reserved.code() == Code::kOutOfSpace)) return reserved;
    MDB_txn* raw = nullptr;
    int rc = mdb_txn_begin(handle_.get(), nullptr, 0, &raw);
    if (rc == 0) {
      Transaction txn(raw, tables_, seals_);
      for (const auto& pending : group) {
        rc = txn.apply(pending.batch);
        if (rc != 0) break;
      }
      if (rc == 0) rc = txn.commit();
    }
    Status status = to_status(rc, path_ + ": commit");
    if (status.code() == Code::kOutOfSpace) clear_dead_readers(handle_.get(), path_);   // for the next one
    bool survivable = status.code() == Code::kOutOfSpace || status.code() == Code::kInvalidArgument;
    if (!status && !survivable) {
      broken_ = status;
      kLog.error("store_lost", {{"path", path_}, {"status", status},
                                 {"effect", "it takes nothing more until it is opened anew"}});
    }
    return status;
  }

  // Allocates storage beyond the file's last page, so that a full disk shows here, where nothing is
  // at stake: inside LMDB a short write looks like EIO, after which the store would be given up.
  Status reserve(uint64_t batch_bytes) {
    MDB_envinfo info;
    MDB_stat page;
    mdb_env_info(handle_.get(), &info);
    mdb_env_stat(handle_.get(), &page);
    uint64_t used = (info.me_last_pgno + 1) * page.ms_psize;
    // What grows may be kept from using its own free pages again.
    if (used > looked_for_readers_at_ + kReserveBytes) {
      looked_for_readers_at_ = used;
      clear_dead_readers(handle_.get(), path_);
    }
    // Copy-on-write of the path to each touched leaf comes on top of the data.
    uint64_t needed = std::min<uint64_t>(used + 4 * batch_bytes + kReserveBytes / 4, info.me_mapsize);
    if (needed <= reserved_until_) return Status::ok();
    uint64_t target = needed + kReserveBytes;
    int fd = -1;
    mdb_env_get_fd(handle_.get(), &fd);
    int rc;
    do {
      rc = ::fallocate(fd, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(used), static_cast<off_t>(target - used));
    } while (rc != 0 && errno == EINTR);
    if (rc != 0 && errno == EOPNOTSUPP) {
      target = UINT64_MAX;   // this file system cannot: do without
    } else if (rc != 0) {
      Status refused = Status::from_errno(errno, path_ + ": reserve space");
      clear_dead_readers(handle_.get(), path_);   // what is erased meanwhile takes free pages
      return refused;
    }
    reserved_until_ = target;
    return Status::ok();
  }

  void answer(std::span<Pending> group, const Status& status) {
    auto answers = std::make_unique<std::vector<Answer>>();
    for (auto& pending : group) {
      if (pending.waiter == nullptr) {
        answers->push_back({std::move(pending.done), status});
        continue;
      }
      std::lock_guard lock(mutex_);
      pending.waiter->status = status;
      pending.waiter->answered = true;
      answered_.notify_all();
    }
    if (answers->empty()) return;
    env_.post([alive = alive_, answers = std::move(answers)] {
      for (auto& a : *answers) {
        if (!*alive) return;   // also when an earlier callback destroyed the store
        a.done(std::move(a.status));
      }
    });
  }

  io::Env& env_;
  const std::string path_;
  const bool read_only_;
  const std::unique_ptr<OpenGuard> guard_;
  const EnvHandle handle_;
  const FaultWatch fault_watch_;
  const std::vector<MDB_dbi> tables_;
  const std::vector<uint64_t> seals_;
  ReaderPool readers_;
  // Shared with answers under way on the loop; read and written on the loop thread only.
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);

  // Writer thread.
  Status broken_;
  uint64_t reserved_until_ = 0;
  uint64_t looked_for_readers_at_ = 0;   // where the last page ended then

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable answered_;
  std::deque<Pending> queue_;   // guarded by mutex_
  bool stopping_ = false;       // guarded by mutex_
  std::thread writer_;
};

// LMDB writes the lock file through a map, which a full disk would end with SIGBUS, and takes a short write of the
// other file for a broken disk: room for both is taken beforehand, where a full disk is an answer.
Status reserve_files(const std::string& path, bool read_only) {
  struct Wanted { const char* name; off_t bytes; };
  for (const Wanted& wanted : {Wanted{"/lock.mdb", kLockBytes}, Wanted{"/data.mdb", kFirstBytes}}) {
    const std::string file = path + wanted.name;
    struct stat st {};
    bool there = ::stat(file.c_str(), &st) == 0 && st.st_size != 0;
    if (wanted.bytes == kFirstBytes && (there || read_only)) continue;
    int fd = ::open(file.c_str(), O_RDWR | O_CLOEXEC | (read_only ? 0 : O_CREAT), 0600);
    if (fd < 0) continue;                // LMDB says what is wrong
    int rc;
    do {
      // One of an older version is full of holes; more than it is long it does not need.
      rc = ::fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, there ? st.st_size : wanted.bytes);
    } while (rc != 0 && errno == EINTR);
    const int error = rc == 0 ? 0 : errno;
    ::close(fd);
    if (error == ENOSPC || error == EDQUOT) return Status::from_errno(error, file + ": reserve space");
  }
  return Status::ok();
}

// A new store is sealed from its first transaction on; one of an older version stays as it is.
Status open_seal(MDB_txn* txn, const std::string& path, const StoreOptions& options,
                 std::vector<uint64_t>& seals) {
  const bool read_only = options.read_only;
  MDB_stat stat{};
  MDB_dbi main = 0, dbi = 0;
  int rc = mdb_dbi_open(txn, nullptr, 0, &main);
  if (rc == 0) rc = mdb_stat(txn, main, &stat);
  if (rc == 0) rc = mdb_dbi_open(txn, kSealTable, stat.ms_entries == 0 && !read_only ? MDB_CREATE : 0, &dbi);
  for (size_t i = 0; rc == 0 && i < options.tables.size(); ++i) seals.push_back(table_seal(options.tables[i]));
  for (size_t i = 0; rc == 0 && !read_only && i < options.tables.size(); ++i) {
    ByteSpan name = as_bytes(options.tables[i]);
    uint8_t seal[kSealBytes];
    store_le<uint64_t>(seal, seal_of(table_seal(kSealTable), name, {}));
    MDB_val k = to_val(name), v = to_val(seal);
    rc = mdb_put(txn, dbi, &k, &v, MDB_NOOVERWRITE);
    if (rc == MDB_KEYEXIST) rc = 0;
  }
  return rc == MDB_NOTFOUND ? Status::ok() : to_status(rc, path + ": table " + kSealTable);
}

Status open_tables(MDB_env* env, const std::string& path, const StoreOptions& options, LmdbStore::Tables& out) {
  std::vector<MDB_dbi>& tables = out.handles;
  MDB_txn* txn = nullptr;
  int rc = mdb_txn_begin(env, nullptr, options.read_only ? MDB_RDONLY : 0, &txn);
  if (rc != 0) return to_status(rc, path + ": open tables");
  if (Status s = open_seal(txn, path, options, out.seals); !s) {
    mdb_txn_abort(txn);
    return s;
  }
  for (const auto& name : options.tables) {
    MDB_dbi dbi = 0;
    rc = mdb_dbi_open(txn, name.c_str(), options.read_only ? 0 : MDB_CREATE, &dbi);
    if (rc != 0) {
      mdb_txn_abort(txn);
      return to_status(rc, path + ": table " + name);
    }
    tables.push_back(dbi);
  }
  return to_status(mdb_txn_commit(txn), path + ": open tables");
}

}  // namespace

Result<std::unique_ptr<Store>> open_lmdb_store(io::Env& env, const std::string& path, const StoreOptions& options) {
  struct stat st {};
  const bool there = options.create || (::stat((path + "/data.mdb").c_str(), &st) == 0 && st.st_size != 0);
  if (!there) return Status(Code::kNotFound, path + ": no store is there");
  if (!options.read_only) TM_RETURN_IF_ERROR(env.files().make_directories(path));
  auto guard = OpenGuard::take(path);
  if (guard == nullptr) return Status(Code::kBusy, path + ": already open in this process");

  TM_RETURN_IF_ERROR(check_before_open(path, options.read_only));
  TM_RETURN_IF_ERROR(reserve_files(path, options.read_only));
  MDB_env* raw = nullptr;
  int rc = mdb_env_create(&raw);
  if (rc != 0) return to_status(rc, path + ": create environment");
  EnvHandle handle(raw);
  // Address space only: the file grows as pages are used. Never resized while open.
  if ((rc = mdb_env_set_mapsize(raw, options.map_bytes_max)) != 0 ||
      (rc = mdb_env_set_maxdbs(raw, static_cast<MDB_dbi>(options.tables.size() + 1))) != 0 ||
      (rc = mdb_env_set_maxreaders(raw, kReadersMax)) != 0) {
    return to_status(rc, path + ": configure environment");
  }
  // NOTLS: a snapshot belongs to its object, not to the thread that made it.
  unsigned flags = MDB_NOTLS | MDB_NORDAHEAD | (options.read_only ? MDB_RDONLY : 0);
  if ((rc = mdb_env_open(raw, path.c_str(), flags, 0600)) != 0) return to_status(rc, path + ": open");
  // Where a meta page could not be written LMDB has put older bytes over it in memory alone: the disk may have the new
  // ones, whose pages the next transaction writes over. What is read from here on is what the disk has.
  if (!options.read_only && (rc = mdb_env_sync(raw, 1)) != 0) return to_status(rc, path + ": sync");
  clear_dead_readers(raw, path);

  LmdbStore::Tables tables;
  TM_RETURN_IF_ERROR(open_tables(raw, path, options, tables));
  if (!options.read_only) TM_RETURN_IF_ERROR(env.files().sync_directory(path));
  return std::unique_ptr<Store>(std::make_unique<LmdbStore>(env, path, options.read_only, std::move(guard),
                                                            std::move(handle), std::move(tables)));
}

}  // namespace tidemark::kv
