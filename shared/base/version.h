// The version of this build, as in the top-level CMakeLists.txt.
#pragma once

#include <string_view>

namespace tidemark {

std::string_view version();

}  // namespace tidemark
