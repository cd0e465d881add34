// A simulated VM: random overlapping reads, writes, zeroes, discards and flushes on one image through a host's
// engine, at a depth, each answer held against the model. Only names may
// be unreachable: the guest asks again.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "fs/engine.h"
#include "tests/sim/model.h"
#include "tests/sim/sim_env.h"

namespace tidemark::sim {

struct GuestOptions {
  uint32_t depth = 4;
  uint32_t read_percent = 25, zero_percent = 8, flush_percent = 8;
  Duration think_max = std::chrono::milliseconds(20);
  // Above 0: a VM that moves from host to host. It begins with a write, which takes the tenure (EBUSY: tried again),
  // and ends after so many requests.
  uint32_t turn_requests = 0;
};

class Guest {
 public:
  Guest(World& world, ImageModel& model, std::string name, const GuestOptions& options)
      : world_(world), model_(&model), name_(std::move(name)), options_(options) {}

  // Opens the image (creating it if `create`) on `engine` and goes to work. `failed` is told of every wrong answer.
  void start(fs::Engine& engine, SimEnv& env, bool create, std::function<void(const std::string&)> failed);
  // No new requests; `idle()` once all were answered and the handle was released.
  void stop() { stopping_ = true; }
  bool idle() const { return !running_; }
  bool has_tenure() const { return running_ && taken_; }
  // The host died: answers will not come. What was in flight stays possible in the model.
  void lost();
  uint64_t acknowledged() const { return acknowledged_; }
  // From now on EIO is no wrong answer: the image may have been taken, or an operator ended its waiting. A turn ends then.
  void expect_failures() { may_fail_ = true; }
  // Another host has the tenure: nothing that is written from now on may be acknowledged.
  void supersede() { superseded_ = true; }
  bool superseded() const { return superseded_; }
  // Its host has lost the image and does not know: it goes on upon a line of its own.
  void branch_off(ImageModel& line);
  // The daemon died and the mount stands: requests without an answer come again, to the run that follows.
  void suspend() { ++life_; }
  void resume(fs::Engine& engine, SimEnv& env);
  void on_taken(std::function<void()> fn) { told_taken_ = std::move(fn); }   // at the first acknowledged write

 private:
  enum class Kind : uint8_t { kRead, kWrite, kZero, kFlush };
  struct Request {
    Kind kind = Kind::kRead;
    bool superseded = false;               // when it was issued
    fs::Engine::Fallocate how = fs::Engine::Fallocate::kPunch;
    ImageModel::Flush covered;             // flushes
    Extent extent;
    ImageModel::Stamp stamp = 0;
    ImageModel::View allowed;              // reads: of the range, grows with what is issued meanwhile
    Bytes memory;
    MutableByteSpan bytes;                 // aligned part of memory
  };
  void look_up(bool create);
  void open(InodeNumber inode, bool create);
  void opened(fs::HandleId handle);
  void take_tenure();
  template <class F> void again(const Status& why, const std::string& what, F&& fn);
  void next();
  void later();
  Extent random_extent();
  void do_read();
  void do_write();
  void do_zero();
  void do_flush();
  using Where = std::list<Request>::iterator;
  void submit(Where request);
  void submit_read(Where request);
  void submit_write(Where request);
  void submit_zero(Where request);
  void submit_flush(Where request);
  void seen_by_reads(const Request& request, ImageModel::Stamp stamp);
  bool excused(Where request, const Status& why);
  void written(Where request, const Status& status, const char* what);
  void answered(Where request);
  void wrong(const std::string& what) { failed_("guest of " + name_ + " on " + env_->node() + ": " + what); }

  World& world_;
  ImageModel* model_;
  const std::string name_;
  const GuestOptions options_;
  fs::Engine* engine_ = nullptr;
  SimEnv* env_ = nullptr;
  fs::HandleId handle_;
  std::function<void(const std::string&)> failed_;
  std::list<Request> requests_;            // in flight; addresses are stable
  uint64_t life_ = 0;                      // grows with each start and loss: stale events find out
  bool running_ = false, stopping_ = false;
  bool taken_ = false;                     // a write was acknowledged
  bool create_ = false, opened_ = false;
  bool may_fail_ = false, superseded_ = false;
  std::function<void()> told_taken_;
  uint32_t begun_ = 0;                     // requests of this turn
  uint32_t loops_ = 0;                     // each has a request in flight or a timer running
  uint64_t acknowledged_ = 0;
};

}  // namespace tidemark::sim
