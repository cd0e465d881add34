// What Create carries between two ends that have feature bit 7 (kFeatureCreateOnce): the same, and the host's number
// of it.
#pragma once

#include "shared/wire/messages.h"

namespace tidemark::wire {

struct CreateOnce {               // answer Changed; a mark without a number: this very request made it before
  Create create;
  uint64_t number = 0;                   // the same when it is asked again, by a successor too; 0: none
  template <class A> void fields(A& a) { a(create, number); }
};

}  // namespace tidemark::wire
