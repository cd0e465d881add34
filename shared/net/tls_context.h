// TLS settings of this node, made from its certificate files, and the check of a peer.
//
// One SSL_CTX for each set of files serves clients and servers alike: TLS 1.3 only, certificates
// required on both ends, no session tickets. TlsContexts looks at the files at every handshake and
// takes changed ones; while new ones cannot be used (half copied), the old ones stay. The list of revoked
// certificates beside the authority's file is one of them; one that vanishes still counts.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "shared/net/network.h"
#include "shared/net/revocation.h"

struct ssl_st;
struct ssl_ctx_st;

namespace tidemark::net {

// What a peer's certificate must say, and afterwards what it said. One a handshake; attached to the
// SSL (attach_check) or, for connections that a library makes, to its SSL_CTX (share_check).
struct PeerCheck {
  std::vector<Role> roles;    // any of them
  Uuid cluster;
  std::string node;           // empty: any
  WallTime now;               // certificates are held against this clock
  std::shared_ptr<const Revoked> revoked;   // shared with the context it came from; null: none

  PeerIdentity peer;          // once verified
  std::string serial;         // of its certificate
  std::string reason;         // why it was refused; empty: it was not
};

class TlsContext {
 public:
  static Result<std::unique_ptr<TlsContext>> load(const TlsFiles& files);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

  ssl_ctx_st* native() const { return native_; }
  const Uuid& cluster() const { return cluster_; }
  const PeerIdentity& self() const { return self_; }
  WallTime not_after() const { return not_after_; }
  const TlsFiles& files() const { return files_; }
  const std::shared_ptr<const Revoked>& revoked() const { return revoked_; }
  bool is_revoked(const std::string& serial) const { return revoked_ && revoked_->contains(serial); }

 private:
  friend class TlsContexts;
  explicit TlsContext(ssl_ctx_st* native) : native_(native) {}
  ssl_ctx_st* native_;
  Uuid cluster_;
  PeerIdentity self_;
  WallTime not_after_;
  TlsFiles files_;
  std::shared_ptr<const Revoked> revoked_;   // shared with the checks under way
};

// Contexts by file names. Any thread.
class TlsContexts {
 public:
  // The context made from the files as they are now, or from the last usable ones. Shared with the
  // handshakes under way, which go on with the one they began with.
  Result<std::shared_ptr<const TlsContext>> get(const TlsFiles& files, WallTime now);

 private:
  struct Entry {
    std::string stamp;         // of the files that `context` was made from
    std::string failed_stamp;  // of files that could not be used: warned once, tried again from time to time
    WallTime failed_at;
    std::shared_ptr<const TlsContext> context;
  };
  std::mutex mutex_;
  std::map<std::string, Entry> entries_;  // guarded by mutex_
};

// Applies protocol version, ciphers and the verification callback: what TlsContext does, for an
// SSL_CTX that a library made and gave its certificate files itself.
Status configure_context(ssl_ctx_st* native);
// `check` must live until the handshake is over.
void attach_check(ssl_st* ssl, PeerCheck* check);
void share_check(ssl_ctx_st* native, std::shared_ptr<PeerCheck> check);  // kept by the SSL_CTX

// Why a handshake or a read failed, from the check and OpenSSL's error queue, which is emptied.
// kPermission: a certificate, protocol version or role was refused, by this end or the other.
Status describe_tls_failure(const PeerCheck* check);

}  // namespace tidemark::net
