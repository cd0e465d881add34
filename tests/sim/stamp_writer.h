// A writer that goes on whatever happens to its host, and what it left in an image.
#pragma once

#include "tests/sim/lab.h"

namespace tidemark::sim {

// Writes stamps to a block of its own for ever, opening the image anew after an error. What was acknowledged must be
// found in the end: if both sides of a partition acknowledge, one side's stamps are in a branch, and its block is old.
class StampWriter {
 public:
  StampWriter(Lab& lab, std::string host, uint64_t offset, Duration pause = std::chrono::milliseconds(200))
      : lab_(lab), host_(std::move(host)), offset_(offset), pause_(pause) {}

  void turn() {
    if (stopped || waits_ || !lab_.world.running(host_)) return later();
    waits_ = true;
    if (!handle_) return open();
    ++stamp_;
    data_ = std::make_shared<Bytes>(4096);
    store_le<uint64_t>(data_->data(), stamp_);
    auto done = [this, run = run_, stamp = stamp_, data = data_](Result<size_t> n) {
      if (run != run_) return;
      if (n) acknowledged = stamp;
      else release();
      again();
    };
    lab_.engine(host_).write(*handle_, offset_, *data_, io::IoMode::kQueued, std::move(done));
  }
  // The host's process has gone: so have its handle and the answers under way.
  void crashed() {
    ++run_;
    handle_.reset();
    again();
  }

  uint64_t acknowledged = 0;
  bool stopped = false;

 private:
  void open() {
    auto found = [this, run = run_](Result<wire::Attr> attr) {
      if (run != run_) return;
      if (!attr) return again();
      lab_.engine(host_).open_image(attr->inode, [this, run](Result<fs::HandleId> handle) {
        if (run != run_) return;
        if (handle) handle_ = *handle;
        again();
      });
    };
    lab_.engine(host_).lookup(InodeNumber(1), "disk.img", std::move(found));
  }
  void release() {
    lab_.engine(host_).release(*handle_);
    handle_.reset();
  }
  void again() {
    waits_ = false;
    later();
  }
  void later() {
    if (armed_ || stopped) return;
    armed_ = true;
    lab_.world.at(pause_, [this] {
      armed_ = false;
      turn();
    });
  }

  Lab& lab_;
  const std::string host_;
  const uint64_t offset_;
  const Duration pause_;
  std::optional<fs::HandleId> handle_;
  std::shared_ptr<Bytes> data_;   // shared with a request that may outlive this turn
  uint64_t stamp_ = 0, run_ = 0;
  bool waits_ = false, armed_ = false;
};

inline uint64_t stamp_at(Lab& lab, const std::string& host, fs::HandleId handle, uint64_t offset) {
  auto data = std::make_shared<Bytes>(4096);
  for (int tries = 0; tries < 20; ++tries) {
    auto n = lab.wait<Result<size_t>>([&](auto done) {
      lab.engine(host).read(handle, offset, *data, io::IoMode::kQueued, std::move(done));
    });
    if (n) return load_le<uint64_t>(data->data());
  }
  ADD_FAILURE() << host << " cannot read";
  return 0;
}

}  // namespace tidemark::sim
