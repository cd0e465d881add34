// Brings an image at a recovery point into a file: sparse, resumable, under a temporary name until whole.
#pragma once

#include <functional>
#include <string>

#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/cli/replica_client.h"

namespace tidemark::cli {

// Where the bytes come from; the replica, or a test's own.
class PointSource {
 public:
  virtual ~PointSource() = default;
  virtual uint64_t size() const = 0;
  // Image, store and point: a partial file of another is not continued. The store, since an emptied one counts its
  // points from 1 again; the point's batch, since one that was put back from a backup gives the ids after it anew.
  virtual std::string identity() const = 0;
  virtual Result<Extent> next_data(uint64_t offset) = 0;
  virtual Status read(uint64_t offset, MutableByteSpan out) = 0;
};

class ReplicaSource final : public PointSource {
 public:
  ReplicaSource(ReplicaClient& client, std::string store, Point point, PointImage image)
      : client_(client), store_(std::move(store)), point_(std::move(point)), image_(std::move(image)) {}
  uint64_t size() const override { return image_.size; }
  std::string identity() const override {
    return image_.uuid.to_string() + "@" + store_ + "/" + std::to_string(point_.id) + "/" + point_.source + "/" +
           text(point_.json, "generation") + "/" + std::to_string(point_.batch);
  }
  Result<Extent> next_data(uint64_t offset) override { return client_.next_data(point_, image_, offset); }
  Status read(uint64_t offset, MutableByteSpan out) override { return client_.read(point_, image_, offset, out); }

 private:
  ReplicaClient& client_;
  std::string store_;
  Point point_;
  PointImage image_;
};

struct TransferOptions {
  std::string path;             // the file that stands there in the end
  std::string progress_file;    // notes how far the partial file is durable; removed at the end
  bool overwrite = false;       // else kAlreadyExists
  uint64_t checkpoint_bytes = 64ull << 20;   // the partial file is made durable so often
  std::function<void(uint64_t done, uint64_t total)> progress;   // bytes of data, holes left out where known
  std::function<Status(const std::string& partial)> before_rename;   // owner and mode, say; else those of what is replaced
  std::function<void(const std::string& text)> note;                 // what the user should know meanwhile
};
struct TransferResult {
  uint64_t size = 0;
  uint64_t bytes_moved = 0;       // data bytes written by this run
  uint64_t resumed_at = 0;        // offset; 0: from the beginning
};

std::string partial_path(const std::string& path);
// A partial file that belongs to the same image and point is continued where it was last durable; of any other none of the
// bytes is taken. An error leaves it for the next attempt; the name `path` changes only when all is durable. kBusy while
// another process writes the partial file.
Result<TransferResult> transfer(PointSource& source, const TransferOptions& options);

}  // namespace tidemark::cli
