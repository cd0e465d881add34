// Questions to the replica about the points that it shows, and its word of what has arrived there. Shipping is the
// journal's. Loop thread only; there is none on a host without a replica.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "journal/journal.h"
#include "shared/base/digest.h"
#include "shared/base/task.h"
#include "shared/io/env.h"
#include "shared/net/network.h"

namespace tidemark::fs {

// A cut's receipt, kept as it comes: the journal remembers those of the newest few batches alone.
struct Receipt {
  BatchNumber batch;
  std::optional<std::string> text;   // JSON; none: it has not come
};

class ReplicaClient {
 public:
  // What is given must outlive the questions under way.
  ReplicaClient(io::Env& env, journal::Journal& journal, std::unique_ptr<net::HttpClient> client)
      : env_(env), journal_(journal), client_(std::move(client)) {}

  Task<Result<net::HttpResponse>> ask(net::HttpRequest ask);
  // The replica's receipt of a cut (JSON), unless it takes longer: kUnavailable.
  Task<Result<std::string>> wait_shipped(BatchNumber batch, io::Duration limit);
  // The same for what begins with the cut, and wants the receipt long after it.
  std::shared_ptr<const Receipt> keep_receipt(BatchNumber batch);
  Task<Result<std::string>> wait_shipped(std::shared_ptr<const Receipt> receipt, io::Duration limit);
  // The point that was made of a cut that is there. One that was held as it was taken is asked about until then:
  // kUnavailable.
  Task<Result<uint64_t>> wait_applied(BatchNumber batch, std::string receipt, io::BootTime until);

 private:
  io::Env& env_;
  journal::Journal& journal_;
  std::unique_ptr<net::HttpClient> client_;
};

// Asks the replica for digests of a range, one for each `unit` bytes, under a key that it cannot have known before.
net::HttpRequest digests_request(const std::string& target, Extent range, uint32_t unit, const DigestKey& key);
std::string hex_of(const Digest128& digest);

}  // namespace tidemark::fs
