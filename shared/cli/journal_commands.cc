// journal inspect, pause-shipping, resume-shipping, resync-replica. Inspection reads the journal's environment itself
// (journal/FORMAT.md), beside a running daemon as well as after it: LMDB's readers disturb nobody.

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <thread>

#include "journal/records.h"
#include "shared/cli/commands.h"
#include "shared/cli/output.h"
#include "shared/io/real_env.h"
#include "shared/kv/lmdb_store.h"

namespace tidemark::cli {
namespace {

using journal::StoredRecord;

const char* kind_name(uint8_t kind) {
  switch (kind) {
    case static_cast<uint8_t>(journal::RecordKind::kWrite): return "write";
    case static_cast<uint8_t>(journal::RecordKind::kZero): return "zero";
    case static_cast<uint8_t>(journal::RecordKind::kDiscard): return "discard";
    case static_cast<uint8_t>(journal::RecordKind::kResize): return "resize";
    case journal::kAbandonedRecord: return "abandoned";
    default: return "unknown";
  }
}
const char* state_name(journal::BatchState state) {
  switch (state) {
    case journal::BatchState::kClosed: return "closed";
    case journal::BatchState::kStaged: return "staged";
    case journal::BatchState::kGivenUp: return "given up";
  }
  return "unknown";
}

Json batch_json(uint64_t number, const journal::BatchRow& row) {
  uint64_t bytes = 0;
  for (const auto& part : row.parts) bytes += part.bytes;
  return {{"batch", number},
          {"state", state_name(row.state)},
          {"kind", row.kind == journal::BatchKind::kResync  ? "resync"
                   : row.kind == journal::BatchKind::kPiece ? "piece"
                                                            : "normal"},
          {"incarnation", row.incarnation.value},
          {"first", row.first.value},
          {"last", row.last.value},
          {"label", row.label.to_string()},
          {"name", row.name},
          {"parts", row.parts.size()},
          {"bytes", bytes}};
}

Json record_json(uint64_t batch, Incarnation incarnation, const StoredRecord& r, const std::string& image) {
  char digest[24] = "";
  if (r.kind == static_cast<uint8_t>(journal::RecordKind::kWrite)) {
    std::snprintf(digest, sizeof digest, "%016llx", static_cast<unsigned long long>(r.digest));
  }
  return {{"batch", batch},           {"incarnation", incarnation.value},  {"counter", r.counter.value},
          {"kind", kind_name(r.kind)}, {"image", image},                     {"offset", r.extent.offset},
          {"length", r.extent.length}, {"epoch", r.epoch.value},             {"sequence", r.coordinator.value},
          {"digest", digest},          {"label", r.label.to_string()}};
}

Status read_meta(kv::Snapshot& snapshot, Json& out) {
  TM_ASSIGN_OR_RETURN(Bytes journal, snapshot.get(journal::kMetaTable, as_bytes("journal")));
  Reader head(journal);
  out["version"] = head.u16();
  out["generation"] = head.uuid().to_string();
  out["source"] = head.text();
  out["cluster"] = head.uuid().to_string();
  if (!head.ok()) return {Code::kCorruption, "the journal's meta row is damaged"};
  TM_ASSIGN_OR_RETURN(Bytes row, snapshot.get(journal::kMetaTable, as_bytes("incarnation")));
  Reader incarnation(row);
  out["incarnation"] = incarnation.u64();
  out["nonce"] = incarnation.uuid().to_string();
  out["clean_stop"] = incarnation.u8() != 0;
  if (!incarnation.ok()) return {Code::kCorruption, "the journal's incarnation row is damaged"};
  return {};
}

Result<Json> read_batches(kv::Snapshot& snapshot) {
  Json out = Json::array();
  auto cursor = snapshot.cursor(journal::kBatchesTable);
  for (bool found = cursor->first(); found; found = cursor->next()) {
    if (cursor->key().size() != 8) return Status(Code::kCorruption, "a key of the batches is damaged");
    TM_ASSIGN_OR_RETURN(journal::BatchRow row, journal::decode_batch_row(cursor->value()));
    out.push_back(batch_json(load_be64(cursor->key().data()), row));
  }
  return out;
}

std::map<std::pair<uint64_t, uint32_t>, std::string> read_slots(kv::Snapshot& snapshot) {
  std::map<std::pair<uint64_t, uint32_t>, std::string> out;
  auto cursor = snapshot.cursor(journal::kSlotsTable);
  for (bool found = cursor->first(); found; found = cursor->next()) {
    if (cursor->key().size() != 12 || cursor->value().size() < 16) continue;   // shown as unknown
    Reader value(cursor->value());
    out[{load_be64(cursor->key().data()), load_be32(cursor->key().data() + 8)}] = value.uuid().to_string();
  }
  return out;
}

// The newest `count` records, oldest first: values are walked backwards until there are enough.
Result<Json> read_records(kv::Snapshot& snapshot, uint64_t count) {
  auto slots = read_slots(snapshot);
  std::deque<Json> newest;
  auto cursor = snapshot.cursor(journal::kRecordsTable);
  for (bool found = count > 0 && cursor->last(); found && newest.size() < count; found = cursor->previous()) {
    if (cursor->key().size() < 8) return Status(Code::kCorruption, "a key of the records is damaged");
    TM_ASSIGN_OR_RETURN(journal::UnpackedRecords pack, journal::unpack_records(cursor->value()));
    for (auto r = pack.records.rbegin(); r != pack.records.rend() && newest.size() < count; ++r) {
      auto slot = slots.find({pack.incarnation.value, r->slot});
      newest.push_front(record_json(load_be64(cursor->key().data()), pack.incarnation, *r,
                                    slot == slots.end() ? "slot " + std::to_string(r->slot) : slot->second));
    }
  }
  Json out = Json::array();
  for (Json& j : newest) out.push_back(std::move(j));
  return out;
}

Result<Json> inspect(const std::string& directory, uint64_t records) {
  io::RealEnvOptions options;
  options.open_store = kv::open_lmdb_store;
  io::RealEnv env(std::move(options));
  kv::StoreOptions store_options;
  store_options.tables = journal::journal_table_names();
  store_options.read_only = true;
  auto store = env.open_store(directory + "/journal", store_options);
  if (!store) return store.status().with_context("journal of " + directory);
  auto snapshot = (*store)->snapshot();
  Json out{{"directory", directory}};
  TM_RETURN_IF_ERROR(read_meta(*snapshot, out));
  TM_ASSIGN_OR_RETURN(out["batches"], read_batches(*snapshot));
  TM_ASSIGN_OR_RETURN(out["records"], read_records(*snapshot, records));
  return out;
}

std::string table_of(const Json& list) {
  std::vector<std::string> headings;
  for (const auto& [key, value] : list.front().items()) headings.push_back(key);
  Table table(headings);
  for (const Json& row : list) {
    std::vector<std::string> cells;
    for (const std::string& h : headings) {
      std::string cell = text(row, h.c_str());
      cells.push_back(cell.empty() ? "-" : cell);
    }
    table.row(std::move(cells));
  }
  return table.text();
}

std::string inspect_text(const Json& j) {
  std::string scalars, lists;
  for (const auto& [key, value] : j.items()) {
    if (value.is_array()) {
      lists += "\n" + key + (value.empty() ? ": none\n" : "\n" + table_of(value));
    } else {
      scalars += key + ": " + printable(value.is_string() ? value.get<std::string>() : dump(value, -1)) + "\n";
    }
  }
  return scalars + lists;
}

}  // namespace

Outcome journal_inspect(Context& context, const InspectOptions& o) {
  std::string directory = o.directory;
  if (directory.empty()) {
    TM_ASSIGN_OR_RETURN(const NodeConfig* config, context.config());
    directory = config->node.state_dir;
  }
  TM_ASSIGN_OR_RETURN(Json j, inspect(directory, o.records));
  context.result(j, inspect_text(j));
  return 0;
}

namespace {
std::string run_of(const Json& status) { return text(status, "incarnation") + "/" + text(status, "boot"); }
}  // namespace

ResyncWatch::ResyncWatch(const Json& before)
    : run_(run_of(before)), ended_before_(number(at(before, "journal"), "resyncs_ended")) {}

bool ResyncWatch::ended(const Json& status) {
  const Json& journal = at(status, "journal");
  if (run_of(status) != run_) {
    run_ = run_of(status);
    restarted_ = true;
    ended_before_ = last_batch_ = 0;
  }
  if (number(journal, "resyncs_ended") > ended_before_) return true;
  if (!restarted_) return false;
  // It may have ended before this run began, or its last batch have been on its way then, which this run ships like any.
  const bool lacking = text(journal, "shipping") != "normal" || number(journal, "resync_left_bytes") != 0 ||
                       flag(journal, "needs_full_resync");
  if (lacking) last_batch_ = 0;
  else if (last_batch_ == 0) last_batch_ = std::max<uint64_t>(number(journal, "newest_closed"), 1);
  return last_batch_ != 0 && number(journal, "newest_durable") >= last_batch_;
}

Outcome journal_resync(Context& context, bool wait) {
  TM_ASSIGN_OR_RETURN(const Json before, context.control_get("/v1/status"));
  TM_ASSIGN_OR_RETURN(Json begun, context.control_post("/v1/resync-replica", Json::object(), 120));
  std::string what = begun.contains("names") ? text(begun, "names") + " names"
                                             : text(begun, "images") + " images, " + config::format_size(number(begun, "bytes"));
  if (!wait) {
    context.result(begun, what + " are sent to the replica; `tidemark status` shows what is left");
    return 0;
  }
  ResyncWatch watch(before);
  ProgressBar bar("resync", context.progress_wanted());
  for (;;) {
    TM_ASSIGN_OR_RETURN(Json status, context.control_get("/v1/status"));
    const Json& journal = at(status, "journal");
    const uint64_t left = number(journal, "resync_left_bytes"), sent = number(journal, "resync_sent_bytes");
    bar.update(sent, sent + left);
    if (watch.ended(status)) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));  // lint: allow sleep_for: the pace of asking
  }
  context.result(begun, what + " were sent: the replica is level");
  return 0;
}

Outcome journal_pause(Context& context, bool paused) {
  TM_ASSIGN_OR_RETURN(Json j, context.control_post("/v1/shipping", Json{{"paused", paused}}));
  context.result(j, flag(j, "paused") ? "shipping is paused: cuts go on, batches stay in the spool" : "shipping goes on");
  return 0;
}

}  // namespace tidemark::cli
