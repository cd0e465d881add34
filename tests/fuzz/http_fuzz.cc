// Requests of any shape to a replica, batches with any contents among them: each is answered with a documented
// status, and the replica opens again on what it kept.
#include <fuzzer/FuzzedDataProvider.h>

#include <cstdlib>
#include <set>

#include "replica/http_api.h"
#include "shared/base/digest.h"
#include "shared/base/log.h"
#include "tests/unit/replica/harness.h"

namespace {

using namespace tidemark;
using namespace tidemark::replica;

void check(bool holds) {
  if (!holds) std::abort();
}

const std::set<int> kDocumented = {200, 206, 400, 403, 404, 405, 409, 413, 416, 422, 500, 503, 507};

void check_answer(const Harness::Answer& answer) {
  check(kDocumented.contains(answer.status));
  check(answer.status < 400 || answer.json().is_object());
}

void ask_anything(Harness& h, FuzzedDataProvider& in) {
  static constexpr const char* kMethods[] = {"GET", "PUT", "POST", "HEAD", "DELETE"};
  static const std::string kPaths[] = {
      "/v1/status", "/v1/points", "/v1/points/1", "/v1/points/latest/tree", "/v1/points/resolve?at=",
      "/v1/points/1/images/" + test_uuid(1).to_string() + "/data", "/v1/points/1/images/" + test_uuid(1).to_string() + "/hash",
      "/v1/points/1/images/" + test_uuid(1).to_string() + "/extents?from=", "/v1/batches/host1/", "/v1/sources/host1/"};
  static constexpr net::Role kRoles[] = {net::Role::kHost, net::Role::kShared, net::Role::kReplica, net::Role::kOperator};
  net::HttpRequest request{.method = in.PickValueInArray(kMethods)};
  request.target = in.PickValueInArray(kPaths) + in.ConsumeRandomLengthString(80);
  if (in.ConsumeBool()) request.headers["range"] = "bytes=" + in.ConsumeRandomLengthString(40);
  if (in.ConsumeBool()) request.headers["x-tidemark-digest"] = in.ConsumeRandomLengthString(70);
  const std::string body = in.ConsumeRandomLengthString(300);
  request.body.assign(body.begin(), body.end());
  check_answer(h.ask(std::move(request), "host1", in.PickValueInArray(kRoles)));
}

wire::Mark any_mark(FuzzedDataProvider& in) {
  auto inode = [&] { return InodeNumber(in.ConsumeIntegralInRange<uint64_t>(0, 5)); };
  auto name = [&] { return in.ConsumeRandomLengthString(12); };
  wire::Mark mark;
  mark.kind = static_cast<wire::MarkKind>(in.ConsumeIntegralInRange(1, 11));
  mark.number = EventNumber(in.ConsumeIntegralInRange<uint64_t>(0, 6));
  mark.origin = in.ConsumeBool() ? "host1" : name();
  mark.node.inode = inode();
  mark.node.parent = inode();
  mark.node.image = test_uuid(in.ConsumeIntegralInRange<uint64_t>(0, 3));
  mark.node.kind = static_cast<wire::NodeKind>(in.ConsumeIntegralInRange(0, 9));
  mark.old_parent = inode();
  mark.old_name = name();
  mark.name = name();
  mark.replaced = test_uuid(in.ConsumeIntegralInRange<uint64_t>(0, 3));
  mark.replaced_inode = inode();
  mark.epoch = Epoch(in.ConsumeIntegralInRange<uint64_t>(0, 4));
  mark.parent = {.epoch = Epoch(in.ConsumeIntegralInRange<uint64_t>(0, 4)), .source = in.ConsumeBool() ? "host2" : name()};
  return mark;
}

// Damages bytes of the head and makes its checksums right again, so that the damage is looked at.
void damage(Bytes& segment, FuzzedDataProvider& in) {
  uint64_t head = load_le<uint32_t>(segment.data() + 12);
  for (int n = in.ConsumeIntegralInRange(1, 4); n > 0; --n) {
    uint64_t at = journal::kSegmentPreambleBytes + in.ConsumeIntegralInRange<uint64_t>(0, head - 1);
    segment[at] = in.ConsumeIntegral<uint8_t>();
  }
  store_le<uint64_t>(segment.data() + 48, digest64(ByteSpan(segment).subspan(journal::kSegmentPreambleBytes, head)));
  store_le<uint64_t>(segment.data() + 56, digest64(ByteSpan(segment).first(56)));
}

void put_batch(Harness& h, BatchMaker& maker, FuzzedDataProvider& in) {
  std::vector<wire::Mark> marks;
  for (int n = in.ConsumeIntegralInRange(0, 3); n > 0; --n) marks.push_back(any_mark(in));
  std::vector<SliceSpec> slices;
  std::set<Uuid> used;
  for (int n = in.ConsumeIntegralInRange(0, 2); n > 0; --n) {
    SliceSpec slice{.image = test_uuid(in.ConsumeIntegralInRange<uint64_t>(1, 3))};
    slice.epoch = Epoch(in.ConsumeIntegralInRange<uint64_t>(1, 4));
    slice.parent = {.epoch = Epoch(in.ConsumeIntegralInRange<uint64_t>(0, slice.epoch.value - 1)), .source = in.ConsumeBool() ? "host1" : "host2"};
    const uint64_t at = in.ConsumeIntegralInRange<uint64_t>(0, 62) * 4096;
    slice.size = at + in.ConsumeIntegralInRange<uint64_t>(8, 16) * 4096;
    if (in.ConsumeBool()) slice.pieces.push_back({.offset = at, .zeros = in.ConsumeIntegralInRange<uint64_t>(1, 8) * 4096});
    else slice.pieces.push_back({.offset = at, .data = Bytes(4096, in.ConsumeIntegral<uint8_t>())});
    if (used.insert(slice.image).second) slices.push_back(std::move(slice));
  }
  BatchMaker before = maker;
  BatchMaker::Made made = maker.make(std::move(slices), std::move(marks), in.ConsumeRandomLengthString(6));
  if (in.ConsumeBool()) damage(made.parts[0], in);
  Harness::Answer answer = h.put(maker, made);
  check_answer(answer);
  if (answer.status != 200) maker.set_chain(made.number, before.previous());  // nothing of it was applied: its number is still free
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  log::set_sink_for_testing([](log::Level, std::string_view, std::string_view) {});
  FuzzedDataProvider in(data, size);
  Harness h;
  BatchMaker maker("host1");
  for (int i = 0; i < 12 && in.remaining_bytes() > 0; ++i) {
    switch (in.ConsumeIntegralInRange(0, 3)) {
      case 0: h.restart(); break;
      case 1: ask_anything(h, in); break;
      default: put_batch(h, maker, in);
    }
  }
  h.restart();
  check_answer(h.get("/v1/status"));
  return 0;
}
