#include "fs/replica_client.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace tidemark::fs {
using nlohmann::json;

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

}  // namespace tidemark::fs
