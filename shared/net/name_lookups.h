// Addresses of nodes. A look-up of a name blocks, for up to a minute where no name server answers: each name has one
// at a time, on a thread of its own, so that nothing else waits behind it, and none begins before the last has ended.
// What was found last is kept: while the name server is away, a node is still met where it was.
//
// Bounded by the names in the configuration, and by who waits: an asker that is gone is forgotten. Loop thread only,
// but for the look-ups.
#pragma once

#include <sys/socket.h>

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "shared/io/env.h"
#include "shared/net/network.h"

namespace tidemark::net {

// A numeric socket address.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  std::string to_string() const;
};
// Never blocks; kUnavailable if `address.host` is a name.
Result<std::vector<SocketAddress>> parse_numeric(const Address& address);
// Blocks.
Result<std::vector<SocketAddress>> look_up(const Address& address);

class NameLookups : public std::enable_shared_from_this<NameLookups> {
 public:
  using Found = Result<std::vector<SocketAddress>>;
  using LookUp = Found (*)(const Address&);
  explicit NameLookups(io::Env& env, LookUp look_up = net::look_up) : env_(env), look_up_(look_up) {}
  ~NameLookups();   // waits for the look-ups under way

  // `done` is told once, from the loop, unless `asker` is gone by then: what is found, or what was found last if that
  // fails or takes longer than a second.
  void find(const Address& address, std::weak_ptr<const void> asker, UniqueFunction<void(Found)> done);

 private:
  struct Waiting {
    std::weak_ptr<const void> asker;
    UniqueFunction<void(Found)> done;
  };
  struct Name {
    Address address;
    std::thread thread;
    bool running = false;              // until over()
    bool failed = false;               // the last one: warned once
    std::vector<SocketAddress> last;   // of the last that did not fail
    std::vector<Waiting> waiting;
  };
  void begin(Name& name, const std::string& key);
  void over(const std::string& key, const Found& found);
  static void tell(Name& name, const Found& found);

  io::Env& env_;
  const LookUp look_up_;
  std::map<std::string, Name> names_;
};

}  // namespace tidemark::net
