#include "shared/net/curl_transfer.h"

#include <curl/curl.h>
#include <openssl/ssl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <mutex>

#include "shared/base/limits.h"
#include "shared/base/log.h"
#include "shared/net/openssl_handles.h"

namespace tidemark::net {
namespace {

const log::Logger kLog("http");
// Of a connection that is used again: bounds what is sent under one key, and finds a server's revocation out.
constexpr long kConnectionSecondsMax = 60;
constexpr long kUploadBufferBytes = 512 << 10;

std::string trimmed(std::string_view text) {
  size_t from = text.find_first_not_of(" \t\r\n");
  if (from == std::string_view::npos) return "";
  return std::string(text.substr(from, text.find_last_not_of(" \t\r\n") - from + 1));
}

bool has_line_break(const std::string& text) { return text.find_first_of("\r\n") != std::string::npos; }

}  // namespace

void initialize_curl() {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_ALL); });
}

CurlTransfer::CurlTransfer(const HttpClientOptions& options, HttpRequest request, WallTime now)
    : options_(options), request_(std::move(request)), now_(now) {
  initialize_curl();
  easy_ = curl_easy_init();
}

CurlTransfer::~CurlTransfer() {
  curl_easy_cleanup(static_cast<CURL*>(easy_));
  curl_slist_free_all(static_cast<curl_slist*>(header_list_));
}

void CurlTransfer::set_sink(Sink sink, Progress progress) {
  sink_ = std::move(sink);
  progress_ = std::move(progress);
}

void CurlTransfer::set_source(Source source, uint64_t size, Progress progress) {
  source_ = std::move(source);
  source_size_ = size;
  progress_ = std::move(progress);
  upload_progress_ = true;
}

Status CurlTransfer::prepare() {
  if (easy_ == nullptr) return Status(Code::kUnavailable, "curl has no handle left");
  auto set = [this](CURLoption option, auto value) { curl_easy_setopt(static_cast<CURL*>(easy_), option, value); };
  std::string url = options_.url + request_.target;
  if (has_line_break(url)) return Status(Code::kInvalidArgument, "the url has a line break");
  set(CURLOPT_URL, url.c_str());
  set(CURLOPT_PROTOCOLS_STR, "http,https");
  set(CURLOPT_PROXY, "");                    // never by way of the environment's proxy
  set(CURLOPT_NOSIGNAL, 1L);
  set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  set(CURLOPT_ERRORBUFFER, error_);
  set(CURLOPT_USERAGENT, "tidemark");
  set(CURLOPT_PATH_AS_IS, 1L);
  set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options_.connect_timeout.count()));
  set(CURLOPT_LOW_SPEED_LIMIT, 1L);
  set(CURLOPT_LOW_SPEED_TIME, std::max<long>(1, static_cast<long>((options_.stall_timeout.count() + 999) / 1000)));
  set(CURLOPT_MAXLIFETIME_CONN, kConnectionSecondsMax);
  if (!options_.unix_socket.empty()) set(CURLOPT_UNIX_SOCKET_PATH, options_.unix_socket.c_str());
  set(CURLOPT_HEADERFUNCTION, &CurlTransfer::on_header);
  set(CURLOPT_HEADERDATA, this);
  set(CURLOPT_WRITEFUNCTION, &CurlTransfer::on_body);
  set(CURLOPT_WRITEDATA, this);
  set(CURLOPT_BUFFERSIZE, kUploadBufferBytes);
  set(CURLOPT_PRIVATE, this);
  if (progress_) {
    set(CURLOPT_NOPROGRESS, 0L);
    set(CURLOPT_XFERINFOFUNCTION,
        reinterpret_cast<curl_xferinfo_callback>(+[](void* self, curl_off_t a, curl_off_t b, curl_off_t c,
                                                     curl_off_t d) { return on_progress(self, a, b, c, d); }));
    set(CURLOPT_XFERINFODATA, this);
  }
  for (const auto& [name, value] : request_.headers) {
    std::string line = name + ": " + value;
    if (has_line_break(line)) return Status(Code::kInvalidArgument, "header " + name + " has a line break");
    header_list_ = curl_slist_append(static_cast<curl_slist*>(header_list_), line.c_str());
  }
  set_body();
  if (header_list_ != nullptr) set(CURLOPT_HTTPHEADER, static_cast<curl_slist*>(header_list_));
  if (!options_.tls) return Status::ok();
  TM_RETURN_IF_ERROR(prepare_tls_files());
  set_tls();
  return Status::ok();
}

// A body in memory is read by curl where it lies. With CUSTOMREQUEST any method may carry one.
void CurlTransfer::set_body() {
  auto set = [this](CURLoption option, auto value) { curl_easy_setopt(static_cast<CURL*>(easy_), option, value); };
  if (request_.method == "HEAD") {
    set(CURLOPT_NOBODY, 1L);
    return;
  }
  set(CURLOPT_CUSTOMREQUEST, request_.method.c_str());
  bool carries = source_ || !request_.body.empty() || request_.method == "PUT" || request_.method == "POST";
  if (!carries) return;
  set(CURLOPT_POST, 1L);
  long at_once = kUploadBufferBytes;
  if (request_.bytes_per_second_max != 0) {
    set(CURLOPT_MAX_SEND_SPEED_LARGE, static_cast<curl_off_t>(request_.bytes_per_second_max));
    // Several pieces a second, lest the peer or curl take it for a stall.
    at_once = static_cast<long>(std::clamp<uint64_t>(request_.bytes_per_second_max / 8, 16 << 10, kUploadBufferBytes));
  }
  set(CURLOPT_UPLOAD_BUFFERSIZE, at_once);
  if (source_) {
    set(CURLOPT_READFUNCTION, &CurlTransfer::on_read);
    set(CURLOPT_READDATA, this);
    set(CURLOPT_SEEKFUNCTION, reinterpret_cast<curl_seek_callback>(+[](void* self, curl_off_t offset, int origin) {
      return on_seek(self, offset, origin);
    }));
    set(CURLOPT_SEEKDATA, this);
    set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(source_size_));
  } else {
    set(CURLOPT_POSTFIELDS,
        reinterpret_cast<const char*>(request_.body.data() != nullptr ? request_.body.data()
                                                                      : reinterpret_cast<const uint8_t*>("")));
    set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request_.body.size()));
  }
  if (request_.headers.count("content-type") == 0) {
    header_list_ = curl_slist_append(static_cast<curl_slist*>(header_list_), "content-type: application/octet-stream");
  }
}

// curl would say of a missing or foreign file only that TLS failed.
Status CurlTransfer::prepare_tls_files() {
  TM_ASSIGN_OR_RETURN(CertPtr authority, load_certificate(options_.tls->authority));
  TM_ASSIGN_OR_RETURN(CertPtr own, load_certificate(options_.tls->certificate));
  struct stat st{};
  if (::stat(options_.tls->key.c_str(), &st) != 0) return Status::from_errno(errno, "private key " + options_.tls->key);
  if ((st.st_mode & 077) != 0) {
    return Status(Code::kPermission,
                  "private key " + options_.tls->key + " may be read by others than its owner: chmod 600 it");
  }
  check_ = std::make_shared<PeerCheck>();
  TM_ASSIGN_OR_RETURN(check_->cluster, cluster_of_authority(authority.get()));
  TM_ASSIGN_OR_RETURN(check_->revoked, load_revoked(options_.tls->authority, authority.get()));
  check_->roles = {options_.server_role};
  check_->node = options_.server_node;
  check_->now = now_;
  return Status::ok();
}

void CurlTransfer::set_tls() {
  auto set = [this](CURLoption option, auto value) { curl_easy_setopt(static_cast<CURL*>(easy_), option, value); };
  set(CURLOPT_CAINFO, options_.tls->authority.c_str());
  set(CURLOPT_CAPATH, static_cast<char*>(nullptr));
  set(CURLOPT_CA_CACHE_TIMEOUT, 0L);         // rotated files are read at the next connection
  set(CURLOPT_SSLCERT, options_.tls->certificate.c_str());
  set(CURLOPT_SSLKEY, options_.tls->key.c_str());
  set(CURLOPT_SSL_VERIFYPEER, 1L);
  set(CURLOPT_SSL_VERIFYHOST, options_.server_node.empty() ? 2L : 0L);
  set(CURLOPT_SSL_SESSIONID_CACHE, 0L);
  set(CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_3) | static_cast<long>(CURL_SSLVERSION_MAX_TLSv1_3));
  set(CURLOPT_SSL_CTX_FUNCTION, reinterpret_cast<curl_ssl_ctx_callback>(+[](CURL* curl, void* context, void* self) {
    return static_cast<CURLcode>(on_ssl_context(curl, context, self));
  }));
  set(CURLOPT_SSL_CTX_DATA, this);
}

int CurlTransfer::on_ssl_context(void*, void* ssl_context, void* self) {
  auto* native = static_cast<SSL_CTX*>(ssl_context);
  auto& transfer = *static_cast<CurlTransfer*>(self);
  if (Status status = configure_context(native); !status) {
    transfer.stopped_ = status;
    return CURLE_SSL_CONNECT_ERROR;
  }
  share_check(native, transfer.check_);
  return CURLE_OK;
}

size_t CurlTransfer::on_header(char* data, size_t size, size_t count, void* self) {
  auto& transfer = *static_cast<CurlTransfer*>(self);
  std::string_view line(data, size * count);
  if (line.starts_with("HTTP/")) {           // a new answer: an earlier one was "100 Continue"
    transfer.response_.headers.clear();
    size_t space = line.find(' ');
    transfer.response_.status = 0;
    if (space != std::string_view::npos) {
      std::from_chars(line.data() + space + 1, line.data() + line.size(), transfer.response_.status);
    }
    return size * count;
  }
  size_t colon = line.find(':');
  if (colon == std::string_view::npos) return size * count;
  std::string name(line.substr(0, colon));
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  transfer.response_.headers[name] = trimmed(line.substr(colon + 1));
  return size * count;
}

size_t CurlTransfer::on_body(char* data, size_t size, size_t count, void* self) {
  auto& transfer = *static_cast<CurlTransfer*>(self);
  ByteSpan bytes(reinterpret_cast<const uint8_t*>(data), size * count);
  Bytes& body = transfer.response_.body;
  if (transfer.sink_ && transfer.response_.status / 100 == 2) {
    transfer.stopped_ = transfer.sink_(bytes);
    transfer.sunk_ += bytes.size();
    return transfer.stopped_.is_ok() ? bytes.size() : CURL_WRITEFUNC_ERROR;
  }
  if (body.empty()) {
    curl_off_t length = -1;
    curl_easy_getinfo(static_cast<CURL*>(transfer.easy_), CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    if (length > 0) body.reserve(std::min<uint64_t>(static_cast<uint64_t>(length), limits::kHttpResponseBytesMax));
  }
  if (body.size() + bytes.size() > limits::kHttpResponseBytesMax) {
    transfer.stopped_ = Status(Code::kUnavailable,
                               "the answer is larger than " + std::to_string(limits::kHttpResponseBytesMax) + " bytes");
    return CURL_WRITEFUNC_ERROR;
  }
  body.insert(body.end(), bytes.begin(), bytes.end());
  return bytes.size();
}

size_t CurlTransfer::on_read(char* data, size_t size, size_t count, void* self) {
  auto& transfer = *static_cast<CurlTransfer*>(self);
  auto got = transfer.source_({reinterpret_cast<uint8_t*>(data), size * count});
  if (got) return *got;
  transfer.stopped_ = got.status();
  return CURL_READFUNC_ABORT;
}

// A source cannot be read again: curl's retry on a stale connection is refused and reported.
int CurlTransfer::on_seek(void*, long long, int) { return CURL_SEEKFUNC_CANTSEEK; }

int CurlTransfer::on_progress(void* self, long long down_total, long long down, long long up_total, long long up) {
  auto& transfer = *static_cast<CurlTransfer*>(self);
  bool upload = transfer.upload_progress_;
  auto total = static_cast<uint64_t>(upload ? up_total : down_total);
  if (transfer.progress_(static_cast<uint64_t>(upload ? up : down), total)) return 0;
  transfer.stopped_ = Status(Code::kCancelled, "given up");
  return 1;
}

Result<HttpResponse> CurlTransfer::finish(int curl_code) {
  if (curl_code != CURLE_OK) return failure(curl_code);
  if (sink_) response_.content_length = sunk_;
  else response_.content_length = response_.body.size();
  return std::move(response_);
}

Status CurlTransfer::failure(int curl_code) {
  std::string where = options_.unix_socket.empty() ? options_.url : "unix:" + options_.unix_socket;
  if (!stopped_) return stopped_.with_context(where);
  bool refused = check_ && !check_->reason.empty();
  std::string reason = refused ? check_->reason
                       : error_[0] != '\0' ? std::string(error_)
                                           : std::string(curl_easy_strerror(static_cast<CURLcode>(curl_code)));
  bool permission = refused || curl_code == CURLE_PEER_FAILED_VERIFICATION || curl_code == CURLE_SSL_CERTPROBLEM;
  // The other end's verdict on our certificate reaches curl as an alert at some later read or write.
  for (const char* alert : {"alert", "certificate required", "unknown ca"}) {
    if (check_ && reason.find(alert) != std::string::npos) permission = true;
  }
  if (permission) kLog.warning("server_refused", {{"url", where}, {"reason", reason}});
  Code code = permission ? Code::kPermission : Code::kUnavailable;
  if (curl_code == CURLE_URL_MALFORMAT || curl_code == CURLE_UNSUPPORTED_PROTOCOL) code = Code::kInvalidArgument;
  return Status(code, where + ": " + reason);
}

}  // namespace tidemark::net
