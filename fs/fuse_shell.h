// The FUSE shell: a thin layer between /dev/fuse and the engine. The only code that knows FUSE types, and, with
// main.cc, the only code of this folder that touches descriptors and threads.
//
// The loop drains /dev/fuse without blocking, io::turn_share() of requests a turn, into page-aligned buffers
// laid out so that a WRITE's payload begins on a page:
//
//   buffer:  | ... 4016 ... | 40 fuse_in_header | 40 fuse_write_in | payload (4096-aligned) ... |
//
// libfuse parses (fuse_session_process_buf) and writes the answers. A write keeps its buffer until it is answered: its
// payload is never copied. When one request came alone and nothing is in flight, the engine is told to work inline.
// Node ids are inode numbers, file handles are table indexes. Loop thread only.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "fs/engine.h"
#include "fs/survivor.h"
#include "shared/io/real_env.h"

struct fuse_session;
struct iovec;

namespace tidemark::fs {

struct FuseOptions {
  std::string mountpoint;
  std::string source = "tidemark";       // fsname
  bool allow_other = true;
  bool read_only = false;
  uint32_t max_background = 256;
  std::vector<std::string> mount_options;  // handed to mount(2) as they are: nodev, nosuid, ...
  Survivor* survivor = nullptr;          // what is agreed with the kernel is kept there for a successor
  int session = -1;                      // a descriptor of /dev/fuse whose mount stands: it is taken over
};

// Parts of a kernel release's service that this machine lacks, for `status`.
std::vector<std::string> missing_kernel_features();

class FuseShell final : public MemoryKeeper {
 public:
  // Unmounts a dead mount that stands in the way. Errors name the mount point and what to do.
  // Taking over: kUnsupported if the kernel was promised what this program does not keep.
  static Result<std::unique_ptr<FuseShell>> mount(io::RealEnv& env, Engine& engine, FuseOptions options);
  ~FuseShell() override;
  FuseShell(const FuseShell&) = delete;
  FuseShell& operator=(const FuseShell&) = delete;

  // Takes the mount out of the tree; requests of files still open go on. `done` runs when the last of them is
  // closed, or after `grace`.
  void unmount(io::Duration grace, UniqueFunction<void()> done);
  // Reads no further requests: they wait for a successor, which takes over the mount. Those begun go on.
  void pause();
  int session() const { return fd_; }
  // Called once when the file system was unmounted from outside.
  void on_unmounted(UniqueFunction<void()> fn) { on_unmounted_ = std::move(fn); }
  // Names a request for an interrupt; the interrupt itself is carried out after the current turn's work.
  uint64_t next_tag() { return ++last_tag_; }
  // The kernel asks anew. Its cached pages stay, so that nothing here waits.
  void forget_attributes(InodeNumber inode);
  void interrupted(uint64_t tag);

 private:
  friend struct FuseOps;
  friend struct RawOps;
  struct Buffer;
  struct ReadBuffer;
  struct Directory {
    InodeNumber inode;
    std::vector<wire::DirEntry> entries;
    size_t shown = 0;                    // of these, given to the kernel
    size_t fresh = 0;                    // from there on they were fetched for the request being answered
    std::string listed_to;               // the last name looked at
    bool complete = false;
    bool view = false;                   // of the raw view
  };
  FuseShell(io::RealEnv& env, Engine& engine, FuseOptions options);
  Status start();
  // ---- fuse_session.cc
  Status open_session();
  Status mount_anew();
  Status take_over();
  Status ask_again();
  void note_request();
  static ssize_t write_session(int fd, iovec* io, int count, void* shell);
  static ssize_t read_session(int fd, void* bytes, size_t size, void* shell);
  // ---- fuse_shell.cc
  void drain();
  bool receive(size_t most);
  void begin_received();
  void gone();
  Buffer* take_buffer();
  void give_back(Buffer* buffer);
  ReadBuffer* take_read_buffer(size_t size);
  void give_back(ReadBuffer* buffer);
  MutableByteSpan keep(ByteSpan memory) override;
  void landed(ByteSpan memory) override;

  io::RealEnv& env_;
  Engine& engine_;
  const FuseOptions options_;
  fuse_session* session_ = nullptr;
  int fd_ = -1;
  bool mounted_ = false;
  bool watching_ = false;
  bool detached_ = false;                  // taken out of the tree, files may be open still
  bool came_alone_ = false;                // the last request did: the next most likely does, too
  bool alone_ = false;                     // the request being processed came alone, nothing is in flight
  Buffer* current_ = nullptr;              // of the request being processed; null when its operation took it
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<Buffer*> free_buffers_;
  struct Received { Buffer* buffer; size_t size; };
  std::vector<Received> received_;
  std::vector<std::unique_ptr<ReadBuffer>> read_buffers_;
  std::vector<ReadBuffer*> small_reads_, large_reads_, bare_reads_;   // free; without memory
  std::vector<io::AlignedBuffer> hung_reads_;            // a device may write to them
  std::unordered_map<uint64_t, Directory> directories_;
  uint64_t last_directory_ = 0;            // a successor's begin where no handle of the run before can be
  RequestId request_;                      // the one being processed
  uint64_t agreement_ = 0;                 // the FUSE_INIT being answered
  uint16_t agreed_background_ = 0;         // on the mount that is taken over; 0: none is
  bool swallow_ = false;                   // answers are kept in swallowed_, not given
  std::string swallowed_;
  uint64_t last_tag_ = 0;
  UniqueFunction<void()> on_unmounted_, when_gone_;
};

}  // namespace tidemark::fs
