// Named types for the numbers and names that must never be mistaken for one another.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace tidemark {

// A 128-bit identifier, printed as 8-4-4-4-12 lower-case hexadecimal.
struct Uuid {
  std::array<uint8_t, 16> bytes{};

  static Uuid nil() { return {}; }
  // Version-4 (random) UUID from 16 random bytes.
  static Uuid from_random(std::array<uint8_t, 16> random);
  static std::optional<Uuid> parse(std::string_view text);
  std::string to_string() const;
  bool is_nil() const { return *this == nil(); }
  auto operator<=>(const Uuid&) const = default;
};

// A strong integer: explicit in, `.value` out, ordered, hashable, no arithmetic by accident.
template <typename Tag>
struct StrongId {
  uint64_t value = 0;
  constexpr StrongId() = default;
  constexpr explicit StrongId(uint64_t v) : value(v) {}
  StrongId next() const { return StrongId(value + 1); }
  auto operator<=>(const StrongId&) const = default;
};

using ImageId = Uuid;                                          // one virtual disk; its path is only a name
using Epoch = StrongId<struct EpochTag>;                       // 0: never written; grows by one each tenure
using Incarnation = StrongId<struct IncarnationTag>;           // one run of tidemark-fs; 0 is none
using Counter = StrongId<struct CounterTag>;                   // write counter within an incarnation, from 1
using CoordinatorSequence = StrongId<struct CoordinatorTag>;   // per image, given by the shared node, from 1
using EventNumber = StrongId<struct EventTag>;                 // name-space events of the shared node, from 1
using Generation = StrongId<struct GenerationTag>;             // of a copy's condition
using LossId = StrongId<struct LossTag>;                       // span in which a copy cannot lose unsynced writes
using BatchNumber = StrongId<struct BatchTag>;                 // of one source and journal generation, from 1
using InodeNumber = StrongId<struct InodeTag>;                 // persistent; 1 is the root
using RegionIndex = StrongId<struct RegionTag>;                // region of an image

// The place of a write among all writes of one host.
struct WriteSequence {
  Incarnation incarnation;
  Counter counter;
  auto operator<=>(const WriteSequence&) const = default;
};

// A byte range of an image. `length` may be 0.
struct Extent {
  uint64_t offset = 0;
  uint64_t length = 0;
  uint64_t end() const { return offset + length; }
  bool overlaps(const Extent& o) const { return offset < o.end() && o.offset < end(); }
  auto operator<=>(const Extent&) const = default;
};

// Wall-clock label, nanoseconds since 1970 UTC. Labels only; never orders anything.
struct WallTime {
  int64_t ns = 0;
  auto operator<=>(const WallTime&) const = default;
  // RFC 3339 in UTC with milliseconds: 2026-11-21T10:00:05.123Z
  std::string to_string() const;
  static std::optional<WallTime> parse(std::string_view rfc3339);
};

}  // namespace tidemark

template <>
struct std::hash<tidemark::Uuid> {
  size_t operator()(const tidemark::Uuid& u) const noexcept {
    uint64_t a = 0;
    for (int i = 0; i < 8; ++i) a = a << 8 | (u.bytes[i] ^ u.bytes[i + 8]);
    return a * 0x9E3779B97F4A7C15ull;
  }
};
template <typename Tag>
struct std::hash<tidemark::StrongId<Tag>> {
  size_t operator()(const tidemark::StrongId<Tag>& id) const noexcept { return std::hash<uint64_t>{}(id.value); }
};
