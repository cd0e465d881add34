// What a directory would hold after a power cut: it is changed at once, and beside it is kept what is not synced yet.
//
// A page (4096 bytes) that was written and not synced is kept, dropped or torn: then each of its sectors (512 bytes) is
// kept or dropped by itself. A size that was not synced is the old or the new one. Changes of names that no fsync of
// their directory made durable are lost from some moment on, in the order in which they were made; an fsync of a file
// says nothing of its name. What a change takes away (an unlinked file, a file renamed over) is kept in a directory
// beside until that is durable. A rename of a directory is durable at once, with all changes of names before it.
//
// Not thread-safe: its user holds one lock. Paths begin with "/" and are those of the directory.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace tidemark::crash {

inline constexpr uint64_t kSectorBytes = 512;
inline constexpr uint64_t kPageBytes = 4096;

// One file's changes that are not durable yet.
struct Unsynced {
  using Page = std::array<uint8_t, kPageBytes>;
  std::map<uint64_t, std::unique_ptr<Page>> pages;   // page number -> durable content; null: zeros
  uint64_t durable_size = 0;
};

struct CutReport {
  uint64_t sectors = 0;   // unsynced ones whose old and new contents differ
  uint64_t dropped = 0;
  uint64_t torn_pages = 0;
  uint64_t sizes = 0, sizes_dropped = 0;
  uint64_t names = 0, names_dropped = 0;
};

enum class CutStyle { kDrop, kKeep, kMix };   // all unsynced is lost; nothing is; by chance

class Medium {
 public:
  explicit Medium(std::string directory);   // all that is in it counts as durable

  std::string real(const std::string& path) const { return directory_ + path; }
  // Shared: by the file's open handles and, while it has a name, by the table.
  std::shared_ptr<Unsynced> find(int fd);

  // Each returns 0 or -errno. `fd` is open for writing on the file that `file` is of.
  int write(Unsynced& file, int fd, uint64_t offset, const char* data, size_t size);
  int truncate(Unsynced& file, int fd, uint64_t size);
  int allocate(Unsynced& file, int fd, int mode, uint64_t offset, uint64_t length);
  void sync(Unsynced& file, int fd);
  void sync_range(Unsynced& file, int fd, uint64_t offset, uint64_t size);   // a write with O_DSYNC

  void created(const std::string& path);       // a file, a symlink, a hard link, a directory: it is there already
  void created_file(const std::string& path, int fd);
  int remove(const std::string& path);         // a name of any kind
  int rename(const std::string& from, const std::string& to, bool replace);
  void sync_directory(const std::string& path);

  uint64_t unsynced_sectors() const;           // those written, whether the content differs or not
  uint64_t unsynced_names() const { return changes_.size(); }
  CutReport cut(CutStyle style, uint64_t seed);   // nothing may use it afterwards

 private:
  struct Change {                // of names; one of the two may be empty
    std::string gone;            // this name went away ...
    std::string come;            // ... and this one came: a rename if both
    std::string kept;            // where that which the name stood for before is kept
  };
  void remember(Unsynced& file, int fd, uint64_t offset, uint64_t length);
  void remember_data(Unsynced& file, int fd, uint64_t begin, uint64_t end);   // holes read as zeros anyway
  int set_aside(const std::string& path, std::string* kept);
  void undo(const Change& change);
  void forget(const Change& change);           // it is durable
  void cut_file(const std::string& real_path, CutStyle style, std::mt19937_64& random, CutReport* report);

  const std::string directory_;
  const std::string aside_;      // beside the directory, on the same file system
  uint64_t aside_count_ = 0;
  std::map<uint64_t, std::shared_ptr<Unsynced>> files_;   // by inode number
  std::vector<Change> changes_;
};

}  // namespace tidemark::crash
