#include "fs/replica_client.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace tidemark::fs {
using nlohmann::json;

namespace {
constexpr std::chrono::milliseconds kAppliedPoll{500};
}

std::string hex_of(const Digest128& d) {
  uint8_t b[16];
  store_le(b, d.low);
  store_le(b + 8, d.high);
  return to_hex(b);
}

net::HttpRequest digests_request(const std::string& target, Extent range, uint32_t unit, const DigestKey& key) {
  net::HttpRequest ask;
  ask.method = "POST";
  ask.target = target;
  ask.headers["content-type"] = "application/json";
  const std::string body =
      json{{"offset", range.offset}, {"length", range.length}, {"unit", unit}, {"key", to_hex(key.secret)}}.dump();
  ask.body.assign(body.begin(), body.end());
  return ask;
}

Task<Result<net::HttpResponse>> ReplicaClient::ask(net::HttpRequest ask) {
  using Answer = Result<net::HttpResponse>;
  Answer answer = co_await async<Answer>([&](Callback<Answer> d) { client_->request(std::move(ask), std::move(d)); });
  if (!answer) co_return answer.status().with_context("replica");
  co_return answer;
}

Task<Result<std::string>> ReplicaClient::wait_shipped(BatchNumber batch, io::Duration limit) {
  using Shipped = Result<std::string>;
  co_return co_await async<Shipped>([&](Callback<Shipped> d) {
    auto once = std::make_shared<Callback<Shipped>>(std::move(d));  // shared by the journal and the timer, first come
    auto fire = [once](Shipped r) {
      if (*once) std::exchange(*once, nullptr)(std::move(r));
    };
    journal_.when_shipped(batch, fire);
    env_.after(limit, [fire] { fire(Status(Code::kUnavailable, "the cut did not reach the replica in time")); });
  });
}

std::shared_ptr<const Receipt> ReplicaClient::keep_receipt(BatchNumber batch) {
  auto kept = std::make_shared<Receipt>(Receipt{batch, {}});   // shared with the journal, which may be asked for long
  // Why it has none yet may be over by the time it is wanted: then it is asked again.
  journal_.when_shipped(batch, [kept](Result<std::string> receipt) {
    if (receipt) kept->text = std::move(*receipt);
  });
  return kept;
}

Task<Result<std::string>> ReplicaClient::wait_shipped(std::shared_ptr<const Receipt> receipt, io::Duration limit) {
  if (receipt->text) co_return *receipt->text;
  co_return co_await wait_shipped(receipt->batch, limit);
}

Task<Result<uint64_t>> ReplicaClient::wait_applied(BatchNumber batch, std::string receipt, io::BootTime until) {
  json got = json::parse(receipt, nullptr, false);
  const bool held = !got.is_object() || (got.contains("applied") && got["applied"] != true);
  if (!held && got.contains("point") && got["point"].is_number_unsigned()) co_return got["point"].get<uint64_t>();
  for (;;) {
    net::HttpRequest question;
    question.method = "GET";
    question.target = "/v1/points/resolve?generation=" + journal_.generation().to_string() +
                      "&batch=" + std::to_string(batch.value);
    auto answer = co_await ask(std::move(question));
    got = answer && answer->status == 200 ? json::parse(as_text(answer->body), nullptr, false) : json();
    if (got.is_object() && got.contains("id") && got["id"].is_number_unsigned()) co_return got["id"].get<uint64_t>();
    // A replica of an earlier version does not know the question.
    const bool may_come = !answer || answer->status == 404;
    if (!may_come || env_.now() >= until)
      co_return Status(Code::kUnavailable, "the replica holds the cut but waits for what must come before it");
    co_await async<bool>([&](Callback<bool> done) {
      env_.after(kAppliedPoll, [done = std::move(done)]() mutable { done(true); });
    });
  }
}

}  // namespace tidemark::fs
