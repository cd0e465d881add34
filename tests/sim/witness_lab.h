// What tests with a witness share.
#pragma once

#include "tests/sim/lab.h"

namespace tidemark::sim {

// The image, open on host 1, which has its terms of the witness and then loses the shared node.
inline Result<fs::HandleId> cut_off_after_a_write(Lab& lab) {
  TM_ASSIGN_OR_RETURN(fs::HandleId image, lab.open("host1", true));
  TM_RETURN_IF_ERROR(lab.write("host1", image, 0, 'a'));
  lab.world.run_for(std::chrono::seconds(5));
  lab.world.partition("host1", "shared1");
  return image;
}

inline bool moves(Lab& lab, fs::HandleId handle, Duration limit) {
  return lab.world.run_until([&, next = Duration(0)]() mutable {
    if (lab.world.elapsed() < next) return false;
    next = lab.world.elapsed() + std::chrono::milliseconds(100);
    return lab.write("host2", handle, 4096, 'b').is_ok();
  }, limit);
}

}  // namespace tidemark::sim
