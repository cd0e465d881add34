#include "tests/sim/guest.h"

#include <algorithm>
#include <cerrno>

namespace tidemark::sim {
namespace {
constexpr InodeNumber kRoot{1};
constexpr uint64_t kExtentSectorsMax = 40;
constexpr std::chrono::milliseconds kNamesRetry{200}, kBusyRetry{300};
}  // namespace

void Guest::start(fs::Engine& engine, SimEnv& env, bool create, std::function<void(const std::string&)> failed) {
  engine_ = &engine;
  env_ = &env;
  failed_ = std::move(failed);
  running_ = true;
  stopping_ = taken_ = opened_ = may_fail_ = superseded_ = false;
  create_ = create;
  begun_ = 0;
  ++life_;
  look_up(create);
}

// Names need the shared node: while it is away they are asked for again.
template <class F>
void Guest::again(const Status& why, const std::string& what, F&& fn) {
  bool unreachable = why.code() == Code::kUnavailable || why.sys_errno() == EHOSTUNREACH;
  if (!unreachable) return wrong(what + ": " + why.to_string());
  env_->after(kNamesRetry, [this, life = life_, fn = std::forward<F>(fn)] {
    if (life == life_) fn();
  });
}

void Guest::look_up(bool create) {
  auto found = [this, life = life_, create](Result<wire::Attr> attr) {
    if (life != life_) return;
    // A create whose answer was lost has made the image.
    bool there = !attr && create && attr.status().code() == Code::kAlreadyExists;
    if (there) return engine_->lookup(kRoot, name_, [this, life, create](Result<wire::Attr> known) {
      if (life != life_) return;
      if (!known) return again(known.status(), "cannot find the image", [this, create] { look_up(create); });
      open(known->inode, create);
    });
    if (!attr) return again(attr.status(), "cannot find the image", [this, create] { look_up(create); });
    open(attr->inode, create);
  };
  if (!create) return engine_->lookup(kRoot, name_, std::move(found));
  wire::Create request;
  request.parent = kRoot;
  request.name = name_;
  request.mode = 0600;
  engine_->create(std::move(request), std::move(found));
}

void Guest::open(InodeNumber inode, bool create) {
  engine_->open_image(inode, [this, life = life_, create, inode](Result<fs::HandleId> handle) {
    if (life != life_) return;
    if (!handle) return again(handle.status(), "open", [this, inode, create] { open(inode, create); });
    if (!create) return opened(*handle);
    fs::SetAttr grow;
    grow.set_size = true;
    grow.size = model_->size();
    engine_->setattr(inode, grow, [this, life, h = *handle](Result<wire::Attr> attr) {
      if (life != life_) return;
      if (!attr) return wrong("resize: " + attr.status().to_string());
      opened(h);
    });
  });
}

void Guest::opened(fs::HandleId handle) {
  handle_ = handle;
  opened_ = true;
  loops_ = 1;
  if (options_.turn_requests != 0) return take_tenure();
  taken_ = true;
  loops_ = options_.depth;
  for (uint32_t i = 0; i < options_.depth; ++i) later();
}

void Guest::take_tenure() {
  if (stopping_) return next();
  do_write();
}

void Guest::lost() {
  ++life_;
  running_ = false;
  for (const Request& r : requests_) if (r.stamp != 0) model_->abandon(r.stamp);   // stays possible
  requests_.clear();
}

void Guest::later() {
  uint64_t life = life_;
  env_->after(world_.random().in({Duration(0), options_.think_max}), [this, life] {
    if (life == life_) next();
  });
}

void Guest::next() {
  if (options_.turn_requests != 0 && begun_ >= options_.turn_requests) stopping_ = true;
  ++begun_;
  if (stopping_) {
    if (--loops_ > 0) return;
    running_ = false;
    engine_->release(handle_);
    return;
  }
  uint64_t dice = world_.random().below(100);
  if (dice < options_.read_percent) do_read();
  else if (dice < options_.read_percent + options_.zero_percent) do_zero();
  else if (dice < options_.read_percent + options_.zero_percent + options_.flush_percent) do_flush();
  else do_write();
}

Extent Guest::random_extent() {
  // Aligned to sectors, so that requests overlap within blocks as well; a quarter in one hot spot.
  Random& random = world_.random();
  uint64_t sectors = model_->size() / kModelSector;
  uint64_t count = 1 + random.below(kExtentSectorsMax);
  if (random.coin()) count = (count + 7) / 8 * 8;
  uint64_t range = random.chance(1, 4) ? std::min<uint64_t>(sectors, 128) : sectors;
  uint64_t first = random.below(range - std::min(range - 1, count));
  if (count % 8 == 0) first = first / 8 * 8;
  return {first * kModelSector, std::min(count, sectors - first) * kModelSector};
}

void Guest::branch_off(ImageModel& line) {
  for (const Request& r : requests_) if (r.stamp != 0) model_->abandon(r.stamp);   // on the main line it came, or never will
  model_ = &line;
}

void Guest::resume(fs::Engine& engine, SimEnv& env) {
  engine_ = &engine;
  env_ = &env;
  if (!running_) return;
  if (!opened_) return look_up(create_);
  std::vector<Where> again;
  for (auto r = requests_.begin(); r != requests_.end(); ++r) again.push_back(r);
  const size_t loops = loops_;
  for (Where r : again) submit(r);
  if (!taken_ && again.empty()) return take_tenure();
  for (size_t i = again.size(); i < loops; ++i) later();
}

void Guest::answered(Where request) {
  requests_.erase(request);
  later();
}

// Whether an error is one that may come. Its turn, if it has one, is over then; of a write nobody knows the outcome.
bool Guest::excused(Where r, const Status& why) {
  const bool known = errno_of(why) == EIO || why.code() == Code::kBusy;
  if (!may_fail_ || !known) return false;
  if (r->stamp != 0) model_->abandon(r->stamp);
  requests_.erase(r);
  if (options_.turn_requests == 0) later();
  else stopping_ = true, next();
  return true;
}

void Guest::submit(Where r) {
  switch (r->kind) {
    case Kind::kRead: return submit_read(r);
    case Kind::kWrite: return submit_write(r);
    case Kind::kZero: return submit_zero(r);
    case Kind::kFlush: return submit_flush(r);
  }
}

// Reads in flight may see it.
void Guest::seen_by_reads(const Request& r, ImageModel::Stamp stamp) {
  for (Request& other : requests_) {
    if (other.kind != Kind::kRead || !other.extent.overlaps(r.extent)) continue;
    uint64_t from = std::max(other.extent.offset, r.extent.offset), to = std::min(other.extent.end(), r.extent.end());
    for (uint64_t at = from; at < to; at += kModelSector)
      other.allowed.allowed[(at - other.extent.offset) / kModelSector].insert(stamp);
  }
}

void Guest::do_read() {
  auto r = requests_.emplace(requests_.end());
  r->extent = random_extent();
  r->memory.resize(r->extent.length);
  r->allowed = model_->view(r->extent);
  submit_read(r);
}

void Guest::submit_read(Where r) {
  engine_->read(handle_, r->extent.offset, r->memory, io::IoMode::kQueued, [this, life = life_, r](Result<size_t> n) {
    if (life != life_) return;
    if (!n && excused(r, n.status())) return;
    if (!n || *n != r->extent.length) {
      wrong("read: " + (n ? "short" : n.status().to_string()));
    } else {
      std::string text = model_->check(r->allowed, r->extent.offset, r->memory);
      if (!text.empty()) wrong("read " + text);
    }
    answered(r);
  });
}

void Guest::do_write() {
  auto r = requests_.emplace(requests_.end());
  r->kind = Kind::kWrite;
  r->superseded = superseded_;
  r->extent = random_extent();
  r->stamp = model_->issue(r->extent, false);
  seen_by_reads(*r, r->stamp);
  r->memory.resize(r->extent.length + 4096);
  size_t pad = (4096 - reinterpret_cast<uintptr_t>(r->memory.data()) % 4096) % 4096;
  r->bytes = MutableByteSpan(r->memory).subspan(pad, r->extent.length);
  model_->fill(r->extent, r->stamp, r->bytes);
  submit_write(r);
}

void Guest::submit_write(Where r) {
  io::IoMode mode = world_.random().coin() ? io::IoMode::kInline : io::IoMode::kQueued;
  engine_->write(handle_, r->extent.offset, r->bytes, mode, [this, life = life_, r](Result<size_t> n) {
    if (life != life_) return;
    if (!n && n.status().code() == Code::kBusy && !taken_) {
      model_->refuse(r->extent, r->stamp);
      requests_.erase(r);
      env_->after(kBusyRetry, [this, life] {
        if (life == life_) take_tenure();
      });
      return;
    }
    written(r, n ? Status::ok() : n.status(), "write: ");
  });
}

void Guest::written(Where r, const Status& status, const char* what) {
  if (!status && excused(r, status)) return;
  if (!status) wrong(what + status.to_string());
  else model_->acknowledge(r->extent, r->stamp), ++acknowledged_;
  if (status && r->superseded) wrong("a write is acknowledged though another host has the tenure");
  bool first = !std::exchange(taken_, true);
  if (first && status && told_taken_) told_taken_();
  for (; first && loops_ < options_.depth; ++loops_) later();
  answered(r);
}

void Guest::do_zero() {
  auto r = requests_.emplace(requests_.end());
  r->kind = Kind::kZero;
  r->superseded = superseded_;
  r->extent = random_extent();
  r->stamp = model_->issue(r->extent, true);
  seen_by_reads(*r, 0);
  r->how = world_.random().coin() ? fs::Engine::Fallocate::kPunch : fs::Engine::Fallocate::kZero;
  submit_zero(r);
}

void Guest::submit_zero(Where r) {
  engine_->fallocate(handle_, r->how, r->extent, [this, life = life_, r](Status s) {
    if (life == life_) written(r, s, "zero: ");
  });
}

void Guest::do_flush() {
  auto r = requests_.emplace(requests_.end());
  r->kind = Kind::kFlush;
  r->covered = model_->flush_asked();
  submit_flush(r);
}

void Guest::submit_flush(Where r) {
  engine_->flush(handle_, io::IoMode::kQueued, [this, life = life_, r](Status s) {
    if (life != life_) return;
    if (!s && excused(r, s)) return;
    if (!s) wrong("flush: " + s.to_string());
    else model_->flush_acknowledged(r->covered);
    answered(r);
  });
}

}  // namespace tidemark::sim
