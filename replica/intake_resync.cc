// Intake, third part: the end of a resync and its pieces, applied at one point in steps of bounded size.
//
//   begun ------> laid out (spill.h), the newest first ----> in the history, at a point that nobody is shown yet
//   (durable: this batch takes the next point)                  |
//   cleared away <---- applied: names, sizes, the point <-------+
//
// Only the last of these is seen. A stop anywhere before leaves the batch the first to be applied: all of it is done
// again, from the beginning, and writes the same. Heads are held one part at a time, the end's own aside.
#include <algorithm>

#include "replica/intake.h"
#include "replica/spill.h"

namespace tidemark::replica {
namespace {

// The changes of each image that the end names, of so many extents of one part. What a piece has past the size at the
// end was cut off since: it would lie over the shrink, and be seen as soon as the image grows.
struct Place { ImageIndex image; uint64_t size = 0; };
struct Laid { ImageIndex image; std::vector<Change> changes; };
std::vector<Laid> changes_of(const journal::SegmentHead& head, SegmentId segment, size_t from, size_t to,
                             const std::vector<std::optional<Place>>& places) {
  std::vector<Laid> out;
  for (size_t i = from; i < to; ++i) {
    const journal::SegmentExtent& e = head.extents[i];
    const std::optional<Place>& place = places[e.image];
    if (!place) continue;
    const bool data = e.kind == journal::ExtentKind::kData;
    Extent extent = e.extent;
    if (data && extent.end() > place->size) {
      const uint64_t end = (place->size + kUnitBytes - 1) / kUnitBytes * kUnitBytes;
      if (extent.offset >= end) continue;
      extent.length = end - extent.offset;
    }
    if (out.empty() || out.back().image != place->image) out.push_back({place->image, {}});
    out.back().changes.push_back({extent, data ? segment : SegmentId(0), data ? e.position : 0});
  }
  return out;
}

}  // namespace

// What stands under one write batch that a worker fills.
struct Intake::Step {
  std::unique_ptr<kv::Snapshot> snapshot;
  kv::WriteBatch out;
  Status status;
};

Task<Status> Intake::take_step(std::function<void(Step&)> work) {
  auto step = std::make_shared<Step>();   // shared with the worker
  step->snapshot = store_.snapshot();
  co_await async<bool>([&](Callback<bool> done) {
    env_.offload([step, work = std::move(work)] { work(*step); step->snapshot.reset(); },
                 [d = std::make_shared<Callback<bool>>(std::move(done))] { (*d)(true); });
  });
  if (!step->status) co_return step->status;
  if (step->out.empty()) co_return Status::ok();
  ++counters_.steps;
  counters_.step_rows_max = std::max<uint64_t>(counters_.step_rows_max, step->out.ops().size());
  co_return co_await commit(std::move(step->out));
}

Task<Status> Intake::clear_laid() {
  for (bool more = true; more;) {
    std::function<void(Step&)> work = [&](Step& step) {
      more = clear_spill(*step.snapshot, step.out, step_extents_);
    };
    Status s = co_await take_step(std::move(work));
    if (!s) co_return s;
  }
  co_return Status::ok();
}

// One part, under what is laid out. `named`: the images that the end names, and that are not branched.
Task<Status> Intake::lay_part(const journal::SegmentHead& head, SegmentId segment, const LaidImages& named) {
  std::vector<std::optional<Place>> places;
  for (const journal::SegmentImage& slice : head.images) {
    auto known = named.find(slice.image);
    if (known == named.end()) places.push_back(std::nullopt);
    else places.push_back(Place{known->second.index, known->second.size});
  }
  for (size_t from = 0; from < head.extents.size(); from += step_extents_) {
    const size_t to = std::min(from + step_extents_, head.extents.size());
    // Whoever calls waits for it: what it refers to stays.
    std::function<void(Step&)> work = [&](Step& step) {
      for (const Laid& laid : changes_of(head, segment, from, to, places)) {
        step.status = lay_under(*step.snapshot, step.out, laid.image, laid.changes);
        if (!step.status) return;
      }
    };
    Status s = co_await take_step(std::move(work));
    if (!s) co_return s;
  }
  co_return Status::ok();
}

// All of the resync, the newest first. The pieces' events are collected, oldest first.
Task<Status> Intake::lay_out(const PartName& name, const BatchRecord& end,
                             const std::vector<journal::SegmentHead>& heads, const std::vector<BatchNumber>& pieces,
                             const LaidImages& named, std::vector<wire::Mark>& marks) {
  for (size_t part = heads.size(); part-- > 0;) {
    Status s = co_await lay_part(heads[part], end.parts[part].segment, named);
    if (!s) co_return s;
  }
  std::vector<std::vector<journal::SegmentMark>> newest_first;
  for (auto number = pieces.rbegin(); number != pieces.rend(); ++number) {
    auto record = stored_batch({name.source, name.generation, *number, 0});
    if (!record) co_return record.status();
    if (!*record) co_return Status(Code::kCorruption, "a piece has no record");
    for (size_t part = (*record)->parts.size(); part-- > 0;) {
      const SegmentId id = (*record)->parts[part].segment;
      auto head = co_await async<Result<journal::SegmentHead>>(
          [&](Callback<Result<journal::SegmentHead>> done) { files_.read_head(id, std::move(done)); });
      if (!head) co_return head.status();
      Status s = co_await lay_part(*head, id, named);
      if (!s) co_return s;
      newest_first.push_back(std::move(head->marks));
    }
  }
  for (auto of_part = newest_first.rbegin(); of_part != newest_first.rend(); ++of_part) {
    for (journal::SegmentMark& m : *of_part) marks.push_back(std::move(m.mark));
  }
  co_return Status::ok();
}

Task<Status> Intake::publish_laid(const LaidImages& named, PointId point, uint64_t& leaves) {
  for (const auto& [id, image] : named) {
    for (std::optional<uint64_t> leaf = 0; leaf;) {
      std::function<void(Step&)> work = [&](Step& step) {
        auto done = publish(*step.snapshot, step.out, image.index, point, image.shrink_to, *leaf,
                            step_extents_);
        step.status = done.status();
        leaf = done ? done->next : std::nullopt;
        leaves += done ? done->leaves : 0;
      };
      Status s = co_await take_step(std::move(work));
      if (!s) co_return s;
    }
  }
  co_return Status::ok();
}

// Everything but the last commit; fills in what build_changes() wants to know of it.
Task<Status> Intake::prepare_resync(const ApplyAction& action, const BatchRecord& record, ApplyInput& input,
                                    const std::vector<BatchNumber>& pieces, uint64_t& leaves) {
  const PartName name{action.batch.source, action.batch.generation, action.batch.number, 0};
  if (!catalog_.applying) {
    kv::WriteBatch out;
    catalog_.begin_applying(action, out);
    Status s = co_await commit(std::move(out));
    if (!s) co_return s;
  }
  LaidImages named;
  const std::vector<ImageId>& lost = action.branched;
  for (const journal::SegmentImage& slice : input.heads.front().images) {
    const bool branched = std::find(lost.begin(), lost.end(), slice.image) != lost.end();
    const Catalog::Image* image = catalog_.image(slice.image);
    if (branched || image == nullptr) continue;
    named[slice.image] = {image->index, shrunk_to(*image, slice, action.batch), slice.size};
  }
  Status s = co_await clear_laid();
  if (s) s = co_await lay_out(name, record, input.heads, pieces, named, input.marks_before);
  if (s) s = co_await publish_laid(named, input.point, leaves);
  input.ends_resync = true;
  co_return s;
}

}  // namespace tidemark::replica
