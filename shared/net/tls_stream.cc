#include "shared/net/tls_stream.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/net/name_lookups.h"
#include "shared/net/openssl_handles.h"

namespace tidemark::net {
namespace {

const log::Logger kLog("tls");
constexpr size_t kRecordBytes = 16384;       // plaintext of a TLS record, at most
constexpr size_t kEagerSendBytes = 64u << 10;   // lets the peer begin before the turn's end, and stays in cache
// A peer that much is unsent to is given up once it has taken nothing for so long. One that is merely slower than its
// senders is not, up to the second bound: all requests that may be under way are fewer, but answers and notices are not
// counted.
constexpr auto kTakesNothingMax = std::chrono::seconds(2);
constexpr uint64_t kUnsentMax = limits::kPeerPayloadBytesMax + 2 * limits::kStreamUnsentBytesMax;
static_assert(kUnsentMax > uint64_t{limits::kRequestsInFlightMax} * limits::kFramePayloadBytesMax);
constexpr size_t kKeptCapacity = 1u << 20;

SSL* as_ssl(void* p) { return static_cast<SSL*>(p); }

}  // namespace

// The BIO between OpenSSL and a stream's buffers. Reading past what has arrived says "retry".
struct StreamBio {
  static BIO_METHOD* method() {
    static BIO_METHOD* const shared = [] {
      BIO_METHOD* m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "tidemark stream");
      BIO_meth_set_write(m, write);
      BIO_meth_set_read(m, read);
      BIO_meth_set_ctrl(m, control);
      return m;
    }();
    return shared;
  }
  static TlsStream& stream_of(BIO* bio) { return *static_cast<TlsStream*>(BIO_get_data(bio)); }
  static int write(BIO* bio, const char* data, int size) {
    stream_of(bio).out_.append(data, static_cast<size_t>(size));
    return size;
  }
  static int read(BIO* bio, char* data, int size) {
    ByteSpan& in = stream_of(bio).incoming_;
    BIO_clear_retry_flags(bio);
    if (in.empty()) {
      BIO_set_retry_read(bio);
      return -1;
    }
    size_t n = std::min(in.size(), static_cast<size_t>(size));
    std::memcpy(data, in.data(), n);
    in = in.subspan(n);
    return static_cast<int>(n);
  }
  static long control(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }
};

OutBuffer::~OutBuffer() { std::free(data_); }

void OutBuffer::append(const void* data, size_t size) {
  if (capacity_ - end_ < size) {
    const size_t unsent = end_ - begin_;
    uint8_t* to = data_;
    // Moved only where as much is gone; else it would be moved again with every few bytes that go.
    if (begin_ < unsent || capacity_ - unsent < size) {
      capacity_ = std::max({begin_ == 0 ? 2 * capacity_ : 2 * (unsent + size), unsent + size, size_t{64} << 10});
      to = static_cast<uint8_t*>(std::malloc(capacity_));
      TM_CHECK(to != nullptr, "out of memory");
    }
    if (unsent > 0) std::memmove(to, data_ + begin_, unsent);
    if (to != data_) std::free(std::exchange(data_, to));
    begin_ = 0;
    end_ = unsent;
  }
  std::memcpy(data_ + end_, data, size);
  end_ += size;
}

void OutBuffer::consume(size_t size) {
  begin_ += size;
  if (begin_ < end_) return;
  begin_ = end_ = 0;
  if (capacity_ > kKeptCapacity) {  // a burst's memory is given back
    std::free(data_);
    data_ = nullptr;
    capacity_ = 0;
  }
}

StreamLoop::StreamLoop(io::Env& e, io::Poller& p)
    : env(e), poller(p), names(std::make_shared<NameLookups>(e)),
      records_per_key(limits::kTlsRecordsPerKey), received(limits::kStreamReadBytes),
      decrypted(limits::kStreamReadBytes + 2 * kRecordBytes) {}

void StreamLoop::flush_at_turn_end(TlsStream& stream) {
  dirty_.push_back(&stream);
  if (scheduled_) return;
  scheduled_ = true;
  env.at_turn_end([self = shared_from_this()] { self->flush_all(); });
}

void StreamLoop::flush_all() {
  scheduled_ = false;
  // By index: a flush may close a stream, whose owner sends on another.
  for (size_t i = 0; i < dirty_.size(); ++i) {
    if (TlsStream* stream = dirty_[i]) stream->flush();
  }
  dirty_.clear();
}

void StreamLoop::forget(TlsStream& stream) {
  std::replace(dirty_.begin(), dirty_.end(), &stream, static_cast<TlsStream*>(nullptr));
}

void StreamLoop::watch(TlsStream& stream) {
  open_.insert(&stream);
  if (std::exchange(looking_, true)) return;
  look_for_revoked();
}

// The files are looked at beside the loop: their disk may hang.
void StreamLoop::look_for_revoked() {
  env.after(std::chrono::seconds(kRevocationCheckSeconds), [weak = weak_from_this()] {
    auto self = weak.lock();
    if (!self) return;
    self->looking_ = !self->open_.empty();
    if (!self->looking_) return;
    std::map<std::string, TlsFiles> files;
    for (TlsStream* stream : self->open_) files.emplace(stream->files_.certificate, stream->files_);
    using Contexts = std::vector<std::shared_ptr<const TlsContext>>;
    auto contexts = std::make_shared<Contexts>();   // shared by worker and loop in turn
    auto look = [self, contexts, files = std::move(files), now = self->env.wall()] {
      for (const auto& [name, one] : files) {
        auto context = self->contexts.get(one, now);
        if (context) contexts->push_back(std::move(*context));
      }
    };
    self->env.offload(std::move(look), [weak, contexts] {
      auto loop = weak.lock();
      if (!loop) return;
      loop->close_revoked(*contexts);
      loop->look_for_revoked();
    });
  });
}

void StreamLoop::close_revoked(const std::vector<std::shared_ptr<const TlsContext>>& contexts) {
  std::vector<TlsStream*> found;
  for (TlsStream* stream : open_) {
    for (const auto& context : contexts) {
      bool same = context->files().certificate == stream->files_.certificate;
      if (same && context->is_revoked(stream->check_.serial)) found.push_back(stream);
    }
  }
  // Closing tells nobody at once: none of these goes meanwhile.
  for (TlsStream* stream : found) {
    stream->finish_later(Status(Code::kPermission, "certificate of " + stream->check_.peer.node + " was revoked"));
  }
}

TlsStream::TlsStream(std::shared_ptr<StreamLoop> loop, int fd, Side side, std::string address)
    : loop_(std::move(loop)), fd_(fd), side_(side), address_(std::move(address)),
      state_(side == Side::kClient ? State::kConnecting : State::kHandshaking),
      self_(std::make_shared<TlsStream*>(this)), plain_(new uint8_t[kRecordBytes]) {}

TlsStream::~TlsStream() {
  if (dirty_) loop_->forget(*this);
  release_socket();
  SSL_free(as_ssl(ssl_));
}

Status TlsStream::begin(const TlsContext& context, PeerCheck check, Ready ready) {
  check_ = std::move(check);
  check_.cluster = context.cluster();
  check_.revoked = context.revoked();
  files_ = context.files();
  check_.now = loop_->env.wall();
  taken_ = loop_->env.now();
  SSL* ssl = SSL_new(context.native());
  ssl_ = ssl;
  BIO* bio = BIO_new(StreamBio::method());
  if (ssl == nullptr || bio == nullptr) return Status(Code::kIoError, "TLS: " + take_openssl_error());
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl, bio, bio);
  attach_check(ssl, &check_);
  if (side_ == Side::kServer) SSL_set_accept_state(ssl);
  else SSL_set_connect_state(ssl);
  ready_ = std::move(ready);
  interest_ = state_ == State::kConnecting ? EPOLLOUT : EPOLLIN;
  return loop_->poller.add_fd(fd_, interest_, [this](uint32_t events) { on_ready(events); });
}

void TlsStream::on_ready(uint32_t events) {
  auto alive = std::weak_ptr(self_);
  if (state_ == State::kConnecting) {
    if (Status status = finish_connecting(); !status) return handshake_done(std::move(status));
    state_ = State::kHandshaking;
    return step_handshake();
  }
  if (state_ == State::kHandshaking) return step_handshake();
  if (state_ == State::kOpen && (events & EPOLLOUT) != 0) write_socket();
  if (alive.expired() || state_ != State::kOpen) return;
  if (reading_ && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) return read_socket();
  // Nobody listens yet, and the kernel would report this for ever.
  if (!reading_ && (events & (EPOLLHUP | EPOLLERR)) != 0) finish_later(Status(Code::kUnavailable, "connection lost"));
}

Status TlsStream::finish_connecting() {
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
  if (error == 0) return Status::ok();
  return Status(Code::kUnavailable, std::strerror(error));
}

void TlsStream::step_handshake() {
  SSL* ssl = as_ssl(ssl_);
  ssize_t n = ::recv(fd_, loop_->received.data(), loop_->received.size(), MSG_DONTWAIT);
  if (n == 0) return handshake_done(Status(Code::kUnavailable, "the peer closed the connection during the handshake"));
  if (n < 0 && errno != EAGAIN && errno != EINTR) {
    return handshake_done(Status(Code::kUnavailable, std::string("handshake: ") + std::strerror(errno)));
  }
  incoming_ = {loop_->received.data(), n > 0 ? static_cast<size_t>(n) : 0};
  ERR_clear_error();
  int result = SSL_do_handshake(ssl);
  Status failure;
  if (result != 1 && SSL_get_error(ssl, result) != SSL_ERROR_WANT_READ) failure = describe_tls_failure(&check_);
  write_socket();  // on failure, the alert that tells the peer why
  if (state_ == State::kClosed) return;  // write_socket has ended it
  if (!failure) return handshake_done(std::move(failure));
  if (result != 1) return update_interest();
  state_ = State::kOpen;
  handshake_done(hold_early_data());
}

// Bytes that came in the same piece as the end of the handshake must leave the shared buffer.
Status TlsStream::hold_early_data() {
  SSL* ssl = as_ssl(ssl_);
  uint8_t piece[kRecordBytes];
  size_t got = 0;
  int result = 0;
  ERR_clear_error();
  while ((result = SSL_read_ex(ssl, piece, sizeof piece, &got)) == 1) early_.insert(early_.end(), piece, piece + got);
  if (SSL_get_error(ssl, result) == SSL_ERROR_WANT_READ) return Status::ok();
  return describe_tls_failure(&check_);
}

void TlsStream::handshake_done(Status status) {
  if (!status) {
    if (status.code() == Code::kPermission || side_ == Side::kServer) {
      kLog.warning("handshake_refused", {{"peer", address_}, {"reason", status.message()}});
    }
    state_ = State::kClosed;
    release_socket();
  } else {
    loop_->watch(*this);
    update_interest();
  }
  Ready ready = std::move(ready_);
  if (ready) ready(std::move(status));  // may destroy this
}

void TlsStream::start(Handlers handlers) {
  TM_CHECK(!started_, "a stream is started once");
  started_ = true;
  handlers_ = std::make_shared<Handlers>(std::move(handlers));
  if (early_.empty() && !closed_reason_) {
    reading_ = true;
    return update_interest();
  }
  loop_->env.post([weak = std::weak_ptr(self_)] {
    auto self = weak.lock();
    if (!self) return;
    TlsStream& stream = **self;
    self.reset();
    Bytes early = std::move(stream.early_);
    if (!early.empty()) {
      auto keep = stream.handlers_;
      keep->on_data(early);
      if (weak.expired()) return;
    }
    if (stream.closed_reason_) return stream.tell_closed(*stream.closed_reason_);
    if (stream.state_ != State::kOpen) return;
    stream.reading_ = true;
    stream.update_interest();
  });
}

void TlsStream::read_socket() {
  SSL* ssl = as_ssl(ssl_);
  Bytes& plain = loop_->decrypted;
  ssize_t n = ::recv(fd_, loop_->received.data(), loop_->received.size(), MSG_DONTWAIT);
  if (n == 0) return finish(Status(Code::kUnavailable, "the peer closed the connection"));
  if (n < 0) {
    if (errno == EAGAIN || errno == EINTR) return;
    return finish(Status(Code::kUnavailable, std::string("connection lost: ") + std::strerror(errno)));
  }
  incoming_ = {loop_->received.data(), static_cast<size_t>(n)};
  ERR_clear_error();
  size_t have = 0, got = 0;
  int result = 0;
  while ((result = SSL_read_ex(ssl, plain.data() + have, plain.size() - have, &got)) == 1) {
    have += got;
    if (plain.size() - have >= kRecordBytes) continue;
    if (!deliver(have)) return;
    have = 0;
  }
  int error = SSL_get_error(ssl, result);
  Status failure;
  if (error == SSL_ERROR_ZERO_RETURN) failure = Status(Code::kUnavailable, "the peer closed the connection");
  else if (error != SSL_ERROR_WANT_READ) failure = describe_tls_failure(&check_);
  if (out_.size() > 0 && !blocked_) write_socket();  // answers of the protocol itself, as to a key update
  if (have > 0 && !deliver(have)) return;
  if (!failure) finish(std::move(failure));
}

bool TlsStream::deliver(size_t size) {
  auto alive = std::weak_ptr(self_);
  auto keep = handlers_;
  keep->on_data(ByteSpan(loop_->decrypted.data(), size));
  return !alive.expired() && state_ == State::kOpen;
}

void TlsStream::send(ByteSpan head, ByteSpan payload) {
  if (state_ != State::kOpen) return;
  append(head);
  append(payload);
  if (out_.size() >= kEagerSendBytes && !blocked_) write_socket();
  if (state_ != State::kOpen) return;
  if (unsent_bytes() > 2 * limits::kStreamUnsentBytesMax &&
      (loop_->env.now() - taken_ > kTakesNothingMax || unsent_bytes() > kUnsentMax)) {
    write_socket();   // this end itself may have stood still
    if (state_ != State::kOpen) return;
    if (loop_->env.now() - taken_ > kTakesNothingMax || unsent_bytes() > kUnsentMax) {
      return finish_later(
          Status(Code::kUnavailable, "the peer does not read: " + std::to_string(unsent_bytes()) + " bytes unsent"));
    }
  }
  if (!dirty_) {
    dirty_ = true;
    loop_->flush_at_turn_end(*this);
  }
}

void TlsStream::append(ByteSpan data) {
  while (!data.empty()) {
    if (plain_size_ == 0 && data.size() >= kRecordBytes) {
      encrypt(data.data(), kRecordBytes);
      data = data.subspan(kRecordBytes);
      continue;
    }
    size_t n = std::min(data.size(), kRecordBytes - plain_size_);
    std::memcpy(plain_.get() + plain_size_, data.data(), n);
    plain_size_ += n;
    data = data.subspan(n);
    if (plain_size_ == kRecordBytes) {
      encrypt(plain_.get(), kRecordBytes);
      plain_size_ = 0;
    }
  }
}

void TlsStream::encrypt(const uint8_t* data, size_t size) {
  if (state_ != State::kOpen) return;
  SSL* ssl = as_ssl(ssl_);
  size_t written = 0;
  ERR_clear_error();
  if (++records_ >= loop_->records_per_key) {
    records_ = 0;
    SSL_key_update(ssl, SSL_KEY_UPDATE_NOT_REQUESTED);
  }
  // The BIO takes everything, so that a write is whole or the connection is broken.
  if (SSL_write_ex(ssl, data, size, &written) != 1 || written != size) finish_later(describe_tls_failure(&check_));
}

void TlsStream::flush() {
  if (dirty_) {
    dirty_ = false;
    loop_->forget(*this);
  }
  if (state_ != State::kOpen) return;
  if (plain_size_ > 0) {
    encrypt(plain_.get(), plain_size_);
    plain_size_ = 0;
  }
  if (state_ == State::kOpen && !blocked_) write_socket();
}

void TlsStream::write_socket() {
  while (out_.size() > 0) {
    ssize_t n = ::send(fd_, out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) break;
    if (n < 0) {
      int error = errno;
      if (state_ != State::kOpen) return;  // the handshake's next read tells it
      Status received = take_receive_error();
      return finish_later(
          !received ? received : Status(Code::kUnavailable, std::string("connection lost: ") + std::strerror(error)));
    }
    out_.consume(static_cast<size_t>(n));
    taken_ = loop_->env.now();
  }
  bool blocked = out_.size() > 0;
  if (blocked == blocked_) return;
  blocked_ = blocked;
  update_interest();
}

// The kernel refused to send: what the peer said before it closed (an alert) says more than errno.
Status TlsStream::take_receive_error() {
  Bytes wire(4096), piece(kRecordBytes);
  ssize_t n = ::recv(fd_, wire.data(), wire.size(), MSG_DONTWAIT);
  if (n <= 0 || !incoming_.empty()) return Status::ok();
  incoming_ = {wire.data(), static_cast<size_t>(n)};
  size_t got = 0;
  int result = 0;
  ERR_clear_error();
  while ((result = SSL_read_ex(as_ssl(ssl_), piece.data(), piece.size(), &got)) == 1) {}
  incoming_ = {};
  bool failed = SSL_get_error(as_ssl(ssl_), result) == SSL_ERROR_SSL;
  return failed ? describe_tls_failure(&check_) : Status::ok();
}

void TlsStream::update_interest() {
  if (fd_ < 0) return;
  uint32_t wanted = (state_ == State::kHandshaking || reading_ ? EPOLLIN : 0u) | (blocked_ ? EPOLLOUT : 0u);
  if (wanted == interest_) return;
  interest_ = wanted;
  if (Status status = loop_->poller.modify_fd(fd_, wanted); !status) {
    kLog.error("poller_failed", {{"peer", address_}, {"reason", status}});
  }
}

void TlsStream::close(Status reason) { finish_later(std::move(reason)); }

void TlsStream::finish_later(Status reason) {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  release_socket();
  closed_reason_ = std::move(reason);
  if (!started_) return;  // start() tells it
  loop_->env.post([weak = std::weak_ptr(self_)] {
    auto self = weak.lock();
    if (!self) return;
    TlsStream& stream = **self;
    self.reset();
    if (stream.closed_reason_) stream.tell_closed(*stream.closed_reason_);
  });
}

void TlsStream::finish(Status reason) {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  release_socket();
  tell_closed(std::move(reason));
}

void TlsStream::tell_closed(Status reason) {
  closed_reason_.reset();
  if (reason.code() == Code::kPermission) {
    kLog.warning("stream_refused", {{"peer", address_}, {"node", check_.peer.node}, {"reason", reason.message()}});
  }
  auto handlers = std::move(handlers_);
  if (handlers && handlers->on_close) handlers->on_close(std::move(reason));  // may destroy this
}

void TlsStream::release_socket() {
  if (fd_ < 0) return;
  loop_->unwatch(*this);
  loop_->poller.remove_fd(fd_);
  SSL* ssl = as_ssl(ssl_);
  if (ssl != nullptr && !blocked_ && SSL_is_init_finished(ssl) != 0) {
    plain_size_ = 0;
    SSL_shutdown(ssl);  // best effort: lets the peer tell an ending from a cut
    ERR_clear_error();
  }
  if (out_.size() > 0 && !blocked_) (void)::send(fd_, out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  // Unread bytes would turn the close into a reset, and the peer could lose our alert.
  uint8_t sink[4096];
  for (int i = 0; i < 16 && ::recv(fd_, sink, sizeof sink, MSG_DONTWAIT) > 0; ++i) {}
  ::close(fd_);
  fd_ = -1;
}

}  // namespace tidemark::net
