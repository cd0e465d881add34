// Writes and syncs that the shared node's brick refuses, and what a host says of its copies afterwards.
#pragma once

#include <optional>
#include <string>

#include "tests/unit/node/fixture.h"

namespace tidemark::node {

class RefusedWrites : public NodeTest {
 protected:
  static constexpr uint64_t kImageBytes = 1u << 20;   // of each image here

  bool outdated() { return node_->status_json().find("\"outdated\":true") != std::string::npos; }
  LossId group_loss() {
    const std::string status = node_->status_json(), key = "\"loss_id\":";
    return LossId(std::stoull(status.substr(status.find(key) + key.size())));
  }
  void refuse_next_write() {
    world_.inject("shared", sim::FileFault{.operations = static_cast<uint16_t>(sim::FileOp::kWrite),
                                           .path_contains = "objects"});
  }
  void fail_next_sync() {
    world_.inject("shared", sim::FileFault{.operations = static_cast<uint16_t>(sim::FileOp::kSync),
                                           .path_contains = "objects"});
  }
  Status resume(HostClient& h, const Held& held, uint8_t alone) {
    const wire::Resume say{held.image, held.epoch, kImageBytes, Generation(1), alone};
    return h.ask<wire::Resumed>(wire::Type::kResume, say).status();
  }
  // It says so, and is believed.
  bool made_equal(HostClient& h, const Held& held) {
    return resume(h, held, 2).is_ok() && resume(h, held, 0).is_ok() && !outdated();
  }
  Status flush(HostClient& h, const Held& held) {
    return h.ask<wire::Flushed>(wire::Type::kFlush, wire::Flush{held.image, held.epoch}).status();
  }
  // Takes the image from its holder by force, without the second word that a copy known to lack something takes.
  Code take(const std::string& path) {
    std::optional<Status> said;
    node_->takeover(R"({"images":[")" + path + R"("],"force":true})",
                    [&](Result<std::string> report) { said = report.status(); });
    EXPECT_TRUE(world_.run_until([&] { return said.has_value(); }, std::chrono::seconds(20)));
    return said ? said->code() : Code::kCancelled;
  }
};

}  // namespace tidemark::node
