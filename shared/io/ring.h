// io_uring behind the file layer: operations are collected during a turn and submitted with one
// system call; completions call back without allocating. liburing is named in ring.cc only.
//
// Loop thread only: the ring is created by the thread that submits (IORING_SETUP_SINGLE_ISSUER). A submission can hang
// (a device whose queue is full, or that has yet to say where a file's blocks are): while a thread is in enter(), which
// nothing else makes for it, another one may orphan() the ring and reap() what it shows.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "shared/base/function.h"
#include "shared/base/status.h"

namespace tidemark::io {

class Ring {
 public:
  enum class Kind : uint8_t { kRead, kWrite, kDataSync, kFallocate, kStat };
  // What of a file is asked for. Not its times: whoever has seen them must see the next write in them, so that the
  // kernel makes the inode dirty, and the next fdatasync writes it (a second write to the disk; Linux 6.13 and later).
  static const unsigned kStatMask;
  struct Request {
    Kind kind;
    int fd;
    int direct_fd = -1;          // kRead from the page cache: the same file for another try, past it, if refused
    int fallocate_mode = 0;
    uint64_t offset = 0;
    uint8_t* data = nullptr;     // kWrite does not change it; kStat: a struct statx
    uint64_t length = 0;
    bool direct = false;         // decides what a short read means
    bool whole = false;          // OpenOptions::whole
    bool away = false;           // its file system may block whoever submits: by a thread of the kernel's
    const std::string* path;     // for the error message; must outlive the request
  };

  // After an error: whether the rest of it is to be tried once more, as `request` says now. Not after EIO: the kernel
  // has asked the disk again by then, page by page, and each time may take a bad sector long. What a failed change has
  // left on the disk is not known, so that nothing of its file stays cached.
  static bool try_again(Request& request, int error);

  // A read that came to the end of file `moved` bytes on: the rest is zeros, or an error.
  static Status at_end_of_file(const Request& request, uint64_t moved);

  // Null with a reason in `why` where the kernel refuses io_uring.
  static std::unique_ptr<Ring> create(std::string* why);
  ~Ring();

  // Queues a request; `done` runs from a later reap(), never inline. `in_flight` is decremented just
  // before: the owner's count, kept here so that `done` needs no wrapper (which would allocate).
  void queue(const Request& request, uint32_t* in_flight, Callback<Status> done);
  // Makes what was queued ready for enter(), as much as it takes at once. `away`: threads of the kernel's shall carry
  // it out, so that it cannot hang whoever submits it.
  void prepare(bool away);
  // Submits, and lets finished work show up: one system call. Nothing here is touched after it.
  void enter();
  // Runs the callbacks of finished operations, turn_share() of them at most: has_ready() says whether that was all.
  void reap();
  bool has_ready() const;       // reap() would find something (after enter() if it holds_back()); asks only memory
  bool holds_back() const;      // finished operations show up only once their thread enters the kernel
  bool has_unsubmitted() const;
  // Written when something finished while tell(true) holds, never read: watch it edge-triggered. A loop that is awake
  // looks at has_ready(), once more between tell(true) and its wait: nothing is told of what finished before.
  int event_fd() const;
  void tell(bool by_event_fd);
  size_t in_flight() const;
  // The thread that made the ring is stuck: nothing more can be submitted; what was not goes to `heir`, by and by.
  // Only that thread can have the kernel show what finished (enter()); anybody may then reap(), one at a time.
  using Heir = UniqueFunction<void(const Request&, uint32_t* in_flight, Callback<Status> done)>;   // as queue()
  void orphan(Heir heir);
  // The loop is over: waits for what the kernel has, while some of it ends now and then, and destroys all callbacks
  // uncalled. What does not end keeps its memory for good. As ~Ring().
  void abandon();

 private:
  struct State;
  explicit Ring(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tidemark::io
