#include "journal/shipper.h"

#include <nlohmann/json.hpp>

#include <algorithm>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/io/file.h"

namespace tidemark::journal {
namespace {

const log::Logger kLog("shipper");
using Json = nlohmann::json;

constexpr io::Duration kBackOffMin = std::chrono::milliseconds(100);
constexpr io::Duration kBackOffMax = std::chrono::seconds(10);
constexpr io::Duration kStoppedRetry = std::chrono::seconds(30);   // after what an operator must look at
constexpr uint32_t kPartsInFlightMax = 2;
constexpr size_t kReadPieceBytes = 1u << 20;

// A missing or wrongly typed field reads as `otherwise`.
uint64_t number_of(const Json& j, const char* key, uint64_t otherwise) {
  auto it = j.find(key);
  return it != j.end() && it->is_number_unsigned() ? it->get<uint64_t>() : otherwise;
}
std::string text_of(const Json& j, const char* key) {
  auto it = j.find(key);
  return it != j.end() && it->is_string() ? it->get<std::string>() : std::string();
}
bool flag_of(const Json& j, const char* key) {
  auto it = j.find(key);
  return it != j.end() && it->is_boolean() && it->get<bool>();
}
Bytes hex_bytes(const std::string& text) {
  Bytes out;
  auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
  for (size_t i = 0; i + 1 < text.size(); i += 2) {
    int high = digit(text[i]), low = digit(text[i + 1]);
    if (high < 0 || low < 0) return {};
    out.push_back(static_cast<uint8_t>(high * 16 + low));
  }
  return out;
}
Json parse(const std::string& body) {
  Json j = Json::parse(body, nullptr, false);
  return j.is_object() ? j : Json::object();
}

}  // namespace

Bytes encode_replica_row(const ReplicaRow& row) {
  Bytes out;
  Writer(out).uuid(row.store).id(row.newest).i64(row.label.ns).raw(row.digest);
  return out;
}

Result<ReplicaRow> decode_replica_row(ByteSpan value) {
  Reader r(value);
  ReplicaRow row;
  row.store = r.uuid();
  row.newest = r.id<BatchNumber>();
  row.label.ns = r.i64();
  ByteSpan digest = r.raw(row.digest.size());
  if (!r.done()) return Status(Code::kCorruption, "journal: row `replica` has the wrong length");
  std::copy(digest.begin(), digest.end(), row.digest.begin());
  return row;
}

// The parts of one batch on their way.
struct Shipper::PartSend {
  StagedBatch batch;
  std::vector<uint32_t> parts;      // to send, in order
  size_t next = 0;
  uint32_t in_flight = 0;
  Outcome outcome = Outcome::kDone;
  bool complete = false;
  bool all_there = false;           // the last one asks again
  std::string receipt;
  Callback<bool> done;
  void settle() {
    if (in_flight == 0 && (next == parts.size() || outcome != Outcome::kDone) && done) std::exchange(done, {})(true);
  }
};

Shipper::Shipper(io::Env& env, std::string spool, std::string source, Uuid generation, ReplicaRow known, Hooks hooks)
    : env_(env), spool_(std::move(spool)), source_(std::move(source)), generation_(generation), replica_(known),
      hooks_(std::move(hooks)) {}

Shipper::~Shipper() {
  env_.cancel(sleep_timer_);
  env_.cancel(allowance_timer_);
  alive_.reset();
  tasks_.cancel_all();
}

void Shipper::add(StagedBatch batch) {
  queued_bytes_ += batch.bytes();
  queue_.push_back(std::move(batch));
  wake();
}

void Shipper::start(std::unique_ptr<net::HttpClient> client, uint64_t bytes_per_second_max) {
  TM_CHECK(client_ == nullptr, "shipping is started once");
  rate_ = bytes_per_second_max;
  client_ = std::move(client);
  tasks_.spawn(run());
}

void Shipper::pause(bool paused) {
  paused_ = paused;
  wake();
}

void Shipper::wake() {
  if (!wake_) return;
  env_.post([this, alive = std::weak_ptr<bool>(alive_)] {
    if (alive.expired() || !wake_) return;
    std::exchange(wake_, {})();
  });
}

// What sleeps because of a failure looks again at once.
void Shipper::wake_now() {
  if (sleep_wake_) {
    env_.cancel(sleep_timer_);
    env_.post([this, alive = std::weak_ptr<bool>(alive_)] {
      if (!alive.expired() && sleep_wake_) std::exchange(sleep_wake_, {})();
    });
  }
  wake();
}

void Shipper::hand_over(Callback<std::deque<StagedBatch>> done) {
  if (busy_) {
    hand_over_ = std::move(done);
    return;
  }
  queued_bytes_ = 0;
  asked_ = false;
  done(std::exchange(queue_, {}));
}

void Shipper::ask_facts(Judge judge) {
  judge_ = std::move(judge);
  wake_now();
}

Task<void> Shipper::wait_for_work() {
  while (paused_ || (queue_.empty() && !judge_)) {
    co_await async<bool>([this](Callback<bool> done) {
      wake_ = [done = std::move(done)]() mutable { done(true); };
    });
  }
}

Task<void> Shipper::sleep(io::Duration duration) {
  co_await async<bool>([&](Callback<bool> done) {
    sleep_wake_ = [done = std::move(done)]() mutable { done(true); };
    sleep_timer_ = env_.after(duration, [this] { if (sleep_wake_) std::exchange(sleep_wake_, {})(); });
  });
}

Task<void> Shipper::run() {
  while (true) {
    co_await wait_for_work();
    busy_ = true;
    const bool sends = asked_ && !queue_.empty();
    Outcome outcome = Outcome::kDone;
    if (sends) outcome = co_await send_batch();
    else outcome = co_await ask();
    busy_ = false;
    if (hand_over_) hand_over(std::exchange(hand_over_, {}));
    if (outcome == Outcome::kDone) {
      // One that refuses what it is sent answers questions all the same.
      if (!sends && (!sending_failed_ || queue_.empty())) progressed();
      continue;
    }
    asked_ = false;
    ++failures_;
    sending_failed_ |= sends;
    if (outcome == Outcome::kStopped) {
      co_await sleep(kStoppedRetry);
      continue;
    }
    // Doubles up to the maximum; the jitter keeps many sources from returning in step.
    io::Duration base = std::min(kBackOffMax, kBackOffMin * (int64_t{1} << std::min(failures_ - 1, 7u)));
    auto jitter = static_cast<int64_t>(env_.random_u64() % static_cast<uint64_t>(base.count() / 2));
    co_await sleep(base / 2 + io::Duration(jitter));
  }
}

void Shipper::progressed() {
  failures_ = 0;
  sending_failed_ = false;
  error_.clear();
  error_logged_.clear();
}

Shipper::Outcome Shipper::stop(const std::string& event, std::string why) {
  if (error_logged_ != why) kLog.error(event, {{"source", source_}, {"reason", why}, {"retry_s", 30}});
  error_logged_ = why;
  error_ = std::move(why);
  return Outcome::kStopped;
}

Shipper::Outcome Shipper::retry(std::string why) {
  if (error_ != why) kLog.warning("retry", {{"source", source_}, {"reason", why}});
  error_ = std::move(why);
  return Outcome::kRetry;
}

Task<Shipper::Answer> Shipper::exchange(net::HttpRequest request) {
  // The request is moved into the call, so that nothing in this frame is used by it afterwards.
  auto shared = std::make_shared<net::HttpRequest>(std::move(request));   // shared: the starter below may be copied
  Result<net::HttpResponse> result = co_await async<Result<net::HttpResponse>>(
      [&](Callback<Result<net::HttpResponse>> done) { client_->request(std::move(*shared), std::move(done)); });
  Answer answer;
  if (!result) {
    answer.transport = result.status();
  } else {
    answer.status = result->status;
    answer.body = std::string(as_text(result->body));
  }
  co_return answer;
}

Task<Shipper::Outcome> Shipper::ask() {
  net::HttpRequest request;
  request.method = "GET";
  request.target = "/v1/sources/" + source_ + "/" + generation_.to_string();
  Answer answer = co_await exchange(std::move(request));
  if (!answer.transport) co_return retry(answer.transport.to_string());
  if (answer.status >= 500) co_return retry("replica answered " + std::to_string(answer.status) + " " + answer.body);
  if (answer.status != 200) {
    co_return stop("source_refused", "replica answered " + std::to_string(answer.status) + " to the source's question: " + answer.body);
  }
  if (judge_) co_return judge_facts(answer.body);
  co_return queue_.empty() ? Outcome::kDone : judge_state(answer.body);
}

Shipper::Outcome Shipper::judge_facts(const std::string& body) {
  Json j = parse(body);
  Facts facts;
  facts.expected = BatchNumber(number_of(j, "expected", 0));
  auto store = Uuid::parse(text_of(j, "store"));
  std::string digest = text_of(j, "last_digest");
  Bytes last = hex_bytes(digest);
  if (facts.expected.value == 0 || !store || (!digest.empty() && last.size() != facts.last_digest.size())) {
    return retry("replica's answer names no expected number, digest or store: " + body.substr(0, 200));
  }
  facts.store = *store;
  std::copy(last.begin(), last.end(), facts.last_digest.begin());
  if (facts.expected.value == 1) facts.last_digest = {};
  std::string fault = judge_(facts);
  if (!fault.empty()) {
    note_lost(facts.expected, !replica_.store.is_nil() && facts.store != replica_.store);
    return stop("replica_unfit", std::move(fault));
  }
  lost_ = false;
  judge_ = {};
  return Outcome::kDone;
}

// One that went back has others' streams, and what they wrote to the same images, though it may not know this one.
void Shipper::note_lost(BatchNumber expected, bool replaced) {
  lost_ = true;
  lost_all_ = replaced && expected.value == 1;
}

Shipper::Outcome Shipper::judge_state(const std::string& body) {
  Json j = parse(body);
  uint64_t expected = number_of(j, "expected", 0);
  if (expected == 0) return retry("replica's answer names no expected number: " + body.substr(0, 200));
  auto store = Uuid::parse(text_of(j, "store"));
  if (!replica_.store.is_nil() && store && *store != replica_.store) {
    note_lost(BatchNumber(expected), true);
    return stop("replica_store_changed", "the replica has another store (" + store->to_string() + ", before " +
                replica_.store.to_string() + "): " + std::string(kFullResyncRemedy));
  }
  if (store) replica_.store = *store;
  const StagedBatch& oldest = queue_.front();
  uint64_t reach = oldest.supersedes_first.value != 0 ? oldest.supersedes_first.value : oldest.number.value;
  if (expected < reach) {
    note_lost(BatchNumber(expected), false);
    return stop("replica_behind", "the replica expects batch " + std::to_string(expected) + ", the oldest kept is " +
                std::to_string(reach) + ": " + std::string(kFullResyncRemedy));
  }
  lost_ = false;
  // A body that was in a socket when all was given up arrived since. What stands for it is refused from now on.
  if (oldest.supersedes_first.value != 0 && expected > reach && expected <= oldest.number.value) {
    hooks_.taken_late(BatchNumber(expected - 1));
    return retry("the replica took batch " + std::to_string(expected - 1) + " after it had been given up");
  }
  if (expected > queue_.back().number.value + 1) {
    return stop("replica_ahead", "the replica expects batch " + std::to_string(expected) + ", the newest staged is " +
                std::to_string(queue_.back().number.value));
  }
  std::string last = text_of(j, "last_digest");
  for (const StagedBatch& b : queue_) {
    if (b.number.value + 1 == expected && !last.empty() && last != digest_text(b.digest)) {
      return stop("replica_conflict", "the replica has other bytes for batch " + std::to_string(b.number.value) + ": " + last);
    }
  }
  parts_there_.clear();
  if (expected == oldest.number.value && j.contains("parts") && j["parts"].is_array()) {
    for (const Json& part : j["parts"]) {
      if (part.is_number_unsigned()) parts_there_.insert(part.get<uint32_t>());
    }
  }
  // Batches that the replica already has whole are asked about by their last part: the answer is their receipt.
  for (uint32_t i = 0; expected > oldest.number.value && i + 1 < oldest.parts.size(); ++i) parts_there_.insert(i);
  asked_ = true;
  return Outcome::kDone;
}

Task<Result<Bytes>> Shipper::read_part(BatchNumber number, uint32_t part, uint64_t bytes) {
  struct Reading { std::unique_ptr<io::File> file; Bytes bytes; };
  std::string path = spool_ + "/" + spool_file_name(number, part);
  auto opened = env_.files().open(path, {.read_only = true, .background = true});
  if (!opened) co_return opened.status();
  auto reading = std::make_shared<Reading>();   // shared with the reads: they outlive a cancelled task
  reading->file = std::move(*opened);
  reading->bytes.resize(bytes);
  for (size_t at = 0; at < bytes; at += kReadPieceBytes) {
    MutableByteSpan piece = MutableByteSpan(reading->bytes).subspan(at, std::min<size_t>(kReadPieceBytes, bytes - at));
    Status status = co_await async<Status>([&](Callback<Status> done) {
      reading->file->read(at, piece, io::IoMode::kQueued, [reading, done = std::move(done)](Status s) mutable { done(std::move(s)); });
    });
    if (!status) co_return status.with_context(path);
  }
  co_return std::move(reading->bytes);
}

// A connection bounds one large part; what many small ones take together is bounded here.
Task<void> Shipper::await_allowance(size_t bytes) {
  if (rate_ == 0) co_return;
  io::Duration wait = allowed_at_ - env_.now();
  if (wait.count() > 0) {
    co_await async<bool>([&](Callback<bool> done) {
      allowed_ = std::move(done);
      allowance_timer_ = env_.after(wait, [this] { std::exchange(allowed_, {})(true); });
    });
  }
  auto takes = static_cast<int64_t>(bytes * uint64_t{1'000'000'000} / rate_);   // a part has 64 MiB at most
  allowed_at_ = std::max(allowed_at_, env_.now()) + io::Duration(takes);
}

uint32_t Shipper::parts_at_once() const { return rate_ == 0 ? kPartsInFlightMax : 1; }

void Shipper::start_part(std::shared_ptr<PartSend> send, uint32_t part) {
  ++send->in_flight;
  auto task = [](Shipper* self, std::shared_ptr<PartSend> s, uint32_t index) -> Task<void> {
    const StagedBatch& batch = s->batch;
    Result<Bytes> body = co_await self->read_part(batch.number, index, batch.parts[index].bytes);
    if (!body) {
      s->outcome = self->stop("spool_damaged", "batch " + std::to_string(batch.number.value) + ": " + body.status().to_string());
    } else {
      net::HttpRequest request;
      request.method = "PUT";
      request.target = "/v1/batches/" + self->source_ + "/" + self->generation_.to_string() + "/" +
                       std::to_string(batch.number.value) + "/" + std::to_string(index);
      request.headers["x-tidemark-digest"] = digest_text(batch.parts[index].digest);
      request.headers["content-type"] = "application/octet-stream";
      request.body = std::move(*body);
      request.bytes_per_second_max = self->rate_;
      co_await self->await_allowance(request.body.size());
      Answer answer = co_await self->exchange(std::move(request));
      bool complete = false;
      // Of what went wrong with several parts the first is told.
      if (s->outcome == Outcome::kDone) s->outcome = self->judge_answer(answer, batch, index, &complete);
      if (complete) {
        s->complete = true;
        s->receipt = answer.body;
      } else if (s->outcome == Outcome::kDone && !s->all_there) {
        self->progressed();
      }
    }
    --s->in_flight;
    // A batch may have many parts.
    const bool broken_off = (self->hand_over_ || self->paused_) && s->next < s->parts.size();
    if (broken_off && s->outcome == Outcome::kDone) s->outcome = Outcome::kAskAgain;
    while (s->outcome == Outcome::kDone && s->next < s->parts.size() && s->in_flight < self->parts_at_once()) {
      self->start_part(s, s->parts[s->next++]);
    }
    s->settle();
  };
  tasks_.spawn(task(this, std::move(send), part));
}

Task<Shipper::Outcome> Shipper::send_batch() {
  auto send = std::make_shared<PartSend>();   // shared by the parts' tasks
  send->batch = queue_.front();
  for (uint32_t i = 0; i < send->batch.parts.size(); ++i) {
    if (!parts_there_.contains(i)) send->parts.push_back(i);
  }
  send->all_there = send->parts.empty();
  if (send->all_there) send->parts.push_back(static_cast<uint32_t>(send->batch.parts.size()) - 1);
  parts_there_.clear();
  co_await async<bool>([&](Callback<bool> done) {
    send->done = std::move(done);
    while (send->next < send->parts.size() && send->in_flight < parts_at_once() && send->outcome == Outcome::kDone) {
      start_part(send, send->parts[send->next++]);
    }
    send->settle();
  });
  if (send->outcome != Outcome::kDone) co_return send->outcome;
  if (!send->complete) co_return retry("the replica has every part of batch " + std::to_string(send->batch.number.value) +
                                       " and still does not call it complete");
  co_return co_await finish_batch(std::move(send->receipt));
}

Shipper::Outcome Shipper::judge_answer(const Answer& answer, const StagedBatch& batch, uint32_t part, bool* complete) {
  std::string what = "batch " + std::to_string(batch.number.value) + " part " + std::to_string(part) + ": ";
  if (!answer.transport) return retry(what + answer.transport.to_string());
  Json j = parse(answer.body);
  if (answer.status == 200) {
    if (!flag_of(j, "durable")) return retry(what + "answered without `durable`");
    *complete = flag_of(j, "complete");
    return Outcome::kDone;
  }
  std::string said = "replica answered " + std::to_string(answer.status) + " " + answer.body.substr(0, 300);
  if (answer.status == 409 && text_of(j, "error") == "out_of_order") {
    kLog.info("out_of_order", {{"batch", batch.number}, {"expected", number_of(j, "expected", 0)}});
    return failures_ < 3 ? Outcome::kAskAgain : retry(what + said);
  }
  if (answer.status == 409) return stop("batch_conflict", what + said);
  if (answer.status >= 500 || answer.status == 429 || answer.status == 408) return retry(what + said);
  return stop("batch_refused", what + said);
}

Task<Shipper::Outcome> Shipper::finish_batch(std::string receipt) {
  const StagedBatch batch = queue_.front();
  ReplicaRow row = replica_;
  row.newest = batch.number;
  // A piece of a resync is no point: what the replica shows is as old as before.
  if (batch.kind != BatchKind::kPiece) row.label = batch.label;
  row.digest = batch.digest;
  Status status = co_await async<Status>([&](Callback<Status> done) { hooks_.forget(batch, row, std::move(done)); });
  // The files stay: after a restart the replica answers for them again.
  if (!status) co_return stop("commit_failed", status.to_string());
  replica_ = row;
  for (uint32_t i = 0; i < batch.parts.size(); ++i) {
    Status removed = env_.files().unlink(spool_ + "/" + spool_file_name(batch.number, i));
    if (!removed && removed.code() != Code::kNotFound) kLog.warning("spool_unlink", {{"batch", batch.number}, {"status", removed}});
  }
  queued_bytes_ -= batch.bytes();
  queue_.pop_front();
  kLog.debug("batch_durable", {{"batch", batch.number}, {"bytes", batch.bytes()}});
  progressed();
  hooks_.shipped(batch, receipt);
  co_return Outcome::kDone;
}

}  // namespace tidemark::journal
