#include "shared/kv/lmdb_check.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "shared/base/digest.h"

namespace tidemark::kv {
namespace {

constexpr uint64_t kWholeAtOpenBytes = 64u << 20;
constexpr size_t kProblemsMax = 100;
constexpr uint64_t kHeader = 16, kNodeHead = 8, kRecordBytes = 48;   // of a page, a node, a tree's record
constexpr uint64_t kNoRoot = UINT64_MAX;
constexpr uint32_t kMagic = 0xBEEFC0DE, kVersion = 1;
enum : uint16_t { kBranch = 1, kLeaf = 2, kOverflow = 4, kKinds = 0x0f | 0x20 };
enum : uint16_t { kBigNode = 1, kTreeNode = 2 };

struct Tree {                            // MDB_db
  uint32_t pad = 0;
  uint16_t flags = 0, depth = 0;
  uint64_t entries = 0, root = kNoRoot;
};
Tree tree_at(const uint8_t* p) {
  return {load_le<uint32_t>(p), load_le<uint16_t>(p + 4), load_le<uint16_t>(p + 6), load_le<uint64_t>(p + 32),
          load_le<uint64_t>(p + 40)};
}
struct Meta {
  uint32_t page_bytes = 0;
  Tree free, main;
  uint64_t last_page = 0, transaction = 0;
};

class File {
 public:
  explicit File(const std::string& path) : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~File() { if (fd_ >= 0) ::close(fd_); }
  File(const File&) = delete;
  bool is_open() const { return fd_ >= 0; }
  Result<uint64_t> size() const {
    struct stat s {};
    if (::fstat(fd_, &s) != 0) return Status::from_errno(errno, "stat");
    return static_cast<uint64_t>(s.st_size);
  }
  Status read(uint64_t offset, MutableByteSpan out) const {
    for (size_t done = 0; done < out.size();) {
      ssize_t n = ::pread(fd_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return Status::from_errno(errno, "read");
      if (n == 0) return Status(Code::kCorruption, "the file ends there");
      done += static_cast<size_t>(n);
    }
    return Status::ok();
  }

 private:
  const int fd_;
};

std::optional<Meta> decode_meta(ByteSpan page) {
  const uint8_t* p = page.data() + kHeader;
  if (load_le<uint32_t>(p) != kMagic || load_le<uint32_t>(p + 4) != kVersion) return std::nullopt;
  Meta m;
  m.page_bytes = load_le<uint32_t>(p + 24);
  m.free = tree_at(p + 24);
  m.main = tree_at(p + 72);
  m.last_page = load_le<uint64_t>(p + 120);
  m.transaction = load_le<uint64_t>(p + 128);
  bool power = m.page_bytes >= 512 && m.page_bytes <= 65536 && (m.page_bytes & (m.page_bytes - 1)) == 0;
  return power && m.last_page >= 1 ? std::optional(m) : std::nullopt;
}

// The newer of both. One that was torn by a power cut has no magic, or the older number.
Result<Meta> read_meta(const File& file) {
  Bytes head(kHeader + 136);
  TM_RETURN_IF_ERROR(file.read(0, head));
  std::optional<Meta> first = decode_meta(head), second;
  for (uint64_t at :
       first ? std::vector<uint64_t>{first->page_bytes} : std::vector<uint64_t>{4096, 8192, 16384, 65536}) {
    if (Status s = file.read(at, head); !s) continue;
    second = decode_meta(head);
    if (second && second->page_bytes == at) break;
    second.reset();
  }
  if (!first && !second) return Status(Code::kCorruption, "both meta pages are damaged: no magic, or another version");
  if (!first) return Status(Code::kCorruption, "meta page 0 is damaged: LMDB cannot open the file");
  return second && second->transaction > first->transaction ? *second : *first;
}

class Walk {
 public:
  Walk(const File& file, const Meta& meta, const StoreEntry& entry)
      : file_(file), meta_(meta), entry_(entry), seen_(meta.last_page + 1) {}

  StoreCheck run() {
    seen_[0] = seen_[1] = true;
    page_bytes_ = meta_.page_bytes;
    table_ = "(free pages)";
    walk_tree(meta_.free, Kind::kFree);
    table_ = "(tables)";
    walk_tree(meta_.main, Kind::kMain);
    out_.catalogue_damaged = out_.damaged_tables.erase("(tables)") != 0;
    out_.damaged_tables.erase("(free pages)");   // nothing is lost with it, once the store is written anew
    if (auto seal = subtrees_.extract(kSealTable); !seal.empty()) {
      out_.sealed = true;
      table_ = kSealTable;
      walk_tree(seal.mapped(), Kind::kTable);
      // A name that changed is a table too many and one too few.
      for (const auto& [name, tree] : subtrees_) listed(name, sealed_names_.contains(name), "is not listed in ");
      for (const std::string& name : sealed_names_)
        listed(name, subtrees_.contains(name), "is missing, but listed in ");
      out_.catalogue_damaged = out_.catalogue_damaged || out_.damaged_tables.contains(kSealTable);
    }
    for (const auto& [name, tree] : subtrees_) {
      table_ = name;
      out_.tables.insert(name);
      if (tree.flags != 0 || tree.pad != 0)
        problem(tree.root, "the record of the table has flags that none of ours has");
      walk_tree(tree, Kind::kTable);
    }
    return std::move(out_);
  }

 private:
  enum class Kind { kFree, kMain, kTable };

  void problem(uint64_t page, const std::string& what) {
    out_.damaged_tables.insert(table_);
    if (out_.problems.size() < kProblemsMax)
      out_.problems.push_back("table " + table_ + ", page " + std::to_string(page) + ": " + what);
  }
  void listed(const std::string& name, bool agrees, const char* how) {
    if (agrees) return;
    out_.catalogue_damaged = true;
    table_ = name;
    problem(meta_.main.root, how + std::string(kSealTable));
  }
  void walk_tree(const Tree& tree, Kind kind) {
    entries_ = 0;
    last_key_.reset();
    if (tree.root != kNoRoot) walk_page(tree.root, kind, tree.depth);
    if (entries_ != tree.entries)
      problem(tree.root,
              std::to_string(entries_) + " entries are found, the root says " + std::to_string(tree.entries));
  }
  bool claim(uint64_t page, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      if (page + i > meta_.last_page) return problem(page, "lies past the last page of the file"), false;
      if (seen_[page + i]) return problem(page + i, "is used twice"), false;
      seen_[page + i] = true;
      ++out_.pages;
    }
    return true;
  }
  void walk_page(uint64_t number, Kind kind, uint32_t levels) {
    if (levels == 0) return problem(number, "the tree is deeper than its root says");
    if (!claim(number, 1)) return;
    Bytes page(page_bytes_);
    if (Status s = file_.read(number * page_bytes_, page); !s) return problem(number, s.message());
    const uint16_t flags = load_le<uint16_t>(page.data() + 10) & kKinds;
    const uint64_t lower = load_le<uint16_t>(page.data() + 12), upper = load_le<uint16_t>(page.data() + 14);
    if (load_le<uint64_t>(page.data()) != number)
      return problem(number, "says another number: it is damaged, or was written elsewhere");
    if (flags != (levels > 1 ? kBranch : kLeaf))
      return problem(number, "is of another kind than its place in the tree");
    if (lower < kHeader || lower > upper || upper > page_bytes_ || lower % 2 != 0)
      return problem(number, "its bounds are wrong");
    for (uint64_t i = 0; i < (lower - kHeader) / 2; ++i) {
      const uint64_t at = load_le<uint16_t>(page.data() + kHeader + 2 * i);
      if (at < upper || at + kNodeHead > page_bytes_) { problem(number, "a node lies outside of it"); continue; }
      const uint64_t key_bytes = load_le<uint16_t>(page.data() + at + 6);
      if (at + kNodeHead + key_bytes > page_bytes_) { problem(number, "a key lies outside of it"); continue; }
      if (levels == 1) {
        leaf_node(number, page, at, key_bytes, kind);
        continue;
      }
      uint64_t child = load_le<uint16_t>(page.data() + at) |
                       static_cast<uint64_t>(load_le<uint16_t>(page.data() + at + 2)) << 16 |
                       static_cast<uint64_t>(load_le<uint16_t>(page.data() + at + 4)) << 32;
      walk_page(child, kind, levels - 1);
    }
  }
  void leaf_node(uint64_t number, const Bytes& page, uint64_t at, uint64_t key_bytes, Kind kind) {
    const uint16_t flags = load_le<uint16_t>(page.data() + at + 4);
    const uint64_t bytes =
        load_le<uint16_t>(page.data() + at) | static_cast<uint64_t>(load_le<uint16_t>(page.data() + at + 2)) << 16;
    ByteSpan key = ByteSpan(page).subspan(at + kNodeHead, key_bytes);
    const uint64_t data = at + kNodeHead + key_bytes;
    const uint64_t inside = (flags & kBigNode) != 0 ? 8 : bytes;
    if (data + inside > page_bytes_ || (flags & ~(kBigNode | kTreeNode)) != 0)
      return problem(number, "a value lies outside of it" + of_key(key));
    ++entries_;
    if (kind != Kind::kFree) {
      bool ascends =
          !last_key_ || std::lexicographical_compare(last_key_->begin(), last_key_->end(), key.begin(), key.end());
      if (!ascends) problem(number, "keys do not ascend" + of_key(key));
      last_key_.emplace(key.begin(), key.end());
    }
    ByteSpan value = ByteSpan(page).subspan(data, inside);
    Bytes big;
    if ((flags & kBigNode) != 0) {
      if (!read_big(load_le<uint64_t>(value.data()), bytes, big)) return;
      value = big;
    }
    if (kind == Kind::kMain) return main_entry(number, key, value, flags);
    if (kind == Kind::kTable) table_entry(number, key, value);
  }
  bool read_big(uint64_t first, uint64_t bytes, Bytes& out) {
    const uint64_t count = (kHeader + bytes + page_bytes_ - 1) / page_bytes_;
    if (!claim(first, count)) return false;
    out.resize(kHeader + bytes);
    if (Status s = file_.read(first * page_bytes_, out); !s) return problem(first, s.message()), false;
    bool sound = load_le<uint64_t>(out.data()) == first && (load_le<uint16_t>(out.data() + 10) & kKinds) == kOverflow &&
                 load_le<uint32_t>(out.data() + 12) == count;
    if (!sound) return problem(first, "is not the beginning of a long value"), false;
    out.erase(out.begin(), out.begin() + kHeader);
    return true;
  }
  void main_entry(uint64_t number, ByteSpan key, ByteSpan value, uint16_t flags) {
    if ((flags & kTreeNode) == 0 || value.size() != kRecordBytes)
      return problem(number, "an entry is no table" + of_key(key));
    subtrees_[std::string(as_text(key))] = tree_at(value.data());
  }
  void table_entry(uint64_t number, ByteSpan key, ByteSpan value) {
    ++out_.values;
    if (out_.sealed) {
      if (value.size() < kSealBytes) return problem(number, "a value has no checksum" + of_key(key));
      if (!is_sealed(key, value)) return problem(number, "a value fails its checksum" + of_key(key));
      value = value.first(value.size() - kSealBytes);
    } else if (value.size() >= kSealBytes && is_sealed(key, value)) {
      out_.catalogue_damaged = true;
      return problem(number, "values have checksums, but the table " + std::string(kSealTable) + " is missing");
    }
    if (table_ == kSealTable) sealed_names_.emplace(as_text(key));
    else if (entry_ && (!out_.sealed || sealed_names_.contains(table_))) entry_(table_, key, value);
  }
  bool is_sealed(ByteSpan key, ByteSpan value) const {
    ByteSpan body = value.first(value.size() - kSealBytes);
    return seal_of(table_seal(table_), key, body) == load_le<uint64_t>(body.data() + body.size());
  }
  static std::string of_key(ByteSpan key) { return ", key " + to_hex(key.first(std::min<size_t>(key.size(), 48))); }

  const File& file_;
  const Meta meta_;
  const StoreEntry& entry_;
  uint64_t page_bytes_ = 0;
  std::vector<bool> seen_;
  std::map<std::string, Tree> subtrees_;
  std::set<std::string> sealed_names_;
  std::string table_;
  uint64_t entries_ = 0;
  std::optional<Bytes> last_key_;
  StoreCheck out_;
};

}  // namespace

uint64_t table_seal(const std::string& name) { return digest64(as_bytes(name)); }
uint64_t seal_of(uint64_t table, ByteSpan key, ByteSpan value) { return table ^ digest64(key, value); }

Result<StoreCheck> check_store(const std::string& directory, const StoreEntry& entry) {
  File file(directory + "/data.mdb");
  if (!file.is_open()) return Status::from_errno(errno, directory + "/data.mdb");
  TM_ASSIGN_OR_RETURN(uint64_t size, file.size());
  StoreCheck out;
  if (size == 0) return out;             // as LMDB leaves it when it is cut off at its first opening
  auto meta = read_meta(file);
  if (!meta && meta.status().code() != Code::kCorruption) return meta.status().with_context(directory);
  if (!meta) {
    out.problems.push_back(meta.status().message());
    out.catalogue_damaged = true;
    return out;
  }
  // No more pages than the file can hold are believed in.
  if (meta->last_page > (uint64_t{1} << 44) / meta->page_bytes ||
      meta->last_page >= size / meta->page_bytes + (1u << 20)) {
    out.problems.push_back("the file ends far before its last page, " + std::to_string(meta->last_page));
    out.catalogue_damaged = true;
    return out;
  }
  return Walk(file, *meta, entry).run();
}

// LMDB keeps a lock on the first byte of its lock file while the store is open.
bool is_open_elsewhere(const std::string& directory) {
  int fd = ::open((directory + "/lock.mdb").c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return false;
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_len = 1;
  int rc = ::fcntl(fd, F_GETLK, &lock);
  ::close(fd);
  return rc == 0 && lock.l_type != F_UNLCK;
}

Status check_before_open(const std::string& directory, bool may_change) {
  const std::string path = directory + "/data.mdb";
  File file(path);
  if (!file.is_open()) return errno == ENOENT ? Status::ok() : Status::from_errno(errno, path);
  TM_ASSIGN_OR_RETURN(uint64_t size, file.size());
  if (size == 0) return Status::ok();
  auto damaged = [&](const std::string& what) {
    return Status(Code::kCorruption,
                  path + " is damaged: " + what + ": stop here, keep the file, and run tidemark fsck");
  };
  auto meta = read_meta(file);
  if (!meta) return damaged(meta.status().message());
  // Taken after the meta page: a daemon that has the store open may let the file grow.
  TM_ASSIGN_OR_RETURN(size, file.size());
  // Pages that were taken and given back in one transaction are never written: the file may lack its last ones then.
  const bool whole = size / meta->page_bytes > meta->last_page;
  if (whole && (size > kWholeAtOpenBytes || may_change)) return Status::ok();
  // Whoever has it open has looked at it, and pages that it writes meanwhile would look damaged.
  auto trusted = [&] { return may_change && is_open_elsewhere(directory); };
  if (trusted()) return Status::ok();
  auto check = check_store(directory);
  if (!check) return check.status();
  if (check->problems.empty() || trusted()) return Status::ok();
  return damaged(check->problems.front() + (check->problems.size() > 1 ? " (and more)" : ""));
}

}  // namespace tidemark::kv
