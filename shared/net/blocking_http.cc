#include "shared/net/blocking_http.h"

#include <curl/curl.h>

#include <ctime>

#include "shared/net/curl_transfer.h"

namespace tidemark::net {
namespace {

WallTime wall_now() {
  std::timespec now{};
  std::timespec_get(&now, TIME_UTC);
  return {now.tv_sec * 1'000'000'000 + now.tv_nsec};
}

Result<HttpResponse> perform(CurlTransfer& transfer) {
  TM_RETURN_IF_ERROR(transfer.prepare());
  return transfer.finish(curl_easy_perform(transfer.handle()));
}

}  // namespace

Result<HttpResponse> call(const HttpClientOptions& options, HttpRequest request) {
  CurlTransfer transfer(options, std::move(request), wall_now());
  return perform(transfer);
}

Result<HttpResponse> download(const HttpClientOptions& options, HttpRequest request, Download download) {
  if (download.range) {
    const Extent& range = *download.range;
    request.headers["range"] = "bytes=" + std::to_string(range.offset) + "-" +
                               (range.length > 0 ? std::to_string(range.end() - 1) : "");
  }
  CurlTransfer transfer(options, std::move(request), wall_now());
  auto sink = [&](ByteSpan bytes) -> Status {
    long status = 0;
    curl_easy_getinfo(static_cast<CURL*>(transfer.handle()), CURLINFO_RESPONSE_CODE, &status);
    if (download.range && status != 206) return Status(Code::kUnsupported, "the server does not serve ranges");
    return download.sink(bytes);
  };
  transfer.set_sink(std::move(sink), std::move(download.progress));
  return perform(transfer);
}

Result<HttpResponse> upload(const HttpClientOptions& options, HttpRequest request, Upload upload) {
  CurlTransfer transfer(options, std::move(request), wall_now());
  transfer.set_source(std::move(upload.source), upload.size, std::move(upload.progress));
  return perform(transfer);
}

}  // namespace tidemark::net
