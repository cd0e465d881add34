#include "shared/witness/rules.h"

#include <utility>

namespace tidemark::witness {

std::string_view verdict_name(Verdict verdict) {
  switch (verdict) {
    case Verdict::kUndecided: return "undecided";
    case Verdict::kOutdated: return "outdated";
    case Verdict::kFenced: return "fenced";
  }
  return "unknown";
}

Result<Record> step(const std::optional<Record>& known, const Question& q) {
  const auto asked = std::make_pair(q.epoch, q.generation);
  if (!known && !q.registers) return Status(Code::kNotFound, "not registered: no vote before both copies are level again");
  const auto stands = known ? std::make_pair(known->epoch, known->generation) : std::make_pair(Epoch(0), Generation(0));
  if (q.registers && asked > stands) return Record{q.epoch, q.generation, Verdict::kUndecided, q.by};
  if (asked != stands) {
    return Status(Code::kBusy, "epoch " + std::to_string(stands.first.value) + ", generation " +
                                   std::to_string(stands.second.value) + " is registered, not " +
                                   std::to_string(asked.first.value) + ", " + std::to_string(asked.second.value));
  }
  Record record = *known;
  if (q.registers || record.verdict != Verdict::kUndecided) return record;
  record.verdict = q.verdict;
  record.by = q.by;
  return record;
}

}  // namespace tidemark::witness
