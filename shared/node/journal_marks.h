// JournalMarks: the shared node's stream of time marks as a journal of its own, shipped to the replica
// like a host's. It holds no blocks.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "shared/base/config.h"
#include "shared/io/env.h"
#include "shared/node/marks.h"

namespace tidemark::journal { class BlockSource; class Journal; }

namespace tidemark::node {

struct JournalMarksOptions {
  std::string directory;
  std::string source;                          // this node's name
  Uuid cluster;
  config::Journal settings;
  std::vector<std::string> reserve_directories;   // see journal::Options
  std::unique_ptr<net::HttpClient> replica;    // null: kept here only
};

class JournalMarks final : public MarkSink {
 public:
  static Result<std::unique_ptr<MarkSink>> open(io::Env& env, JournalMarksOptions options);
  ~JournalMarks() override;
  void record(const wire::Mark& mark) override;
  void forget(const ImageId& image) override;
  void settle(Callback<Status> done) override;
  Usage usage() const override;
  void resync_replica(Callback<Status> done) override;
  void stop(UniqueFunction<void()> done) override;

 private:
  JournalMarks();
  std::unique_ptr<journal::BlockSource> blocks_;   // constant after opening; outlives the journal
  std::unique_ptr<journal::Journal> journal_;
  bool replica_ = false;
};

}  // namespace tidemark::node
