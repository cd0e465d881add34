#include "shared/net/name_lookups.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>

#include <cstring>
#include <system_error>
#include <utility>

#include "shared/base/log.h"

namespace tidemark::net {
namespace {

const log::Logger kLog("net.names");
constexpr auto kPatience = std::chrono::seconds(1);

Result<std::vector<SocketAddress>> ask(const Address& address, int flags) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* list = nullptr;
  int error = ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &list);
  if (error != 0) return Status(Code::kUnavailable, "name " + address.host + ": " + gai_strerror(error));
  std::vector<SocketAddress> out;
  for (addrinfo* item = list; item != nullptr; item = item->ai_next) {
    if (item->ai_family != AF_INET && item->ai_family != AF_INET6) continue;
    SocketAddress found;
    std::memcpy(&found.storage, item->ai_addr, item->ai_addrlen);
    found.size = item->ai_addrlen;
    out.push_back(found);
  }
  ::freeaddrinfo(list);
  if (out.empty()) return Status(Code::kUnavailable, "name " + address.host + " has no address");
  return out;
}

}  // namespace

std::string SocketAddress::to_string() const {
  char host[INET6_ADDRSTRLEN] = "?";
  if (storage.ss_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(&storage);
    inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host);
    return Address{host, ntohs(v4->sin_port)}.to_string();
  }
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&storage);
  inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof host);
  return Address{host, ntohs(v6->sin6_port)}.to_string();
}

Result<std::vector<SocketAddress>> parse_numeric(const Address& address) { return ask(address, AI_NUMERICHOST); }

Result<std::vector<SocketAddress>> look_up(const Address& address) { return ask(address, 0); }

NameLookups::~NameLookups() {
  for (auto& [key, name] : names_)
    if (name.thread.joinable()) name.thread.join();
}

void NameLookups::find(const Address& address, std::weak_ptr<const void> asker, UniqueFunction<void(Found)> done) {
  const std::string key = address.to_string();
  Name& name = names_[key];
  name.address = address;
  std::erase_if(name.waiting, [](const Waiting& w) { return w.asker.expired(); });
  name.waiting.push_back({std::move(asker), std::move(done)});
  if (!name.last.empty()) {
    env_.after(kPatience, [weak = weak_from_this(), key] {
      if (auto self = weak.lock()) tell(self->names_[key], self->names_[key].last);
    });
  }
  if (!name.running) begin(name, key);
}

void NameLookups::begin(Name& name, const std::string& key) {
  if (name.thread.joinable()) name.thread.join();   // its last word was over()
  name.running = true;
  // The thread never owns this: it would be joined by itself.
  auto answer = [&env = env_, weak = weak_from_this(), key](Found found) {
    env.post([weak, key, found = std::move(found)] {
      if (auto self = weak.lock()) self->over(key, found);
    });
  };
  try {
    name.thread = std::thread([answer, address = name.address, look_up = look_up_] { answer(look_up(address)); });
  } catch (const std::system_error& e) {
    answer(Status(Code::kUnavailable, "name " + name.address.host + ": no thread to look it up: " + e.what()));
  }
}

void NameLookups::over(const std::string& key, const Found& found) {
  Name& name = names_[key];
  name.running = false;
  if (found) {
    name.failed = false;
    name.last = *found;
  } else if (!name.last.empty() && !std::exchange(name.failed, true)) {
    kLog.warning("name_not_found", {{"address", key}, {"reason", found.status()}, {"kept", "what was found last"}});
  }
  tell(name, found || name.last.empty() ? found : Found(name.last));
}

// Whoever is told may ask again.
void NameLookups::tell(Name& name, const Found& found) {
  const Found copy = found;
  for (Waiting& waiting : std::exchange(name.waiting, {}))
    if (auto asker = waiting.asker.lock()) waiting.done(copy);
}

}  // namespace tidemark::net
