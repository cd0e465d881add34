// What the witness says: pure. One record an image, of the newest generation of its copies that was registered.
//
//   (none) --register--> undecided --outdated: the host goes on alone
//                           |    ^      (the shared copy is not served to another host)
//                           |    +----- register of a newer (epoch, generation), from any of these
//                           +--fenced: the tenure moves; the host must not go on alone
//
// A decision is made once: whoever asks again, or asks for the other, gets what was recorded. Another generation than
// the registered one is refused. An image that is not registered (a witness that lost its state knows none) gets no
// vote. Registered only by the shared node, while it and the holder see each other and their copies are level: then no
// decision that stood before can matter any more.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "shared/base/ids.h"
#include "shared/base/status.h"

namespace tidemark::witness {

enum class Verdict : uint8_t { kUndecided = 0, kOutdated = 1, kFenced = 2 };
std::string_view verdict_name(Verdict verdict);   // "undecided", "outdated", "fenced"

struct Record {
  Epoch epoch;
  Generation generation;
  Verdict verdict = Verdict::kUndecided;
  std::string by;                  // node that asked for the decision
  bool operator==(const Record&) const = default;
  template <class A> void fields(A& a) { a(epoch, generation, verdict, by); }
};

struct Question {
  bool registers = false;          // else it asks for `verdict`
  Epoch epoch;
  Generation generation;
  Verdict verdict = Verdict::kUndecided;
  std::string by;
};

// The record after the question, to be durable before it is answered; or why there is no vote: kNotFound (not
// registered), kBusy (another generation is registered).
Result<Record> step(const std::optional<Record>& known, const Question& question);

}  // namespace tidemark::witness
