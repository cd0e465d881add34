#include "shared/cli/http.h"

#include <algorithm>
#include <cctype>
#include <chrono>

#include "shared/daemon/links.h"
#include "shared/net/blocking_http.h"

namespace tidemark::cli {
namespace {

Code code_of_http(int status) {
  switch (status) {
    case 400: case 405: case 413: case 416: return Code::kInvalidArgument;
    case 403: return Code::kPermission;
    case 404: return Code::kNotFound;
    case 409: return Code::kBusy;
    case 422: return Code::kCorruption;
    case 501: return Code::kUnsupported;
    case 502: case 503: case 504: return Code::kUnavailable;
    case 507: return Code::kOutOfSpace;
    default: return Code::kIoError;
  }
}

// Names the server once, and says in words what a TLS alert means.
Status failure(const Status& status, const std::string& name, const net::HttpClientOptions& options) {
  const std::string& what = status.message();
  if (options.tls && what.find(" alert ") != std::string::npos) {
    size_t alert = what.find(" alert ") + 7;
    std::string word = what.substr(alert, what.find(',', alert) - alert);
    return {status.code(), name + ": the server refuses " + options.tls->certificate + " (" + word +
                               "): check it with tidemark pki show and tidemark config check"};
  }
  return what.rfind(name, 0) == 0 ? status : status.with_context(name);
}

}  // namespace

std::string percent_encode(std::string_view text) {
  static const char* const kHex = "0123456789ABCDEF";
  std::string out;
  for (unsigned char c : text) {
    if (std::isalnum(c) != 0 || c == '-' || c == '.' || c == '_' || c == '~') {
      out.push_back(static_cast<char>(c));
    } else {
      out.push_back('%');
      out.push_back(kHex[c >> 4]);
      out.push_back(kHex[c & 15]);
    }
  }
  return out;
}

Status status_of_answer(int http_status, std::string_view body, const std::string& from) {
  Code code = code_of_http(http_status);
  Json j = Json::parse(body, nullptr, false);
  std::string word = j.is_discarded() ? "" : text(j, "error");
  for (int c = static_cast<int>(Code::kNotFound); c <= static_cast<int>(Code::kUnsupported); ++c) {
    if (code_name(static_cast<Code>(c)) == word) code = static_cast<Code>(c);
  }
  std::string message = j.is_discarded() ? "" : text(j, "message", text(j, "reason"));
  if (message.empty()) message = word;
  if (message.empty()) message = "refused with HTTP status " + std::to_string(http_status);
  return {code, from + ": " + message};
}

Http Http::to_socket(const std::string& path) {
  Http out;
  out.options_.url = "http://localhost";
  out.options_.unix_socket = path;
  out.name_ = path;
  return out;
}

Http Http::to_server(const config::ReplicaLink& link, const config::Tls& tls) {
  Http out;
  out.options_.url = link.url;
  out.options_.tls = net::TlsFiles{tls.authority, tls.certificate, tls.key};
  out.options_.server_role = net::Role::kReplica;
  out.options_.server_node = link.node;
  out.name_ = link.url;
  return out;
}

Http Http::to_server(const config::WitnessLink& link, const config::Tls& tls) {
  Http out;
  out.options_ = daemon::client_of(link, tls);
  out.name_ = link.url;
  return out;
}

Result<Json> Http::ask(net::HttpRequest request, int timeout_s) {
  net::HttpClientOptions options = options_;
  options.stall_timeout = std::chrono::seconds(timeout_s);
  auto answer = net::call(options, std::move(request));
  if (!answer) return failure(answer.status(), name_, options_);
  std::string_view body = as_text(answer->body);
  if (answer->status < 200 || answer->status > 299) return status_of_answer(answer->status, body, name_);
  if (body.empty()) return Json::object();
  return parse_json(body, name_);
}

Result<Json> Http::get(const std::string& target) {
  net::HttpRequest request;
  request.method = "GET";
  request.target = target;
  return ask(std::move(request), 60);
}

Result<Json> Http::post(const std::string& target, const Json& body, int timeout_s) {
  net::HttpRequest request;
  request.method = "POST";
  request.target = target;
  request.headers["content-type"] = "application/json";
  std::string text = dump(body, -1);
  request.body.assign(as_bytes(text).begin(), as_bytes(text).end());
  return ask(std::move(request), timeout_s);
}

Status Http::read_range(const std::string& target, uint64_t offset, MutableByteSpan out) {
  net::HttpRequest request;
  request.method = "GET";
  request.target = target;
  size_t filled = 0;
  net::Download download;
  download.range = Extent{offset, out.size()};
  download.sink = [&](ByteSpan data) -> Status {
    if (data.size() > out.size() - filled) return {Code::kCorruption, name_ + ": sent more bytes than were asked for"};
    std::copy(data.begin(), data.end(), out.begin() + static_cast<ptrdiff_t>(filled));
    filled += data.size();
    return {};
  };
  auto answer = net::download(options_, std::move(request), std::move(download));
  if (!answer) return failure(answer.status(), name_, options_);
  if (answer->status < 200 || answer->status > 299) return status_of_answer(answer->status, as_text(answer->body), name_);
  if (filled != out.size()) return {Code::kUnavailable, name_ + ": the answer ended early: try again"};
  return {};
}

}  // namespace tidemark::cli
