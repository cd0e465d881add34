#include "shared/image/side_file.h"

#include "shared/base/limits.h"
#include "shared/base/sealed.h"

namespace tidemark::image {
namespace {

constexpr std::string_view kMarkerMagic{"TMBRICK\x01", 8};
constexpr std::string_view kMetadataMagic{"TMIMAGE\x01", 8};
constexpr uint32_t kVersion = 1;
constexpr size_t kUuidTextBytes = 36;

}  // namespace

Bytes encode_marker(const BrickMarker& marker) {
  Bytes out;
  out.reserve(256);
  Writer w(out);
  w.raw(as_bytes(kMarkerMagic)).u32(marker.version).u32(static_cast<uint32_t>(marker.state));
  w.uuid(marker.brick).uuid(marker.group).u32(marker.index).u32(marker.count);
  w.u64(marker.failed_syncs).text(marker.name);
  if (marker.version > 1) w.u64(marker.run.number).uuid(marker.run.nonce);
  seal(out);
  return out;
}

Result<BrickMarker> decode_marker(ByteSpan bytes) {
  uint32_t version = 0;
  TM_ASSIGN_OR_RETURN(ByteSpan body, unseal(bytes, kMarkerMagic, kMarkerVersion, &version));
  Reader in(body);
  BrickMarker marker;
  marker.version = version;
  uint32_t state = in.u32();
  marker.brick = in.uuid();
  marker.group = in.uuid();
  marker.index = in.u32();
  marker.count = in.u32();
  marker.failed_syncs = in.u64();
  marker.name = in.text();
  if (version > 1) {
    marker.run.number = in.u64();
    marker.run.nonce = in.uuid();
  }
  if (!in.done()) return Status(Code::kCorruption, "marker has the wrong length");
  if (state != 1 && state != 2) return Status(Code::kCorruption, "marker state is " + std::to_string(state));
  if (marker.count == 0 || marker.index >= marker.count)
    return Status(Code::kCorruption, "marker index is out of range");
  marker.state = static_cast<BrickMarker::State>(state);
  return marker;
}

Bytes encode_runs(const std::vector<KnownRun>& runs) {
  Bytes out;
  Writer w(out);
  w.u32(static_cast<uint32_t>(runs.size()));
  for (const KnownRun& run : runs) {
    w.uuid(run.brick).u64(run.last.number).uuid(run.last.nonce).u64(run.opening.number).uuid(run.opening.nonce);
  }
  return out;
}

Result<std::vector<KnownRun>> decode_runs(ByteSpan bytes) {
  Reader in(bytes);
  std::vector<KnownRun> out;
  for (uint32_t left = in.u32(); left > 0 && in.ok(); --left) {
    KnownRun& run = out.emplace_back();
    run.brick = in.uuid();
    run.last.number = in.u64();
    run.last.nonce = in.uuid();
    run.opening.number = in.u64();
    run.opening.nonce = in.uuid();
  }
  if (!in.done()) return Status(Code::kCorruption, "the bricks' runs have the wrong length");
  return out;
}

Bytes encode_metadata(const ImageMetadata& metadata) {
  Bytes out;
  out.reserve(256);
  Writer w(out);
  w.raw(as_bytes(kMetadataMagic)).u32(kVersion).u32(0);
  w.uuid(metadata.id).u64(metadata.size).id(metadata.size_generation);
  metadata.layout.encode(w);
  seal(out);
  return out;
}

Result<ImageMetadata> decode_metadata(ByteSpan bytes) {
  TM_ASSIGN_OR_RETURN(ByteSpan body, unseal(bytes, kMetadataMagic, kVersion));
  Reader in(body);
  uint32_t features = in.u32();
  if (features != 0) return Status(Code::kUnsupported, "feature bits " + std::to_string(features) + " are not known");
  ImageMetadata metadata;
  metadata.id = in.uuid();
  metadata.size = in.u64();
  metadata.size_generation = in.id<Generation>();
  TM_ASSIGN_OR_RETURN(metadata.layout, Layout::decode(in));
  if (!in.done()) return Status(Code::kCorruption, "metadata has the wrong length");
  if (metadata.size > limits::kImageBytesMax) {
    return Status(Code::kCorruption, "size is " + std::to_string(metadata.size) + ", over the limit");
  }
  return metadata;
}

std::string objects_directory(const std::string& brick) { return brick + "/objects"; }

std::string image_directory(const std::string& brick, const ImageId& id) {
  return objects_directory(brick) + "/" + id.to_string().substr(0, 2);
}

std::string metadata_path(const std::string& brick, const ImageId& id) {
  return image_directory(brick, id) + "/" + id.to_string() + ".meta";
}

std::string object_path(const std::string& brick, const ImageId& id, Generation layout, uint32_t stripe) {
  return image_directory(brick, id) + "/" + id.to_string() + ".g" + std::to_string(layout.value) + "." +
         std::to_string(stripe) + ".data";
}

ObjectName parse_object_name(std::string_view name) {
  ObjectName out;
  if (name.size() <= kUuidTextBytes) return out;
  out.id = Uuid::parse(name.substr(0, kUuidTextBytes));
  if (!out.id || out.id->to_string() != name.substr(0, kUuidTextBytes)) {
    out.id.reset();
    return out;
  }
  std::string_view rest = name.substr(kUuidTextBytes);
  if (rest == ".meta")
    out.kind = ObjectName::Kind::kMetadata;
  else if (rest.starts_with(".g") && rest.ends_with(".data"))
    out.kind = ObjectName::Kind::kData;
  return out;
}

}  // namespace tidemark::image
