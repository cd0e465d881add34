// Reading much of a copy: keyed digests for resync and verify, and the list of what is allocated.
#include <algorithm>
#include <utility>

#include "shared/base/limits.h"
#include "shared/node/core.h"
#include "shared/wire/codec.h"

namespace tidemark::node {

namespace {
constexpr uint32_t kUnitMin = 4096, kUnitMax = limits::kFramePayloadBytesMax;
constexpr uint32_t kPiecesMax = 1024;   // looked up for one ExtentList
constexpr uint64_t kHashReadBytes = 1u << 20;   // read at once for a Hash
}

// One Hash request: piece by piece, each in the order of overlapping requests. A piece is whole units.
struct Core::HashRun {
  PeerPtr peer;
  uint64_t id = 0;
  Image* image = nullptr;
  wire::Hash ask;
  uint64_t at = 0;          // next byte
  wire::Hashes answer;
  Op* op = nullptr;         // of the piece under way
};

void Core::hash_request(const PeerPtr& peer, wire::Request& request) {
  auto run = std::make_shared<HashRun>();   // shared along the chain of its completions
  Image* image = image_of(peer, request, run->ask);
  if (image == nullptr) return;
  const wire::Hash& ask = run->ask;
  auto refuse = [&](Status status) { peer->link->respond_failure(request.type, request.id, status); };
  bool unit_ok = ask.unit >= kUnitMin && ask.unit <= kUnitMax && ask.unit % kDigestUnit == 0;
  if (!unit_ok || ask.extent.length > limits::kHashBytesMax || ask.extent.offset > limits::kImageBytesMax) {
    return refuse(Status(Code::kInvalidArgument, "hash of an extent or unit out of bounds"));
  }
  if (image->attr->mirror == 0) return refuse(no_mirror(*image));
  if (image->record.has_copy != 0) {
    if (Status s = ensure_copy(*image, peer->session->host); !s) return refuse(s);
  }
  run->peer = peer;
  run->id = request.id;
  run->image = image;
  run->at = ask.extent.offset;
  ++scans_;
  ++image->ops;
  hash_step(run);
}

void Core::hash_unit(HashRun& run, ByteSpan data, bool hole) {
  run.answer.digests.push_back(keyed_digest(run.ask.key, data));
  run.answer.holes.push_back(hole ? 1 : 0);
}

// Hashes holes at once and reads the next piece with data: its units up to the next hole.
void Core::hash_step(std::shared_ptr<HashRun> run) {
  Image& im = *run->image;
  auto end = [&] { --scans_; --im.ops; maybe_stopped(); };
  const Bytes zeros(run->ask.unit, 0);
  uint64_t end_at = run->ask.extent.end();
  while (run->at < end_at && !run->peer->session->ended) {
    uint64_t length = std::min<uint64_t>(run->ask.unit, end_at - run->at);
    uint64_t size = im.copy ? im.copy->size() : 0;
    Extent data{};
    if (run->at < size) {
      Result<Extent> next = im.copy->next_data(run->at);
      if (!next) {
        run->peer->link->respond_failure(wire::Type::kHash, run->id, next.status());
        return end();
      }
      data = *next;
    }
    if (data.length == 0 || data.offset >= run->at + length) {
      hash_unit(*run, ByteSpan(zeros).first(length), true);
      run->at += length;
      continue;
    }
    const uint64_t unit = run->ask.unit, most = std::max(unit, kHashReadBytes / unit * unit);
    const uint64_t units = (data.end() - run->at + unit - 1) / unit * unit;
    length = std::min({std::max(length, units), most, end_at - run->at});
    wire::Request request;
    request.type = wire::Type::kHash;
    request.id = run->id;
    Op* op = new_op(run->peer, request, im);
    op->offset = run->at;
    op->length = length;
    op->range = {run->at, length};
    op->ordered = true;
    run->op = op;
    scan_reads_[op] = run;
    if (im.order.admit(op)) this->run(op);
    return;
  }
  run->peer->link->respond(wire::Type::kHash, run->id, run->answer);
  end();
}

void Core::issue_hash(Op* op) {
  std::shared_ptr<HashRun> run = scan_reads_.at(op);
  Image& im = *op->image;
  uint64_t size = im.copy->size();
  uint64_t inside = op->offset >= size ? 0 : std::min(op->length, size - op->offset);
  op->payload = pool_->take(op->length);
  std::fill(op->payload.data() + inside, op->payload.data() + op->length, uint8_t{0});
  auto done = at_copy(op, [this, op, run](Status status) {
    scan_reads_.erase(op);
    if (!status) {
      --scans_;
      --run->image->ops;
      return fail(op, status.with_context(label(*run->image)));
    }
    for (uint64_t at = 0; at < op->length; at += run->ask.unit)
      hash_unit(*run, op->payload.span().subspan(at, std::min<uint64_t>(run->ask.unit, op->length - at)), false);
    run->at += op->length;
    finish(op);
    // The stack is left between pieces: a scan must not hold the loop.
    env_.post([this, self = self_, run] {
      if (*self != nullptr) hash_step(run);
    });
  });
  im.copy->read(op->offset, op->payload.span().first(inside), io::IoMode::kQueued, std::move(done));
}

void Core::end_hash(Op* op) {
  auto it = scan_reads_.find(op);
  if (it == scan_reads_.end()) return;
  --scans_;
  --it->second->image->ops;
  scan_reads_.erase(it);
}

void Core::extents_request(const PeerPtr& peer, wire::Request& request) {
  wire::Extents m;
  Image* image = image_of(peer, request, m);
  if (image == nullptr) return;
  auto refuse = [&](Status status) { peer->link->respond_failure(request.type, request.id, status); };
  if (image->attr->mirror == 0) return refuse(no_mirror(*image));
  wire::ExtentList answer;
  answer.next_offset = image->attr->size;
  if (image->record.has_copy != 0) {
    if (Status s = ensure_copy(*image, peer->session->host); !s) return refuse(s);
    uint32_t count_max = std::min(m.count_max, limits::kExtentsMax);
    uint64_t at = m.offset;
    // Pieces that join count too: on stripes a long extent is many, and the loop must not be held.
    for (uint32_t pieces = 0; at < image->copy->size(); ++pieces) {
      if (pieces == kPiecesMax) {
        answer.next_offset = at;
        break;
      }
      Result<Extent> next = image->copy->next_data(at);
      if (!next) return refuse(next.status());
      if (next->length == 0) break;
      bool joins = !answer.extents.empty() && answer.extents.back().end() == next->offset;
      if (!joins && answer.extents.size() >= count_max) {
        answer.next_offset = at;
        break;
      }
      if (joins) answer.extents.back().length += next->length;
      else answer.extents.push_back(*next);
      at = next->end();
    }
  }
  peer->link->respond(request.type, request.id, answer);
}

}  // namespace tidemark::node
