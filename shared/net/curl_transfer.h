// One HTTP exchange as a curl handle: options, mutual TLS, headers, result. What the keep-alive client
// (http_client.h) and the blocking calls (blocking_http.h) have in common. Only for .cc files of this
// folder.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "shared/net/network.h"
#include "shared/net/tls_context.h"

namespace tidemark::net {

class CurlTransfer {
 public:
  // Body bytes that are not kept in the response, but handed on as they come (2xx answers only).
  using Sink = std::function<Status(ByteSpan)>;
  // Fills the span, returns how much; 0 ends.
  using Source = std::function<Result<size_t>(MutableByteSpan)>;
  using Progress = std::function<bool(uint64_t done, uint64_t total)>;  // total 0: unknown; false: give up

  CurlTransfer(const HttpClientOptions& options, HttpRequest request, WallTime now);
  ~CurlTransfer();
  CurlTransfer(const CurlTransfer&) = delete;
  CurlTransfer& operator=(const CurlTransfer&) = delete;

  void set_sink(Sink sink, Progress progress);
  void set_source(Source source, uint64_t size, Progress progress);
  // Checks the files and prepares the handle. Nothing has been sent yet.
  Status prepare();
  void* handle() { return easy_; }          // CURL*
  // Once curl is through with it. `curl_code` is its CURLcode.
  Result<HttpResponse> finish(int curl_code);

 private:
  static size_t on_header(char* data, size_t size, size_t count, void* self);
  static size_t on_body(char* data, size_t size, size_t count, void* self);
  static size_t on_read(char* data, size_t size, size_t count, void* self);
  static int on_seek(void* self, long long offset, int origin);
  static int on_progress(void* self, long long down_total, long long down, long long up_total, long long up);
  static int on_ssl_context(void* curl, void* ssl_context, void* self);
  void set_tls();
  void set_body();
  Status prepare_tls_files();
  Status failure(int curl_code);

  const HttpClientOptions options_;
  HttpRequest request_;
  const WallTime now_;
  void* easy_ = nullptr;
  void* header_list_ = nullptr;             // curl_slist*
  std::shared_ptr<PeerCheck> check_;        // shared with the connection's SSL_CTX
  HttpResponse response_;
  Sink sink_;
  Source source_;
  Progress progress_;
  uint64_t source_size_ = 0, sunk_ = 0;
  bool upload_progress_ = false;
  Status stopped_;                          // why a callback of ours gave up
  char error_[256] = "";
};

// Once a process; called by all who use curl.
void initialize_curl();

}  // namespace tidemark::net
