// SharedNode: the second copy of every image, the name space, tenures and coordinator sequences, served
// over the mirror protocol. One loop thread, no thread of its own; everything outside comes by the Env.
//
//   auto node = SharedNode::open(env, options, std::make_unique<JournalMarks>(...));
//   (*node)->listen(address, tls);
//   ... (*node)->stop([&] { env.stop(); });
//
// What is answered is durable first: names, grants, marks in behind-maps, sizes. After an I/O error of
// the catalogue nothing is answered any more and on_fatal is called: exit, and recover at the next start.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "shared/base/config.h"
#include "shared/base/limits.h"
#include "shared/base/metrics.h"
#include "shared/io/env.h"
#include "shared/net/network.h"
#include "shared/node/marks.h"
#include "shared/state/identity.h"

namespace tidemark::node {

class Core;

struct NodeOptions {
  std::string name;                   // as in the certificate
  Uuid cluster;                       // of the certificates' authority
  std::string state_dir;              // the catalogue is in `catalogue/` below it
  config::Storage storage;
  uint64_t region_bytes = 4ull << 20; // of behind-maps; grows with the image
  std::chrono::milliseconds tenure_wait{5000};   // longest wait for another host's release
  state::RebuildOrder rebuild;        // its hosts: the catalogue was lost, and these report
  uint64_t marks_unshipped_max = limits::kMarksUnshippedMax;
  uint64_t marks_unshipped_bytes_max = limits::kMarksUnshippedBytesMax;
  bool direct = true;
  metrics::Registry* metrics = nullptr;
  std::unique_ptr<net::HttpClient> witness;      // none: only an operator takes a tenure from its holder
  UniqueFunction<void(const Status&)> on_fatal;
};

class SharedNode {
 public:
  // Opens bricks and catalogue. Blocking: start only. kInvalidArgument for what the configuration got wrong.
  static Result<std::unique_ptr<SharedNode>> open(io::Env& env, NodeOptions options, std::unique_ptr<MarkSink> marks);
  ~SharedNode();   // after stop(), or with nothing in flight

  Status listen(const net::Address& address, const net::TlsFiles& tls);
  uint16_t port() const;
  // A host's connection that was accepted elsewhere.
  void accept(std::unique_ptr<net::Stream> stream);
  // Closes connections, finishes what was begun, makes lazily kept times durable.
  void stop(UniqueFunction<void()> done);

  std::string status_json();
  std::string journal_json() const;   // of the time marks' own journal
  // An operator's word that a replica, emptied or replaced, is to be told every name again.
  void resync_replica(Callback<Result<std::string>> done);
  std::vector<std::string> unhealthy_reasons() const;
  // `mirror` is "none" or "sync"; `image` a UUID or a path. The image's JSON, once durable.
  void set_policy(const std::string& image, const std::string& mirror, Callback<Result<std::string>> done);
  // Ends tenures without their holders' word; request and report are the JSON of control-api.md.
  void takeover(const std::string& request, Callback<Result<std::string>> done);

 private:
  explicit SharedNode(std::unique_ptr<Core> core);
  std::unique_ptr<Core> core_;
};

// {"image": UUID or path, "mirror": "none" or "sync"}
struct Policy { std::string image, mirror; };
Result<Policy> parse_policy(std::string_view text);

}  // namespace tidemark::node
