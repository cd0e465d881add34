#include "tests/sim/sim_env_disk.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace tidemark::sim {
namespace {

std::string normalized(const std::string& path) {
  std::string out;
  for (char c : path) {
    if (c == '/' && !out.empty() && out.back() == '/') continue;
    out.push_back(c);
  }
  if (out.size() > 1 && out.back() == '/') out.pop_back();
  return out;
}

std::string parent_of(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == 0 || slash == std::string::npos ? "/" : path.substr(0, slash);
}

bool is_below(const std::string& path, const std::string& directory) {
  return path.size() > directory.size() && path.starts_with(directory) &&
         (directory == "/" || path[directory.size()] == '/');
}

// Calls fn(sector, offset in it, offset in the range, bytes) for each sector of a range.
template <typename F>
void for_each_sector(uint64_t offset, uint64_t length, F fn) {
  for (uint64_t at = offset; at < offset + length;) {
    uint64_t within = at % kSectorBytes;
    uint64_t bytes = std::min(kSectorBytes - within, offset + length - at);
    fn(at / kSectorBytes, within, at - offset, bytes);
    at += bytes;
  }
}

}  // namespace

Inode::Sector Inode::sector(uint64_t number) const {
  Sector out{};
  auto page = pages_.find(number * kSectorBytes / kPageBytes);
  if (page != pages_.end()) std::memcpy(out.data(), page->second.data() + number * kSectorBytes % kPageBytes, kSectorBytes);
  return out;
}

void Inode::touch(uint64_t number) {
  auto [it, fresh] = unsynced_.try_emplace(number);
  if (fresh) it->second.durable = sector(number);
  for (auto& weak : syncs_) {
    auto sync = weak.lock();
    if (!fresh && !it->second.in_doubt && sync && it->second.version <= sync->version) sync->kept.try_emplace(number, sector(number));
  }
  it->second.version = ++version_;
  it->second.in_doubt = false;
}

void Inode::set_sector(uint64_t number, const Sector& content) {
  uint64_t page = number * kSectorBytes / kPageBytes;
  auto it = pages_.find(page);
  if (it == pages_.end()) {
    if (std::all_of(content.begin(), content.end(), [](uint8_t b) { return b == 0; })) return;
    it = pages_.try_emplace(page).first;
    it->second.fill(0);
  }
  std::memcpy(it->second.data() + number * kSectorBytes % kPageBytes, content.data(), kSectorBytes);
}

void Inode::read(uint64_t offset, MutableByteSpan out) const {
  if (out.empty()) return;
  std::memset(out.data(), 0, out.size());
  for (uint64_t at = 0; at < out.size();) {
    uint64_t position = offset + at;
    uint64_t bytes = std::min(kPageBytes - position % kPageBytes, out.size() - at);
    auto page = pages_.find(position / kPageBytes);
    if (page != pages_.end()) std::memcpy(out.data() + at, page->second.data() + position % kPageBytes, bytes);
    at += bytes;
  }
}

void Inode::write(uint64_t offset, ByteSpan data) {
  allocate(offset, data.size());
  mend(offset, data.size());
  for_each_sector(offset, data.size(), [&](uint64_t number, uint64_t within, uint64_t from, uint64_t bytes) {
    touch(number);
    Sector content = sector(number);
    std::memcpy(content.data() + within, data.data() + from, bytes);
    set_sector(number, content);
  });
  if (!data.empty()) size_ = std::max(size_, offset + data.size());
}

void Inode::write_some(uint64_t offset, ByteSpan data, Random& random) {
  uint64_t choice = random.below(4);   // none, all, a prefix, or any sectors
  if (choice == 0) return;
  if (choice == 1) return write(offset, data);
  if (choice == 2) return write(offset, data.first(random.below(data.size() / kSectorBytes + 1) * kSectorBytes));
  for_each_sector(offset, data.size(), [&](uint64_t, uint64_t, uint64_t from, uint64_t bytes) {
    if (random.coin()) write(offset + from, data.subspan(from, bytes));
  });
}

void Inode::punch(uint64_t offset, uint64_t length) {
  mend(offset, length);
  uint64_t end = std::min(offset + length, (size_ + kPageBytes - 1) / kPageBytes * kPageBytes);
  if (offset >= end) return;
  // Only what is allocated changes: punching a huge hole stays cheap.
  auto page = pages_.lower_bound(offset / kPageBytes);
  while (page != pages_.end() && page->first * kPageBytes < end) {
    uint64_t begin = std::max(offset, page->first * kPageBytes);
    uint64_t stop = std::min(end, (page->first + 1) * kPageBytes);
    for_each_sector(begin, stop - begin, [&](uint64_t number, uint64_t within, uint64_t, uint64_t bytes) {
      touch(number);
      std::memset(page->second.data() + number * kSectorBytes % kPageBytes + within, 0, bytes);
    });
    page = stop - begin == kPageBytes ? pages_.erase(page) : std::next(page);
  }
}

void Inode::allocate(uint64_t offset, uint64_t length) {
  if (length == 0) return;
  for (uint64_t page = offset / kPageBytes; page <= (offset + length - 1) / kPageBytes; ++page) {
    auto [it, fresh] = pages_.try_emplace(page);
    if (fresh) it->second.fill(0);
  }
}

void Inode::truncate(uint64_t size) {
  if (size < size_) punch(size, size_ - size + kPageBytes);
  size_ = size;
}

uint64_t Inode::pages_missing(uint64_t offset, uint64_t length) const {
  if (length == 0) return 0;
  uint64_t missing = 0;
  for (uint64_t page = offset / kPageBytes; page <= (offset + length - 1) / kPageBytes; ++page) {
    missing += pages_.contains(page) ? 0 : 1;
  }
  return missing;
}

Extent Inode::next_data(uint64_t offset) const {
  auto page = pages_.lower_bound(offset / kPageBytes);
  if (offset >= size_ || page == pages_.end() || page->first * kPageBytes >= size_) return {size_, 0};
  uint64_t begin = std::max(offset, page->first * kPageBytes);
  uint64_t next = page->first;
  while (page != pages_.end() && page->first == next) ++page, ++next;
  return {begin, std::min(size_, next * kPageBytes) - begin};
}

std::shared_ptr<Inode::SyncPoint> Inode::begin_sync() {
  auto point = std::make_shared<SyncPoint>(SyncPoint{version_, size_, {}});
  std::erase_if(syncs_, [](const auto& sync) { return sync.expired(); });
  syncs_.push_back(point);
  return point;
}

void Inode::end_sync(const SyncPoint& point, bool ok) {
  if (ok && point.covered) return;
  if (ok) {
    durable_size_ = point.size;
    for (const auto& sync : syncs_) {
      auto other = sync.lock();
      if (other.get() == &point) break;
      if (other) other->covered = true;
    }
  }
  for (auto it = unsynced_.begin(); it != unsynced_.end();) {
    Unsynced& unsynced = it->second;
    bool untouched = unsynced.version <= point.version;
    if (!ok) {
      unsynced.in_doubt = unsynced.in_doubt || untouched;
    } else if (untouched && !unsynced.in_doubt) {
      it = unsynced_.erase(it);
      continue;
    } else if (auto kept = point.kept.find(it->first); !untouched && kept != point.kept.end()) {
      unsynced.durable = kept->second;
    }
    ++it;
  }
}

void Inode::sync_all() {
  unsynced_.clear();
  durable_size_ = size_;
}

void Inode::set_byte(uint64_t offset, uint8_t byte) {
  allocate(offset, 1);
  pages_[offset / kPageBytes][offset % kPageBytes] = byte;
  if (auto it = unsynced_.find(offset / kSectorBytes); it != unsynced_.end()) {
    it->second.durable[offset % kSectorBytes] = byte;
  }
}

void Inode::flip_byte(uint64_t offset) {
  uint8_t byte = 0;
  read(offset, {&byte, 1});
  set_byte(offset, byte ^ 0xff);
}

void Inode::spoil(uint64_t offset, uint64_t length) {
  for (uint64_t page = offset / kPageBytes; page * kPageBytes < offset + length; ++page) spoiled_.insert(page);
}

bool Inode::readable(uint64_t offset, uint64_t length) const {
  auto page = spoiled_.lower_bound(offset / kPageBytes);
  return length == 0 || page == spoiled_.end() || *page * kPageBytes >= offset + length;
}

void Inode::mend(uint64_t offset, uint64_t length) {
  auto from = spoiled_.lower_bound((offset + kPageBytes - 1) / kPageBytes);
  while (from != spoiled_.end() && (*from + 1) * kPageBytes <= offset + length) from = spoiled_.erase(from);
}

void Inode::lose_power(Random& random) {
  for (const auto& [number, unsynced] : unsynced_) {
    uint64_t choice = random.below(5);
    if (choice < 2) continue;                                    // kept
    Sector content = unsynced.durable;                           // dropped
    if (choice == 4) {                                           // torn: the first part is new
      Sector now = sector(number);
      std::memcpy(content.data(), now.data(), random.below(kSectorBytes));
    }
    set_sector(number, content);
  }
  if (size_ != durable_size_ && random.coin()) size_ = durable_size_;
  if (uint64_t tail = size_ % kPageBytes; tail != 0) {
    if (auto page = pages_.find(size_ / kPageBytes); page != pages_.end()) {
      std::memset(page->second.data() + tail, 0, kPageBytes - tail);
    }
  }
  pages_.erase(pages_.lower_bound((size_ + kPageBytes - 1) / kPageBytes), pages_.end());
  sync_all();
}

Result<std::shared_ptr<Inode>> Disk::find(const std::string& path) const {
  auto it = names_.find(normalized(path));
  if (it == names_.end()) return Status::from_errno(ENOENT, path);
  return it->second;
}

Result<std::shared_ptr<Inode>> Disk::open(const std::string& raw, const io::OpenOptions& options) {
  std::string path = normalized(raw);
  auto it = names_.find(path);
  if (it != names_.end()) {
    if (options.create && options.exclusive) return Status::from_errno(EEXIST, path + ": open");
    if (it->second->is_directory) return Status::from_errno(EISDIR, path + ": open");
    return it->second;
  }
  if (!options.create) return Status::from_errno(ENOENT, path + ": open");
  auto parent = names_.find(parent_of(path));
  if (parent == names_.end()) return Status::from_errno(ENOENT, path + ": open");
  if (!parent->second->is_directory) return Status::from_errno(ENOTDIR, path + ": open");
  auto inode = std::make_shared<Inode>(false);
  record({path, inode, {}});
  return inode;
}

Status Disk::make_directories(const std::string& raw) {
  std::string path = normalized(raw);
  if (auto it = names_.find(path); it != names_.end()) {
    return it->second->is_directory ? Status::ok() : Status::from_errno(ENOTDIR, path + ": make directory");
  }
  TM_RETURN_IF_ERROR(make_directories(parent_of(path)));
  names_[path] = durable_[path] = std::make_shared<Inode>(true);
  return Status::ok();
}

Result<std::vector<std::string>> Disk::list(const std::string& directory) const {
  std::string path = normalized(directory);
  TM_ASSIGN_OR_RETURN(auto inode, find(path));
  if (!inode->is_directory) return Status::from_errno(ENOTDIR, path + ": list");
  std::vector<std::string> names;
  for (const auto& [name, _] : names_) {
    if (name != "/" && parent_of(name) == path) names.push_back(name.substr(name.rfind('/') + 1));
  }
  return names;
}

void Disk::apply(Names& names, const Change& change) {
  if (change.inode != nullptr && change.inode->is_directory && !change.gone.empty()) {
    Names moved;   // a directory takes along what is below it
    for (auto it = names.begin(); it != names.end();) {
      if (!is_below(it->first, change.gone)) { ++it; continue; }
      moved[change.path + it->first.substr(change.gone.size())] = it->second;
      it = names.erase(it);
    }
    names.merge(moved);
  }
  if (!change.gone.empty()) names.erase(change.gone);
  if (change.inode != nullptr) names[change.path] = change.inode;
}

void Disk::record(Change change) {
  apply(names_, change);
  pending_.push_back(std::move(change));
}

Status Disk::rename(const std::string& raw_from, const std::string& raw_to) {
  std::string from = normalized(raw_from), to = normalized(raw_to);
  TM_ASSIGN_OR_RETURN(auto inode, find(from));
  if (from == to) return Status::ok();
  TM_ASSIGN_OR_RETURN(auto parent, find(parent_of(to)));
  if (!parent->is_directory) return Status::from_errno(ENOTDIR, to + ": rename");
  if (auto it = names_.find(to); it != names_.end() && it->second->is_directory) {
    if (!inode->is_directory) return Status::from_errno(EISDIR, to + ": rename");
    TM_ASSIGN_OR_RETURN(auto names, list(to));
    if (!names.empty()) return Status::from_errno(ENOTEMPTY, to + ": rename");
  }
  record({to, inode, from});
  return Status::ok();
}

Status Disk::unlink(const std::string& raw) {
  std::string path = normalized(raw);
  TM_ASSIGN_OR_RETURN(auto inode, find(path));
  if (inode->is_directory) {
    TM_ASSIGN_OR_RETURN(auto names, list(path));
    if (!names.empty()) return Status::from_errno(ENOTEMPTY, path + ": unlink");
  }
  record({{}, nullptr, path});
  return Status::ok();
}

Status Disk::sync_directory(const std::string& raw) {
  std::string path = normalized(raw);
  TM_ASSIGN_OR_RETURN(auto inode, find(path));
  if (!inode->is_directory) {
    inode->end_sync(*inode->begin_sync(), true);
    return Status::ok();
  }
  std::vector<Change> left;
  for (auto& change : pending_) {
    bool here = (!change.path.empty() && parent_of(change.path) == path) ||
                (change.path.empty() && parent_of(change.gone) == path);
    if (here) apply(durable_, change);
    else left.push_back(std::move(change));
  }
  pending_ = std::move(left);
  return Status::ok();
}

void Disk::copy_below(const std::string& directory, Names& out) const {
  for (const auto& [path, inode] : names_) {
    if (path != directory && !is_below(path, directory)) continue;
    out[path] = std::make_shared<Inode>(*inode);   // as every inode is held
    out[path]->sync_all();
  }
}

void Disk::erase_below(const std::string& directory) {
  auto gone = [&](const std::string& path) { return path == directory || is_below(path, directory); };
  for (Names* names : {&names_, &durable_}) std::erase_if(*names, [&](const auto& n) { return gone(n.first); });
  std::erase_if(pending_, [&](const Change& c) { return gone(c.path) || gone(c.gone); });
}

void Disk::put(const Names& files) {
  for (const auto& [path, inode] : files) names_[path] = durable_[path] = std::make_shared<Inode>(*inode);
}

void Disk::lose_power(Random& random) {
  uint64_t kept = random.below(pending_.size() + 1);
  for (uint64_t i = 0; i < kept; ++i) apply(durable_, pending_[i]);
  pending_.clear();
  std::erase_if(durable_, [&](const auto& entry) { return entry.first != "/" && !durable_.contains(parent_of(entry.first)); });
  names_ = durable_;
  std::set<Inode*> seen;
  for (auto& [name, inode] : names_) {
    if (seen.insert(inode.get()).second) inode->lose_power(random);
  }
}

uint64_t Disk::used() const {
  uint64_t bytes = 0;
  for (const auto& [name, inode] : names_) bytes += inode->allocated();
  return bytes;
}

bool Disk::has_room(const Inode& inode, uint64_t offset, uint64_t length) const {
  uint64_t missing = inode.pages_missing(offset, length) * kPageBytes;
  // Summing up is slow, so it is left out while even a full disk's worth of names could not matter.
  return missing == 0 || capacity_ >= (1ull << 40) || used() + missing <= capacity_;
}

}  // namespace tidemark::sim
