// The stripe arithmetic. object_bytes(stripe, x) counts the bytes of [0, x) that object `stripe`
// holds; every other mapping follows from it.
#include "shared/image/layout.h"

#include <algorithm>

#include "shared/base/limits.h"

namespace tidemark::image {

Result<Layout> Layout::make(Generation generation, uint32_t stripe_unit, std::vector<Uuid> bricks) {
  if (stripe_unit < kStripeUnitMin || stripe_unit > kStripeUnitMax || stripe_unit % limits::kOrderGranule != 0) {
    return Status(Code::kInvalidArgument, "stripe unit " + std::to_string(stripe_unit) +
                                              ": give a multiple of 4096 from " + std::to_string(kStripeUnitMin) +
                                              " to " + std::to_string(kStripeUnitMax));
  }
  if (bricks.empty() || bricks.size() > kStripesMax) {
    return Status(Code::kInvalidArgument,
                  "stripe count " + std::to_string(bricks.size()) + ": give 1 to " + std::to_string(kStripesMax));
  }
  std::vector<Uuid> sorted = bricks;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    return Status(Code::kInvalidArgument, "a layout names a brick twice");
  }
  Layout layout;
  layout.generation_ = generation;
  layout.stripe_unit_ = stripe_unit;
  layout.bricks_ = std::move(bricks);
  return layout;
}

Piece Layout::first_piece(Extent range) const {
  if (bricks_.size() == 1) return {0, range.offset, range.offset, range.length};
  uint64_t unit = range.offset / stripe_unit_;
  uint64_t within = range.offset % stripe_unit_;
  uint64_t count = bricks_.size();
  return {static_cast<uint32_t>(unit % count), unit / count * stripe_unit_ + within, range.offset,
          std::min<uint64_t>(range.length, stripe_unit_ - within)};
}

Piece Layout::object_range(Extent range, uint32_t stripe) const {
  uint64_t begin = object_bytes(stripe, range.offset);
  return {stripe, begin, image_offset(stripe, begin), object_bytes(stripe, range.end()) - begin};
}

uint64_t Layout::image_offset(uint32_t stripe, uint64_t object_offset) const {
  uint64_t row = object_offset / stripe_unit_;
  return (row * bricks_.size() + stripe) * stripe_unit_ + object_offset % stripe_unit_;
}

uint64_t Layout::object_bytes(uint32_t stripe, uint64_t image_size) const {
  uint64_t row_bytes = uint64_t{stripe_unit_} * bricks_.size();
  uint64_t rest = image_size % row_bytes;
  uint64_t before = uint64_t{stripe_unit_} * stripe;
  uint64_t in_last_row = rest <= before ? 0 : std::min<uint64_t>(rest - before, stripe_unit_);
  return image_size / row_bytes * stripe_unit_ + in_last_row;
}

void Layout::encode(Writer& out) const {
  out.id(generation_).u32(stripe_unit_).u32(copies()).u32(stripe_count());
  for (const Uuid& brick : bricks_) out.uuid(brick);
}

Result<Layout> Layout::decode(Reader& in) {
  auto generation = in.id<Generation>();
  uint32_t unit = in.u32();
  uint32_t copies = in.u32();
  uint32_t count = in.u32();
  if (!in.ok()) return Status(Code::kCorruption, "layout: cut short");
  if (copies != 1)
    return Status(Code::kUnsupported, "layout: copies is " + std::to_string(copies) + ", only 1 is known");
  if (count > kStripesMax) return Status(Code::kCorruption, "layout: stripe count is " + std::to_string(count));
  std::vector<Uuid> bricks(count);
  for (Uuid& brick : bricks) brick = in.uuid();
  if (!in.ok()) return Status(Code::kCorruption, "layout: cut short in its bricks");
  auto made = make(generation, unit, std::move(bricks));
  if (!made) return Status(Code::kCorruption, "layout: " + made.status().message());
  return made;
}

}  // namespace tidemark::image
