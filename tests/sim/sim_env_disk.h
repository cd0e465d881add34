// A simulated machine's disk: names, inodes, and what of them would survive a power cut.
// Purely a data structure: time, faults and callbacks are above it (sim_env_files.h).
#pragma once

#include <array>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "shared/io/file.h"
#include "tests/sim/sim_env_random.h"

namespace tidemark::sim {

inline constexpr uint64_t kSectorBytes = 512;
inline constexpr uint64_t kPageBytes = 4096;

class Inode {
 public:
  using Sector = std::array<uint8_t, kSectorBytes>;
  explicit Inode(bool directory) : is_directory(directory) {}

  void read(uint64_t offset, MutableByteSpan out) const;   // zeros past the end
  void write(uint64_t offset, ByteSpan data);
  // Each sector of the range gets its new content or not, as `random` has it: a write cut short.
  void write_some(uint64_t offset, ByteSpan data, Random& random);
  void punch(uint64_t offset, uint64_t length);
  void allocate(uint64_t offset, uint64_t length);
  void truncate(uint64_t size);
  uint64_t size() const { return size_; }
  uint64_t allocated() const { return pages_.size() * kPageBytes; }
  uint64_t pages_missing(uint64_t offset, uint64_t length) const;
  Extent next_data(uint64_t offset) const;

  // What a sync covers is fixed when it is called; it is durable when it ends well. A failed one
  // leaves its sectors in doubt: no later sync covers them unless they are written again.
  struct SyncPoint {
    uint64_t version = 0, size = 0;
    std::map<uint64_t, Sector> kept;   // what it covers of sectors that were changed since
    bool covered = false;              // by one that began later and has ended well: it takes nothing of that back
  };
  std::shared_ptr<SyncPoint> begin_sync();   // shared: the inode looks at it as long as somebody holds it
  void end_sync(const SyncPoint& point, bool ok);
  void sync_all();
  void set_byte(uint64_t offset, uint8_t byte);
  void flip_byte(uint64_t offset);   // both: in what is there and in what is durable
  void spoil(uint64_t offset, uint64_t length);   // its pages cannot be read until they are written whole, or punched
  bool readable(uint64_t offset, uint64_t length) const;
  void lose_power(Random& random);

  const bool is_directory;

 private:
  struct Unsynced {
    Sector durable;
    uint64_t version = 0;
    bool in_doubt = false;
  };
  Sector sector(uint64_t number) const;
  void mend(uint64_t offset, uint64_t length);
  void touch(uint64_t number);           // remembers the durable content before a change
  void set_sector(uint64_t number, const Sector& content);

  uint64_t size_ = 0;
  uint64_t durable_size_ = 0;
  uint64_t version_ = 0;
  std::map<uint64_t, std::array<uint8_t, kPageBytes>> pages_;   // absent: a hole
  std::map<uint64_t, Unsynced> unsynced_;
  std::set<uint64_t> spoiled_;                                  // pages
  std::vector<std::weak_ptr<SyncPoint>> syncs_;                 // under way
};

// Paths are absolute. "/" is there from the start.
class Disk {
 public:
  explicit Disk(uint64_t bytes) : capacity_(bytes) { names_["/"] = durable_["/"] = std::make_shared<Inode>(true); }

  Result<std::shared_ptr<Inode>> open(const std::string& path, const io::OpenOptions& options);
  Result<std::shared_ptr<Inode>> find(const std::string& path) const;
  Status make_directories(const std::string& path);    // durable at once, as the real one
  Result<std::vector<std::string>> list(const std::string& directory) const;
  Status rename(const std::string& from, const std::string& to);
  Status unlink(const std::string& path);
  Status sync_directory(const std::string& path);
  void lose_power(Random& random);

  uint64_t used() const;
  uint64_t capacity() const { return capacity_; }
  void set_capacity(uint64_t bytes) { capacity_ = bytes; }
  bool has_room(const Inode& inode, uint64_t offset, uint64_t length) const;

  using Names = std::map<std::string, std::shared_ptr<Inode>>;   // shared with open files
  // Copies of the files below a directory, itself too; durable when they are put.
  void copy_below(const std::string& directory, Names& out) const;
  void erase_below(const std::string& directory);
  void put(const Names& files);

 private:
  // A change of names not yet durable: `path` now means `inode` (null: nothing), `gone` nothing.
  struct Change {
    std::string path;
    std::shared_ptr<Inode> inode;
    std::string gone;
  };
  static void apply(Names& names, const Change& change);
  void record(Change change);

  Names names_;
  Names durable_;
  std::vector<Change> pending_;
  uint64_t capacity_;
};

}  // namespace tidemark::sim
