// The two small files of a brick: its marker and an image's side metadata (FORMAT.md). Codecs and paths; no I/O.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "shared/base/bytes.h"
#include "shared/base/ids.h"
#include "shared/base/status.h"
#include "shared/image/store.h"

namespace tidemark::image {

inline constexpr std::string_view kMarkerName = "tidemark.brick";
inline constexpr uint32_t kMarkerVersion = 2;   // 1 ends before the run

struct BrickMarker {
  enum class State : uint32_t { kInitializing = 1, kReady = 2 };
  State state = State::kInitializing;
  Uuid brick, group;
  uint32_t index = 0, count = 0;
  uint64_t failed_syncs = 0;
  std::string name;
  BrickRun run{};                     // not written in version 1
  uint32_t version = kMarkerVersion;  // that it was read with, and is written with
};

Bytes encode_marker(const BrickMarker& marker);
Result<BrickMarker> decode_marker(ByteSpan bytes);  // kCorruption, kUnsupported (newer version)

Bytes encode_metadata(const ImageMetadata& metadata);
Result<ImageMetadata> decode_metadata(ByteSpan bytes);

std::string objects_directory(const std::string& brick);
std::string image_directory(const std::string& brick, const ImageId& id);
std::string metadata_path(const std::string& brick, const ImageId& id);
std::string object_path(const std::string& brick, const ImageId& id, Generation layout, uint32_t stripe);

// What a name in an image directory is.
struct ObjectName {
  enum class Kind { kMetadata, kData, kOther };
  Kind kind = Kind::kOther;
  std::optional<ImageId> id;  // also of a temporary file that begins with an id
};
ObjectName parse_object_name(std::string_view name);

}  // namespace tidemark::image
