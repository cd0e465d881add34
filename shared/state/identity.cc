#include "shared/state/identity.h"

#include <algorithm>
#include <utility>

#include "shared/base/sealed.h"
#include "shared/io/file.h"

namespace tidemark::state {
namespace {

constexpr std::string_view kIdentityMagic{"TMIDENT\x01", 8};
constexpr std::string_view kRebuildMagic{"TMREBLD\x01", 8};
const std::string kRebuildFile = "rebuild";
constexpr std::string_view kTagMagic{"TMSTORE\x01", 8};
constexpr uint32_t kVersion = 1;
constexpr size_t kPartsMax = 64;

}  // namespace

const Part* Identity::find(const std::string& name) const {
  auto at = std::find_if(parts.begin(), parts.end(), [&](const Part& p) { return p.name == name; });
  return at == parts.end() ? nullptr : &*at;
}

Bytes encode_identity(const Identity& identity) {
  Bytes out;
  Writer w(out);
  w.raw(as_bytes(kIdentityMagic)).u32(kVersion).u32(static_cast<uint32_t>(identity.stage));
  w.uuid(identity.state).uuid(identity.cluster).text(identity.role).text(identity.node).id(identity.generation);
  w.u8(identity.after_reset ? 1 : 0).u32(static_cast<uint32_t>(identity.parts.size()));
  for (const Part& part : identity.parts) w.text(part.name).uuid(part.id);
  seal(out);
  return out;
}

Result<Identity> decode_identity(ByteSpan bytes) {
  TM_ASSIGN_OR_RETURN(ByteSpan body, unseal(bytes, kIdentityMagic, kVersion));
  Reader in(body);
  Identity out;
  const uint32_t stage = in.u32();
  out.state = in.uuid();
  out.cluster = in.uuid();
  out.role = in.text();
  out.node = in.text();
  out.generation = in.id<Generation>();
  const uint8_t after_reset = in.u8();
  const uint32_t count = in.u32();
  if (stage < 1 || stage > 2 || after_reset > 1 || count > kPartsMax)
    return Status(Code::kCorruption, "a field is out of range");
  out.stage = static_cast<Identity::Stage>(stage);
  out.after_reset = after_reset != 0;
  for (uint32_t i = 0; i < count; ++i) {
    Part part;
    part.name = in.text();
    part.id = in.uuid();
    out.parts.push_back(std::move(part));
  }
  if (!in.done()) return Status(Code::kCorruption, "wrong length");
  return out;
}

Bytes encode_tag(const Tag& tag) {
  Bytes out;
  Writer w(out);
  w.raw(as_bytes(kTagMagic)).u32(kVersion).uuid(tag.part).uuid(tag.state).uuid(tag.cluster);
  w.text(tag.node).text(tag.name);
  seal(out);
  return out;
}

Result<Tag> decode_tag(ByteSpan bytes) {
  TM_ASSIGN_OR_RETURN(ByteSpan body, unseal(bytes, kTagMagic, kVersion));
  Reader in(body);
  Tag out;
  out.part = in.uuid();
  out.state = in.uuid();
  out.cluster = in.uuid();
  out.node = in.text();
  out.name = in.text();
  if (!in.done()) return Status(Code::kCorruption, "wrong length");
  return out;
}

Bytes encode_rebuild_order(const RebuildOrder& order) {
  Bytes out;
  Writer w(out);
  w.raw(as_bytes(kRebuildMagic)).u32(kVersion).u32(static_cast<uint32_t>(order.hosts.size()));
  for (const std::string& host : order.hosts) w.text(host);
  w.u32(static_cast<uint32_t>(order.epochs.size()));
  for (const auto& [image, epoch] : order.epochs) w.uuid(image).id(epoch);
  w.id(order.incarnation);
  seal(out);
  return out;
}

Result<RebuildOrder> decode_rebuild_order(ByteSpan bytes) {
  TM_ASSIGN_OR_RETURN(ByteSpan body, unseal(bytes, kRebuildMagic, kVersion));
  Reader in(body);
  RebuildOrder out;
  for (uint32_t left = in.u32(); left > 0 && in.ok(); --left) out.hosts.push_back(in.text());
  for (uint32_t left = in.u32(); left > 0 && in.ok(); --left) {
    const Uuid image = in.uuid();
    out.epochs[image] = in.id<Epoch>();
  }
  if (in.left() != 0) out.incarnation = in.id<Incarnation>();   // an older version's order ends before
  if (!in.done() || out.hosts.empty()) return Status(Code::kCorruption, "malformed");
  return out;
}

Result<RebuildOrder> read_rebuild_order(io::Env& env, const std::string& directory) {
  const std::string file = directory + "/" + kRebuildFile;
  auto bytes = env.files().read_file(file);
  if (!bytes && bytes.status().code() == Code::kNotFound) return RebuildOrder{};
  if (!bytes) return bytes.status().with_context(file);
  auto order = decode_rebuild_order(*bytes);
  if (!order) return order.status().with_context(file + ": give the order again");
  return order;
}

Status write_rebuild_order(io::Env& env, const std::string& directory, const RebuildOrder& order) {
  return env.files().write_file_atomically(directory + "/" + kRebuildFile, encode_rebuild_order(order));
}

Status remove_rebuild_order(io::Env& env, const std::string& directory) {
  TM_RETURN_IF_ERROR(env.files().unlink(directory + "/" + kRebuildFile));
  return env.files().sync_directory(directory);
}

std::vector<PartSpec> parts_of_host() { return {{"names"}, {"journal"}, {"drl"}}; }
std::vector<PartSpec> parts_of_shared() { return {{"catalogue"}, {"journal"}, {"drl"}}; }

std::vector<PartSpec> parts_of_replica(bool witness) {
  std::vector<PartSpec> out{{"replica/store"}, {"replica/segments", PartSpec::Kind::kFolder}};
  if (witness) out.push_back({"witness", PartSpec::Kind::kStore, true});
  return out;
}

std::vector<PartSpec> parts_of_witness() { return {{"witness", PartSpec::Kind::kStore, true}}; }

}  // namespace tidemark::state
