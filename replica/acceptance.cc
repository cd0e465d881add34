#include "replica/acceptance.h"

#include <algorithm>

#include "shared/base/planted.h"

namespace tidemark::replica {
namespace {

Status refuse(std::string reason) { return Status(Code::kInvalidArgument, std::move(reason)); }

bool moves_expected(const journal::BatchHeader& header, const StreamRecord& stream) {
  return header.supersedes_first.value != 0 && header.supersedes_first == stream.expected;
}

Status check_name(const PartName& name, const Uuid& cluster, const journal::BatchHeader& b) {
  if (b.cluster != cluster) return refuse("the part is of another cluster: " + b.cluster.to_string());
  if (b.source != name.source) return refuse("the part says source " + b.source + ", the path says " + name.source);
  if (b.generation != name.generation) return refuse("the part says generation " + b.generation.to_string());
  if (b.number != name.number) return refuse("the part says number " + std::to_string(b.number.value));
  if (b.part != name.part) return refuse("the part says part " + std::to_string(b.part));
  if (b.point_name.find('\0') != std::string::npos) return refuse("the point's name has a zero byte");
  return Status::ok();
}

// Writes of one source are counted by incarnations that grow; the nonce tells apart two runs that
// both believe to be the same one. Another generation is another journal, and comes after all of the older one's
// batches: whose numbers nobody waits for may count from anywhere. Those of a host are named by other hosts' tenures
// as what these follow, so they must grow even then: it learns from the shared node where to begin.
Status check_incarnation(const SourceRecord& source, const journal::BatchHeader& b) {
  const std::string incarnation = "incarnation " + std::to_string(b.incarnation.value);
  const std::string known = std::to_string(source.incarnation.value);
  if (source.generation != b.generation) {
    const bool host = static_cast<net::Role>(source.role) == net::Role::kHost;
    if (!host || b.incarnation > source.incarnation) return Status::ok();
    return refuse(incarnation + " of a new journal, while its source's earlier one had " + known +
                  ": connect the host to the shared node, then `tidemark state reset` on the host");
  }
  if (b.incarnation < source.incarnation) return refuse(incarnation + " after " + known);
  if (b.incarnation != source.incarnation) return Status::ok();
  if (b.nonce != source.nonce) return refuse(incarnation + " is known with another nonce");
  if (b.last < source.last) {
    return refuse("counter " + std::to_string(b.last.value) + " after " + std::to_string(source.last.value));
  }
  return Status::ok();
}

// A name becomes part of a path at whoever restores a tree.
bool is_name(const std::string& name) {
  return name.size() <= limits::kNameBytesMax && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\0", 2)) == std::string::npos;
}

Status check_extents(const journal::SegmentHead& head) {
  for (const auto& e : head.extents) {
    if (e.extent.end() > limits::kImageBytesMax) return refuse("an extent lies past the largest image");
  }
  for (const auto& m : head.marks) {
    const wire::Mark& mark = m.mark;
    if (!is_name(mark.name) || !is_name(mark.old_name)) {
      return refuse("a mark's name is too long, `.`, `..`, or has a slash or a zero byte");
    }
    if (mark.origin.size() > limits::kNameBytesMax || mark.origin.find('\0') != std::string::npos) {
      return refuse("a mark's origin is too long or has a zero byte");
    }
    const bool binds_a_name = mark.kind == wire::MarkKind::kCreate || mark.kind == wire::MarkKind::kRename;
    if (binds_a_name && mark.name.empty()) return refuse("a create's or rename's mark has no name");
  }
  return Status::ok();
}

}  // namespace

std::string PartName::to_string() const {
  return source + "/" + generation.to_string() + "/" + std::to_string(number.value) + "/" + std::to_string(part);
}

Judgement judge_stored(const PartName& name, const Sha256& digest, const BatchRecord* stored) {
  using Kind = Judgement::Kind;
  if (stored == nullptr) return {Kind::kNew, {}};
  const PartRecord* part = name.part < stored->parts.size() ? &stored->parts[name.part] : nullptr;
  if (part != nullptr && part->present != 0) {
    const bool same = std::equal(part->digest.begin(), part->digest.end(), digest.begin(), digest.end());
    return same ? Judgement{Kind::kRepeated, {}} : Judgement{Kind::kConflict, part->digest};
  }
  // A part number that a complete batch does not have.
  if (stored->state != BatchState::kPartial) return {Kind::kConflict, stored->digest};
  return {Kind::kNew, {}};
}

Judgement judge_new(const PartName& name, const SourceRecord* source, const StreamRecord& stream,
                    const journal::BatchHeader& header) {
  using Kind = Judgement::Kind;
  if (name.number != stream.expected && !moves_expected(header, stream)) return {Kind::kOutOfOrder, {}};
  const bool begun = stream.expected.value > 1;
  if (source != nullptr && source->generation != name.generation && begun) return {Kind::kOldGeneration, {}};
  return {Kind::kNew, {}};
}

Status check_part(const PartName& name, const Uuid& cluster, const SourceRecord* source, const StreamRecord& stream,
                  const BatchRecord* stored, const journal::SegmentHead& head) {
  const journal::BatchHeader& b = head.batch;
  TM_RETURN_IF_ERROR(check_name(name, cluster, b));
  TM_RETURN_IF_ERROR(check_extents(head));
  if (source != nullptr) TM_RETURN_IF_ERROR(check_incarnation(*source, b));
  if (TM_PLANTED("trust a clock") && source != nullptr && b.label < source->newest_label) return refuse("older");
  const bool no_previous = b.previous == Sha256{};
  const bool fits = stream.last_digest.empty() ? no_previous
                                               : std::equal(b.previous.begin(), b.previous.end(),
                                                            stream.last_digest.begin(), stream.last_digest.end());
  if (!fits) {
    return refuse("wrong previous digest: have " + to_hex(stream.last_digest) + ", got " +
                  journal::digest_text(b.previous));
  }
  if (stored != nullptr && (stored->parts.size() != b.parts || stored->common != common_digest(head))) {
    return refuse("the part does not belong to the batch's other parts");
  }
  return Status::ok();
}

uint64_t common_digest(const journal::SegmentHead& head) {
  const journal::BatchHeader& b = head.batch;
  Bytes bytes;
  Writer w(bytes);
  w.u32(b.parts).u8(static_cast<uint8_t>(b.kind)).id(b.supersedes_first).id(b.supersedes_last).id(b.incarnation);
  w.uuid(b.nonce).id(b.first).id(b.last).i64(b.label.ns).text(b.point_name).raw(b.previous);
  for (const auto& i : head.images) {
    w.uuid(i.image).id(i.epoch).raw(wire::encode(i.parent)).id(i.first).id(i.last).id(i.coordinator_first);
    w.id(i.coordinator_last).u64(i.size).id(i.size_generation);
  }
  return digest64(bytes);
}

bool binds(wire::MarkKind kind) {
  // A tenure's start implies an open for writing: setattr by path takes a tenure without an open.
  return kind == wire::MarkKind::kCreate || kind == wire::MarkKind::kOpenWrite || kind == wire::MarkKind::kTenureStart;
}

BatchFacts facts_of(const std::vector<const journal::SegmentHead*>& parts) {
  const journal::BatchHeader& b = parts[0]->batch;
  BatchFacts facts{.source = b.source, .generation = b.generation, .number = b.number, .last = {b.incarnation, b.last}};
  for (const auto& image : parts[0]->images) {
    facts.slices.push_back({image.image, image.epoch, image.parent, {b.incarnation, image.last}, false});
    if (image.parent.clean == wire::kTaken) facts.taken.push_back({image.image, image.epoch, image.parent});
  }
  for (const auto* part : parts) {
    for (const auto& m : part->marks) {
      if (m.mark.kind == wire::MarkKind::kCreate && !m.mark.node.image.is_nil())
        facts.created.push_back(m.mark.node.image);
      // The shared node tells of it as the old tenure's end, before the new one's holder has written.
      const bool ended = m.mark.kind == wire::MarkKind::kTenureEnd && m.mark.parent.clean == wire::kTaken;
      if (ended) facts.taken.push_back({m.mark.node.image, m.mark.epoch.next(), m.mark.parent});
      if (m.mark.kind != wire::MarkKind::kWhole) continue;
      for (SliceFacts& slice : facts.slices) slice.whole = slice.whole || slice.image == m.mark.node.image;
    }
  }
  return facts;
}

}  // namespace tidemark::replica
