#include "tests/crash/medium.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>

namespace tidemark::crash {
namespace {

namespace stdfs = std::filesystem;

// The directory below is an ordinary one: an error there ends the test.
[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "power_cut: %s: %s\n", what.c_str(), std::strerror(errno));
  std::_Exit(1);
}

struct stat stat_of(int fd) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) die("stat");
  return st;
}

uint64_t size_of(int fd) { return static_cast<uint64_t>(stat_of(fd).st_size); }

Unsynced::Page read_page(int fd, uint64_t page) {
  Unsynced::Page out{};   // zeros past the end
  for (size_t at = 0; at < out.size();) {
    ssize_t n = ::pread(fd, out.data() + at, out.size() - at, static_cast<off_t>(page * kPageBytes + at));
    if (n < 0) die("read");
    if (n == 0) break;
    at += static_cast<size_t>(n);
  }
  return out;
}

void write_all(int fd, const uint8_t* data, size_t size, uint64_t offset) {
  while (size > 0) {
    ssize_t n = ::pwrite(fd, data, size, static_cast<off_t>(offset));
    if (n <= 0) die("write");
    data += n, offset += static_cast<uint64_t>(n), size -= static_cast<size_t>(n);
  }
}

bool is_zero(const Unsynced::Page& page) {
  return std::all_of(page.begin(), page.end(), [](uint8_t byte) { return byte == 0; });
}

std::string parent_of(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == 0 || slash == std::string::npos ? "/" : path.substr(0, slash);
}

}  // namespace

Medium::Medium(std::string directory) : directory_(std::move(directory)), aside_(directory_ + ".unsynced") {
  stdfs::remove_all(aside_);
  stdfs::create_directory(aside_);
}

std::shared_ptr<Unsynced> Medium::find(int fd) {
  struct stat st = stat_of(fd);
  auto& file = files_[st.st_ino];
  if (file == nullptr) {
    file = std::make_shared<Unsynced>();
    file->durable_size = static_cast<uint64_t>(st.st_size);
  }
  return file;
}

void Medium::remember(Unsynced& file, int fd, uint64_t offset, uint64_t length) {
  if (length == 0) return;
  for (uint64_t page = offset / kPageBytes; page <= (offset + length - 1) / kPageBytes; ++page) {
    auto [it, inserted] = file.pages.try_emplace(page);
    if (!inserted) continue;
    Unsynced::Page content = read_page(fd, page);
    if (!is_zero(content)) it->second = std::make_unique<Unsynced::Page>(content);
  }
}

void Medium::remember_data(Unsynced& file, int fd, uint64_t begin, uint64_t end) {
  end = std::min(end, size_of(fd));
  while (begin < end) {
    off_t data = ::lseek(fd, static_cast<off_t>(begin), SEEK_DATA);
    if (data < 0 && errno == ENXIO) return;
    if (data < 0) die("seek to data");
    off_t hole = ::lseek(fd, data, SEEK_HOLE);
    if (hole < 0) die("seek to hole");
    begin = static_cast<uint64_t>(data);
    if (begin < end) remember(file, fd, begin, std::min(end, static_cast<uint64_t>(hole)) - begin);
    begin = static_cast<uint64_t>(hole);
  }
}

int Medium::write(Unsynced& file, int fd, uint64_t offset, const char* data, size_t size) {
  remember(file, fd, offset, size);
  ssize_t n = ::pwrite(fd, data, size, static_cast<off_t>(offset));
  return n < 0 ? -errno : static_cast<int>(n);
}

int Medium::truncate(Unsynced& file, int fd, uint64_t size) {
  remember_data(file, fd, size, UINT64_MAX);
  return ::ftruncate(fd, static_cast<off_t>(size)) == 0 ? 0 : -errno;
}

int Medium::allocate(Unsynced& file, int fd, int mode, uint64_t offset, uint64_t length) {
  if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0) remember_data(file, fd, offset, offset + length);
  else if ((mode & ~FALLOC_FL_KEEP_SIZE) != 0) return -EOPNOTSUPP;
  return ::fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length)) == 0 ? 0 : -errno;
}

void Medium::sync(Unsynced& file, int fd) {
  file.pages.clear();
  file.durable_size = size_of(fd);
}

void Medium::sync_range(Unsynced& file, int fd, uint64_t offset, uint64_t size) {
  const uint64_t end = offset + size;
  file.durable_size = std::max(file.durable_size, end);
  for (uint64_t number = offset / kPageBytes; number * kPageBytes < end; ++number) {
    auto it = file.pages.find(number);
    if (it == file.pages.end()) continue;
    const uint64_t page = number * kPageBytes, from = std::max(offset, page), to = std::min(end, page + kPageBytes);
    if (to - from == kPageBytes) {
      file.pages.erase(it);
      continue;
    }
    Unsynced::Page now = read_page(fd, number);
    if (it->second == nullptr) it->second = std::make_unique<Unsynced::Page>();
    std::memcpy(it->second->data() + (from - page), now.data() + (from - page), to - from);
  }
}

void Medium::created(const std::string& path) { changes_.push_back({"", path, ""}); }

void Medium::created_file(const std::string& path, int fd) {
  created(path);
  find(fd)->durable_size = 0;
}

int Medium::set_aside(const std::string& path, std::string* kept) {
  *kept = aside_ + "/" + std::to_string(++aside_count_);
  return ::rename(real(path).c_str(), kept->c_str()) == 0 ? 0 : -errno;
}

int Medium::remove(const std::string& path) {
  std::error_code error;
  if (stdfs::is_directory(stdfs::symlink_status(real(path), error)) && !stdfs::is_empty(real(path))) return -ENOTEMPTY;
  Change change{path, "", ""};
  if (int rc = set_aside(path, &change.kept); rc != 0) return rc;
  changes_.push_back(std::move(change));
  return 0;
}

int Medium::rename(const std::string& from, const std::string& to, bool replace) {
  std::error_code error;
  bool there = stdfs::exists(stdfs::symlink_status(real(to), error));
  if (there && !replace) return -EEXIST;
  if (from == to) return 0;
  if (stdfs::is_directory(stdfs::symlink_status(real(from), error))) {
    if (::rename(real(from).c_str(), real(to).c_str()) != 0) return -errno;
    for (const Change& change : changes_) forget(change);
    changes_.clear();
    return 0;
  }
  if (there && stdfs::is_directory(stdfs::symlink_status(real(to), error))) return -EISDIR;
  if (!stdfs::exists(stdfs::symlink_status(real(from), error))) return -ENOENT;
  Change change{from, to, ""};
  if (int rc = there ? set_aside(to, &change.kept) : 0; rc != 0) return rc;
  if (::rename(real(from).c_str(), real(to).c_str()) != 0) die("rename " + from + " to " + to);
  changes_.push_back(std::move(change));
  return 0;
}

void Medium::sync_directory(const std::string& path) {
  // From the last to the first: with a change go the earlier ones of the same names.
  std::set<std::string> names;
  std::vector<Change> left;
  for (auto change = changes_.rbegin(); change != changes_.rend(); ++change) {
    bool durable = false;
    for (const std::string& name : {change->gone, change->come}) {
      durable = durable || (!name.empty() && (parent_of(name) == path || names.contains(name)));
    }
    if (!durable) {
      left.push_back(std::move(*change));
      continue;
    }
    names.insert({change->gone, change->come});
    forget(*change);
  }
  changes_.assign(std::make_move_iterator(left.rbegin()), std::make_move_iterator(left.rend()));
}

void Medium::forget(const Change& change) {
  if (change.kept.empty()) return;
  struct stat st {};
  if (::lstat(change.kept.c_str(), &st) != 0) die(change.kept);
  if (S_ISREG(st.st_mode) && st.st_nlink == 1) files_.erase(st.st_ino);
  stdfs::remove_all(change.kept);
}

void Medium::undo(const Change& change) {
  if (change.gone.empty()) {
    stdfs::remove_all(real(change.come));
    return;
  }
  if (!change.come.empty()) stdfs::rename(real(change.come), real(change.gone));
  if (change.kept.empty()) return;
  stdfs::rename(change.kept, real(change.come.empty() ? change.gone : change.come));
}

uint64_t Medium::unsynced_sectors() const {
  uint64_t pages = 0;
  for (const auto& [number, file] : files_) pages += file->pages.size();
  return pages * (kPageBytes / kSectorBytes);
}

CutReport Medium::cut(CutStyle style, uint64_t seed) {
  std::mt19937_64 random(seed);
  CutReport report;
  report.names = changes_.size();
  uint64_t kept = style == CutStyle::kDrop ? 0 : changes_.size();
  if (style == CutStyle::kMix) kept = random() % (changes_.size() + 1);
  for (; changes_.size() > kept; ++report.names_dropped) {
    undo(changes_.back());
    changes_.pop_back();
  }
  std::vector<std::string> paths;   // in one order, whatever the file system's is: a seed replays
  for (const auto& entry : stdfs::recursive_directory_iterator(directory_)) {
    if (entry.is_regular_file() && !entry.is_symlink()) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) cut_file(path, style, random, &report);
  stdfs::remove_all(aside_);
  return report;
}

void Medium::cut_file(const std::string& path, CutStyle style, std::mt19937_64& random, CutReport* report) {
  int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) die(path);
  auto found = files_.find(stat_of(fd).st_ino);
  if (found == files_.end()) {
    ::close(fd);
    return;
  }
  Unsynced& file = *found->second;
  const uint64_t size = size_of(fd);
  uint64_t final_size = size;
  if (size != file.durable_size) {
    ++report->sizes;
    if (style == CutStyle::kDrop || (style == CutStyle::kMix && random() % 2 == 0)) {
      final_size = file.durable_size;
      ++report->sizes_dropped;
    }
  }
  if (::ftruncate(fd, static_cast<off_t>(final_size)) != 0) die("truncate " + path);
  for (const auto& [number, durable] : file.pages) {
    const uint64_t begin = number * kPageBytes;
    if (begin >= final_size) continue;
    Unsynced::Page now = read_page(fd, number), old{};
    if (durable != nullptr) old = *durable;
    // A shrink that did not happen took nothing away.
    bool whole = style == CutStyle::kDrop || begin >= size;
    uint64_t choice = style == CutStyle::kKeep && !whole ? 0 : whole ? 1 : random() % 3;   // kept, dropped, torn
    uint64_t differing = 0, dropped = 0;
    for (uint64_t at = 0; at < kPageBytes; at += kSectorBytes) {
      if (std::memcmp(now.data() + at, old.data() + at, kSectorBytes) == 0) continue;
      ++differing;
      if (choice == 0 || (choice == 2 && random() % 2 == 0)) continue;
      std::memcpy(now.data() + at, old.data() + at, kSectorBytes);
      ++dropped;
    }
    report->sectors += differing;
    report->dropped += dropped;
    if (dropped > 0 && dropped < differing) ++report->torn_pages;
    if (dropped > 0) write_all(fd, now.data(), std::min(kPageBytes, final_size - begin), begin);
  }
  ::close(fd);
  files_.erase(found);   // another name of it is not cut twice
}

}  // namespace tidemark::crash
