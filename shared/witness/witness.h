// The witness's service: one durable record an image, behind HTTPS. In tidemark-witness, or beside the replica's API.
//
//   POST /v1/witness/IMAGE/EPOCH/GENERATION/register     the shared node's alone
//   POST /v1/witness/IMAGE/EPOCH/GENERATION/outdated     a host's alone: it goes on without the shared copy
//   POST /v1/witness/IMAGE/EPOCH/GENERATION/fenced       the shared node's alone: it moves the tenure
//   GET  /v1/witness/records[/IMAGE]                     the shared node's alone, when it is rebuilt: what is recorded of
//                                                        the images after that one, {"records": [{"image", "epoch",
//                                                        "generation", "verdict"}]}, at most 10,000; none: the end
//
// 200 {"verdict": "undecided" | "outdated" | "fenced", "by": NODE}: what is recorded, durably, whoever asked for it.
// Each 200 ends with "store": a UUID made with the store, so that an empty one in its place is noticed. (Without it while
// a store of an older version has no room for one.)
// 404 not registered, 409 another generation, 403 not this role's to ask. Loop thread only.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "shared/io/env.h"
#include "shared/kv/store.h"
#include "shared/net/network.h"
#include "shared/witness/rules.h"

namespace tidemark::witness {

class Witness {
 public:
  // Blocking: start only. `env` must outlive it.
  static Result<std::unique_ptr<Witness>> open(io::Env& env, const std::string& directory);

  // Whether a request is the witness's to answer.
  static bool is_target(const std::string& target) { return target.starts_with("/v1/witness/"); }
  void handle(net::HttpRequest request, Callback<net::HttpResponse> reply);
  std::string status_json() const;
  // Why it cannot vote; empty: it can.
  std::vector<std::string> health() const;

 private:
  Witness(io::Env& env, std::unique_ptr<kv::Store> store) : env_(env), store_(std::move(store)) {}
  Status name_store();
  void name_later();
  std::string store_text() const;
  void ask(const ImageId& image, const Question& question, Callback<net::HttpResponse> reply);
  net::HttpResponse list(const net::HttpRequest& request, const std::vector<std::string>& parts) const;

  io::Env& env_;
  std::unique_ptr<kv::Store> store_;
  Uuid name_;                          // of the store; nil: it has none yet
  bool naming_ = false;
  std::map<ImageId, Record> records_;
  Status kept_;                        // whether the last record could be made durable
};

}  // namespace tidemark::witness
