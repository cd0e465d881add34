#include "tests/sim/guest.h"

#include <algorithm>

namespace tidemark::sim {
namespace {
constexpr InodeNumber kRoot{1};
constexpr uint64_t kExtentSectorsMax = 40;
}  // namespace

void Guest::start(fs::Engine& engine, SimEnv& env, bool create, std::function<void(const std::string&)> failed) {
  engine_ = &engine;
  env_ = &env;
  failed_ = std::move(failed);
  running_ = true;
  stopping_ = false;
  uint64_t life = ++life_;
  auto found = [this, life, create](Result<wire::Attr> attr) {
    if (life != life_) return;
    if (!attr) return wrong("cannot find the image: " + attr.status().to_string());
    InodeNumber inode = attr->inode;
    engine_->open_image(inode, [this, life, create, inode](Result<fs::HandleId> handle) {
      if (life != life_) return;
      if (!handle) return wrong("open: " + handle.status().to_string());
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
  };
  if (create) {
    wire::Create request;
    request.parent = kRoot;
    request.name = name_;
    request.mode = 0600;
    engine.create(std::move(request), std::move(found));
  } else {
    engine.lookup(kRoot, name_, std::move(found));
  }
}

void Guest::opened(fs::HandleId handle) {
  handle_ = handle;
  for (uint32_t i = 0; i < options_.depth; ++i) later();
}

void Guest::lost() {
  ++life_;
  running_ = false;
  requests_.clear();   // never answered: their stamps stay possible
}

void Guest::later() {
  uint64_t life = life_;
  env_->after(world_.random().in({Duration(0), options_.think_max}), [this, life] {
    if (life == life_) next();
  });
}

void Guest::next() {
  if (stopping_) {
    if (requests_.empty() && running_) {
      running_ = false;
      engine_->release(handle_);
    }
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
    if (!n) wrong("write: " + n.status().to_string());
    else model_.acknowledge(r->extent, r->stamp), ++acknowledged_;
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
  engine_->flush(handle_, io::IoMode::kQueued, [this, life, r](Status s) {
    if (life != life_) return;
    if (!s) wrong("flush: " + s.to_string());
    answered(r);
  });
}

}  // namespace tidemark::sim
