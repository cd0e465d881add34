#include "replica/apply.h"

#include <algorithm>
#include <map>

#include "replica/overlay.h"

namespace tidemark::replica {
namespace {

class Builder {
 public:
  Builder(kv::Snapshot& snapshot, const ApplyInput& input)
      : in_(input), batch_(input.heads.front().batch), snapshot_(snapshot) {}

  ApplyOutput run() {
    out_.status = slices();
    if (out_.status) out_.status = marks();
    return std::move(out_);
  }

 private:
  Status slices() {
    HistoryWriter history(snapshot_, out_.changes);
    const auto& images = in_.heads.front().images;
    std::vector<Overlay> changes(images.size());
    if (!in_.ends_resync) lay_over(changes);
    for (size_t i = 0; i < images.size(); ++i) {
      const journal::SegmentImage& slice = images[i];
      auto known = in_.images.find(slice.image);
      if (known == in_.images.end())
        return Status(Code::kCorruption, "image " + slice.image.to_string() + " has no record");
      auto branched = std::find(in_.action.branched.begin(), in_.action.branched.end(), slice.image);
      if (branched != in_.action.branched.end()) {
        if (is_cut_off(slice.image)) continue;   // of no other line: all of it will come
        branch(slice, known->second.index,
               in_.action.newer[static_cast<size_t>(branched - in_.action.branched.begin())]);
        continue;
      }
      if (slice.parent.clean == wire::kTaken) TM_RETURN_IF_ERROR(lose_tail(slice, known->second));
      if (!in_.ends_resync) {
        const std::vector<Change> of_image = changes[i].take();
        TM_RETURN_IF_ERROR(
            history.apply(known->second.index, in_.point, shrunk_to(known->second, slice, in_.action.batch), of_image));
      }
      put_version(slice.image, known->second.index,
                  {.size = slice.size, .epoch = slice.epoch, .source = batch_.source,
                   .last = {batch_.incarnation, slice.last}, .size_generation = slice.size_generation});
    }
    out_.leaves = history.leaves_written();
    return Status::ok();
  }

  void lay_over(std::vector<Overlay>& changes) const {
    for (size_t p = 0; p < in_.heads.size(); ++p) {
      for (const journal::SegmentExtent& e : in_.heads[p].extents) {
        const bool data = e.kind == journal::ExtentKind::kData;
        changes[e.image].lay({e.extent, data ? in_.segments[p] : SegmentId(0), data ? e.position : 0});
      }
    }
  }

  bool is_cut_off(const ImageId& image) const {
    return std::ranges::any_of(in_.action.cut_off, [&](const CutOff& cut) { return cut.image == image; });
  }

  void branch(const journal::SegmentImage& slice, ImageIndex index, Epoch newer) {
    BranchRecord record{.image = slice.image, .epoch = slice.epoch, .newer = newer, .source = batch_.source,
                        .generation = batch_.generation, .number = batch_.number, .first = slice.first,
                        .last = slice.last, .point = in_.point};
    put_record(out_.changes, kBranches, branch_key(index, record), record);
    out_.branches.push_back(std::move(record));
  }

  // A tenure taken by force: what points show of older epochs beyond its parent, and beyond those of earlier ones, is a
  // branch from now on.
  Status lose_tail(const journal::SegmentImage& slice, const Catalog::Image& known) {
    if (!known.has_version) return Status::ok();
    std::vector<Taken> taken{{slice.image, slice.epoch, slice.parent}};
    // The tenure before may have been taken, too, and nothing of it ever applied.
    if (auto before = in_.taken.find(slice.image); before != in_.taken.end())
      taken.insert(taken.end(), before->second.begin(), before->second.end());
    std::erase_if(taken, [](const Taken& t) { return t.parent.last.counter.value == 0; });   // unknown: nothing is said
    auto cursor = snapshot_.cursor(kImageVersions);
    const Bytes end = image_point_key(known.index, PointId(UINT64_MAX));
    for (bool found = cursor->seek_before(end); found; found = cursor->previous()) {
      if (!starts_with(cursor->key(), ByteSpan(end).first(4))) break;
      TM_ASSIGN_OR_RETURN(ImageVersion version, wire::decode<ImageVersion>(cursor->value()));
      const SliceFacts shown{slice.image, version.epoch, {}, version.last};
      auto keeps = [&](const Taken& t) { return in_main_line(t, version.source, shown); };
      if (std::all_of(taken.begin(), taken.end(), keeps)) break;
      const PointId at = point_of_key(cursor->key());
      TM_ASSIGN_OR_RETURN(PointRecord point, read_record<PointRecord>(snapshot_, kPoints, kv::key_u64(at.value)));
      BranchRecord record{.image = slice.image, .epoch = version.epoch, .newer = slice.epoch, .source = version.source,
                          .generation = point.generation, .number = point.number, .first = version.last.counter,
                          .last = version.last.counter, .point = at};
      put_record(out_.changes, kBranches, branch_key(known.index, record), record);
      out_.branches.push_back(std::move(record));
    }
    return Status::ok();
  }

  void put_version(const ImageId& id, ImageIndex index, ImageVersion version) {
    put_record(out_.changes, kImageVersions, image_point_key(index, in_.point), version);
    out_.versions.emplace_back(id, std::move(version));
  }

  Status marks() {
    NameWriter names(snapshot_, in_.point, batch_.source, in_.is_shared_node);
    for (const journal::SegmentImage& slice : in_.heads.front().images)
      TM_RETURN_IF_ERROR(names.name_written(slice.image));
    for (const wire::Mark& mark : in_.marks_before) TM_RETURN_IF_ERROR(take(names, mark));
    for (const auto& head : in_.heads) {
      for (const auto& m : head.marks) TM_RETURN_IF_ERROR(take(names, m.mark));
    }
    for (const wire::Mark& mark : names.late_creates()) TM_RETURN_IF_ERROR(created_late(mark));
    names.finish(out_.changes);
    out_.mismatches = names.mismatches();
    return Status::ok();
  }

  Status take(NameWriter& names, const wire::Mark& mark) {
    TM_RETURN_IF_ERROR(names.apply(mark));
    if (mark.kind == wire::MarkKind::kCreate && mark.origin == batch_.source) created(mark);
    if (mark.kind == wire::MarkKind::kWithheld) out_.withheld.push_back(mark.node.image);
    return Status::ok();
  }

  // An image that was created and not written yet has its first version here.
  void created(const wire::Mark& mark) {
    auto known = in_.images.find(mark.node.image);
    if (known == in_.images.end() || known->second.has_version) return;
    for (const auto& [id, version] : out_.versions) {
      if (id == mark.node.image) return;
    }
    put_version(mark.node.image, known->second.index, {.size = mark.node.size, .source = batch_.source});
  }

  // Likewise, of a create that only the shared node has told of.
  Status created_late(const wire::Mark& mark) {
    const ImageId& image = mark.node.image;
    for (const auto& [id, version] : out_.versions) {
      if (id == image) return Status::ok();
    }
    ImageIndex index;
    auto known = in_.images.find(image);   // those of this batch's own marks
    if (known != in_.images.end()) {
      index = known->second.index;
    } else {
      TM_ASSIGN_OR_RETURN(ImageRecord record, read_record<ImageRecord>(snapshot_, kImages, image.bytes));
      index = record.index;
    }
    auto version = image_at(snapshot_, index, in_.point);
    if (version) return Status::ok();
    if (version.status().code() != Code::kNotFound) return version.status();
    put_version(image, index, {.size = mark.node.size, .source = mark.origin});
    return Status::ok();
  }

  const ApplyInput& in_;
  const journal::BatchHeader& batch_;
  kv::Snapshot& snapshot_;
  ApplyOutput out_;
};

}  // namespace

std::optional<uint64_t> shrunk_to(const Catalog::Image& known, const journal::SegmentImage& slice,
                                  const BatchFacts& batch) {
  if (!known.has_version) return std::nullopt;
  // The tenure that was lost may have made it longer than the new one found it: seen as soon as this one does, too.
  const bool whole = std::any_of(batch.slices.begin(), batch.slices.end(),
                                 [&](const SliceFacts& s) { return s.whole && s.image == slice.image; });
  // Told once more, in the same tenure, it may come without what the replica has by then.
  if (whole && known.newest.epoch < slice.epoch) return 0;
  return slice.size < known.newest.size ? std::optional(slice.size) : std::nullopt;
}

ApplyOutput build_changes(kv::Snapshot& snapshot, const ApplyInput& input) { return Builder(snapshot, input).run(); }

std::vector<ImageId> images_of(const std::vector<journal::SegmentHead>& heads) {
  std::vector<ImageId> ids;
  for (const auto& image : heads.front().images) ids.push_back(image.image);
  for (const auto& head : heads) {
    for (const auto& m : head.marks) {
      if (m.mark.kind == wire::MarkKind::kCreate && !m.mark.node.image.is_nil()) ids.push_back(m.mark.node.image);
    }
  }
  return ids;
}

}  // namespace tidemark::replica
