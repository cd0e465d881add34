// Whether a part may be accepted: the pure decisions, without I/O.
//
//   judge_stored(), judge_new()   by number and digest: new, repeated, conflicting or out of order
//   check_part()   by what the part says of itself and of its source: 422 with the reason
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "replica/order.h"
#include "replica/records.h"
#include "shared/net/network.h"

namespace tidemark::replica {

// What a PUT names, from its path and certificate.
struct PartName {
  std::string source;
  Uuid generation;
  BatchNumber number;
  uint32_t part = 0;
  std::string to_string() const;   // "host1/UUID/42/0"
};

struct Judgement {
  enum class Kind : uint8_t {
    kNew,          // take it
    kRepeated,     // stored with the same bytes: answer as before
    kConflict,     // stored with other bytes (`have`)
    kOutOfOrder,   // not `expected`
    kOldGeneration // a newer generation of this source has begun
  } kind = Kind::kNew;
  Bytes have;
};
// What is kept under this very name, if anything: kRepeated or kConflict; else kNew. Looks at bytes
// only, so that a damaged repetition is a conflict too.
Judgement judge_stored(const PartName& name, const Sha256& digest, const BatchRecord* stored);
// Whether it is the source's turn: kNew, kOutOfOrder or kOldGeneration.
Judgement judge_new(const PartName& name, const SourceRecord* source, const StreamRecord& stream,
                    const journal::BatchHeader& header);

// Compares the part with its path, its cluster, the chain, its source's incarnations and the
// batch's other parts. kInvalidArgument with the reason.
Status check_part(const PartName& name, const Uuid& cluster, const SourceRecord* source, const StreamRecord& stream,
                  const BatchRecord* stored, const journal::SegmentHead& head);

// Of what all parts of a batch must say alike.
uint64_t common_digest(const journal::SegmentHead& head);

// The images that the marks of these parts bind to the source's stream: created or opened for
// writing in it. And those that are created.
bool binds(wire::MarkKind kind);
BatchFacts facts_of(const std::vector<const journal::SegmentHead*>& parts);

}  // namespace tidemark::replica
