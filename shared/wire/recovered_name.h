// A name for an image of which none is known, where a catalogue is made anew: by the shared node for blocks that no
// host reports, and by a host for an image that goes on there. Any other host's name for it, however old, is better.
#pragma once

#include <string>

#include "shared/base/ids.h"

namespace tidemark::wire {

inline std::string recovered_name(const ImageId& image) { return "recovered-" + image.to_string(); }

}  // namespace tidemark::wire
