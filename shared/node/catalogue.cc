#include "shared/node/catalogue.h"

#include <utility>

#include "shared/wire/codec.h"

namespace tidemark::node {

namespace {

constexpr size_t kBootsKept = 256;
constexpr uint8_t kVersion = 1;
constexpr uint8_t kImageVersion = 2;
constexpr uint16_t kIdentityVersion = 2;
const char* const kTableNames[] = {"meta", "nodes", "images", "copies", "behind", "hosts", "marks"};

Status corrupt(Tables table, ByteSpan key, std::string_view what) {
  return Status(Code::kCorruption, "catalogue: table " + std::string(kTableNames[table]) + ", key " + to_hex(key) +
                                       ": " + std::string(what));
}

kv::KeyBuilder behind_key(const ImageId& id, const std::string& host, uint32_t region) {
  kv::KeyBuilder key;
  key.uuid(id).text(host).u8(0).u32(region);
  return key;
}

constexpr std::string_view kMadePrefix = "made ";   // of keys

kv::KeyBuilder made_key(const std::string& host, uint32_t slot) {
  kv::KeyBuilder key;
  key.text(kMadePrefix).text(host).u8(0).u32(slot);
  return key;
}

void put_u64(kv::WriteBatch& batch, std::string_view key, uint64_t value) {
  Bytes bytes;
  Writer(bytes).u64(value);
  batch.put(kMeta, as_bytes(key), bytes);
}

Result<uint64_t> get_u64(kv::Snapshot& snapshot, std::string_view key, uint64_t absent) {
  Result<Bytes> value = snapshot.get(kMeta, as_bytes(key));
  if (!value && value.status().code() == Code::kNotFound) return absent;
  if (!value) return value.status();
  Reader in(*value);
  uint64_t out = in.u64();
  if (!in.done()) return corrupt(kMeta, as_bytes(key), "not a number");
  return out;
}

// Text up to a zero byte, which is taken too.
Result<std::string> take_host(Reader& in, Tables table, ByteSpan key) {
  std::string host;
  while (in.left() > 0) {
    char c = static_cast<char>(in.u8());
    if (c == '\0') return host;
    host.push_back(c);
  }
  return corrupt(table, key, "no end of the host's name");
}

template <class M>
Result<M> versioned(Tables table, ByteSpan key, ByteSpan value) {
  if (value.empty() || value[0] != kVersion) return corrupt(table, key, "unknown version");
  Result<M> message = wire::decode<M>(value.subspan(1));
  if (!message) return corrupt(table, key, message.status().message());
  return message;
}

Result<ImageRecord> image_record(ByteSpan key, ByteSpan value) {
  if (value.empty() || value[0] == 0 || value[0] > kImageVersion) return corrupt(kImages, key, "unknown version");
  ImageRecord record;
  record.version = value[0];
  wire::Decoder in(value.subspan(1));
  record.fields(in);
  if (!in.done()) return corrupt(kImages, key, "malformed");
  record.version = kImageVersion;
  return record;
}

struct NodeRecord {
  std::string name;
  wire::Attr attr;
  template <class A> void fields(A& a) { a(name, attr); }
};

// Calls take(key, value) for each entry, until it fails.
template <class F>
Status for_each(kv::Snapshot& snapshot, Tables table, F&& take) {
  std::unique_ptr<kv::Cursor> cursor = snapshot.cursor(table);
  for (bool there = cursor->first(); there; there = cursor->next()) {
    TM_RETURN_IF_ERROR(take(cursor->key(), cursor->value()));
  }
  return Status::ok();
}

Status load_nodes(kv::Snapshot& snapshot, Catalogue& out) {
  return for_each(snapshot, kNodes, [&](ByteSpan key, ByteSpan value) -> Status {
    TM_ASSIGN_OR_RETURN(NodeRecord record, versioned<NodeRecord>(kNodes, key, value));
    if (key.size() != 8 || load_be64(key.data()) != record.attr.inode.value)
      return corrupt(kNodes, key, "another inode's node");
    Node node;
    node.attr = std::move(record.attr);
    node.name = std::move(record.name);
    out.names.load(std::move(node));
    return Status::ok();
  });
}

Status load_images(kv::Snapshot& snapshot, Catalogue& out) {
  TM_RETURN_IF_ERROR(for_each(snapshot, kImages, [&](ByteSpan key, ByteSpan value) -> Status {
    TM_ASSIGN_OR_RETURN(ImageRecord record, image_record(key, value));
    Reader in(key);
    ImageId id = in.uuid();
    if (!in.done()) return corrupt(kImages, key, "no image's UUID");
    if (!out.names.find(record.inode)) return corrupt(kImages, key, "its node is missing");
    out.images.emplace(id, std::move(record));
    return Status::ok();
  }));
  TM_RETURN_IF_ERROR(for_each(snapshot, kCopies, [&](ByteSpan key, ByteSpan) -> Status {
    Reader in(key);
    ImageId id = in.uuid();
    std::string host(as_text(in.raw(in.left())));
    if (!in.ok() || host.empty()) return corrupt(kCopies, key, "no image and host");
    out.behind[id].try_emplace(host, out.boot).first->second.known = true;
    return Status::ok();
  }));
  return for_each(snapshot, kBehind, [&](ByteSpan key, ByteSpan value) -> Status {
    Reader in(key);
    ImageId id = in.uuid();
    TM_ASSIGN_OR_RETURN(std::string host, take_host(in, kBehind, key));
    ByteSpan region = in.raw(4);
    if (!in.done() || value.size() != 8) return corrupt(kBehind, key, "wrong length");
    out.behind[id]
        .try_emplace(host, out.boot)
        .first->second.load(load_be32(region.data()), load_le<uint64_t>(value.data()));
    return Status::ok();
  });
}

Status load_hosts(kv::Snapshot& snapshot, Catalogue& out) {
  return for_each(snapshot, kHosts, [&](ByteSpan key, ByteSpan value) -> Status {
    Reader in(key);
    TM_ASSIGN_OR_RETURN(std::string host, take_host(in, kHosts, key));
    ByteSpan incarnation = in.raw(8);
    Reader v(value);
    HostRun run;
    run.nonce = v.uuid();
    run.journal_generation = v.uuid();
    if (!in.done() || !v.done()) return corrupt(kHosts, key, "wrong length");
    run.incarnation.value = load_be64(incarnation.data());
    out.hosts[host] = run;   // in the order of incarnations: the newest stays
    return Status::ok();
  });
}

Status load_made(kv::Snapshot& snapshot, Catalogue& out) {
  auto rows = snapshot.cursor(kMeta);
  for (bool more = rows->seek(as_bytes(kMadePrefix)); more; more = rows->next()) {
    const ByteSpan row_key = rows->key();
    if (!as_text(row_key).starts_with(kMadePrefix)) break;
    Reader key(row_key.subspan(kMadePrefix.size())), value(rows->value());
    TM_ASSIGN_OR_RETURN(std::string host, take_host(key, kMeta, row_key));
    const ByteSpan slot = key.raw(4);
    Made made;
    made.number = value.u64();
    made.inode = value.id<InodeNumber>();
    if (!key.done() || !value.done() || load_be32(slot.data()) != made.number % kMadeMax)
      return corrupt(kMeta, row_key, "what a create has made");
    out.made[host][load_be32(slot.data())] = made;
  }
  return Status::ok();
}

Status load_marks(kv::Snapshot& snapshot, Catalogue& out) {
  return for_each(snapshot, kMarks, [&](ByteSpan key, ByteSpan value) -> Status {
    Result<wire::Mark> mark = wire::decode<wire::Mark>(value);
    if (!mark) return corrupt(kMarks, key, mark.status().message());
    out.marks.push_back(std::move(*mark));
    return Status::ok();
  });
}

template <class M>
Bytes with_version(const M& message) {
  Bytes out{kVersion};
  wire::encode(message, out);
  return out;
}

}  // namespace

kv::StoreOptions catalogue_options() {
  kv::StoreOptions options;
  options.tables.assign(std::begin(kTableNames), std::end(kTableNames));
  return options;
}

Result<Identity> read_identity(kv::Store& store) {
  TM_ASSIGN_OR_RETURN(Bytes value, store.snapshot()->get(kMeta, as_bytes("identity")));
  Reader in(value);
  uint16_t version = in.u16();
  Identity out;
  out.cluster = in.uuid();
  out.group = in.uuid();
  out.node = in.text();
  if (version >= 2) out.store = in.uuid();
  if (version == 0 || version > kIdentityVersion || !in.done())
    return corrupt(kMeta, as_bytes("identity"), "unknown version or length");
  return out;
}

Result<state::RebuildOrder> read_rebuilding(kv::Store& store) {
  Result<Bytes> value = store.snapshot()->get(kMeta, as_bytes("rebuilding"));
  if (!value && value.status().code() == Code::kNotFound) return state::RebuildOrder{};
  if (!value) return value.status();
  auto order = state::decode_rebuild_order(*value);
  if (!order) return corrupt(kMeta, as_bytes("rebuilding"), order.status().message());
  return order;
}

void put_rebuilding(kv::WriteBatch& batch, const state::RebuildOrder& order) {
  if (order.hosts.empty()) batch.erase(kMeta, as_bytes("rebuilding"));
  else batch.put(kMeta, as_bytes("rebuilding"), state::encode_rebuild_order(order));
}

void put_boot(kv::WriteBatch& batch, Incarnation boot) { put_u64(batch, "boot", boot.value); }
void put_incarnation_floor(kv::WriteBatch& batch, Incarnation floor) {
  put_u64(batch, "incarnation_floor", floor.value);
}

void put_identity(kv::WriteBatch& batch, const Identity& identity) {
  Bytes value;
  Writer(value).u16(kIdentityVersion).uuid(identity.cluster).uuid(identity.group).text(identity.node).uuid(
      identity.store);
  batch.put(kMeta, as_bytes("identity"), value);
}

Result<std::vector<image::KnownRun>> read_brick_runs(kv::Store& store) {
  auto value = store.snapshot()->get(kMeta, as_bytes("brick_runs"));
  if (!value && value.status().code() == Code::kNotFound) return std::vector<image::KnownRun>();
  if (!value) return value.status();
  auto runs = image::decode_runs(*value);
  if (!runs) return corrupt(kMeta, as_bytes("brick_runs"), runs.status().message());
  return runs;
}

void put_brick_runs(kv::WriteBatch& batch, const std::vector<image::KnownRun>& runs) {
  batch.put(kMeta, as_bytes("brick_runs"), image::encode_runs(runs));
}

Result<std::optional<LossId>> read_loss_id(kv::Store& store) {
  auto value = store.snapshot()->get(kMeta, as_bytes("loss_id"));
  if (!value && value.status().code() == Code::kNotFound) return std::optional<LossId>();
  if (!value) return value.status();
  Reader in(*value);
  LossId out(in.u64());
  if (!in.done()) return corrupt(kMeta, as_bytes("loss_id"), "unknown length");
  return std::optional<LossId>(out);
}

void put_loss_id(kv::WriteBatch& batch, LossId loss_id) {
  Bytes value;
  Writer(value).u64(loss_id.value);
  batch.put(kMeta, as_bytes("loss_id"), value);
}

namespace {

Status load_boots(kv::Snapshot& snapshot, Catalogue& out) {
  auto value = snapshot.get(kMeta, as_bytes("boots"));
  if (!value && value.status().code() == Code::kNotFound) return Status::ok();   // of an older version
  if (!value) return value.status();
  Reader in(*value);
  for (uint32_t left = in.u32(); left > 0 && in.ok(); --left) {
    const Incarnation boot = in.id<Incarnation>();
    out.boots[boot] = in.uuid();
  }
  return in.done() ? Status::ok() : corrupt(kMeta, as_bytes("boots"), "unknown length");
}

void put_boots(kv::WriteBatch& batch, const std::map<Incarnation, Uuid>& boots) {
  Bytes value;
  Writer w(value);
  w.u32(static_cast<uint32_t>(boots.size()));
  for (const auto& [boot, nonce] : boots) w.id(boot).uuid(nonce);
  batch.put(kMeta, as_bytes("boots"), value);
}

}  // namespace

Result<std::unique_ptr<Catalogue>> open_catalogue(kv::Store& store, WallTime now, const Uuid& nonce) {
  auto out = std::make_unique<Catalogue>(now);
  {
    std::unique_ptr<kv::Snapshot> snapshot = store.snapshot();
    TM_ASSIGN_OR_RETURN(uint64_t boot, get_u64(*snapshot, "boot", 0));
    out->boot = Incarnation(boot + 1);
    TM_RETURN_IF_ERROR(load_boots(*snapshot, *out));
    TM_ASSIGN_OR_RETURN(out->incarnation_floor.value, get_u64(*snapshot, "incarnation_floor", 0));
    TM_ASSIGN_OR_RETURN(uint64_t next_inode, get_u64(*snapshot, "next_inode", kRootInode.value + 1));
    TM_ASSIGN_OR_RETURN(uint64_t event, get_u64(*snapshot, "event", 0));
    out->names.set_counters(InodeNumber(next_inode), EventNumber(event));
    TM_RETURN_IF_ERROR(load_nodes(*snapshot, *out));
    TM_RETURN_IF_ERROR(out->names.finish_loading());
    TM_RETURN_IF_ERROR(load_images(*snapshot, *out));
    TM_RETURN_IF_ERROR(load_hosts(*snapshot, *out));
    TM_RETURN_IF_ERROR(load_made(*snapshot, *out));
    TM_RETURN_IF_ERROR(load_marks(*snapshot, *out));
  }
  kv::WriteBatch batch;
  put_u64(batch, "boot", out->boot.value);
  out->boots[out->boot] = nonce;
  while (out->boots.size() > kBootsKept) out->boots.erase(out->boots.begin());
  put_boots(batch, out->boots);
  put_node(batch, **out->names.find(kRootInode));
  TM_RETURN_IF_ERROR(store.commit_and_wait(std::move(batch)));
  return out;
}

void put_node(kv::WriteBatch& batch, const Node& node) {
  batch.put(kNodes, kv::key_u64(node.attr.inode.value), with_version(NodeRecord{node.name, node.attr}));
}
void erase_node(kv::WriteBatch& batch, InodeNumber inode) { batch.erase(kNodes, kv::key_u64(inode.value)); }

void put_counters(kv::WriteBatch& batch, const NameSpace& names) {
  put_u64(batch, "next_inode", names.next_inode().value);
  put_u64(batch, "event", names.last_event().value);
}

void put_image(kv::WriteBatch& batch, const ImageId& id, const ImageRecord& record) {
  Bytes value{kImageVersion};
  wire::encode(record, value);
  batch.put(kImages, id.bytes, value);
}

void erase_image(kv::WriteBatch& batch, const ImageId& id) {
  batch.erase(kImages, id.bytes);
  Bytes end(id.bytes.begin(), id.bytes.end());
  end.insert(end.end(), 300, 0xFF);  // above every host's name
  batch.erase_range(kCopies, id.bytes, end);
  batch.erase_range(kBehind, id.bytes, end);
}

void put_copy(kv::WriteBatch& batch, const ImageId& id, const std::string& host) {
  batch.put(kCopies, kv::KeyBuilder().uuid(id).text(host), {});
}

void put_behind(kv::WriteBatch& batch, const ImageId& id, const std::string& host, uint32_t region, uint64_t cut) {
  Bytes value;
  Writer(value).u64(cut);
  batch.put(kBehind, behind_key(id, host, region), value);
}

void erase_behind(kv::WriteBatch& batch, const ImageId& id, const std::string& host, uint32_t region) {
  batch.erase(kBehind, behind_key(id, host, region));
}

void put_all_behind(kv::WriteBatch& batch, const ImageId& id, const std::string& host, const BehindMap& map) {
  kv::KeyBuilder end;
  end.uuid(id).text(host).u8(1);
  batch.erase_range(kBehind, behind_key(id, host, 0), end);
  for (const auto& [region, cut] : map.regions()) put_behind(batch, id, host, region, cut);
}

void put_host(kv::WriteBatch& batch, const std::string& host, const HostRun& run) {
  Bytes value;
  Writer(value).uuid(run.nonce).uuid(run.journal_generation);
  kv::KeyBuilder first, key;
  first.text(host).u8(0).u64(0);
  key.text(host).u8(0).u64(run.incarnation.value);
  batch.erase_range(kHosts, first, key);
  batch.put(kHosts, key, value);
}

void put_made(kv::WriteBatch& batch, const std::string& host, const Made& made) {
  Bytes value;
  Writer(value).u64(made.number).id(made.inode);
  batch.put(kMeta, made_key(host, static_cast<uint32_t>(made.number % kMadeMax)), value);
}

void erase_made(kv::WriteBatch& batch, const std::string& host) {
  kv::KeyBuilder end;
  end.text(kMadePrefix).text(host).u8(1);
  batch.erase_range(kMeta, made_key(host, 0), end);
}

void put_mark(kv::WriteBatch& batch, const wire::Mark& mark) {
  batch.put(kMarks, kv::key_u64(mark.number.value), wire::encode(mark));
}
void erase_marks(kv::WriteBatch& batch, EventNumber up_to) {
  batch.erase_range(kMarks, kv::key_u64(0), kv::key_u64(up_to.value + 1));
}

}  // namespace tidemark::node
