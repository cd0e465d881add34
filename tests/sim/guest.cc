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
  stopping_ = taken_ = false;
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
    grow.size = model_.size();
    engine_->setattr(inode, grow, [this, life, h = *handle](Result<wire::Attr> attr) {
      if (life != life_) return;
      if (!attr) return wrong("resize: " + attr.status().to_string());
      opened(h);
    });
  });
}

void Guest::opened(fs::HandleId handle) {
  handle_ = handle;
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
  for (const Request& r : requests_) if (r.stamp != 0) model_.abandon(r.stamp);   // stays possible
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
  uint64_t sectors = model_.size() / kModelSector;
  uint64_t count = 1 + random.below(kExtentSectorsMax);
  if (random.coin()) count = (count + 7) / 8 * 8;
  uint64_t range = random.chance(1, 4) ? std::min<uint64_t>(sectors, 128) : sectors;
  uint64_t first = random.below(range - std::min(range - 1, count));
  if (count % 8 == 0) first = first / 8 * 8;
  return {first * kModelSector, std::min(count, sectors - first) * kModelSector};
}

void Guest::answered(std::list<Request>::iterator request) {
  requests_.erase(request);
  later();
}

void Guest::do_read() {
  auto r = requests_.emplace(requests_.end());
  r->extent = random_extent();
  r->memory.resize(r->extent.length);
  r->allowed = model_.view(r->extent);
  uint64_t life = life_;
  engine_->read(handle_, r->extent.offset, r->memory, io::IoMode::kQueued, [this, life, r](Result<size_t> n) {
    if (life != life_) return;
    if (!n || *n != r->extent.length) {
      wrong("read: " + (n ? "short" : n.status().to_string()));
    } else {
      std::string text = model_.check(r->allowed, r->extent.offset, r->memory);
      if (!text.empty()) wrong("read " + text);
    }
    answered(r);
  });
}

void Guest::do_write() {
  auto r = requests_.emplace(requests_.end());
  r->extent = random_extent();
  r->stamp = model_.issue(r->extent, false);
  for (Request& other : requests_) {       // reads in flight may see it
    if (other.stamp != 0 || !other.extent.overlaps(r->extent)) continue;
    uint64_t from = std::max(other.extent.offset, r->extent.offset), to = std::min(other.extent.end(), r->extent.end());
    for (uint64_t at = from; at < to; at += kModelSector)
      other.allowed.allowed[(at - other.extent.offset) / kModelSector].insert(r->stamp);
  }
  r->memory.resize(r->extent.length + 4096);
  size_t pad = (4096 - reinterpret_cast<uintptr_t>(r->memory.data()) % 4096) % 4096;
  r->bytes = MutableByteSpan(r->memory).subspan(pad, r->extent.length);
  model_.fill(r->extent, r->stamp, r->bytes);
  uint64_t life = life_;
  io::IoMode mode = world_.random().coin() ? io::IoMode::kInline : io::IoMode::kQueued;
  engine_->write(handle_, r->extent.offset, r->bytes, mode, [this, life, r](Result<size_t> n) {
    if (life != life_) return;
    if (!n && n.status().code() == Code::kBusy && !taken_) {
      model_.refuse(r->extent, r->stamp);
      requests_.erase(r);
      env_->after(kBusyRetry, [this, life] {
        if (life == life_) take_tenure();
      });
      return;
    }
    if (!n) wrong("write: " + n.status().to_string());
    else model_.acknowledge(r->extent, r->stamp), ++acknowledged_;
    bool first = !std::exchange(taken_, true);
    for (; first && loops_ < options_.depth; ++loops_) later();
    answered(r);
  });
}

void Guest::do_zero() {
  auto r = requests_.emplace(requests_.end());
  r->extent = random_extent();
  r->stamp = model_.issue(r->extent, true);
  for (Request& other : requests_) {
    if (other.stamp != 0 || !other.extent.overlaps(r->extent)) continue;
    uint64_t from = std::max(other.extent.offset, r->extent.offset), to = std::min(other.extent.end(), r->extent.end());
    for (uint64_t at = from; at < to; at += kModelSector)
      other.allowed.allowed[(at - other.extent.offset) / kModelSector].insert(0);
  }
  auto what = world_.random().coin() ? fs::Engine::Fallocate::kPunch : fs::Engine::Fallocate::kZero;
  uint64_t life = life_;
  engine_->fallocate(handle_, what, r->extent, [this, life, r](Status s) {
    if (life != life_) return;
    if (!s) wrong("zero: " + s.to_string());
    else model_.acknowledge(r->extent, r->stamp), ++acknowledged_;
    answered(r);
  });
}

void Guest::do_flush() {
  auto r = requests_.emplace(requests_.end());
  uint64_t life = life_;
  auto covered = std::make_shared<ImageModel::Flush>(model_.flush_asked());   // shared with the answer that may never come
  engine_->flush(handle_, io::IoMode::kQueued, [this, life, r, covered](Status s) {
    if (life != life_) return;
    if (!s) wrong("flush: " + s.to_string());
    else model_.flush_acknowledged(*covered);
    answered(r);
  });
}

}  // namespace tidemark::sim
