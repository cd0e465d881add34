// API.md's requests onto a Replica: parsing, roles, JSON.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "replica/replica.h"
#include "shared/net/network.h"

namespace tidemark::replica {

void answer_request(Replica& replica, net::HttpRequest request, Callback<net::HttpResponse> reply);
net::HttpResponse error_response(int status, const std::string& error, const std::string& reason);
net::HttpResponse error_response(const Status& status);

// A request's target, taken apart and decoded.
struct Target {
  std::vector<std::string> path;
  std::map<std::string, std::string> query;
  static std::optional<Target> parse(std::string_view target);
  std::string get(const std::string& key) const;
};

// One byte range of `Range:` on `size` bytes. `whole`: no (usable) header, all of it.
struct ByteRange { bool whole = true, unsatisfiable = false; Extent extent; };
ByteRange parse_range(const std::string& header, uint64_t size);

// JSON texts (http_json.cc).
std::string put_json(const PutAnswer& answer);
Result<std::string> source_json(Replica& replica, const std::string& source, const Uuid& generation);
std::string status_text(Replica& replica);
std::string point_json(const Point& point, const ImageId& image = {});   // that was asked for as well; nil: none
std::string points_json(const PointPage& page);
std::string tree_json(const std::vector<TreeEntry>& tree);
std::string image_json(const ReadTarget& target, const std::optional<std::string>& path, uint64_t allocated);
std::string extents_json(const ExtentPage& page);
std::string hash_json(const HashResult& result);
struct HashRequest { Extent range; uint32_t unit = 0; DigestKey key; };
Result<HashRequest> parse_hash_request(ByteSpan body);

}  // namespace tidemark::replica
