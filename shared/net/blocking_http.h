// HTTP for the command line: one call at a time, blocking, with progress. Daemons use
// Network::http_client.
#pragma once

#include <functional>
#include <optional>

#include "shared/net/network.h"

namespace tidemark::net {

// Bytes done and in all (0: unknown). Returning false gives up: kCancelled.
using TransferProgress = std::function<bool(uint64_t done, uint64_t total)>;

// One request with its whole answer. Errors as of HttpClient::request; any HTTP status is an answer.
Result<HttpResponse> call(const HttpClientOptions& options, HttpRequest request);

struct Download {
  std::optional<Extent> range;                // sent as a Range header; length 0: to the end
  std::function<Status(ByteSpan)> sink;       // the body of a 2xx answer, in order
  TransferProgress progress;
};
// The answer's content_length is what the sink was given; its body holds only a refusal's text. A range
// that was answered in full (200) is kUnsupported, before the sink saw anything.
Result<HttpResponse> download(const HttpClientOptions& options, HttpRequest request, Download download);

struct Upload {
  uint64_t size = 0;
  std::function<Result<size_t>(MutableByteSpan)> source;   // fills, says how much; 0 ends
  TransferProgress progress;
};
Result<HttpResponse> upload(const HttpClientOptions& options, HttpRequest request, Upload upload);

}  // namespace tidemark::net
