// TlsStream: one mutually authenticated TLS 1.3 connection, driven by the loop's poller.
//
// The mirror's hot path. What is sent is gathered into records of 16 KiB, encrypted into one output
// buffer and given to the kernel in one system call at the end of the loop's turn; what arrives is
// taken in large pieces, decrypted whole and delivered in one call. OpenSSL reads and writes these
// buffers through a BIO of its own kind, so that no byte passes through a BIO buffer in between.
//
//   kConnecting --writable--> kHandshaking --verified--> kOpen --error, close--> kClosed
//                                                        (reads only after start())
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "shared/io/env.h"
#include "shared/io/poller.h"
#include "shared/net/network.h"
#include "shared/net/tls_context.h"

namespace tidemark::net {

class NameLookups;
class TlsStream;

// What the streams of one network share. Loop thread only.
struct StreamLoop : std::enable_shared_from_this<StreamLoop> {
  StreamLoop(io::Env& e, io::Poller& p);
  void flush_at_turn_end(TlsStream& stream);
  void forget(TlsStream& stream);
  // An open stream whose peer's certificate is revoked is closed soon.
  void watch(TlsStream& stream);
  void unwatch(TlsStream& stream) { open_.erase(&stream); }

  io::Env& env;
  io::Poller& poller;
  TlsContexts contexts;
  std::shared_ptr<NameLookups> names;   // shared with nobody: its look-ups know it weakly
  uint64_t records_per_key;
  Bytes received;        // from a socket, until decrypted: empty between two events
  Bytes decrypted;       // until delivered: empty between two events

 private:
  void flush_all();
  void look_for_revoked();
  void close_revoked(const std::vector<std::shared_ptr<const TlsContext>>& contexts);
  std::vector<TlsStream*> dirty_;  // null: destroyed meanwhile
  bool scheduled_ = false;
  std::set<TlsStream*> open_;
  bool looking_ = false;
};

// Bytes in, bytes out at the front; grows, never shrinks while in use.
class OutBuffer {
 public:
  ~OutBuffer();
  OutBuffer() = default;
  OutBuffer(const OutBuffer&) = delete;
  OutBuffer& operator=(const OutBuffer&) = delete;
  void append(const void* data, size_t size);
  void consume(size_t size);
  const uint8_t* data() const { return data_ + begin_; }
  size_t size() const { return end_ - begin_; }

 private:
  uint8_t* data_ = nullptr;
  size_t begin_ = 0, end_ = 0, capacity_ = 0;
};

class TlsStream final : public Stream {
 public:
  enum class Side : uint8_t { kServer, kClient };
  // Told once, when the handshake is over; the stream may be moved on or destroyed in it.
  using Ready = UniqueFunction<void(Status)>;

  // Takes the non-blocking socket `fd`, for a client possibly still connecting.
  TlsStream(std::shared_ptr<StreamLoop> loop, int fd, Side side, std::string address);
  ~TlsStream() override;
  Status begin(const TlsContext& context, PeerCheck check, Ready ready);

  void start(Handlers handlers) override;
  void send(ByteSpan head, ByteSpan payload) override;
  void flush() override;
  size_t unsent_bytes() const override { return plain_size_ + out_.size(); }
  void close(Status reason) override;
  const PeerIdentity& peer() const override { return check_.peer; }

 private:
  friend struct StreamLoop;
  friend struct StreamBio;
  enum class State : uint8_t { kConnecting, kHandshaking, kOpen, kClosed };

  void on_ready(uint32_t events);
  Status finish_connecting();
  void step_handshake();
  void handshake_done(Status status);
  Status hold_early_data();
  void read_socket();
  bool deliver(size_t size);   // false: closed or destroyed by the receiver
  void append(ByteSpan data);
  void encrypt(const uint8_t* data, size_t size);
  void write_socket();
  void update_interest();
  void finish(Status reason);        // closes, then tells on_close at once
  void finish_later(Status reason);  // closes, tells on_close from the loop
  void tell_closed(Status reason);
  void release_socket();
  Status take_receive_error();

  std::shared_ptr<StreamLoop> loop_;  // shared: a stream may outlive its network by a moment
  int fd_;
  const Side side_;
  const std::string address_;
  State state_;
  void* ssl_ = nullptr;              // SSL*
  PeerCheck check_;
  TlsFiles files_;
  Ready ready_;
  std::shared_ptr<Handlers> handlers_;  // shared with a delivery under way, which may destroy the stream
  std::shared_ptr<TlsStream*> self_;    // what deferred calls look at: gone with the stream
  ByteSpan incoming_;                // received, not yet taken by OpenSSL
  Bytes early_;                      // decrypted before start()
  std::unique_ptr<uint8_t[]> plain_; // gathered for the next record
  size_t plain_size_ = 0;
  OutBuffer out_;
  io::BootTime taken_;               // the kernel took something last: the peer reads
  uint64_t records_ = 0;             // under the present sending key
  uint32_t interest_ = 0;
  bool started_ = false;
  bool reading_ = false;             // delivered what came before start()
  bool blocked_ = false;             // the kernel took less than was offered
  bool dirty_ = false;
  std::optional<Status> closed_reason_;  // until on_close was told
};

}  // namespace tidemark::net
