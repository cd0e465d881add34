// A byte stream whose other end is the test: what was sent is kept, what arrives is said.
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "shared/net/network.h"

namespace tidemark::wire {

class FakeStream final : public net::Stream {
 public:
  // What outlives the stream, for the test to look at.
  struct Wire {
    FakeStream* stream = nullptr;
    Bytes sent;
    std::optional<Status> closed;
    int flushes = 0;
  };
  explicit FakeStream(std::shared_ptr<Wire> wire, std::string node = "peer") : wire_(std::move(wire)) {
    wire_->stream = this;
    peer_.role = net::Role::kHost;
    peer_.node = std::move(node);
  }
  ~FakeStream() override { wire_->stream = nullptr; }
  void start(Handlers handlers) override { handlers_ = std::move(handlers); }
  void send(ByteSpan head, ByteSpan payload) override {
    wire_->sent.insert(wire_->sent.end(), head.begin(), head.end());
    wire_->sent.insert(wire_->sent.end(), payload.begin(), payload.end());
  }
  void flush() override { ++wire_->flushes; }
  size_t unsent_bytes() const override { return 0; }
  void close(Status reason) override { wire_->closed = std::move(reason); }
  const net::PeerIdentity& peer() const override { return peer_; }

  void arrive(ByteSpan bytes) { handlers_.on_data(bytes); }
  void end(Status reason) { handlers_.on_close(std::move(reason)); }

 private:
  std::shared_ptr<Wire> wire_;  // shared with the test
  net::PeerIdentity peer_;
  Handlers handlers_;
};

}  // namespace tidemark::wire
