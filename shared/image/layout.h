// Layout: how an image's address range maps to the objects that hold it. Pure; no I/O.
//
// The range is cut into stripe units, dealt out in turn to `stripe_count` objects, one brick each:
//
//   image:    | unit 0 | unit 1 | unit 2 | unit 3 | ...      (stripe_count = 2)
//   object 0: | unit 0 | unit 2 | ...                        object offset of unit n: (n / count) * unit
//   object 1: | unit 1 | unit 3 | ...
//
// Invariant: every byte of [0, size) has exactly one place, and only the object that holds the last
// byte ends in a partial 4096-byte granule. With one stripe, object offset equals image offset.
#pragma once

#include <cstdint>
#include <vector>

#include "shared/base/bytes.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"

namespace tidemark::image {

inline constexpr uint32_t kStripeUnitMin = 64u << 10;
inline constexpr uint32_t kStripeUnitMax = 1u << 30;
inline constexpr uint32_t kStripeUnitDefault = 1u << 20;
inline constexpr uint32_t kStripesMax = 256;

// The part of an image range that lies in one object.
struct Piece {
  uint32_t stripe = 0;         // index into Layout::bricks()
  uint64_t object_offset = 0;  // where in that object
  uint64_t image_offset = 0;   // where in the image
  uint64_t length = 0;
};

class Layout {
 public:
  Layout() = default;
  // `stripe_unit` is a multiple of 4096 within [kStripeUnitMin, kStripeUnitMax]; `bricks` names the
  // brick of each stripe, no brick twice. kInvalidArgument names what is off.
  static Result<Layout> make(Generation generation, uint32_t stripe_unit, std::vector<Uuid> bricks);

  Generation generation() const { return generation_; }
  uint32_t stripe_unit() const { return stripe_unit_; }
  uint32_t stripe_count() const { return static_cast<uint32_t>(bricks_.size()); }
  uint32_t copies() const { return 1; }  // mirrors within a group come later; the format has the field
  const std::vector<Uuid>& bricks() const { return bricks_; }

  // The first piece of `range`, which must not be empty. Cut it off and ask again for the rest.
  Piece first_piece(Extent range) const;
  // The whole part of `range` that lies in one object is contiguous there; length 0 if none does.
  // Used for punch and allocate, where a range spans many units.
  Piece object_range(Extent range, uint32_t stripe) const;
  // The image offset of a byte of an object.
  uint64_t image_offset(uint32_t stripe, uint64_t object_offset) const;
  // The bytes of object `stripe` that an image of `image_size` bytes uses (not rounded).
  uint64_t object_bytes(uint32_t stripe, uint64_t image_size) const;

  void encode(Writer& out) const;
  static Result<Layout> decode(Reader& in);
  bool operator==(const Layout&) const = default;

 private:
  Generation generation_{1};
  uint32_t stripe_unit_ = kStripeUnitDefault;
  std::vector<Uuid> bricks_;
};

}  // namespace tidemark::image
