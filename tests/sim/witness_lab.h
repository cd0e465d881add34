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

// So many images, disk0 and so on, open on host 1, level and with their terms.
inline std::vector<fs::HandleId> open_many(Lab& lab, size_t count) {
  std::vector<fs::HandleId> out;
  for (size_t i = 0; i < count; ++i) {
    auto handle = lab.open("host1", true, "disk" + std::to_string(i));
    EXPECT_TRUE(handle.is_ok()) << handle.status().to_string();
    if (!handle) return out;
    EXPECT_TRUE(lab.write("host1", *handle, 0, 'a').is_ok());
    EXPECT_TRUE(lab.flush("host1", *handle).is_ok());
    out.push_back(*handle);
  }
  lab.world.run_for(std::chrono::seconds(5));
  EXPECT_EQ(lab.world.committed("witness1", "/state/witness", "records").size(), count);
  return out;
}

inline size_t recorded(Lab& lab, witness::Verdict verdict) {   // images of which the witness has recorded it
  size_t count = 0;
  for (const auto& [key, value] : lab.world.committed("witness1", "/state/witness", "records")) {
    auto record = wire::decode<witness::Record>(value);
    EXPECT_TRUE(record.is_ok());
    if (record && record->verdict == verdict) ++count;
  }
  return count;
}
inline size_t let_go_on(Lab& lab) { return recorded(lab, witness::Verdict::kOutdated); }

inline bool moves(Lab& lab, fs::HandleId handle, Duration limit) {
  return lab.world.run_until([&, next = Duration(0)]() mutable {
    if (lab.world.elapsed() < next) return false;
    next = lab.world.elapsed() + std::chrono::milliseconds(100);
    return lab.write("host2", handle, 4096, 'b').is_ok();
  }, limit);
}

}  // namespace tidemark::sim
