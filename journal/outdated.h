// The mark "this journal is outdated": what stands in LMDB is not all that happened. It is taken, durably, before the first
// write goes on without a durable journal, and taken back once the journal has everything again. After a crash under it
// every region of every image counts as dirty, and the replica lacks all of them.
//
// A file of one block, written and allocated in good time (at every opening) and overwritten in place, so that a full disk
// takes it; one in the journal's directory and one in each reserve directory, so that another disk does if that one fails.
// It stands if any of them says so. A file: magic "TMOUTDAT", u8 outdated, u64 XXH3 of both, zeros up to 4096 bytes.
// Valid if and only if the checksum holds; one that does not counts as outdated. Loop thread only.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/function.h"
#include "shared/base/status.h"
#include "shared/base/task.h"
#include "shared/io/env.h"

namespace tidemark::io { class File; }

namespace tidemark::journal {

// The file's block, for offline tools; and whether one is sound, whatever it says.
Bytes outdated_block(bool outdated);
bool sound_outdated_block(ByteSpan block);

class OutdatedMark {
 public:
  OutdatedMark(io::Env& env, std::vector<std::string> directories);
  ~OutdatedMark();
  // Start-up only: blocks. An error if no directory takes the file.
  Status open();
  bool found() const { return found_; }            // as it stood at the opening
  bool stands() const { return stands_; }          // durably
  // Durable in at least one place (taking it), or in every one that took it (taking it back), when `done` says OK. One whose
  // device hangs holds up the taking back, and the taking where none before it took it. `done` may be called at once.
  // Changes follow each other; `done` of one that another overtook gets kCancelled.
  void put(bool outdated, Callback<Status> done);
  // The first directory's disk may be mounted anew: its file is opened by name again, and counts for nothing before it is
  // written again. Blocks. Whether the mark stands is then as the other places have it.
  Status reopen_own();

 private:
  struct Place {
    std::string path;
    std::shared_ptr<io::File> file;                // shared with its writes: they may outlive this
    std::optional<bool> says;                      // none: it is being written, or that failed
    bool writing = false;
  };
  bool sure() const;                               // a place says so that nobody is writing
  Task<void> run();
  Task<Status> write(Place& place, bool outdated);

  io::Env& env_;
  std::vector<Place> places_;
  bool found_ = false, stands_ = false, wanted_ = false, running_ = false;
  Callback<Status> done_;
  TaskGroup tasks_;
};

}  // namespace tidemark::journal
