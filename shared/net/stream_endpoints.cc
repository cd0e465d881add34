#include "shared/net/stream_endpoints.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "shared/base/limits.h"
#include "shared/base/log.h"

namespace tidemark::net {
namespace {

const log::Logger kLog("tls");
constexpr int kAcceptsPerTurn = 32;
constexpr auto kAcceptRest = std::chrono::milliseconds(200);
constexpr auto kAttemptMin = std::chrono::seconds(1);   // an address on a long link answers in less

// A peer without TCP_NODELAY makes a few hundred writes a second. The keep-alive finds a dead
// machine behind an idle link in 25 s.
void set_connection_options(int fd) {
  auto set = [fd](int level, int option, int value) {
    if (::setsockopt(fd, level, option, &value, sizeof value) != 0) {
      kLog.warning("socket_option_failed", {{"option", option}, {"reason", std::strerror(errno)}});
    }
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
}

Status remove_stale_socket(const std::string& path, const sockaddr_un& name) {
  struct stat st{};
  if (::lstat(path.c_str(), &st) != 0) return Status::ok();
  if (!S_ISSOCK(st.st_mode)) return Status(Code::kAlreadyExists, path + " exists and is no socket");
  int probe = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  bool alive = probe >= 0 && ::connect(probe, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0;
  if (probe >= 0) ::close(probe);
  if (alive) return Status(Code::kBusy, "another process serves " + path);
  if (::unlink(path.c_str()) != 0) return Status::from_errno(errno, path);
  return Status::ok();
}

}  // namespace

Result<ListeningSocket> listen_on(const Address& address) {
  auto found = parse_numeric(address);
  if (!found) {
    return Status(Code::kInvalidArgument, "cannot listen on " + address.to_string() + ": write a numeric address");
  }
  const SocketAddress& numeric = found->front();
  int fd = ::socket(numeric.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return Status::from_errno(errno, "socket");
  int on = 1;
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);  // restart although old connections linger
  SocketAddress bound;
  bound.size = sizeof bound.storage;
  if (::bind(fd, numeric.get(), numeric.size) != 0 || ::listen(fd, 1024) != 0 ||
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&bound.storage), &bound.size) != 0) {
    int error = errno;
    ::close(fd);
    std::string remedy = error == EADDRINUSE ? " (another process has the port: stop it or choose another)"
                         : error == EADDRNOTAVAIL ? " (this machine has no such address)" : "";
    return Status::from_errno(error, "cannot listen on " + address.to_string() + remedy);
  }
  std::string text = bound.to_string();
  auto port = static_cast<uint16_t>(std::stoi(text.substr(text.rfind(':') + 1)));
  return ListeningSocket{fd, port};
}

Result<int> listen_on_path(const std::string& path) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof name.sun_path) {
    return Status(Code::kInvalidArgument, "socket path " + path + " is longer than " +
                                              std::to_string(sizeof name.sun_path - 1) +
                                              " bytes; choose a shorter one");
  }
  std::memcpy(name.sun_path, path.data(), path.size());
  TM_RETURN_IF_ERROR(remove_stale_socket(path, name));
  int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return Status::from_errno(errno, "socket");
  // Private before it listens: nobody can have connected in between.
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name) != 0 || ::chmod(path.c_str(), 0600) != 0 ||
      ::listen(fd, 128) != 0) {
    int error = errno;
    ::close(fd);
    return Status::from_errno(error, "socket " + path);
  }
  return fd;
}

TlsListener::TlsListener(std::shared_ptr<StreamLoop> loop, const Network::ListenOptions& options, Accept on_accept)
    : loop_(std::move(loop)), options_(options), on_accept_(std::make_shared<Accept>(std::move(on_accept))) {}

Result<std::unique_ptr<TlsListener>> TlsListener::open(std::shared_ptr<StreamLoop> loop,
                                                       const Network::ListenOptions& options, Accept on_accept) {
  auto context = loop->contexts.get(options.tls, loop->env.wall());
  if (!context) return context.status();
  std::unique_ptr<TlsListener> out(new TlsListener(std::move(loop), options, std::move(on_accept)));
  TM_ASSIGN_OR_RETURN(out->socket_, listen_on(options.address));
  TM_RETURN_IF_ERROR(
      out->loop_->poller.add_fd(out->socket_.fd, EPOLLIN, [self = out.get()](uint32_t) { self->accept_ready(); }));
  return out;
}

TlsListener::~TlsListener() {
  loop_->env.cancel(resume_);
  for (auto& [number, pending] : pending_) loop_->env.cancel(pending.timer);
  if (socket_.fd < 0) return;
  loop_->poller.remove_fd(socket_.fd);
  ::close(socket_.fd);
}

void TlsListener::accept_ready() {
  for (int i = 0; i < kAcceptsPerTurn; ++i) {
    SocketAddress from;
    from.size = sizeof from.storage;
    int fd =
        ::accept4(socket_.fd, reinterpret_cast<sockaddr*>(&from.storage), &from.size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      begin_handshake(fd, from.to_string());
      continue;
    }
    if (errno == EAGAIN) return;
    if (errno == EINTR || errno == ECONNABORTED) continue;
    kLog.warning("accept_failed", {{"port", port()}, {"reason", std::strerror(errno)}});
    // Out of descriptors: the waiting connection would wake the loop for ever.
    if (Status status = loop_->poller.modify_fd(socket_.fd, 0); !status)
      kLog.error("poller_failed", {{"reason", status}});
    resume_ = loop_->env.after(kAcceptRest, [this] {
      if (Status status = loop_->poller.modify_fd(socket_.fd, EPOLLIN); !status)
        kLog.error("poller_failed", {{"reason", status}});
    });
    return;
  }
}

void TlsListener::begin_handshake(int fd, const std::string& address) {
  set_connection_options(fd);
  auto context = loop_->contexts.get(options_.tls, loop_->env.wall());
  if (!context || pending_.size() >= limits::kHandshakesMax) {
    kLog.warning(
        "connection_refused",
        {{"peer", address}, {"reason", context ? "too many handshakes at once" : context.status().to_string()}});
    ::close(fd);
    return;
  }
  uint64_t number = ++next_;
  Pending& pending = pending_[number];
  pending.stream = std::make_unique<TlsStream>(loop_, fd, TlsStream::Side::kServer, address);
  pending.timer = loop_->env.after(std::chrono::seconds(limits::kHandshakeSecondsMax), [this, number, address] {
    kLog.warning("handshake_refused", {{"peer", address}, {"reason", "not finished in time"}});
    pending_.erase(number);
  });
  PeerCheck check;
  check.roles = options_.roles_accepted;
  Status begun = pending.stream->begin(**context, std::move(check),
                                       [this, number](Status status) { handshake_over(number, status); });
  if (begun.is_ok()) return;
  kLog.warning("connection_refused", {{"peer", address}, {"reason", begun}});
  handshake_over(number, begun);
}

void TlsListener::handshake_over(uint64_t number, const Status& status) {
  auto found = pending_.find(number);
  std::unique_ptr<TlsStream> stream = std::move(found->second.stream);
  loop_->env.cancel(found->second.timer);
  pending_.erase(found);
  if (!status) return;
  auto keep = on_accept_;
  (*keep)(std::move(stream));  // may destroy the listener
}

Connector::Connector(std::shared_ptr<StreamLoop> loop, const Network::ConnectOptions& options, Done done)
    : loop_(std::move(loop)), options_(options), done_(std::move(done)) {}

Connector::~Connector() {
  loop_->env.cancel(timer_);
  loop_->env.cancel(attempt_timer_);
}

void Connector::begin() {
  timer_ = loop_->env.after(options_.timeout, [this] {
    finish(Status(Code::kUnavailable, "no answer within " + std::to_string(options_.timeout.count()) + " ms"));
  });
  end_ = loop_->env.now() + options_.timeout;
  if (auto numeric = parse_numeric(options_.address)) {
    // Not inline: the caller is not prepared for its callback before connect() returned.
    loop_->env.post([weak = weak_from_this(), found = std::move(numeric)]() mutable {
      if (auto self = weak.lock()) self->resolved(std::move(found));
    });
    return;
  }
  loop_->names->find(options_.address, weak_from_this(),
                     [this](NameLookups::Found found) { resolved(std::move(found)); });
}

void Connector::resolved(Result<std::vector<SocketAddress>> addresses) {
  if (!done_) return;
  if (!addresses) return finish(addresses.status());
  addresses_ = std::move(addresses).value();
  try_next(Status(Code::kUnavailable, "no address"));
}

void Connector::try_next(Status last) {
  loop_->env.cancel(std::exchange(attempt_timer_, {}));
  while (tried_ < addresses_.size()) {
    last = attempt(addresses_[tried_++]);
    if (last.is_ok()) return leave_time_for_others();
  }
  finish(std::move(last));
}

// An address may swallow all that is sent to it.
void Connector::leave_time_for_others() {
  const size_t others = addresses_.size() - tried_;
  if (others == 0) return;
  const io::Duration share = (end_ - loop_->env.now()) / static_cast<int64_t>(others + 1);
  attempt_timer_ = loop_->env.after(std::max<io::Duration>(share, kAttemptMin), [this] {
    stream_.reset();
    try_next(Status(Code::kUnavailable, "no answer"));
  });
}

Status Connector::attempt(const SocketAddress& address) {
  TM_ASSIGN_OR_RETURN(auto context, loop_->contexts.get(options_.tls, loop_->env.wall()));
  int fd = ::socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return Status::from_errno(errno, "socket");
  set_connection_options(fd);
  if (::connect(fd, address.get(), address.size) != 0 && errno != EINPROGRESS) {
    Status status(Code::kUnavailable, std::strerror(errno));
    ::close(fd);
    return status;
  }
  stream_ = std::make_unique<TlsStream>(loop_, fd, TlsStream::Side::kClient, address.to_string());
  PeerCheck check;
  check.roles = {options_.peer_role};
  check.node = options_.peer_node;
  return stream_->begin(*context, std::move(check), [this](Status status) {
    std::unique_ptr<TlsStream> stream = std::move(stream_);
    if (status.is_ok()) return finish(std::unique_ptr<Stream>(std::move(stream)));
    // A refused certificate is an answer; the other addresses are those of the same node.
    if (status.code() == Code::kPermission) return finish(std::move(status));
    try_next(std::move(status));
  });
}

void Connector::finish(Result<std::unique_ptr<Stream>> result) {
  if (!done_) return;
  loop_->env.cancel(timer_);
  loop_->env.cancel(attempt_timer_);
  stream_.reset();
  Done done = std::move(done_);
  if (!result) return done(result.status().with_context("connect to " + options_.address.to_string()));
  done(std::move(result));  // may let go of this
}

}  // namespace tidemark::net
