// What others use of the engine by copies.h: mostly what it does for itself, too.
#include "fs/copies.h"

#include "fs/engine.h"

namespace tidemark::fs {

class Engine::CopiesOfEngine final : public Copies {
 public:
  explicit CopiesOfEngine(Engine& engine) : engine_(engine) {}

  Task<Status> images_named(std::vector<std::string> names, std::vector<ImageId>& out) override;
  Image* still_there(const ImageId& id) override;
  Task<Status> hold_for_reading(Image& im) override;

  Task<void> lock(Image& im, RangeLock::Hold& hold) override { return engine_.lock(im, hold); }
  void deactivate(Image& im) override { engine_.deactivate(im); }

  using Buffer = std::shared_ptr<io::AlignedBuffer>;   // shared with the operation
  Task<Status> read_copy(Image& im, Extent extent, Buffer buffer) override {
    return engine_.read_copy(im, extent, std::move(buffer));
  }
  Task<Status> read_shared(Image& im, Extent extent, Buffer buffer) override {
    return engine_.read_shared(im, extent, std::move(buffer));
  }
  Task<Result<wire::Hashes>> hash_shared(Image& im, Extent range, uint32_t unit, const DigestKey& key) override;
  Task<Result<bool>> shared_is_hole(Image& im, Extent range) override;
  Task<Status> copy_to_shared(Image& im, Extent piece, ByteSpan bytes) override {
    return engine_.copy_to_shared(im, piece, bytes);
  }
  Task<Status> copy_to_host(Image& im, Extent piece) override { return engine_.copy_to_host(im, piece); }
  Task<Status> flush_both(Image& im) override { return engine_.flush_both(im); }

  void spawn(Task<void> task) override { engine_.tasks_.spawn(std::move(task)); }
  Task<void> sleep(io::Duration delay) override { return engine_.sleep(delay); }
  bool stopping() const override { return engine_.stopping_; }
  uint32_t in_flight() const override { return engine_.in_flight(); }

  io::Env& env() override { return engine_.env_; }
  journal::Journal& write_journal() override { return *engine_.journal_; }
  NameCache& names() override { return *engine_.names_; }
  ReplicaClient* replica() override { return engine_.replica_.get(); }

 private:
  Engine& engine_;
};

std::unique_ptr<Copies> Engine::copies_of_engine() { return std::make_unique<CopiesOfEngine>(*this); }

Task<Status> Engine::CopiesOfEngine::images_named(std::vector<std::string> names, std::vector<ImageId>& out) {
  wire::Dump ask{InodeNumber(0), 512};
  for (bool end = false; !end;) {
    using Answer = Result<wire::DirEntries>;
    auto page = co_await async<Answer>([&](Callback<Answer> d) {
      engine_.mirror_->request<wire::DirEntries>(wire::Type::kDump, ask, std::move(d));
    });
    if (!page) co_return page.status();
    end = page->end != 0 || page->entries.empty();
    for (const wire::DirEntry& e : page->entries) {
      ask.after = e.attr.inode;
      engine_.names_->put_entry(e.attr.parent, e.name, e.attr);
      if (e.attr.kind != wire::NodeKind::kImage || e.attr.nlink == 0 || !names.empty()) continue;
      auto im = engine_.image_of(e.attr);
      if (im) out.push_back((*im)->id);
    }
  }
  for (const std::string& name : names) {
    auto attr = engine_.names_->resolve(name);
    auto im = attr ? engine_.image_of(*attr) : Result<Image*>(Status(Code::kNotFound, name + ": no such image"));
    if (!im) co_return im.status();
    out.push_back((*im)->id);
  }
  co_return Status::ok();
}

Image* Engine::CopiesOfEngine::still_there(const ImageId& id) {
  Image* im = engine_.find(id);
  return im == nullptr || im->doomed ? nullptr : im;
}

Task<Status> Engine::CopiesOfEngine::hold_for_reading(Image& im) {
  for (int i = 0; im.recovering && i < 600; ++i) co_await sleep(std::chrono::milliseconds(100));
  if (im.recovering) co_return Status(Code::kUnavailable, "this host still recovers it: try again");
  for (int i = 0; !im.held && i < 40; ++i) {
    engine_.want_tenure(im, true);
    co_await sleep(std::chrono::milliseconds(50));
    if (!im.acquiring && !im.held) break;
  }
  while (im.acquiring) co_await sleep(std::chrono::milliseconds(50));
  if (im.held) co_return Status::ok();
  const Status& why = im.not_granted;
  if (!why && why.code() != Code::kBusy) co_return why.with_context("its tenure is not to be had");
  co_return Status(Code::kBusy, "another host writes this image: go there");
}

Task<Result<wire::Hashes>> Engine::CopiesOfEngine::hash_shared(Image& im, Extent range, uint32_t unit,
                                                               const DigestKey& key) {
  using Answer = Result<wire::Hashes>;
  wire::Hash ask{im.id, range, unit, key};
  co_return co_await async<Answer>([&](Callback<Answer> d) {
    engine_.mirror_->request<wire::Hashes>(wire::Type::kHash, ask, std::move(d));
  });
}

Task<Result<bool>> Engine::CopiesOfEngine::shared_is_hole(Image& im, Extent range) {
  if (im.state == MirrorState::kNone) co_return true;
  using Answer = Result<wire::ExtentList>;
  wire::Extents ask{im.id, range.offset, 1};
  auto list = co_await async<Answer>([&](Callback<Answer> d) {
    engine_.mirror_->request<wire::ExtentList>(wire::Type::kExtents, ask, std::move(d));
  });
  if (!list) co_return list.status();
  bool data = !list->extents.empty() && list->extents.front().offset < range.end();
  bool told = !list->extents.empty() || list->next_offset >= range.end();
  co_return !data && told;
}

}  // namespace tidemark::fs
