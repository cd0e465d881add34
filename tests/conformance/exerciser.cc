// Random operations on one file, by several processes, checked against a model of its bytes after each read.
//
//   exerciser FILE [--seed N] [--operations N] [--processes N] [--size BYTES] [--native] [--model OUT]
//
// Sequential steps: any operation, by any of the processes. Between them rounds in which all of them write, read, punch
// or zero at once, in places that do not overlap. At the end the whole file is read back; with --model what it must
// hold is written to OUT, so that other copies can be compared. A failure names the seed, which replays exactly, and
// the operations that came last. With --native (another file system) nothing is refused on purpose.
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr uint64_t kLengthMax = 2u << 20;

enum class Kind : uint32_t {
  kWrite, kDirectWrite, kAppend, kRead, kDirectRead, kMappedRead, kTruncate, kFtruncate, kPunch, kZero, kZeroKeep,
  kAllocate, kAllocateKeep, kCollapse, kInsert, kSync, kDataSync, kReopen, kEmpty, kRename, kHoles, kSize, kQuit
};
constexpr const char* kNames[] = {"write", "direct write", "append", "read", "direct read", "mapped read", "truncate",
                                  "ftruncate", "punch", "zero", "zero keep", "allocate", "allocate keep", "collapse",
                                  "insert", "fsync", "fdatasync", "reopen", "empty", "rename", "holes", "size", "quit"};

// One process's mailbox, in memory that both sides map.
struct Mailbox {
  Kind kind;
  uint64_t offset, length;
  int64_t result;              // of the call; -1 with `error`
  int error;
  uint32_t runs;               // kHoles: pairs of (data, hole) found
  uint64_t run[2 * 65536];
  alignas(4096) uint8_t data[kLengthMax];
};

[[noreturn]] void give_up(const char* what) {
  fprintf(stderr, "exerciser: %s: %s\n", what, strerror(errno));
  exit(2);
}

// ---- a worker: carries out what its mailbox says ----------------------------------------------------

class Worker {
 public:
  Worker(std::string path, Mailbox& box) : path_(std::move(path)), box_(box) { open_all(); }
  void carry_out() {
    errno = 0;
    box_.result = call();
    box_.error = box_.result < 0 ? errno : 0;
  }

 private:
  void open_all() {
    plain_ = ::open(path_.c_str(), O_RDWR);
    direct_ = ::open(path_.c_str(), O_RDWR | O_DIRECT);
    append_ = ::open(path_.c_str(), O_WRONLY | O_APPEND);
    if (plain_ < 0 || direct_ < 0 || append_ < 0) give_up(path_.c_str());
  }
  int64_t reopen(int flags) {
    for (int fd : {plain_, direct_, append_})
      if (::close(fd) != 0) return -1;
    if (flags != 0) {
      int fd = ::open(path_.c_str(), O_WRONLY | flags);
      if (fd < 0 || ::close(fd) != 0) return -1;
    }
    open_all();
    return 0;
  }
  int64_t mapped_read() {
    uint64_t from = box_.offset / 4096 * 4096, length = box_.offset - from + box_.length;
    void* at = ::mmap(nullptr, length, PROT_READ, MAP_PRIVATE, plain_, static_cast<off_t>(from));
    if (at == MAP_FAILED) return -1;
    memcpy(box_.data, static_cast<uint8_t*>(at) + (box_.offset - from), box_.length);
    ::munmap(at, length);
    return static_cast<int64_t>(box_.length);
  }
  int64_t holes() {
    box_.runs = 0;
    off_t end = ::lseek(plain_, 0, SEEK_END), at = 0;
    while (at < end && box_.runs < 65536) {
      off_t data = ::lseek(plain_, at, SEEK_DATA);
      if (data < 0 && errno == ENXIO) return 0;
      off_t hole = data < 0 ? -1 : ::lseek(plain_, data, SEEK_HOLE);
      if (hole < 0) return -1;
      box_.run[2 * box_.runs] = static_cast<uint64_t>(data);
      box_.run[2 * box_.runs++ + 1] = static_cast<uint64_t>(hole);
      if (hole <= data) return 0;  // the parent sees that it makes no progress
      at = hole;
    }
    return 0;
  }
  int64_t call() {
    auto offset = static_cast<off_t>(box_.offset), length = static_cast<off_t>(box_.length);
    switch (box_.kind) {
      case Kind::kWrite: return ::pwrite(plain_, box_.data, box_.length, offset);
      case Kind::kDirectWrite: return ::pwrite(direct_, box_.data, box_.length, offset);
      case Kind::kAppend: return ::write(append_, box_.data, box_.length);
      case Kind::kRead: return ::pread(plain_, box_.data, box_.length, offset);
      case Kind::kDirectRead: return ::pread(direct_, box_.data, box_.length, offset);
      case Kind::kMappedRead: return mapped_read();
      case Kind::kTruncate: return ::truncate(path_.c_str(), offset);
      case Kind::kFtruncate: return ::ftruncate(plain_, offset);
      case Kind::kPunch: return ::fallocate(plain_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
      case Kind::kZero: return ::fallocate(plain_, FALLOC_FL_ZERO_RANGE, offset, length);
      case Kind::kZeroKeep: return ::fallocate(plain_, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
      case Kind::kAllocate: return ::fallocate(plain_, 0, offset, length);
      case Kind::kAllocateKeep: return ::fallocate(plain_, FALLOC_FL_KEEP_SIZE, offset, length);
      case Kind::kCollapse: return ::fallocate(plain_, FALLOC_FL_COLLAPSE_RANGE, offset, length);
      case Kind::kInsert: return ::fallocate(plain_, FALLOC_FL_INSERT_RANGE, offset, length);
      case Kind::kSync: return ::fsync(plain_);
      case Kind::kDataSync: return ::fdatasync(direct_);
      case Kind::kReopen: return reopen(0);
      case Kind::kEmpty: return reopen(O_TRUNC);
      case Kind::kRename: {
        std::string other = path_ + ".other";
        if (::rename(path_.c_str(), other.c_str()) != 0) return -1;
        return ::rename(other.c_str(), path_.c_str());
      }
      case Kind::kHoles: return holes();
      case Kind::kSize: {
        struct stat st;
        return ::fstat(direct_, &st) != 0 ? -1 : st.st_size;
      }
      case Kind::kQuit: return 0;
    }
    return 0;
  }

  const std::string path_;
  Mailbox& box_;
  int plain_ = -1, direct_ = -1, append_ = -1;
};

struct Process {
  pid_t pid;
  int to, from;       // a byte each way: begin, done
  Mailbox* box;
};

Process start(const std::string& path) {
  int to[2], from[2];
  void* shared = ::mmap(nullptr, sizeof(Mailbox), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED || ::pipe(to) != 0 || ::pipe(from) != 0) give_up("pipe");
  auto* box = static_cast<Mailbox*>(shared);
  pid_t pid = ::fork();
  if (pid < 0) give_up("fork");
  if (pid == 0) {
    ::close(to[1]);
    ::close(from[0]);
    Worker worker(path, *box);
    char c;
    while (::read(to[0], &c, 1) == 1 && box->kind != Kind::kQuit) {
      worker.carry_out();
      if (::write(from[1], &c, 1) != 1) break;
    }
    ::_exit(0);
  }
  ::close(to[0]);
  ::close(from[1]);
  return {pid, to[1], from[0], box};
}

// ---- the parent: chooses, keeps the model, checks --------------------------------------------------

struct Options {
  std::string path, model;
  uint64_t seed = 1, operations = 2000, size = 24u << 20;
  int processes = 3;
  bool native = false;
};

class Exerciser {
 public:
  explicit Exerciser(Options options) : options_(std::move(options)), random_(options_.seed) {
    int fd = ::open(options_.path.c_str(), O_CREAT | O_TRUNC | O_RDWR, 0644);
    if (fd < 0) give_up(options_.path.c_str());
    ::close(fd);
    for (int i = 0; i < options_.processes; ++i) processes_.push_back(start(options_.path));
  }

  void run() {
    for (done_ = 0; done_ < options_.operations;) {
      if (pick(10) == 0 && model_.size() >= (1u << 20)) round();
      else step();
    }
    check_all();
    for (Process& p : processes_) {
      p.box->kind = Kind::kQuit;
      if (::write(p.to, "q", 1) != 1) give_up("worker");
      int status;
      ::waitpid(p.pid, &status, 0);
    }
    if (!options_.model.empty()) {
      FILE* out = fopen(options_.model.c_str(), "wb");
      if (out == nullptr || fwrite(model_.data(), 1, model_.size(), out) != model_.size() || fclose(out) != 0)
        give_up(options_.model.c_str());
    }
    printf("seed %llu: %llu operations, size %zu: right\n", static_cast<unsigned long long>(options_.seed),
           static_cast<unsigned long long>(done_), model_.size());
  }

 private:
  uint64_t pick(uint64_t below) { return random_() % below; }

  uint64_t pick_length() {
    switch (pick(8)) {
      case 0: return 1 + pick(16);
      case 1: return 1 + pick(kLengthMax);
      case 2: return 4096 * (1 + pick(16));
      case 3: return 512 * (1 + pick(16));
      default: return 1 + pick(64 << 10);
    }
  }
  // Places where something ends are tried more often: pages, regions, stripes, the end of the file.
  uint64_t pick_offset(uint64_t below) {
    uint64_t at = pick(below);
    switch (pick(6)) {
      case 0: at = at / 4096 * 4096; break;
      case 1: at = at / 512 * 512; break;
      case 2: at = (at / (1 << 20) * (1 << 20)) + pick(9) - std::min<uint64_t>(4, at / (1 << 20) * (1 << 20)); break;
      case 3: at = model_.size() >= 4 ? model_.size() - 4 + pick(9) : pick(9); break;
      default: break;
    }
    return std::min(at, below - 1);
  }
  void fill(Mailbox& box) {
    switch (pick(5)) {
      case 0: memset(box.data, 0, box.length); break;
      case 1: memset(box.data, static_cast<int>(pick(256)), box.length); break;
      default: {
        std::minstd_rand quick(static_cast<uint32_t>(random_()));
        for (uint64_t i = 0; i < box.length; ++i) box.data[i] = static_cast<uint8_t>(quick() >> 7);
      }
    }
  }
  void note(const Process& p) {
    char line[160];
    snprintf(line, sizeof line, "%llu: process %zu %s at %llu length %llu (size before %zu)",
             static_cast<unsigned long long>(done_), static_cast<size_t>(&p - processes_.data()),
             kNames[static_cast<int>(p.box->kind)], static_cast<unsigned long long>(p.box->offset),
             static_cast<unsigned long long>(p.box->length), model_.size());
    if (last_.size() == 30) last_.pop_front();
    last_.push_back(line);
    ++done_;
  }
  [[noreturn]] void wrong(const Process& p, const std::string& what) {
    for (const std::string& line : last_) fprintf(stderr, "  %s\n", line.c_str());
    fprintf(stderr, "exerciser: seed %llu, %s: %s (result %lld, %s)\n", static_cast<unsigned long long>(options_.seed),
            kNames[static_cast<int>(p.box->kind)], what.c_str(), static_cast<long long>(p.box->result),
            strerror(p.box->error));
    exit(1);
  }
  void begin(Process& p) {
    note(p);
    if (::write(p.to, "b", 1) != 1) give_up("worker");
  }
  void wait(Process& p) {
    char c;
    if (::read(p.from, &c, 1) != 1) give_up("a worker ended");
  }

  // What the operation may touch is cut to the bound on the size; a direct one to whole blocks.
  void bound(Mailbox& box, uint64_t below) {
    bool direct = box.kind == Kind::kDirectWrite || box.kind == Kind::kDirectRead;
    box.length = std::min(box.length, below - box.offset);
    if (!direct) return;
    box.offset = box.offset / 4096 * 4096;
    box.length = std::min<uint64_t>((box.length + 4095) / 4096 * 4096, kLengthMax);
    if (box.offset + box.length > below) box.length = (below - box.offset) / 4096 * 4096;
  }
  static bool writes(Kind k) { return k == Kind::kWrite || k == Kind::kDirectWrite || k == Kind::kAppend; }

  void step() {
    Process& p = processes_[pick(processes_.size())];
    Mailbox& box = *p.box;
    static constexpr Kind kWeighted[] = {
        Kind::kWrite, Kind::kWrite, Kind::kWrite, Kind::kDirectWrite, Kind::kDirectWrite, Kind::kAppend, Kind::kRead,
        Kind::kRead, Kind::kRead, Kind::kDirectRead, Kind::kDirectRead, Kind::kMappedRead, Kind::kMappedRead,
        Kind::kTruncate, Kind::kFtruncate, Kind::kPunch, Kind::kPunch, Kind::kZero, Kind::kZeroKeep, Kind::kAllocate,
        Kind::kAllocateKeep, Kind::kCollapse, Kind::kInsert, Kind::kSync, Kind::kDataSync, Kind::kReopen, Kind::kHoles,
        Kind::kSize};
    box.kind = kWeighted[pick(std::size(kWeighted))];
    if (pick(200) == 0) box.kind = pick(2) == 0 ? Kind::kEmpty : Kind::kRename;
    box.offset = pick_offset(options_.size);
    // Growth goes on mostly from where the file ends: else it is all holes.
    if (pick(2) == 0) box.offset = pick_offset(std::min<uint64_t>(options_.size, model_.size() + (64 << 10)));
    box.length = pick_length();
    bound(box, options_.size);
    if (box.kind == Kind::kAppend) {
      box.offset = model_.size();
      box.length = std::min<uint64_t>(box.length, options_.size - model_.size());
    }
    if (box.kind == Kind::kMappedRead) {
      if (model_.empty()) box.kind = Kind::kSize;
      box.offset = std::min<uint64_t>(box.offset, model_.size() - 1);
      box.length = std::min<uint64_t>(box.length, model_.size() - box.offset);
    }
    if (box.kind == Kind::kCollapse || box.kind == Kind::kInsert) {
      if (options_.native) box.kind = Kind::kSize;
      box.offset = box.offset / 4096 * 4096;
      box.length = 4096;
    }
    if (box.length == 0) box.kind = Kind::kSize;
    if (writes(box.kind)) fill(box);
    begin(p);
    wait(p);
    check(p);
  }

  // All processes at once, none where another is.
  void round() {
    uint64_t share = model_.size() / processes_.size();
    for (size_t i = 0; i < processes_.size(); ++i) {
      Mailbox& box = *processes_[i].box;
      static constexpr Kind kInside[] = {Kind::kWrite, Kind::kWrite, Kind::kRead, Kind::kPunch, Kind::kZeroKeep,
                                         Kind::kDirectWrite, Kind::kDirectRead, Kind::kSync, Kind::kAllocateKeep};
      box.kind = kInside[pick(std::size(kInside))];
      uint64_t low = i * share, high = low + share;
      bool direct = box.kind == Kind::kDirectWrite || box.kind == Kind::kDirectRead;
      if (direct) low = (low + 4095) / 4096 * 4096;
      box.offset = low + pick(high - low);
      box.length = pick_length();
      bound(box, high);
      if (box.length == 0 || box.offset < low) box.kind = Kind::kSync;
      if (writes(box.kind)) fill(box);
    }
    for (Process& p : processes_) begin(p);
    for (Process& p : processes_) wait(p);
    for (Process& p : processes_) check(p);
  }

  void grow(uint64_t to) {
    if (to > model_.size()) model_.resize(to, 0);
  }
  void zero(uint64_t from, uint64_t length) {
    uint64_t end = std::min<uint64_t>(from + length, model_.size());
    if (from < end) std::fill(model_.begin() + static_cast<long>(from), model_.begin() + static_cast<long>(end), 0);
  }

  void check(const Process& p) {
    const Mailbox& box = *p.box;
    switch (box.kind) {
      case Kind::kWrite: case Kind::kDirectWrite: case Kind::kAppend:
        if (box.result != static_cast<int64_t>(box.length)) wrong(p, "not all was written");
        grow(box.offset + box.length);
        std::copy_n(box.data, box.length, model_.begin() + static_cast<long>(box.offset));
        return;
      case Kind::kRead: case Kind::kDirectRead: case Kind::kMappedRead: return check_read(p);
      case Kind::kTruncate: case Kind::kFtruncate:
        if (box.result != 0) wrong(p, "refused");
        model_.resize(box.offset, 0);
        return;
      case Kind::kPunch: case Kind::kZeroKeep: case Kind::kZero: case Kind::kAllocate: case Kind::kAllocateKeep:
        if (box.result != 0) wrong(p, "refused");
        if (box.kind == Kind::kZero || box.kind == Kind::kAllocate) grow(box.offset + box.length);
        if (box.kind != Kind::kAllocate && box.kind != Kind::kAllocateKeep) zero(box.offset, box.length);
        return;
      case Kind::kCollapse: case Kind::kInsert:
        if (box.result != -1 || box.error != EOPNOTSUPP) wrong(p, "must be refused with EOPNOTSUPP");
        return;
      case Kind::kSize:
        if (box.result != static_cast<int64_t>(model_.size())) wrong(p, "another size");
        return;
      case Kind::kEmpty:
        if (box.result != 0) wrong(p, "refused");
        model_.clear();
        return;
      case Kind::kHoles: return check_holes(p);
      default:
        if (box.result != 0) wrong(p, "refused");
    }
  }
  void check_read(const Process& p) {
    const Mailbox& box = *p.box;
    uint64_t want = box.offset >= model_.size() ? 0 : std::min<uint64_t>(box.length, model_.size() - box.offset);
    if (box.result != static_cast<int64_t>(want)) wrong(p, "wanted " + std::to_string(want) + " bytes");
    auto at = std::mismatch(box.data, box.data + want, model_.begin() + static_cast<long>(box.offset)).first;
    if (at == box.data + want) return;
    uint64_t where = static_cast<uint64_t>(at - box.data);
    wrong(p, "byte " + std::to_string(box.offset + where) + " is " + std::to_string(*at) + ", not " +
                 std::to_string(model_[box.offset + where]));
  }
  // Between runs of data there is nothing but zeros.
  void check_holes(const Process& p) {
    const Mailbox& box = *p.box;
    if (box.result != 0) wrong(p, "refused");
    uint64_t at = 0;
    auto is_hole = [&](uint64_t from, uint64_t to) {
      auto end = model_.begin() + static_cast<long>(to);
      if (std::any_of(model_.begin() + static_cast<long>(from), end, [](uint8_t b) { return b != 0; }))
        wrong(p, "data in the hole " + std::to_string(from) + " to " + std::to_string(to));
    };
    for (uint32_t i = 0; i < box.runs; ++i) {
      uint64_t data = box.run[2 * i], hole = box.run[2 * i + 1];
      if (data < at || hole <= data || hole > model_.size()) wrong(p, "no progress at " + std::to_string(data));
      is_hole(at, data);
      at = hole;
    }
    is_hole(at, model_.size());
  }
  void check_all() {
    for (uint64_t at = 0; at <= model_.size(); at += kLengthMax) {
      Process& p = processes_[0];
      p.box->kind = Kind::kRead;
      p.box->offset = at;
      p.box->length = kLengthMax;
      begin(p);
      wait(p);
      check(p);
    }
  }

  const Options options_;
  std::mt19937_64 random_;
  std::vector<uint8_t> model_;
  std::vector<Process> processes_;
  std::deque<std::string> last_;
  uint64_t done_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    std::string word = argv[i];
    auto value = [&] { return i + 1 < argc ? argv[++i] : ""; };
    if (word == "--seed") options.seed = strtoull(value(), nullptr, 10);
    else if (word == "--operations") options.operations = strtoull(value(), nullptr, 10);
    else if (word == "--processes") options.processes = std::max(1, atoi(value()));
    else if (word == "--size") options.size = strtoull(value(), nullptr, 10) / 4096 * 4096;
    else if (word == "--model") options.model = value();
    else if (word == "--native") options.native = true;
    else options.path = word;
  }
  if (options.path.empty() || options.size < (1u << 20)) {
    fprintf(stderr, "exerciser FILE [--seed N] [--operations N] [--processes N] [--size BYTES] [--native] "
                    "[--model OUT]\n");
    return 2;
  }
  Exerciser(options).run();
  return 0;
}
