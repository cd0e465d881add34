// Both ends of streams on loopback, with what each received.
#pragma once

#include "cluster.h"
#include "raw_client.h"

namespace tidemark::net {

struct End {
  std::unique_ptr<Stream> stream;
  Bytes received;
  std::optional<Status> closed;
  void take(std::unique_ptr<Stream> s) {
    stream = std::move(s);
    stream->start({.on_data = [this](ByteSpan data) { received.insert(received.end(), data.begin(), data.end()); },
                   .on_close = [this](Status reason) { closed = std::move(reason); }});
  }
};

class StreamTest : public NetTest {
 protected:
  // Accepts into `accepted`, started.
  void listen(const TlsFiles& files, std::vector<Role> roles = {Role::kHost}) {
    auto made = network().listen({.address = loopback(), .tls = files, .roles_accepted = std::move(roles)},
                                 [this](std::unique_ptr<Stream> s) {
                                   accepted.push_back(std::make_unique<End>());
                                   accepted.back()->take(std::move(s));
                                 });
    ASSERT_TRUE(made.is_ok()) << made.status().to_string();
    listener = std::move(made).value();
  }
  Network::ConnectOptions to_listener(const TlsFiles& files) {
    return {.address = loopback(listener->port()), .tls = files, .peer_role = Role::kShared, .peer_node = "shared1",
            .timeout = std::chrono::seconds(10)};
  }
  // Connects and starts the stream into `end`; the failure otherwise.
  Status connect(const Network::ConnectOptions& options, End& end) {
    std::optional<Status> result;
    network().connect(options, [&](Result<std::unique_ptr<Stream>> s) {
      result = s.status();
      if (s) end.take(std::move(s).value());
    });
    if (!wait_for([&] { return result.has_value(); })) return Status(Code::kCancelled, "connect never answered");
    return *result;
  }

  TlsFiles host = cluster.node("host1", Role::kHost);
  TlsFiles shared = cluster.node("shared1", Role::kShared);
  std::unique_ptr<Listener> listener;
  std::vector<std::unique_ptr<End>> accepted;
};

}  // namespace tidemark::net
