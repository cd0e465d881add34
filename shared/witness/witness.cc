#include "shared/witness/witness.h"

#include <charconv>
#include <utility>
#include <vector>

#include "shared/base/log.h"
#include "shared/io/file.h"
#include "shared/wire/codec.h"

namespace tidemark::witness {
namespace {

const log::Logger kLog("witness");
enum Table : kv::Table { kRecords, kMeta };
const char* const kStoreKey = "store";
constexpr size_t kImagesMax = 1u << 20;
constexpr size_t kListedMax = 10'000;   // records in one answer

std::vector<std::string> parts_of(std::string_view path) {
  std::vector<std::string> out;
  while (!path.empty()) {
    size_t slash = path.find('/');
    out.emplace_back(path.substr(0, slash));
    path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
  }
  return out;
}

std::optional<uint64_t> number_of(const std::string& text) {
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

kv::WriteBatch naming(const Uuid& name) {
  kv::WriteBatch batch;
  batch.put(kMeta, as_bytes(kStoreKey), name.bytes);
  return batch;
}

net::HttpResponse refuse(int status, const std::string& error, const std::string& reason) {
  return net::HttpResponse::json(status, "{\"error\":\"" + error + "\",\"reason\":\"" + reason + "\"}");
}

}  // namespace

Result<std::unique_ptr<Witness>> Witness::open(io::Env& env, const std::string& directory) {
  TM_RETURN_IF_ERROR(env.files().make_directories(directory));
  kv::StoreOptions options;
  options.tables = {"records", "meta"};
  TM_ASSIGN_OR_RETURN(auto store, env.open_store(directory, options));
  std::unique_ptr<Witness> witness(new Witness(env, std::move(store)));
  auto snapshot = witness->store_->snapshot();
  auto cursor = snapshot->cursor(kRecords);
  for (bool found = cursor->first(); found; found = cursor->next()) {
    Reader key(cursor->key());
    ImageId image = key.uuid();
    auto record = wire::decode<Record>(cursor->value());
    if (!key.done() || !record) return Status(Code::kCorruption, directory + ": table records holds a malformed row");
    witness->records_.emplace(image, std::move(*record));
  }
  TM_RETURN_IF_ERROR(witness->name_store().with_context(directory));
  return witness;
}

// At its first open: by another name the shared node knows that this one has no record of what another had. A full disk
// is no reason not to start: the replica beside it serves, and so do the records that are there.
Status Witness::name_store() {
  auto known = store_->snapshot()->get(kMeta, as_bytes(kStoreKey));
  if (known) {
    Reader value(*known);
    name_ = value.uuid();
    return value.done() ? Status::ok() : Status(Code::kCorruption, "table meta holds a malformed row");
  }
  if (known.status().code() != Code::kNotFound) return known.status();
  const Uuid name = env_.random_uuid();
  Status named = store_->commit_and_wait(naming(name));
  if (named) name_ = name;
  if (named.code() != Code::kOutOfSpace) return named;
  kLog.warning("store_not_named", {{"error", named}, {"effect", "an empty one in its place would not be noticed"}});
  return Status::ok();
}

// Until there is room: whoever asks hears the name from then on.
void Witness::name_later() {
  if (!name_.is_nil() || std::exchange(naming_, true)) return;
  const Uuid name = env_.random_uuid();
  store_->commit(naming(name), [this, name](Status s) {
    naming_ = false;
    if (!s) return;   // tried again at the next question
    name_ = name;
    kLog.info("store_named", {{"store", name}});
  });
}

// The end of each 200.
std::string Witness::store_text() const {
  return name_.is_nil() ? "}" : ",\"store\":\"" + name_.to_string() + "\"}";
}

void Witness::handle(net::HttpRequest request, Callback<net::HttpResponse> reply) {
  name_later();
  // ["", "v1", "witness", IMAGE, EPOCH, GENERATION, what]
  std::vector<std::string> parts = parts_of(request.target);
  if (request.method == "GET" && parts.size() >= 4 && parts[3] == "records") return reply(list(request, parts));
  if (request.method != "POST") return reply(refuse(405, "method", "POST only"));
  auto image = parts.size() == 7 ? Uuid::parse(parts[3]) : std::nullopt;
  auto epoch = parts.size() == 7 ? number_of(parts[4]) : std::nullopt;
  auto generation = parts.size() == 7 ? number_of(parts[5]) : std::nullopt;
  if (!image || !epoch || !generation) return reply(refuse(404, "not_found", "no such path"));
  Question question;
  question.epoch = Epoch(*epoch);
  question.generation = Generation(*generation);
  question.by = request.peer.node;
  question.registers = parts[6] == "register";
  if (parts[6] == "outdated") question.verdict = Verdict::kOutdated;
  else if (parts[6] == "fenced") question.verdict = Verdict::kFenced;
  else if (!question.registers) return reply(refuse(404, "not_found", "no such path"));
  const net::Role asks = question.verdict == Verdict::kOutdated ? net::Role::kHost : net::Role::kShared;
  if (request.peer.role != asks) return reply(refuse(403, "permission", "not this role's to ask"));
  ask(*image, question, std::move(reply));
}

net::HttpResponse Witness::list(const net::HttpRequest& request, const std::vector<std::string>& parts) const {
  if (request.peer.role != net::Role::kShared) return refuse(403, "permission", "not this role's to ask");
  const auto after = parts.size() == 5 ? Uuid::parse(parts[4]) : std::optional<Uuid>(Uuid::nil());
  if (!after || parts.size() > 5) return refuse(404, "not_found", "no such path");
  std::string out;
  size_t listed = 0;
  for (auto at = records_.upper_bound(*after); at != records_.end() && listed < kListedMax; ++at, ++listed) {
    out += (out.empty() ? "" : ",") + ("{\"image\":\"" + at->first.to_string()) +
           "\",\"epoch\":" + std::to_string(at->second.epoch.value) +
           ",\"generation\":" + std::to_string(at->second.generation.value) + ",\"verdict\":\"" +
           std::string(verdict_name(at->second.verdict)) + "\"}";
  }
  return net::HttpResponse::json(200, "{\"records\":[" + out + "]" + store_text());
}

void Witness::ask(const ImageId& image, const Question& question, Callback<net::HttpResponse> reply) {
  auto known = records_.find(image);
  auto record = step(known == records_.end() ? std::nullopt : std::optional<Record>(known->second), question);
  if (!record) {
    kLog.warning("no_vote", {{"image", image}, {"asked_by", question.by}, {"reason", record.status()}});
    const bool unknown = record.status().code() == Code::kNotFound;
    if (unknown) return reply(refuse(404, "not_registered", record.status().message()));
    return reply(net::HttpResponse::json(
        409, "{\"error\":\"other_generation\",\"reason\":\"" + record.status().message() + "\",\"epoch\":" +
                 std::to_string(known->second.epoch.value) + ",\"generation\":" +
                 std::to_string(known->second.generation.value) + "}"));
  }
  if (known == records_.end() && records_.size() >= kImagesMax) return reply(refuse(507, "full", "too many images"));
  const bool changed = known == records_.end() || !(known->second == *record);
  records_[image] = *record;
  if (changed) {
    kLog.info("recorded", {{"image", image}, {"epoch", record->epoch}, {"generation", record->generation},
                           {"verdict", verdict_name(record->verdict)}, {"by", record->by}});
  }
  // Also where nothing changes: what is said again must be durable as well, and may still be on its way.
  kv::WriteBatch batch;
  batch.put(kRecords, image.bytes, wire::encode(*record));
  store_->commit(std::move(batch), [this, answer = *record, reply = std::move(reply)](Status s) mutable {
    if (!s && kept_) kLog.warning("record_not_kept", {{"error", s}, {"effect", "no vote is given"}});
    kept_ = s;
    if (!s) return reply(refuse(503, "unavailable", "the record could not be made durable"));
    reply(net::HttpResponse::json(200, "{\"verdict\":\"" + std::string(verdict_name(answer.verdict)) + "\",\"by\":\"" +
                                           answer.by + "\"" + store_text()));
  });
}

std::vector<std::string> Witness::health() const {
  if (kept_) return {};
  return {"no vote is given: a record could not be made durable (log record_not_kept)"};
}

std::string Witness::status_json() const {
  size_t outdated = 0, fenced = 0;
  for (const auto& [image, record] : records_) {
    outdated += record.verdict == Verdict::kOutdated ? 1 : 0;
    fenced += record.verdict == Verdict::kFenced ? 1 : 0;
  }
  std::string reasons;
  for (const std::string& reason : health()) reasons += (reasons.empty() ? "\"" : ",\"") + reason + "\"";
  return "{\"role\":\"witness\",\"healthy\":" + std::string(reasons.empty() ? "true" : "false") + ",\"reasons\":[" +
         reasons + "],\"images\":" + std::to_string(records_.size()) +
         ",\"outdated\":" + std::to_string(outdated) + ",\"fenced\":" + std::to_string(fenced) + "}";
}

}  // namespace tidemark::witness
